"""3-calls.md, calls.cddl and the vectors of calls: do they agree with each other, and with us?"""

from __future__ import annotations

import importlib
import json
import re
import sys
from pathlib import Path
from typing import Any, Final

import jsonschema
import pytest
from cddl_verifier import Validator, schema_diagnostics  # type: ignore[import-untyped]

from forkwire.wire import messages, session

SPEC: Final = Path(__file__).resolve().parents[2] / "protocol-spec"
sys.path.insert(0, str(SPEC / "conformance"))
cbor: Final[Any] = importlib.import_module("calls_cbor")

TEXT: Final = (SPEC / "3-calls.md").read_text("utf-8")
CDDL: Final = SPEC / "calls.cddl"
FILES: Final = sorted((SPEC / "vectors-calls").glob("*.json"))
VECTORS: Final[list[dict[str, Any]]] = [
    vector for file in FILES for vector in json.loads(file.read_text("utf-8"))["vectors"]
]
NAMES: Final = [vector["name"] for vector in VECTORS]
SCHEMA: Final = json.loads((SPEC / "vectors-calls.schema.json").read_text("utf-8"))
VALIDATOR: Final = Validator(CDDL)

# The verifier recurses, a level of a value in several frames of ours.
DEEP: Final = {"nested-deep", "nested-too-deep"}

each_vector = pytest.mark.parametrize("vector", VECTORS, ids=NAMES)


def section(title: str) -> str:
    """What stands under a heading."""
    return TEXT.partition(f"# {title}\n")[2].partition("\n#")[0]


def requirements() -> dict[str, str]:
    """Every numbered requirement and its text."""
    found = re.findall(r"^- \*\*(C-\d+)\*\* (.*?)(?=^- |^\s*$)", TEXT, re.MULTILINE | re.DOTALL)
    return dict(found)


def shown() -> set[str]:
    """The requirements that a vector shows."""
    return {name for vector in VECTORS for name in vector["requires"]}


def excused() -> set[str]:
    """The requirements of which the text says why no vector shows them."""
    table = section("Requirements that no vector shows")
    return set(re.findall(r"^\| (C-\d+) \| \w", table, re.MULTILINE))


def is_valid(data: bytes, root: str = "message") -> bool:
    """Is ``data`` what calls.cddl says?"""
    return bool(VALIDATOR.validate(data, root_type=root).valid)


# The text


def test_requirements_are_numbered() -> None:
    """Requirements are numbered without a gap or a double."""
    numbers = re.findall(r"^- \*\*C-(\d+)\*\* ", TEXT, re.MULTILINE)
    assert sorted(map(int, numbers)) == list(range(1, len(numbers) + 1))


def test_every_must_is_covered() -> None:
    """Each requirement with a MUST has a vector, or a reason why none can show it."""
    musts = {name for name, text in requirements().items() if "MUST" in text}
    assert musts - shown() - excused() == set()


def test_requirements_exist() -> None:
    """Vectors and excuses name requirements that exist, and none is shown and excused."""
    assert shown() | excused() <= set(requirements())
    assert shown() & excused() == set()


def test_references_exist() -> None:
    """Our code, the CDDL and the text cite requirements that exist."""
    sources = [*(SPEC.parent / "src").rglob("*.py"), CDDL, SPEC / "3-calls.md"]
    cited = {name for path in sources for name in re.findall(r"\bC-\d+\b", path.read_text("utf-8"))}
    assert cited <= set(requirements())


def rows(title: str, first: str) -> list[list[str]]:
    """The rows of the table of a section that begins with the column ``first``."""
    table = re.search(
        rf"^\| {re.escape(first)} \|.*?(?=\n\n)", section(title), re.MULTILINE | re.DOTALL
    )
    assert table
    lines = [line for line in table[0].splitlines() if not line.startswith("|---")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def test_messages_are_those_of_the_code() -> None:
    """The table of messages has our messages, their numbers and their fields."""
    table = {row[0]: row for row in rows("Messages", "type")[1:]}
    for number, (kind, checks, _) in messages.TABLE.items():
        _, name, fields, *_ = table[str(number)]
        assert name == kind.__name__.upper()
        assert len(fields.split(", ")) == len(checks)


def test_states_of_a_side_are_those_of_the_code() -> None:
    """The table of a side's states says what the session's does."""
    header, *table = rows("The end", "state of a side, by what it sent")
    for state, *cells in table:
        found = session.SIDE_TABLE[session.SideState[state.strip("*").upper()]]
        for names, cell in zip(header[1:], cells, strict=True):
            for kind in kinds_of(names) or session.ANY_TIME:
                after = found.get(kind)
                assert (after.name.lower() if after else "-") == cell, (state, kind)


def kinds_of(names: str) -> list[type]:
    """The classes of the messages in a table's header."""
    return [getattr(messages, name.capitalize()) for name in names.split(", ") if name.isupper()]


def test_states_of_a_call_are_those_of_the_code() -> None:
    """The table of a call's states says what the session's does."""
    header, *table = rows("The states of a call", "state")
    for label, *cells in table:
        state = label.split("*")[2].upper()
        found = session.CALL_TABLE.get(session.CallState[state], {})
        for names, cell in zip(header[1:], cells, strict=True):
            for kind in kinds_of(names):
                assert word(found, kind, state) == alternative(cell, kind), (state, kind)


def word(found: dict[Any, Any], kind: type, state: str) -> str:
    """What the table of the text says where ours says this."""
    if state == "OVER":
        return "ignored" if kind in session.MAY_BE_LATE else "-"
    return str(found[kind].name.lower()) if kind in found else "-"


def alternative(cell: str, kind: type) -> str:
    """The part of a cell that is about one kind."""
    named = dict(re.findall(r"([A-Z]+): ([\w-]+)", cell))
    return str(named.get(kind.__name__.upper(), cell))


def test_limits_are_those_of_the_code() -> None:
    """The limits in the text are the session's."""
    found = requirements()
    assert f"more than {session.UNGREETED_CALLS} calls" in found["C-11"]
    assert f"and {session.DEFAULT_CALLS} calls" in found["C-10"]
    assert f"1 to {messages.LARGEST_TEXT} characters" in found["C-13"]
    assert messages.LARGEST_ID == 2**53 - 1
    assert messages.LARGEST_CREDIT == 2**31 - 1
    assert session.UNGREETED_SIZE == 2**20


# The examples

EXAMPLES: Final = re.findall(
    r"^\| ([^|]+) \| `([^`]+)` \| `([0-9a-f ]+)` \|$", section("Examples"), re.MULTILINE
)


@pytest.mark.parametrize(("what", "notation", "octets"), EXAMPLES, ids=[row[0] for row in EXAMPLES])
def test_examples(what: str, notation: str, octets: str) -> None:
    """The bytes of an example are its notation, which is in the form that we print."""
    data = bytes.fromhex(octets)
    assert cbor.encode(cbor.parse(notation)) == data
    assert cbor.parse(cbor.show(cbor.decode(data))) == cbor.decode(data)


@pytest.mark.parametrize(("what", "notation", "octets"), EXAMPLES, ids=[row[0] for row in EXAMPLES])
def test_examples_fit_the_cddl(what: str, notation: str, octets: str) -> None:
    """Each example is a message, or a value, of calls.cddl."""
    assert is_valid(bytes.fromhex(octets), "message" if notation.startswith("[") else "value")


def test_every_message_has_an_example() -> None:
    """Each type of message has an example, and our code understands it."""
    arrays = [cbor.decode(bytes.fromhex(row[2])) for row in EXAMPLES if row[1].startswith("[")]
    assert {array[0] for array in arrays} >= set(messages.TABLE)
    for array in arrays:
        messages.parse(array)


def test_example_with_attachment() -> None:
    """The example in frames is one: sizes that fit, an announcement, an attachment, a message."""
    block = re.search(r"```\n((?:[0-9a-f]{2} ){4}.*?)```", section("Examples"), re.DOTALL)
    assert block
    stream = bytes.fromhex(block[1])
    frames = []
    while stream:
        size = int.from_bytes(stream[:4], "little")
        frames.append(stream[4 : 4 + size])
        stream = stream[4 + size :]
    assert cbor.decode(frames[0]) == [messages.Attach.TYPE, [len(frames[1])]]
    assert cbor.decode(frames[2])[3] == [cbor.Tag(0x464B0001, 0)]
    assert len(frames) == 3


def test_conversation_fits_the_cddl() -> None:
    """Each message of the conversation at the start is one of calls.cddl."""
    block = section("In one paragraph").partition("```")[2].partition("```")[0]
    lines = [part for line in block.splitlines()[2:] for part in re.split(r"  +", line) if part]
    assert len(lines) == 13
    for line in lines:
        notation = line.replace("{...}", '{"name": "calc"}')
        assert is_valid(cbor.encode(cbor.parse(notation))), line


# The CDDL


def test_cddl_is_cddl() -> None:
    """calls.cddl is valid CDDL."""
    assert schema_diagnostics(CDDL) == ()


@pytest.mark.parametrize(
    "notation",
    [
        "[0, {}]",
        '[0, {"protocol": []}]',
        '[0, {"protocol": [1], "limits": {"message": -1}}]',
        '[1, 1, "add", [1], {}, {"timeout": "soon"}]',
        '[1, 1, "add", [[1179320322("0")]], {}, {"progress": 1}]',
        "[4, 1, {}]",
        '[4, 1, {"code": -32000}]',
        '[4, 1, {"code": "x", "message": ""}]',
        '[4, 1, {"code": 1, "message": "", "cause": {"code": 1}}]',
        '[8, 1, "half", null, ""]',
        "[8, 1, 1, null, null]",
        "[9, []]",
        "[10, -1]",
        "[16, 1, 0, -1]",
        "[25]",
        '[25, "1"]',
    ],
)
def test_cddl_refuses(notation: str) -> None:
    """What is not as the tables say is no message."""
    assert not is_valid(cbor.encode(cbor.parse(notation)))


@pytest.mark.parametrize(
    "vector", [v for v in VECTORS if v["name"] not in DEEP], ids=lambda v: v["name"]
)
def test_vectors_fit_the_cddl(vector: dict[str, Any]) -> None:
    """Each message of a vector is one of calls.cddl; what is called malformed is none."""
    for step in vector["steps"]:
        if "send" in step:
            assert is_valid(bytes.fromhex(step["send"])), step
        elif "do" in step:
            assert is_valid(cbor.encode(cbor.parse(step["do"]))), step
        elif step.get("malformed"):
            assert not is_valid(bytes.fromhex(step["frame"])), step


# The files


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_schema(path: Path) -> None:
    """Each file of vectors is valid by the schema, which is a valid schema itself."""
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    jsonschema.Draft202012Validator(SCHEMA).validate(json.loads(path.read_text("utf-8")))


@pytest.mark.parametrize(
    "change",
    [
        {"outcome": "error"},
        {"requires": ["F-1"]},
        {"steps": []},
        {"steps": [{"send": "81"}]},
        {"steps": [{"send": "8", "is": "[]"}]},
        {"steps": [{"expect": "[]", "is": "[]"}]},
        {"greeting": True},
        {"surprise": 1},
    ],
    ids=str,
)
def test_schema_refuses(change: dict[str, Any]) -> None:
    """The schema refuses what is outside its closed lists."""
    file = json.loads(FILES[0].read_text("utf-8"))
    file["vectors"] = [{**file["vectors"][0], **change}]
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.Draft202012Validator(SCHEMA).validate(file)


def test_names_are_unique() -> None:
    """No two vectors share a name, and no two describe the same case."""
    assert len(set(NAMES)) == len(NAMES)
    cases = [json.dumps([vector["steps"], vector.get("greeting")]) for vector in VECTORS]
    assert len(set(cases)) == len(cases)


@each_vector
def test_notation_is_what_the_bytes_are(vector: dict[str, Any]) -> None:
    """The notation of each step is that of its bytes, and each pattern is one."""
    for step in vector["steps"]:
        if "send" in step:
            assert cbor.show(cbor.decode(bytes.fromhex(step["send"]))) == step["is"]
        for pattern in step.get("unordered", [step["expect"]] if "expect" in step else []):
            assert isinstance(cbor.parse(pattern), list)


def test_readme_vector() -> None:
    """The vector of calls that the README shows is one of the files."""
    blocks = re.findall(r"```json\n(.*?)```", (SPEC / "README.md").read_text("utf-8"), re.DOTALL)
    assert json.loads(blocks[1]) in VECTORS

"""The specification, its vectors, its runner, and our decoder against them."""

from __future__ import annotations

import ast
import importlib.util
import itertools
import json
import os
import re
import shutil
import struct
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import jsonschema
import pytest

from forkwire.errors import NegativeSizeError, SizeLimitError
from forkwire.wire.framing import Decoder, EndOfFile, encode_int, frame

if TYPE_CHECKING:
    from collections.abc import Iterator

HERE: Final = Path(__file__).resolve().parent
SPEC: Final = HERE.parents[1] / "protocol-spec"
CONFORMANCE: Final = SPEC / "conformance"
RUNNER: Final = CONFORMANCE / "run.py"
FRAMING: Final = (SPEC / "1-framing.md").read_text("utf-8")
FILES: Final = sorted((SPEC / "vectors").glob("*.json"))
ENTRIES: Final[list[dict[str, Any]]] = [
    entry for file in FILES for entry in json.loads(file.read_text("utf-8"))["vectors"]
]
NAMES: Final = [entry["name"] for entry in ENTRIES]
PYTHON: Final = (sys.executable, "-I")
NODE: Final = shutil.which("node")
OCAMLFIND: Final = shutil.which("ocamlfind")

# Longer streams are cut up at both ends only, as the runner does it.
FULLY_CUT: Final = 100_000

each_vector = pytest.mark.parametrize("entry", ENTRIES, ids=NAMES)
Outcome = tuple[list["bytes | int"], "str", "int | None"]


def load_runner() -> Any:
    """run.py as a module."""
    spec = importlib.util.spec_from_file_location("conformance_run", RUNNER)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


runner: Final = load_runner()


def requirements() -> dict[str, str]:
    """Every numbered requirement of 1-framing.md and its text."""
    found = re.findall(r"^- \*\*(F-\d+)\*\* (.*?)(?=^- |^\s*$)", FRAMING, re.MULTILINE | re.DOTALL)
    return dict(found)


def excused() -> set[str]:
    """The requirements that 1-framing.md says no vector shows."""
    table = FRAMING.partition("## Requirements that no vector shows")[2].partition("##")[0]
    return set(re.findall(r"^\| (F-\d+) \| \w", table, re.MULTILINE))


def expected(entry: dict[str, Any]) -> Outcome:
    """What a reader must make of a vector: items, end, and the size that was refused."""
    results = [
        result["int"] if "int" in result else runner.octets(result["message"])
        for result in entry["results"]
    ]
    return results, entry["end"], entry.get("size")


def chunks(stream: bytes, size: int) -> Iterator[bytes]:
    """``stream`` in pieces of ``size``; 0 is all at once."""
    if not size or len(stream) > FULLY_CUT:
        return iter(runner.cut(stream, size))
    return (stream[at : at + size] for at in range(0, len(stream), size))


def decode(entry: dict[str, Any], size: int) -> Outcome:
    """What our decoder makes of a vector that comes in chunks of ``size``."""
    decoder = Decoder(entry["limit"])
    kinds = itertools.cycle(entry["reads"])
    results: list[bytes | int] = []
    kind = next(kinds)
    stream = runner.vector(entry, sys.byteorder).stream
    for chunk in itertools.chain(chunks(stream, size), [b""]):
        decoder.feed(chunk)
        while (item := take(decoder, kind)) is not None:
            if isinstance(item, tuple):
                return results, *item
            results.append(item)
            kind = next(kinds)
    raise AssertionError("the end of the file brought no end")


def take(decoder: Decoder, kind: str) -> bytes | int | tuple[str, int | None] | None:
    """The next item, the end and the size that was refused, or None."""
    try:
        item = decoder.next_message() if kind == "m" else decoder.next_int()
    except NegativeSizeError as error:
        return "negative", error.size
    except SizeLimitError as error:
        return "too-large", error.size
    if isinstance(item, EndOfFile):
        return ("inside" if item.truncated else "edge"), None
    return item


def conformance(
    *testee: str | Path,
    only: tuple[str, ...] = (),
    timeout: float = 20,
    within: float = 300,
    cwd: Path | None = None,
) -> subprocess.CompletedProcess[str]:
    """Run the runner, on all vectors or some; it must end ``within`` seconds."""
    options = [f"--timeout={timeout}", *(f"--only={name}" for name in only)]
    return subprocess.run(
        [*PYTHON, RUNNER, *options, *testee],
        capture_output=True,
        text=True,
        timeout=within,
        cwd=cwd,
        check=False,
    )


def assert_passes(*testee: str | Path, only: tuple[str, ...] = ()) -> None:
    """The program passes every vector, or each of ``only``."""
    result = conformance(*testee, only=only)
    assert result.returncode == 0, result.stdout + result.stderr
    count = len(only or NAMES)
    assert f"5 feeds each: {count} passed, 0 failed" in result.stdout


# The files


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_schema(path: Path) -> None:
    """Each file of vectors is valid by the schema, which is a valid schema itself."""
    schema = json.loads((SPEC / "vectors.schema.json").read_text("utf-8"))
    jsonschema.Draft202012Validator.check_schema(schema)
    jsonschema.Draft202012Validator(schema).validate(json.loads(path.read_text("utf-8")))


@pytest.mark.parametrize(
    "change",
    [
        {"end": "truncated"},
        {"end": "negative"},
        {"size": -1},
        {"reads": "x"},
        {"limit": 2**31},
        {"stream": [{"int": 2**31}]},
        {"stream": [{"bytes": "abc"}]},
        {"results": [{"bytes": "ab"}]},
        {"requires": []},
        {"surprise": 1},
    ],
    ids=str,
)
def test_schema_refuses(change: dict[str, Any]) -> None:
    """The schema refuses what is outside its closed lists and ranges."""
    schema = json.loads((SPEC / "vectors.schema.json").read_text("utf-8"))
    file = json.loads(FILES[0].read_text("utf-8"))
    file["vectors"] = [{**file["vectors"][0], "end": "edge", **change}]
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.Draft202012Validator(schema).validate(file)


def test_names_are_unique() -> None:
    """No two vectors share a name, and no two describe the same case."""
    assert len(set(NAMES)) == len(NAMES) >= 30
    cases = [json.dumps([entry[k] for k in ("limit", "reads", "stream")]) for entry in ENTRIES]
    assert len(set(cases)) == len(cases)


def test_every_must_is_covered() -> None:
    """Each MUST of the framing has a vector, or a reason why none can show it."""
    musts = {name for name, text in requirements().items() if "MUST" in text}
    shown = {name for entry in ENTRIES for name in entry["requires"]}
    assert musts - shown - excused() == set()


def test_requirements_exist() -> None:
    """Requirements are numbered without a gap; vectors and excuses name existing ones, not both.

    But for F-20, which vectors show to some programs only.
    """
    names = set(requirements())
    shown = {name for entry in ENTRIES for name in entry["requires"]}
    assert names == {f"F-{number}" for number in range(1, len(names) + 1)}
    assert shown | excused() <= names
    assert shown & excused() == {"F-20"}


def test_process_requirements_are_numbered() -> None:
    """The requirements on processes are numbered without a gap or a double."""
    text = (SPEC / "2-process.md").read_text("utf-8")
    numbers = re.findall(r"^- \*\*P-(\d+)\*\* ", text, re.MULTILINE)
    assert numbers == [str(number) for number in range(1, len(numbers) + 1)]


EXAMPLES: Final = re.findall(
    r"^\| ([^|]+) \| `([0-9a-f ]+)` \| `([0-9a-f ]+)` \|$", FRAMING, re.MULTILINE
)


@pytest.mark.parametrize(("what", "little", "big"), EXAMPLES, ids=[row[0] for row in EXAMPLES])
def test_examples(what: str, little: str, big: str) -> None:
    """The examples in hex are what they say, in both byte orders."""
    payload = b"hello" if "hello" in what else b""
    number = next(iter(re.findall(r"(?:of |integer |size, )(-?\d+)", what)), len(payload))
    assert bytes.fromhex(little) == struct.pack("<i", int(number)) + payload
    assert bytes.fromhex(big) == struct.pack(">i", int(number)) + payload


def test_examples_were_found() -> None:
    """The table of examples is read by the test above."""
    assert len(EXAMPLES) == 7


def test_links() -> None:
    """Every relative link and every named file of the specification exists."""
    for page in SPEC.glob("*.md"):
        for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text("utf-8")):
            assert (SPEC / target).exists(), (page.name, target)


def test_readme_vector() -> None:
    """The vector that the README shows is one of the files."""
    shown = re.search(r"```json\n(.*?)```", (SPEC / "README.md").read_text("utf-8"), re.DOTALL)
    assert shown
    assert json.loads(shown[1]) in ENTRIES


# Our code against the vectors


@pytest.mark.parametrize("size", [1, 2, 3, 0], ids=["1", "2", "3", "all"])
@each_vector
def test_decoder(entry: dict[str, Any], size: int) -> None:
    """Our decoder delivers what the vector says, however the stream is cut up."""
    assert decode(entry, size) == expected(entry)


@each_vector
def test_end_is_final(entry: dict[str, Any]) -> None:
    """After an end or a refusal our decoder gives the same answer for ever (F-12, F-18)."""
    decoder = Decoder(entry["limit"])
    decoder.feed(runner.vector(entry, sys.byteorder).stream)
    decoder.feed(b"")
    kinds = itertools.cycle(entry["reads"])
    results, end, size = expected(entry)
    assert [take(decoder, next(kinds)) for _ in results] == results
    kind = next(kinds)
    assert [take(decoder, kind) for _ in range(3)] == [(end, size)] * 3


@each_vector
def test_encoder(entry: dict[str, Any]) -> None:
    """What our encoder writes for the results is how the vector's stream begins."""
    items = [
        encode_int(item) if isinstance(item, int) else b"".join(frame(item))
        for item in expected(entry)[0]
    ]
    assert runner.vector(entry, sys.byteorder).stream.startswith(b"".join(items))


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs /proc")
def test_announced_size_commits_no_memory() -> None:
    """A size of 2^31-1 and 5 bytes cost our decoder less than 32 MiB (F-17)."""
    program = """if True:
        import re
        from forkwire.wire.framing import Decoder, encode_int
        def peak():
            return int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1])
        before = peak()
        decoder = Decoder()
        decoder.feed(encode_int(2**31 - 1) + b"hello")
        assert decoder.next_message() is None
        decoder.feed(b"more")
        print(peak() - before)
    """
    grown = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=30
    )
    assert int(grown.stdout) < 32 * 1024


# The runner and the testees


def test_python_testee() -> None:
    """The readable Python testee passes every vector."""
    assert_passes(*PYTHON, CONFORMANCE / "testee.py")


ONE_OF_EACH: Final = (
    "empty-message",
    "one-mebibyte-and-one",
    "message-then-negative-int",
    "end-in-payload",
    "negative-smallest",
    "too-large-in-bulk",
)


def test_forkwire_testee() -> None:
    """Our blocking front passes a vector of each kind."""
    assert_passes(sys.executable, HERE / "testee_forkwire.py", only=ONE_OF_EACH)


@pytest.mark.long
@pytest.mark.timeout(300)
def test_forkwire_testee_in_full() -> None:
    """Our blocking front passes every vector."""
    assert_passes(sys.executable, HERE / "testee_forkwire.py")


@pytest.mark.skipif(NODE is None, reason="node is not installed")
def test_node_testee() -> None:
    """The Node testee passes a vector of each kind."""
    assert NODE
    assert_passes(NODE, CONFORMANCE / "testee.mjs", only=ONE_OF_EACH)


@pytest.mark.long
@pytest.mark.timeout(300)
@pytest.mark.skipif(NODE is None, reason="node is not installed")
def test_node_testee_in_full() -> None:
    """The Node testee passes every vector."""
    assert NODE
    assert_passes(NODE, CONFORMANCE / "testee.mjs")


@pytest.mark.peers
@pytest.mark.skipif(OCAMLFIND is None, reason="ocamlfind is not installed")
def test_lwt_testee(tmp_path: Path) -> None:
    """OCaml's Lwt_io, whose framing this is, passes every vector."""
    shutil.copy(CONFORMANCE / "testee.ml", tmp_path)
    build = f"{OCAMLFIND} ocamlopt -thread -package lwt.unix -linkpkg testee.ml -o testee"
    subprocess.run(build.split(), cwd=tmp_path, capture_output=True, check=True, timeout=60)
    assert_passes(tmp_path / "testee")


# Each fault of broken_testee.py: the vector that finds it, the requirement that it breaks, and
# words of the report.
FAULTS: Final = [
    ("big_endian", "one-message", "F-1", "byte order"),
    ("big_endian", "int-four-bytes", "F-1", "differs at byte 4"),
    ("unsigned", "negative-one", "F-11", "expected exit status 4 (negative)"),
    ("short_size", "not-cut-to-16-bits", "F-1", "expected nothing"),
    ("drops_empty", "empty-between-others", "F-3", "differs at byte"),
    ("empty_is_end", "three-empty-messages", "F-3", "got      nothing"),
    ("text_mode", "line-ends", "F-4", "0d 0a 0a"),
    ("wrong_status", "nothing-at-all", "F-13", "1 (no end: a crash?)"),
    ("inside_is_edge", "end-in-payload", "F-14", "expected exit status 3 (inside)"),
    ("delivers_part", "end-in-payload", "F-14", "expected nothing"),
    ("limit_off_by_one", "at-the-limit", "F-10", "got      exit status 5 (too-large)"),
    ("limits_ints", "int-over-the-limit", "F-5", "got      exit status 5 (too-large)"),
    ("refuses_late", "too-large-without-payload", "F-10", "expected exit status 5"),
    ("skips_refused", "too-large-then-message", "F-12", "68 65 6c 6c 6f"),
    ("skips_negative", "negative-then-message", "F-12", "68 65 6c 6c 6f"),
    ("one_read_a_message", "one-message", "F-6", "chunks of 1"),
    ("one_item_a_read", "two-messages", "F-7", "differs at byte 9"),
    ("all_or_nothing", "negative-after-message", "F-8", "got      nothing"),
    ("short_writes", "one-mebibyte", "F-20", "differs at byte"),
    ("eager", "message-then-negative-int", "F-15", "exit status 4 (negative)"),
    ("crashes", "one-message", "F-2", "stderr: RuntimeError: a bug"),
    ("killed", "one-message", "F-2", "-9 (killed by signal 9)"),
    ("chatters", "one-message", "F-2", "72 65 61 64 79 0a"),
]


@pytest.mark.parametrize(("fault", "name", "requirement", "words"), FAULTS)
def test_runner_finds(fault: str, name: str, requirement: str, words: str) -> None:
    """The runner fails a testee with this fault, and says what it saw."""
    assert requirement in ENTRIES[NAMES.index(name)]["requires"]
    result = conformance(*PYTHON, HERE / "broken_testee.py", fault, only=(name,))
    assert result.returncode == 1
    assert f"FAIL {name}" in result.stdout
    assert "1 vector, 5 feeds each: 0 passed, 1 failed" in result.stdout
    assert words in result.stdout


def test_readme_report() -> None:
    """The README shows what the runner really prints."""
    result = conformance(
        *PYTHON, HERE / "broken_testee.py", "drops_empty", only=("one-message", "empty-message")
    )
    report = re.search(r"```\n(ok   .*?)\d+ vectors", (SPEC / "README.md").read_text(), re.DOTALL)
    assert report
    assert result.stdout.startswith(report[1])


@pytest.mark.parametrize(
    ("fault", "name", "words"),
    [
        ("hangs", "one-message", "waiting for it to read"),
        ("block_buffered", "two-messages", "waiting for the echo of an item"),
        ("refuses_late", "over-the-limit", "waiting for it to refuse a size"),
    ],
)
def test_runner_gives_up(fault: str, name: str, words: str) -> None:
    """The runner kills a testee that hangs, and says what it waited for."""
    result = conformance(*PYTHON, HERE / "broken_testee.py", fault, only=(name,), timeout=1)
    assert result.returncode == 1
    assert "killed after 1 s" in result.stdout
    assert words in result.stdout


def test_runner_stops_a_flood() -> None:
    """A testee that writes for ever is killed 64 KiB beyond what it should write."""
    result = conformance(
        *PYTHON, HERE / "broken_testee.py", "floods", only=("one-message",), within=15
    )
    assert result.returncode == 1
    assert "killed after 65536 bytes more than were expected" in result.stdout
    assert f"the output of {len(b'....hello') + 65536} bytes differs at byte 0" in result.stdout


def test_runner_keeps_the_end_of_stderr() -> None:
    """Of a testee that writes to standard error for ever a few lines are kept."""
    result = conformance(
        *PYTHON, HERE / "broken_testee.py", "complains", only=("one-message",), timeout=1, within=15
    )
    assert result.returncode == 1
    assert "killed after 1 s, waiting for it to read" in result.stdout
    assert result.stdout.count("stderr: n") == 5


def test_runner_does_not_wait_for_descendants() -> None:
    """A process in a session of its own that holds the pipes is not waited for."""
    testee = (*PYTHON, HERE / "broken_testee.py", "leaves_descendant")
    result = conformance(*testee, only=("one-message",), within=15)
    assert result.returncode == 0, result.stdout


def test_runner_does_not_write_to_descendants() -> None:
    """Nor is what such a process does not read waited for, once the testee has ended."""
    testee = (*PYTHON, HERE / "broken_testee.py", "leaves_descendant_and_goes")
    result = conformance(*testee, only=("one-mebibyte",), within=15)
    assert result.returncode == 1
    assert "got      nothing" in result.stdout
    assert "killed" not in result.stdout


def test_runner_interrupted(tmp_path: Path) -> None:
    """Ctrl-C ends the runner at once and in silence, and every testee with it."""
    testee = (*PYTHON, HERE / "broken_testee.py", "interrupts")
    result = conformance(*testee, within=15, cwd=tmp_path)
    assert (result.returncode, result.stdout, result.stderr) == (130, "", "")
    testees = [path.name for path in tmp_path.iterdir()]
    assert testees
    for pid in testees:
        with pytest.raises(ProcessLookupError):
            os.kill(int(pid), 0)


@pytest.mark.parametrize("arguments", [["--only=one-message", "true"], ["--list"]], ids=" ".join)
def test_runner_unread(arguments: list[str]) -> None:
    """When nobody reads the report the runner ends quietly, with SIGPIPE's status."""
    read_end, write_end = os.pipe()
    os.close(read_end)
    try:
        result = subprocess.run(
            [*PYTHON, RUNNER, *arguments],
            stdout=write_end,
            stderr=subprocess.PIPE,
            timeout=15,
            check=False,
        )
    finally:
        os.close(write_end)
    assert (result.returncode, result.stderr) == (141, b"")


def test_runner_separator() -> None:
    """``--`` before the program is taken for the end of the options, and only there."""
    result = conformance("--", *PYTHON, CONFORMANCE / "testee.py", only=("one-message",))
    assert result.returncode == 0, result.stdout
    program = "import sys; sys.exit(sys.argv[1] != '--')"
    assert_passes(*PYTHON, "-c", program, "--", only=("nothing-at-all",))


def test_runner_ignores_stderr() -> None:
    """What a testee says on standard error is no fault."""
    noisy = "import sys, runpy; print('note', file=sys.stderr); del sys.argv[0]; "
    noisy += "runpy.run_path(sys.argv[0], run_name='__main__')"
    assert_passes(*PYTHON, "-c", noisy, CONFORMANCE / "testee.py", only=("one-message",))


def test_runner_byte_order() -> None:
    """For a testee of the other byte order the streams are made in that order."""
    other = "big" if sys.byteorder == "little" else "little"
    testee = (*PYTHON, HERE / "broken_testee.py", "big_endian")
    only = ("--only=one-message", "--only=int-then-message")
    result = conformance(f"--byteorder={other}", *only, *testee)
    assert result.returncode == 0, result.stdout


def test_runner_lists() -> None:
    """``--list`` names every vector, a line each, and runs nothing."""
    result = conformance("--list")
    assert result.returncode == 0
    assert [line.split()[0] for line in result.stdout.splitlines()] == NAMES


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "which program?"),
        (["--"], "which program?"),
        (["--jobs=0", "true"], "--jobs: must be 1 or more, not 0"),
        (["--jobs=-1", "true"], "--jobs: must be 1 or more, not -1"),
        (["--timeout=0", "true"], "--timeout: must be more than 0 seconds, not 0"),
        (["--timeout", "-1", "true"], "--timeout: must be more than 0 seconds, not -1"),
        (["--timeout=nan", "true"], "--timeout: must be more than 0 seconds, not nan"),
        (["--vectors=/dev", "true"], "there are no vectors in /dev"),
        (["--only=nonsense", "true"], "no such vector: nonsense"),
        (["./no-such-program"], "cannot be started"),
    ],
)
def test_runner_usage(arguments: list[str], words: str) -> None:
    """Exit status 2 and a reason when nothing can be run."""
    result = conformance(*arguments)
    assert result.returncode == 2
    assert words in result.stderr


@pytest.mark.parametrize("path", [RUNNER, CONFORMANCE / "testee.py"], ids=lambda path: path.name)
def test_old_python(path: Path) -> None:
    """The runner and its testee are written in the Python of 3.8."""
    ast.parse(path.read_text("utf-8"), feature_version=(3, 8))

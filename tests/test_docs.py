"""What the guides say in tables and in code."""

from __future__ import annotations

import array
import ast
import collections
import dataclasses
import datetime
import decimal
import fractions
import http
import inspect
import ipaddress
import pathlib
import re
import uuid
from pathlib import Path
from typing import Any, NamedTuple

import pytest

import forkwire
from forkwire import errors, sync
from forkwire.rpc import settings
from forkwire.rpc.caller import requests
from forkwire.rpc.exceptions import describing as failures
from forkwire.wire import session

DOCS = Path(__file__).parent.parent / "docs"
CALLS = (DOCS / "calls.md").read_text()
PYTHON = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@dataclasses.dataclass
class Point:
    x: int
    y: int


class Pair(NamedTuple):
    a: int
    b: str


NAMES: dict[str, Any] = {
    "Pair": Pair,
    "Point": Point,
    "array": array,
    "collections": collections,
    "datetime": datetime,
    "decimal": decimal,
    "fractions": fractions,
    "http": http,
    "ipaddress": ipaddress,
    "pathlib": pathlib,
    "uuid": uuid,
}


def table(heading: str) -> list[list[str]]:
    """The cells of the rows of the first table under ``heading``."""
    section = CALLS.partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    rows = [line.split("|")[1:-1] for line in section.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in row] for row in rows[2:]]


def code(cell: str) -> str:
    """What stands in backquotes at the beginning of a cell; "" for none."""
    found = re.match(r"`(.*?)`", cell)
    return found[1] if found else ""


ROWS = [(code(row[0]), code(row[2])) for row in table("Values")]
PLAIN = [row for row in ROWS if all(row)]


def echo(value: Any) -> Any:
    return value


def test_values_arrive_as_the_table_says() -> None:
    """Each value whose result is written as code, sent there and back without an annotation."""
    assert len(PLAIN) > 25
    with sync.open_worker(echo) as worker:
        for value, arrived in PLAIN:
            sent, expected = eval(value, NAMES), eval(arrived, NAMES)
            result = worker.call("echo", sent)
            assert result == expected, value
            assert type(result) is type(expected) or isinstance(result, pathlib.PurePath), value


@pytest.mark.parametrize("value", [row[0] for row in PLAIN])
def test_values_come_back_as_their_annotation_says(value: str) -> None:
    """With the type itself as annotation they are what they were."""
    sent = eval(value, NAMES)
    kind: Any = None if sent is None else type(sent)

    def same(given: Any) -> Any:
        assert type(given) is type(sent)
        return given

    same.__annotations__ = {"given": kind, "return": kind}
    with sync.open_worker(same) as worker:
        result = worker.call(same, sent)
    assert result == sent
    assert type(result) is type(sent)


def test_every_error_of_calls_is_in_the_table() -> None:
    """Each with its code."""
    rows = {code(row[0]): row[1] for row in table("Errors")}
    of_calls = {
        name for name, kind in vars(errors).items()
        if isinstance(kind, type) and issubclass(kind, errors.CallError)
    }  # fmt: skip
    missing = of_calls - set(rows) - {"CallError", "DeadlineExceededError"}
    assert not missing
    by_name = {kind.__name__: number for kind, number in failures.CODE_OF.items()}
    for name, number in rows.items():
        if number and name in by_name:
            assert by_name[name] == int(number), name


def test_limits_are_those_of_the_code() -> None:
    """Where a default is a constant, the table has it."""
    rows = {row[0]: row[1] for row in table("Limits and defaults")}
    assert str(session.DEFAULT_CALLS) in rows["calls in flight"]
    assert str(requests.DEFAULT_WINDOW) in rows["items on their way, of a stream or an argument"]
    assert rows["until its service is loaded"] == f"{settings.START_TIMEOUT:g} s"
    assert rows["grace"] == "2 s"


def test_defaults_of_pools_are_those_of_the_code() -> None:
    """Where the guide of pools writes a default as code, it is what the code has."""
    guide = (DOCS / "pools.md").read_text()
    rows = [code(line[1:].strip()) for line in guide.splitlines() if line.startswith("| `")]
    found = {
        name: value
        for row in rows
        for name, value in re.findall(r"(\w+)=([\d.]+|\"\w+\")", row)
        if "(" not in row or "Health(interval=15" in row
    }
    defaults = {
        **{field.name: field.default for field in dataclasses.fields(forkwire.Restart)},
        **{field.name: field.default for field in dataclasses.fields(forkwire.Health)},
        "idle": inspect.signature(forkwire.open_pool).parameters["idle"].default,
    }
    told = {name: ast.literal_eval(value) for name, value in found.items() if name in defaults}
    assert len(told) == 8
    assert told == {name: defaults[name] for name in told}
    poison = inspect.signature(forkwire.open_pool).parameters["poison"].default
    assert f"`poison={poison}`" in guide


@pytest.mark.parametrize("guide", sorted(DOCS.glob("*.md")), ids=lambda path: path.stem)
def test_every_python_block_is_python(guide: Path) -> None:
    """Each at least compiles, with top-level await allowed."""
    for source in PYTHON.findall(guide.read_text()):
        compile(source, str(guide), "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)


@pytest.mark.parametrize("guide", ["calls", "pools"])
def test_names_in_the_guide_exist(guide: str) -> None:
    """Whatever is written as ``forkwire.name``."""
    text = (DOCS / f"{guide}.md").read_text()
    for name in re.findall(r"forkwire\.(?:sync\.)?(\w+)\b", text):
        assert hasattr(forkwire, name) or hasattr(sync, name), name

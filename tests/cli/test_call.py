"""``forkwire call`` and ``forkwire describe``, run as a person would in a shell."""

from __future__ import annotations

import datetime
import decimal
import json
import os
import subprocess
import time
import uuid
from array import array
from pathlib import Path

import pytest

from forkwire.cli.plain import json_of, split_arguments

from .terminals import FORKWIRE, LIMIT, environment, terminal

SHOP = '''\
"""A shop."""
import asyncio
import logging
import os
import sys
from collections.abc import AsyncIterator, Iterator
from datetime import date


def price(fruit: str, *, count: int = 1) -> float:
    """What it costs.

    And more.
    """
    return {"apple": 0.5}[fruit] * count


def numbers(n: int) -> Iterator[int]:
    yield from range(n)


def half_way() -> Iterator[int]:
    yield 1
    raise ValueError("no more")


async def later(text: str) -> str:
    return text


def opened() -> date:
    return date(2024, 2, 29)


def talk() -> int:
    print("a word")
    logging.getLogger("shop").warning("a warning")
    return 1


def spin() -> None:
    print("spinning")
    while True:
        pass


def die() -> None:
    os._exit(7)


class Till:
    def take(self, amount: int) -> int:
        return amount
'''


@pytest.fixture
def shop(tmp_path: Path) -> Path:
    """A folder with the module in it."""
    (tmp_path / "shop.py").write_text(SHOP)
    return tmp_path


def run(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*FORKWIRE, *arguments],
        capture_output=True,
        text=True,
        cwd=folder,
        env=environment(),
        timeout=LIMIT,
    )


@pytest.mark.parametrize(
    ("arguments", "output"),
    [
        (["statistics", "mean", "[1, 2, 4]"], "2.3333333333333335\n"),
        (["statistics", "quantiles", "[1, 2, 4]", "n=2"], "[2.0]\n"),
        (["shop", "price", '"apple"', "count=4"], "2.0\n"),
        (["shop", "later", '"grüße"'], '"grüße"\n'),
        (["shop", "numbers", "3"], "0\n1\n2\n"),
        (["shop", "opened"], '"2024-02-29"\n'),
        (["shop:Till", "take", "-5"], "-5\n"),
        (["math", "sqrt", "2"], "1.4142135623730951\n"),
        (["--backend", "trio", "shop", "later", '"x"'], '"x"\n'),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_the_answer_is_json(shop: Path, arguments: list[str], output: str) -> None:
    """Each argument is one JSON value, so is the answer, and each item of a stream."""
    result = run(shop, "call", *arguments)
    assert (result.returncode, result.stderr, result.stdout) == (0, "", output)


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        (["nowhere", "f"], 2, "nowhere cannot be loaded: ModuleNotFoundError: No module named"),
        (["shop", "prise"], 2, "did you mean 'price'?"),
        (["shop", "price"], 2, "missing argument 'fruit'"),
        (["shop", "price", "1"], 2, "fruit: expected str, got int"),
        (["shop", "price", "apple"], 2, """apple is not JSON; a text is written '"apple"'"""),
        (["shop", "price", "count=2", '"apple"'], 2, "names come last"),
        (["shop", "price", '"stone"'], 1, "KeyError: 'stone'"),
        (["--timeout", "0.2", "shop", "spin"], 1, "spin took longer than 0.2 seconds"),
        (["shop", "die"], 1, "ended with exit status 7, with die (call 1) in flight"),
        (["--timeout", "0", "shop", "spin"], 2, "--timeout"),
        (["shop"], 2, "METHOD"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_fault_is_one_line(shop: Path, arguments: list[str], status: int, words: str) -> None:
    """Status 2 where nothing was run, 1 where something was; nothing on standard output."""
    result = run(shop, "call", *arguments)
    ours = [line for line in result.stderr.splitlines() if line.startswith("forkwire: ")]
    assert (result.returncode, result.stdout, len(ours)) == (status, "", 1)
    assert words in ours[0]
    assert "Traceback" not in result.stderr


def test_the_remote_traceback_is_shown_when_asked_for(shop: Path) -> None:
    """``--traceback`` shows the frames in the worker, then the one line."""
    result = run(shop, "call", "--traceback", "shop", "price", '"stone"')
    assert result.returncode == 1
    assert 'return {"apple": 0.5}[fruit] * count' in result.stderr
    assert result.stderr.endswith("forkwire: KeyError: 'stone'\n")


def test_a_stream_that_fails_half_way_has_printed_what_came(shop: Path) -> None:
    """Items are printed as they come; the status says that it did not end well."""
    result = run(shop, "call", "shop", "half_way")
    assert (result.returncode, result.stdout) == (1, "1\n")
    assert result.stderr == "forkwire: ValueError: no more\n"


def test_prints_and_logs_do_not_mix_with_the_answer(shop: Path) -> None:
    """Standard output is JSON alone."""
    result = run(shop, "call", "shop", "talk")
    assert (result.returncode, result.stdout) == (0, "1\n")
    assert "a word" in result.stderr
    assert "a warning" in result.stderr


def test_ctrl_c_stops_the_function(shop: Path) -> None:
    """Status 130, at once, and no traceback."""
    program = ["sh", "-c", f'cd "{shop}" && exec {" ".join(FORKWIRE)} call shop spin']
    with terminal(program) as shell:
        shell.read_until(rb"spinning")
        before = time.monotonic()
        shell.press(b"\x03")
        assert shell.finish() == 130
    assert time.monotonic() - before < 5
    assert b"Traceback" not in shell.output


def test_an_endless_stream_into_head_ends(shop: Path) -> None:
    """A reader that goes away ends the stream, quietly, with SIGPIPE's status."""
    read_end, write_end = os.pipe()
    with subprocess.Popen(
        [*FORKWIRE, "call", "shop", "numbers", "1000000000"],
        stdout=write_end,
        stderr=subprocess.PIPE,
        cwd=shop,
        env=environment(),
    ) as process:
        os.close(write_end)
        assert os.read(read_end, 2) == b"0\n"
        os.close(read_end)
        assert process.stderr is not None
        assert process.stderr.read() == b""
        assert process.wait(LIMIT) == 141


def test_describe(shop: Path) -> None:
    """Every function with its kind, its signature and the first line of its doc."""
    result = run(shop, "describe", "shop")
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.startswith(
        "shop - A shop.\n\nprice(fruit: str, *, count: int = 1) -> float\n    What it costs.\n\n"
    )
    assert "\nstream numbers(n: int) ->" in result.stdout
    assert "\nasync later(text: str) -> str\n" in result.stdout
    assert "And more" not in result.stdout


def test_describe_statistics() -> None:
    """A module of the standard library is a service as it is."""
    result = run(Path.cwd(), "describe", "statistics")
    assert result.returncode == 0
    assert "\nmean(data)\n    Return the sample arithmetic mean of data.\n" in result.stdout


@pytest.mark.parametrize("name", ["nowhere", "shop:nothing", "shop:SHOP", ""])
def test_what_cannot_be_described_is_one_line(shop: Path, name: str) -> None:
    """Status 2, and what is wrong."""
    result = run(shop, "describe", name)
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr.startswith("forkwire: ")
    assert result.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (b"\x00\xff", '"AP8="'),
        (datetime.datetime(2024, 2, 29, 12, tzinfo=datetime.UTC), '"2024-02-29T12:00:00+00:00"'),
        ({3, 1, 2}, "[1, 2, 3]"),
        (frozenset({"b", "a"}), '["a", "b"]'),
        (decimal.Decimal("1.10"), '"1.10"'),
        (uuid.UUID(int=1), '"00000000-0000-0000-0000-000000000001"'),
        ({1: "a", (2, 3): None}, '{"1": "a", "[2, 3]": null}'),
        (array("d", [0.5, 1]), "[0.5, 1.0]"),
        (memoryview(array("i", [1, 2])), "[1, 2]"),
        ("ä\n", '"ä\\n"'),
        (1 + 2j, '"(1+2j)"'),
        ([{"a": [b"a"]}], '[{"a": ["YQ=="]}]'),
    ],
    ids=lambda value: "" if isinstance(value, str) else type(value).__name__,
)
def test_what_json_does_not_have(value: object, text: str) -> None:
    """It becomes what a person would write, and is valid JSON."""
    assert json_of(value) == text
    json.loads(text)


def test_numpy_is_printed_as_nested_arrays() -> None:
    """An array, whatever its shape, and a scalar."""
    numpy = pytest.importorskip("numpy")
    assert json_of(numpy.array([[1, 2], [3, 4]])) == "[[1, 2], [3, 4]]"
    assert json_of({"x": numpy.float64(0.5)}) == '{"x": 0.5}'


def test_arguments() -> None:
    """JSON that holds an equals sign is no keyword argument."""
    assert split_arguments(['"a=b"', '{"a=": 1}', "null", "x=1", 'y="z=1"']) == (
        ["a=b", {"a=": 1}, None],
        {"x": 1, "y": "z=1"},
    )

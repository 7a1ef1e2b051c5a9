"""The README's examples, run as they stand there, on every backend."""

from __future__ import annotations

import ast
import inspect
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import forkwire
from forkwire import open_pool, open_worker, run

README = Path(__file__).parent.parent / "README.md"
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
CALL = "anyio.run(main)"
BACKENDS = {
    "asyncio": CALL,
    "uvloop": "anyio.run(main, backend_options={'use_uvloop': True})",
    "trio": 'anyio.run(main, backend="trio")',
}
EXAMPLES = ["calls", "pools", "messages"]


def example(name: str) -> tuple[str, str]:
    """One of the first blocks of Python, and the block of output right after it."""
    begin = 2 * EXAMPLES.index(name)
    (first, program), (second, output) = BLOCK.findall(README.read_text())[begin : begin + 2]
    assert first == "python"
    assert second in ("", "text", "console")
    return program, output


def python(*arguments: str, typed: str | None = None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-W", "error", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=40, input=typed)


@pytest.mark.parametrize("name", EXAMPLES)
@pytest.mark.parametrize("call", BACKENDS.values(), ids=BACKENDS)
def test_an_example_prints_what_it_says(name: str, call: str, tmp_path: Path) -> None:
    """As a file of its own; only the last line differs from one backend to the next."""
    program, output = example(name)
    assert program.count(CALL) == 1
    script = tmp_path / "example.py"
    script.write_text(program.replace(CALL, call))
    done = python(str(script))
    assert (done.stdout, done.stderr, done.returncode) == (output, "", 0)


@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_names_the_other_backend(name: str) -> None:
    """The line that the test for trio uses is the one that a reader is shown."""
    assert BACKENDS["trio"] in example(name)[0]


@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_may_be_pasted_at_the_prompt(name: str) -> None:
    """Into ``python -i``, where there is no file."""
    program, output = example(name)
    done = python("-i", "-q", "-c", "import sys; sys.ps1 = sys.ps2 = ''", typed=program)
    assert (done.stdout, done.returncode) == (output, 0)


def test_every_python_block_is_python() -> None:
    """Each at least compiles, with top-level await allowed."""
    for language, source in BLOCK.findall(README.read_text()):
        if language == "python":
            compile(source, str(README), "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)


@pytest.mark.parametrize(
    ("function", "begin", "first"),
    [
        (run, r"await run\(f, arg, ", 2),
        (open_worker, r"async with open_worker\(\n", 1),
        (open_pool, r"async with forkwire.open_pool\( .*?\n", 1),
    ],
    ids=["run", "open_worker", "open_pool"],
)
def test_every_option_is_shown(function: Callable[..., Any], begin: str, first: int) -> None:
    """Where the README lists the interface, with its default."""
    public = {name: getattr(forkwire, name) for name in forkwire.__all__}
    (call,) = re.findall(rf"{begin}(.*?)\n?\)(?: as|\n)", README.read_text(), re.DOTALL)
    for option in list(inspect.signature(function).parameters.values())[first:]:
        if option.kind is option.VAR_KEYWORD:
            continue
        shown = re.search(rf"\b{option.name}=((?:\w*\(\)|[^,)\n])+)", call)
        assert shown, option.name
        assert eval(shown[1], public) == option.default  # a literal of our own


def test_links_lead_somewhere() -> None:
    """Every file that it links to is there."""
    for target in re.findall(r"\]\(([^)#:]+)\)", README.read_text()):
        assert (README.parent / target).exists(), target

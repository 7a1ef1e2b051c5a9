"""The README's first example, run as it stands there, on every backend."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

README = Path(__file__).parent.parent / "README.md"
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
CALL = "anyio.run(main)"
CALLS = {
    "asyncio": CALL,
    "uvloop": "anyio.run(main, backend_options={'use_uvloop': True})",
    "trio": 'anyio.run(main, backend="trio")',
}


def example() -> tuple[str, str]:
    """The first block of Python, and the block of output right after it."""
    (first, program), (second, output) = BLOCK.findall(README.read_text())[:2]
    assert first == "python"
    assert second in ("", "text", "console")
    return program, output


def python(*arguments: str, typed: str | None = None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-W", "error", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=40, input=typed)


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_the_first_example_prints_what_it_says(call: str, tmp_path: Path) -> None:
    """As a file of its own; only the last line differs from one backend to the next."""
    program, output = example()
    assert program.count(CALL) == 1
    script = tmp_path / "example.py"
    script.write_text(program.replace(CALL, call))
    done = python(str(script))
    assert (done.stdout, done.stderr, done.returncode) == (output, "", 0)


def test_the_first_example_names_the_other_backend() -> None:
    """The line that the test for trio uses is the one that a reader is shown."""
    assert CALLS["trio"] in example()[0]


def test_the_first_example_may_be_pasted_at_the_prompt() -> None:
    """Into ``python -i``, where there is no file."""
    program, output = example()
    done = python("-i", "-q", "-c", "import sys; sys.ps1 = sys.ps2 = ''", typed=program)
    assert (done.stdout, done.returncode) == (output, 0)


def test_every_python_block_is_python() -> None:
    """Each at least compiles, with top-level await allowed."""
    import ast

    for language, source in BLOCK.findall(README.read_text()):
        if language == "python":
            compile(source, str(README), "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)


def test_every_option_of_run_is_shown() -> None:
    """Where the README lists the interface, with its default."""
    import inspect

    from forkwire import run

    (call,) = re.findall(r"await run\(f, arg, .*?\)", README.read_text(), re.DOTALL)
    for option in list(inspect.signature(run).parameters.values())[2:]:
        shown = re.search(rf"\b{option.name}=([^,)]+)", call)
        assert shown, option.name
        assert eval(shown[1]) == option.default  # a literal of our own

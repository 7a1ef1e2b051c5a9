"""The ``forkwire`` command itself: help, version, wrong use, and what it needs."""

from __future__ import annotations

import importlib.metadata
import signal
import subprocess
import sys

import pytest

from .terminals import FORKWIRE, LIMIT, environment

# What the installed script does.
LOAD = (
    "from importlib.metadata import entry_points as e; (main,) = e(name='forkwire'); main.load()()"
)
SCRIPT = [sys.executable, "-c", LOAD]


def run(command: list[str], *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*command, *arguments], capture_output=True, text=True, env=environment(), timeout=LIMIT
    )


def without(*modules: str) -> list[str]:
    """The command where ``modules`` are not installed."""
    program = (
        f"import sys; sys.modules.update(dict.fromkeys({modules!r}))\n"
        "from forkwire.__main__ import main; sys.exit(main())"
    )
    return [sys.executable, "-c", program]


@pytest.mark.parametrize("command", [FORKWIRE, SCRIPT], ids=["-m", "script"])
def test_version(command: list[str]) -> None:
    """``--version`` prints the installed version and nothing else."""
    result = run(command, "--version")
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout == importlib.metadata.version("forkwire") + "\n"


@pytest.mark.parametrize("arguments", [[], ["--help"], ["-h"]], ids=str)
def test_help_names_the_commands(arguments: list[str]) -> None:
    """Without arguments, or when asked, the commands are listed."""
    result = run(FORKWIRE, *arguments)
    assert (result.returncode, result.stderr) == (0, "")
    for name in ("demo", "describe", "call", "serve"):
        assert f"│ {name} " in result.stdout
    assert "\x1b" not in result.stdout


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("demo", ["--workers", "--backend", "asyncio", "uvloop", "trio", "--folder"]),
        ("describe", ["SERVICE", "module:name"]),
        ("call", ["SERVICE", "METHOD", "JSON", "--timeout", "--traceback", "--backend"]),
        ("serve", ["SERVICE", "--threads", "--backend", "FORKWIRE_FDS"]),
    ],
)
def test_help_of_a_command_names_its_options(command: str, words: list[str]) -> None:
    """Each argument and option is described, with its choices."""
    result = run(FORKWIRE, command, "--help")
    assert (result.returncode, result.stderr) == (0, "")
    for word in words:
        assert word in result.stdout


def test_serve_has_no_host_in_a_shell() -> None:
    """``forkwire serve`` is for hosts: run by hand it says so, status 2."""
    result = run(FORKWIRE, "serve", "statistics")
    assert (result.returncode, result.stdout) == (2, "")
    assert "no host has started this" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["frob"], "frob"),
        (["demo", "--workers", "1"], "--workers"),
        (["demo", "--workers", "many"], "--workers"),
        (["demo", "--workers", "2.5"], "--workers"),
        (["demo", "--backend", "curio"], "--backend"),
        (["demo", "--folder", "/nowhere"], "/nowhere"),
        (["demo", "extra"], "extra"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_wrong_use_is_one_line(arguments: list[str], words: str) -> None:
    """What is wrong is said in one line on stderr that names it; status 2."""
    result = run(FORKWIRE, *arguments)
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr.startswith("forkwire: ")
    assert result.stderr.count("\n") == 1
    assert words in result.stderr


@pytest.mark.parametrize("module", ["rich", "cyclopts"])
def test_without_the_extra_it_says_what_to_install(module: str) -> None:
    """A missing terminal library is one line with the command that brings it; status 2."""
    result = run(without(module), "demo")
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr == f'forkwire: {module} is missing: pip install "forkwire[cli]"\n'


@pytest.mark.parametrize("backend", ["uvloop", "trio"])
def test_without_a_backend_it_says_what_to_install(backend: str) -> None:
    """The same for an event loop that is not installed."""
    result = run(without(backend), "demo", "--backend", backend)
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr == f'forkwire: {backend} is missing: pip install "forkwire[{backend}]"\n'


def test_a_fault_within_the_command_is_not_taken_for_a_missing_extra() -> None:
    """Another module that cannot be found is shown as what it is."""
    result = run(without("forkwire.cli.running"))
    assert result.returncode == 1
    assert "ModuleNotFoundError" in result.stderr


def test_ctrl_c_before_a_command_listens_ends_it_silently() -> None:
    """While the terminal libraries are loaded SIGINT just ends the process."""
    program = (
        "import os, signal, sys; from forkwire.__main__ import main; from forkwire.cli import app\n"
        "app.run = lambda: os.kill(os.getpid(), signal.SIGINT); sys.exit(main())"
    )
    result = run([sys.executable, "-c", program])
    assert (result.returncode, result.stdout, result.stderr) == (-signal.SIGINT, "", "")


def test_importing_the_entry_point_loads_no_terminal() -> None:
    """``forkwire.__main__`` alone loads neither rich nor cyclopts."""
    script = "import sys, forkwire.__main__; print({'rich', 'cyclopts'} & set(sys.modules))"
    assert run([sys.executable, "-c", script]).stdout == "set()\n"

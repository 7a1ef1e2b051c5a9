"""``forkwire map``, run as a person would in a shell."""

from __future__ import annotations

import json
import subprocess
import zlib
from collections.abc import Sequence
from pathlib import Path

import pytest

from .terminals import FORKWIRE, LIMIT, environment, terminal

COUNTING = """\
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path


def words(path: Path) -> int:
    return len(path.read_text().split())


async def later(path: str) -> str:
    return os.path.basename(path)


def odd(path: Path) -> str:
    if path.name == "bad":
        raise ValueError("a bad\\nfile")
    if path.name == "deadly":
        os.kill(os.getpid(), signal.SIGKILL)
    if path.name == "endless":
        while True:
            pass
    return path.name


def first_after_last(path: Path) -> str:
    if path.name == "0":
        while not path.with_name("last-is-done").exists():
            time.sleep(0.01)
    if path.name == "9":
        path.with_name("last-is-done").touch()
    return path.name


def lines(path: Path) -> Iterator[str]:
    yield from path.open()


def shape(path: Path) -> set[tuple[int, bytes]]:
    return {(1, b"x")}


def two(path: Path, other: Path) -> None:
    pass


class Counter:
    def words(self, path: Path) -> int:
        return 1

    def lines(self, path: Path) -> int:
        return 1
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with the module, and files of 0 to 9 words, in it."""
    (tmp_path / "counting.py").write_text(COUNTING)
    for number in range(10):
        (tmp_path / str(number)).write_text("word " * number)
    return tmp_path


def run(
    folder: Path, *arguments: str, names: str | None = None
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*FORKWIRE, "map", *arguments],
        capture_output=True,
        text=True,
        cwd=folder,
        env=environment(),
        timeout=LIMIT,
        input=names,
    )


def answers(output: str) -> list[object]:
    return [json.loads(line)["result"] for line in output.splitlines()]


NAMES = [str(number) for number in range(10)]


def complaints(result: subprocess.CompletedProcess[str]) -> list[str]:
    return [line for line in result.stderr.splitlines() if line.startswith("forkwire: ")]


@pytest.mark.parametrize("options", [[], ["--workers", "1"], ["--backend", "trio"]])
def test_one_call_a_file_in_order(folder: Path, options: Sequence[str]) -> None:
    """Each line of output is one file with its answer, in the order in which they were named."""
    result = run(folder, *options, "counting:words", *NAMES)
    lines = [json.loads(line) for line in result.stdout.splitlines()]
    assert lines == [{"file": name, "result": int(name)} for name in NAMES]
    assert result.returncode == 0
    assert "10 of 10 files done in" in result.stderr


def test_an_async_function(folder: Path) -> None:
    """It is one like any other."""
    assert answers(run(folder, "counting:later", *NAMES).stdout) == NAMES


def test_a_function_of_the_standard_library(folder: Path) -> None:
    """With ``--content`` it gets the bytes in the file."""
    result = run(folder, "--content", "zlib:crc32", *NAMES)
    assert answers(result.stdout) == [zlib.crc32(b"word " * number) for number in range(10)]


def test_names_on_standard_input(folder: Path) -> None:
    """One a line, after those on the command line."""
    result = run(folder, "--stdin", "counting:words", "9", "1", names="2\n3\n\n4")
    assert answers(result.stdout) == [9, 1, 2, 3, 4]


def test_unordered_prints_what_is_there(folder: Path) -> None:
    """The first file waits for the last, whose answer is printed before it; in order after it."""
    result = run(folder, "--workers", "2", "--unordered", "counting:first_after_last", *NAMES)
    assert sorted(answers(result.stdout), key=str) == NAMES
    assert answers(result.stdout)[-1] == "0"
    (folder / "last-is-done").unlink()
    ordered = run(folder, "--workers", "2", "counting:first_after_last", *NAMES)
    assert answers(ordered.stdout) == NAMES


def test_a_file_that_fails_costs_no_other(folder: Path) -> None:
    """What raises, kills its worker or takes too long is told on one line each; status 1."""
    names = ["a", "bad", "b", "deadly", "c", "endless", "d", "no such"]
    result = run(folder, "--workers", "2", "--timeout", "2", "counting:odd", *names)
    assert result.returncode == 1
    assert answers(result.stdout) == ["a", "b", "c", "d", "no such"]
    told = sorted(complaints(result))
    assert told[0].startswith("forkwire: 5 of 8 files done in")
    assert told[0].endswith("; 1 worker died")
    assert told[1] == "forkwire: bad: ValueError: a bad file"
    assert told[2].startswith("forkwire: deadly: WorkerDied: worker")
    assert "SIGKILL" in told[2]
    assert told[3] == "forkwire: endless: took longer than 2 seconds, and was stopped"
    assert len(told) == 4


def test_a_file_that_cannot_be_read(folder: Path) -> None:
    """With ``--content`` it is this side that reads."""
    result = run(folder, "--content", "zlib:crc32", "1", "nowhere")
    assert result.returncode == 1
    assert len(answers(result.stdout)) == 1
    assert any("nowhere: FileNotFoundError" in line for line in complaints(result))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["counting", "1"], "name a function in a module, as in zlib:crc32, not counting"),
        (["nowhere:f", "1"], "nowhere:f cannot be loaded: ModuleNotFoundError"),
        (["counting:word", "1"], "there is no 'word'; did you mean 'words'?"),
        (["counting:Counter", "1"], "name a function, not a class"),
        (["counting:lines", "1"], "lines yields"),
        (["counting:two", "1"], "missing argument 'other'"),
        (["counting:words"], "name files"),
        (["--workers", "0", "counting:words", "1"], "--workers"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_wrong_use_is_one_line(folder: Path, arguments: list[str], words: str) -> None:
    """Status 2, and nothing on standard output."""
    result = run(folder, *arguments)
    assert (result.returncode, result.stdout) == (2, "")
    assert len(complaints(result)) == 1
    assert words in complaints(result)[0]
    assert "Traceback" not in result.stderr


def test_an_answer_that_is_no_json(folder: Path) -> None:
    """It is written as ``forkwire call`` does."""
    result = run(folder, "counting:shape", "1")
    assert result.returncode == 0
    assert len(result.stdout.splitlines()) == 1


def test_ctrl_c_ends_it(folder: Path) -> None:
    """With its status, no traceback, and no worker left."""
    with terminal([*FORKWIRE, "map", "counting:odd", "endless"], cwd=str(folder)) as shown:
        shown.read_until(rb"0/1")
        shown.press(b"\x03")
        assert shown.finish() == 130
    assert b"Traceback" not in shown.output


def test_a_bar_on_a_terminal(folder: Path) -> None:
    """How many of how many are done."""
    with terminal([*FORKWIRE, "map", "counting:words", *NAMES], cwd=str(folder)) as shown:
        assert shown.finish() == 0
    assert b"10/10" in shown.output

"""``forkwire demo``, run whole: what it prints, where, and how it ends."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from .terminals import FORKWIRE, LIMIT, environment, terminal

DEMO = [*FORKWIRE, "demo"]
BACKENDS = ["asyncio", "uvloop", "trio"]
CONTROL = re.compile(rb"\x1b\[[0-9;?]*[A-Za-z]")
COLOUR = re.compile(rb"\x1b\[[0-9;]*[34][0-9]")


def run_demo(
    *arguments: str, program: list[str] | None = None, **variables: str
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*(program or DEMO), *arguments],
        capture_output=True,
        text=True,
        env=environment(**variables),
        timeout=LIMIT,
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A few small files, an empty one, and one of many messages."""
    for number in range(20):
        (tmp_path / f"small-{number}").write_bytes(b"%d" % number * 1000)
    (tmp_path / "empty").touch()
    (tmp_path / "large").write_bytes(os.urandom(1000) * 5000)
    (tmp_path / "link").symlink_to("large")
    os.mkfifo(tmp_path / "fifo")
    for skipped in ("__pycache__", "site-packages"):
        (tmp_path / skipped).mkdir()
        (tmp_path / skipped / "file").write_bytes(b"not to be read")
    return tmp_path


@pytest.fixture
def endless(tmp_path: Path) -> Iterator[Path]:
    """A folder that nobody digests within a test: its one file has no blocks, and no end."""
    with (tmp_path / "endless").open("wb") as file:
        file.truncate(2**40)
    yield tmp_path
    (tmp_path / "endless").unlink()


@pytest.mark.slow
def test_the_standard_library_is_digested_and_a_worker_killed() -> None:
    """With no option, no terminal and no home: all digests equal, twice, and a death explained."""
    result = run_demo()
    assert (result.returncode, result.stderr) == (0, "")
    equal = re.findall(
        r"^([\d,]+) files, ([\d,]+) bytes.*all digests\s+equal", result.stdout, re.MULTILINE
    )
    files, size = (int(text.replace(",", "")) for text in equal[0])
    assert files > 500
    assert size > 10_000_000
    assert len(equal) == 2


@pytest.mark.parametrize("backend", BACKENDS)
def test_what_is_shown(folder: Path, backend: str) -> None:
    """On each backend: every real file once, and what the host knows of the killed worker."""
    result = run_demo("--folder", str(folder), "--backend", backend, "--workers", "3")
    assert (result.returncode, result.stderr) == (0, "")
    assert f"on {backend}" in result.stdout
    assert re.search(r"22 files, 5,030,000 bytes, [\d.]+ seconds: all digests equal", result.stdout)
    assert re.search(r"returncode +-9\b", result.stdout)
    assert re.search(r"died +worker \d+ was ended by SIGKILL", result.stdout)
    assert re.search(r"signal_name +SIGKILL", result.stdout)
    assert re.search(r"inside_message +(False|None)", result.stdout)
    assert re.search(r"rusage .* s user, .* s system, .* MB at most", result.stdout)
    assert re.search(r"by the 2 of 3 workers that are left: all digests\s+equal", result.stdout)
    assert re.search(
        r"unfinished +[1-9]\d* of its files, which the others take over", result.stdout
    )
    (line,) = re.findall(r"Return codes: (.*)", result.stdout)
    assert sorted(re.findall(r"\d+ (-?\d+)\b", line)) == ["-9", "0", "0"]


@pytest.mark.parametrize("backend", BACKENDS)
def test_what_is_shown_of_calls(tmp_path: Path, backend: str) -> None:
    """Streams both ways, a call back, an exception, a deadline, a death: each is checked."""
    (tmp_path / "first").write_text("to be or not to be\nthat is the question\n")
    (tmp_path / "second").write_text("to be or to do, to be or to see\n")
    result = run_demo("--folder", str(tmp_path), "--backend", backend)
    assert (result.returncode, result.stderr) == (0, "")
    calls = " ".join(result.stdout.partition("\nCalls\n")[2].split())
    assert "offers count_file (plain), count_or_crash (plain), count_words (plain)," in calls
    assert 'second 10 words "to be or" 2 times' in calls
    assert "20 words in 2 texts" in calls
    assert "10 different words in 3 lines" in calls
    assert "except FileNotFoundError: [Errno 2] No such file or directory" in calls
    assert 'with open(path, "rb") as file:' in calls
    late = re.search(r"Stopped (\d+) ms after its deadline; worker (\d+) answers", calls)
    assert late
    assert int(late[1]) < 1500
    assert f"worker {late[2]} was ended by SIGKILL, with ponder" in calls
    assert "It is reaped, and nobody is left" in calls
    assert not Path("/proc", late[2]).exists()


@pytest.mark.parametrize("backend", BACKENDS)
def test_what_is_shown_of_pools(tmp_path: Path, backend: str) -> None:
    """A map, a crash that costs nobody else anything, an executor: each is checked."""
    for number in range(5):
        (tmp_path / str(number)).write_text("to be or not to be " * (number + 1))
    result = run_demo("--folder", str(tmp_path), "--backend", backend, "--workers", "2")
    assert (result.returncode, result.stderr) == (0, "")
    pools = " ".join(result.stdout.partition("\nA pool\n")[2].split())
    assert "90 words in 5 texts, counted by" in pools
    assert re.search(r"count_or_crash .* again \(retry 1 of 1\): .*was ended by SIGKILL", pools)
    assert "All texts are counted, and 2 workers are there" in pools
    assert re.search(r"ExecutorWorkerDied: worker \d+ ended with exit status 7", pools)
    assert "90 words once more" in pools


def test_texts_are_licences_or_the_standard_library(monkeypatch: pytest.MonkeyPatch) -> None:
    """Real texts in either case."""
    from forkwire.cli import demo_calls

    for there in (demo_calls.LICENCES, Path("/nowhere")):
        monkeypatch.setattr(demo_calls, "LICENCES", there)
        folder, texts = demo_calls.find_texts(None)
        assert len(texts) > 5
        assert all(text.is_relative_to(folder) for text in texts)


def test_a_wrong_answer_of_a_call_is_a_failure(tmp_path: Path) -> None:
    """What the worker counts is counted here too: where they differ the status is 1."""
    (tmp_path / "text").write_text("some words")
    program = (
        "import sys\nfrom forkwire.cli import demo_service\nfrom forkwire.__main__ import main\n"
        "demo_service.words_of = lambda text: ['no']\n"  # which no template inherits
        "sys.exit(main())"
    )
    result = run_demo("--folder", str(tmp_path), program=[sys.executable, "-c", program, "demo"])
    assert result.returncode == 1
    assert "forkwire: not as it should be: " in result.stderr


def test_without_a_terminal_there_are_plain_lines(folder: Path) -> None:
    """No control code, whatever the environment wishes, and one line for each quarter at most."""
    result = run_demo("--folder", str(folder), FORCE_COLOR="1", TERM="xterm", TTY_COMPATIBLE="1")
    assert result.returncode == 0
    assert not re.search(r"[\x00-\x09\x0b-\x1f]", result.stdout)
    messages = result.stdout.partition("\nCalls\n")[0]
    assert 1 <= len(re.findall(r"^ *\d+ % of 5.0 MB$", messages, re.MULTILINE)) <= 4


@pytest.mark.parametrize("columns", [40, 80])
def test_in_a_terminal_there_is_a_bar_that_fits(folder: Path, columns: int) -> None:
    """A bar is drawn, in colour, and no line is wider than the terminal."""
    with terminal([*DEMO, "--folder", str(folder)], columns) as demo:
        assert demo.finish() == 0
    assert COLOUR.search(demo.output)
    text = CONTROL.sub(b"", demo.output).decode()
    assert "100%" in text
    assert max(len(line) for line in re.split(r"[\r\n]+", text)) <= columns


def test_no_color_is_honoured(folder: Path) -> None:
    """With NO_COLOR a terminal gets the bar, and no colour."""
    with terminal([*DEMO, "--folder", str(folder)], NO_COLOR="1") as demo:
        assert demo.finish() == 0
    assert b"100%" in demo.output
    assert not COLOUR.search(demo.output)


def test_a_dumb_terminal_gets_plain_lines(folder: Path) -> None:
    """TERM=dumb means no bar and no control code."""
    with terminal([*DEMO, "--folder", str(folder)], TERM="dumb") as demo:
        assert demo.finish() == 0
    assert b"100 % of" in demo.output
    assert b"\x1b" not in demo.output


def test_an_output_nobody_reads_ends_it_quietly(folder: Path) -> None:
    """``forkwire demo | head -1`` prints one line and no complaint, and says SIGPIPE's status."""
    read_end, write_end = os.pipe()
    with subprocess.Popen(
        [*DEMO, "--folder", str(folder)],
        stdout=write_end,
        stderr=subprocess.PIPE,
        env=environment(),
    ) as demo:
        os.close(write_end)
        assert os.read(read_end, 100).startswith(b"Forkwire demo")
        os.close(read_end)
        assert demo.stderr is not None
        assert demo.stderr.read() == b""
        assert demo.wait(LIMIT) == 141


@pytest.mark.parametrize("backend", BACKENDS)
def test_ctrl_c_ends_it_at_once(endless: Path, backend: str) -> None:
    """Status 130, no traceback, the cursor shown again, and no worker left."""
    with terminal([*DEMO, "--folder", str(endless), "--backend", backend]) as demo:
        pids = demo.read_until(rb"Forked in \d+ ms: ([\d, ]+)\r\n")[1]
        demo.read_until(b"0%")
        demo.press(b"\x03")
        assert demo.finish() == 130
    assert b"Traceback" not in demo.output
    assert b"Error" not in demo.output
    assert demo.output.rfind(b"\x1b[?25h") > demo.output.rfind(b"\x1b[?25l")
    assert [pid for pid in pids.split(b", ") if Path("/proc", pid.decode()).exists()] == []


@pytest.mark.parametrize("backend", BACKENDS)
def test_ctrl_c_ends_a_call_at_once(tmp_path: Path, backend: str) -> None:
    """In the second part too: status 130, no traceback, and no worker left."""
    (tmp_path / "long").write_text("a\n" * 100_000)
    with terminal([*DEMO, "--folder", str(tmp_path), "--backend", backend]) as demo:
        pid = demo.read_until(rb"Started in \d+ ms: worker (\d+)")[1]
        demo.read_until(rb"An argument that is a stream")
        demo.press(b"\x03")
        assert demo.finish() == 130
    assert b"Traceback" not in demo.output
    assert b"Error" not in demo.output
    assert b"different words" not in demo.output
    assert not Path("/proc", pid.decode()).exists()


def test_sigterm_ends_it_in_order(endless: Path) -> None:
    """Status 143, and nothing on stderr."""
    with subprocess.Popen(
        [*DEMO, "--folder", str(endless)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment(),
    ) as demo:
        assert demo.stdout is not None
        assert any(line.startswith(b"Forked") for line in demo.stdout)
        demo.terminate()
        _, errors = demo.communicate(timeout=LIMIT)
    assert (demo.returncode, errors) == (143, b"")


def with_worker(source: str) -> list[str]:
    """The demo with another function in its workers, which may refer to the true one."""
    program = (
        "import os, sys\nfrom forkwire.cli import demo\nfrom forkwire.__main__ import main\n"
        f"true = demo.digest_files\n{source}\nsys.exit(main())"
    )
    return [sys.executable, "-c", program, "demo"]


@pytest.mark.parametrize("size", [0, 10])
def test_the_killed_worker_has_a_file_in_hand(tmp_path: Path, size: int) -> None:
    """However small the file is, it goes to another worker."""
    (tmp_path / "only").write_bytes(bytes(size))
    result = run_demo("--folder", str(tmp_path))
    assert (result.returncode, result.stderr) == (0, "")
    assert re.search(r"unfinished +1 of its files, which the others take over", result.stdout)


UNREADABLE = """
from pathlib import Path
from io import BytesIO
true_open = Path.open
class Half(BytesIO):
    def read(self, size):
        if self.tell():
            raise OSError(5, "Input/output error")
        return super().read(10)
def partly(path, *arguments):
    if path.name in NAMES:
        raise PermissionError(13, "Permission denied")
    return Half(bytes(100)) if path.name == "large" else true_open(path, *arguments)
Path.open = partly
"""


def test_what_cannot_be_read_is_skipped(folder: Path) -> None:
    """Files that cannot be opened, or not to their end, are counted, named and left out."""
    source = f"NAMES = 'small-7', 'empty'\n{UNREADABLE}"
    result = run_demo("--folder", str(folder), program=with_worker(source))
    assert (result.returncode, result.stderr) == (0, "")
    assert "Skipped 3 that cannot be read: empty, large, small-7\n" in result.stdout
    assert re.search(r"19 files, 29,000 bytes, [\d.]+ seconds: all digests equal", result.stdout)
    assert result.stdout.count("Skipped") == 1
    assert result.stdout.count("all digests equal") == 2


def test_a_folder_where_nothing_can_be_read_is_a_failure(tmp_path: Path) -> None:
    """Nothing was digested: one line says so, status 1."""
    (tmp_path / "secret").touch()
    source = f"NAMES = 'secret',\n{UNREADABLE}"
    result = run_demo("--folder", str(tmp_path), program=with_worker(source))
    assert result.returncode == 1
    assert result.stderr == "forkwire: none of the 1 files can be read\n"


def test_a_wrong_digest_is_a_failure(folder: Path) -> None:
    """Digests that differ from hashlib's here are counted and named, and the status is 1."""
    lie = "demo.digest_files = lambda inp, out, arg: true(inp, out, 'sha3_256')"
    result = run_demo("--folder", str(folder), program=with_worker(lie))
    assert result.returncode == 1
    assert re.fullmatch(r"forkwire: 22 of 22 digests differ: empty, large, .*\n", result.stderr)
    assert "all digests equal" not in result.stdout


def test_workers_that_die_by_themselves_are_a_failure(folder: Path) -> None:
    """With no worker left the demo says what became of each, and the status is 1."""
    death = "demo.digest_files = lambda inp, out, arg: os._exit(7)"
    result = run_demo("--folder", str(folder), "--workers", "2", program=with_worker(death))
    assert result.returncode == 1
    assert result.stderr == "forkwire: no worker is left, and 0 of 22 files are done\n"
    assert result.stdout.count("ended with exit status 7") == 2
    assert not re.search(r"unfinished +0", result.stdout)


def test_a_worker_that_dies_by_itself_is_a_failure(
    folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """The others finish its work and the digests are equal; but that was no part of the demo."""
    once = tmp_path_factory.mktemp("once") / "taken"
    program = with_worker(
        "def die_once(inp, out, arg):\n"
        f"    try: os.mkdir({str(once)!r})\n"
        "    except FileExistsError: true(inp, out, arg)\n"
        "    else: os._exit(7)\n"
        "demo.digest_files = die_once"
    )
    result = run_demo("--folder", str(folder), program=program)
    assert (result.returncode, result.stderr) == (1, "")
    assert "ended with exit status 7" in result.stdout
    assert result.stdout.count("all digests equal") == 1


def test_names_of_files_cannot_control_the_terminal(tmp_path: Path) -> None:
    """An escape sequence, or what is no text, in a file's name is shown as an escape."""
    Path(os.fsdecode(os.fsencode(tmp_path) + b"/\x1b[31m\xff")).write_bytes(bytes(3_000_000))
    result = run_demo("--folder", str(tmp_path))
    assert result.returncode == 0
    assert "Killed at \\x1b[31m\\udcff" in result.stdout


def test_a_folder_without_files_is_said(tmp_path: Path) -> None:
    """Nothing to digest: one line that names the folder, status 1."""
    result = run_demo("--folder", str(tmp_path))
    assert result.returncode == 1
    assert result.stderr == f"forkwire: no files to read in {tmp_path}: try --folder\n"

"""Workers that speak over stdin and stdout, here and elsewhere: behind a stand-in for ssh."""

from __future__ import annotations

import contextlib
import os
import pty
import shlex
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import forkwire
from forkwire import open_worker
from forkwire import sync as blocking
from forkwire.rpc import standalone
from forkwire.sync import SyncWorker

from .support_sync import importable, is_running, path_with_services, until

__all__ = ["importable"]

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.usefixtures("environment"),
    pytest.mark.skipif(sys.platform != "linux", reason="reads /proc"),
]

FAR_SHELL = Path(__file__).parents[2] / "examples" / "far_shell.py"
SERVE = [sys.executable, "-m", "forkwire", "serve"]
GRACE = 0.5


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """The services are found by fresh interpreters."""
    monkeypatch.setenv("PYTHONPATH", path_with_services())


def here(service: str) -> list[str]:
    return [*SERVE, service, "--stdio", f"--grace={GRACE}"]


def far(service: str, *options: str, then: str = "") -> list[str]:
    """``service`` behind the stand-in; ``then``: what its shell does after it."""
    command = shlex.join(here(service)) + then
    return [sys.executable, str(FAR_SHELL), *options, "host", command]


WAYS: dict[str, Callable[[str], list[str]]] = {
    "here": here,
    "by pipes": far,
    "by a socket": lambda service: far(service, "--socket"),
    "in a shell that waits": lambda service: far(service, then="; true"),
}
ways = pytest.mark.parametrize("way", WAYS)
SERVICES = ("far", "far:PLAIN")  # with a loop, and without


def opened(way: str, service: str = "far:PLAIN", *, grace: float = 2.0) -> SyncWorker:
    return blocking.open_worker(command=WAYS[way](service), stdio=True, grace=grace)


def written(path: Path) -> int:
    """The number in it, once it is there."""
    return int(until(lambda: path.exists() and path.read_text()))


def guards_of(pid: int) -> list[int]:
    """The processes that guard worker ``pid``."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            try:
                words = (entry / "cmdline").read_bytes().split(b"\0")
            except OSError:
                continue
            if any(word.endswith(b"guard_main.py") for word in words) and words[-3:-2] == [
                str(pid).encode()
            ]:
                found.append(int(entry.name))
    return found


# -- the session ------------------------------------------------------------------------------


@pytest.mark.parametrize("service", ["plain", "mixed"])
@pytest.mark.parametrize("command", [here, far])
async def test_calls_over_stdin_and_stdout(
    service: str, command: Callable[[str], list[str]]
) -> None:
    """Started from a loop, each of the three: calls, streams, errors, and calls back."""
    async with open_worker(
        command=command(service), stdio=True, host={"square": lambda n: n * n}
    ) as worker:
        if service == "mixed":
            assert await worker.call("add_later", 1, 2) == 3
        else:
            assert await worker.call("add", 1, 2) == 3
            assert [n async for n in worker.stream("count", 3)] == [0, 1, 2]
            assert await worker.call("ask", "square", 7) == 49
            with pytest.raises(ValueError, match="boo"):
                await worker.call("fail", "boo")
            assert len(await worker.call("echo", b"x" * 3_000_000)) == 3_000_000
    assert worker.returncode == 0


@ways
def test_what_is_printed_does_not_matter(way: str, capfd: pytest.CaptureFixture[str]) -> None:
    """It comes out at the host's stderr, whatever printed it; and stdin is empty."""
    with opened(way) as worker:
        assert worker.call("prints") == ""
        assert worker.call("add", 1, 2) == 3
    said = capfd.readouterr()
    assert said.out == ""
    for text in ("by Python", "by a system call", "by C", "by a program", "on stderr"):
        assert f"] {text}\n" in said.err


@ways
def test_leaving_the_block_lets_notifications_run(way: str, tmp_path: Path) -> None:
    """A connection that is closed in order is not one that was lost."""
    with opened(way) as worker:
        worker.notify("note", str(tmp_path / "done"))
        worker.call("add", 1, 2)
        pid = worker.call("pid")
        worker.notify("note", str(tmp_path / "done too"))
    assert worker.returncode == 0
    until(lambda: not is_running(pid))
    assert (tmp_path / "done").exists()
    assert (tmp_path / "done too").exists()


def test_the_status_of_a_program_elsewhere() -> None:
    """It comes back through the connection."""
    with (
        pytest.raises(forkwire.WorkerDied, match="cannot be found") as caught,
        blocking.open_worker(
            command=[sys.executable, str(FAR_SHELL), "host", "echo cannot be found >&2; exit 7"],
            stdio=True,
        ),
    ):
        raise AssertionError
    assert caught.value.returncode == 7


def test_a_program_over_stdio_has_only_its_three_descriptors(tmp_path: Path) -> None:
    """And none of the environment that is for other programs."""
    script = "ls -l /proc/self/fd >&2; env | grep FORKWIRE_ >&2; exit 3"
    with (
        (tmp_path / "secret").open("w"),
        pytest.raises(forkwire.WorkerDied) as caught,
        blocking.open_worker(command=["sh", "-c", script], stdio=True),
    ):
        raise AssertionError
    tail = caught.value.stderr_tail
    assert all(f"{fd} -> pipe:" in tail for fd in (0, 1, 2))
    assert "secret" not in tail
    assert "FORKWIRE_" not in tail


@pytest.mark.parametrize("text", ["Welcome home", "\\377\\377\\377\\377"])
def test_what_a_shell_prints_first_is_told(text: str) -> None:
    """It is no greeting, however large the message would be that it announces."""
    command = ["sh", "-c", f"printf '{text}'; exec sleep 60"]
    with (
        pytest.raises(forkwire.PeerError) as caught,
        blocking.open_worker(command=command, stdio=True),
    ):
        raise AssertionError
    (note,) = caught.value.__notes__
    assert "prints on its stdout breaks the session" in note
    assert ("b'Welc'" in note) == text.startswith("Welc")


# -- stopping ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("how", "service", "way"),
    [
        *((how, service, "by pipes") for how in ("sleeps", "computes") for service in SERVICES),
        *(("computes", "far:PLAIN", way) for way in WAYS if way != "by pipes"),
    ],
)
def test_a_cancelled_function_stops_and_the_worker_is_kept(
    how: str, service: str, way: str, tmp_path: Path
) -> None:
    """The order is a message, and becomes the signal there."""
    with opened(way, service) as worker:
        for count in (1, 2):
            with pytest.raises(TimeoutError):
                worker.options(timeout=0.2).call(how, str(tmp_path / "begun"))
            assert worker.call("stopped") == count
        assert worker.returncode is None


@pytest.mark.parametrize(
    ("how", "way"), [("ignores", "by pipes"), *(("in_c", way) for way in WAYS)]
)
def test_a_function_that_cannot_be_stopped_ends_with_its_worker(
    how: str, way: str, tmp_path: Path
) -> None:
    """The host gives the connection up, and the far guard the worker."""
    begun = tmp_path / "begun"
    with opened(way, grace=0.2) as worker:
        with pytest.raises(TimeoutError):
            worker.options(timeout=0.2).call(how, str(begun))
        until(lambda: worker.returncode is not None)
        until(lambda: not is_running(written(begun)))


# -- the end ----------------------------------------------------------------------------------


HOWS = ["idle", "sleeps", "computes", "in_c", "ignores", "descends", "sleeps_later"]


@pytest.mark.parametrize(
    ("how", "way", "notified"),
    [
        *((how, "by pipes", False) for how in HOWS),
        *((how, way, False) for how in ("sleeps", "in_c") for way in list(WAYS)[2:]),
        *((how, "by pipes", True) for how in ("sleeps", "in_c")),
    ],
)
def test_a_worker_ends_when_its_connection_is_cut(
    how: str, way: str, notified: bool, tmp_path: Path
) -> None:
    """The near end is killed: nothing of the worker is left, whatever it did, nor its guard."""
    begun = tmp_path / "begun"
    service = "far" if how == "sleeps_later" else "far:PLAIN"
    with opened(way, service) as worker:
        pid = worker.call("pid")
        assert len(guards_of(pid)) == 1
        if how == "idle":
            begun.write_text(str(pid))
        elif notified:
            worker.notify(how, str(begun))
        else:
            in_a_thread(worker, how, str(begun))
        last = written(begun)
        worker.kill()
        until(lambda: not (is_running(pid) or is_running(last) or guards_of(pid)))


def in_a_thread(worker: SyncWorker, how: str, begun: str) -> None:
    """Call it; that ends with the worker."""

    def call() -> None:
        with contextlib.suppress(forkwire.ForkwireError):
            worker.call(how, begun)

    threading.Thread(target=call, daemon=True).start()


HOST = """
import sys
from forkwire.sync import open_worker

with open_worker(command=sys.argv[3:], stdio=True, grace=0.2) as worker:
    worker.call(sys.argv[1], sys.argv[2])
"""


@pytest.mark.parametrize(("how", "way"), [("sleeps", "by pipes"), *(("in_c", way) for way in WAYS)])
def test_a_worker_ends_when_its_host_is_killed(how: str, way: str, tmp_path: Path) -> None:
    """The host's guard ends the near end, the far guard the rest."""
    begun = tmp_path / "begun"
    command = [sys.executable, "-c", HOST, how, str(begun), *WAYS[way]("far:PLAIN")]
    with subprocess.Popen(command) as host:
        pid = written(begun)
        host.send_signal(signal.SIGKILL)
        until(lambda: not (is_running(pid) or guards_of(pid)))


def test_nothing_is_left_of_an_orderly_end() -> None:
    """No worker, and no guard."""
    with opened("by pipes") as worker:
        pid = worker.call("pid")
        (guard,) = guards_of(pid)
    until(lambda: not (is_running(pid) or is_running(guard)))


# -- misuse -----------------------------------------------------------------------------------


def test_stdio_is_for_programs() -> None:
    """A service has pipes of its own."""
    for front in (open_worker, blocking.open_worker):
        with pytest.raises(forkwire.UsageError, match="stdio=True is for programs"):
            front("plain", stdio=True)


@pytest.mark.parametrize("seconds", ["", "x", "-1", "nan", "inf"])
def test_a_grace_that_is_none(seconds: str) -> None:
    """Is explained."""
    with pytest.raises(forkwire.UsageError, match="--grace is a number of seconds"):
        standalone.options_of(["plain", "--grace", seconds])


@pytest.fixture
def terminal() -> Iterator[int]:
    """A terminal that nobody types at."""
    ours, theirs = pty.openpty()
    yield theirs
    os.close(ours)
    os.close(theirs)


def test_a_terminal_is_no_host(terminal: int) -> None:
    """Typed by hand, the command says what it is for."""
    done = subprocess.run(
        [*SERVE, "plain", "--stdio"],
        stdin=terminal,
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
    )
    assert done.returncode == 2
    assert "are a terminal" in done.stderr
    assert "usage: forkwire serve SERVICE" in done.stderr


@pytest.mark.parametrize("closed", ["<&-", ">&-"])
def test_without_a_stdin_or_stdout_there_is_no_session(closed: str) -> None:
    """It is explained, too."""
    done = subprocess.run(
        ["sh", "-c", f"{shlex.join([*SERVE, 'plain', '--stdio'])} {closed}"],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
    )
    assert done.returncode == 2
    assert "Traceback" not in done.stderr

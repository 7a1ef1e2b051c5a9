"""What real workers print comes out at the host's streams, and goes nowhere else."""

from __future__ import annotations

import contextlib
import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
from typing import Any

import anyio
import pytest

from forkwire import WorkerDied, open_worker, sync

from .services import telling
from .support_calls import LIMIT, SERVICES, until, worker_of

pytestmark = pytest.mark.anyio

Captured = pytest.CaptureFixture[str]

PRINTED = ["printed", "written", "put by C", "by a program"]
SAID = ["said", "its error"]


@pytest.fixture
def on_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(SERVICES))


Starts = list[dict[str, Any]]


@pytest.fixture
def starts(on_path: None, anyio_backend_name: str) -> Starts:
    """How to start; an interpreter of its own takes long, and knows nothing of the host's loop."""
    fork, execute = {"start": "fork"}, {"start": "exec"}
    return [fork, execute] if anyio_backend_name == "asyncio" else [fork]


# -- where it goes ----------------------------------------------------------------------------


async def test_every_line_with_a_label(capsys: Captured, starts: Starts) -> None:
    """By Python, by C and by programs, of workers forked and executed; each to its stream."""
    for options in starts:
        async with worker_of("telling", name="calc", **options) as worker:
            await worker.call("print_lines")
        out, err = capsys.readouterr()
        label = f"[calc {worker.pid}] "
        assert sorted(out.splitlines()) == sorted(f"{label}{line}" for line in PRINTED)
        assert err.splitlines() == [f"{label}{line}" for line in SAID]


def test_without_a_loop(capsys: Captured) -> None:
    """``forkwire.sync`` passes on the same."""
    with sync.open_worker(telling, name="calc") as worker:
        worker.call("print_lines")
    out, err = capsys.readouterr()
    assert sorted(line.partition("] ")[2] for line in out.splitlines()) == sorted(PRINTED)
    assert [line.partition("] ")[2] for line in err.splitlines()] == SAID


async def test_while_the_call_runs(capsys: Captured, starts: Starts) -> None:
    """A line comes out when it ends, not when the function does, or when there is much."""
    for options in starts:
        async with worker_of("telling", **options) as worker, anyio.create_task_group() as tasks:
            tasks.start_soon(worker.call, "print_and_wait", "here")
            text = ""

            def came() -> bool:
                nonlocal text
                text += capsys.readouterr().out
                return text.endswith("] here\n")

            await until(came)
            tasks.cancel_scope.cancel()


async def test_a_last_line_without_an_end(capsys: Captured) -> None:
    """Is passed on too, when the worker ends, as a line."""
    async with worker_of(telling) as worker:
        await worker.call("print_without_end")
    assert capsys.readouterr().out.endswith("] no end\n")


async def test_stdin_is_empty(starts: Starts) -> None:
    """Nobody can read the host's, in a worker or below."""
    for options in starts:
        async with worker_of("telling", **options) as worker:
            assert await worker.call("read_stdin") == ["", b"", b""]


async def test_a_print_cannot_be_taken_for_a_message(capsys: Captured, starts: Starts) -> None:
    """Whatever is written to 0, 1 and 2: the calls have descriptors of their own."""
    for options in starts:
        async with worker_of("telling", **options) as worker:
            for _ in range(20):
                assert await worker.call("print_protocol") == "intact"
            assert await worker.call("ping") == worker.pid
    assert "\x00\x00\x00\x03abc" in capsys.readouterr().out


@pytest.mark.parametrize("command", ["echo hello", "printf '\\0\\0\\0\\003abc'"])
async def test_a_program_that_only_prints(capsys: Captured, command: str) -> None:
    """Is no worker: it has ended without a greeting, and what it printed was passed on."""
    with pytest.raises(WorkerDied):
        async with open_worker(command=["sh", "-c", command], name="shell"):
            pass
    assert re.match(r"\[shell \d+\] ", capsys.readouterr().out)


# -- much of it -------------------------------------------------------------------------------


async def test_much_is_passed_on(capsys: Captured) -> None:
    """More than a pipe holds, without an end of the call, and nothing is lost."""
    async with worker_of(telling) as worker:
        assert await worker.call("print_much", 2**20) == 2**20
    assert capsys.readouterr().out.count("x") == 2**20 // 100 * 99


async def test_a_host_that_does_not_listen(capsys: Captured) -> None:
    """A worker waits until it does, no longer; the host's memory is no buffer."""
    async with worker_of(telling) as worker, anyio.create_task_group() as tasks:
        tasks.start_soon(worker.call, "print_much", 2**19)
        await until(lambda: worker.statistics().in_flight)
        time.sleep(0.1)  # the loop stands still
    assert capsys.readouterr().out.count("x") == 2**19 // 100 * 99


async def test_a_stream_of_the_hosts_that_is_broken(monkeypatch: pytest.MonkeyPatch) -> None:
    """Is read all the same: the worker never waits for it."""

    class Broken:
        def write(self, text: str) -> int:
            raise OSError("disk full")

        def flush(self) -> None: ...

    async with worker_of(telling) as worker:
        for stream in (Broken(), None):
            monkeypatch.setattr(sys, "stdout", stream)
            assert await worker.call("print_much", 2**18) == 2**18


# -- the end ----------------------------------------------------------------------------------


async def test_the_last_words(capsys: Captured, starts: Starts) -> None:
    """The end of stderr is in the error, and was passed on."""
    for options in starts:
        with pytest.raises(WorkerDied) as caught:
            async with worker_of("telling", **options) as worker:
                await worker.call("die", "out of luck")
        assert caught.value.stderr_tail == "out of luck\n"
        assert caught.value.returncode == 3
        assert "] out of luck\n" in capsys.readouterr().err


async def test_a_crash_in_c(capsys: Captured, starts: Starts) -> None:
    """Has the stack that Python had, in a fork and in an interpreter of its own."""
    for options in starts:
        with pytest.raises(WorkerDied) as caught:
            async with worker_of("telling", **options) as worker:
                await worker.call("crash")
        assert caught.value.returncode == -signal.SIGSEGV
        assert "in crash\n" in caught.value.native_stack


# -- Ctrl-C -----------------------------------------------------------------------------------

SCRIPT = """
import sys
sys.path.insert(0, {services!r})
import telling
import anyio, forkwire
from forkwire import sync

async def main():
    async with forkwire.open_worker(telling) as a:
        async with (
            forkwire.open_worker("telling", start="exec") as b,
            anyio.create_task_group() as tasks,
        ):
            for worker in (a, b):
                tasks.start_soon(worker.call, "print_and_wait", "ready")
                tasks.start_soon(worker.call, "say_later_when_stopped")
            await anyio.sleep_forever()

def blocking():
    with sync.open_worker(telling) as a, sync.open_worker("telling", start="exec") as b:
        b.call("print_line", "ready")
        a.call("print_and_wait", "ready")

if __name__ == "__main__":
    backend = sys.argv[1]
    if backend == "sync":
        blocking()
    else:
        uvloop = {{"use_uvloop": True}} if backend == "uvloop" else {{}}
        name = "trio" if backend == "trio" else "asyncio"
        anyio.run(main, backend=name, backend_options=uvloop)
"""


# Of one traceback, in a group of two with trio.
FEW_LINES = 90


@pytest.mark.parametrize("backend", ["asyncio", "uvloop", "trio", "sync"])
def test_ctrl_c(backend: str) -> None:
    """At a terminal, with busy workers: the host's traceback, and no other; no process is left."""
    master, terminal = pty.openpty()
    with contextlib.ExitStack() as stack:
        stack.callback(os.close, master)
        process = subprocess.Popen(
            [sys.executable, "-c", SCRIPT.format(services=str(SERVICES)), backend],
            stdin=terminal, stdout=terminal, stderr=terminal,
            preexec_fn=take_terminal, start_new_session=True,
            env={**os.environ, "PYTHON_COLORS": "0"},
        )  # fmt: skip
        os.close(terminal)
        stack.callback(process.kill)
        text = read_until(master, lambda text: text.count("ready") == 2)
        pids = {int(pid) for pid in re.findall(r"\[telling (\d+)\]", text)}
        assert len(pids) == 2, text
        os.write(master, b"\x03")
        text = read_until(master, lambda text: False)
        assert process.wait(LIMIT) in (1, -signal.SIGINT)
        assert "[telling" not in text, text
        assert "CallCancelled" not in text, text
        assert text.rstrip().endswith("KeyboardInterrupt") or backend == "trio", text
        assert text.count("KeyboardInterrupt\r\n") == 1 or backend == "trio", text
        assert text.count("\n") < FEW_LINES, text
        for pid in pids:
            with pytest.raises(ProcessLookupError):
                os.kill(pid, 0)


def take_terminal() -> None:
    """Ours is the session, and the terminal is its own."""
    import fcntl
    import termios

    fcntl.ioctl(0, termios.TIOCSCTTY, 0)


def read_until(fd: int, enough: Any) -> str:
    """What comes at the terminal, until it is closed."""
    data = b""
    end = time.monotonic() + LIMIT
    while not enough(data.decode()):
        ready, _, _ = select.select([fd], [], [], max(0, end - time.monotonic()))
        assert ready, data.decode()
        try:
            more = os.read(fd, 65536)
        except OSError:  # nobody has the terminal any more
            break
        if not more:
            break
        data += more
    return data.decode()

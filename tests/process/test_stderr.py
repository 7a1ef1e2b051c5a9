"""``capture_stderr``: what a worker says on stderr arrives as it says it, and its end is kept."""

from __future__ import annotations

import contextlib
import io
import os
import resource
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from typing import NoReturn

import anyio
import pytest

from forkwire import (
    InputChannel,
    OutputChannel,
    ProcessWorker,
    WorkerDied,
    read_message,
    run,
    sync,
    write_message,
)
from forkwire.process import child
from forkwire.process.cancelling import Termination

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.filterwarnings("ignore::forkwire.ForkThreadsWarning"),  # anyio's runner has one
]

TAIL = 8 * 1024  # characters
FLOOD = 10 * 1024 * 1024  # bytes


class Stderr(io.StringIO):
    """Ours, as the test sees it: each write, and whether it was flushed."""

    def __init__(self) -> None:
        super().__init__()
        self.writes: list[str] = []
        self.pause = 0.0

    def write(self, text: str) -> int:
        self.writes.append(text)
        time.sleep(self.pause)
        return len(text)

    @property
    def text(self) -> str:
        return "".join(self.writes)


@contextlib.contextmanager
def hearing(pause: float = 0.0) -> Iterator[Stderr]:
    """``sys.stderr`` is the test's; a fixture could not, since pytest sets it for each call."""
    ours = Stderr()
    ours.pause = pause
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "stderr", ours)
        yield ours


async def end(worker: ProcessWorker) -> WorkerDied | None:
    with anyio.fail_after(30):
        await worker.wait()
    return worker.died


async def until(stderr: Stderr, text: str) -> None:
    with anyio.fail_after(20):
        while text not in stderr.text:
            await anyio.sleep(0.001)


def says(inp: InputChannel, out: OutputChannel, data: bytes) -> None:
    os.write(2, data)
    os._exit(1)


def says_in_many_ways(inp: InputChannel, out: OutputChannel, arg: object) -> None:
    print("printed", file=sys.stderr)
    os.write(2, b"written\n")
    subprocess.run(["sh", "-c", "echo from a program >&2"], check=True)


async def test_everything_said_arrives() -> None:
    """What is printed, written, and said by a program that the worker runs."""
    with hearing() as stderr:
        async with await run(says_in_many_ways, None, capture_stderr=True) as worker:
            await end(worker)
        for line in ("printed", "written", "from a program"):
            assert f"{line}\n" in stderr.text


def waits_after_each_line(inp: InputChannel, out: OutputChannel, arg: object) -> None:
    for number in range(3):
        os.write(2, b"half of ")
        sync.write_message(out, b"half")
        sync.read_message(inp)
        os.write(2, f"line {number}\n".encode())
        sync.read_message(inp)


async def test_line_by_line_as_it_comes() -> None:
    """Each line is passed on while the worker runs, whole, and flushed."""
    with hearing() as stderr:
        flushed: list[int] = []
        async with await run(waits_after_each_line, None, capture_stderr=True) as worker:
            stderr.flush = lambda: flushed.append(len(stderr.writes))  # type: ignore[method-assign]
            for number in range(3):
                await read_message(worker.input_channel)
                await anyio.wait_all_tasks_blocked()
                assert stderr.writes == [f"half of line {n}\n" for n in range(number)]
                await write_message(worker.output_channel, b"go on")
                await until(stderr, f"half of line {number}\n")
                await write_message(worker.output_channel, b"go on")
        assert flushed == [1, 2, 3]


async def test_stderr_is_drained_though_nobody_reads_the_channels() -> None:
    """The loop does it in the background."""
    with hearing() as stderr:
        async with await run(says, b"a line\n", capture_stderr=True):
            await until(stderr, "a line\n")


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"no newline at the end",
        b"\n\n\n",
        b"one\ntwo\nthree",
        "ünïcödé ☃\n".encode(),
        b"x" * 60_000,
        b"y" * 30_000 + b"\n" + b"z" * 30_000,
    ],
    ids=lambda data: repr(data[:12]),
)
async def test_text_arrives_as_it_was(data: bytes) -> None:
    """Long lines, empty ones, none at all, and a last one without an end."""
    with hearing() as stderr:
        async with await run(says, data, capture_stderr=True) as worker:
            await end(worker)
            assert stderr.text == data.decode()


async def test_long_line_is_not_cut_inside_a_character() -> None:
    """A line too long to keep is passed on in parts, each of whole characters."""
    with hearing() as stderr:
        text = "x" + "é☃𝄞" * 6000
        async with await run(says, text.encode(), capture_stderr=True) as worker:
            await end(worker)
        assert stderr.text == text


async def test_bytes_that_are_no_text() -> None:
    """They are shown escaped, and lose nothing around them."""
    with hearing() as stderr:
        async with await run(says, b"a\xff\xfe\0b\n", capture_stderr=True) as worker:
            died = await end(worker)
        assert stderr.text == "a\\xff\\xfe\0b\n"
        assert died is not None
        assert died.stderr_tail == stderr.text


def numbered(count: int) -> bytes:
    return b"".join(b"line %d\n" % number for number in range(count))


def says_lines(inp: InputChannel, out: OutputChannel, count: int) -> None:
    sys.stderr.write(numbered(count).decode())
    os._exit(1)


async def test_tail_is_the_end_in_whole_lines() -> None:
    """The last lines are kept for the report, and no half of one."""
    with hearing():
        async with await run(says_lines, 20_000, capture_stderr=True) as worker:
            died = await end(worker)
        assert died is not None
        everything = numbered(20_000).decode()
        assert TAIL - 20 < len(died.stderr_tail) <= TAIL
        assert everything.endswith("\n" + died.stderr_tail)
        assert str(died).endswith(died.stderr_tail)


@pytest.mark.parametrize("end_of_line", [b"", b"\n"])
async def test_tail_of_one_long_line(end_of_line: bytes) -> None:
    """A last line that is too long is kept in part."""
    with hearing():
        async with await run(says, b"x" * 20_000 + end_of_line, capture_stderr=True) as worker:
            died = await end(worker)
        assert died is not None
        assert set(died.stderr_tail) <= {"x", "\n"}
        assert len(died.stderr_tail) >= TAIL - 1


def floods(inp: InputChannel, out: OutputChannel, arg: object) -> None:
    line = b"f" * 99 + b"\n"
    for _ in range(FLOOD // len(line) // 1000):
        os.write(2, line * 1000)
    os._exit(1)


async def test_flood() -> None:
    """Ten megabytes arrive, whole and in order; the worker is never blocked for long."""
    with hearing() as stderr:
        async with await run(floods, None, capture_stderr=True) as worker:
            await end(worker)
            relay = worker._stderr
        assert len(stderr.text) == FLOOD // 100 // 1000 * 100_000
        assert set(stderr.text) == {"f", "\n"}
        assert relay is not None
        assert len(relay._kept) + len(relay._line) < 300_000


def drizzles(inp: InputChannel, out: OutputChannel, arg: object) -> None:
    line = b"f" * 99 + b"\n"
    for _ in range(3000):
        os.write(2, line * 10)


async def test_flood_leaves_the_loop_its_turns() -> None:
    """Where our stderr is slower than the worker, other tasks go on."""
    with hearing(0.002) as stderr:
        longest = 0.0
        async with await run(drizzles, None, capture_stderr=True) as worker:
            while worker.returncode is None:
                before = time.monotonic()
                await anyio.lowlevel.checkpoint()
                longest = max(longest, time.monotonic() - before)
        assert len(stderr.text) == 3_000_000
        assert longest < 0.3


def leaves_a_flood(inp: InputChannel, out: OutputChannel, arg: object) -> None:
    subprocess.Popen(["timeout", "20", "yes"], stdout=2, start_new_session=True)
    os._exit(3)


async def test_descendant_that_floods_does_not_delay_the_end() -> None:
    """One that left the group may write for ever: the worker's end is told, the pipe closed."""
    with hearing(0.002):
        async with await run(leaves_a_flood, None, capture_stderr=True) as worker:
            with anyio.fail_after(5):
                assert await worker.wait() == 3


def leaves_one_that_holds_stderr(inp: InputChannel, out: OutputChannel, arg: object) -> None:
    subprocess.Popen(["sleep", "30"], start_new_session=True)
    os.write(2, b"the last word")
    os._exit(3)


async def test_descendant_that_holds_stderr_does_not_delay_the_end() -> None:
    """``wait`` answers when the worker has ended, with all that it said."""
    with hearing() as stderr:
        async with await run(leaves_one_that_holds_stderr, None, capture_stderr=True) as worker:
            with anyio.fail_after(5):
                await worker.wait()
            died = worker.died
        assert died is not None
        assert died.stderr_tail == stderr.text == "the last word"


class Broken(Stderr):
    def write(self, text: str) -> int:
        raise RuntimeError("a bug in somebody's stderr")


@pytest.mark.parametrize("ours", [None, Broken()], ids=["None", "raises"])
async def test_own_stderr_that_is_broken(monkeypatch: pytest.MonkeyPatch, ours: object) -> None:
    """The worker is drained and reaped, and the tail kept, whatever our own stderr does."""
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stderr", ours)
        async with await run(says, b"x" * 100_000 + b"\nlast\n", capture_stderr=True) as worker:
            died = await end(worker)
    assert died is not None
    assert died.stderr_tail.endswith("last\n")


def replaces_stderr(inp: InputChannel, out: OutputChannel, arg: object) -> None:
    sys.stderr.close()
    sys.stderr = None
    raise LookupError


async def test_worker_without_stderr() -> None:
    """A worker that closed its own stderr ends as it would have."""
    with hearing():
        async with await run(replaces_stderr, None, capture_stderr=True) as worker:
            assert await worker.wait() == 1


async def is_terminated_when_its_loop_is_closed(
    inp: InputChannel, out: OutputChannel, arg: object
) -> None:
    leave = child.leave

    def leave_late(status: int, termination: Termination) -> NoReturn:
        os.kill(os.getpid(), signal.SIGTERM)
        leave(status, termination)

    child.leave = leave_late


async def test_sigterm_at_the_end_says_nothing() -> None:
    """A worker whose function has returned ends well: SIGTERM comes too late to cancel it."""
    with hearing() as stderr:
        async with await run(
            is_terminated_when_its_loop_is_closed, None, capture_stderr=True
        ) as worker:
            assert await worker.wait() == 0
        assert stderr.text == ""


async def test_two_workers_do_not_mix_lines() -> None:
    """Lines that two workers write at once arrive whole."""
    with hearing() as stderr:
        async with (
            await run(says_lines, 3000, capture_stderr=True) as one,
            await run(says_lines, 3000, capture_stderr=True) as two,
        ):
            await end(one)
            await end(two)
        assert sorted(stderr.text.splitlines()) == sorted(2 * numbered(3000).decode().splitlines())


def test_without_capture_stderr_is_inherited() -> None:
    """It goes where the host's does, and an error's traceback with it."""
    script = """
        import anyio
        from forkwire import run

        def f(inp, out, arg):
            raise LookupError("said by the worker")

        async def main():
            async with await run(f, None):
                pass

        anyio.run(main)
    """
    program = [sys.executable, "-c", textwrap.dedent(script)]
    done = subprocess.run(program, capture_output=True, text=True, timeout=30, check=True)
    assert done.stderr.endswith("LookupError: said by the worker\n")


async def test_memory_is_bounded() -> None:
    """A flood without a newline is not collected into one line."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with open(os.devnull, "w") as null, pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "stderr", null)
        async with await run(pours, None, capture_stderr=True) as worker:
            await end(worker)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 8 * 1024


def pours(inp: InputChannel, out: OutputChannel, arg: object) -> None:
    for _ in range(3 * FLOOD // 50_000):
        os.write(2, b"x" * 50_000)

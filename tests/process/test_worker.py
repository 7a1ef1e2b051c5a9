"""The host's handle: waiting, ending, closing, and what it says of a death."""

from __future__ import annotations

import gc
import os
import signal
import sys
import time
import warnings
from typing import Any

import anyio
import pytest

from forkwire import (
    EndOfFile,
    InputChannel,
    OutputChannel,
    ProcessWorker,
    WorkerDied,
    WriteOk,
    read_message,
    run,
    sync,
    write_message,
)

from .test_run_support import is_gone, open_files, owned, program, received

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.filterwarnings("ignore::forkwire.ForkThreadsWarning"),
]


def echo(inp: InputChannel, out: OutputChannel, arg: object) -> None:
    for message in sync.messages(inp):
        sync.write_message(out, message)


def stubborn(inp: InputChannel, out: OutputChannel, arg: object) -> None:
    """Hear neither the end of the file nor SIGTERM."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    sync.write_message(out, b"ready")
    time.sleep(60)


def busy_in_c(inp: InputChannel, out: OutputChannel, arg: object) -> None:
    """Keep the interpreter's lock in C, where no handler runs."""
    sync.write_message(out, b"ready")
    sum(range(10**12))


def deaf_until_sigterm(inp: InputChannel, out: OutputChannel, arg: object) -> None:
    sync.write_message(out, b"ready")
    time.sleep(60)


async def test_leaving_the_block_lets_the_worker_end() -> None:
    """It reads the end of the file, returns, and is reaped: status 0, no signal."""
    async with await run(echo, None) as worker:
        assert worker.returncode is None
        assert repr(worker) == f"<ProcessWorker pid={worker.pid} running>"
        await write_message(worker.output_channel, b"hello")
        assert await received(worker) == b"hello"
    assert worker.returncode == 0
    assert repr(worker) == f"<ProcessWorker pid={worker.pid} ended 0>"
    assert worker.died is None
    worker.check_returncode()
    assert is_gone(worker.pid)
    assert worker.input_channel.closed
    assert worker.output_channel.closed


async def test_a_worker_that_does_not_read_is_terminated_after_the_grace() -> None:
    """Then SIGTERM cancels it: -15, and no SIGKILL."""
    async with await run(deaf_until_sigterm, None, grace=0.2) as worker:
        assert await received(worker) == b"ready"
        start = time.monotonic()
    assert worker.returncode == -signal.SIGTERM
    assert 0.2 <= time.monotonic() - start < 20


@pytest.mark.parametrize("f", [stubborn, busy_in_c])
async def test_what_ignores_sigterm_is_killed_after_another_grace(f: Any) -> None:
    """Also when it hangs in C."""
    async with await run(f, None, grace=0.1) as worker:
        assert await received(worker) == b"ready"
        start = time.monotonic()
    assert worker.returncode == -signal.SIGKILL
    assert 0.2 <= time.monotonic() - start < 20
    assert is_gone(worker.pid)


async def test_a_grace_of_zero_still_reaps() -> None:
    """Nothing is waited for, everything is ended."""
    async with await run(stubborn, None, grace=0) as worker:
        assert await received(worker) == b"ready"
    assert worker.returncode == -signal.SIGKILL


async def test_terminate_and_kill() -> None:
    """Each sends its signal; on a worker that has ended both do nothing."""
    for end, code in ((ProcessWorker.terminate, -15), (ProcessWorker.kill, -9)):
        async with await run(echo, None) as worker:
            end(worker)
            assert await worker.wait() == code
            worker.terminate()
            worker.kill()
            assert await worker.wait() == worker.returncode == code


async def test_a_signal_reaches_the_workers_descendants() -> None:
    """They are in its group; what is left of it goes with the worker."""

    def f(inp: InputChannel, out: OutputChannel, arg: object) -> None:
        child = os.fork()
        if child == 0:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            os.write(ready, b"+")
            time.sleep(60)
        sync.read_message(inp)

    alive, ready = os.pipe()
    async with await run(f, None) as worker:
        os.close(ready)
        assert os.read(alive, 1) == b"+"
    assert worker.returncode == 0
    with anyio.fail_after(20):
        await anyio.wait_readable(alive)
    assert os.read(alive, 1) == b""  # nobody holds the other end
    os.close(alive)


async def test_wait_may_be_cancelled_and_repeated() -> None:
    """A cancelled wait changes nothing, and any number of tasks may wait."""
    codes: list[int] = []
    async with await run(echo, None) as worker, anyio.create_task_group() as group:

        async def wait() -> None:
            codes.append(await worker.wait())

        with anyio.move_on_after(0.01) as scope:
            await worker.wait()
        assert scope.cancelled_caught
        assert worker.returncode is None
        for _ in range(3):
            group.start_soon(wait)
        await anyio.wait_all_tasks_blocked()
        worker.kill()
        assert await worker.wait() == -9
    assert codes == [-9, -9, -9]


async def test_returncode_needs_no_waiting() -> None:
    """It looks for itself: polling it is enough."""
    async with await run(lambda i, o, a: sys.exit(5), None) as worker:
        deadline = time.monotonic() + 20
        while worker.returncode is None:
            assert time.monotonic() < deadline
            time.sleep(0.001)
        assert worker.returncode == 5
        assert await worker.wait() == 5


async def test_the_end_is_seen_while_nobody_waits() -> None:
    """The loop reaps in the background: no zombie stays."""
    async with await run(lambda i, o, a: None, None) as worker:
        with anyio.fail_after(20):
            while not is_gone(worker.pid):
                await anyio.sleep(0.001)


async def test_aclose_is_idempotent_and_may_run_many_times_at_once() -> None:
    """One after the other, together, inside the block and after it."""
    async with await run(echo, None) as worker:
        async with anyio.create_task_group() as group:
            for _ in range(4):
                group.start_soon(worker.aclose)
            group.start_soon(worker.wait)
        assert worker.returncode == 0
        await worker.aclose()
    await worker.aclose()
    assert worker.returncode == 0


@pytest.mark.parametrize("f", [echo, stubborn])
async def test_a_cancelled_aclose_still_reaps(f: Any) -> None:
    """The cancellation is delivered once the worker is gone."""
    worker = await run(f, None, grace=0.1)
    with anyio.CancelScope() as scope:
        scope.cancel()
        await worker.aclose()
    assert worker.returncode == (0 if f is echo else worker.returncode)
    assert is_gone(worker.pid)


async def test_an_exception_in_the_block_leaves_it_as_it_is() -> None:
    """Unwrapped, and the worker is reaped first."""
    error = LookupError("mine")
    worker = await run(echo, None)
    with pytest.raises(LookupError) as caught:
        async with worker:
            raise error
    assert caught.value is error
    assert (worker.returncode, is_gone(worker.pid)) == (0, True)


async def test_a_cancelled_block_ends_the_worker() -> None:
    """A host that is cancelled in a read, in a write, or in between leaves no worker."""

    async def read(worker: ProcessWorker) -> None:
        await read_message(worker.input_channel)

    async def write(worker: ProcessWorker) -> None:
        while True:
            await write_message(worker.output_channel, b"x" * 100_000)

    for action in (read, write):
        worker = await run(deaf_until_sigterm, None, grace=0.1)
        with anyio.CancelScope() as scope:
            async with worker, anyio.create_task_group() as group:
                assert await received(worker) == b"ready"
                group.start_soon(action, worker)
                await anyio.wait_all_tasks_blocked()
                scope.cancel()
        assert scope.cancelled_caught
        assert is_gone(worker.pid)


async def test_a_message_under_way_when_closing_is_delivered() -> None:
    """The writer may finish; who waits for its turn behind it gets the end of the file."""
    size = 5_000_000

    def f(inp: InputChannel, out: OutputChannel, go: int) -> None:
        os.read(go, 1)  # until then the host's writer is stuck in the middle
        message = sync.read_message(inp)
        assert message == b"x" * size
        sys.exit(42 if isinstance(sync.read_message(inp), EndOfFile) else 43)

    results: list[object] = []

    async def write(payload: bytes) -> None:
        results.append(await write_message(worker.output_channel, payload))

    go, release = os.pipe()
    worker = await run(f, go, grace=20)
    os.close(go)
    async with anyio.create_task_group() as group:
        group.start_soon(write, b"x" * size)
        await anyio.wait_all_tasks_blocked()
        group.start_soon(write, b"too late")
        await anyio.wait_all_tasks_blocked()
        group.start_soon(worker.aclose)
        await anyio.wait_all_tasks_blocked()
        os.write(release, b"+")
    os.close(release)
    assert worker.returncode == 42
    assert results == [WriteOk(), EndOfFile()]


async def test_a_worker_that_never_reads_delays_closing_by_graces_only() -> None:
    """A message stuck in the pipe is given up with the worker."""

    async def write() -> None:
        assert isinstance(await write_message(worker.output_channel, b"x" * 5_000_000), EndOfFile)

    worker = await run(stubborn, None, grace=0.1)
    assert await received(worker) == b"ready"
    async with anyio.create_task_group() as group:
        group.start_soon(write)
        await anyio.wait_all_tasks_blocked()
        with anyio.fail_after(20):
            await worker.aclose()
    assert worker.returncode == -9


async def test_writing_to_a_worker_that_ended_answers_the_end_of_the_file() -> None:
    """Never a SIGPIPE, nor an exception."""
    async with await run(lambda i, o, a: None, None) as worker:
        await worker.wait()
        assert isinstance(await write_message(worker.output_channel, b"hello"), EndOfFile)
        assert isinstance(await read_message(worker.input_channel), EndOfFile)


async def test_a_bad_end_is_described() -> None:
    """Pid, status, signal, the last of stderr, resources, and where the stream broke off."""

    def f(inp: InputChannel, out: OutputChannel, arg: object) -> None:
        os.write(out.fileno(), b"\x10\0\0\0cut")
        print("last words", file=sys.stderr)
        os.kill(os.getpid(), signal.SIGKILL)

    async with await run(f, None, capture_stderr=True) as worker:
        assert await read_message(worker.input_channel) == EndOfFile(truncated=True)
        await worker.wait()
    with pytest.raises(WorkerDied, match=f"worker {worker.pid} .*SIGKILL.*") as caught:
        worker.check_returncode()
    died = caught.value
    assert (died.pid, died.returncode, died.signal_name) == (worker.pid, -9, "SIGKILL")
    assert (died.exit_code, died.inside_message) == (None, True)
    assert died.stderr_tail == "last words\n"
    assert died.rusage is not None


async def test_an_exit_status_is_described() -> None:
    """Not a signal, and no message cut."""
    async with await run(lambda i, o, a: sys.exit(3), None) as worker:
        assert isinstance(await read_message(worker.input_channel), EndOfFile)
        await worker.wait()
    died = worker.died
    assert died is not None
    assert (died.returncode, died.exit_code, died.signal_name) == (3, 3, None)
    assert died.inside_message is False
    assert str(died) == f"worker {worker.pid} ended with exit status 3"


async def test_a_dropped_handle_warns_and_its_worker_is_ended() -> None:
    """ResourceWarning names it, and no process or descriptor stays."""
    worker = await run(deaf_until_sigterm, None, grace=0.1)
    assert await received(worker) == b"ready"
    pid = worker.pid
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        del worker
        gc.collect()
    assert [str(w.message) for w in caught] == [f"unclosed <ProcessWorker pid={pid} running>"]
    with anyio.fail_after(20):
        while not is_gone(pid):
            await anyio.sleep(0.001)


async def test_nothing_is_left_open() -> None:
    """Two hundred descriptors' worth of workers later, none is."""

    async def once() -> None:
        async with await run(echo, None, capture_stderr=True) as worker:
            await write_message(worker.output_channel, b"hello")
            assert await received(worker) == b"hello"

    await once()
    await anyio.wait_all_tasks_blocked()
    before = open_files(), owned()
    for _ in range(20):
        await once()
    await anyio.wait_all_tasks_blocked()
    assert (open_files(), owned()) == before


async def test_closing_sends_sigterm_twice() -> None:
    """A worker that missed one, since it was just about to wait, is interrupted by another."""

    def f(inp: InputChannel, out: OutputChannel, arg: object) -> None:
        signals: list[int] = []
        signal.signal(signal.SIGTERM, lambda number, frame: signals.append(number))
        sync.write_message(out, b"deaf")
        while len(signals) < 2:
            time.sleep(0.001)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.raise_signal(signal.SIGTERM)

    with anyio.fail_after(20):
        async with await run(f, None, grace=0.5) as worker:
            assert await received(worker) == b"deaf"
    assert worker.returncode == -signal.SIGTERM


def test_a_handle_may_move_to_another_loop() -> None:
    """Started in one ``anyio.run``, used and closed in the next."""

    async def start() -> ProcessWorker:
        return await run(echo, None)

    async def finish() -> None:
        async with worker:
            await write_message(worker.output_channel, b"hello")
            assert await received(worker) == b"hello"

    for first in ("asyncio", "trio"):
        for second in ("asyncio", "trio"):
            worker = anyio.run(start, backend=first)
            anyio.run(finish, backend=second)
            assert worker.returncode == 0


def test_where_sigchld_is_ignored_the_status_is_lost_and_said_to_be() -> None:
    """255, and a sentence that says why; nothing hangs and nothing raises."""
    done = program(
        """
        async def main():
            for f in (lambda i, o, a: sys.exit(3), lambda i, o, a: sync.read_message(i)):
                async with await run(f, None) as worker:
                    await worker.output_channel.aclose()
                    assert await worker.wait() == 255
                assert worker.returncode == 255
                assert "SIGCHLD" in worker.died.reason, worker.died

        signal.signal(signal.SIGCHLD, signal.SIG_IGN)
        for backend in ("asyncio", "trio"):
            anyio.run(main, backend=backend)
        """
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_an_application_that_reaps_everybody_is_survived() -> None:
    """``os.wait`` elsewhere takes our status: 255, with the reason, and its own status is right."""
    done = program(
        """
        async def main():
            async with await run(lambda i, o, a: sync.read_message(i), None) as worker:
                await worker.output_channel.aclose()
                pid, status = os.wait()
                assert (pid, status) == (worker.pid, 0)
                assert await worker.wait() == 255
            assert "something else" in worker.died.reason, worker.died

        anyio.run(main)
        """
    )
    assert (done.returncode, done.stderr) == (0, "")

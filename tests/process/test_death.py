"""What a host is told of a worker's end: the code, the signal, and all that goes with it."""

from __future__ import annotations

import ctypes
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable

import anyio
import pytest

from forkwire import (
    EndOfFile,
    InputChannel,
    OutputChannel,
    ProcessWorker,
    WorkerDied,
    read_message,
    run,
    sync,
)
from forkwire.errors import signal_name

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.filterwarnings("ignore::forkwire.ForkThreadsWarning"),  # anyio's runner has one
]

CRASH = "Fatal Python error: "


def without_core_dump() -> None:
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def returns(inp: InputChannel, out: OutputChannel, arg: object) -> None:
    pass


def exits_3(inp: InputChannel, out: OutputChannel, arg: object) -> None:
    sys.exit(3)


def exits_0(inp: InputChannel, out: OutputChannel, arg: object) -> None:
    sys.exit()


def leaves_with_7(inp: InputChannel, out: OutputChannel, arg: object) -> None:
    os._exit(7)


def fails(inp: InputChannel, out: OutputChannel, arg: object) -> None:
    raise LookupError("nothing there")


async def fails_later(inp: InputChannel, out: OutputChannel, arg: object) -> None:
    await anyio.lowlevel.checkpoint()
    raise LookupError("nothing there")


def kills_itself(inp: InputChannel, out: OutputChannel, arg: object) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def has_a_nameless_signal(inp: InputChannel, out: OutputChannel, arg: object) -> None:
    os.kill(os.getpid(), signal.SIGRTMIN + 3)


def reads_null(inp: InputChannel, out: OutputChannel, arg: object) -> None:
    without_core_dump()
    ctypes.string_at(0)


def aborts(inp: InputChannel, out: OutputChannel, arg: object) -> None:
    without_core_dump()
    os.abort()


def takes_too_much_memory(inp: InputChannel, out: OutputChannel, arg: object) -> None:
    resource.setrlimit(resource.RLIMIT_AS, (2**30, 2**30))
    bytearray(2**31)


def takes_too_much_time(inp: InputChannel, out: OutputChannel, arg: object) -> None:
    without_core_dump()
    resource.setrlimit(resource.RLIMIT_CPU, (1, 10))
    while True:
        pass


def sleeps(inp: InputChannel, out: OutputChannel, arg: object) -> None:
    time.sleep(1000)


async def wait(worker: ProcessWorker) -> int:
    with anyio.fail_after(30):
        return await worker.wait()


def expect_death(worker: ProcessWorker) -> WorkerDied:
    assert worker.died is not None
    return worker.died


@pytest.mark.parametrize(
    ("f", "status"),
    [(exits_3, 3), (leaves_with_7, 7), (fails, 1), (fails_later, 1), (takes_too_much_memory, 1)],
)
async def test_exit_status(f: Callable[..., object], status: int) -> None:
    """An exit by status is told as one, with no signal."""
    async with await run(f, None, capture_stderr=True) as worker:
        assert await wait(worker) == status
        died = expect_death(worker)
    assert (died.pid, died.returncode, died.exit_code) == (worker.pid, status, status)
    assert died.signal_name is None
    assert died.reason == f"ended with exit status {status}"
    assert str(died).startswith(f"worker {worker.pid} ended with exit status {status}")


@pytest.mark.parametrize("f", [returns, exits_0])
async def test_good_end_is_no_death(f: Callable[..., object]) -> None:
    """Neither a worker that runs has died, nor one that ended with status 0."""
    async with await run(f, None) as worker:
        assert worker.died is None
        assert await wait(worker) == 0
    assert worker.died is None
    worker.check_returncode()


@pytest.mark.parametrize(
    ("f", "number"),
    [
        (kills_itself, signal.SIGKILL),
        (reads_null, signal.SIGSEGV),
        (aborts, signal.SIGABRT),
        (has_a_nameless_signal, signal.SIGRTMIN + 3),
    ],
)
async def test_signal(f: Callable[..., object], number: int) -> None:
    """An end by a signal is told by its name, with no exit code."""
    async with await run(f, None, capture_stderr=True) as worker:
        assert await wait(worker) == -number
        died = expect_death(worker)
    assert (died.returncode, died.signal_name) == (-number, signal_name(number))
    assert died.exit_code is None
    assert died.reason.partition(",")[0] == f"was ended by {signal_name(number)}"


@pytest.mark.slow
def test_processor_limit() -> None:
    """A worker that used up its processor time is told as ended by SIGXCPU, with its usage."""

    async def main() -> object:
        async with await run(takes_too_much_time, None) as worker:
            assert await wait(worker) == -signal.SIGXCPU
            return expect_death(worker).rusage

    usage = anyio.run(main)
    assert isinstance(usage, resource.struct_rusage)
    assert usage.ru_utime + usage.ru_stime > 0.5


@pytest.mark.parametrize("by_us", [True, False], ids=["by kill()", "from outside"])
async def test_killed(by_us: bool) -> None:
    """SIGKILL is told alike, whoever sent it; the reason says when it was not this handle."""
    async with await run(sleeps, None) as worker:
        assert worker.returncode is None
        if by_us:
            worker.kill()
        else:
            os.kill(worker.pid, signal.SIGKILL)
        assert await wait(worker) == -signal.SIGKILL
    with pytest.raises(WorkerDied) as caught:
        worker.check_returncode()
    assert caught.value.signal_name == "SIGKILL"
    assert ("not sent by way of its handle" in caught.value.reason) is not by_us


async def test_what_the_worker_used() -> None:
    """``rusage`` is that of the worker alone."""
    async with await run(fails, None, capture_stderr=True) as worker:
        await wait(worker)
        usage = expect_death(worker).rusage
    assert isinstance(usage, resource.struct_rusage)
    assert usage.ru_maxrss > 1000


# -- inside a message? --------------------------------------------------------------------------


def stops_inside(inp: InputChannel, out: OutputChannel, count: int) -> None:
    sync.write_message(out, b"whole")
    os.write(out.fileno(), b"\x0a\0\0\0half of it"[:count])
    os._exit(9)


@pytest.mark.parametrize(
    ("count", "inside"), [(0, False), (1, True), (4, True), (8, True), (14, False)]
)
async def test_end_inside_a_message(count: int, inside: bool) -> None:
    """A death in the middle of a message is told from one between two, once that was read."""
    async with await run(stops_inside, count) as worker:
        await wait(worker)
        assert expect_death(worker).inside_message is None
        assert await read_message(worker.input_channel) == b"whole"
        assert expect_death(worker).inside_message is None
        while not isinstance(end := await read_message(worker.input_channel), EndOfFile):
            pass
        died = expect_death(worker)
    assert (end.truncated, died.inside_message) == (inside, inside)
    assert ("inside a message" in str(died)) == inside


async def test_unread_end_says_nothing() -> None:
    """Where the end was not read, nothing is said of it, also after the worker is closed."""
    async with await run(stops_inside, 8) as worker:
        await wait(worker)
    assert expect_death(worker).inside_message is None


# -- a status that somebody else took -----------------------------------------------------------


async def test_status_taken_by_another() -> None:
    """Another part of the program waited for the worker: 255, and the reason says so."""
    async with await run(leaves_with_7, None) as worker:
        os.waitpid(worker.pid, 0)
        assert await wait(worker) == 255
    died = expect_death(worker)
    assert "status was lost" in died.reason
    assert died.rusage is None


@pytest.mark.parametrize("f", [leaves_with_7, returns])
async def test_status_lost_to_an_ignored_sigchld(f: Callable[..., object]) -> None:
    """Where SIGCHLD is ignored there is no status; workers start and end all the same."""
    before = signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    try:
        for _ in range(10):
            async with await run(f, None) as worker:
                assert await wait(worker) == 255
            assert "SIGCHLD is ignored" in expect_death(worker).reason
    finally:
        signal.signal(signal.SIGCHLD, before)


def holds_a_pipe(inp: InputChannel, out: OutputChannel, fd: int) -> None:
    subprocess.Popen(["sleep", "1000"], pass_fds=[fd])
    os._exit(0)


@pytest.mark.parametrize("sigchld", [signal.SIG_DFL, signal.SIG_IGN], ids=["told", "lost"])
async def test_group_ends_with_its_leader(sigchld: signal.Handlers) -> None:
    """A descendant in the worker's group does not live on, though the status be lost."""
    read_end, write_end = os.pipe()
    before = signal.signal(signal.SIGCHLD, sigchld)
    try:
        async with await run(holds_a_pipe, write_end) as worker:
            os.close(write_end)
            await wait(worker)
            with anyio.fail_after(10):
                await anyio.wait_readable(read_end)
            assert os.read(read_end, 1) == b""
    finally:
        signal.signal(signal.SIGCHLD, before)
        os.close(read_end)


# -- the native stack ---------------------------------------------------------------------------


@pytest.mark.parametrize("f", [reads_null, aborts])
async def test_native_stack_of_a_crash(f: Callable[..., object]) -> None:
    """A crash in C leaves the Python stack that led to it."""
    async with await run(f, None, capture_stderr=True) as worker:
        await wait(worker)
        died = expect_death(worker)
    assert died.native_stack.startswith(CRASH)
    assert f.__name__ in died.native_stack
    assert (died.native_stack + died.stderr_tail).endswith(died.stderr_tail[-1000:])
    assert died.stderr_tail[-1000:] == died.native_stack[-1000:]  # it names every module in C


async def test_no_native_stack_where_python_raised() -> None:
    """An exception leaves its traceback in the tail, from the function on, and no native stack."""
    async with await run(fails, None, capture_stderr=True) as worker:
        await wait(worker)
        died = expect_death(worker)
    assert died.native_stack == ""
    assert "LookupError: nothing there" in died.stderr_tail
    assert died.stderr_tail.count("File ") == 1


async def test_memory_error_says_so() -> None:
    """A worker that meets its memory limit ends by an exception that is told."""
    async with await run(takes_too_much_memory, None, capture_stderr=True) as worker:
        await wait(worker)
    assert "MemoryError" in expect_death(worker).stderr_tail


async def test_nothing_is_told_of_stderr_that_was_not_captured() -> None:
    """Without ``capture_stderr`` the tail and the stack are empty."""
    async with await run(leaves_with_7, None) as worker:
        await wait(worker)
    died = expect_death(worker)
    assert (died.stderr_tail, died.native_stack) == ("", "")


# -- waiting for it -----------------------------------------------------------------------------


async def test_many_wait() -> None:
    """Every task that waits gets the code; one that is cancelled takes it from nobody."""
    codes: list[int] = []
    async with await run(sleeps, None) as worker:

        async def collect() -> None:
            codes.append(await wait(worker))

        async with anyio.create_task_group() as tasks:
            for _ in range(5):
                tasks.start_soon(collect)
            with anyio.move_on_after(0.01):
                await worker.wait()
            worker.kill()
    assert codes == [-signal.SIGKILL] * 5


async def test_wait_after_the_end() -> None:
    """The code can be asked for again, and again."""
    async with await run(exits_3, None) as worker:
        for _ in range(3):
            assert await wait(worker) == 3
    assert (await wait(worker), worker.returncode) == (3, 3)


async def test_returncode_alone_sees_the_end() -> None:
    """Nobody has to wait: the property asks the system."""
    async with await run(returns, None) as worker:
        read_end = worker.input_channel
        assert isinstance(await read_message(read_end), EndOfFile)
        deadline = time.monotonic() + 20
        while worker.returncode is None:  # no await: the loop has no turn
            assert time.monotonic() < deadline
            time.sleep(0.001)
        assert worker.returncode == 0


def wait_elsewhere(worker: ProcessWorker, backend: str, codes: list[int]) -> None:
    async def main() -> None:
        codes.append(await wait(worker))

    anyio.run(main, backend=backend)


async def test_wait_in_another_loop(anyio_backend_name: str) -> None:
    """A second event loop, in another thread, can wait while the first does."""
    codes: list[int] = []
    async with await run(sleeps, None) as worker:
        other = threading.Thread(target=wait_elsewhere, args=(worker, anyio_backend_name, codes))
        other.start()
        worker.kill()
        await wait(worker)
        await anyio.to_thread.run_sync(other.join)
    assert codes == [-signal.SIGKILL]


def test_wait_outlives_the_loop_that_forked() -> None:
    """The loop that started a worker may end while another waits for it."""
    waiting, codes = threading.Event(), list[int]()
    workers: list[ProcessWorker] = []

    async def first() -> None:
        workers.append(await run(sleeps, None))
        other.start()
        assert waiting.wait(20)

    async def second() -> None:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(collect)
            await anyio.wait_all_tasks_blocked()
            waiting.set()
            await anyio.to_thread.run_sync(ended.wait)
            workers[0].kill()

    async def collect() -> None:
        codes.append(await wait(workers[0]))

    ended = threading.Event()
    other = threading.Thread(target=anyio.run, args=(second,))
    anyio.run(first)
    ended.set()
    other.join()
    anyio.run(workers[0].aclose)
    assert codes == [-signal.SIGKILL]

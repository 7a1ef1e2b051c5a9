"""Every worker is reaped once, whoever drops it, wherever: no zombie, no descriptor is left."""

from __future__ import annotations

import _thread
import contextlib
import errno
import functools
import gc
import itertools
import os
import random
import select
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import pytest

from forkwire import (
    EndOfFile,
    InputChannel,
    OutputChannel,
    ProcessWorker,
    close_templates,
    read_message,
    run,
    sync,
    write_message,
)
from forkwire.process import descriptors, guard, ownership, reaping, signals

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.skipif(sys.platform != "linux", reason="reads /proc"),
    pytest.mark.filterwarnings("ignore::forkwire.ForkThreadsWarning"),  # anyio's runner has one
]

PATIENCE = 20.0
NAMES = ["asyncio", "uvloop", "trio"]

waitid = os.waitid


async def sleeps(inp: InputChannel, out: OutputChannel, arg: object) -> None:
    await write_message(out, b"ready")
    await anyio.sleep_forever()


def deaf(inp: InputChannel, out: OutputChannel, arg: object) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    sync.write_message(out, b"ready")
    while True:
        signal.pause()


async def echo(inp: InputChannel, out: OutputChannel, arg: object) -> None:
    async for message in inp:
        await write_message(out, message)


async def start(
    f: Callable[[InputChannel, OutputChannel, None], Awaitable[None] | None], grace: float = 2.0
) -> ProcessWorker:
    """A worker that is at work."""
    worker = await run(f, None, grace=grace)
    assert await read_message(worker.input_channel) == b"ready"
    return worker


def run_on(backend: str, function: Callable[..., Awaitable[object]], *args: object) -> None:
    options = {"use_uvloop": True} if backend == "uvloop" else {}
    loop = "trio" if backend == "trio" else "asyncio"
    anyio.run(function, *args, backend=loop, backend_options=options)


def is_child(pid: int) -> bool:
    """Whether ``pid`` is our child, be it a zombie."""
    with contextlib.suppress(ChildProcessError):
        waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        return True
    return False


def wait_until_reaped(pid: int, within: float = PATIENCE) -> None:
    """There is no event for it: somebody else in this process reaps it."""
    deadline = time.monotonic() + within
    while is_child(pid):
        assert time.monotonic() < deadline, f"worker {pid} was not reaped"
        time.sleep(0.002)


def open_files() -> dict[str, str]:
    found = {}
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):  # that of listdir itself
            found[name] = os.readlink(f"/proc/self/fd/{name}")
    return found


# -- dropped ------------------------------------------------------------------------------------


def drop(workers: list[ProcessWorker]) -> None:
    workers.clear()
    gc.collect()


async def test_dropped_handle() -> None:
    """It warns, and the worker is ended and reaped while the loop goes on."""
    workers = [await start(sleeps)]
    pid = workers[0].pid
    with pytest.warns(ResourceWarning, match=f"pid={pid} running"):
        drop(workers)
    await anyio.to_thread.run_sync(wait_until_reaped, pid)


async def test_dropped_handle_of_a_worker_that_ignores_sigterm() -> None:
    """It is killed after its grace, not before."""
    workers = [await start(deaf, grace=0.3)]
    pid = workers[0].pid
    before = time.monotonic()
    with pytest.warns(ResourceWarning):
        drop(workers)
    await anyio.to_thread.run_sync(wait_until_reaped, pid)
    assert 0.3 <= time.monotonic() - before < 1.3


async def test_dropped_in_another_thread() -> None:
    """The last reference may go anywhere."""
    workers = [await start(sleeps)]
    pid = workers[0].pid
    with pytest.warns(ResourceWarning):
        await anyio.to_thread.run_sync(drop, workers)
    await anyio.to_thread.run_sync(wait_until_reaped, pid)


@pytest.mark.parametrize("f", [sleeps, deaf])
@pytest.mark.parametrize("backend", NAMES)
def test_dropped_after_its_loop(
    backend: str, f: Callable[[InputChannel, OutputChannel, None], None]
) -> None:
    """No loop is needed to reap; nothing is left open."""
    workers: list[ProcessWorker] = []

    async def main() -> None:
        workers.append(await start(f, grace=0.1))

    run_on(backend, main)
    pid = workers[0].pid
    with pytest.warns(ResourceWarning):
        drop(workers)
    wait_until_reaped(pid)


@pytest.mark.parametrize("backend", NAMES)
def test_dropped_in_a_cycle_that_is_collected_while_its_loop_reaps(
    backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The collector may run the handle's finaliser in the middle of the reaping."""

    def collect_and_wait(kind: int, number: int, options: int) -> os.waitid_result | None:
        gc.collect()
        return waitid(kind, number, options)

    async def main() -> None:
        worker = await start(sleeps)
        pid = worker.pid
        worker.cycle = worker  # type: ignore[attr-defined]
        del worker
        monkeypatch.setattr(os, "waitid", collect_and_wait)
        os.kill(pid, signal.SIGKILL)
        await anyio.to_thread.run_sync(wait_until_reaped, pid)

    gc.disable()
    try:
        with pytest.warns(ResourceWarning):
            run_on(backend, main)
    finally:
        gc.enable()


EXIT = """
    import sys
    import anyio
    from forkwire import run

    async def f(inp, out, arg):
        await anyio.sleep_forever()

    async def main():
        global worker
        worker = await run(f, None, grace=0.2)
        print(worker.pid)

    anyio.run(main, backend=sys.argv[1])
    {}
"""


@pytest.mark.parametrize(
    "last", ["", "import gc; cycle = [worker]; cycle.append(cycle); del worker"]
)
@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_dropped_at_interpreter_exit(backend: str, last: str) -> None:
    """The program ends at once, with no word but the warning, and its worker with it."""
    program = [sys.executable, "-W", "always", "-c", textwrap.dedent(EXIT).format(last), backend]
    done = subprocess.run(program, capture_output=True, text=True, timeout=PATIENCE, check=True)
    lines = [line for line in done.stderr.splitlines() if line]
    assert all("ResourceWarning" in line for line in lines), done.stderr
    assert not Path(f"/proc/{int(done.stdout)}/environ").exists() or is_gone(int(done.stdout))


def is_gone(pid: int) -> bool:
    """What has ended has no memory, and so no environment, though init may not have reaped it."""
    try:
        return not Path(f"/proc/{pid}/environ").read_bytes()
    except OSError:
        return True


# -- closed -------------------------------------------------------------------------------------


async def test_no_zombie_while_nobody_waits() -> None:
    """The loop reaps a worker when it ends; its handle need not be asked."""
    worker = await start(sleeps)
    os.kill(worker.pid, signal.SIGKILL)
    await anyio.to_thread.run_sync(wait_until_reaped, worker.pid)
    assert worker.returncode == -signal.SIGKILL
    await worker.aclose()


@pytest.mark.parametrize("f", [sleeps, deaf])
async def test_closing_cannot_be_cancelled(
    f: Callable[[InputChannel, OutputChannel, None], None],
) -> None:
    """Leaving the block under cancellation still reaps."""
    worker = await start(f, grace=0.1)
    with anyio.CancelScope() as scope:
        async with worker:
            scope.cancel()
            await anyio.sleep_forever()
    assert worker.returncode is not None
    assert not is_child(worker.pid)


async def test_start_that_is_cancelled_forks_nothing() -> None:
    """``run`` under cancellation ends before the fork or after it, never between."""
    before = open_files()
    for _ in range(20):
        with anyio.CancelScope() as scope:
            scope.cancel()
            await run(sleeps, None)
    assert open_files() == before


INTERRUPTED = """
    import gc, os, signal, sys
    import anyio
    from forkwire import run
    from forkwire.process import guard

    class Interrupt(Exception):
        pass

    def interrupt(number, frame):
        raise Interrupt

    async def f(inp, out, arg):
        await anyio.sleep_forever()

    def fork_and_signal():
        if sys.argv[2] == "before":
            os.kill(os.getpid(), signal.SIGUSR1)
        pid = fork()
        if pid and sys.argv[2] == "after":
            os.kill(os.getpid(), signal.SIGUSR1)
        return pid

    async def main():
        async with await run(f, None) as worker:
            worker.kill()
        signal.signal(signal.SIGUSR1, interrupt)
        before = os.listdir("/proc/self/fd")
        os.fork = fork_and_signal
        try:
            await run(f, None)
        except Interrupt:
            print("interrupted")
        gc.collect()
        await anyio.sleep(0)
        assert os.listdir("/proc/self/fd") == before
        assert guard._workers == {}
        try:
            os.waitpid(-1, 0)
        except ChildProcessError:
            print("no child is left")

    fork = os.fork
    anyio.run(main, backend=sys.argv[1])
"""


@pytest.mark.parametrize("moment", ["before", "after"])
@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_signal_whose_handler_raises_while_forking(backend: str, moment: str) -> None:
    """The exception comes out of ``run``; no worker is left that nobody knows of."""
    program = [sys.executable, "-W", "error", "-c", textwrap.dedent(INTERRUPTED), backend, moment]
    done = subprocess.run(program, capture_output=True, text=True, timeout=PATIENCE, check=False)
    assert (done.stdout, done.stderr) == ("interrupted\nno child is left\n", "")


class Interrupt(Exception):
    pass


def interrupt(number: int, frame: object) -> None:
    raise Interrupt


async def test_signal_that_comes_just_before_signals_are_blocked(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its handler may raise out of the blocking itself: no signal stays blocked."""
    # All in C, so that Python does not get to the handler before.
    come: Any = _thread.interrupt_main
    signal_comes_while_they_are_read = itertools.chain(
        filter(come, [signal.SIGUSR1]), signals.ALL_SIGNALS
    )
    async with await run(echo, None):
        pass
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    handler = signal.signal(signal.SIGUSR1, interrupt)
    try:
        with monkeypatch.context() as patch:
            patch.setattr(signals, "ALL_SIGNALS", signal_comes_while_they_are_read)
            with pytest.raises(Interrupt):
                await run(sleeps, None)
        assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == before
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        signal.signal(signal.SIGUSR1, handler)


async def test_signal_handler_that_uses_the_handle() -> None:
    """A program's own handler may end a worker, at any moment."""
    async with await start(sleeps) as worker:
        stop = signal.signal(signal.SIGUSR1, lambda number, frame: worker.kill())
        try:
            with worker._child._lock:  # as if it came while the handle was in use
                os.kill(os.getpid(), signal.SIGUSR1)
            assert await worker.wait() == -signal.SIGKILL
        finally:
            signal.signal(signal.SIGUSR1, stop)


# -- where there is no pidfd --------------------------------------------------------------------


def refuse(pid: int, flags: int = 0) -> int:
    raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))


@pytest.fixture(params=["absent", "refused"])
def no_pidfd(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """An old kernel, a filter, or another system."""
    if request.param == "absent":
        monkeypatch.delattr(os, "pidfd_open")
    else:
        monkeypatch.setattr(os, "pidfd_open", refuse)


@pytest.mark.usefixtures("no_pidfd")
async def test_life_without_pidfd() -> None:
    """A thread waits instead, and all else is the same."""
    before = open_files()
    async with await run(echo, None) as worker:
        await write_message(worker.output_channel, b"x")
        assert await read_message(worker.input_channel) == b"x"
    assert worker.returncode == 0
    async with await start(sleeps) as worker:
        worker.terminate()
        assert await worker.wait() == -signal.SIGTERM
    async with await start(deaf, grace=0.1) as worker:
        pass
    assert worker.returncode == -signal.SIGKILL
    worker = await start(sleeps)
    os.kill(worker.pid, signal.SIGKILL)
    await anyio.to_thread.run_sync(wait_until_reaped, worker.pid)
    await worker.aclose()
    await anyio.to_thread.run_sync(wait_until_same_files, before)


def wait_until_same_files(before: dict[str, str]) -> None:
    """The waiting thread closes its end when it gets to it."""
    deadline = time.monotonic() + PATIENCE
    while open_files() != before:
        assert time.monotonic() < deadline, before.items() ^ open_files().items()
        time.sleep(0.002)


@pytest.mark.usefixtures("no_pidfd")
async def test_dropped_without_pidfd() -> None:
    """A dropped worker is reaped."""
    workers = [await start(sleeps)]
    pid = workers[0].pid
    with pytest.warns(ResourceWarning):
        drop(workers)
    await anyio.to_thread.run_sync(wait_until_reaped, pid)


@pytest.mark.usefixtures("no_pidfd")
async def test_status_taken_by_another_without_pidfd() -> None:
    """A status that is lost is told, and nothing waits for ever."""
    async with await start(sleeps) as worker:
        os.kill(worker.pid, signal.SIGKILL)
        with contextlib.suppress(ChildProcessError):  # unless the loop was first
            os.waitpid(worker.pid, 0)
        with anyio.fail_after(PATIENCE):
            assert await worker.wait() in (255, -signal.SIGKILL)


# -- forks of others ----------------------------------------------------------------------------


def fork_for_a_while() -> tuple[int, int]:
    """A child that somebody else's code forked: its pid, and what ends it when closed."""
    read_end, write_end = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(write_end)
        os.read(read_end, 1)
        os._exit(0)
    os.close(read_end)
    return pid, write_end


async def test_fork_by_another_holds_no_end() -> None:
    """A child that is not ours delays no end of file."""
    async with await run(echo, None) as worker:
        pid, stop = fork_for_a_while()
        worker.output_channel.close()
        with anyio.fail_after(5):
            assert isinstance(await read_message(worker.input_channel), EndOfFile)
            assert await worker.wait() == 0
        os.close(stop)
        os.waitpid(pid, 0)


def test_no_fork_falls_between_forgetting_a_descriptor_and_closing_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Another thread's fork waits, and so inherits no end that would stay open."""
    read_end, write_end = os.pipe()
    ownership.own(write_end)
    forked: list[tuple[int, int]] = []
    close = os.close

    def fork_first(fd: int) -> None:
        if fd == write_end and thread.ident is None:
            thread.start()
            thread.join(0.2)
        close(fd)

    thread = threading.Thread(target=lambda: forked.append(fork_for_a_while()))
    with monkeypatch.context() as patch:
        patch.setattr(os, "close", fork_first)
        ownership.close(write_end)
    thread.join()
    assert select.select([read_end], [], [], 5)[0]
    ((pid, stop),) = forked
    os.close(stop)
    os.waitpid(pid, 0)
    os.close(read_end)


def test_number_that_is_reused_while_it_is_closed_stays_owned(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Another thread may get the number at once; a fork does not inherit what it opened."""
    old, new = os.pipe(), os.pipe()
    ownership.own(old[1])
    close = os.close

    def close_and_reuse(fd: int) -> None:
        close(fd)
        os.dup2(new[1], fd)
        ownership.own(fd)

    with monkeypatch.context() as patch:
        patch.setattr(os, "close", close_and_reuse)
        ownership.close(old[1])
    os.close(new[1])
    pid, stop = fork_for_a_while()
    ownership.close(old[1])
    assert select.select([new[0]], [], [], 5)[0]
    os.close(stop)
    os.waitpid(pid, 0)
    os.close(old[0])
    os.close(new[0])


def test_fork_while_a_waiting_thread_gets_its_pipe(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where there is no pidfd: another thread's fork does not keep the pipe open."""
    forked: list[tuple[int, int]] = []
    thread = threading.Thread(target=lambda: forked.append(fork_for_a_while()))
    make_pipe = descriptors.make_pipe

    def make_pipe_and_be_forked() -> tuple[int, ...]:
        ends = make_pipe()
        if thread.ident is None:
            thread.start()
            thread.join(0.2)
        return ends

    worker = subprocess.Popen(["true"])
    with monkeypatch.context() as patch:
        patch.setattr(descriptors, "make_pipe", make_pipe_and_be_forked)
        exit_fd = reaping.waited_for_in_a_thread(worker.pid)
    thread.join()
    assert select.select([exit_fd], [], [], 5)[0]
    worker.wait()
    ((pid, stop),) = forked
    os.close(stop)
    os.waitpid(pid, 0)
    os.close(exit_fd)


# -- all at once --------------------------------------------------------------------------------


async def one_life(seed: random.Random) -> None:
    """Start a worker, and end it in some way."""
    async with await run(seed.choice([echo, sleeps]), None, grace=0.5) as worker:
        match seed.randrange(6):
            case 0:
                worker.kill()
            case 1:
                worker.terminate()
            case 2:
                os.kill(worker.pid, signal.SIGKILL)
                await worker.wait()
            case 3:
                with anyio.move_on_after(seed.random() / 500):
                    await worker.wait()
                worker.kill()
            case 4:
                await anyio.to_thread.run_sync(worker.kill)
            case _:
                worker.output_channel.close()
                worker.terminate()
    assert worker.returncode is not None


async def many_lives(seed: random.Random, count: int) -> None:
    async def lives() -> None:
        for _ in range(count):
            await one_life(seed)

    async with anyio.create_task_group() as tasks:
        for _ in range(4):
            tasks.start_soon(lives)


@contextlib.contextmanager
def switching_often() -> Iterator[None]:
    """Threads take turns fifty times as often as usual."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(before / 50)
    yield
    sys.setswitchinterval(before)


@pytest.mark.slow
@pytest.mark.parametrize("with_pidfd", [True, False])
def test_many_at_once_in_several_threads_and_loops(
    monkeypatch: pytest.MonkeyPatch, with_pidfd: bool
) -> None:
    """Workers started and ended from three loops in three threads: all reaped, nothing left."""
    if not with_pidfd:
        monkeypatch.setattr(os, "pidfd_open", refuse)
    for backend in NAMES:  # libuv keeps a pipe for the life of the process
        run_on(backend, many_lives, random.Random(0), 1)
    gc.collect()
    close_templates()  # other tests'
    before = open_files()
    failures: list[BaseException] = []

    def live(backend: str, seed: int) -> None:
        try:
            run_on(backend, many_lives, random.Random(seed), 10)
        except BaseException as error:
            failures.append(error)

    threads = [
        threading.Thread(target=functools.partial(live, backend, seed))
        for seed, backend in enumerate(NAMES)
    ]
    with switching_often():
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert failures == []
    gc.collect()
    wait_until_same_files(before)
    assert guard._workers == {}

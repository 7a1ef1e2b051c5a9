"""What a worker forks in turn is a process like any other: SIGTERM to it is not SIGTERM to us."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from collections.abc import Callable
from typing import Any, Final

import anyio
import pytest

from forkwire import InputChannel, OutputChannel, read_message, run, sync, write_message

from .test_run_support import HOSTS, received, run_in

pytestmark = [
    pytest.mark.filterwarnings("ignore::forkwire.ForkThreadsWarning"),
    # On 3.13 a worker that was not forked on the main thread has a thread that hears SIGTERM.
    pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning"),
]

F = Callable[[InputChannel, OutputChannel, Any], Any]
CONTEXT: Final = multiprocessing.get_context("fork")
TERMINATED: Final = -signal.SIGTERM
LONG: Final = 25  # seconds; the worker is given less

kinds: Final = pytest.mark.parametrize("kind", ["plain", *HOSTS])
anywhere: Final = pytest.mark.parametrize(
    "thread", [False, True], ids=["main-thread", "other-thread"]
)


def plain(inp: InputChannel, out: OutputChannel, body: Callable[[], object]) -> None:
    """Tell what ``body`` answers, and echo until SIGTERM."""
    try:
        sync.write_message(out, repr(body()).encode())
        for message in sync.messages(inp):
            sync.write_message(out, message)
    finally:
        sync.write_message(out, b"finally")


async def in_a_loop(inp: InputChannel, out: OutputChannel, body: Callable[[], object]) -> None:
    """The same, with awaits."""
    try:
        answer = repr(body()).encode()
        for _ in range(10):  # a cancellation would come here
            await anyio.lowlevel.checkpoint()
        await write_message(out, answer)
        while isinstance(message := await read_message(inp), bytes):
            await write_message(out, message)
    finally:
        with anyio.CancelScope(shield=True):
            await write_message(out, b"finally")


def answer_of(kind: Any, body: Callable[[], object], thread: bool = False) -> str:
    """What ``body`` answers in a worker, which then goes on, and is cancelled as ever."""

    async def main() -> str:
        f: F = plain if kind == "plain" else in_a_loop
        backend = None if kind == "plain" else kind
        async with await run(f, body, backend=backend, capture_stderr=True) as worker:
            with anyio.fail_after(20):
                answer = await received(worker)
                await write_message(worker.output_channel, b"goes on")
                assert await received(worker) == b"goes on"
                worker.terminate()
                assert await received(worker) == b"finally"
                assert await worker.wait() == TERMINATED
        assert worker.died is not None
        assert worker.died.stderr_tail == ""
        return answer.decode()

    return run_in("asyncio", thread, main)


def status_of(pid: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def fork_and_terminate(later: bool) -> int:
    """The status of a child that gets SIGTERM: at once, or when it runs."""
    running, tell = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.write(tell, b"+")
            time.sleep(LONG)
        finally:
            os._exit(99)
    os.close(tell)
    if later:
        os.read(running, 1)
    os.close(running)
    os.kill(pid, signal.SIGTERM)
    return status_of(pid)


def start_and_terminate(later: bool) -> int | None:
    """The same with a process of multiprocessing."""
    running, tell = CONTEXT.Pipe(duplex=False)

    def target() -> None:
        tell.send_bytes(b"+")
        time.sleep(LONG)

    process = CONTEXT.Process(target=target if later else time.sleep, args=[LONG][later:])
    process.start()
    if later:
        running.recv_bytes()
    process.terminate()
    process.join()
    return process.exitcode


@anywhere
@kinds
@pytest.mark.parametrize("later", [False, True], ids=["at-once", "later"])
@pytest.mark.parametrize("how", [fork_and_terminate, start_and_terminate], ids=lambda f: f.__name__)
def test_sigterm_ends_what_f_forked_and_not_f(
    kind: Any, how: Callable[[bool], object], later: bool, thread: bool
) -> None:
    """The child dies of it; ``f`` goes on, and its own SIGTERM still cancels it."""
    assert answer_of(kind, lambda: how(later), thread) == str(int(TERMINATED))


@kinds
def test_each_of_thirty_children_that_are_terminated_at_once_ends(kind: Any) -> None:
    """None of them is left running, and none of them says a thing."""

    def body() -> list[int | None]:
        return [start_and_terminate(later=False) for _ in range(30)]

    assert answer_of(kind, body) == repr([int(TERMINATED)] * 30)


@kinds
def test_a_child_that_lives_on_ends_when_it_is_told(kind: Any) -> None:
    """Several at once, terminated after all of them were started, in any order."""

    def body() -> list[int | None]:
        processes = [CONTEXT.Process(target=time.sleep, args=[LONG]) for _ in range(5)]
        for process in processes:
            process.start()
        for process in reversed(processes):
            process.terminate()
        for process in processes:
            process.join()
        return [process.exitcode for process in processes]

    assert answer_of(kind, body) == repr([int(TERMINATED)] * 5)


def test_a_pool_of_processes_in_plain_code() -> None:
    """Leaving ``with Pool()`` terminates its processes: it never hangs."""

    def body() -> int:
        total = 0
        for _ in range(10):
            with CONTEXT.Pool(2) as pool:
                total += sum(pool.map(abs, range(-10, 0)))
        return total

    assert answer_of("plain", body) == "550"


@kinds
def test_a_handler_of_fs_own_stays_in_what_it_forks(kind: Any) -> None:
    """SIGTERM to the child calls it there, and there only."""

    def body() -> tuple[int, list[int]]:
        called = []

        def handler(number: int, frame: object) -> None:
            called.append(number)

        previous = signal.signal(signal.SIGTERM, handler)
        pid = os.fork()
        if pid == 0:
            try:
                os.kill(os.getpid(), signal.SIGTERM)
            finally:
                os._exit(len(called) + 40)
        try:
            return status_of(pid), called
        finally:
            signal.signal(signal.SIGTERM, previous)

    assert answer_of(kind, body) == "(41, [])"


@kinds
def test_a_grandchild_is_like_a_child(kind: Any) -> None:
    """SIGTERM has its default effect however deep the fork."""

    def body() -> int:
        pid = os.fork()
        if pid == 0:
            status = 99
            try:
                status = -fork_and_terminate(later=True)
            finally:
                os._exit(status)
        return status_of(pid)

    assert answer_of(kind, body) == str(int(signal.SIGTERM))


@anywhere
def test_sigterm_to_a_worker_that_forks_without_pause(thread: bool) -> None:
    """It cancels ``f`` wherever it arrives, also while SIGTERM is blocked for a fork."""

    def f(inp: InputChannel, out: OutputChannel, arg: object) -> None:
        try:
            sync.write_message(out, b"ready")
            while True:
                pid = os.fork()
                if pid == 0:
                    os._exit(0)
                status_of(pid)
        finally:
            sync.write_message(out, b"finally")

    async def main() -> None:
        for _ in range(20):
            async with await run(f, None, capture_stderr=True) as worker:
                with anyio.fail_after(20):
                    assert await received(worker) == b"ready"
                    worker.terminate()
                    assert await received(worker) == b"finally"
                    assert await worker.wait() == TERMINATED
            assert worker.died is not None
            assert worker.died.stderr_tail == ""

    run_in("asyncio", thread, main)

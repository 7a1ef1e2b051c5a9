"""SIGTERM cancels ``f``, whatever it is doing, and is how the worker then ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from typing import Any, Final

import anyio
import pytest

from forkwire import (
    EndOfFile,
    InputChannel,
    OutputChannel,
    ProcessWorker,
    read_message,
    run,
    sync,
    write_message,
)
from forkwire.process import child
from forkwire.process.backend import BackendName
from forkwire.process.cancelling import Termination

from .test_run_support import HOSTS, received, run_in, until_asleep

pytestmark = pytest.mark.filterwarnings("ignore::forkwire.ForkThreadsWarning")

F = Callable[[InputChannel, OutputChannel, Any], Any]
anywhere: Final = pytest.mark.parametrize(
    "thread", [False, True], ids=["main-thread", "other-thread"]
)
TERMINATED: Final = -signal.SIGTERM


# -- async f -------------------------------------------------------------------------------------


async def swallows(inp: InputChannel, out: OutputChannel) -> None:
    """Catch the cancellation and go on for a while."""
    try:
        await anyio.sleep_forever()
    except BaseException:
        sync.write_message(out, b"caught")
    finally:
        sync.write_message(out, b"finally")


async def raises_another(inp: InputChannel, out: OutputChannel) -> None:
    """Fail while cleaning up."""
    try:
        await anyio.sleep_forever()
    finally:
        sync.write_message(out, b"caught")
        sync.write_message(out, b"finally")
        raise LookupError("late")


async def is_cancelled_in_a_group(inp: InputChannel, out: OutputChannel) -> None:
    """Be cancelled in several tasks, with a cleanup that awaits."""

    async def clean_up(text: bytes) -> None:
        try:
            await anyio.sleep_forever()
        finally:
            with anyio.CancelScope(shield=True):
                await anyio.sleep(0.01)
                await write_message(out, text)

    async with anyio.create_task_group() as group:
        group.start_soon(clean_up, b"caught")
        await anyio.lowlevel.checkpoint()
        with anyio.CancelScope(shield=False):
            try:
                await read_message(inp)
            finally:
                with anyio.CancelScope(shield=True):
                    await anyio.sleep(0.1)
                    await write_message(out, b"finally")


ASYNC_ENDS: Final = [swallows, raises_another, is_cancelled_in_a_group]


@anywhere
@pytest.mark.parametrize("f", ASYNC_ENDS, ids=lambda f: f.__name__)
@pytest.mark.parametrize("backend", HOSTS)
def test_sigterm_cancels_an_async_f(backend: BackendName, f: Any, thread: bool) -> None:
    """Its cleanup runs; the status is -15 whatever it makes of it; what it raises is printed."""

    async def work(inp: InputChannel, out: OutputChannel, arg: object) -> None:
        await write_message(out, b"ready")
        await f(inp, out)

    async def main() -> None:
        async with await run(work, None, capture_stderr=True) as worker:
            assert await received(worker) == b"ready"
            worker.terminate()
            assert await received(worker) == b"caught"
            assert await received(worker) == b"finally"
            assert isinstance(await read_message(worker.input_channel), EndOfFile)
            assert await worker.wait() == TERMINATED
        assert worker.died is not None
        assert ("LookupError: late" in worker.died.stderr_tail) == (f is raises_another)
        assert bool(worker.died.stderr_tail) == (f is raises_another)

    run_in(backend, thread, main)


# -- plain f -------------------------------------------------------------------------------------


def in_a_loop(inp: InputChannel) -> None:
    while True:
        pass


def in_a_sleep(inp: InputChannel) -> None:
    time.sleep(60)


def in_a_read(inp: InputChannel) -> None:
    sync.read_message(inp)


def in_a_read_between_bouts_of_work(inp: InputChannel) -> None:
    end = time.perf_counter() + 0.04
    while time.perf_counter() < end:
        pass
    sync.read_message(inp)


def in_a_lock(inp: InputChannel) -> None:
    lock = threading.Lock()
    with lock:
        lock.acquire()


def in_a_subprocess(inp: InputChannel) -> None:
    subprocess.run(["sleep", "60"], start_new_session=True, check=True)


def in_a_system_read(inp: InputChannel) -> None:
    os.read(os.pipe()[0], 1)


PLAIN_PLACES: Final = [
    in_a_loop,
    in_a_sleep,
    in_a_read,
    in_a_read_between_bouts_of_work,
    in_a_lock,
    in_a_subprocess,
    in_a_system_read,
]


@anywhere
@pytest.mark.parametrize("place", PLAIN_PLACES, ids=lambda f: f.__name__)
def test_sigterm_interrupts_plain_code(place: Callable[[InputChannel], None], thread: bool) -> None:
    """Wherever it stands: except and finally blocks run, nothing is printed, and -15."""

    def f(inp: InputChannel, out: OutputChannel, arg: object) -> None:
        try:
            sync.write_message(out, b"ready")
            place(inp)
        except SystemExit:
            sync.write_message(out, b"caught")
            raise
        finally:
            sync.write_message(out, b"finally")

    async def main() -> None:
        async with await run(f, None, capture_stderr=True, grace=5) as worker:
            assert await received(worker) == b"ready"
            worker.terminate()
            with anyio.fail_after(4):
                assert await received(worker) == b"caught"
                assert await received(worker) == b"finally"
                assert await worker.wait() == TERMINATED
        assert worker.died is not None
        assert worker.died.stderr_tail == ""

    run_in("asyncio", thread, main)


def returns_normally() -> None:
    return


def raises_something_else() -> None:
    raise LookupError("late")


def exits_with_a_status_of_its_own() -> None:
    sys.exit(7)


@anywhere
@pytest.mark.parametrize(
    "end",
    [returns_normally, raises_something_else, exits_with_a_status_of_its_own],
    ids=lambda f: f.__name__,
)
def test_the_status_is_the_signals_whatever_plain_code_does(
    end: Callable[[], None], thread: bool
) -> None:
    """-15 also when ``f`` returns, exits or raises; what it raises is printed."""

    def f(inp: InputChannel, out: OutputChannel, arg: object) -> None:
        try:
            sync.write_message(out, b"ready")
            time.sleep(60)
        except SystemExit:
            end()

    async def main() -> None:
        async with await run(f, None, capture_stderr=True) as worker:
            assert await received(worker) == b"ready"
            worker.terminate()
            assert await worker.wait() == TERMINATED
        assert worker.died is not None
        text = worker.died.stderr_tail
        assert ("LookupError: late" in text) == (end is raises_something_else)

    run_in("asyncio", thread, main)


@anywhere
@pytest.mark.slow
def test_no_sigterm_is_lost_and_none_tears_a_message(thread: bool) -> None:
    """At a hundred random moments of a plain worker that writes without pause."""

    def f(inp: InputChannel, out: OutputChannel, arg: object) -> None:
        while True:
            sync.write_message(out, b"x" * 100)

    async def main() -> None:
        for number in range(100):
            async with await run(f, None, capture_stderr=True, grace=5) as worker:
                for _ in range(number % 10 + 1):
                    assert await received(worker) == b"x" * 100
                worker.terminate()
                with anyio.fail_after(4):
                    async for message in worker.input_channel:
                        assert message == b"x" * 100
                    assert worker.input_channel.end == EndOfFile(truncated=False)
                    assert await worker.wait() == TERMINATED
            assert worker.died is not None
            assert worker.died.stderr_tail == ""

    run_in("asyncio", thread, main)


@anywhere
@pytest.mark.slow
def test_no_sigterm_is_lost_in_a_read(thread: bool) -> None:
    """Also one that comes just before the worker waits, in each of two hundred."""

    def f(inp: InputChannel, out: OutputChannel, arg: object) -> None:
        for message in sync.messages(inp):
            sync.write_message(out, message)

    async def main() -> None:
        for number in range(200):
            async with await run(f, None, grace=5) as worker:
                for _ in range(number % 3 + 1):
                    await write_message(worker.output_channel, b"x")
                    assert await received(worker) == b"x"
                worker.terminate()
                with anyio.fail_after(4):
                    assert await worker.wait() == TERMINATED

    run_in("asyncio", thread, main)


# -- when it comes -------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["plain", *HOSTS])
def test_sigterm_before_f_starts(kind: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that comes while the worker is being prepared waits, and then ends it: -15."""
    go, signalled = os.pipe()
    die_with_host = child.die_with_host

    def wait_first(birth: child.Birth, termination: Termination) -> None:
        os.read(go, 1)
        die_with_host(birth, termination)

    def plain(inp: InputChannel, out: OutputChannel, arg: object) -> None:
        sync.write_message(out, b"started")

    async def is_async(inp: InputChannel, out: OutputChannel, arg: object) -> None:
        await anyio.sleep_forever()

    async def main() -> None:
        f: F = plain if kind == "plain" else is_async
        backend = None if kind == "plain" else kind
        async with await run(f, None, backend=backend) as worker:
            worker.terminate()
            os.write(signalled, b"+")
            assert await read_message(worker.input_channel) == EndOfFile()
            assert await worker.wait() == TERMINATED

    monkeypatch.setattr(child, "die_with_host", wait_first)
    try:
        anyio.run(main)
    finally:
        os.close(go)
        os.close(signalled)


def clean_up_slowly(inp: InputChannel, out: OutputChannel, arg: object) -> None:
    try:
        sync.write_message(out, b"ready")
        time.sleep(60)
    finally:
        sync.write_message(out, b"cleaning")
        assert sync.read_message(inp) == b"go on"
        sync.write_message(out, b"cleaned")


async def clean_up_slowly_async(inp: InputChannel, out: OutputChannel, arg: object) -> None:
    try:
        await write_message(out, b"ready")
        await anyio.sleep_forever()
    finally:
        with anyio.CancelScope(shield=True):
            await write_message(out, b"cleaning")
            assert await read_message(inp) == b"go on"
            await write_message(out, b"cleaned")


@anywhere
@pytest.mark.parametrize("kind", ["plain", *HOSTS])
def test_a_second_sigterm_changes_nothing(kind: Any, thread: bool) -> None:
    """A cleanup that has begun is not interrupted by another one, or by ten."""

    async def main() -> None:
        f: F = clean_up_slowly if kind == "plain" else clean_up_slowly_async
        async with await run(f, None, backend=None if kind == "plain" else kind) as worker:
            assert await received(worker) == b"ready"
            await until_asleep(worker.pid)
            worker.terminate()
            assert await received(worker) == b"cleaning"
            for _ in range(10):
                worker.terminate()
            await write_message(worker.output_channel, b"go on")
            assert await received(worker) == b"cleaned"
            assert await worker.wait() == TERMINATED

    run_in("asyncio", thread, main)


@pytest.mark.parametrize("code", ["return", "raise"])
def test_a_sigterm_after_f_is_over_still_counts(code: str) -> None:
    """One that comes while the exit callbacks run: nothing is cancelled, and the end is -15."""
    import atexit

    def f(inp: InputChannel, out: OutputChannel, arg: object) -> None:
        fd = os.dup(out.fileno())

        def at_exit() -> None:
            os.kill(os.getpid(), signal.SIGTERM)
            os.write(fd, b"\0\0\0\0")

        atexit.register(at_exit)
        if code == "raise":
            sys.exit(5)

    async def main() -> None:
        async with await run(f, None) as worker:
            assert await received(worker) == b""
            assert await worker.wait() in (TERMINATED, 0 if code == "return" else 5)

    anyio.run(main)


@anywhere
@pytest.mark.parametrize("kind", ["plain", *HOSTS])
def test_the_worker_has_the_mask_of_its_host_but_for_sigterm(kind: Any, thread: bool) -> None:
    """What it starts inherits that: SIGTERM ends a subprocess of a worker."""

    def look(inp: InputChannel, out: OutputChannel, arg: object) -> None:
        masked = signal.pthread_sigmask(signal.SIG_BLOCK, ())
        sync.write_message(out, repr(sorted(map(int, masked))).encode())

    async def look_async(inp: InputChannel, out: OutputChannel, arg: object) -> None:
        look(inp, out, arg)

    async def main() -> None:
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR2, signal.SIGTERM})
        try:
            f: F = look if kind == "plain" else look_async
            async with await run(f, None, backend=None if kind == "plain" else kind) as worker:
                expected = sorted(map(int, before | {signal.SIGUSR2}))
                assert await received(worker) == repr(expected).encode()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)

    run_in("asyncio", thread, main)


async def end_by_hand(worker: ProcessWorker, number: int) -> int:
    os.kill(worker.pid, number)
    return await worker.wait()


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGUSR1, signal.SIGKILL, signal.SIGSEGV])
def test_other_signals_have_their_default_effect(number: signal.Signals) -> None:
    """The host sees the signal's negative number."""

    def f(inp: InputChannel, out: OutputChannel, arg: object) -> None:
        sync.write_message(out, b"ready")
        sync.read_message(inp)

    async def main() -> None:
        async with await run(f, None, capture_stderr=True) as worker:
            assert await received(worker) == b"ready"
            assert await end_by_hand(worker, number) == -number

    anyio.run(main)

"""Workers that die, at any byte and in any way: every call ends in time, and says why."""

from __future__ import annotations

import ctypes
import errno
import os
import signal
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any, Final

import anyio
import pytest

from forkwire import Worker, open_worker
from forkwire.errors import (
    CallCancelledError,
    ForkwireError,
    WorkerDied,
    WorkerStartError,
)

from ..naming import named
from .support_scripts import (
    HELLO,
    LIMIT,
    Child,
    blocking_scripted,
    framed,
    nothing_left,
    scripted,
)

pytestmark = pytest.mark.anyio

MIB: Final = 2**20

# What a worker says, in parts; between two of them it hears the message of that type.
PARTS: Final[dict[str, tuple[Any, ...]]] = {
    "call": (
        framed(HELLO),
        1,
        framed([9, {"message": "hi", "level": 10}], [8, 1, 1, 2, "half"]),
        framed([13, [5, 0]], b"large", b"", [3, 1, "answer"]),
    ),
    "stream": (
        framed(HELLO),
        1,
        framed([6, 1, "a"]),
        framed([6, 1, "b"]),
        framed([3, 1, None]),
    ),
    "cancel": (
        framed(HELLO),
        1,
        framed([8, 1, 1, 2, "half"]),
        5,
        framed([4, 1, {"code": -32001, "message": "stopped"}]),
    ),
}
# Attachments have to be named: the last part of "call" in bytes.
ATTACHED: Final = bytes.fromhex("830301") + b"\x82\xda\x46\x4b\x00\x01\x00\xda\x46\x4b\x00\x01\x01"


def frame_of(body: bytes) -> bytes:
    return len(body).to_bytes(4, sys.byteorder) + body


PARTS["call"] = (*PARTS["call"][:3], framed([13, [5, 0]], b"large", b"") + frame_of(ATTACHED))


def die(how: int, child: Child) -> None:
    """In one of the ways there are."""
    if how == 0:
        os._exit(3)
    if how == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    if how == 2:
        os._exit(0)
    child.close()
    child.wait()


def cut_after(parts: tuple[Any, ...], size: int, how: int) -> Callable[[Child], None]:
    """A script that says the first ``size`` bytes of ``parts``, and dies."""

    def script(child: Child) -> None:
        left = size
        for part in parts:
            if isinstance(part, int):
                child.hear_of(part)
                continue
            child.write(part[:left])
            left -= len(part)
            if left <= 0:
                break
        die(how, child)

    return script


def bytes_of(parts: tuple[Any, ...]) -> list[int]:
    """The sizes of the parts that are written."""
    return [len(part) for part in parts if isinstance(part, bytes)]


async def use(what: str, worker: Worker) -> object:
    """A call, a stream or a cancelled call, to its end."""
    if what == "call":
        return await worker.call("f")
    if what == "stream":
        return [item async for item in worker.stream("count")]
    halfway = anyio.Event()
    outcome: list[object] = []

    async def call() -> None:
        with scope:
            await worker.options(on_progress=lambda *report: halfway.set()).call("f")
        outcome.append("cancelled" if scope.cancelled_caught else "ended")

    scope = anyio.CancelScope()
    async with anyio.create_task_group() as group:
        group.start_soon(call)
        await halfway.wait()
        scope.cancel()
    return outcome[0]


RESULTS: Final = {"call": [b"large", b""], "stream": ["a", "b"], "cancel": "cancelled"}


async def check_cut(what: str, size: int, how: int, patch: pytest.MonkeyPatch) -> None:
    """The worker dies after ``size`` bytes: it ends in time, with an error or the result."""
    parts = PARTS[what]
    whole = size >= sum(bytes_of(parts))
    caught: list[BaseException] = []
    result: object = None
    try:
        async with scripted(cut_after(parts, size, how), patch, grace=0.02) as worker:
            result = await use(what, worker)
    except* WorkerDied as group:
        caught += leaves(group)
    if whole:
        assert (result, caught) == (RESULTS[what], [])
        return
    if caught:
        (died,) = caught
        assert isinstance(died, WorkerDied)
        assert died.returncode == {0: 3, 1: -9, 2: 0, 3: -9}[how]
    else:
        assert result == "cancelled"  # the end of a call that nobody wants is not raised


def leaves(group: BaseExceptionGroup[Any]) -> list[BaseException]:
    found: list[BaseException] = []
    for error in group.exceptions:
        found += leaves(error) if isinstance(error, BaseExceptionGroup) else [error]
    return found


@pytest.mark.parametrize("what", PARTS)
async def test_death_between_any_two_messages(
    what: str, anyio_backend: tuple[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """In every way, before the first and after the last too."""
    edges = [0]
    for size in bytes_of(PARTS[what]):
        edges.append(edges[-1] + size)
    every_way = anyio_backend[0] == "asyncio"
    with nothing_left():
        for index, edge in enumerate(edges):
            for how in range(4) if every_way else (index % 4, 1):
                await check_cut(what, edge, how, monkeypatch)


@pytest.mark.parametrize("what", PARTS)
@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_death_at_any_byte(what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same inside of every message."""
    with nothing_left():
        for size in range(sum(bytes_of(PARTS[what]))):
            await check_cut(what, size, size % 3, monkeypatch)


@pytest.mark.parametrize("how", range(4))
@pytest.mark.parametrize("size", [0, 5, 5 * MIB])
async def test_death_while_a_large_argument_is_written(
    size: int, how: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After any number of its bytes: the call ends, and the memory is let go of."""

    def script(child: Child) -> None:
        child.say(HELLO)
        child.hear()
        child.read(size)
        die(how, child)

    with nothing_left():
        async with scripted(script, monkeypatch, grace=0.05) as worker:
            with pytest.raises(WorkerDied):
                await worker.call("f", bytes(10 * MIB))
            assert worker.statistics().bytes_waiting == 0


async def test_a_worker_that_never_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Calls wait; a cancelled one ends when the worker was killed for it, and the block too."""

    def script(child: Child) -> None:
        child.say(HELLO)
        child.wait()

    with nothing_left():
        async with scripted(script, monkeypatch, grace=0.05) as worker:
            with anyio.move_on_after(0.05) as scope:
                await worker.call("f", bytes(10 * MIB))
            assert scope.cancelled_caught
            with pytest.raises(WorkerDied, match="was killed by its host"):
                await worker.call("f")


async def test_a_worker_that_stops_reading_and_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """What it still says is heard; then it is killed, and calls end."""

    def script(child: Child) -> None:
        child.say(HELLO)
        child.hear_of(1)
        os.close(child.reader)
        child.say([8, 1, 1, 1, ""])
        child.wait()

    with nothing_left():
        async with scripted(script, monkeypatch, grace=0.05) as worker:
            closed = anyio.Event()
            async with anyio.create_task_group() as group:

                async def first() -> None:
                    calls = worker.options(on_progress=lambda *report: closed.set())
                    with pytest.raises(WorkerDied, match="went on"):
                        await calls.call("f")

                group.start_soon(first)
                await closed.wait()
                with pytest.raises(WorkerDied, match="went on"):
                    await worker.call("f", "nobody reads this")


async def test_answers_are_heard_from_a_worker_that_does_not_read(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What was written before the death is not lost, though writing to it fails first."""

    def script(child: Child) -> None:
        child.say(HELLO)
        child.hear_of(1)
        os.close(child.reader)
        child.say([8, 1, 1, 1, ""], [3, 1, "answer"])
        os._exit(7)

    for _ in range(5):
        async with scripted(script, monkeypatch) as worker:
            assert await worker.call("f") == "answer"


# -- without a loop -------------------------------------------------------------------------------


@pytest.mark.parametrize("how", range(4))
@pytest.mark.parametrize("what", ["call", "stream"])
def test_death_between_two_messages_without_a_loop(
    what: str, how: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Blocking calls end too, in every way."""
    sizes = bytes_of(PARTS[what])
    for count in range(len(sizes) + 1):
        size = sum(sizes[:count])
        script = cut_after(PARTS[what], size + (count < len(sizes) and count % 2), how)
        result: object = None
        died: list[WorkerDied] = []
        with nothing_left():
            try:
                with blocking_scripted(script, monkeypatch, grace=0.05) as worker:
                    result = worker.call("f") if what == "call" else list(worker.stream("count"))
            except WorkerDied as error:
                died.append(error)
        if count == len(sizes):
            assert (result, died) == (RESULTS[what], [])
        else:
            assert [error.returncode for error in died] == [{0: 3, 1: -9, 2: 0, 3: -9}[how]]


def test_a_large_argument_without_a_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker that dies while it is written, or never reads it, holds nobody up."""

    def script(child: Child) -> None:
        child.say(HELLO)
        child.hear()
        child.read(5 * MIB)
        os._exit(3)

    with (
        nothing_left(),
        blocking_scripted(script, monkeypatch) as worker,
        pytest.raises(WorkerDied),
    ):
        worker.call("f", bytes(10 * MIB))

    def deaf(child: Child) -> None:
        child.say(HELLO)
        child.wait()

    with nothing_left(), blocking_scripted(deaf, monkeypatch, grace=0.05) as worker:
        with pytest.raises(TimeoutError):
            worker.options(timeout=0.05).call("f", bytes(10 * MIB))
        with pytest.raises(WorkerDied):
            worker.call("f")


# -- real workers ---------------------------------------------------------------------------------


def kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def crash() -> None:
    ctypes.string_at(0)


def leave() -> None:
    os._exit(3)


def leave_in_peace() -> None:
    os._exit(0)


def abort() -> None:
    os.abort()


def become_another() -> None:
    os.execv("/bin/sh", ["sh", "-c", "echo it is me >&2; exit 5"])


def close_all() -> None:
    os.closerange(3, 1000)
    time.sleep(60)


async def nap() -> None:
    await anyio.sleep_forever()


async def numbers() -> Any:
    yield 1
    await anyio.sleep_forever()


def double(n: int) -> int:
    return 2 * n


SERVICE: Final[dict[str, Callable[..., Any]]] = {
    function.__name__: function
    for function in (kill, crash, leave, leave_in_peace, abort, become_another, close_all, nap,
                     numbers, double)
}  # fmt: skip


@asynccontextmanager
async def in_time(worker: Worker) -> AsyncIterator[Worker]:
    with anyio.fail_after(LIMIT):
        async with worker:
            yield worker


DEATHS: Final = [
    (kill, -9, "SIGKILL"),
    (crash, -11, "SIGSEGV"),
    (abort, -6, "SIGABRT"),
    (leave, 3, None),
    (leave_in_peace, 0, None),
    (become_another, 5, None),
]


@pytest.mark.parametrize(("how", "returncode", "name"), DEATHS, ids=named)
async def test_all_that_is_known_of_a_death(
    how: Callable[[], None], returncode: int, name: str | None, capfd: pytest.CaptureFixture[str]
) -> None:
    """Every call in flight ends at once, and each error has the whole story."""
    errors: list[WorkerDied] = []

    async def call(worker: Worker, function: str) -> None:
        with pytest.raises(WorkerDied) as caught:
            await worker.call(function)
        errors.append(caught.value)

    async def stream(worker: Worker) -> None:
        with pytest.raises(WorkerDied) as caught:  # noqa: PT012
            async for _ in worker.stream("numbers"):
                streaming.set()
        errors.append(caught.value)

    with nothing_left(), anyio.fail_after(LIMIT):
        async with open_worker(dict(SERVICE), name="mortal") as worker:
            streaming = anyio.Event()
            async with anyio.create_task_group() as group:
                group.start_soon(stream, worker)
                await streaming.wait()
                for _ in range(30):
                    group.start_soon(call, worker, "nap")
                await worker.ping()
                before = time.monotonic()
                group.start_soon(call, worker, how.__name__)
            assert time.monotonic() - before < 2
            assert worker.returncode == returncode
            with pytest.raises(WorkerDied):
                await worker.call("double", 1)
            with pytest.raises(WorkerDied):
                await worker.ping()
            with pytest.raises(WorkerDied):
                await worker.notify("double", 1)
    assert len(errors) == 32
    assert len({id(error) for error in errors}) == 32
    for error in errors:
        assert (error.pid, error.returncode, error.signal_name) == (worker.pid, returncode, name)
        assert error.rusage is not None
        assert error.in_flight[0] == "numbers (call 1)"
        assert len(error.in_flight) == 21
        assert error.in_flight[-1] == "and 12 more"
        if how is crash:
            assert "in crash" in error.native_stack
        if how is become_another:
            assert "it is me" in error.stderr_tail
    capfd.readouterr()


async def test_answers_before_a_death_are_not_lost() -> None:
    """Whatever was written is delivered, however the death follows."""
    for _ in range(5):
        results: list[int] = []

        async def call(worker: Worker, n: int, results: list[int] = results) -> None:
            results.append(await worker.call("double", n))

        async with (
            in_time(open_worker(dict(SERVICE))) as worker,
            anyio.create_task_group() as group,
        ):
            for n in range(100):
                group.start_soon(call, worker, n)
            while worker.statistics().calls < 100:
                await anyio.lowlevel.checkpoint()
            with pytest.raises(WorkerDied):
                await worker.call("kill")
        assert sorted(results) == [2 * n for n in range(100)]


async def test_a_worker_that_closes_everything_and_goes_on() -> None:
    """It is killed after the grace, and that is said."""
    with nothing_left(), anyio.fail_after(LIMIT):
        async with open_worker({"close_all": close_all}, grace=0.1) as worker:
            with pytest.raises(WorkerDied, match="closed its connection and went on") as caught:
                await worker.call("close_all")
            assert caught.value.signal_name == "SIGKILL"


# -- what holds the pipe --------------------------------------------------------------------------


@contextmanager
def pid_file(path: Path) -> Iterator[Path]:
    """Where a grandchild writes its pid, to be ended."""
    yield path
    for line in path.read_text("ascii").split():
        os.kill(int(line), signal.SIGKILL)


@pytest.mark.parametrize("chatty", [False, True], ids=["silent", "writing"])
async def test_a_grandchild_holds_the_pipe(
    chatty: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also one that writes without end: the death is found nevertheless, and the loop goes on."""
    path = tmp_path / "pid"

    def script(child: Child) -> None:
        child.say(HELLO)
        child.hear_of(1)
        kept = os.dup(child.writer)  # ours are closed in what we fork
        if not os.fork():
            os.setsid()
            path.write_text(str(os.getpid()), "ascii")
            child.writer = kept
            child.say([3, 1, "answer"])
            while True:
                if chatty:
                    child.say(*[[17, "x" * 1000]] * 100)
                else:
                    time.sleep(60)
        child.hear_of(1)
        os._exit(4)

    with pid_file(path), nothing_left():
        async with scripted(script, monkeypatch) as worker:
            assert await worker.call("f") == "answer"
            with pytest.raises(WorkerDied) as caught:
                await worker.call("f")
            assert caught.value.returncode == 4


# -- the start ------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", range(4))
async def test_death_before_the_greeting(how: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is raised where the worker is started; nothing is left."""
    with nothing_left():
        with pytest.raises(WorkerDied) as caught:
            async with scripted(lambda child: die(how, child), monkeypatch, grace=0.05):
                pytest.fail("it has started")
        assert caught.value.returncode == {0: 3, 1: -9, 2: 0, 3: -9}[how]


@pytest.mark.parametrize("pause", [0.001, 60])
async def test_a_greeting_that_takes_too_long(
    pause: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Byte by byte, or not at all: after start_timeout it is given up."""

    def script(child: Child) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        for byte in framed([0, {"protocol": [1], "x": "y" * 10_000}]):
            child.write(bytes([byte]))
            time.sleep(pause)

    with nothing_left(), pytest.raises(WorkerStartError, match="greet") as caught:
        async with scripted(script, monkeypatch, start_timeout=0.1):
            pytest.fail("it has started")
    assert caught.value.errno == errno.ETIMEDOUT


async def test_a_start_that_is_cancelled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is left."""
    with nothing_left():
        with anyio.move_on_after(0.05) as scope:
            async with scripted(Child.wait, monkeypatch):
                pytest.fail("it has started")
        assert scope.cancelled_caught


class Missing:
    def __init__(self) -> None:
        import forkwire_no_such_module  # type: ignore[import-not-found]  # noqa: F401

    def f(self) -> None: ...


class Leaving:
    def __init__(self) -> None:
        sys.exit("no service today")

    def f(self) -> None: ...


class Killed:
    def __init__(self) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def f(self) -> None: ...


@pytest.mark.parametrize(
    ("service", "error", "text"),
    [
        (Missing, ModuleNotFoundError, "forkwire_no_such_module"),
        (Leaving, ForkwireError, "no service today"),
        (Killed, WorkerDied, "SIGKILL"),
        ("forkwire_no_such_service", ModuleNotFoundError, "forkwire_no_such_service"),
    ],
)
async def test_a_service_that_cannot_be_loaded(
    service: object, error: type[BaseException], text: str
) -> None:
    """Its own error is raised here, with its traceback; SystemExit does not end the host."""
    with nothing_left(), pytest.raises(error, match=text), anyio.fail_after(LIMIT):
        async with open_worker(service):
            pytest.fail("it has started")


async def test_the_end_of_a_call_that_was_cancelled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever a worker answers to a cancel, the cancelled scope ends, and the worker lives."""
    answers = [
        [3, 1, "done all the same"],
        [4, 1, {"code": -32001, "message": ""}],
        [4, 1, {"code": -32000, "message": "no"}],
    ]
    for answer in answers:

        def script(child: Child, answer: object = answer) -> None:
            child.say(HELLO)
            child.hear_of(5)
            child.say(answer)
            call = child.hear_of(1)
            child.say([4, call[1], {"code": -32001, "message": "of its own"}])
            child.until_end()

        async with scripted(script, monkeypatch) as worker:
            with anyio.move_on_after(0.01) as scope:
                await worker.call("f")
            assert scope.cancelled_caught
            with pytest.raises(CallCancelledError):
                await worker.call("f")

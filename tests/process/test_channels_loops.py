"""One channel in several event loops and threads: one after the other, and not at once."""

from __future__ import annotations

import contextlib
import itertools
import threading
from collections.abc import Awaitable, Callable, Iterator
from typing import Any, Final

import anyio
import pytest

from forkwire import (
    ChannelBusyError,
    EndOfFile,
    InputChannel,
    OutputChannel,
    ProcessWorkerIPCError,
    WriteOk,
    read_message,
    sync,
    write_message,
)

from .test_channels_support import (
    EDGE,
    LARGER_THAN_PIPE,
    drain,
    joined,
    message,
    open_files,
    reading,
    turns,
    until,
    write_all,
    writing,
)
from .test_channels_support import nothing_left as nothing_left

pytestmark = [pytest.mark.usefixtures("nothing_left")]

LOOPS: Final[dict[str, dict[str, Any]]] = {
    "asyncio": {"backend": "asyncio", "backend_options": {"use_uvloop": False}},
    "uvloop": {"backend": "asyncio", "backend_options": {"use_uvloop": True}},
    "trio": {"backend": "trio"},
}

each_loop = pytest.mark.parametrize("loop", LOOPS)
each_pair = pytest.mark.parametrize(("first", "second"), list(itertools.product(LOOPS, LOOPS)))


def run_in(loop: str, function: Callable[..., Awaitable[Any]], *args: Any) -> Any:
    return anyio.run(function, *args, **LOOPS[loop])


@contextlib.contextmanager
def in_thread(function: Callable[..., Any], *args: Any) -> Iterator[list[Any]]:
    """Run ``function`` beside the block; its answer, or exception, once the block is left."""
    answers: list[Any] = []

    def call() -> None:
        try:
            answers.append(function(*args))
        except BaseException as error:
            answers.append(error)

    thread = threading.Thread(target=call)
    thread.start()
    try:
        yield answers
    finally:
        thread.join(20)
        assert not thread.is_alive()


async def cancelled_read(inp: InputChannel) -> None:
    with anyio.move_on_after(0.01):
        await read_message(inp)


async def cancelled_write(out: OutputChannel, payload: bytes) -> None:
    with anyio.move_on_after(0.01):
        await write_message(out, payload)


# -- one after the other ----------------------------------------------------------------------


@each_pair
def test_reading_in_one_loop_and_then_in_another(first: str, second: str) -> None:
    """What the first one had begun to read, the second goes on with."""

    async def in_first() -> None:
        write_all(fd, message(b"a") + message(b"hello")[:-2])
        assert await read_message(inp) == b"a"
        await cancelled_read(inp)

    async def in_second() -> None:
        async with anyio.create_task_group() as group:
            group.start_soon(anyio.to_thread.run_sync, write_all, fd, message(b"hello")[-2:])
            assert await read_message(inp) == b"hello"

    with reading() as (inp, fd):
        before = open_files()
        for _ in range(2):
            run_in(first, in_first)
            run_in(second, in_second)
        assert open_files() == before


@each_pair
def test_writing_in_one_loop_and_then_in_another(first: str, second: str) -> None:
    """What a loop that is over left unfinished goes out before the next message."""
    payload = bytes(range(250)) * (LARGER_THAN_PIPE // 250)
    with writing() as (out, fd):
        run_in(first, cancelled_write, out, payload)
        with in_thread(drain, fd, LARGER_THAN_PIPE + 12) as answers:
            assert run_in(second, write_message, out, b"next") == WriteOk()
        assert answers == [message(payload) + message(b"next")]


@each_pair
def test_aclose_in_another_loop_finishes_the_message(first: str, second: str) -> None:
    """The peer never sees half of what was begun."""
    with writing() as (out, fd):
        run_in(first, cancelled_write, out, bytes(LARGER_THAN_PIPE))
        with in_thread(drain, fd) as answers:
            run_in(second, out.aclose)
        assert answers == [message(bytes(LARGER_THAN_PIPE))]


@each_loop
def test_a_loop_and_then_none(loop: str) -> None:
    """A channel that was used from a loop works with forkwire.sync, and the other way round."""

    async def talk() -> None:
        await cancelled_read(inp)
        assert await write_message(out, b"from the loop") == WriteOk()

    async def answer() -> None:
        assert await read_message(inp) == b"from the thread"

    with joined() as (inp, out):
        for _ in range(2):
            run_in(loop, talk)
            assert sync.read_message(inp) == b"from the loop"
            assert sync.write_message(out, b"from the thread") == WriteOk()
            run_in(loop, answer)


@each_loop
def test_a_thread_finishes_what_a_loop_began(loop: str) -> None:
    """Writing, or ``finish``, after the loop is over sends the rest first."""
    payload = bytes(LARGER_THAN_PIPE)
    for finish in (True, False):
        with writing() as (out, fd):
            run_in(loop, cancelled_write, out, payload)
            expected = message(payload) + (b"" if finish else message(b"next"))
            with in_thread(drain, fd, len(expected)) as answers:
                if finish:
                    out.finish()
                else:
                    assert sync.write_message(out, b"next") == WriteOk()
            assert answers == [expected]


@each_loop
def test_in_the_loop_and_blocking_by_turns(loop: str) -> None:
    """Inside one task the two fronts may follow each other: the channel is the same."""

    async def talk() -> None:
        with joined() as (inp, out):
            for _ in range(3):
                await cancelled_read(inp)
                assert sync.write_message(out, b"a") == WriteOk()
                assert await read_message(inp) == b"a"
                assert await write_message(out, b"b") == WriteOk()
                assert sync.read_message(inp) == b"b"
                await turns(3)

    run_in(loop, talk)


def test_a_closed_loop_is_forgotten() -> None:
    """Closing a channel whose loop is over needs that loop no more."""
    for loop in LOOPS:
        with joined() as (inp, out):
            run_in(loop, cancelled_read, inp)
            run_in(loop, cancelled_write, out, bytes(LARGER_THAN_PIPE))
            inp.close()
            out.close()


# -- at once ----------------------------------------------------------------------------------


@each_pair
def test_two_loops_cannot_read_at_once(first: str, second: str) -> None:
    """The second one is told, and so is a thread; the first gets its message."""
    with joined() as (inp, out):
        with in_thread(run_in, first, read_message, inp) as answers:
            wait_for(lambda: inp._half._reading)
            with pytest.raises(ChannelBusyError):
                run_in(second, read_message, inp)
            with pytest.raises(ChannelBusyError):
                sync.read_message(inp)
            assert sync.write_message(out, b"for the first") == WriteOk()
        assert answers == [b"for the first"]
        assert sync.write_message(out, b"next") == WriteOk()
        assert run_in(second, read_message, inp) == b"next"


@each_pair
def test_two_loops_cannot_write_at_once(first: str, second: str) -> None:
    """Nothing of the second one's message goes out; the first one's is whole."""
    payload = bytes(LARGER_THAN_PIPE)
    with writing() as (out, fd):
        with in_thread(run_in, first, write_message, out, payload) as answers:
            wait_for(lambda: out._half._rest)
            with pytest.raises(ChannelBusyError, match="another event loop or thread"):
                run_in(second, write_message, out, b"never")
            with pytest.raises(ChannelBusyError):
                sync.write_message(out, b"never")
            assert drain(fd, LARGER_THAN_PIPE + 4) == message(payload)
        assert answers == [WriteOk()]
        assert run_in(second, write_message, out, b"next") == WriteOk()
        assert drain(fd, 8) == message(b"next")


@each_loop
def test_a_loop_cannot_write_while_a_thread_does(loop: str) -> None:
    """It is refused, since to wait for the thread would stop the loop."""
    payload = bytes(LARGER_THAN_PIPE)
    with writing() as (out, fd):
        with in_thread(sync.write_message, out, payload) as answers:
            wait_for(lambda: out._half._rest)
            with pytest.raises(ChannelBusyError):
                run_in(loop, write_message, out, b"never")
            assert drain(fd, LARGER_THAN_PIPE + 4) == message(payload)
        assert answers == [WriteOk()]
        assert run_in(loop, write_message, out, b"next") == WriteOk()


@each_loop
def test_a_loop_cannot_read_while_a_thread_does(loop: str) -> None:
    """As for writing."""
    with joined() as (inp, out):
        with in_thread(sync.read_message, inp) as answers:
            wait_for(lambda: inp._half._reading)
            with pytest.raises(ChannelBusyError):
                run_in(loop, read_message, inp)
            sync.write_message(out, b"x")
        assert answers == [b"x"]


def wait_for(condition: Callable[[], object]) -> None:
    anyio.run(until, condition)


@each_pair
def test_the_two_directions_in_two_loops(first: str, second: str) -> None:
    """A reader in one thread's loop, a writer in another's: they do not concern each other."""
    count = 200

    async def write() -> None:
        for number in range(count):
            assert await write_message(out, bytes([number]) * 10_000) == WriteOk()
        await out.aclose()

    async def read() -> list[bytes]:
        return [item async for item in inp]

    with joined() as (inp, out):
        with in_thread(run_in, first, write), in_thread(run_in, second, read) as answers:
            pass
        assert answers == [[bytes([number]) * 10_000 for number in range(count)]]
        assert sync.read_message(inp) == EDGE


def test_busy_is_an_error_of_the_channel() -> None:
    """It is caught with all other faults of a channel, and as the RuntimeError that it is."""
    assert issubclass(ChannelBusyError, (ProcessWorkerIPCError, RuntimeError))
    assert not isinstance(EndOfFile(), Exception)

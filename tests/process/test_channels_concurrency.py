"""Several tasks, one channel: order, fairness, backpressure, and what keeps a loop busy."""

from __future__ import annotations

import array
import asyncio
import contextlib
import fcntl
import os
import termios
from collections.abc import Awaitable, Callable
from typing import Any

import anyio
import pytest
import trio

from forkwire import InputChannel, WriteOk, read_message, write_message
from forkwire.process.loop_backends import AsyncioBackend
from forkwire.process.reading import Source
from forkwire.process.waiting import FAIR_TURNS

from .test_channels_support import (
    EDGE,
    LARGER_THAN_PIPE,
    drain,
    joined,
    message,
    parsed,
    reading,
    size_of,
    turns,
    until,
    writing,
)
from .test_channels_support import nothing_left as nothing_left

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("nothing_left")]


def unread(fd: int) -> int:
    """The bytes that wait in the pipe."""
    count = array.array("i", [0])
    fcntl.ioctl(fd, termios.FIONREAD, count)
    return count[0]


def living_tasks() -> int:
    """The tasks of the running loop, the system's own included."""
    with contextlib.suppress(RuntimeError):
        return trio.lowlevel.current_statistics().tasks_living
    return len(asyncio.all_tasks())


# -- order ------------------------------------------------------------------------------------


@pytest.mark.parametrize(("count", "size"), [(150, 4), (6, 2_000_000)], ids=["small", "large"])
async def test_messages_go_out_in_the_order_they_were_given(count: int, size: int) -> None:
    """First come, first served: also past the turns that are given away for fairness."""
    given = []

    async def write(number: int) -> None:
        given.append(number)
        await write_message(out, size_of(number) * (size // 4))

    with writing() as (out, fd):
        async with anyio.create_task_group() as group:
            for number in range(count):
                group.start_soon(write, number)
            stream = await anyio.to_thread.run_sync(drain, fd, count * (size + 4))
    messages, _ = parsed(stream)
    assert [int.from_bytes(item[:4], "little") for item in messages] == given


async def test_an_integer_and_a_message_keep_their_order() -> None:
    """They share the queue."""
    with writing() as (out, fd):
        async with anyio.create_task_group() as group:
            group.start_soon(write_message, out, bytes(LARGER_THAN_PIPE))
            await until(lambda: out._half._rest)
            group.start_soon(out.write_int, 7)
            await turns(2)
            group.start_soon(write_message, out, b"last")
            await turns(2)
            total = LARGER_THAN_PIPE + 4 + 4 + 8
            stream = await anyio.to_thread.run_sync(drain, fd, total)
    assert stream[LARGER_THAN_PIPE + 4 :] == size_of(7) + message(b"last")


# -- fairness ---------------------------------------------------------------------------------


async def turns_of_others(work: Callable[[], Awaitable[object]]) -> int:
    """How often another task runs while ``work`` does."""
    count = 0

    async def other() -> None:
        nonlocal count
        while True:
            await turns(1)
            count += 1

    async with anyio.create_task_group() as group:
        group.start_soon(other)
        await turns(1)
        count = 0
        await work()
        group.cancel_scope.cancel()
    return count


async def test_reading_what_is_there_lets_others_run() -> None:
    """A stream that never runs dry does not starve the rest of the program."""
    with reading() as (inp, fd):
        os.write(fd, message(b"x") * 3300)

        async def read_all() -> None:
            for _ in range(3300):
                assert await read_message(inp) == b"x"

        assert await turns_of_others(read_all) >= 3300 // (FAIR_TURNS + 1) - 1


async def test_writing_where_there_is_room_lets_others_run() -> None:
    """Nor does a writer that never has to wait."""
    with writing() as (out, _):

        async def write_many() -> None:
            for _ in range(3300):
                assert await write_message(out, b"x") == WriteOk()

        assert await turns_of_others(write_many) >= 3300 // (FAIR_TURNS + 1) - 1


async def test_an_endless_stream_can_be_cancelled() -> None:
    """A reader that always has data sees its cancellation."""
    with contextlib.closing(InputChannel.from_fd(os.open("/dev/zero", os.O_RDONLY))) as inp:
        with anyio.move_on_after(0.05) as scope:
            async for item in inp:
                assert item == b""
        assert scope.cancelled_caught


async def test_an_endless_writer_can_be_cancelled() -> None:
    """So does a writer that always has room."""
    with writing() as (out, fd):
        async with anyio.create_task_group() as group:
            group.start_soon(anyio.to_thread.run_sync, drain, fd, None)
            with anyio.move_on_after(0.05) as scope:
                while True:
                    await write_message(out, b"x")
            assert scope.cancelled_caught
            await out.aclose()


# -- backpressure -----------------------------------------------------------------------------


async def test_what_nobody_asked_for_stays_in_the_pipe() -> None:
    """A channel reads ahead at most one buffer; then the peer has to wait."""
    with reading() as (inp, fd):
        fcntl.fcntl(fd, fcntl.F_SETPIPE_SZ, 2**20)
        os.write(fd, message(bytes(996)) * 700)
        assert await read_message(inp) == bytes(996)
        await turns(100)
        assert unread(inp.fileno()) >= 700_000 - 65536


async def test_a_cancelled_reader_does_not_read_on() -> None:
    """Its loop does not buffer what comes later."""
    with reading() as (inp, fd):
        with anyio.move_on_after(0.01):
            await read_message(inp)
        for _ in range(10):
            os.write(fd, message(bytes(4996)))
            await turns(5)
        assert unread(inp.fileno()) == 50_000
        assert await read_message(inp) == bytes(4996)


async def test_two_that_both_write_first_do_not_stop_each_other() -> None:
    """With a reader beside the writer on each side, large messages cross."""
    payload = os.urandom(LARGER_THAN_PIPE)
    with joined("pipe") as (inp1, out1), joined("pipe") as (inp2, out2):
        got: list[object] = []

        async def side(inp: Any, out: Any) -> None:
            async with anyio.create_task_group() as group:
                group.start_soon(write_message, out, payload)
                got.append(await read_message(inp))

        async with anyio.create_task_group() as group:
            group.start_soon(side, inp1, out2)
            group.start_soon(side, inp2, out1)
    assert got == [payload, payload]


# -- a quiet loop -----------------------------------------------------------------------------


@pytest.fixture
def callbacks(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Grows with each call of the loop that a descriptor is readable."""
    calls: list[int] = []
    real = Source._on_readable

    def counted(source: Source, backend: AsyncioBackend) -> None:
        calls.append(source.fd)
        real(source, backend)

    monkeypatch.setattr(Source, "_on_readable", counted)
    return calls


async def test_a_loop_does_not_spin_at_the_end(callbacks: list[int]) -> None:
    """A descriptor at its end is always readable: it is heard once."""
    with reading() as (inp, fd):
        async with anyio.create_task_group() as group:
            group.start_soon(read_message, inp)
            await turns(3)
            os.close(fd)
        await turns(100)
        assert len(callbacks) <= 2
        assert await read_message(inp) == EDGE


async def test_a_loop_does_not_spin_on_what_nobody_reads(callbacks: list[int]) -> None:
    """Data that comes while no task reads wakes the loop at most once."""
    with reading() as (inp, fd):
        with anyio.move_on_after(0.01):
            await read_message(inp)
        os.write(fd, message(b"x"))
        await turns(100)
        assert len(callbacks) <= 1
        assert await read_message(inp) == b"x"


async def test_a_loop_does_not_spin_after_an_error(callbacks: list[int]) -> None:
    """A peer that broke the protocol cannot keep us busy."""
    with reading() as (inp, fd):
        async with anyio.create_task_group() as group:

            async def read() -> None:
                with pytest.raises(Exception, match="negative"):
                    await read_message(inp)

            group.start_soon(read)
            await turns(3)
            os.write(fd, size_of(-1) * 1000)
        await turns(100)
        assert len(callbacks) <= 3


async def test_no_task_is_left_behind() -> None:
    """The rest of a cancelled write is the one task in the background, and it ends."""
    with writing() as (out, fd):
        await anyio.to_thread.run_sync(lambda: None)
        before = living_tasks()
        with anyio.move_on_after(0.01):
            await write_message(out, bytes(LARGER_THAN_PIPE))
        assert living_tasks() == before + 1
        await anyio.to_thread.run_sync(drain, fd, LARGER_THAN_PIPE + 4)
        await until(lambda: living_tasks() == before)


async def test_a_number_that_is_used_again() -> None:
    """A loop that watched the old file hears the new one."""
    with joined() as (inp, out), reading() as (other, fd):
        number = inp.fileno()
        with anyio.move_on_after(0.01):
            await read_message(inp)
        inp.close()
        again = InputChannel.from_fd(os.dup2(other.fileno(), number))
        with contextlib.closing(again):
            async with anyio.create_task_group() as group:
                group.start_soon(read_message, again)
                await turns(3)
                os.write(fd, message(b"new"))
        assert out.fileno() != number


async def test_many_channels_at_once() -> None:
    """Each of a hundred conversations gets its own messages."""
    async with anyio.create_task_group() as group:
        with contextlib.ExitStack() as stack:
            pairs = [stack.enter_context(joined()) for _ in range(100)]
            done = []

            async def talk(number: int) -> None:
                inp, out = pairs[number]
                for turn in range(10):
                    await write_message(out, size_of(number) + size_of(turn))
                    assert await read_message(inp) == size_of(number) + size_of(turn)
                done.append(number)

            for number in range(100):
                group.start_soon(talk, number)
            await until(lambda: len(done) == 100)

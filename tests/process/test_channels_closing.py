"""Closing, at every moment and from everywhere: who is woken, what is finished, what is cut."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Callable
from typing import Any

import anyio
import pytest
import trio

from forkwire import WriteOk, read_message, write_message
from forkwire.process.backend import in_trio

from .test_channels_support import (
    EDGE,
    LARGER_THAN_PIPE,
    Operation,
    drain,
    joined,
    message,
    parsed,
    reading,
    turns,
    until,
    writing,
)
from .test_channels_support import nothing_left as nothing_left

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("nothing_left")]

Close = Callable[[Any], None]


def here(channel: Any) -> None:
    channel.close()


def from_a_callback(channel: Any) -> None:
    """In the loop, but in no task: as a signal handler or a timer would."""
    if in_trio():
        trio.lowlevel.current_trio_token().run_sync_soon(channel.close)
    else:
        asyncio.get_running_loop().call_soon(channel.close)


def from_a_thread(channel: Any) -> None:
    thread = threading.Thread(target=channel.close)
    thread.start()
    thread.join(20)


each_close = pytest.mark.parametrize("close", [here, from_a_callback, from_a_thread])
each_kind = pytest.mark.parametrize("kind", ["pipe", "socketpair", "pty"])


@each_close
@each_kind
@pytest.mark.parametrize("question", ["message", "int"])
async def test_a_pending_read_is_woken(close: Close, kind: str, question: str) -> None:
    """It answers the end of the file; the descriptor is closed."""
    with reading(kind) as (inp, _):
        number = inp.fileno()
        async with anyio.create_task_group() as group:
            function = read_message if question == "message" else type(inp).read_int
            operation = Operation(False, group, function, inp)
            await turns(3)
            close(inp)
            assert await operation.over() == [EDGE]
        await until(lambda: not is_open(number))
        assert await read_message(inp) == EDGE


async def test_aclose_wakes_a_pending_read() -> None:
    """Also one that has part of its message; the part is dropped."""
    with reading() as (inp, fd):
        os.write(fd, message(b"hello")[:-1])
        async with anyio.create_task_group() as group:
            operation = Operation(False, group, read_message, inp)
            await turns(3)
            await inp.aclose()
            assert await operation.over() == [EDGE]
        await inp.aclose()


@each_close
@each_kind
async def test_closing_cuts_the_message_being_written(close: Close, kind: str) -> None:
    """Its writer, and those that wait, are told; the descriptor is closed."""
    with writing(kind) as (out, _):
        number = out.fileno()
        async with anyio.create_task_group() as group:
            operations = []
            for payload in (bytes(LARGER_THAN_PIPE), b"second", b"third"):
                operations.append(Operation(False, group, write_message, out, payload))
                await turns(3)
            close(out)
            assert [await operation.over() for operation in operations] == [[EDGE]] * 3
        await until(lambda: not is_open(number))
        assert await write_message(out, b"late") == EDGE


def is_open(fd: int) -> bool:
    try:
        os.fstat(fd)
    except OSError:
        return False
    return True


@each_close
async def test_the_peer_sees_what_was_cut(close: Close) -> None:
    """``close`` does not wait: the other side reads a truncated stream."""
    with joined() as (inp, out):
        async with anyio.create_task_group() as group:
            group.start_soon(write_message, out, bytes(LARGER_THAN_PIPE))
            await until(lambda: out._half._rest)
            close(out)
            end = await read_message(inp)
        assert end.truncated  # type: ignore[union-attr]


@each_close
async def test_closing_cuts_the_rest_of_a_cancelled_write(close: Close) -> None:
    """What went on in the background stops as well, without a word."""
    with writing() as (out, fd):
        with anyio.move_on_after(0.01):
            await write_message(out, bytes(LARGER_THAN_PIPE))
        number = out.fileno()
        close(out)
        await until(lambda: not is_open(number))
        assert 0 < len(drain(fd)) < LARGER_THAN_PIPE


async def test_aclose_lets_the_message_finish() -> None:
    """The one that has begun goes out whole; those that wait get the end."""
    with writing() as (out, fd):
        async with anyio.create_task_group() as group:
            first = Operation(False, group, write_message, out, bytes(LARGER_THAN_PIPE))
            await until(lambda: out._half._rest)
            second = Operation(False, group, write_message, out, b"second")
            await turns(3)
            closing = Operation(False, group, out.aclose)
            await turns(3)
            third = Operation(False, group, write_message, out, b"third")
            stream = await anyio.to_thread.run_sync(drain, fd)
            assert await closing.over() == [None]
            assert await first.over() == [WriteOk()]
            assert await second.over() == await third.over() == [EDGE]
        assert stream == message(bytes(LARGER_THAN_PIPE))


async def test_aclose_lets_the_rest_of_a_cancelled_write_finish() -> None:
    """The background's message is whole before the end of the file."""
    with writing() as (out, fd):
        with anyio.move_on_after(0.01):
            await write_message(out, bytes(LARGER_THAN_PIPE))
        async with anyio.create_task_group() as group:
            group.start_soon(out.aclose)
            stream = await anyio.to_thread.run_sync(drain, fd)
        assert stream == message(bytes(LARGER_THAN_PIPE))
        assert out.closed


async def test_a_cancelled_aclose_closes_at_once() -> None:
    """A peer that does not read cannot keep us from closing."""
    with writing() as (out, fd):
        async with anyio.create_task_group() as group:
            writer = Operation(False, group, write_message, out, bytes(LARGER_THAN_PIPE))
            await until(lambda: out._half._rest)
            with anyio.move_on_after(0.01):
                await out.aclose()
            assert out.closed
            assert await writer.over() == [EDGE]
        assert len(drain(fd)) < LARGER_THAN_PIPE


async def test_closing_several_times() -> None:
    """Each way to close may follow each other."""
    with joined() as (inp, out):
        for _ in range(2):
            await out.aclose()
            out.close()
            out.finish()
            await inp.aclose()
            inp.close()
        assert await read_message(inp) == EDGE
        assert await write_message(out, b"") == EDGE


async def test_two_that_close_at_once() -> None:
    """Both wait for the message, and neither fails."""
    with writing() as (out, fd):
        async with anyio.create_task_group() as group:
            group.start_soon(write_message, out, bytes(LARGER_THAN_PIPE))
            await until(lambda: out._half._rest)
            group.start_soon(out.aclose)
            group.start_soon(out.aclose)
            stream = await anyio.to_thread.run_sync(drain, fd)
        assert parsed(stream) == ([bytes(LARGER_THAN_PIPE)], b"")


async def test_a_cancelled_aclose_in_a_cancelled_scope() -> None:
    """Cleaning up in a ``finally`` under cancellation closes too."""
    with writing() as (out, _):
        with anyio.CancelScope() as scope:
            scope.cancel()
            try:
                await write_message(out, b"never")
            finally:
                await out.aclose()
        assert out.closed


@pytest.mark.parametrize("count", [0, 1, 3, 4, 5, 100, 70_000, 1_900_000])
async def test_a_peer_that_goes_after_any_byte_ends_a_write(count: int) -> None:
    """Wherever it stops reading, the writer and those behind it get the end."""
    with writing() as (out, fd):
        async with anyio.create_task_group() as group:
            first = Operation(False, group, write_message, out, bytes(LARGER_THAN_PIPE))
            await until(lambda: out._half._rest)
            second = Operation(False, group, write_message, out, b"second")
            await anyio.to_thread.run_sync(drain, fd, count)
            os.close(fd)
            assert await first.over() == [EDGE]
            assert await second.over() == [EDGE]


async def test_a_peer_that_goes_leaves_nothing_to_wait_for() -> None:
    """``aclose`` after the peer has gone returns at once."""
    with writing() as (out, fd):
        async with anyio.create_task_group() as group:
            writer = Operation(False, group, write_message, out, bytes(LARGER_THAN_PIPE))
            await until(lambda: out._half._rest)
            os.close(fd)
            await out.aclose()
            assert await writer.over() == [EDGE]

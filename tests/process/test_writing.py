"""The writing half: how many system calls a message costs, and what goes wrong on the way."""

from __future__ import annotations

import errno
import os
import threading
import tracemalloc
from typing import Any

import anyio
import pytest
from hypothesis import given
from hypothesis import strategies as st

from forkwire import ChannelOSError, WriteOk, sync, write_message
from forkwire.process import descriptors, writing
from forkwire.process.writing import limited, unsent

from .test_channels_support import (
    EDGE,
    LARGER_THAN_PIPE,
    Operation,
    Spy,
    drain,
    message,
    turns,
    until,
)
from .test_channels_support import nothing_left as nothing_left
from .test_channels_support import writing as channel

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("nothing_left")]


@pytest.fixture
def writev(monkeypatch: pytest.MonkeyPatch) -> Spy:
    return Spy(monkeypatch, "writev")


@pytest.mark.parametrize("size", [0, 5, 60_000])
async def test_a_message_costs_one_call(writev: Spy, size: int) -> None:
    """Size and payload go out together, without a look whether there is room."""
    with channel() as (out, fd):
        assert await write_message(out, bytes(size)) == WriteOk()
        await out.write_int(7)
        assert [sum(call) for call in writev.calls] == [4 + size, 4]
        assert len(drain(fd, size + 8)) == size + 8


@pytest.mark.parametrize("most", [1, 3, 4, 5, 100])
@pytest.mark.parametrize("blocking", [True, False])
async def test_a_system_that_takes_little_at_a_time(writev: Spy, most: int, blocking: bool) -> None:
    """The rest follows, from the byte where it stopped."""
    writev.most = most
    payload = os.urandom(1000)
    with channel() as (out, fd):
        for content in (payload, b"", b"x"):
            if blocking:
                assert sync.write_message(out, content) == WriteOk()
            else:
                assert await write_message(out, content) == WriteOk()
        assert drain(fd, 1000 + 13) == message(payload) + message(b"") + message(b"x")


async def test_a_payload_is_not_copied() -> None:
    """Writing needs no memory that grows with the payload."""
    payload = bytes(16_000_000)
    with channel() as (out, fd):
        thread = threading.Thread(target=drain_small, args=(fd, len(payload) + 4))
        thread.start()
        tracemalloc.start()
        try:
            assert await write_message(out, payload) == WriteOk()
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
            thread.join()
        assert peak < 2**20


def drain_small(fd: int, count: int) -> None:
    buffer = bytearray(65536)
    while count:
        count -= os.readv(fd, [buffer])


async def test_a_pipe_grows_when_a_large_message_does_not_fit() -> None:
    """Once; closing gives its share of the budget back."""
    with channel() as (out, fd):
        await write_message(out, bytes(60_000))
        drain(fd, 60_004)
        assert (out._half.grown, descriptors._large_pipes) == (False, 0)
        assert await write_message(out, bytes(1000)) == WriteOk()
        async with anyio.create_task_group() as group:
            operation = Operation(False, group, write_message, out, bytes(200_000))
            assert await operation.over() == [WriteOk()]
        assert (out._half.grown, descriptors._large_pipes) == (True, 1)
        out.close()
        assert descriptors._large_pipes == 0


async def test_small_messages_do_not_grow_a_pipe() -> None:
    """However many wait."""
    with channel() as (out, fd):
        async with anyio.create_task_group() as group:
            for _ in range(20):
                group.start_soon(write_message, out, bytes(9996))
            await turns(5)
            assert not out._half.grown
            await anyio.to_thread.run_sync(drain, fd, 200_000)


@pytest.mark.parametrize("blocking", [True, False])
async def test_an_error_of_the_system_drops_the_message(writev: Spy, blocking: bool) -> None:
    """Its writer gets it; what is written later is not mixed with what was left."""

    async def write(content: bytes) -> object:
        if blocking:
            return sync.write_message(out, content)
        return await write_message(out, content)

    with channel() as (out, fd):
        writev.failure = OSError(errno.ENOMEM, "Cannot allocate memory")
        with pytest.raises(ChannelOSError, match="writing descriptor") as caught:
            await write(b"lost")
        assert caught.value.errno == errno.ENOMEM
        writev.failure = None
        assert await write(b"next") == WriteOk()
        assert drain(fd, 8) == message(b"next")


async def test_an_error_in_the_background_reaches_the_next_writer(writev: Spy) -> None:
    """Nobody else could be told; it is told once."""
    with channel() as (out, fd):
        with anyio.move_on_after(0.01):
            await write_message(out, bytes(LARGER_THAN_PIPE))
        writev.failure = OSError(errno.ENOMEM, "Cannot allocate memory")
        drain(fd, 300_000)
        await until(lambda: not out._half._taken)
        writev.failure = None
        with pytest.raises(ChannelOSError, match="Cannot allocate memory"):
            await write_message(out, b"told")
        assert await write_message(out, b"next") == WriteOk()


async def test_an_error_frees_the_turn(writev: Spy) -> None:
    """Those who wait behind a writer that fails go on."""
    with channel() as (out, fd):
        async with anyio.create_task_group() as group:
            answers: list[Any] = []

            async def fail() -> None:
                try:
                    await write_message(out, bytes(LARGER_THAN_PIPE))
                except ChannelOSError as error:
                    writev.failure = None
                    answers.append(error.errno)

            group.start_soon(fail)
            await until(lambda: out._half._rest)
            second = Operation(False, group, write_message, out, b"second")
            await turns(3)
            writev.failure = OSError(errno.EFAULT, "Bad address")
            await anyio.to_thread.run_sync(drain, fd, 300_000)
            await until(lambda: answers)
            group.start_soon(anyio.to_thread.run_sync, drain, fd, 700_000)
            assert await second.over() == [WriteOk()]
        assert answers == [errno.EFAULT]


@pytest.mark.parametrize("number", [errno.EPIPE, errno.ECONNRESET, errno.ENOTCONN, errno.ESHUTDOWN])
async def test_every_way_to_be_gone_is_an_end(writev: Spy, number: int) -> None:
    """Pipes and sockets say it differently."""
    with channel() as (out, _):
        writev.failure = OSError(number, os.strerror(number))
        assert await write_message(out, b"x") == EDGE
        assert sync.write_message(out, b"x") == EDGE


async def test_one_call_is_not_given_too_much(writev: Spy, monkeypatch: pytest.MonkeyPatch) -> None:
    """Systems refuse 2 GiB at once: larger messages go out by parts."""
    monkeypatch.setattr(writing, "MAX_WRITE", 1000)
    payload = os.urandom(3500)
    with channel() as (out, fd):
        assert await write_message(out, payload) == WriteOk()
        assert drain(fd, 3504) == message(payload)
    assert [sum(call) for call in writev.calls] == [1000, 1000, 1000, 504]


parts = st.lists(st.binary(max_size=20), min_size=1, max_size=2)


@given(parts, st.integers(0, 40))
def test_what_is_unsent(content: list[bytes], count: int) -> None:
    """What is left after any number of bytes is the rest of the same bytes."""
    whole = b"".join(content)
    rest = unsent(content, min(count, len(whole)))
    assert b"".join(rest) == whole[min(count, len(whole)) :]
    assert all(len(part) for part in rest[:1])


@given(st.binary(max_size=8), st.binary(max_size=40), st.integers(1, 50))
def test_what_one_call_is_given(header: bytes, payload: bytes, most: int) -> None:
    """The start of the parts, as much as is allowed."""
    before = writing.MAX_WRITE
    try:
        writing.MAX_WRITE = most  # type: ignore[misc]
        given_ = b"".join(limited([header, payload]))
        alone = b"".join(limited([payload]))
    finally:
        writing.MAX_WRITE = before  # type: ignore[misc]
    assert given_ == (header + payload)[:most]
    assert alone == payload[:most]

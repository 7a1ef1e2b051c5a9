"""Cancelling: a read loses no byte, a write leaves no half message, whenever it comes."""

from __future__ import annotations

import contextlib
import functools
import os
import tempfile
import threading
from collections.abc import Callable
from typing import Any, Final

import anyio
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from forkwire import EndOfFile, InputChannel, OutputChannel, WriteOk, read_message, write_message

from .test_channels_support import (
    CANCELS,
    EDGE,
    INSIDE,
    LARGER_THAN_PIPE,
    Operation,
    drain,
    joined,
    message,
    parsed,
    push,
    reading,
    size_of,
    turns,
    until,
    write_all,
    writing,
)
from .test_channels_support import nothing_left as nothing_left

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("nothing_left")]

each_kind = pytest.mark.parametrize("kind", ["pipe", "socketpair"])
Start = Callable[..., Operation]


@pytest.fixture(params=CANCELS)
def cancel_name(request: pytest.FixtureRequest) -> str:
    """Each test runs on the three loops; on asyncio's with scopes and with ``Task.cancel``."""
    name: str = request.param
    return name


@pytest.fixture
def anyio_backend(cancel_name: str) -> tuple[str, dict[str, Any]]:
    return CANCELS[cancel_name][1]


@pytest.fixture
def start(cancel_name: str) -> Start:
    return functools.partial(Operation, CANCELS[cancel_name][0])


examples = functools.partial(
    settings, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


# -- reading ----------------------------------------------------------------------------------

ITEMS: Final[list[Any]] = [
    b"",
    b"a",
    b"hello",
    bytes(range(256)) * 4,
    7,
    -1,
    b"x" * 70_000,
    2**31 - 1,
    b"z",
]
STREAM: Final = b"".join(
    size_of(item) if isinstance(item, int) else message(item) for item in ITEMS
)


async def next_item(inp: InputChannel, number: int) -> bytes | int | EndOfFile:
    expects_int = number < len(ITEMS) and isinstance(ITEMS[number], int)
    return await inp.read_int() if expects_int else await read_message(inp)


chunks = st.one_of(st.integers(0, 8), st.integers(0, 70_000))


@examples(max_examples=60)
@given(steps=st.lists(st.tuples(st.integers(0, 3), chunks, st.integers(0, 3)), max_size=12))
async def test_a_cancelled_read_loses_nothing(
    start: Start, steps: list[tuple[int, int, int]]
) -> None:
    """Cancelled before, with and after the arrival of data in any pieces, at any turn."""
    got: list[Any] = []
    rest = STREAM
    with reading() as (inp, fd):
        async with anyio.create_task_group() as group:
            for before, size, after in steps:
                operation = start(group, next_item, inp, len(got))
                await turns(before)
                rest = rest[push(fd, rest[:size]) :]
                await turns(after)
                got += await operation.stop()
            group.start_soon(anyio.to_thread.run_sync, write_all, fd, rest)
            while len(got) < len(ITEMS):
                got.append(await next_item(inp, len(got)))
    assert got == ITEMS


@pytest.mark.parametrize("held", range(9))
async def test_the_question_may_change_after_a_cancelled_read(start: Start, held: int) -> None:
    """A size that was already looked at can be read as the integer that it was."""
    stream = size_of(100_000) + b"abcd"
    with reading() as (inp, fd):
        async with anyio.create_task_group() as group:
            operation = start(group, read_message, inp)
            os.write(fd, stream[:held])
            await turns(5)
            assert await operation.stop() == []
            os.write(fd, stream[held:])
        assert await inp.read_int() == 100_000
        assert await inp.read_int() == int.from_bytes(b"abcd", "little")


async def test_a_cancelled_read_of_a_large_message_goes_on(start: Start) -> None:
    """Each cancelled read may have moved a part; the last one gets the whole."""
    payload = os.urandom(LARGER_THAN_PIPE)
    with reading() as (inp, fd):
        stream = message(payload)
        cancelled = 0
        async with anyio.create_task_group() as group:
            while stream:
                operation = start(group, read_message, inp)
                await turns(2)
                stream = stream[push(fd, stream[:60_000]) :]
                await turns(2)
                if stream:
                    assert await operation.stop() == []
                    cancelled += operation.cancelled
            assert await operation.over() == [payload]
    assert cancelled > 40


async def test_an_end_is_not_lost_by_cancelling(start: Start) -> None:
    """The read after a cancelled one is told of the end, and how it fell."""
    with reading() as (inp, fd):
        async with anyio.create_task_group() as group:
            operation = start(group, read_message, inp)
            await turns(3)
            os.write(fd, message(b"abc")[:-1])
            os.close(fd)
            got = await operation.stop()
        assert [*got, await read_message(inp)] == [INSIDE] * (len(got) + 1)


async def test_a_read_that_was_cancelled_before_it_began(start: Start) -> None:
    """Data that is already there stays there."""
    with reading() as (inp, fd):
        os.write(fd, message(b"kept"))
        async with anyio.create_task_group() as group:
            assert await start(group, read_message, inp).stop() == []
        assert await read_message(inp) == b"kept"


async def test_a_scope_that_is_already_cancelled() -> None:
    """Reading and writing notice it, also where they need not wait."""
    with joined() as (inp, out):
        assert await write_message(out, b"kept") == WriteOk()
        for attempt in (read_message(inp), inp.read_int(), write_message(out, b"never")):
            with anyio.CancelScope() as scope:
                scope.cancel()
                await attempt
            assert scope.cancelled_caught
        assert await read_message(inp) == b"kept"
        out.close()
        assert await read_message(inp) == EDGE


# -- writing ----------------------------------------------------------------------------------


@each_kind
@pytest.mark.parametrize("drained", [0, 1, 3, 4, 5, 1000, 65_536, 300_000])
async def test_a_write_cancelled_inside_its_message(start: Start, kind: str, drained: int) -> None:
    """What has begun goes out whole, in the background, before the next message."""
    payload = os.urandom(LARGER_THAN_PIPE)
    with writing(kind) as (out, fd):
        async with anyio.create_task_group() as group:
            operation = start(group, write_message, out, bytearray(payload))
            await until(lambda: out._half._rest)
            stream = await anyio.to_thread.run_sync(drain, fd, drained)
            assert await operation.stop() == []
            assert operation.cancelled
            following = start(group, write_message, out, b"next")
            count = LARGER_THAN_PIPE + 4 + 8 - drained
            stream += await anyio.to_thread.run_sync(drain, fd, count)
            assert await following.over() == [WriteOk()]
        assert stream == message(payload) + message(b"next")


async def test_the_rest_does_not_refer_to_the_payload(start: Start) -> None:
    """Once its write was cancelled, the caller may change it: the rest was copied."""
    payload = bytearray(LARGER_THAN_PIPE)
    with writing() as (out, fd):
        async with anyio.create_task_group() as group:
            operation = start(group, write_message, out, payload)
            await until(lambda: out._half._rest)
            await operation.stop()
            payload[:] = b"x" * len(payload)
            payload.append(1)
            stream = await anyio.to_thread.run_sync(drain, fd, LARGER_THAN_PIPE + 4)
            await out.aclose()
        assert stream == message(bytes(LARGER_THAN_PIPE))


@each_kind
async def test_a_write_cancelled_before_its_first_byte(start: Start, kind: str) -> None:
    """Nothing of it goes out."""
    with writing(kind) as (out, fd):
        junk = 0
        while pushed := push(out.fileno(), bytes(4)):
            junk += pushed
        async with anyio.create_task_group() as group:
            operation = start(group, write_message, out, b"never")
            await turns(10)
            assert await operation.stop() == []
            following = start(group, write_message, out, b"next")
            stream = await anyio.to_thread.run_sync(drain, fd, junk + 8)
            assert await following.over() == [WriteOk()]
        assert stream[junk:] == message(b"next")


@pytest.mark.parametrize("withdrawn", [1, 2, 3])
async def test_a_waiting_writer_that_is_cancelled_is_withdrawn(
    start: Start, withdrawn: int
) -> None:
    """Those before and behind it are not concerned."""
    with writing() as (out, fd):
        payloads = [bytes([number]) * 2_000_000 for number in range(5)]
        async with anyio.create_task_group() as group:
            operations = []
            for payload in payloads:
                operations.append(start(group, write_message, out, payload))
                await turns(3)
            assert await operations[withdrawn].stop() == []
            total = 4 * 2_000_004
            stream = await anyio.to_thread.run_sync(drain, fd, total)
            answers = [await operation.over() for operation in operations]
        del payloads[withdrawn]
        assert parsed(stream) == (payloads, b"")
        assert answers.count([WriteOk()]) == 4


async def test_a_writer_cancelled_as_it_gets_its_turn_passes_it_on(start: Start) -> None:
    """The turn is not lost between the one that gives it and the one that takes it."""
    stream = b""
    with writing() as (out, fd):
        async with anyio.create_task_group() as group:
            begin = functools.partial(start, group, write_message, out)
            begin(bytes(LARGER_THAN_PIPE))
            await until(lambda: out._half._rest)
            second = begin(b"second")
            await turns(2)
            third = begin(b"third")
            await turns(2)
            pass_turn = out._half._pass_turn

            def pass_and_cancel() -> None:
                pass_turn()
                second.cancel()

            out._half._pass_turn = pass_and_cancel  # type: ignore[method-assign]
            stream = await anyio.to_thread.run_sync(drain, fd, LARGER_THAN_PIPE + 4 + 9)
            await second.over()
            assert await third.over() == [WriteOk()]
        await out.aclose()
        messages, rest = parsed(stream + drain(fd))
        expected = [b"second", b"third"] if second.answers else [b"third"]
        assert (messages[1:], rest) == (expected, b"")


@examples(max_examples=40)
@given(
    writes=st.lists(
        st.tuples(
            st.sampled_from([0, 10, 3000, 70_000, 300_000]),  # the payload's size
            st.integers(0, 3),  # turns before it is cancelled
            st.booleans(),  # whether it is
            st.one_of(st.integers(0, 9), st.integers(0, 200_000)),  # bytes drained after it
        ),
        min_size=1,
        max_size=8,
    )
)
async def test_whatever_is_cancelled_the_stream_can_be_read(start: Start, writes: Any) -> None:
    """Each message is whole or absent, those acknowledged are there, and all keep their order."""
    stream = b""
    with writing() as (out, fd):
        async with anyio.create_task_group() as group:
            operations = []
            for number, (size, before, cancel, drained) in enumerate(writes):
                operation = start(group, write_message, out, bytes([number]) * size)
                operations.append(operation)
                await turns(before)
                if cancel:
                    operation.cancel()
                os.set_blocking(fd, False)
                try:
                    stream += os.read(fd, drained)
                except BlockingIOError:
                    await turns(1)
            group.start_soon(close_when_done, out, operations)
            stream += await anyio.to_thread.run_sync(drain, fd)
    messages, rest = parsed(stream)
    assert rest == b""
    numbers = [item[0] for item in messages if item]
    assert len(set(numbers)) == len(numbers)
    in_order = [number for number in numbers if writes[number][1]]  # those that had begun
    assert in_order == sorted(in_order)
    for number, (size, *_) in enumerate(writes):
        if operations[number].answers == [WriteOk()] and size:
            assert number in numbers
    assert all(item == item[:1] * writes[item[0]][0] for item in messages if item)


async def close_when_done(out: OutputChannel, operations: list[Operation]) -> None:
    for operation in operations:
        await operation.over()
    await out.aclose()


async def test_a_peer_that_goes_away_during_the_rest(start: Start) -> None:
    """Nobody waits for the background; the next writer is told."""
    with writing() as (out, fd):
        async with anyio.create_task_group() as group:
            operation = start(group, write_message, out, bytes(LARGER_THAN_PIPE))
            await until(lambda: out._half._rest)
            assert await operation.stop() == []
        os.close(fd)
        assert await write_message(out, b"next") == EDGE


# -- files ------------------------------------------------------------------------------------


class Gate:
    """A system call that is held up in its thread."""

    def __init__(self, real: Callable[..., int]) -> None:
        self.real = real
        self.entered, self.opened = threading.Event(), threading.Event()

    def __call__(self, fd: int, buffers: Any) -> int:
        self.entered.set()
        assert self.opened.wait(20)
        return self.real(fd, buffers)


async def cancelled_in_thread(
    monkeypatch: pytest.MonkeyPatch, name: str, begin: Callable[[], Operation]
) -> list[Any]:
    gate = Gate(getattr(os, name))
    monkeypatch.setattr(os, name, gate)
    operation = begin()
    await until(gate.entered.is_set)
    operation.cancel()
    await turns(3)
    operation.cancel()
    await turns(3)
    assert not operation.ended
    monkeypatch.setattr(os, name, gate.real)
    gate.opened.set()
    return await operation.over()


async def test_a_cancelled_read_of_a_file_loses_nothing(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its thread is waited for: two of them would tear the file apart."""
    with tempfile.TemporaryFile() as file:
        file.write(b"".join(message(size_of(number)) for number in range(20_000)))
        file.flush()
        file.seek(0)
        got: list[object] = []
        with contextlib.closing(InputChannel.from_fd(os.dup(file.fileno()))) as inp:
            async with anyio.create_task_group() as group:
                begin = functools.partial(start, group, read_message, inp)
                got.extend(await cancelled_in_thread(monkeypatch, "read", begin))
            got.extend([item async for item in inp])
            assert inp.end == EDGE
        assert got == [size_of(number) for number in range(20_000)]


async def test_a_cancelled_write_of_a_file_is_whole(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its thread is waited for, and the next message follows."""
    with tempfile.TemporaryFile() as file:
        with contextlib.closing(OutputChannel.from_fd(os.dup(file.fileno()))) as out:
            async with anyio.create_task_group() as group:
                begin = functools.partial(start, group, write_message, out, b"first")
                await cancelled_in_thread(monkeypatch, "write", begin)
            assert await write_message(out, b"next") == WriteOk()
        file.seek(0)
        assert file.read() == message(b"first") + message(b"next")

"""The reading half: how many system calls a message costs, where its bytes go, what fails."""

from __future__ import annotations

import asyncio
import errno
import os
import threading
import tracemalloc
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import anyio
import pytest

from forkwire import EndOfFile, InputChannel, ProcessWorkerIPCError, read_message, sync
from forkwire.process import descriptors
from forkwire.wire import framing
from forkwire.wire.framing import BUFFER_SIZE

from .test_channels_support import (
    EDGE,
    Operation,
    Spy,
    message,
    push,
    reading,
    size_of,
    turns,
    write_all,
)
from .test_channels_support import nothing_left as nothing_left

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("nothing_left")]


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> Spy:
    return Spy(monkeypatch, "read")


@pytest.fixture
def readv(monkeypatch: pytest.MonkeyPatch) -> Spy:
    return Spy(monkeypatch, "readv")


async def test_one_read_takes_many_messages(read: Spy) -> None:
    """A hundred small messages that are there cost one system call."""
    with reading() as (inp, fd):
        os.write(fd, message(b"small") * 100)
        for _ in range(100):
            assert await read_message(inp) == b"small"
        assert len(read.calls) == 1


async def test_a_message_that_is_there_costs_one_call(read: Spy) -> None:
    """There is no wait and no second look: a reply is answered at once."""
    with reading() as (inp, fd):
        for count in range(1, 20):
            os.write(fd, message(b"reply"))
            assert await read_message(inp) == b"reply"
            assert len(read.calls) == count


async def test_a_large_payload_is_read_into_its_own_memory(read: Spy, readv: Spy) -> None:
    """After the first look, each call names the rest of the payload and the buffer behind it."""
    size = 2_000_000
    with reading() as (inp, fd):
        async with anyio.create_task_group() as group:
            stream = message(bytes(size)) + message(b"next")
            group.start_soon(anyio.to_thread.run_sync, write_all, fd, stream)
            assert await read_message(inp) == bytes(size)
        assert await read_message(inp) == b"next"
    assert read.calls[0] == [BUFFER_SIZE]
    assert all(call[1:] == [BUFFER_SIZE] for call in readv.calls)
    assert len(readv.calls) > 1


async def test_a_large_payload_exists_once() -> None:
    """From the pipe to the caller nothing is copied in memory."""
    size = 16_000_000
    stream = memoryview(message(bytes(size)))
    with reading() as (inp, fd):
        thread = threading.Thread(target=write_all, args=(fd, stream))
        tracemalloc.start()
        try:
            thread.start()
            got = await read_message(inp)
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
            thread.join()
    assert got == bytes(size)
    assert peak < size + 2**20


async def test_a_pipe_grows_with_its_first_large_message() -> None:
    """Small ones leave it as it is; closing gives its share of the budget back."""
    with reading() as (inp, fd):
        os.write(fd, message(bytes(1000)))
        await read_message(inp)
        assert (inp._half.grown, descriptors._large_pipes) == (False, 0)
        os.write(fd, size_of(10**6) + bytes(1000))
        async with anyio.create_task_group() as group:
            operation = Operation(False, group, read_message, inp)
            await turns(3)
            os.write(fd, bytes(1000))
            await turns(3)
            await operation.stop()
        assert (inp._half.grown, descriptors._large_pipes) == (True, 1)
        assert push(fd, bytes(2**20)) >= 10**6
        inp.close()
        assert descriptors._large_pipes == 0


@pytest.mark.parametrize(
    "anyio_backend",
    [("asyncio", {"use_uvloop": False}), ("asyncio", {"use_uvloop": True})],
    ids=["asyncio", "uvloop"],
)
async def test_a_loop_is_asked_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """The descriptor stays registered from one wait to the next."""
    with reading() as (inp, fd):
        added: list[int] = []
        backend_type = type(inp._half._backend or await bound(inp, fd))
        real = backend_type.watch

        def watch(self: Any, number: int, callback: Callable[[], None]) -> Any:
            added.append(number)
            return real(self, number, callback)

        monkeypatch.setattr(backend_type, "watch", watch)
        async with anyio.create_task_group() as group:
            for _ in range(10):
                operation = Operation(False, group, read_message, inp)
                await turns(3)
                os.write(fd, message(b"x"))
                assert await operation.over() == [b"x"]
        assert added == [inp.fileno()]


async def bound(inp: InputChannel, fd: int) -> Any:
    os.write(fd, message(b""))
    await read_message(inp)
    return inp._half._backend


@pytest.mark.parametrize("waiting", [True, False])
async def test_an_error_of_the_system_reaches_the_reader(read: Spy, waiting: bool) -> None:
    """Whether it comes at the first look or while the loop waits; nothing is lost by it."""
    with reading() as (inp, fd):
        os.write(fd, message(b"whole")[:6])
        refused = OSError(errno.ENOMEM, "Cannot allocate memory")
        async with anyio.create_task_group() as group:
            read.failure = None if waiting else refused
            operation = Operation(False, group, failure_of, read_message, inp)
            await turns(5)
            read.failure = refused
            os.write(fd, message(b"whole")[6:])
            (error,) = await operation.over()
            read.failure = None
        assert error.errno == errno.ENOMEM
        assert await read_message(inp) == b"whole"


@pytest.mark.parametrize("waiting", [True, False])
async def test_no_memory_for_a_message(monkeypatch: pytest.MonkeyPatch, waiting: bool) -> None:
    """It is an error of the channel that says what to do, and goes when there is memory."""

    def refuse(content: bytes) -> None:
        raise MemoryError

    announced = size_of(10**6)
    with reading() as (inp, fd):
        with monkeypatch.context() as patch:
            patch.setattr(framing, "io", SimpleNamespace(BytesIO=refuse))
            if not waiting:
                os.write(fd, announced)
            async with anyio.create_task_group() as group:
                operation = Operation(False, group, failure_of, read_message, inp)
                await turns(5)
                if waiting:
                    os.write(fd, announced)
                (error,) = await operation.over()
            assert str(error) == "no memory for a message of 1000000 bytes: lower max_message_size"
            assert type(await failure_of(read_message, inp)) is ProcessWorkerIPCError
        async with anyio.create_task_group() as group:
            group.start_soon(anyio.to_thread.run_sync, write_all, fd, bytes(10**6))
            assert await read_message(inp) == bytes(10**6)


async def failure_of(function: Callable[..., Any], *args: Any) -> Exception:
    with pytest.raises(ProcessWorkerIPCError) as caught:
        await function(*args)
    return caught.value


async def test_the_end_is_remembered(read: Spy) -> None:
    """A descriptor at its end is not read again."""
    with reading() as (inp, fd):
        os.close(fd)
        for _ in range(5):
            assert await read_message(inp) == EDGE
            assert await inp.read_int() == EDGE
            assert sync.read_message(inp) == EDGE
        assert len(read.calls) == 1


async def test_a_reader_in_a_cancelled_task_frees_the_channel() -> None:
    """The next reader is not refused."""
    with reading() as (inp, fd):
        async with anyio.create_task_group() as group:
            for _ in range(5):
                assert await Operation(False, group, read_message, inp).stop() == []
            os.write(fd, message(b"x"))
            assert await read_message(inp) == b"x"


@pytest.mark.parametrize("anyio_backend", [("asyncio", {"debug": True})], ids=["debug"])
async def test_a_loop_in_debug_mode_finds_nothing() -> None:
    """Asyncio's debug mode complains about calls from the wrong thread: there are none."""
    for where in ("here", "thread"):
        with reading() as (inp, _):
            task = asyncio.ensure_future(read_message(inp))
            await turns(3)
            if where == "here":
                inp.close()
            else:
                await anyio.to_thread.run_sync(inp.close)
            assert await task == EndOfFile()

"""What the tests of channels share; it holds no test."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import pty
import socket
import struct
import time
import tty
from collections.abc import Callable, Iterator
from typing import Any, Final, TypeVar

import anyio
import anyio.lowlevel
import anyio.to_thread
import pytest
import uvloop
from anyio.abc import TaskGroup

from forkwire import (
    EndOfFile,
    InputChannel,
    OutputChannel,
    WriteOk,
    read_message,
    sync,
    write_message,
)
from forkwire.process import descriptors
from forkwire.process.waiting import this_threads_waker

__all__ = [
    "CANCELS",
    "EDGE",
    "FRONTS",
    "INSIDE",
    "LARGER_THAN_PIPE",
    "AsyncFront",
    "BlockingFront",
    "Front",
    "Operation",
    "Spy",
    "closing_fd",
    "drain",
    "ends",
    "joined",
    "message",
    "nothing_left",
    "open_files",
    "parsed",
    "push",
    "reading",
    "size_of",
    "turns",
    "until",
    "write_all",
    "writing",
]

T = TypeVar("T")

# libuv keeps a pipe for signals from the first loop on.
uvloop.new_event_loop().close()

EDGE: Final = EndOfFile(truncated=False)
INSIDE: Final = EndOfFile(truncated=True)

# More than a pipe holds, also after it was made large.
LARGER_THAN_PIPE: Final = 3_000_000


def size_of(number: int) -> bytes:
    return struct.pack("=i", number)


def message(payload: bytes) -> bytes:
    return size_of(len(payload)) + payload


def parsed(stream: bytes) -> tuple[list[bytes], bytes]:
    """The messages of ``stream``, and what is left of it."""
    found = []
    while len(stream) >= 4 and len(stream) - 4 >= (size := struct.unpack("=i", stream[:4])[0]):
        found.append(stream[4 : 4 + size])
        stream = stream[4 + size :]
    return found, stream


def ends(kind: str = "pipe") -> tuple[int, int]:
    """Two descriptors: what is written to the second can be read from the first."""
    if kind == "pipe":
        return os.pipe()
    if kind == "socketpair":
        reader, writer = socket.socketpair()
        return reader.detach(), writer.detach()
    assert kind == "pty"
    master, slave = pty.openpty()
    tty.setraw(slave)
    return master, slave


def close_fd(fd: int) -> None:
    with contextlib.suppress(OSError):
        os.close(fd)


@contextlib.contextmanager
def closing_fd(*fds: int) -> Iterator[None]:
    try:
        yield
    finally:
        for fd in fds:
            close_fd(fd)


@contextlib.contextmanager
def joined(kind: str = "pipe", **options: Any) -> Iterator[tuple[InputChannel, OutputChannel]]:
    """A channel to read from, and one that writes to it."""
    read_fd, write_fd = ends(kind)
    inp = InputChannel.from_fd(read_fd, **options)
    out = OutputChannel.from_fd(write_fd)
    with contextlib.closing(inp), contextlib.closing(out):
        yield inp, out


@contextlib.contextmanager
def reading(kind: str = "pipe", **options: Any) -> Iterator[tuple[InputChannel, int]]:
    """A channel to read from, and a bare descriptor to write to it. That may be closed."""
    read_fd, write_fd = ends(kind)
    inp = InputChannel.from_fd(read_fd, **options)
    with contextlib.closing(inp), closing_fd(write_fd):
        yield inp, write_fd


@contextlib.contextmanager
def writing(kind: str = "pipe") -> Iterator[tuple[OutputChannel, int]]:
    """A channel to write to, and a bare descriptor to read from it. That may be closed."""
    read_fd, write_fd = ends(kind)
    out = OutputChannel.from_fd(write_fd)
    with contextlib.closing(out), closing_fd(read_fd):
        yield out, read_fd


def drain(fd: int, count: int | None = None) -> bytes:
    """Block until ``count`` bytes were read from ``fd``, or all up to its end."""
    os.set_blocking(fd, True)
    parts = []
    while count is None or count > 0:
        part = os.read(fd, 2**20 if count is None else count)
        if not part:
            break
        parts.append(part)
        if count is not None:
            count -= len(part)
    return b"".join(parts)


def write_all(fd: int, data: bytes | memoryview) -> None:
    """Block until ``data`` is written."""
    os.set_blocking(fd, True)
    while data:
        data = data[os.write(fd, data) :]


def push(fd: int, data: bytes) -> int:
    """Write as much of ``data`` as there is room for."""
    os.set_blocking(fd, False)
    try:
        return os.write(fd, data)
    except BlockingIOError:
        return 0


async def until(condition: Callable[[], object]) -> None:
    """Wait for what no event announces."""
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline, "it never came true"
        await anyio.sleep(0.001)


def open_files() -> set[str]:
    """The descriptors of this process, and what each refers to."""
    found = set()
    for fd in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            found.add(f"{fd} {os.readlink(f'/proc/self/fd/{fd}')}")
    return {name for name in found if "/fd" not in name.partition(" ")[2]}


@pytest.fixture
def nothing_left() -> Iterator[None]:
    """Fail a test that leaves a descriptor open, or non-blocking, or a pipe counted as large."""
    this_threads_waker()  # a thread that ever waits without a loop keeps one
    before, changed = open_files(), set(descriptors._made_nonblocking)
    large = descriptors._large_pipes
    yield
    deadline = time.monotonic() + 10
    while open_files() - before and time.monotonic() < deadline:
        gc.collect()  # a thread lets go of what is its own a moment after it was joined
    assert open_files() - before == set()
    assert descriptors._made_nonblocking.keys() - changed == set()
    assert descriptors._large_pipes <= large


class AsyncFront:
    """The functions of :mod:`forkwire`."""

    @staticmethod
    async def read(channel: InputChannel) -> bytes | EndOfFile:
        return await read_message(channel)

    @staticmethod
    async def write(channel: OutputChannel, payload: Any) -> WriteOk | EndOfFile:
        return await write_message(channel, payload)

    @staticmethod
    async def read_int(channel: InputChannel) -> int | EndOfFile:
        return await channel.read_int()

    @staticmethod
    async def write_int(channel: OutputChannel, number: Any) -> WriteOk | EndOfFile:
        return await channel.write_int(number)

    @staticmethod
    async def messages(channel: InputChannel) -> list[bytes]:
        return [item async for item in channel]


class BlockingFront:
    """Those of :mod:`forkwire.sync`, each call in a thread."""

    @staticmethod
    async def read(channel: InputChannel) -> bytes | EndOfFile:
        return await in_thread(sync.read_message, channel)

    @staticmethod
    async def write(channel: OutputChannel, payload: Any) -> WriteOk | EndOfFile:
        return await in_thread(sync.write_message, channel, payload)

    @staticmethod
    async def read_int(channel: InputChannel) -> int | EndOfFile:
        return await in_thread(sync.read_int, channel)

    @staticmethod
    async def write_int(channel: OutputChannel, number: Any) -> WriteOk | EndOfFile:
        return await in_thread(sync.write_int, channel, number)

    @staticmethod
    async def messages(channel: InputChannel) -> list[bytes]:
        return await in_thread(lambda: list(sync.messages(channel)))


async def in_thread(function: Callable[..., T], *args: Any) -> T:
    return await anyio.to_thread.run_sync(function, *args, abandon_on_cancel=True)


Front = type[AsyncFront] | type[BlockingFront]

FRONTS: Final[dict[str, tuple[Front, tuple[str, dict[str, Any]]]]] = {
    "asyncio": (AsyncFront, ("asyncio", {"use_uvloop": False})),
    "uvloop": (AsyncFront, ("asyncio", {"use_uvloop": True})),
    "trio": (AsyncFront, ("trio", {})),
    "blocking": (BlockingFront, ("asyncio", {"use_uvloop": False})),
}


class Operation:
    """A call that runs beside the test and can be cancelled: by its scope, or natively."""

    def __init__(self, native: bool, group: TaskGroup, function: Callable[..., Any], *args: Any):
        self.answers: list[Any] = []
        self.cancelled = False
        self._call = function, args
        self._scope = anyio.CancelScope()
        self._over = anyio.Event()
        self._task: asyncio.Task[None] | None = None
        if native:
            self._task = asyncio.get_running_loop().create_task(self._run())
        else:
            group.start_soon(self._run)

    async def _run(self) -> None:
        function, args = self._call
        try:
            with self._scope:
                self.answers.append(await function(*args))
            self.cancelled = self._scope.cancelled_caught
        except asyncio.CancelledError:
            self.cancelled = True
        finally:
            self._over.set()

    def cancel(self) -> None:
        if self._task is None:
            self._scope.cancel()
        else:
            self._task.cancel()

    @property
    def ended(self) -> bool:
        return self._over.is_set() if self._task is None else self._task.done()

    async def over(self) -> list[Any]:
        """Wait for its end; what it answered, if it did."""
        if self._task is None:
            await self._over.wait()
        else:
            await asyncio.wait([self._task])
        return self.answers

    async def stop(self) -> list[Any]:
        """Cancel it, and wait for its end."""
        self.cancel()
        return await self.over()


CANCELS: Final[dict[str, tuple[bool, tuple[str, dict[str, Any]]]]] = {
    "asyncio": (False, ("asyncio", {"use_uvloop": False})),
    "asyncio natively": (True, ("asyncio", {"use_uvloop": False})),
    "uvloop": (False, ("asyncio", {"use_uvloop": True})),
    "uvloop natively": (True, ("asyncio", {"use_uvloop": True})),
    "trio": (False, ("trio", {})),
}


async def turns(count: int) -> None:
    """Let the loop turn."""
    for _ in range(count):
        await anyio.lowlevel.checkpoint()


class Spy:
    """A system call that is counted, and can be made to fail."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
        self.real = getattr(os, name)
        self.calls: list[Any] = []
        self.failure: OSError | None = None
        self.most = 2**31
        monkeypatch.setattr(os, name, self)
        if name == "writev":  # a single buffer is written with the plain call
            monkeypatch.setattr(os, "write", lambda fd, buffer: self(fd, [buffer]))

    def __call__(self, fd: int, buffers: Any) -> Any:
        reads = isinstance(buffers, int)
        self.calls.append([buffers] if reads else [len(buffer) for buffer in buffers])
        if self.failure is not None:
            raise self.failure
        if reads:
            return self.real(fd, min(buffers, self.most))
        left, short = self.most, []
        for buffer in buffers:
            short.append(memoryview(buffer)[:left])
            left -= len(short[-1])
        count: int = self.real(fd, [part for part in short if part])
        return count

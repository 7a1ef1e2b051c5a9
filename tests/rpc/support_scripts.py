"""Workers that are scripts: forked children that write what they like, byte by byte."""

from __future__ import annotations

import contextlib
import gc
import os
import signal
import struct
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final, NoReturn

import anyio
import pytest
import uvloop

from forkwire import Worker, close_templates, open_worker, sync
from forkwire.rpc.data import codec
from forkwire.sync import SyncWorker

__all__ = [
    "HELLO",
    "LIMIT",
    "Child",
    "blocking_scripted",
    "framed",
    "nothing_left",
    "scripted",
]

HELLO: Final = [0, {"protocol": [1]}]

# What takes longer hangs.
LIMIT: Final = 10.0

# Threads that a loop keeps for its next use.
KEPT_THREADS: Final = ("Trio thread", "AnyIO worker thread")


def f(*args: Any) -> Any:
    """What a script answers is up to it."""


def count(*args: Any) -> Iterator[Any]:
    """The same of a stream."""
    yield None


OFFERED: Final[Mapping[str, Callable[..., Any]]] = {"f": f, "count": count}


def framed(*arrays: Any) -> bytes:
    """Messages with their sizes; bytes are attachments."""
    parts = []
    for array in arrays:
        body = array if isinstance(array, bytes) else codec.encode(array)[0]
        parts.append(struct.pack("=i", len(body)) + body)
    return b"".join(parts)


class Child:
    """What a script has to write with."""

    def __init__(self, reader: int, writer: int) -> None:
        self.reader, self.writer = reader, writer
        for fd in (reader, writer):
            os.set_blocking(fd, True)

    def write(self, data: bytes) -> None:
        """All of it, blocking."""
        view = memoryview(data)
        while view:
            view = view[os.write(self.writer, view) :]

    def say(self, *arrays: Any) -> None:
        self.write(framed(*arrays))

    def read(self, size: int) -> bytes:
        found = b""
        while len(found) < size:
            part = os.read(self.reader, size - len(found))
            if not part:
                os._exit(0)
            found += part
        return found

    def hear(self) -> Any:
        """The next message."""
        (size,) = struct.unpack("=i", self.read(4))
        return codec.decode(self.read(size))

    def hear_of(self, kind: int) -> Any:
        """The next message of that type."""
        while True:
            message = self.hear()
            if message[0] == kind:
                return message

    def close(self) -> None:
        """Both pipes, and all that the host gave."""
        os.close(self.reader)
        os.close(self.writer)

    def wait(self) -> NoReturn:
        """For ever, whatever signals say."""
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        while True:
            time.sleep(60)

    def until_end(self) -> None:
        """Read, until there is nothing more."""
        while True:
            self.hear()


@contextlib.asynccontextmanager
async def scripted(
    script: Callable[[Child], object], patch: pytest.MonkeyPatch, **options: Any
) -> AsyncIterator[Worker]:
    """A worker that runs ``script`` instead of serving; the block has to end in time."""

    def serve(input_: Any, output: Any, start: Any) -> None:
        script(Child(input_.fileno(), output.fileno()))
        os._exit(0)

    patch.setattr("forkwire.rpc.starting.serve", serve)
    options = {"grace": 0.3, "start_timeout": 5, **options}
    with anyio.fail_after(LIMIT):
        async with open_worker(dict(OFFERED), **options) as worker:
            yield worker


_warm: list[bool] = []


@contextlib.contextmanager
def blocking_scripted(
    script: Callable[[Child], object], patch: pytest.MonkeyPatch, **options: Any
) -> Iterator[SyncWorker]:
    """The same without a loop."""

    def serve(input_: Any, output: Any, start: Any) -> None:
        script(Child(input_.fileno(), output.fileno()))
        os._exit(0)

    patch.setattr("forkwire.rpc.starting.serve", serve)
    options = {"grace": 0.3, "start_timeout": 5, **options}
    with sync.open_worker(dict(OFFERED), **options) as worker:
        yield worker


def descriptors() -> set[str]:
    """The open ones, and what they are."""
    root = Path(f"/proc/{os.getpid()}/fd" if sys.platform == "linux" else "/dev/fd")
    found = set()
    for entry in root.iterdir():
        with contextlib.suppress(OSError):
            found.add(f"{entry.name} {entry.readlink()}")
    return found


def children() -> set[int]:
    """The processes that this one has to reap."""
    found = set()
    for task in Path("/proc/self/task").iterdir():
        with contextlib.suppress(OSError):
            found |= {int(pid) for pid in (task / "children").read_text("ascii").split()}
    return found


def threads() -> set[int | None]:
    return {t.ident for t in threading.enumerate() if not t.name.startswith(KEPT_THREADS)}


@contextlib.contextmanager
def nothing_left() -> Iterator[None]:
    """The block leaves no descriptor, no process and no thread behind."""
    if not _warm:  # the first worker starts the guard, and libuv keeps a pipe for signals
        _warm.append(True)
        uvloop.new_event_loop().close()
        with sync.open_worker(dict(OFFERED)) as worker:
            worker.call("f")
    close_templates()
    before = descriptors(), children(), threads()
    yield
    close_templates()
    if descriptors() - before[0]:
        gc.collect()
    left = descriptors() - before[0]
    assert left == set(), left
    assert children() - before[1] == set()
    assert threads() - before[2] == set()

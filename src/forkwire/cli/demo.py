"""What ``forkwire demo`` does, not how it is shown: files digested by forked workers.

Host to worker, for each file: its number as a bare integer, its content in messages, an empty
message. Worker to host: the number as soon as it is there, and in the end the digest, a message.
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path
from typing import Final, NamedTuple

import anyio

from .. import (
    EndOfFile,
    InputChannel,
    OutputChannel,
    ProcessWorker,
    read_message,
    run,
    sync,
    write_message,
)

__all__ = ["File", "Round", "find_files", "open_workers"]

ALGORITHM: Final = "sha256"
CHUNK: Final = 2**20  # bytes in a message: whatever the file, we hold no more of it
NOT_OURS: Final = {"site-packages", "dist-packages", "__pycache__"}


def digest_files(inp: InputChannel, out: OutputChannel, algorithm: str) -> None:
    """The worker: a plain function, over when its input is."""
    while not isinstance(number := sync.read_int(inp), EndOfFile):
        sync.write_int(out, number)
        digest = hashlib.new(algorithm)
        for chunk in sync.messages(inp):
            if not chunk:
                break
            digest.update(chunk)
        sync.write_message(out, digest.digest())


@asynccontextmanager
async def open_workers(count: int) -> AsyncIterator[list[ProcessWorker]]:
    """Fork ``count`` workers; all have ended when this is left."""
    async with AsyncExitStack() as stack:
        yield [
            await stack.enter_async_context(await run(digest_files, ALGORITHM))
            for _ in range(count)
        ]


class File(NamedTuple):
    """A file to digest, and its size when it was found."""

    path: Path
    size: int


class Round:
    """``files``, each digested once by whichever worker has room for it.

    ``on_given``: called when a worker was given a file but for its end, so that it cannot have
    finished it; ``on_done``: when one is through. ``left``: how many are not. ``done`` and
    ``size``: how many were digested, and their bytes. ``different``: where the worker's digest is
    not ours. ``unreadable``: what we could not read to its end. ``unfinished``: for each worker
    that ended on the way, how many files it left to the others.
    """

    def __init__(
        self,
        files: Sequence[File],
        *,
        on_given: Callable[[ProcessWorker, File], None] = lambda worker, file: None,
        on_done: Callable[[File], None] = lambda file: None,
    ) -> None:
        self.files = files
        self.on_given = on_given
        self.on_done = on_done
        self.left = len(files)
        self.done = self.size = 0
        self.different: list[File] = []
        self.unreadable: set[File] = set()
        self.unfinished: dict[ProcessWorker, int] = {}
        self._ours: dict[int, tuple[int, bytes]] = {}  # number: size and digest, as we read it

    async def work(self, workers: Sequence[ProcessWorker]) -> None:
        """Returns when all is done, or no worker is left to do it."""
        self._give, self._take = anyio.create_memory_object_stream[int](len(self.files))
        with self._give, self._take:
            for number in range(len(self.files)):
                self._give.send_nowait(number)
            async with anyio.create_task_group() as self._tasks:
                for worker in workers:
                    self._tasks.start_soon(self._employ, worker)

    async def _employ(self, worker: ProcessWorker) -> None:
        """Feed a worker, and collect from it at the same time: neither side waits for ever."""
        in_hand: list[int] = []
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._feed, worker, in_hand)
            await self._collect(worker, in_hand)
            tasks.cancel_scope.cancel()
        await worker.wait()
        self.unfinished[worker] = len(in_hand)
        for number in in_hand:
            self._give.send_nowait(number)

    async def _feed(self, worker: ProcessWorker, in_hand: list[int]) -> None:
        """Each write waits while the worker's pipe is full."""
        out = worker.output_channel
        async for number in self._take:
            file = self.files[number]
            in_hand.append(number)
            if isinstance(await out.write_int(number), EndOfFile):
                return
            size, digest = 0, hashlib.new(ALGORITHM)
            for chunk in self._chunks(file):
                size += len(chunk)
                digest.update(chunk)
                if isinstance(await write_message(out, chunk), EndOfFile):
                    return
            self._ours[number] = size, digest.digest()
            self.on_given(worker, file)
            if isinstance(await write_message(out, b""), EndOfFile):
                return

    def _chunks(self, file: File) -> Iterator[bytes]:
        try:
            with file.path.open("rb") as stream:
                while chunk := stream.read(CHUNK):
                    yield chunk
        except OSError:  # the worker gets what there was, and its digest does not count
            self.unreadable.add(file)

    async def _collect(self, worker: ProcessWorker, in_hand: list[int]) -> None:
        """Returns when the worker has ended."""
        inp = worker.input_channel
        while not isinstance(number := await inp.read_int(), EndOfFile):
            digest = await read_message(inp)
            if isinstance(digest, EndOfFile):
                return
            in_hand.remove(number)
            self._check(number, digest)

    def _check(self, number: int, digest: bytes) -> None:
        file = self.files[number]
        size, ours = self._ours[number]
        if file not in self.unreadable:
            if digest != ours:
                self.different.append(file)
            self.size += size
            self.done += 1
        self.left -= 1
        self.on_done(file)
        if not self.left:
            self._tasks.cancel_scope.cancel()


def find_files(folder: Path) -> list[File]:
    """The real files under ``folder`` that we may read, without installed packages and caches."""
    found = []
    for parent, folders, names in os.walk(folder):
        folders[:] = set(folders) - NOT_OURS
        for path in (Path(parent, name) for name in names):
            with suppress(OSError):  # it went away, or lies where we may not look
                status = path.lstat()
                if stat.S_ISREG(status.st_mode) and os.access(path, os.R_OK):
                    found.append(File(path, status.st_size))
    return sorted(found)

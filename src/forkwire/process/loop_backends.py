"""The event loops as the base layer sees them. Imported where one runs, and nowhere else.

A program that only blocks, a worker of plain functions above all, does without asyncio and anyio,
which take longer to import than all of ours.
"""

from __future__ import annotations

import asyncio
import contextvars
import os
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, Final, TypeVar

import anyio.lowlevel
import anyio.to_thread

from .backend import Backend, BackendName, Stop

__all__ = ["AsyncioBackend", "TrioBackend"]

T = TypeVar("T")


class AsyncioBackend:
    """An asyncio loop; uvloop's is one too."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop: Final = loop
        self.name: BackendName = (
            "uvloop" if type(loop).__module__.partition(".")[0] == "uvloop" else "asyncio"
        )
        self._pid = os.getpid()
        self._tasks: set[asyncio.Task[None]] = set()
        self._writers: dict[int, asyncio.Future[None]] = {}

    def is_current(self) -> bool:
        return asyncio._get_running_loop() is self.loop

    def is_running(self) -> bool:
        return self.loop.is_running() and self._pid == os.getpid()

    def run_soon(self, function: Callable[[], None]) -> None:
        try:
            self.loop.call_soon_threadsafe(function)
        except RuntimeError:  # it is closed
            function()

    def run_later(self, function: Callable[[Backend], None]) -> None:
        self.loop.call_soon(function, self)

    def call(self, function: Callable[[], None]) -> None:
        if self.is_current() or not self.is_running():
            function()
        else:
            self.run_soon(function)

    def spawn(self, function: Callable[[], Awaitable[None]], name: str) -> None:
        async def run() -> None:
            await function()

        task = self.loop.create_task(run(), name=name)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def watch(self, fd: int, callback: Callable[[], None]) -> Stop:
        loop = self.loop
        loop.add_reader(fd, callback)

        def stop(then: Callable[[], None]) -> None:
            def remove() -> None:
                if self._pid == os.getpid() and not loop.is_closed():
                    loop.remove_reader(fd)
                then()

            self.call(remove)

        return stop

    # On the way of every message: no method of ours in between.
    checkpoint = staticmethod(anyio.lowlevel.checkpoint)
    checkpoint_if_cancelled = staticmethod(anyio.lowlevel.checkpoint_if_cancelled)

    async def uninterrupted(self, function: Callable[[], Coroutine[Any, Any, T]]) -> T:
        # A shielded scope holds off the cancellation of scopes, not that of the task itself.
        task = self.loop.create_task(function())
        cancelled: asyncio.CancelledError | None = None
        with anyio.CancelScope(shield=True):
            while not task.done():
                try:
                    await asyncio.wait([task])
                except asyncio.CancelledError as error:
                    cancelled = error
        if cancelled is not None:
            raise cancelled
        return task.result()

    async def in_thread(self, function: Callable[[], T]) -> T:
        return await self.uninterrupted(lambda: anyio.to_thread.run_sync(function))

    async def wait_readable(self, fd: int) -> None:
        await anyio.wait_readable(fd)

    async def wait_writable(self, fd: int) -> None:
        # anyio.wait_writable could only be woken from within a task.
        waiter = self._writers[fd] = self.loop.create_future()
        self.loop.add_writer(fd, self.stop_waiting, fd)
        try:
            await waiter
        finally:
            self.stop_waiting(fd)

    def stop_waiting(self, fd: int) -> None:
        waiter = self._writers.pop(fd, None)
        if waiter is not None:
            self.loop.remove_writer(fd)
            if not waiter.done():
                waiter.set_result(None)


class TrioBackend:
    """A trio run."""

    name: BackendName = "trio"
    loop: asyncio.AbstractEventLoop | None = None

    def __init__(self) -> None:
        import trio

        self._trio = trio
        self._token = trio.lowlevel.current_trio_token()
        self._pid = os.getpid()

    def is_current(self) -> bool:
        try:
            return self._trio.lowlevel.current_trio_token() is self._token
        except RuntimeError:
            return False

    def is_running(self) -> bool:
        if self._pid != os.getpid():
            return False
        try:
            self._token.run_sync_soon(lambda: None, idempotent=True)
        except self._trio.RunFinishedError:
            return False
        return True

    def run_soon(self, function: Callable[[], None]) -> None:
        try:
            self._token.run_sync_soon(function)
        except self._trio.RunFinishedError:
            function()

    def run_later(self, function: Callable[[Backend], None]) -> None:
        self._token.run_sync_soon(function, self)

    def call(self, function: Callable[[], None]) -> None:
        if self.is_current():
            function()
        else:
            self.run_soon(function)

    def spawn(self, function: Callable[[], Awaitable[None]], name: str) -> None:
        context = contextvars.copy_context()  # by default it would be trio's own
        self._trio.lowlevel.spawn_system_task(function, name=name, context=context)

    def watch(self, fd: int, callback: Callable[[], None]) -> Stop:
        scope = self._trio.CancelScope()

        async def wait() -> None:
            with scope:
                while not scope.cancel_called:
                    await self._trio.lowlevel.wait_readable(fd)
                    callback()

        self.spawn(wait, f"forkwire: watch {fd}")

        def stop(then: Callable[[], None]) -> None:
            def cancel() -> None:
                scope.cancel()
                then()

            self.call(cancel)

        return stop

    @property
    def checkpoint(self) -> Callable[[], Awaitable[None]]:
        function: Callable[[], Awaitable[None]] = self._trio.lowlevel.checkpoint
        return function

    @property
    def checkpoint_if_cancelled(self) -> Callable[[], Awaitable[None]]:
        function: Callable[[], Awaitable[None]] = self._trio.lowlevel.checkpoint_if_cancelled
        return function

    async def uninterrupted(self, function: Callable[[], Coroutine[Any, Any, T]]) -> T:
        results: list[T] = []
        with anyio.CancelScope(shield=True):
            results.append(await function())
        return results[0]

    async def in_thread(self, function: Callable[[], T]) -> T:
        return await anyio.to_thread.run_sync(function)

    async def wait_readable(self, fd: int) -> None:
        await self._trio.lowlevel.wait_readable(fd)

    async def wait_writable(self, fd: int) -> None:
        await self._trio.lowlevel.wait_writable(fd)

    def stop_waiting(self, fd: int) -> None:
        if self.is_current():  # else the run is over, and nobody waits
            self._trio.lowlevel.notify_closing(fd)

"""The seam to the event loops: asyncio, uvloop (an asyncio loop) and trio.

Everything that the base layer asks of a loop beyond anyio's own functions. Knows of descriptors
and callbacks, not of channels or workers.
"""

from __future__ import annotations

import sys
from collections.abc import Awaitable, Callable, Coroutine
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeVar

if TYPE_CHECKING:
    import asyncio

__all__ = ["Backend", "BackendName", "Stop", "current_backend", "running_asyncio_loop"]

BackendName = Literal["asyncio", "uvloop", "trio"]
Stop = Callable[[Callable[[], None]], None]
T = TypeVar("T")


class Backend(Protocol):
    """One running event loop, as the base layer sees it."""

    @property
    def name(self) -> BackendName: ...

    @property
    def loop(self) -> asyncio.AbstractEventLoop | None:
        """asyncio's, or uvloop's."""
        ...

    def is_current(self) -> bool:
        """Whether the caller runs inside this very loop."""
        ...

    def is_running(self) -> bool:
        """Whether the loop still runs, in this process."""
        ...

    def run_soon(self, function: Callable[[], None]) -> None:
        """Call ``function`` in the loop, from any thread; here and now if the loop is over."""
        ...

    def run_later(self, function: Callable[[Backend], None]) -> None:
        """Call ``function`` with this, in a later turn of the loop. In the loop's thread."""
        ...

    def call(self, function: Callable[[], None]) -> None:
        """Call ``function`` in the loop's thread: here and now in that very thread, else soon."""
        ...

    def spawn(self, function: Callable[[], Awaitable[None]], name: str) -> None:
        """Run ``function`` in the background, outside every task group of the user's."""
        ...

    def watch(self, fd: int, callback: Callable[[], None]) -> Stop:
        """Call ``callback`` in the loop whenever ``fd`` is readable; answers how to stop.

        ``stop(then)`` may be called from any thread, and calls ``then`` in the loop's thread once
        it holds ``fd`` no more (at once where that is possible): the time to close ``fd``, since
        a number that is used again before would be taken for the old one.
        """
        ...

    @property
    def checkpoint(self) -> Callable[[], Awaitable[None]]: ...

    @property
    def checkpoint_if_cancelled(self) -> Callable[[], Awaitable[None]]: ...

    async def uninterrupted(self, function: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """Await ``function()`` to its end; a cancellation meanwhile comes after it."""
        ...

    async def in_thread(self, function: Callable[[], T]) -> T:
        """Run ``function`` in a thread, which is waited for also when the caller is cancelled."""
        ...

    async def wait_readable(self, fd: int) -> None: ...

    async def wait_writable(self, fd: int) -> None: ...

    def stop_waiting(self, fd: int) -> None:
        """End `wait_readable` and `wait_writable`, in any way. In the loop's thread."""
        ...


def in_trio() -> bool:
    """Whether a trio task is running, without importing trio."""
    lowlevel = getattr(sys.modules.get("trio"), "lowlevel", None)  # it may be half imported
    in_task: Any = getattr(lowlevel, "in_trio_task", None)
    return in_task is not None and bool(in_task())


def running_asyncio_loop() -> asyncio.AbstractEventLoop | None:
    """The one that runs in this thread, without importing asyncio."""
    running: Any = getattr(sys.modules.get("asyncio"), "_get_running_loop", None)
    return None if running is None else running()


def current_backend() -> Backend:
    """The running event loop. Raises :exc:`RuntimeError` outside any."""
    if in_trio():
        from .loop_backends import TrioBackend

        return TrioBackend()
    loop = running_asyncio_loop()
    if loop is None:
        raise RuntimeError("no running event loop")
    from .loop_backends import AsyncioBackend

    return AsyncioBackend(loop)


if not {"anyio", "asyncio", "trio"}.isdisjoint(
    sys.modules
):  # later there may be no descriptor left
    from . import loop_backends as loop_backends

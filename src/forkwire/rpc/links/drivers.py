"""What moves a link: an event loop, or whoever waits for something. `poll_thread` has another.

Each reads when there is something, goes on writing when there is room again, and lets a thread
that is not the loop's wait for a condition.
"""

from __future__ import annotations

import _thread
import contextlib
import functools
import math
import select
import threading
import time
from collections.abc import Callable
from typing import Final, Protocol

from ...errors import ProcessWorkerIPCError
from ...process.backend import Backend
from ...process.waiting import Patience, this_threads_waker, wait_for_any
from .link import Link

__all__ = ["Bell", "Conditions", "Driver", "LoopDriver", "OwnDriver", "as_ipc_error"]

Ready = Callable[[], bool]


class Driver(Protocol):
    """Moves one link."""

    @property
    def link(self) -> Link: ...

    def wait(self, ready: Ready, until: float = math.inf) -> None:
        """Block this thread until ``ready()``, or ``until``, or nothing more can come."""
        ...

    def wake(self) -> None:
        """Something changed that was not read from the link: waits look again. Any thread."""
        ...

    def look(self) -> None:
        """Read what came, if nobody else does."""
        ...

    def settle(self) -> None:
        """Block until what waits is written, if nobody else writes it."""
        ...


class Bell:
    """Wakes one thread, which may be interrupted while it waits, and then waits again or not.

    Lighter than :class:`threading.Event`; to be rung once a condition holds that the one who waits
    looks at before and after.
    """

    __slots__ = ("_lock",)

    def __init__(self) -> None:
        self._lock: Final = _thread.allocate_lock()
        self._lock.acquire()

    def ring(self) -> None:
        """End the wait, or the next one. Any thread."""
        with contextlib.suppress(RuntimeError):  # rung already
            self._lock.release()

    def wait(self, ready: Callable[[], bool], until: float = math.inf) -> bool:
        """Wait until ``ready()``, up to a time of the monotonic clock; whether it is ready."""
        while not ready():
            if until == math.inf:
                self._lock.acquire()
            elif (left := until - time.monotonic()) > 0:
                self._lock.acquire(timeout=min(left, threading.TIMEOUT_MAX))
            else:
                return False
        return True


class Conditions:
    """Lets threads wait for what another one dispatches. No lock is held while they look."""

    def __init__(self, link: Link) -> None:
        self.link: Final = link
        self._bells: Final[list[Bell]] = []
        link.on_dispatched = self.wake

    def wait(self, ready: Ready, until: float = math.inf) -> None:
        self.wait_until(ready, until)

    def wait_until(self, ready: Ready, until: float) -> bool:
        """`wait`, up to a time of the monotonic clock; whether it is ready."""
        bell = Bell()
        self._bells.append(bell)
        try:
            return bell.wait(ready, until)
        finally:
            self._bells.remove(bell)

    def wake(self) -> None:
        for bell in list(self._bells):
            bell.ring()

    def look(self) -> None:
        """The driver's own thread does."""

    def settle(self) -> None:
        """So it does."""


class LoopDriver(Conditions):
    """The loop of ``backend`` reads and writes. Made and started in it."""

    def __init__(self, link: Link, backend: Backend) -> None:
        super().__init__(link)
        self.backend: Final = backend
        self._flushing = threading.Lock()  # held from the first block to the end of the flush
        link.outbox.on_blocked = self._on_blocked
        link.in_driver = backend.call
        link.outbox.later = backend.run_soon

    def start(self) -> None:
        """Begin to read."""
        self.link.source.listen(self.backend, self._on_readable)

    async def roomy(self) -> None:
        """Until what waits to be written is little, or nobody reads it any more. In the loop."""
        import anyio

        outbox = self.link.outbox
        while outbox.crowded and not outbox.gone:
            event = anyio.Event()
            wake = functools.partial(self.backend.call, event.set)
            outbox.when_roomy(wake)
            try:
                await event.wait()
            finally:
                outbox.forget(wake)

    def _on_readable(self) -> None:
        self.link.pump()
        if self.link.ended:
            self.link.source.stop_listening()

    def _on_blocked(self) -> None:
        if self._flushing.acquire(blocking=False):
            self.backend.call(self._begin_flush)

    def _begin_flush(self) -> None:
        self.backend.spawn(self._flush, "forkwire: write")

    async def _flush(self) -> None:
        link = self.link
        try:
            while not link.outbox.flush():
                await link.sink.wait_writable(self.backend)
        except (ProcessWorkerIPCError, OSError) as error:
            if not link.sink.closed:
                link.break_off(as_ipc_error(error))
        finally:
            self._flushing.release()
        link.flushed()
        if link.outbox.waiting and not link.sink.closed:  # it came since the last look
            self._on_blocked()


class OwnDriver:
    """Whoever waits reads and writes: one thread, and others do no more than send."""

    def __init__(self, link: Link) -> None:
        self.link: Final = link
        self._patience: Final = Patience()
        self._thread: Final = threading.get_ident()
        self._waker: Final = this_threads_waker()
        link.outbox.on_blocked = self._on_blocked
        link.in_driver = self._in_driver

    def wait(self, ready: Ready, until: float = math.inf) -> None:
        link = self.link
        while not (ready() or link.ended):
            left = None if until == math.inf else until - time.monotonic()
            if left is not None and left <= 0:
                return
            if link.outbox.waiting:
                flush(link)
            if not self._patience.pays_off(link.pump) and not ready():
                self._sleep(left)

    def wake(self) -> None:
        """There may be another thread after all: one that a handler started sends too."""
        self._on_blocked()

    def look(self) -> None:
        self.link.pump()

    def settle(self) -> None:
        outbox = self.link.outbox
        if outbox.waiting:
            self.wait(lambda: not outbox.waiting)

    def _on_blocked(self) -> None:
        if threading.get_ident() != self._thread:
            self._waker.wake()

    def _in_driver(self, function: Callable[[], None]) -> None:
        function()
        self._on_blocked()  # this thread may sleep: it is to see what has changed

    def _sleep(self, seconds: float | None) -> None:
        link = self.link
        if link.ended:
            return
        wanted = [(link.source.fd, select.POLLIN)]
        if link.outbox.waiting:
            wanted.append((link.sink.fd, select.POLLOUT))
        wait_for_any(wanted, this_threads_waker(), seconds)


def flush(link: Link) -> None:
    """Write what can be written."""
    try:
        link.outbox.flush()
    except (ProcessWorkerIPCError, OSError) as error:
        link.break_off(as_ipc_error(error))


def as_ipc_error(error: Exception) -> ProcessWorkerIPCError:
    return error if isinstance(error, ProcessWorkerIPCError) else ProcessWorkerIPCError(str(error))

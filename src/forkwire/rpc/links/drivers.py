"""What moves a link: an event loop, a thread of its own, or whoever waits for something.

Each reads when there is something, goes on writing when there is room again, and lets a thread
that is not the loop's wait for a condition.
"""

from __future__ import annotations

import math
import select
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Final, Protocol

from ...errors import ProcessWorkerIPCError
from ...process.backend import Backend
from ...process.waiting import Patience, Waker, this_threads_waker, wait_for_any
from .link import Link

__all__ = ["Driver", "LoopDriver", "OwnDriver", "ThreadDriver"]

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


class Conditions:
    """Lets threads wait for what another one dispatches."""

    def __init__(self, link: Link) -> None:
        self.link: Final = link
        self._condition: Final = threading.Condition(threading.RLock())
        link.on_dispatched = self.wake

    def wait(self, ready: Ready, until: float = math.inf) -> None:
        self.wait_until(ready, until)

    def wait_until(self, ready: Ready, until: float) -> bool:
        """`wait`, up to a time of the monotonic clock; whether it is ready."""
        with self._condition:
            while not ready():
                left = until - time.monotonic()
                if left <= 0:
                    return False
                self._condition.wait(min(left, threading.TIMEOUT_MAX))
        return True

    def wake(self) -> None:
        with self._condition:
            self._condition.notify_all()

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

    def start(self) -> None:
        """Begin to read."""
        self.link.source.listen(self.backend, self._on_readable)

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


class ThreadDriver(Conditions):
    """A thread of its own reads and writes, and does what others hand it."""

    def __init__(self, link: Link, name: str) -> None:
        super().__init__(link)
        self._todo: deque[Callable[[], None]] = deque()
        self._waker: Final = Waker()
        self._stopping = False
        self._thread: Final = threading.Thread(
            target=self._run, name=f"forkwire: {name}", daemon=True
        )
        link.outbox.on_blocked = self._on_blocked
        link.in_driver = self._in_driver

    def start(self) -> None:
        """Begin to read."""
        self._thread.start()

    def hand_over(self, function: Callable[[], None]) -> None:
        """Have the thread call ``function``, which neither blocks nor raises."""
        self._todo.append(function)
        self._waker.wake()

    def stop(self) -> None:
        """End the thread, and wait for that. Idempotent."""
        self._stopping = True
        self._waker.wake()
        if self._thread.ident is not None and self._thread is not threading.current_thread():
            self._thread.join()

    def _in_driver(self, function: Callable[[], None]) -> None:
        if threading.current_thread() is self._thread or not self._thread.is_alive():
            function()
        else:
            self.hand_over(function)

    def _on_blocked(self) -> None:
        if threading.current_thread() is not self._thread:
            self._waker.wake()

    def _run(self) -> None:
        while not self._stopping:
            while self._todo:
                self._todo.popleft()()
            self._turn()

    def _turn(self) -> None:
        link = self.link
        wanted = [] if link.ended else [(link.source.fd, select.POLLIN)]
        if link.outbox.waiting:
            wanted.append((link.sink.fd, select.POLLOUT))
        wait_for_any(wanted, self._waker)
        if link.outbox.waiting:
            flush(link)
            link.flushed()
        link.pump()


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
        """There is no other thread."""

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

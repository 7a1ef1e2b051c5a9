"""A thread that waits for descriptors: what drives workers where there is no event loop.

It is a backend as the base layer knows them, as far as that is without ``await``, and the driver
of one link. Whatever has to be done whatever becomes of those that call is done here.
"""

from __future__ import annotations

import _thread
import contextlib
import heapq
import itertools
import logging
import select
import signal
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Final, TypeVar, cast

from ...errors import ProcessWorkerIPCError
from ...process.backend import Backend, BackendName, Stop
from ...process.signals import ALL_SIGNALS, pthread_sigmask
from ...process.waiting import Waker
from .drivers import Bell, Conditions, as_ipc_error
from .link import Link, nothing

__all__ = ["PollDriver", "PollThread"]

T = TypeVar("T")


class PollThread:
    """Calls back when descriptors are ready, one after the other. ``name``: of a child's loops."""

    name: BackendName = "asyncio"

    def __init__(self, label: str) -> None:
        self._watched: Final[dict[int, Callable[[], None]]] = {}
        self._writers: Final[dict[int, Callable[[], None]]] = {}
        self._timers: Final[list[tuple[float, int, Callable[[], None]]]] = []
        self._numbers: Final = itertools.count()
        self._todo: Final[deque[Callable[[], None]]] = deque()
        self._waker: Waker | None = Waker()  # None: at the end
        self._poll: select.poll | None = None  # None: to be made anew
        self._sleeping = False
        self._over = False
        self._drained = False
        self._thread: Final = threading.Thread(
            target=self._run, name=f"forkwire: {label}", daemon=True
        )

    @property
    def backend(self) -> Backend:
        """The thread, as the base layer sees it."""
        return cast("Backend", self)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def stop(self) -> None:
        """End the thread, and wait for that. Idempotent."""
        self._over = True
        self._wake()
        if not self.is_current() and self._thread.is_alive():
            self._thread.join()
        self._drained = True
        self._drain()
        self._waker = self._poll = None

    # -- what the base layer asks of a loop ---------------------------------------------------

    def is_current(self) -> bool:
        return _thread.get_ident() == self._thread.ident

    def is_running(self) -> bool:
        return self._thread.is_alive()

    def run_soon(self, function: Callable[[], None]) -> None:
        self._todo.append(function)
        if self._sleeping:
            self._wake()
        if self._drained:
            self._drain()

    def run_later(self, function: Callable[[Backend], None]) -> None:
        self.run_soon(lambda: function(self.backend))

    def call(self, function: Callable[[], None]) -> None:
        if self.is_current() or not self.is_running():
            function()
        else:
            self.run_soon(function)

    def watch(self, fd: int, callback: Callable[[], None]) -> Stop:
        self._watched[fd] = callback
        self._poll = None
        self._wake()

        def stop(then: Callable[[], None]) -> None:
            def remove() -> None:
                self._watched.pop(fd, None)
                self._poll = None
                then()

            self.call(remove)

        return stop

    def stop_waiting(self, fd: int) -> None:
        """Nobody waits in the way of a loop."""

    # -- for those that call ------------------------------------------------------------------

    def when_writable(self, fd: int, callback: Callable[[], None] | None) -> None:
        """Call ``callback`` whenever ``fd`` takes more; None: no more. In this thread."""
        if callback is None:
            self._writers.pop(fd, None)
        else:
            self._writers[fd] = callback
        self._poll = None

    def after(self, seconds: float, function: Callable[[], None]) -> None:
        """Call ``function`` then, unless the thread ends before. In this thread."""
        entry = (time.monotonic() + seconds, next(self._numbers), function)
        heapq.heappush(self._timers, entry)

    def do(self, function: Callable[[], T]) -> T:
        """Have this thread call ``function``; what it answers or raises.

        An exception out of a signal's handler (Ctrl-C) is raised after that.
        """
        if self.is_current() or not self.is_running():
            return function()
        results: list[T] = []
        errors: list[BaseException] = []
        bell = Bell()

        def run() -> None:
            try:
                results.append(function())
            except BaseException as error:
                errors.append(error)
            finally:
                bell.ring()

        self.run_soon(run)
        wait_to_the_end(bell, lambda: bool(results or errors))
        if errors:
            raise errors[0]
        return results[0]

    def _run(self) -> None:
        # Signals are for the main thread, whose waits they end.
        pthread_sigmask(signal.SIG_BLOCK, ALL_SIGNALS)
        while not self._over:
            self._drain()
            if not self._over:
                self._turn()

    def _drain(self) -> None:
        while self._todo:
            with contextlib.suppress(IndexError):  # at the end there may be several of us
                guarded(self._todo.popleft())

    def _wake(self) -> None:
        waker = self._waker
        if waker is not None:
            waker.wake()

    def _turn(self) -> None:
        waker = self._waker
        assert waker is not None
        for fd, events in self._wait(waker):
            if fd == waker.read_end:
                waker.clear()
                continue
            if events & ~select.POLLOUT:
                guarded(self._watched.get(fd, nothing))
            if events & ~select.POLLIN:
                guarded(self._writers.get(fd, nothing))
        while self._timers and self._timers[0][0] <= time.monotonic():
            guarded(heapq.heappop(self._timers)[2])

    def _wait(self, waker: Waker) -> list[tuple[int, int]]:
        poll = self._poll or self._new_poll(waker)
        timeout = None
        if self._timers:
            timeout = max(0.0, self._timers[0][0] - time.monotonic()) * 1000
        self._sleeping = True
        try:
            return [] if self._todo else poll.poll(timeout)
        finally:
            self._sleeping = False

    def _new_poll(self, waker: Waker) -> select.poll:
        self._poll = poll = select.poll()
        wanted = dict.fromkeys(list(self._watched), select.POLLIN)
        for fd in self._writers:
            wanted[fd] = wanted.get(fd, 0) | select.POLLOUT
        for fd, events in wanted.items():
            poll.register(fd, events)
        poll.register(waker.read_end, select.POLLIN)
        return poll


def guarded(function: Callable[[], None]) -> None:
    """Call it; the thread outlives what it raises."""
    try:
        function()
    except Exception:
        with contextlib.suppress(Exception):
            logging.getLogger("forkwire").exception("a callback of a worker's thread failed")


def wait_to_the_end(bell: Bell, done: Callable[[], bool]) -> None:
    """Wait for what does not take long; what a signal's handler raises comes after it."""
    error: BaseException | None = None
    while not done():
        try:
            bell.wait(done)
        except BaseException as raised:
            error = raised
    if error is not None:
        raise error


class PollDriver(Conditions):
    """Drives a link in a `PollThread`."""

    def __init__(self, link: Link, thread: PollThread) -> None:
        super().__init__(link)
        self.thread: Final = thread
        link.outbox.on_blocked = self._on_blocked
        link.in_driver = thread.call

    def start(self) -> None:
        """Begin to read."""
        self.thread.do(lambda: self.link.source.listen(self.thread.backend, self._on_readable))

    def _on_readable(self) -> None:
        self.link.pump()
        if self.link.ended:
            self.link.source.stop_listening()

    def _on_blocked(self) -> None:
        self.thread.call(lambda: self.thread.when_writable(self.link.sink.fd, self._flush))

    def _flush(self) -> None:
        fd = self.link.sink.fd
        try:
            if self.link.sink.closed or self.link.outbox.flush():
                self.thread.when_writable(fd, None)
        except (ProcessWorkerIPCError, OSError) as error:
            self.thread.when_writable(fd, None)
            self.link.break_off(as_ipc_error(error))
        self.link.flushed()

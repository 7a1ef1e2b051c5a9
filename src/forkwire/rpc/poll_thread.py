"""A thread that waits for descriptors: what drives workers where there is no event loop.

It is a backend as the base layer knows them, as far as that is without ``await``, and the driver
of one link. Threads that make calls hand it what uses the link, so that Ctrl-C in one of them
leaves nothing half done.
"""

from __future__ import annotations

import select
import threading
from collections import deque
from collections.abc import Callable
from typing import Final, TypeVar, cast

from ..errors import ProcessWorkerIPCError
from ..process.backend import Backend, BackendName, Stop
from ..process.waiting import Waker
from .drivers import Conditions, as_ipc_error
from .link import Link, nothing

__all__ = ["PollDriver", "PollThread"]

T = TypeVar("T")


class PollThread:
    """Calls back when descriptors are ready, one after the other. ``name``: of a child's loops."""

    name: BackendName = "asyncio"

    def __init__(self, label: str) -> None:
        self._watched: Final[dict[int, Callable[[], None]]] = {}
        self._writers: Final[dict[int, Callable[[], None]]] = {}
        self._todo: Final[deque[Callable[[], None]]] = deque()
        self._waker: Final = Waker()
        self._over = False
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
        self._waker.wake()
        if not self.is_current() and self._thread.is_alive():
            self._thread.join()
        while self._todo:
            self._todo.popleft()()

    # -- what the base layer asks of a loop ---------------------------------------------------

    def is_current(self) -> bool:
        return threading.current_thread() is self._thread

    def is_running(self) -> bool:
        return self._thread.is_alive()

    def run_soon(self, function: Callable[[], None]) -> None:
        self._todo.append(function)
        self._waker.wake()

    def run_later(self, function: Callable[[Backend], None]) -> None:
        self.run_soon(lambda: function(self.backend))

    def call(self, function: Callable[[], None]) -> None:
        if self.is_current() or not self.is_running():
            function()
        else:
            self.run_soon(function)

    def watch(self, fd: int, callback: Callable[[], None]) -> Stop:
        self._watched[fd] = callback
        self._waker.wake()

        def stop(then: Callable[[], None]) -> None:
            def remove() -> None:
                self._watched.pop(fd, None)
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

    def do(self, function: Callable[[], T]) -> T:
        """Have this thread call ``function``; what it answers or raises.

        An exception out of a signal's handler (Ctrl-C) is raised after that.
        """
        if self.is_current() or not self.is_running():
            return function()
        results: list[T] = []
        errors: list[BaseException] = []
        done = threading.Event()

        def run() -> None:
            try:
                results.append(function())
            except BaseException as error:
                errors.append(error)
            finally:
                done.set()

        self.run_soon(run)
        wait_to_the_end(done)
        if errors:
            raise errors[0]
        return results[0]

    def _run(self) -> None:
        while not self._over:
            while self._todo:
                self._todo.popleft()()
            if not self._over:
                self._turn()

    def _turn(self) -> None:
        poll = select.poll()
        wanted = dict.fromkeys(self._watched, select.POLLIN)
        for fd in self._writers:
            wanted[fd] = wanted.get(fd, 0) | select.POLLOUT
        for fd, events in wanted.items():
            poll.register(fd, events)
        poll.register(self._waker.read_end, select.POLLIN)
        for fd, events in poll.poll():
            if fd == self._waker.read_end:
                self._waker.clear()
                continue
            if events & ~select.POLLOUT:
                self._watched.get(fd, nothing)()
            if events & ~select.POLLIN:
                self._writers.get(fd, nothing)()


def wait_to_the_end(done: threading.Event) -> None:
    """Wait for what does not take long; what a signal's handler raises comes after it."""
    error: BaseException | None = None
    while not done.is_set():
        try:
            done.wait()
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

"""How to wait for a peer: a moment of patience first, and how to sleep without an event loop."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import threading
from collections.abc import Callable, Iterable
from time import perf_counter
from typing import Final

from . import ownership
from .descriptors import make_pipe

__all__ = [
    "FAIR_TURNS",
    "LARGE_TURNS",
    "Patience",
    "Use",
    "Waker",
    "drop_waker",
    "forget_wakeup",
    "this_threads_waker",
    "wait_blocking",
    "wait_for_any",
    "wake_on_signals",
]

# Operations that never had to wait, after which the loop's other tasks get a turn.
FAIR_TURNS: Final = 32

# System calls for one large message, some megabytes each at most, after which they do.
LARGE_TURNS: Final = 4

# Seconds; poll takes milliseconds that fit into an int of C.
LONGEST_WAIT: Final = 1e6

sched_yield: Callable[[], None] = getattr(os, "sched_yield", lambda: None)

_wake_on_signals = False
_threads = threading.local()


class Patience:
    """Whether to let other processes run for a moment before going to sleep.

    Where the peer shares our processor, ``sched_yield`` runs it at once and the answer is there:
    two system calls instead of a turn of the loop. Where that did not help, or took long, it is
    not done for a while, and for longer each time.
    """

    __slots__ = ("_pause", "_skips")

    TOO_LONG: Final = 0.001  # seconds: the peer has work to do, or others use the processor too
    PAUSE: Final = 64  # waits without it
    LONGEST_PAUSE: Final = 4096

    def __init__(self) -> None:
        self._skips = 0
        self._pause = self.PAUSE

    def pays_off(self, attempt: Callable[[], bool]) -> bool:
        """Perhaps yield the processor; then whether ``attempt()`` succeeded."""
        if self._skips:
            self._skips -= 1
            return attempt()
        before = perf_counter()
        sched_yield()
        late = perf_counter() - before > self.TOO_LONG
        success = attempt()
        if not success:  # the system may have had another process in mind
            sched_yield()
            success = attempt()
        if success and not late:
            self._pause = self.PAUSE
        else:
            self._skips = self._pause
            self._pause = min(2 * self._pause, self.LONGEST_PAUSE)
        return success


class Waker:
    """A pipe that ends a thread's wait: each thread that ever waits without a loop has one."""

    def __init__(self) -> None:
        self.read_end, self.write_end = ownership.make_owned(make_pipe)
        self._pid = os.getpid()

    def wake(self) -> None:
        """End the wait, or the next one."""
        with contextlib.suppress(BlockingIOError):  # it is full: that wakes as well
            os.write(self.write_end, b"\0")

    def clear(self) -> None:
        """It has woken us."""
        with contextlib.suppress(BlockingIOError):
            os.read(self.read_end, 4096)

    def __del__(self) -> None:
        if "_pid" in self.__dict__ and self._pid == os.getpid():
            ownership.close(self.read_end)
            ownership.close(self.write_end)


class Use:
    """Who is inside a system call on a descriptor, in a thread that a loop does not control.

    Only when nobody is may the descriptor be closed: its number could be another file's at once.
    No lock: each side first says what it does and then looks what the other one did.

    ``active`` and ``then`` are what `begin` and `end` look at. A signal's handler may raise at the
    start of any function, so where that may not be these are set and asked in place.
    """

    __slots__ = ("_waker", "active", "then")

    def __init__(self) -> None:
        self.active = False
        self.then: list[Callable[[], None]] = []
        self._waker: Waker | None = None

    def begin(self) -> None:
        """From now on. One at a time."""
        self.active = True

    def end(self) -> None:
        """It is over; what waits for that is done."""
        self.active = False
        if self.then:
            self._run()

    def wait(self, fd: int, events: int, is_closed: Callable[[], bool]) -> None:
        """Wait until ``fd`` has one of ``events`` (of :func:`select.poll`), or for `when_over`."""
        waker = this_threads_waker()
        self._waker = waker
        try:
            if not is_closed():
                wait_blocking(fd, events, waker)
        finally:
            self._waker = None

    def when_over(self, then: Callable[[], None]) -> None:
        """End the wait, and call ``then``: at once if nobody is inside."""
        self.then.append(then)
        if not self.active:
            self._run()
            return
        waker = self._waker
        if waker is not None:
            waker.wake()

    def _run(self) -> None:
        while self.then:
            try:
                then = self.then.pop()
            except IndexError:  # another thread was quicker
                return
            then()


def this_threads_waker() -> Waker:
    waker: Waker | None = getattr(_threads, "waker", None)
    if waker is None or waker._pid != os.getpid():
        waker = _threads.waker = Waker()
    return waker


def drop_waker() -> None:
    """Close that of this thread, which gets another one when it waits again."""
    _threads.__dict__.pop("waker", None)


def wake_on_signals() -> None:
    """From now on the main thread's waits end when a signal arrives. For a process of our own."""
    global _wake_on_signals
    _wake_on_signals = True


def forget_wakeup() -> None:
    """In a child: what was set up for signals was its host's."""
    global _wake_on_signals
    _wake_on_signals = False


def wait_blocking(fd: int, events: int, waker: Waker | None = None) -> None:
    """Wait until ``fd`` has one of ``events``, is at its end, or failed, or ``waker`` wakes us."""
    wait_for_any(((fd, events),), waker)


def wait_for_any(
    wanted: Iterable[tuple[int, int]], waker: Waker | None, seconds: float | None = None
) -> None:
    """`wait_blocking` for several descriptors, each with its events, or so many seconds.

    A signal that arrives just before the wait would be handled only after it, so a worker's main
    thread waits for signals too.
    """
    poll = select.poll()
    for fd, events in wanted:
        poll.register(fd, events)
    timeout = None if seconds is None else min(seconds, LONGEST_WAIT) * 1000
    if waker is None:
        poll.poll(timeout)
        return
    poll.register(waker.read_end, select.POLLIN)
    if _wake_on_signals and threading.current_thread() is threading.main_thread():
        previous = signal.set_wakeup_fd(waker.write_end, warn_on_full_buffer=False)
        try:
            ready = poll.poll(timeout)
        finally:
            signal.set_wakeup_fd(previous)  # may be a loop's; outside of waits Python needs none
    else:
        ready = poll.poll(timeout)
    if any(number == waker.read_end for number, _ in ready):
        os.read(waker.read_end, 4096)

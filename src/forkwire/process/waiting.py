"""How to wait for a peer: a moment of patience first, and how to sleep without an event loop."""

from __future__ import annotations

import os
import select
import signal
import threading
from collections.abc import Callable
from time import perf_counter
from typing import Final

from . import ownership
from .descriptors import make_pipe

__all__ = [
    "FAIR_TURNS",
    "Patience",
    "forget_wakeup",
    "wait_blocking",
    "wake_on_signals",
]

# Operations that never had to wait, after which the loop's other tasks get a turn.
FAIR_TURNS: Final = 32

sched_yield: Callable[[], None] = getattr(os, "sched_yield", lambda: None)

_wake_on_signals = False
_wakeup: tuple[int, ...] = ()


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


def wake_on_signals() -> None:
    """From now on the main thread's waits end when a signal arrives. For a process of our own."""
    global _wake_on_signals
    _wake_on_signals = True


def forget_wakeup() -> None:
    """In a child: what was set up for signals was its host's."""
    global _wake_on_signals, _wakeup
    _wake_on_signals, _wakeup = False, ()


def wait_blocking(fd: int, events: int) -> None:
    """Wait until ``fd`` has one of ``events`` (of :func:`select.poll`), is at its end, or failed.

    A signal that arrives just before the wait would be handled only after it, so a worker's main
    thread waits for signals too.
    """
    poll = select.poll()
    poll.register(fd, events)
    if not _wake_on_signals or threading.current_thread() is not threading.main_thread():
        poll.poll()
        return
    heard, write_end = wakeup_pipe()
    poll.register(heard, select.POLLIN)
    previous = signal.set_wakeup_fd(write_end, warn_on_full_buffer=False)
    try:
        woken = any(ready == heard for ready, _ in poll.poll())
    finally:
        signal.set_wakeup_fd(previous)  # it may be a loop's; outside of waits Python needs none
    if woken:
        os.read(heard, 4096)


def wakeup_pipe() -> tuple[int, ...]:
    global _wakeup
    if not _wakeup:
        _wakeup = ownership.make_owned(make_pipe)
    return _wakeup

"""Seeing a child's end, collecting its status, and leaving nothing of its group.

Never by SIGCHLD: a handler for that belongs to the application.
"""

from __future__ import annotations

import contextlib
import errno
import os
import resource
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Final

from ..errors import signal_name
from . import descriptors, guard, guard_main, ownership
from .backend import Backend, Stop

__all__ = ["STATUS_LOST", "Child"]

# What asyncio and subprocess use too, when somebody else has taken the status.
STATUS_LOST: Final = 255


class Child:
    """A child process that leads a group. A loop may hold this; it knows no handle.

    ``returncode``: as in :mod:`subprocess`; None until the child was reaped.
    """

    def __init__(self, pid: int, grace: float) -> None:
        self.pid: Final = pid
        self.grace: Final = grace
        self.returncode: int | None = None
        self.rusage: resource.struct_rusage | None = None
        self.status_lost = False
        self.abandoned = False
        self._lock = threading.RLock()  # a finaliser may come in between
        self._collecting = False
        self._at_end: list[Callable[[], None]] = []
        self._backend: Backend | None = None
        self._stop: Stop | None = None
        self._pidfd = -1
        try:
            if hasattr(os, "pidfd_open"):
                self._pidfd = guard_main.open_exit_fd(pid)
        except ProcessLookupError:  # SIGCHLD is ignored, and it is gone already: nobody reaps it
            self.status_lost, self.returncode = True, STATUS_LOST
            guard.forget(pid)
            return
        self._exit_fd = self._pidfd if self._pidfd >= 0 else waited_for_in_a_thread(pid)
        ownership.own(self._exit_fd)

    def watch(self, backend: Backend) -> None:
        """Have ``backend``'s loop reap it, unless a running loop does so already."""
        if self.returncode is None and (self._backend is None or not self._backend.is_running()):
            self._backend = backend
            self._stop = backend.watch(self._exit_fd, self._on_exit)

    @contextlib.contextmanager
    def watched(self, backend: Backend) -> Iterator[None]:
        """Make sure that it is reaped as long as ``backend``'s loop runs."""
        self.watch(backend)
        if self._backend is None or self._backend.is_current():
            yield
            return
        # Another loop has the descriptor, and may end before the child does: a copy for ours.
        with self._lock:
            copy = os.dup(self._exit_fd) if self.returncode is None else -1
        if copy < 0:
            yield
            return
        ownership.own(copy)
        stop = backend.watch(copy, self._on_exit)
        try:
            yield
        finally:
            stop(lambda: ownership.close(copy))

    def when_ended(self, callback: Callable[[], None]) -> None:
        """Call ``callback`` once it is reaped, in whatever thread does that; at once if it is."""
        with self._lock:
            if self.returncode is None:
                self._at_end.append(callback)
                return
        callback()

    def forget(self, callback: Callable[[], None]) -> None:
        """Take back `when_ended`."""
        with self._lock, contextlib.suppress(ValueError):
            self._at_end.remove(callback)

    def signal_group(self, number: int) -> None:
        """Signal the child and its descendants in its group; nothing once it is reaped."""
        with self._lock:
            if self.returncode is None:
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.killpg(self.pid, number)

    def _on_exit(self) -> None:
        self.reap()

    def reap(self) -> bool:
        """Collect the status if it has ended; whether it has. Never blocks, may be repeated."""
        if sys.is_finalizing():  # it is the system's to reap now
            return self.returncode is not None
        with self._lock:
            if self.returncode is not None:
                return True
            if self._collecting or not self._collect():
                return False
            callbacks, self._at_end = self._at_end, []
        guard.forget(self.pid)
        try:
            for callback in callbacks:
                callback()
        finally:
            self._release()
        return True

    def reap_now(self) -> None:
        """Block until it has ended, which somebody saw to, and reap it."""
        with contextlib.suppress(ChildProcessError):
            os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOWAIT)
        self.reap()

    def _collect(self) -> bool:
        self._collecting = True
        try:
            options = os.WEXITED | os.WNOHANG | os.WNOWAIT
            if os.waitid(os.P_PID, self.pid, options) is None:
                return False
            # Ended, and its number still its own: the last moment to reach the rest of the group.
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self.pid, signal.SIGKILL)
            _, status, self.rusage = os.wait4(self.pid, 0)
            self.returncode = os.waitstatus_to_exitcode(status)
        except ChildProcessError:
            guard_main.signal_group(self._pidfd, signal.SIGKILL)
            self.status_lost = True
            self.returncode = STATUS_LOST
        finally:
            self._collecting = False
        return True

    def _release(self) -> None:
        fd = self._exit_fd

        def release() -> None:
            ownership.close(fd)

        if self._stop is None:
            release()
        else:
            self._stop(release)

    def abandon(self) -> None:
        """Nobody will wait for it: end it and reap it in the background."""
        self.abandoned = True
        if sys.is_finalizing():  # no thread can be started; the guard sees to the rest
            self.signal_group(signal.SIGTERM)
            return
        ending = threading.Thread(target=self._end, name=f"forkwire: end {self.pid}", daemon=True)
        try:
            ending.start()
        except RuntimeError:  # there is no thread to be had
            self.signal_group(signal.SIGKILL)

    def _end(self) -> None:
        self.signal_group(signal.SIGTERM)
        deadline = time.monotonic() + self.grace
        pause = 0.001
        while not self.reap():
            time.sleep(pause)
            pause = min(2 * pause, 0.05)
            if time.monotonic() > deadline:
                self.signal_group(signal.SIGKILL)

    def reason(self) -> str:
        """How it ended, as the rest of a sentence that begins with its name."""
        assert self.returncode is not None
        if self.status_lost:
            return (
                "ended, and its status was lost: something else in this program waited for it, "
                "or SIGCHLD is ignored"
            )
        if self.returncode < 0:
            return f"was ended by {signal_name(-self.returncode)}"
        return f"ended with exit status {self.returncode}"


def waited_for_in_a_thread(pid: int) -> int:
    """A descriptor that becomes readable when ``pid`` ends, where the system has no pidfd."""
    read_end, write_end = ownership.make_owned(descriptors.make_pipe)

    def wait() -> None:
        with contextlib.suppress(ChildProcessError):
            os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
        ownership.close(write_end)

    try:
        threading.Thread(target=wait, name=f"forkwire: wait for {pid}", daemon=True).start()
    except RuntimeError as error:
        ownership.close(read_end)
        ownership.close(write_end)
        raise OSError(errno.EAGAIN, str(error)) from None
    return read_end

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
from . import descriptors, guard, guard_main, oom, ownership
from .backend import Backend, Stop

__all__ = ["STATUS_LOST", "Child"]

# What asyncio and subprocess use too, when somebody else has taken the status.
STATUS_LOST: Final = 255

GROUP: Final = 1 << 2  # PIDFD_SIGNAL_PROCESS_GROUP, Linux 6.9


class Child:
    """A child process that leads a group. A loop may hold this; it knows no handle.

    ``returncode``: as in :mod:`subprocess`; None until the child was reaped.
    """

    def __init__(self, grace: float) -> None:
        self.pid = 0
        self.grace: Final = grace
        self.slot: Final = guard.reserve(self)
        self.returncode: int | None = None
        self._usage: tuple[float, ...] | None = None  # plain: see `WorkerDied`
        self.status_lost = False
        self.abandoned = False
        self.leftovers: object = None  # of the start, to be dropped once there is time
        self._started = time.monotonic()
        self._victims = -1  # of the out-of-memory killer, before the start
        self._killed_here = False
        self._killer = ""
        self._lock = threading.RLock()  # a finaliser may come in between
        self._collecting = False
        self._at_end: list[Callable[[], None]] = []
        self._backend: Backend | None = None
        self._stop: Stop | None = None
        self._exit_fd = -1

    @property
    def rusage(self) -> resource.struct_rusage | None:
        """What it has used; None until it was reaped, and where that was lost."""
        return None if self._usage is None else resource.struct_rusage(self._usage)

    def born(self, pid: int) -> None:
        """It was forked. Raises :exc:`OSError` where it cannot be watched; then `reap_now` it."""
        self.pid = pid
        try:  # noqa: SIM105  just after the fork: see `fork`
            os.setpgid(pid, pid)
        except OSError:  # it did so itself, or has ended
            pass
        try:
            self._exit_fd = guard_main.open_exit_fd(pid) if hasattr(os, "pidfd_open") else -1
        except ProcessLookupError:  # SIGCHLD is ignored, and it is gone already: nobody reaps it
            self.status_lost, self.returncode = True, STATUS_LOST
            guard.forget(self.slot)
            return
        if self._exit_fd < 0:
            self._exit_fd = waited_for_in_a_thread(pid)
        ownership.own(self._exit_fd)

    def count_victims(self) -> None:
        """Before it is born: know later whether there were more for lack of memory."""
        self._victims = oom.kills()

    def watch(self, backend: Backend) -> None:
        """Have ``backend``'s loop reap it, unless a running loop does so already."""
        if self.returncode is None and (self._backend is None or not self._backend.is_running()):
            self._backend = backend
            self._stop = backend.watch(self._exit_fd, self._on_exit)

    def is_watched(self) -> bool:
        """Whether a running loop will reap it, or it is only being forked."""
        return not self.pid or (self._backend is not None and self._backend.is_running())

    def watch_somehow(self, backend: Backend) -> None:
        """`watch`; where the loop has no room for it, a thread waits."""
        self.leftovers = None
        try:
            self.watch(backend)
        except RuntimeError:  # the loop is about to end: whoever looks at it reaps
            pass
        except OSError:
            wait = threading.Thread(
                target=self.reap_now, name=f"forkwire: wait for {self.pid}", daemon=True
            )
            with contextlib.suppress(RuntimeError):  # no thread either
                wait.start()

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
            if self.returncode is None and self.pid:
                self._killed_here |= number == signal.SIGKILL
                guard_main.signal_group(self.pid, number)

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
        try:
            for callback in callbacks:
                callback()
        finally:
            self._release()
        return True

    def reap_now(self) -> None:
        """Block until it has ended, which somebody saw to, and reap it, if ever it was born."""
        if not self.pid:
            self.returncode, self.status_lost = STATUS_LOST, True
            guard.forget(self.slot)
            return
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
            guard_main.signal_group(self.pid, signal.SIGKILL)
            guard.forget(self.slot)
            _, status, usage = os.wait4(self.pid, 0)
            self._usage = tuple(usage)
            self.returncode = os.waitstatus_to_exitcode(status)
            if self.returncode == -signal.SIGKILL and not self._killed_here:
                self._killer = self._suspect()
        except ChildProcessError:
            kill_rest(self._exit_fd)
            guard.forget(self.slot)
            self.status_lost = True
            self.returncode = STATUS_LOST
        finally:
            self._collecting = False
        return True

    def _release(self) -> None:
        fd = self._exit_fd
        if fd < 0:
            return

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
        if self._killer:
            return self._killer
        if self.returncode < 0:
            return f"was ended by {signal_name(-self.returncode)}"
        return f"ended with exit status {self.returncode}"

    def _suspect(self) -> str:
        """Who may have sent a SIGKILL that we did not send, as `reason` says it."""
        if oom.log_names(self.pid, self._started):
            return "was killed by the kernel for lack of memory (SIGKILL)"
        if 0 <= self._victims < oom.kills():
            return (
                "was ended by SIGKILL, most likely by the kernel for lack of memory: meanwhile its "
                "out-of-memory killer was at work in this control group"
            )
        return (
            "was ended by SIGKILL, which was not sent by way of its handle: perhaps by the "
            "kernel's out-of-memory killer (see dmesg)"
        )


def reap_deserted() -> None:
    """Collect workers that ended while no loop ran that would have seen it."""
    for worker in guard.workers():
        if isinstance(worker, Child) and not worker.is_watched():
            worker.reap()


def kill_rest(pidfd: int) -> None:
    """Kill what is left of the group of a child that somebody else has reaped, where one can."""
    if hasattr(signal, "pidfd_send_signal"):
        with contextlib.suppress(OSError):  # none is left, an old kernel, or it is no pidfd
            signal.pidfd_send_signal(pidfd, signal.SIGKILL, None, GROUP)


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

"""The host's side of interrupting a worker's functions; the worker's is in `interrupting`."""

from __future__ import annotations

import contextlib
import os
import signal
import struct
import sys
import threading
from typing import Final

from ...process import descriptors, ownership

__all__ = ["ID", "NUMBER", "ControlPipe"]

NUMBER: Final = int(signal.SIGURG)

# A call's id is what goes through the pipe.
ID: Final = struct.Struct("=Q")


class ControlPipe:
    """Made before the worker is; cancels its calls from any thread.

    `lend` the read end to the fork that makes the worker, or pass it on; tell `started` after.
    """

    def __init__(self) -> None:
        """Open it. Raises :exc:`OSError`."""
        self.child_fd, self._fd = ownership.make_owned(descriptors.make_pipe)
        self._pid = 0
        self._waiting: dict[int, None] = {}  # cancels for which the pipe had no room
        self._lock = threading.RLock()  # a finaliser may come in between

    @classmethod
    def inherited(cls, child_fd: int) -> ControlPipe:
        """The worker's, where it was executed: only its end is here."""
        self = cls.__new__(cls)
        self.child_fd, self._fd, self._pid = child_fd, -1, 0
        self._waiting, self._lock = {}, threading.RLock()
        return self

    @classmethod
    def of_this_process(cls) -> ControlPipe:
        """Both ends are here: another thread of the worker writes what came as a message."""
        self = cls()
        self._pid = os.getpid()
        return self

    @property
    def is_ours(self) -> bool:
        """Whether this process itself writes to it."""
        return self._pid == os.getpid()

    def fileno(self) -> int:
        """The worker's end: with ``close_fds`` it is kept where the pipe is in ``arg``."""
        return self.child_fd

    def lend(self) -> int:
        """The worker's end, which what is forked now keeps."""
        ownership.disown(self.child_fd)
        return self.child_fd

    def started(self, pid: int) -> None:
        """There is a worker: its end is closed here."""
        self._pid = pid
        fd, self.child_fd = self.child_fd, -1
        if fd >= 0:
            ownership.close(fd)

    def cancel(self, call_id: int) -> None:
        """Ask for the end of a call; again after a while, until it has ended. Never blocks."""
        with self._lock:
            self._waiting[call_id] = None
            self.flush()

    def forget(self, call_id: int) -> None:
        """The call has ended."""
        self._waiting.pop(call_id, None)

    def flush(self) -> None:
        """Write what there was no room for."""
        with self._lock:
            while self._waiting and self._fd >= 0:
                call_id, _ = self._waiting.popitem()
                try:
                    os.write(self._fd, ID.pack(call_id))
                except BlockingIOError:
                    self._waiting[call_id] = None
                    break
                except OSError:  # the worker has ended
                    self._waiting.clear()
            self._knock()

    def close(self) -> None:
        """Before the worker is reaped, where the system has no O_ASYNC of its own: idempotent."""
        with self._lock:
            self.started(0)
            fd, self._fd = self._fd, -1
            if fd >= 0:
                ownership.close(fd)

    def _knock(self) -> None:
        """Send the signal, where the kernel does not."""
        if sys.platform != "linux" and self._pid:
            with contextlib.suppress(OSError):
                os.kill(self._pid, NUMBER)

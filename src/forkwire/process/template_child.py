"""A worker that a template forked, as its host sees it: no child of the host, and yet reaped.

The template sends its pid, with a descriptor for its end, and later how it ended. Where the
template cannot say that any more, the kernel may.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import select
import signal
import struct
import sys
import threading
import time
from typing import Final

from . import descriptors, guard, guard_main, ownership, reaping, template_wire
from .reaping import GROUP, STATUS_LOST, Child

__all__ = ["TemplateChild"]

# For the template to tell of an end that was seen here: it takes some 100 us, while nobody does
# anything else; on a busy machine longer; and for ever if it is stopped.
PATIENCE: Final = 0.02  # seconds
LONG_PATIENCE: Final = 2.0  # seconds, in the background

POLLED: Final = 0.05  # seconds between looks, where nothing tells

# ioctl(2) on a pidfd, Linux 6.13, which knows the status since 6.15: struct pidfd_info.
PIDFD_GET_INFO: Final = 0xC040FF0B
PIDFD_INFO_EXIT: Final = 1 << 3
INFO: Final = struct.Struct("=QQ11Ii")


class TemplateChild(Child):
    """A child of a template. Made before the request; `theirs` goes with that."""

    def __init__(self, grace: float) -> None:
        super().__init__(grace)
        self._pidfd = self._status = -1
        self._said = b""
        self._deserted = False
        self._patient_until = 0.0  # a monotonic time, once it has ended
        self._asked, self.theirs = template_wire.pair()

    def requested(self) -> None:
        """The template has its end."""
        template_wire.close_socket(self.theirs)

    def fileno(self) -> int:
        """What is readable once there is an answer."""
        return self._asked.fileno()

    def answered(self) -> bool | None:
        """Take the answer: whether it was born; None: not yet. Raises :exc:`OSError`.

        False: the template has ended without one.
        """
        try:
            data, fds = template_wire.receive_fds(self._asked, template_wire.ANSWER.size)
        except (BlockingIOError, ConnectionResetError) as error:
            return None if isinstance(error, BlockingIOError) else False
        if not data:
            return False
        pid, number = template_wire.ANSWER.unpack(data)
        if number:
            raise OSError(number, os.strerror(number))
        self._watch_end_of(pid, fds)
        return True

    def _watch_end_of(self, pid: int, fds: list[int]) -> None:
        self._pidfd = above_standard(fds[0]) if fds else guard_main.open_exit_fd(pid)
        ownership.own(self._pidfd)
        self._exit_fd = both_of(self._pidfd, self.fileno())
        ownership.own(self._exit_fd)
        self._status = self._asked.detach()  # from now on a number: a fork forgets it silently
        self.pid = pid

    def give_up(self) -> None:
        """Whether it was born or not: nobody wants it. It is killed, and all is closed here."""
        template_wire.close_socket(self.theirs)
        with contextlib.suppress(OSError):
            self._asked.send(template_wire.GIVE_UP)
        template_wire.close_socket(self._asked)
        with self._lock:
            if self.returncode is not None:
                return
            self.returncode, self.status_lost = STATUS_LOST, True
            guard.forget(self.slot)
            callbacks, self._at_end = self._at_end, []
        for callback in callbacks:
            callback()
        self._release()

    def abandon(self) -> None:
        if self.pid:
            super().abandon()
        else:
            self.abandoned = True
            self.give_up()

    def signal_group(self, number: int) -> None:
        with self._lock:
            if self.returncode is None and self.pid:
                self._killed_here |= number == signal.SIGKILL
                signal_group(self._pidfd, self.pid, number)

    def reap_now(self) -> None:
        if not self.pid:
            self.give_up()
            return
        while not self.reap():
            guard_main.readable(self._exit_fd, POLLED)

    def _collect(self) -> bool:
        self._collecting = True
        try:
            over = self._listen(0)
            ended = guard_main.readable(self._pidfd)
            if ended and over is None:
                if not self._patient_until:
                    over = self._listen(PATIENCE)
                if over is None and self._may_be_told():
                    return False
            if over:
                status, *usage = template_wire.END.unpack(self._said)
                self._usage = tuple(usage)
                self.returncode = os.waitstatus_to_exitcode(status)
                if self.returncode == -signal.SIGKILL and not self._killed_here:
                    self._killer = self._suspect()
            elif ended:
                self._collect_without_template(PATIENCE if over is False else 0)
            else:
                if over is False and not self._deserted:
                    self._be_deserted()
                return False
            guard.forget(self.slot)
        finally:
            self._collecting = False
        return True

    def _listen(self, seconds: float) -> bool | None:
        """Whether the template has said all; None: not yet, False: it will not."""
        if self._status < 0:
            return False
        if not guard_main.readable(self._status, seconds):
            return None
        with contextlib.suppress(OSError):
            data = os.read(self._status, template_wire.END.size - len(self._said))
            self._said += data
            if len(self._said) == template_wire.END.size:
                return True
            if data:
                return None
        return False

    def _may_be_told(self) -> bool:
        """Whether to wait for the template, which is slow. A thread sees to it that this ends."""
        if self._patient_until:
            return time.monotonic() < self._patient_until
        self._patient_until = time.monotonic() + LONG_PATIENCE
        try:
            copy = os.dup(self._status)
        except OSError:
            return False
        ownership.own(copy)

        def wait() -> None:
            guard_main.readable(copy, max(0.0, self._patient_until - time.monotonic()))
            ownership.close(copy)
            self.reap_now()

        try:
            threading.Thread(target=wait, name=f"forkwire: reap {self.pid}", daemon=True).start()
        except RuntimeError:  # there is no thread to be had
            ownership.close(copy)
            return False
        forget_exit(self._exit_fd, self._pidfd)
        return True

    def _collect_without_template(self, seconds: float) -> None:
        """The template is dead, or stopped: what the kernel says, once somebody has reaped it."""
        reaping.kill_rest(self._pidfd)
        until = time.monotonic() + seconds
        while (status := exit_status(self._pidfd)) is None and time.monotonic() < until:
            time.sleep(POLLED / 10)
        self.status_lost = status is None
        self.returncode = STATUS_LOST if status is None else os.waitstatus_to_exitcode(status)

    def _be_deserted(self) -> None:
        """The template is dead: its worker got SIGTERM for that, and has its grace."""
        self._deserted = True
        status, self._status = self._status, -1
        ownership.close(status)  # the loop is not to see its end for ever
        ending = threading.Thread(target=self._end, name=f"forkwire: end {self.pid}", daemon=True)
        try:
            ending.start()
        except RuntimeError:  # there is no thread to be had
            self.signal_group(signal.SIGKILL)

    def reason(self) -> str:
        if self._deserted:
            return (
                f"lost the template process that it was forked from, and {super().reason()}"
                if not self.status_lost
                else "ended with the template process that it was forked from"
            )
        if self.status_lost:
            return "ended, and the template process that it was forked from did not say how"
        return super().reason()

    def _release(self) -> None:
        super()._release()
        self._exit_fd = -1
        fds = self._pidfd, self._status
        self._pidfd = self._status = -1
        for fd in fds:
            if fd >= 0:
                ownership.close(fd)


def above_standard(fd: int) -> int:
    """``fd``, or where it is one of 0 to 2 another number for it."""
    if fd >= descriptors.FIRST_FREE_FD:
        return fd
    try:
        (copy,) = descriptors.lifted(fd)
    finally:
        os.close(fd)
    return copy


def both_of(exit_fd: int, status: int) -> int:
    """A descriptor that is readable when one of them is: a loop watches but one."""
    if sys.platform == "linux":
        with select.epoll(2) as both:
            both.register(exit_fd, select.EPOLLIN)
            both.register(status, select.EPOLLIN)
            return fcntl.fcntl(both.fileno(), fcntl.F_DUPFD_CLOEXEC, descriptors.FIRST_FREE_FD)
    return os.dup(exit_fd)  # a kqueue, which `reap` looks beyond


def forget_exit(both: int, exit_fd: int) -> None:
    """Have what `both_of` answered be readable for the status only: a loop is not to turn."""
    if sys.platform == "linux":
        with contextlib.suppress(OSError), select.epoll.fromfd(os.dup(both)) as epoll:
            epoll.unregister(exit_fd)


def signal_group(pidfd: int, pid: int, number: int) -> None:
    """Signal the group of ``pid``, and itself if it has left that; never another's."""
    if not hasattr(signal, "pidfd_send_signal"):
        if not guard_main.readable(pidfd):
            guard_main.signal_group(pid, number)
        return
    try:
        signal.pidfd_send_signal(pidfd, number, None, GROUP)
    except OSError as error:
        if error.errno == errno.EINVAL:  # Linux before 6.9
            with contextlib.suppress(OSError):
                signal.pidfd_send_signal(pidfd, 0)
                guard_main.signal_group(pid, number)
            return
    with contextlib.suppress(OSError):
        if os.getpgid(pid) != pid:
            signal.pidfd_send_signal(pidfd, number)


def exit_status(pidfd: int) -> int | None:
    """As of wait(2), of a process that somebody reaped; None where the kernel does not say."""
    if sys.platform != "linux":
        return None
    info = bytearray(INFO.pack(PIDFD_INFO_EXIT, *(0,) * 13))
    try:
        fcntl.ioctl(pidfd, PIDFD_GET_INFO, info)
    except OSError:
        return None
    mask, *_, status = INFO.unpack(info)
    return status if mask & PIDFD_INFO_EXIT else None

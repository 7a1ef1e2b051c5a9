"""What the base layer does to file descriptors: modes, sizes, and which loops can wait for them.

Knows of no loop, channel or worker.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import errno
import fcntl
import os
import select
import socket
import stat
import sys
import threading
from typing import Final

from ..errors import ChannelOSError, UsageError

__all__ = [
    "all_open",
    "as_os_error",
    "busy_c_streams",
    "check",
    "flush_standard_streams",
    "grow_pipe",
    "is_gone",
    "is_pollable",
    "lifted",
    "make_pipe",
    "restore_all",
    "restore_blocking",
    "set_nonblocking",
    "shrink_count",
]

# Above 0, 1 and 2, so that nothing printed can reach a channel.
FIRST_FREE_FD: Final = 3

# A pipe that carries large messages is grown to this, once.
LARGE_PIPE: Final = 1024 * 1024

# An ordinary user's pipes share a soft budget of 64 MiB, past which every new pipe, ours and other
# programs', shrinks to a page or two (pipe(7), /proc/sys/fs/pipe-user-pages-soft). One process
# takes at most a quarter of it.
MAX_LARGE_PIPES: Final = 16

O_PATH: Final[int] = getattr(os, "O_PATH", 0)

CLOSED: Final = frozenset({errno.EPIPE, errno.ECONNRESET, errno.ENOTCONN, errno.ESHUTDOWN})

libc = ctypes.CDLL(None)
for _function in (libc.fflush, libc.ftrylockfile, libc.funlockfile):
    _function.argtypes = [ctypes.c_void_p]
# What C calls stdout and stderr.
C_STREAMS: Final = [
    ctypes.c_void_p.in_dll(libc, name)
    for name in (("stdout", "stderr") if sys.platform == "linux" else ("__stdoutp", "__stderrp"))
]

_large_pipes = 0
_large_pipes_lock = threading.RLock()  # a finaliser may come in between
_made_nonblocking: dict[int, tuple[int, int]] = {}  # fd: its inode and the pid that changed it
_needed_nonblocking: set[int] = set()  # the channels' own; some may be duplicates of each other


def flush_standard_streams() -> None:
    """Python's, and those of the C library: so that what is buffered is printed, and once.

    One of C's that another thread is using, perhaps for as long as nobody types, is left alone.
    """
    for stream in (sys.stdout, sys.stderr):
        try:  # noqa: SIM105  just before a fork: see `fork`
            stream.flush()
        except Exception:  # None, closed, broken, or anything: it may be the application's own
            pass
    for file in C_STREAMS:
        if libc.ftrylockfile(file) == 0:
            libc.fflush(file)
            libc.funlockfile(file)


def busy_c_streams() -> list[str]:
    """Which of C's stdout and stderr another thread is using now."""
    busy = []
    for name, file in zip(("stdout", "stderr"), C_STREAMS, strict=True):
        if libc.ftrylockfile(file) == 0:
            libc.funlockfile(file)
        else:
            busy.append(name)
    return busy


def all_open() -> set[int]:
    """The descriptors of this process."""
    found = set()
    for name in os.listdir("/dev/fd"):
        with contextlib.suppress(OSError):  # the listing's own
            os.fstat(int(name))
            found.add(int(name))
    return found


def make_pipe() -> tuple[int, ...]:
    """A close-on-exec pipe, both ends non-blocking and above the standard descriptors."""
    if hasattr(os, "pipe2"):
        ends = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    else:
        ends = os.pipe()
        for fd in ends:
            os.set_blocking(fd, False)
    if min(ends) >= FIRST_FREE_FD:
        return ends
    try:
        return lifted(*ends)
    finally:
        for fd in ends:
            os.close(fd)


def lifted(*fds: int) -> tuple[int, ...]:
    """Close-on-exec duplicates of ``fds``, above the standard descriptors."""
    copies: list[int] = []
    try:
        for fd in fds:
            copies.append(fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, FIRST_FREE_FD))  # noqa: PERF401
    except BaseException:
        for fd in copies:
            os.close(fd)
        raise
    return tuple(copies)


def check(fd: int, unwanted: int) -> bool:
    """Check that ``fd`` is an open stream, and not only in the ``unwanted`` access mode.

    Answers whether an event loop can wait for it.

    Raises :exc:`UsageError` and :exc:`ChannelOSError`.
    """
    if not isinstance(fd, int):
        raise UsageError(
            f"a file descriptor (int) is needed, not {type(fd).__name__}: the channel takes it "
            "over, so pass os.dup(file.fileno())"
        )
    try:
        flags = fcntl.fcntl(fd, fcntl.F_GETFL)
    except OSError as error:
        raise as_os_error(error, f"descriptor {fd}") from None
    except (ValueError, OverflowError) as error:
        raise UsageError(f"{fd} is not a file descriptor: {error}") from None
    if flags & O_PATH:
        raise UsageError(f"descriptor {fd} was opened with O_PATH, and can do nothing")
    if flags & os.O_ACCMODE == unwanted:
        wanted = "reading" if unwanted == os.O_WRONLY else "writing"
        raise UsageError(f"descriptor {fd} is not open for {wanted}: pass the pipe's other end")
    if not is_stream(fd):
        raise UsageError(
            f"descriptor {fd} is a socket that keeps or cuts datagrams: pass a SOCK_STREAM one"
        )
    return is_pollable(fd)


def is_stream(fd: int) -> bool:
    """Not so: sockets of datagrams, or of packets in sequence, which cut what is too long."""
    if not stat.S_ISSOCK(os.fstat(fd).st_mode):
        return True
    with socket.socket(fileno=os.dup(fd)) as duplicate:
        return duplicate.getsockopt(socket.SOL_SOCKET, socket.SO_TYPE) == socket.SOCK_STREAM


def as_os_error(error: OSError, what: str) -> ChannelOSError:
    """``error`` as one of ours, with its errno and what it concerns."""
    return ChannelOSError(error.errno, f"{what}: {error.strerror}")


def is_gone(error: OSError, fd: int) -> bool:
    """Whether ``error`` says that there is no other end any more."""
    if error.errno == errno.EIO:  # a terminal, which os.isatty denies once it has hung up
        return stat.S_ISCHR(os.fstat(fd).st_mode)
    return error.errno in CLOSED


def is_pollable(fd: int) -> bool:
    """Whether an event loop can wait for ``fd``; regular files, directories and the like: no."""
    mode = os.fstat(fd).st_mode
    if stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode):
        return True
    if stat.S_ISREG(mode) or stat.S_ISDIR(mode) or sys.platform != "linux":
        return not (stat.S_ISREG(mode) or stat.S_ISDIR(mode))
    with select.epoll(1) as probe:
        try:
            probe.register(fd, 0)
        except PermissionError:
            return False
    return True


def set_nonblocking(fd: int) -> bool:
    """Set O_NONBLOCK, a property shared with every duplicate of ``fd``; whether it was not set."""
    _needed_nonblocking.add(fd)
    if not os.get_blocking(fd):
        return False
    os.set_blocking(fd, False)
    _made_nonblocking[fd] = (os.fstat(fd).st_ino, os.getpid())
    return True


def restore_blocking(fd: int) -> None:
    """Take back what `set_nonblocking` did, in the process that did it."""
    _needed_nonblocking.discard(fd)
    inode, pid = _made_nonblocking.pop(fd, (0, 0))
    with contextlib.suppress(OSError):
        if pid == os.getpid() and os.fstat(fd).st_ino == inode:
            os.set_blocking(fd, True)
            for other in list(_needed_nonblocking):
                set_nonblocking(other)  # a duplicate of ours: it restores later


@atexit.register
def restore_all() -> None:
    """Take back every `set_nonblocking` of this process."""
    _needed_nonblocking.clear()
    for fd in list(_made_nonblocking):
        restore_blocking(fd)


def grow_pipe(fd: int) -> bool:
    """Make the pipe ``fd`` hold ``LARGE_PIPE`` bytes, within a budget; whether it did."""
    global _large_pipes
    if not hasattr(fcntl, "F_SETPIPE_SZ"):
        return False
    with _large_pipes_lock:
        if _large_pipes >= MAX_LARGE_PIPES:
            return False
        try:
            fcntl.fcntl(fd, fcntl.F_SETPIPE_SZ, LARGE_PIPE)
        except OSError:  # not a pipe, or over the user's budget: it works as it is
            return False
        _large_pipes += 1
    return True


def _after_fork_in_child() -> None:
    """The large pipes are the parent's, and another thread of it may have held the lock."""
    global _large_pipes, _large_pipes_lock
    _large_pipes, _large_pipes_lock = 0, threading.RLock()


os.register_at_fork(after_in_child=_after_fork_in_child)


def shrink_count() -> None:
    """A pipe that `grow_pipe` grew was closed."""
    global _large_pipes
    with _large_pipes_lock:
        _large_pipes -= 1

"""The host's side of the guard: start it before the first fork, and again should it die.

What the guard does is in ``guard_main``, which is a program of its own.
"""

from __future__ import annotations

import array
import contextlib
import fcntl
import os
import signal
import socket
import sys
import threading
from pathlib import Path
from typing import Final

from ..errors import WorkerStartError
from . import descriptors, guard_main, ownership

__all__ = ["ensure_guard", "register", "registration_fd"]

# Starting takes some 10 ms; a machine under heavy load gets this long.
START_SECONDS: Final = 20.0

# The shell's job is to be the guard's parent and end at once, so that the guard is nobody's child
# here: it is not in the way of an application that waits for all of its own.
DETACH: Final = '"$@" &'

_fd = -1  # our end; a plain number, since it lives as long as the process
_registered: dict[int, float] = {}
_starting = threading.Lock()


def registration_fd() -> int:
    """A duplicate, owned, of the descriptor through which a child registers."""
    with _starting:
        copy = os.dup(_fd)
        ownership.own(copy)
        return copy


def ensure_guard() -> None:
    """Start the guard of this process, unless it is there.

    Raises :exc:`WorkerStartError`.
    """
    global _fd
    with _starting:
        if _fd >= 0:
            if not guard_main.readable(_fd):  # it never writes again: readable means it has ended
                return
            ownership.close(_fd)
            _fd = -1
        _fd = start_guard()
        for pid, grace in list(_registered.items()):  # those of a guard that died
            with contextlib.suppress(OSError):
                register(_fd, pid, grace)


def start_guard() -> int:
    """Start a guard and wait until it watches us; our end of the connection."""
    ours = theirs = -1
    try:
        ours, theirs = ownership.make_owned(connection)
        start(theirs)
        ownership.close(theirs)
        theirs = -1
        if not guard_main.readable(ours, START_SECONDS) or os.read(ours, 1) != b"+":
            raise OSError("it ended at once")
    except BaseException as error:
        for fd in (ours, theirs):
            if fd >= 0:
                ownership.close(fd)
        if not isinstance(error, OSError):
            raise
        raise WorkerStartError(
            error.errno, f"the guard process could not be started: {error}"
        ) from error
    return ours


def connection() -> tuple[int, int]:
    """A pair of connected sockets, above the standard descriptors."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    with ours, theirs:
        first = fcntl.fcntl(ours, fcntl.F_DUPFD_CLOEXEC, descriptors.FIRST_FREE_FD)
        try:
            return first, fcntl.fcntl(theirs, fcntl.F_DUPFD_CLOEXEC, descriptors.FIRST_FREE_FD)
        except OSError:
            os.close(first)
            raise


def start(theirs: int) -> None:
    number = 4 if theirs == 3 else 3  # another one, so that dup2 clears close-on-exec
    arguments = [str(number), str(os.getpid())]
    program = Path(guard_main.__file__)
    if not sys.executable or getattr(sys, "frozen", False) or not program.is_file():
        fork_guard(theirs)
        return
    # Not subprocess: a child that another thread forks meanwhile, and that lives on, would keep the
    # pipe that Popen waits for. The standard streams are not ours to keep open in the guard.
    shell = os.posix_spawn(
        "/bin/sh",
        ["sh", "-c", DETACH, "sh", sys.executable, "-I", "-S", str(program), *arguments],
        os.environ,
        file_actions=[
            (os.POSIX_SPAWN_DUP2, theirs, number),
            *((os.POSIX_SPAWN_OPEN, fd, os.devnull, os.O_RDWR, 0) for fd in range(3)),
        ],
        setsigmask=guard_main.IGNORED,
    )
    with contextlib.suppress(ChildProcessError):  # SIGCHLD is ignored
        _, status = os.waitpid(shell, 0)
        if status:
            raise OSError(f"/bin/sh ended with status {os.waitstatus_to_exitcode(status)}")


def fork_guard(theirs: int) -> None:
    """Where there is no interpreter to execute (a frozen application): a fork of this one."""
    host = os.getpid()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, guard_main.IGNORED)
    with ownership.kept_in_child(theirs):
        child = os.fork()
    if child:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        with contextlib.suppress(ChildProcessError):
            os.waitpid(child, 0)
        return
    try:
        os.setsid()
        if os.fork() == 0:
            null = os.open(os.devnull, os.O_RDWR)
            for fd in range(3):
                os.dup2(null, fd)
            os.closerange(3, theirs)
            os.closerange(theirs + 1, os.sysconf("SC_OPEN_MAX"))
            guard_main.watch(socket.socket(fileno=theirs), host)
    finally:
        os._exit(0)


def register(fd: int, pid: int, grace: float) -> None:
    """Tell the guard at ``fd`` of worker ``pid``. Called in the worker itself."""
    ancillary: list[tuple[int, int, array.array[int]]] = []
    pidfd = guard_main.open_exit_fd(pid) if sys.platform == "linux" else -1
    try:
        if pidfd >= 0:
            ancillary.append((socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [pidfd])))
        with socket.socket(fileno=os.dup(fd)) as connection:
            connection.sendmsg([guard_main.RECORD.pack(pid, grace)], ancillary)
    finally:
        if pidfd >= 0:
            os.close(pidfd)


def remember(pid: int, grace: float, copy: int) -> None:
    """Worker ``pid`` has to be told to the next guard, should this one die.

    ``copy``: where it registers itself. The next guard may be there already.
    """
    with _starting:
        _registered[pid] = grace
        if _fd >= 0 and guard_main.readable(copy) and not guard_main.readable(_fd):
            with contextlib.suppress(OSError):
                register(_fd, pid, grace)


def forget(pid: int) -> None:
    """Worker ``pid`` was reaped."""
    _registered.pop(pid, None)


def _after_fork_in_child() -> None:
    """The guard, and the workers it was told of, are the parent's. ``_fd`` is a placeholder."""
    global _fd, _starting
    _registered.clear()
    _starting = threading.Lock()
    if _fd >= 0:
        os.close(_fd)
        _fd = -1


os.register_at_fork(after_in_child=_after_fork_in_child)

"""The host's side of the guard: start it before the first fork, and again should it die.

What the guard does is in ``guard_main``, which is a program of its own. Both know a table, an
unlinked file with one record for each worker.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Final, Protocol

from ..errors import WorkerStartError
from . import descriptors, guard_main, ownership, signals

__all__ = [
    "ensure_guard",
    "forget",
    "guard_this",
    "register",
    "reserve",
    "table_copy",
    "tell",
    "workers",
]

# Starting takes some 10 ms; a machine under heavy load gets this long.
START_SECONDS: Final = 20.0

# The shell's job is to be the guard's parent and end at once, so that the guard is nobody's child
# here: it is not in the way of an application that waits for all of its own.
DETACH: Final = '"$@" &'


class Guarded(Protocol):
    """A worker, as the guard sees it; its ``pid`` is 0 until it is forked."""

    pid: int

    @property
    def grace(self) -> float: ...


# Plain numbers, since they live as long as the process: our end of the connection, which the guard
# closes when it ends, and the table.
_connection = _table = -1
_inodes: tuple[int, int] | None = None  # to know them by: somebody may close every number
_starting = threading.Lock()

# Slots of the table. No lock: each of these is one step, and a finaliser may come in between.
_workers: dict[int, Guarded] = {}
_free: list[int] = []
_fresh = itertools.count()


def ensure_guard() -> None:
    """Start the guard of this process, unless it is there.

    Raises :exc:`WorkerStartError`. What a signal's handler raises comes once it is started.
    """
    with _starting:
        # It never writes again: readable means that it has ended.
        if are_ours() and not guard_main.readable(_connection):
            return
        mask = signals.pthread_sigmask(signal.SIG_BLOCK, ())
        try:
            signals.pthread_sigmask(signal.SIG_BLOCK, signals.ALL_SIGNALS)
            replace_ours()
        finally:
            signals.pthread_sigmask(signal.SIG_SETMASK, mask)


def replace_ours() -> None:
    global _connection, _table, _inodes
    close_ours()
    try:
        fds = start_guard()
    except OSError as error:
        raise WorkerStartError(
            error.errno, f"the guard process could not be started: {error.strerror}"
        ) from error
    _connection, _table = fds
    _inodes = os.fstat(_connection).st_ino, os.fstat(_table).st_ino
    for fd in fds:  # from now on closed in every child by the hook below
        ownership.disown(fd)


def are_ours() -> bool:
    try:
        return (os.fstat(_connection).st_ino, os.fstat(_table).st_ino) == _inodes
    except OSError:
        return False


def close_ours() -> None:
    global _inodes
    if are_ours():
        os.close(_connection)
        os.close(_table)
    _inodes = None


def start_guard() -> tuple[int, int]:
    """Start a guard and wait until it watches us; our end of the connection, and its table."""
    try:
        return started_by(execute_guard)
    except ChildProcessError:  # a frozen or embedded interpreter, or one that this user cannot run
        return started_by(fork_guard)


def started_by(start: Callable[[int, int], None]) -> tuple[int, int]:
    opened: list[int] = []
    try:
        opened += ownership.make_owned(connection)
        opened += ownership.make_owned(new_table)
        ours, theirs, table = opened
        for slot in list(_workers):  # those of a guard that died; a finaliser may come in between
            worker = _workers.get(slot)
            if worker is not None:
                guard_main.write(table, slot, worker.pid, worker.grace)
        start(theirs, table)
        opened.remove(theirs)
        ownership.close(theirs)
        await_ready(ours)
    except BaseException:
        for fd in opened:
            ownership.close(fd)
        raise
    return ours, table


def await_ready(ours: int) -> None:
    """Wait until the guard behind ``ours`` is there. Raises :exc:`OSError`."""
    if not guard_main.readable(ours, START_SECONDS):
        raise TimeoutError(errno.ETIMEDOUT, f"it said nothing for {START_SECONDS:.0f} seconds")
    if os.read(ours, 1) != b"+":
        raise ChildProcessError(errno.ECHILD, "it ended at once")


def connection() -> tuple[int, ...]:
    """A pair of connected sockets, above the standard descriptors."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    with ours, theirs:
        ours.setblocking(True)  # whatever socket.setdefaulttimeout was told: the guard shares it
        theirs.setblocking(True)
        return descriptors.lifted(ours.fileno(), theirs.fileno())


def new_table() -> tuple[int, ...]:
    """An empty file without a name, above the standard descriptors."""
    if hasattr(os, "memfd_create"):
        fd = os.memfd_create("forkwire", os.MFD_CLOEXEC)
        try:
            return descriptors.lifted(fd)
        finally:
            os.close(fd)
    import tempfile  # which takes others along

    with tempfile.TemporaryFile() as file:
        return descriptors.lifted(file.fileno())


def execute_guard(theirs: int, table: int) -> None:
    """Have the interpreter that runs us run the guard of this process as a host.

    Raises :exc:`ChildProcessError` where there is none.
    """
    execute((theirs, table), str(os.getpid()))


def guard_this(link: int, grace: float) -> None:
    """Have a guard end this process and its group after its ``link`` has hung up, within ``grace``.

    For a worker that no host of ours has forked. Raises :exc:`WorkerStartError`.
    """
    try:
        ours, theirs = ownership.make_owned(connection)
        try:
            execute((theirs, link), str(os.getpid()), repr(grace))
            ownership.close(theirs)
            theirs = -1
            await_ready(ours)
        finally:
            for fd in (ours, theirs):
                if fd >= 0:
                    ownership.close(fd)
    except OSError as error:
        raise WorkerStartError(
            error.errno, f"the guard process could not be started: {error.strerror}"
        ) from error


def execute(given: tuple[int, int], *more: str) -> None:
    """Have the interpreter that runs us run `guard_main` with these descriptors and arguments.

    Raises :exc:`ChildProcessError` where there is none.
    """
    # Other numbers than they have, so that dup2 clears close-on-exec.
    numbers = [number for number in range(3, 7) if number not in given][:2]
    arguments = [*map(str, numbers), *more]
    program = Path(guard_main.__file__)
    if not sys.executable or getattr(sys, "frozen", False) or not program.is_file():
        raise ChildProcessError(errno.ECHILD, "there is no interpreter to execute")
    # Not subprocess: a child that another thread forks meanwhile, and that lives on, would keep the
    # pipe that Popen waits for. The standard streams are not ours to keep open in the guard.
    shell = os.posix_spawn(
        "/bin/sh",
        ["sh", "-c", DETACH, "sh", sys.executable, "-I", "-S", str(program), *arguments],
        os.environ,
        file_actions=[
            *((os.POSIX_SPAWN_DUP2, *pair) for pair in zip(given, numbers, strict=True)),
            *((os.POSIX_SPAWN_OPEN, fd, os.devnull, os.O_RDWR, 0) for fd in range(3)),
        ],
        setsigmask=guard_main.IGNORED,
    )
    with contextlib.suppress(ChildProcessError):  # SIGCHLD is ignored
        _, status = os.waitpid(shell, 0)
        if status:
            code = os.waitstatus_to_exitcode(status)
            raise ChildProcessError(errno.ECHILD, f"/bin/sh ended with status {code}")


def fork_guard(theirs: int, table: int) -> None:
    """Have a fork of this process be the guard."""
    host = os.getpid()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, guard_main.IGNORED)
    plan = ownership.plan_fork((theirs, table))
    try:
        child = os.fork()
        if child:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
            with contextlib.suppress(ChildProcessError):
                os.waitpid(child, 0)
            return
    finally:
        ownership.end_fork()
    try:
        os.setsid()
        plan.carry_out()
        ownership.disown(theirs)
        ownership.disown(table)
        if os.fork() == 0:
            null = os.open(os.devnull, os.O_RDWR)
            for fd in range(3):
                os.dup2(null, fd)
            guard_main.close_all_but(theirs, table)
            guard_main.watch(theirs, table, host)
    finally:
        os._exit(0)


def table_copy() -> int:
    """A duplicate of the table's descriptor: that of a worker, which registers itself with it."""
    return os.dup(_table)


def reserve(worker: Guarded) -> int:
    """A slot for a worker that is about to be forked, and registers itself."""
    try:
        slot = _free.pop()
    except IndexError:
        slot = next(_fresh)
    _workers[slot] = worker
    return slot


def register(table: int, slot: int, grace: float) -> None:
    """Tell the guard of this process, a worker."""
    guard_main.write(table, slot, os.getpid(), grace)


def tell(slot: int) -> None:
    """Tell the guard of the process of ``slot``, which is not forked here and has a pid now."""
    worker = _workers[slot]
    guard_main.write(_table, slot, worker.pid, worker.grace)


def workers() -> list[Guarded]:
    """Those that have not been reaped."""
    return list(_workers.values())


def forget(slot: int) -> None:
    """The worker of ``slot`` has ended and its number is about to be free, or there was none."""
    _workers.pop(slot, None)
    with contextlib.suppress(OSError):  # somebody closed the table
        guard_main.write(_table, slot, 0, 0.0)
    _free.append(slot)


def _after_fork_in_child() -> None:
    """The guard, and the workers it was told of, are the parent's."""
    global _starting, _fresh
    _workers.clear()
    _free.clear()
    _fresh = itertools.count()
    _starting = threading.Lock()
    close_ours()


os.register_at_fork(after_in_child=_after_fork_in_child)

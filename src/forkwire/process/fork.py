"""The fork itself: what is made ready before it, and what each side owns after it.

A page of memory that either side writes after the fork is copied first, which costs more than most
of what is done here. So all that can be is made before it, and little code runs after it.
"""

from __future__ import annotations

import inspect
import os
import sys
import threading
import warnings
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from types import FunctionType
from typing import Any, Final

from ..errors import WorkerStartError
from . import child, descriptors, doctor, guard, ownership, reaping, signals
from .backend import BackendName
from .channels import InputChannel, OutputChannel
from .loops import loop_descriptors, open_descriptors

__all__ = ["Ends", "Options", "fork_worker", "get_ready", "open_ends", "prepare"]

CO_COROUTINE: Final = inspect.CO_COROUTINE

NOBODY: Final = -1  # no process has this number


@dataclass(slots=True)
class Options:
    """How to fork; `run` says what each means.

    ``executes``: the worker becomes another program at once, so that no lock is of use to it.
    """

    backend: BackendName
    grace: float
    max_message_size: int
    close_fds: bool
    capture_stderr: bool
    capture_stdout: bool = False
    null_stdin: bool = False
    executes: bool = False


@dataclass(slots=True)
class Ends:
    """The pipes of a worker, all owned, and its copy of the guard's table; -1 for none."""

    child_input: int
    output: int
    input: int
    child_output: int
    table: int
    stderr: int = -1
    child_stderr: int = -1
    stdout: int = -1
    child_stdout: int = -1

    def ours(self) -> list[int]:
        """Those that the host keeps."""
        return [fd for fd in (self.input, self.output, self.stderr, self.stdout) if fd >= 0]

    def theirs(self) -> list[int]:
        """Those that the worker keeps."""
        read_and_written = (self.child_input, self.child_output, self.table)
        said = (self.child_stderr, self.child_stdout)
        return [fd for fd in (*read_and_written, *said) if fd >= 0]

    def close(self) -> None:
        """Nothing comes of it."""
        self.close_theirs()
        for fd in self.ours():
            ownership.close(fd)

    def close_theirs(self) -> None:
        """In the host, once there is a worker, or will be none. Idempotent."""
        theirs = self.theirs()
        self.child_input = self.child_output = self.table = -1
        self.child_stderr = self.child_stdout = -1
        for fd in theirs:
            ownership.close(fd)


def get_ready(options: Options) -> None:
    """Streams are flushed, and the guard is there. Raises :exc:`WorkerStartError`."""
    if not options.executes:
        doctor.warn_of_threads()
    descriptors.flush_standard_streams()
    guard.ensure_guard()
    reaping.reap_deserted()


def open_ends(capture_stderr: bool, capture_stdout: bool = False) -> Ends:
    """Open what a worker needs. Raises :exc:`WorkerStartError`; nothing is left open then."""

    def make() -> tuple[int, ...]:
        opened: list[int] = []
        try:
            opened += descriptors.make_pipe()
            opened += descriptors.make_pipe()
            opened.append(guard.table_copy())
            for _ in range(capture_stderr + capture_stdout):
                opened += descriptors.make_pipe()
        except BaseException:
            for fd in opened:
                os.close(fd)
            raise
        return tuple(opened)

    try:
        opened = ownership.make_owned(make)
    except OSError as error:
        raise WorkerStartError(
            error.errno, f"no pipe could be opened for a worker: {error.strerror}"
        ) from error
    ends = Ends(*opened[:5])
    if capture_stderr:
        ends.stderr, ends.child_stderr = opened[5:7]
    if capture_stdout:
        ends.stdout, ends.child_stdout = opened[-2:]
    return ends


def prepare(
    f: Callable[[InputChannel, OutputChannel, Any], Awaitable[object] | object],
    arg: Any,
    options: Options,
    ends: Ends,
    slot: int,
    mask: frozenset[int],
) -> child.Birth:
    """All that a worker needs. Signals are blocked; ``mask``: those that were before."""
    limit = options.max_message_size
    return child.Birth(
        f=f,
        is_async=is_async(f),
        arg=arg,
        backend=options.backend,
        grace=options.grace,
        close_fds=options.close_fds,
        input=InputChannel._of_pipe(ends.child_input, limit)._of_process(NOBODY),
        output=OutputChannel._of_pipe(ends.child_output)._of_process(NOBODY),
        stderr_fd=ends.child_stderr,
        stdout_fd=ends.child_stdout,
        null_stdin=options.null_stdin,
        table=ends.table,
        slot=slot,
        open_before=open_descriptors() if options.close_fds else {},
        host=os.getpid(),
        on_main_thread=threading.current_thread() is threading.main_thread(),
        mask=mask,
        handled=signals.handled(),
    )


def fork_worker(birth: child.Birth, ends: Ends) -> int:
    """Fork, and be the worker in the child; its pid in the host.

    Awaits nothing, so nothing can be cancelled half way. Raises :exc:`OSError`.
    """
    loops_own = loop_descriptors()
    try:
        birth.descriptors = ownership.plan_fork(ends.theirs(), ends.ours(), loops_own)
        pid = fork_quietly()
        if pid == 0:
            child.live(birth)
    finally:
        ownership.end_fork()
    return pid


def is_async(f: Callable[..., object]) -> bool:
    """Whether calling ``f`` runs nothing of it yet. A lambda may still answer an awaitable."""
    if isinstance(f, FunctionType) and not f.__dict__:  # plainly so, or not
        return bool(f.__code__.co_flags & CO_COROUTINE)
    return inspect.iscoroutinefunction(f) or inspect.iscoroutinefunction(
        getattr(f, "__call__", None)  # noqa: B004
    )


def fork_quietly() -> int:
    """``os.fork``, without Python's own warning of threads: ours says more, once."""
    if sys.version_info < (3, 12) or doctor.os_thread_count() < 2:
        return os.fork()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        return os.fork()

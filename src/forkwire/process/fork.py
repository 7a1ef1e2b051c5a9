"""The fork itself: what must be ready before it, and what each side owns after it."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import signal
import sys
import threading
import time
import warnings
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from typing import Any, Final

from ..errors import ForkThreadsWarning, WorkerStartError
from . import child, descriptors, guard, ownership, signals
from .backend import BackendName
from .channels import InputChannel, OutputChannel
from .loops import loop_descriptors, open_descriptors

__all__ = ["Forked", "Options", "fork_worker", "ready_to_fork", "undo"]

NAMED_THREADS: Final = 8  # in the warning; the rest are counted

LOOKS: Final = 5  # at threads that Python does not know of
OUR_THREADS: Final = "forkwire: "  # they share no lock with anybody

_warned = False


@dataclass(frozen=True, slots=True)
class Options:
    """How to fork; `run` says what each means."""

    backend: BackendName
    grace: float
    max_message_size: int
    close_fds: bool
    capture_stderr: bool


@dataclass(frozen=True, slots=True)
class Forked:
    """What the host has of a new worker. ``stderr_fd``: -1 where it is not captured."""

    pid: int
    input_fd: int
    output_fd: int
    stderr_fd: int

    def descriptors(self) -> tuple[int, ...]:
        """Those that are there."""
        return tuple(fd for fd in (self.input_fd, self.output_fd, self.stderr_fd) if fd >= 0)


@contextlib.contextmanager
def ready_to_fork() -> Iterator[frozenset[int]]:
    """Streams are flushed, the guard is there, and every signal waits.

    Answers the signals that were blocked before. Raises :exc:`WorkerStartError`; the handlers of
    the signals that came meanwhile run on the way out.
    """
    warn_of_threads()
    descriptors.flush_standard_streams()
    guard.ensure_guard()
    before = signals.pthread_sigmask(signal.SIG_BLOCK, ())
    try:
        signals.pthread_sigmask(signal.SIG_BLOCK, signals.ALL_SIGNALS)  # a handler may raise here
        yield before
    finally:
        signals.pthread_sigmask(signal.SIG_SETMASK, before)


def fork_worker(
    f: Callable[[InputChannel, OutputChannel, Any], Awaitable[object] | object],
    arg: Any,
    options: Options,
    mask: frozenset[int],
) -> Forked:
    """Fork a worker that runs ``f``, inside `ready_to_fork`, whose answer ``mask`` is.

    Awaits nothing, so nothing can be cancelled half way. Raises :exc:`WorkerStartError`; nothing
    is left open then.
    """
    with contextlib.ExitStack() as opened:
        try:
            child_in, output_fd = pipe(opened)
            input_fd, child_out = pipe(opened)
            stderr_fd, child_err = pipe(opened) if options.capture_stderr else (-1, -1)
            guard_fd = guard.registration_fd()
            opened.callback(ownership.close, guard_fd)
            forked = Forked(-1, input_fd, output_fd, stderr_fd)
            birth = child.Birth(
                f=f,
                arg=arg,
                backend=options.backend,
                grace=options.grace,
                max_message_size=options.max_message_size,
                close_fds=options.close_fds,
                input_fd=child_in,
                output_fd=child_out,
                stderr_fd=child_err,
                guard_fd=guard_fd,
                parent_ends=forked.descriptors(),
                loop_fds=frozenset(loop_descriptors()),
                open_before=open_descriptors() if options.close_fds else {},
                host=os.getpid(),
                on_main_thread=threading.current_thread() is threading.main_thread(),
                mask=mask,
            )
            with ownership.kept_in_child(child_in, child_out, child_err, guard_fd):
                pid = fork_quietly()
                if pid == 0:
                    child.live(birth)
        except OSError as error:
            raise WorkerStartError(
                error.errno, f"a worker could not be forked: {error.strerror}"
            ) from error
        opened.pop_all()
    forked = dataclasses.replace(forked, pid=pid)
    with contextlib.suppress(OSError):  # it did so itself, or has ended
        os.setpgid(pid, pid)
    guard.remember(pid, options.grace, guard_fd)
    for fd in (child_in, child_out, child_err, guard_fd):
        if fd >= 0:
            ownership.close(fd)
    return forked


def undo(forked: Forked) -> None:
    """End a worker that nobody will have a handle of."""
    with contextlib.suppress(OSError):
        os.killpg(forked.pid, signal.SIGKILL)
    with contextlib.suppress(ChildProcessError):
        os.waitpid(forked.pid, 0)
    guard.forget(forked.pid)
    for fd in forked.descriptors():
        ownership.close(fd)


def pipe(opened: contextlib.ExitStack) -> tuple[int, int]:
    ends = ownership.make_owned(descriptors.make_pipe)
    for fd in ends:
        opened.callback(ownership.close, fd)
    return ends


def fork_quietly() -> int:
    """``os.fork``, without Python's own warning of threads: ours says more, once."""
    if sys.version_info < (3, 12) or os_thread_count() < 2:
        return os.fork()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        return os.fork()


def os_thread_count() -> int:
    """The threads of this process, those of C libraries included where that can be known."""
    try:
        return len(os.listdir("/proc/self/task"))
    except OSError:
        return threading.active_count()


def warn_of_threads() -> None:
    """Once: other threads run, and a lock that one of them holds stays locked in the child."""
    global _warned
    if _warned or os_thread_count() < 2:
        return
    others, foreign = other_threads()
    for _ in range(LOOKS):
        if others or foreign <= 0:
            break
        time.sleep(0.001)  # one that has just ended is still listed
        others, foreign = other_threads()
    if not others and foreign <= 0:
        return
    names = [repr(thread.name) for thread in others[:NAMED_THREADS]]
    if len(others) > NAMED_THREADS:
        names.append(f"{len(others) - NAMED_THREADS} more")
    if foreign > 0:
        names.append(f"{foreign} not started by Python")
    _warned = True
    warnings.warn(
        f"forking while other threads run ({', '.join(names)}): a lock that one of them holds "
        "now stays locked in the worker. Start workers before threads, or keep to code in the "
        "worker that shares no lock with them",
        ForkThreadsWarning,
        stacklevel=5,
    )


def other_threads() -> tuple[list[threading.Thread], int]:
    """Python's threads but this one and ours, and how many Python does not know of."""
    running = [thread for thread in threading.enumerate() if thread != threading.current_thread()]
    others = [thread for thread in running if not thread.name.startswith(OUR_THREADS)]
    return others, os_thread_count() - 1 - len(running)

"""The life of a forked worker, from the fork to its exit. Nothing here ever returns to the host.

Signals are blocked on entry. SIGTERM stays so until somebody can act on it: then it cancels ``f``.
"""

from __future__ import annotations

import atexit
import contextlib
import contextvars
import ctypes
import faulthandler
import functools
import gc
import inspect
import os
import signal
import sys
import traceback
import weakref
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from typing import Any, Final, NoReturn, TextIO

from ..errors import ProcessWorkerIPCError, UsageError
from . import cancelling, descriptors, guard, loops, ownership, signals, waiting
from .backend import BackendName
from .cancelling import TERMINATED, Termination
from .channels import InputChannel, OutputChannel

__all__ = ["Birth", "live"]

PR_SET_PDEATHSIG: Final = 1  # prctl(2)

if sys.platform == "linux":
    prctl = ctypes.CDLL(None).prctl
    prctl.argtypes = [ctypes.c_int, ctypes.c_ulong]

# Ctrl-C, and the terminal: we are in its background.
UNHEARD: Final = (signal.SIGINT, signal.SIGPIPE, signal.SIGTTIN, signal.SIGTTOU)


@dataclass(slots=True)
class Birth:
    """What a worker is born with. The host makes all of it, in memory that both then share."""

    f: Callable[[InputChannel, OutputChannel, Any], Awaitable[object] | object]
    is_async: bool
    arg: Any
    backend: BackendName
    grace: float
    close_fds: bool
    input: InputChannel
    output: OutputChannel
    stderr_fd: int  # -1: inherited
    stdout_fd: int  # the same
    null_stdin: bool
    table: int  # the guard's
    slot: int  # in it
    open_before: dict[int, str]  # what the host had open, where that matters
    host: int
    on_main_thread: bool
    mask: frozenset[int]  # the signals that the forking thread had blocked
    handled: Iterable[int]  # those that have a handler of the host's
    descriptors: ownership.Plan | None = None  # known at the last moment
    rehearsed: bool = False  # it has entered before, with other pipes


def live(birth: Birth) -> NoReturn:
    """Be the worker."""
    status = 1
    termination = Termination()
    try:
        if not birth.rehearsed:
            forget_exit_functions()
        enter(birth, termination)
        status = contextvars.copy_context().run(work, birth, termination)
    except BaseException as error:
        if not (isinstance(error, SystemExit) or termination.explains(error)):
            report(error, birth.f)
    finally:
        leave(status, termination)


def forget_exit_functions() -> None:
    """What the host registered is the host's to do; modules that did so once do it again.

    Also what it does when an object goes: a temporary directory outlives our reference to it.
    """
    atexit._clear()
    registry: Any = weakref.finalize
    for info in registry._registry.values():
        info.atexit = False
        thing = info.weakref()
        if thing is not None:  # from now on without a callback: called by hand it still works
            info.weakref = weakref.ref(thing)
    registry._registered_with_atexit = False
    util: Any = sys.modules.get("multiprocessing.util")
    if util is not None:
        util._finalizer_registry.clear()
        sys.modules["multiprocessing.process"]._children = set()  # type: ignore[attr-defined]
        atexit.register(util._exit_function)


def enter(birth: Birth, termination: Termination) -> None:
    """Become a process of our own: group, signals, descriptors."""
    if not birth.rehearsed:
        os.setpgid(0, 0)
    assert birth.descriptors is not None
    birth.descriptors.carry_out()
    die_with_host(birth, termination)
    if not birth.rehearsed:
        forget_handlers(birth.handled)
        if birth.null_stdin:
            take_null_as_stdin()
    if birth.stdout_fd >= 0:
        sys.stdout = take_output(birth.stdout_fd, 1, sys.stdout if birth.rehearsed else None)
    if birth.stderr_fd >= 0:
        sys.stderr = take_output(birth.stderr_fd, 2, sys.stderr if birth.rehearsed else None)
        faulthandler.enable(2)  # crashes speak there
    if birth.close_fds:
        cover_others(birth)
    gc.freeze()  # what was inherited stays shared with the host, and is never collected here
    waiting.forget_wakeup()


def forget_handlers(handled: Iterable[int]) -> None:
    """Signals do what they do by default, or nothing."""
    signal.set_wakeup_fd(-1)
    for number in handled:
        signals.set_handler(number, signals.SIG_DFL)
    for number in UNHEARD:
        signals.set_handler(number, signals.SIG_IGN)
    signals.set_handler(signal.SIGTERM, signals.SIG_DFL)


def die_with_host(birth: Birth, termination: Termination) -> None:
    """Have the guard end us when the host ends, and the kernel too where it can be relied on."""
    if birth.on_main_thread and sys.platform == "linux" and not birth.rehearsed:
        # The signal comes when the forking thread ends: the main one lives as long as the host.
        prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    guard.register(birth.table, birth.slot, birth.grace)
    ownership.close(birth.table)
    if os.getppid() != birth.host:  # it ended before all this was in place
        termination.requested = True
        leave(TERMINATED, termination)


def take_output(fd: int, standard: int, stream: TextIO | None) -> TextIO:
    """Descriptor ``standard`` is the pipe that the host reads, and so is the answered stream.

    ``stream``: what this answered for that descriptor before.
    """
    os.set_blocking(fd, True)
    os.dup2(fd, standard)
    ownership.close(fd)
    return stream or open(standard, "w", 1, "utf-8", "backslashreplace", closefd=False)


def take_null_as_stdin() -> None:
    """Nothing is ever read from the host's stdin, not even what it has in a buffer."""
    null = os.open(os.devnull, os.O_RDONLY)
    if null != 0:
        os.dup2(null, 0)
        os.close(null)
    os.set_inheritable(0, True)
    sys.stdin = open(0, encoding="utf-8", closefd=False)  # noqa: SIM115


def cover_others(birth: Birth) -> None:
    """With ``close_fds``: let go of every file but 0 to 2, our own, and those in ``arg``.

    Placeholders keep the numbers: objects that own one may be anywhere in what we inherited, or in
    a C library, and would close whatever got the number later. To search for them would touch, and
    so copy, all of the host's memory.
    """
    kept = {0, 1, 2, birth.input.fileno(), birth.output.fileno()}
    kept |= descriptors_in(birth.arg) | remade(birth)
    ownership.overlay(descriptors.all_open() - kept)


def remade(birth: Birth) -> set[int]:
    """What libuv opened anew when it saw the fork: a loop of its own needs these."""
    if birth.backend != "uvloop" or not birth.is_async:
        return set()
    before = birth.open_before
    return {
        fd
        for fd, target in loops.open_descriptors().items()
        if target.startswith("pipe:") and target != before.get(fd, target)
    }


def descriptors_in(arg: Any) -> set[int]:
    """Those that ``arg`` names: an int, an object with ``fileno()``, or a flat list of them."""
    found = set()
    for part in arg if isinstance(arg, (list, tuple, set, frozenset)) else [arg]:
        if hasattr(part, "fileno"):
            with contextlib.suppress(OSError, ValueError):
                found.add(part.fileno())
        elif isinstance(part, int) and not isinstance(part, bool):
            found.add(part)
    return found


def work(birth: Birth, termination: Termination) -> int:
    """Run ``f``; answer the exit status."""
    loops.forget_running_loop()
    pid = os.getpid()
    input_channel, output_channel = birth.input._of_process(pid), birth.output._of_process(pid)
    unblocked = birth.mask - {signal.SIGTERM}
    try:
        if birth.is_async:
            result = birth.f(input_channel, output_channel, birth.arg)
        else:
            cancelling.listen_in_plain_code(termination, on_main_thread=birth.on_main_thread)
            signals.pthread_sigmask(signal.SIG_SETMASK, unblocked)
            result = birth.f(input_channel, output_channel, birth.arg)
        if inspect.isgenerator(result) or inspect.isasyncgen(result):
            raise UsageError(f"{birth.f!r} has a yield: calling it ran nothing")
        if inspect.isawaitable(result):
            signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
            cancelling.run_awaitable(result, birth.backend, termination, unblocked)
    except SystemExit as error:
        return exit_status(error)
    finally:
        termination.too_late = True
        with contextlib.suppress(OSError):  # f closed the descriptor itself
            input_channel.close()
        with contextlib.suppress(ProcessWorkerIPCError, OSError):  # or SIGTERM cut it short
            output_channel.finish()
    return 0


def exit_status(error: SystemExit) -> int:
    """What the interpreter would make of ``sys.exit(code)``."""
    if error.code is None:
        return 0
    if isinstance(error.code, int):  # also the one that SIGTERM raises
        return error.code & 0xFF
    say(f"{error.code}\n")
    return 1


# -- the end ------------------------------------------------------------------------------------


def report(error: BaseException, f: Callable[..., object]) -> None:
    """The traceback on stderr, from ``f`` on."""
    while isinstance(f, functools.partial):
        f = f.func
    f = inspect.unwrap(f)
    code = getattr(f, "__code__", None) or getattr(type(f).__call__, "__code__", None)
    start = error.__traceback__
    while start is not None and start.tb_frame.f_code is not code:
        start = start.tb_next
    lines = traceback.format_exception(type(error), error, start or error.__traceback__)
    say("".join(lines))


def say(text: str) -> None:
    """On stderr; where that is a file object without a descriptor, on descriptor 2."""
    try:
        sys.stderr.fileno()
        sys.stderr.write(text)
    except Exception:  # None, in memory as in a test, closed, or broken
        with contextlib.suppress(OSError):
            os.write(2, text.encode("utf-8", "backslashreplace"))


def leave(status: int, termination: Termination) -> NoReturn:
    """Flush what was printed, and end: after SIGTERM by that very signal."""
    try:
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        atexit._run_exitfuncs()
        descriptors.restore_all()
        descriptors.flush_standard_streams()
        if termination.requested:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            os.kill(os.getpid(), signal.SIGTERM)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
            status = TERMINATED  # still here: SIGTERM does nothing to a namespace's first process
    finally:
        os._exit(status)

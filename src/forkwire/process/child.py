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
import io
import os
import select
import signal
import socket
import stat
import sys
import threading
import time
import traceback
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from typing import Any, Final, NoReturn

import anyio

from ..errors import ProcessWorkerIPCError, UsageError
from . import descriptors, guard, loops, ownership, signals, waiting
from .backend import BackendName
from .channels import InputChannel, OutputChannel

__all__ = ["Birth", "live"]

PR_SET_PDEATHSIG: Final = 1  # prctl(2)

if sys.platform == "linux":
    prctl = ctypes.CDLL(None).prctl
    prctl.argtypes = [ctypes.c_int, ctypes.c_ulong]

# Owners of descriptors that are no file objects, and where they keep the number:
# multiprocessing.connection.Connection, trio's FdStream.
ELSEWHERE: Final = {"Connection": "_handle", "_FdHolder": "fd"}

TERMINATED: Final = 128 + int(signal.SIGTERM)

# Ctrl-C, and the terminal: we are in its background.
UNHEARD: Final = (signal.SIGINT, signal.SIGPIPE, signal.SIGTTIN, signal.SIGTTOU)

# From 3.13 on Python runs no signal handler during pure bytecode in a child that was not forked on
# the main thread.
DEAF_TO_SIGNALS: Final = sys.version_info >= (3, 13)
KNOCK: Final = 0.05  # seconds between attempts to make it hear


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
    table: int  # the guard's
    slot: int  # in it
    open_before: dict[int, str]  # what the host had open, where that matters
    host: int
    on_main_thread: bool
    mask: frozenset[int]  # the signals that the forking thread had blocked
    handled: Iterable[int]  # those that have a handler of the host's
    descriptors: ownership.Plan | None = None  # known at the last moment


class Termination:
    """Whether SIGTERM was received: then so the worker ends, whatever ``f`` makes of it."""

    requested = False
    too_late = False  # f has ended: nothing is left to cancel


def live(birth: Birth) -> NoReturn:
    """Be the worker."""
    status = 1
    termination = Termination()
    atexit._clear()  # what the host registered is for the host's end
    try:
        enter(birth, termination)
        status = contextvars.copy_context().run(work, birth, termination)
    except BaseException as error:
        if not isinstance(error, SystemExit):
            report(error, birth.f)
    finally:
        leave(status, termination)


def enter(birth: Birth, termination: Termination) -> None:
    """Become a process of our own: group, signals, descriptors."""
    os.setpgid(0, 0)
    assert birth.descriptors is not None
    birth.descriptors.carry_out()
    die_with_host(birth, termination)
    signal.set_wakeup_fd(-1)
    for number in birth.handled:
        signals.set_handler(number, signals.SIG_DFL)
    for number in UNHEARD:
        signals.set_handler(number, signals.SIG_IGN)
    signals.set_handler(signal.SIGTERM, signals.SIG_DFL)
    if birth.stderr_fd >= 0:
        take_stderr(birth.stderr_fd)
    if birth.close_fds:
        own = {birth.input.fileno(), birth.output.fileno()} | remade(birth)
        close_others({0, 1, 2} | own | descriptors_in(birth.arg))
    gc.freeze()  # what was inherited stays shared with the host, and is never collected here
    waiting.forget_wakeup()


def die_with_host(birth: Birth, termination: Termination) -> None:
    """Have the guard end us when the host ends, and the kernel too where it can be relied on."""
    if birth.on_main_thread and sys.platform == "linux":
        # The signal comes when the forking thread ends: the main one lives as long as the host.
        prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    guard.register(birth.table, birth.slot, birth.grace)
    ownership.close(birth.table)
    if os.getppid() != birth.host:  # it ended before all this was in place
        termination.requested = True
        leave(TERMINATED, termination)


def take_stderr(fd: int) -> None:
    """Descriptor 2, and so ``sys.stderr``, is the pipe that the host reads; crashes speak there."""
    os.set_blocking(fd, True)
    os.dup2(fd, 2)
    ownership.close(fd)
    sys.stderr = io.TextIOWrapper(
        io.FileIO(2, "w", closefd=False), "utf-8", "backslashreplace", write_through=True
    )
    faulthandler.enable(2)


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


def close_others(kept: set[int]) -> None:
    """Leave no file open but ``kept``.

    Objects that own a descriptor are told first: their finalisers would close whatever gets the
    number later. Where Python cannot find the owner (of a mapped file, an epoll, a connection of a
    C library) a placeholder keeps the number; pipes without one are simply closed.
    """
    gc.unfreeze()  # frozen objects are not listed
    for thing in gc.get_objects():
        with contextlib.suppress(OSError, ValueError, AttributeError):
            if isinstance(thing, (socket.socket, io.FileIO)) and thing.fileno() not in kept:
                if isinstance(thing, socket.socket):
                    os.close(thing.detach())
                else:
                    thing.close()
            elif type(thing).__name__ in ELSEWHERE:
                tell(thing, kept)
    loops.close_poller()
    covered = []
    for fd in all_descriptors() - kept:
        with contextlib.suppress(OSError):
            if is_ownerless(fd):
                os.close(fd)
            else:
                covered.append(fd)
    ownership.overlay(covered)


def is_ownerless(fd: int) -> bool:
    """Whether nobody is left who would close ``fd``: pipes, and our placeholders."""
    status = os.fstat(fd)
    if stat.S_ISCHR(status.st_mode):
        return status.st_rdev == os.stat(os.devnull).st_rdev
    return stat.S_ISFIFO(status.st_mode)


def tell(thing: Any, kept: set[int]) -> None:
    """Have an object of `ELSEWHERE` forget the descriptor that it would close."""
    name = ELSEWHERE[type(thing).__name__]
    fd = getattr(thing, name)
    if isinstance(fd, int) and fd >= 0 and fd not in kept:
        setattr(thing, name, None if name == "_handle" else -1)
        os.close(fd)


def all_descriptors() -> set[int]:
    """Every open one."""
    return {int(name) for name in os.listdir("/dev/fd")}


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
            listen_in_plain_code(birth, termination)
            signals.pthread_sigmask(signal.SIG_SETMASK, unblocked)
            result = birth.f(input_channel, output_channel, birth.arg)
        if inspect.isgenerator(result) or inspect.isasyncgen(result):
            raise UsageError(f"{birth.f!r} has a yield: calling it ran nothing")
        if inspect.isawaitable(result):
            signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
            run_awaitable(result, birth.backend, termination, unblocked)
    except SystemExit as error:
        return exit_status(error)
    finally:
        termination.too_late = True
        input_channel.close()
        with contextlib.suppress(ProcessWorkerIPCError):  # cut short by SIGTERM, and said so then
            output_channel.finish()
    return 0


def exit_status(error: SystemExit) -> int:
    """What the interpreter would make of ``sys.exit(code)``."""
    if error.code is None:
        return 0
    if isinstance(error.code, int):  # also the one that SIGTERM raises
        return error.code & 0xFF
    if sys.stderr is not None:
        print(error.code, file=sys.stderr)
    return 1


# -- SIGTERM cancels f --------------------------------------------------------------------------


def listen_in_plain_code(birth: Birth, termination: Termination) -> None:
    """SIGTERM raises :exc:`SystemExit` in plain code, once."""

    def on_sigterm(number: int, frame: object) -> None:
        first = not termination.requested
        termination.requested = True
        if DEAF_TO_SIGNALS:
            raise_in(threading.get_ident(), None)
        if first and not termination.too_late:
            raise SystemExit(TERMINATED)

    signals.set_handler(signal.SIGTERM, on_sigterm)
    if DEAF_TO_SIGNALS and not birth.on_main_thread:
        hear_for(threading.get_ident(), termination)
    else:
        waiting.wake_on_signals()


def hear_for(main: int, termination: Termination) -> None:
    """A thread that brings a SIGTERM to a main thread whose handlers do not run by themselves.

    In a blocking call they do once a signal interrupts it, so that is repeated until it helped;
    in pure bytecode an exception is raised from here.
    """
    heard, write_end = descriptors.make_pipe()
    signal.set_wakeup_fd(write_end, warn_on_full_buffer=False)

    class Terminated(SystemExit):
        def __init__(self) -> None:
            super().__init__(TERMINATED)
            termination.requested = True

    def hear() -> None:
        received = b""
        while signal.SIGTERM not in received:
            waiting.wait_blocking(heard, select.POLLIN)
            received = os.read(heard, 64)
        raised = False
        while not (termination.requested or termination.too_late):
            signal.pthread_kill(main, signal.SIGTERM)
            time.sleep(KNOCK)
            if not raised:
                raised = True
                if not termination.requested:
                    raise_in(main, Terminated)

    threading.Thread(target=hear, name="forkwire: SIGTERM", daemon=True).start()


def raise_in(thread: int, kind: type[BaseException] | None) -> None:
    """Have ``thread`` raise ``kind`` at its next bytecode; None takes that back."""
    ctypes.pythonapi.PyThreadState_SetAsyncExc(
        ctypes.c_ulong(thread), None if kind is None else ctypes.py_object(kind)
    )


def run_awaitable(
    awaitable: Awaitable[object],
    backend: BackendName,
    termination: Termination,
    mask: Iterable[int],
) -> None:
    """Run the rest of an async ``f`` in a fresh event loop, where SIGTERM cancels it."""

    async def main() -> None:
        with anyio.CancelScope() as scope:

            def on_sigterm() -> None:
                termination.requested = True
                scope.cancel()

            await listen_in_loop(backend, on_sigterm)
            signals.pthread_sigmask(signal.SIG_SETMASK, mask)
            try:
                await awaitable
            finally:  # the loop forgets its handler, and its wake-up, before it is gone
                signals.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})

    if backend == "trio":
        anyio.run(main, backend="trio")
    else:
        options = {"use_uvloop": backend == "uvloop"}
        anyio.run(main, backend="asyncio", backend_options=options)


async def listen_in_loop(backend: BackendName, on_sigterm: Callable[[], None]) -> None:
    if backend != "trio":
        import asyncio

        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, on_sigterm)
        return
    import trio

    # The number is read from the wake-up socket: whether Python gets to run the handler does not
    # matter (DEAF_TO_SIGNALS). trio itself needs its own wake-up for Ctrl-C only.
    read_end, write_end = socket.socketpair()
    read_end.setblocking(False)
    write_end.setblocking(False)
    signal.signal(signal.SIGTERM, lambda number, frame: None)
    signal.set_wakeup_fd(write_end.fileno(), warn_on_full_buffer=False)

    async def listen() -> None:
        with read_end, write_end:
            while True:
                await trio.lowlevel.wait_readable(read_end)
                if signal.SIGTERM in read_end.recv(64):
                    on_sigterm()

    trio.lowlevel.spawn_system_task(listen, name="forkwire: SIGTERM")


# -- the end ------------------------------------------------------------------------------------


def report(error: BaseException, f: Callable[..., object]) -> None:
    """The traceback on stderr, from ``f`` on."""
    if sys.stderr is None:  # print_exception would take stdout
        return
    while isinstance(f, functools.partial):
        f = f.func
    f = inspect.unwrap(f)
    code = getattr(f, "__code__", None) or getattr(type(f).__call__, "__code__", None)
    start = error.__traceback__
    while start is not None and start.tb_frame.f_code is not code:
        start = start.tb_next
    with contextlib.suppress(OSError, ValueError, AttributeError):  # no stderr: nowhere to say so
        traceback.print_exception(type(error), error, start or error.__traceback__)


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

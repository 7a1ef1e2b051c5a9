"""SIGTERM cancels ``f``: as :exc:`SystemExit` in plain code, as a cancellation in a loop.

Whatever the worker forks in turn has none of this: there SIGTERM does what it always does.
"""

from __future__ import annotations

import _thread
import contextlib
import ctypes
import os
import select
import signal
import socket
import sys
import threading
import time
from collections.abc import Awaitable, Callable, Iterable
from types import FrameType
from typing import Final

from . import descriptors, loops, signals, waiting
from .backend import BackendName

__all__ = ["TERMINATED", "Terminated", "Termination", "listen_in_plain_code", "run_awaitable"]

TERMINATED: Final = 128 + int(signal.SIGTERM)

# From 3.13 on Python runs no signal handler during pure bytecode in a child that was not forked on
# the main thread.
DEAF_TO_SIGNALS: Final = sys.version_info >= (3, 13)
KNOCK: Final = 0.05  # seconds between attempts to make it hear
PATIENCE: Final = 10  # attempts, where its loop was asked
AGAIN: Final = 0.01  # seconds until an exception that was swallowed is raised anew

_set_wakeup_fd: Final = signal.set_wakeup_fd
_handler: object = None  # ours, as long as it is to be taken back in what we fork
_masks: dict[int, frozenset[int]] = {}  # a thread that forks: what it had blocked


class Terminated(SystemExit):
    """What SIGTERM raises in plain code."""

    def __init__(self) -> None:
        super().__init__(TERMINATED)


class Termination:
    """Whether SIGTERM was received: then so the worker ends, whatever ``f`` makes of it."""

    requested = False
    asked = 0.0  # when f's loop was asked to tell it
    delivered = False  # f was told
    too_late = False  # f has ended: nothing is left to cancel

    def explains(self, error: BaseException) -> bool:
        """Whether ``error`` is but the cancellation that was asked for."""
        if isinstance(error, BaseExceptionGroup):
            return all(self.explains(part) for part in error.exceptions)
        return self.requested and (
            isinstance(error, Terminated) or type(error).__name__ == "Cancelled"  # trio's
        )


def listen_in_plain_code(termination: Termination, *, on_main_thread: bool) -> None:
    """SIGTERM raises :exc:`SystemExit` in plain code, once.

    In a loop that it runs: where the loop can take it, or if it gets to nothing, where it hangs.
    """
    main = threading.get_ident()
    deaf = DEAF_TO_SIGNALS and not on_main_thread

    def on_sigterm(number: int, frame: FrameType | None) -> None:
        termination.requested = True
        if deaf:
            raise_in(main, None)
        if termination.delivered or termination.too_late:
            return
        if not termination.asked:
            if loops.call_in_run(tell):
                termination.asked = time.monotonic()
                _thread.start_new_thread(insist, ())
                return
        elif time.monotonic() < termination.asked + KNOCK or loops.is_of_a_loop(frame):
            return
        tell()

    def tell() -> None:
        if not termination.delivered:
            termination.delivered = True
            raise Terminated

    def insist() -> None:  # a task that does not return to its loop is interrupted after all
        while not (termination.delivered or termination.too_late):
            time.sleep(KNOCK)
            signal.pthread_kill(main, signal.SIGTERM)

    def try_again() -> None:
        time.sleep(AGAIN)
        termination.delivered, termination.asked = False, 0.0
        if deaf:
            bring_to(main, termination)
        else:
            signal.pthread_kill(main, signal.SIGTERM)

    signals.set_handler(signal.SIGTERM, on_sigterm)
    take_back_in_forks(on_sigterm)
    when_swallowed(try_again)
    if deaf:
        hear_for(main, termination)
    else:
        waiting.wake_on_signals()


def when_swallowed(try_again: Callable[[], None]) -> None:
    """Python ignores what is raised in a ``__del__``, or a hook at a fork."""
    hook = sys.unraisablehook

    def on_unraisable(unraisable: sys.UnraisableHookArgs) -> None:
        if isinstance(unraisable.exc_value, Terminated):
            _thread.start_new_thread(try_again, ())
        else:
            hook(unraisable)

    sys.unraisablehook = on_unraisable


def take_back_in_forks(handler: object) -> None:
    """``handler`` is the one that stands now; what this process forks does without it."""
    global _handler
    _handler = handler


def _before_fork() -> None:
    if _handler is not None:  # blocked, so that one for the child is not handled as if for us
        previous = signals.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGTERM,))
        _masks[threading.get_ident()] = previous


def _after_fork_in_parent() -> None:
    mask = _masks.pop(threading.get_ident(), None)
    if mask is not None:
        signals.pthread_sigmask(signal.SIG_SETMASK, mask)


def _after_fork_in_child() -> None:
    global _handler
    mask = _masks.pop(threading.get_ident(), None)
    _masks.clear()
    if mask is None:
        return
    forget_wakeup()  # shared with us: we would take the child's signals for ours
    if signal.getsignal(signal.SIGTERM) is _handler:  # else f has one of its own
        signals.set_handler(signal.SIGTERM, signals.SIG_DFL)
    _handler = None
    signals.pthread_sigmask(signal.SIG_SETMASK, mask)


os.register_at_fork(
    before=_before_fork,
    after_in_parent=_after_fork_in_parent,
    after_in_child=_after_fork_in_child,
)


def hear_for(main: int, termination: Termination) -> None:
    """A thread that brings a SIGTERM to a main thread whose handlers do not run by themselves.

    It needs Python's only wake-up for that: the one that a loop sets is told of signals from here.
    """
    heard, write_end = descriptors.make_pipe()
    _set_wakeup_fd(write_end, warn_on_full_buffer=False)
    loops_own = -1

    def set_loops_own(fd: int, *, warn_on_full_buffer: bool = True) -> int:
        nonlocal loops_own
        previous, loops_own = loops_own, fd
        return previous

    def hear() -> None:
        told = False
        while True:
            waiting.wait_blocking(heard, select.POLLIN)
            received = os.read(heard, 64)
            with contextlib.suppress(OSError):  # closed, or full
                if loops_own >= 0:
                    os.write(loops_own, received)
            if signal.SIGTERM in received and not told:
                told = True
                bring_to(main, termination)

    signal.set_wakeup_fd = set_loops_own
    threading.Thread(target=hear, name="forkwire: SIGTERM", daemon=True).start()


def forget_wakeup() -> None:
    """There is none from now on, and whoever sets one does."""
    signal.set_wakeup_fd = _set_wakeup_fd
    _set_wakeup_fd(-1)


def bring_to(main: int, termination: Termination) -> None:
    """Have a deaf ``main`` hear of SIGTERM.

    In a blocking call it does once a signal interrupts it, so that is repeated until it helped; in
    pure bytecode its loop is asked, or an exception raised from here.
    """

    class Heard(Terminated):
        def __init__(self) -> None:
            super().__init__()
            termination.requested = termination.delivered = True

    def tell() -> None:
        if not termination.delivered:
            raise Heard

    knocks, last = 0, 1
    while not (termination.delivered or termination.too_late):
        signal.pthread_kill(main, signal.SIGTERM)
        time.sleep(KNOCK)
        if termination.delivered:
            break
        knocks += 1
        if knocks == 1 and loops.call_in_run_of(main, tell):
            last = PATIENCE
        if knocks == last:
            raise_in(main, Heard)


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
    import anyio

    async def main() -> None:
        with anyio.CancelScope() as scope:

            def on_sigterm() -> None:
                termination.requested = True
                scope.cancel()

            await listen_in_loop(backend, on_sigterm)
            take_back_in_forks(signal.getsignal(signal.SIGTERM))
            signals.pthread_sigmask(signal.SIG_SETMASK, mask)
            try:
                await awaitable
            finally:  # the loop forgets its handler, and its wake-up, before it is gone
                signals.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})

    forget_wakeup()
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

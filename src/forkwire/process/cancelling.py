"""SIGTERM cancels ``f``: as :exc:`SystemExit` in plain code, as a cancellation in a loop.

Whatever the worker forks in turn has none of this: there SIGTERM does what it always does.
"""

from __future__ import annotations

import _thread
import ctypes
import os
import select
import signal
import socket
import sys
import threading
import time
from collections.abc import Awaitable, Callable, Iterable
from typing import Final

import anyio

from . import descriptors, loops, signals, waiting
from .backend import BackendName

__all__ = ["TERMINATED", "Termination", "listen_in_plain_code", "run_awaitable"]

TERMINATED: Final = 128 + int(signal.SIGTERM)

# From 3.13 on Python runs no signal handler during pure bytecode in a child that was not forked on
# the main thread.
DEAF_TO_SIGNALS: Final = sys.version_info >= (3, 13)
KNOCK: Final = 0.05  # seconds between attempts to make it hear
AGAIN: Final = 0.01  # seconds until an exception that was swallowed is raised anew

_handler: object = None  # ours, as long as it is to be taken back in what we fork
_masks: dict[int, frozenset[int]] = {}  # a thread that forks: what it had blocked


class Terminated(SystemExit):
    """What SIGTERM raises in plain code."""

    def __init__(self) -> None:
        super().__init__(TERMINATED)


class Termination:
    """Whether SIGTERM was received: then so the worker ends, whatever ``f`` makes of it."""

    requested = False
    asked = False  # f's loop was asked to tell it
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
    """SIGTERM raises :exc:`SystemExit` in plain code, once."""
    main = threading.get_ident()

    def on_sigterm(number: int, frame: object) -> None:
        termination.requested = True
        if DEAF_TO_SIGNALS:
            raise_in(main, None)
        if termination.delivered or termination.too_late:
            return
        if loops.cancel_trio_run():  # its scheduler would not survive an exception
            termination.delivered = True
            return
        if not termination.asked and loops.call_in_asyncio_run(tell):  # nor every task of asyncio's
            termination.asked = True
            _thread.start_new_thread(insist, ())
            return
        tell()

    def tell() -> None:
        if not termination.delivered:
            termination.delivered = True
            raise Terminated

    def insist() -> None:  # a task that does not return to its loop is interrupted after all
        time.sleep(KNOCK)
        if not (termination.delivered or termination.too_late):
            signal.pthread_kill(main, signal.SIGTERM)

    signals.set_handler(signal.SIGTERM, on_sigterm)
    take_back_in_forks(on_sigterm)
    raise_again_if_swallowed(termination)
    if DEAF_TO_SIGNALS and not on_main_thread:
        hear_for(threading.get_ident(), termination)
    else:
        waiting.wake_on_signals()


def raise_again_if_swallowed(termination: Termination) -> None:
    """Python ignores what is raised in a ``__del__``, or a hook at a fork: then try again."""
    main, hook = threading.get_ident(), sys.unraisablehook

    def knock() -> None:
        time.sleep(AGAIN)
        termination.delivered = False
        signal.pthread_kill(main, signal.SIGTERM)

    def on_unraisable(unraisable: sys.UnraisableHookArgs) -> None:
        if isinstance(unraisable.exc_value, Terminated):
            _thread.start_new_thread(knock, ())
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
    signal.set_wakeup_fd(-1)  # shared with us: we would take the child's signals for ours
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

    In a blocking call they do once a signal interrupts it, so that is repeated until it helped;
    in pure bytecode an exception is raised from here.
    """
    heard, write_end = descriptors.make_pipe()
    signal.set_wakeup_fd(write_end, warn_on_full_buffer=False)

    class Heard(Terminated):
        def __init__(self) -> None:
            super().__init__()
            termination.requested = termination.delivered = True

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
                    raise_in(main, Heard)

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
            take_back_in_forks(signal.getsignal(signal.SIGTERM))
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

"""How every command ends: a signal, a closed output or an expected fault leaves no traceback."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Awaitable, Callable
from typing import Final

import anyio

from .. import ForkwireError
from ..process.backend import BackendName

__all__ = ["FAILURE", "USAGE", "complain", "guarded", "run_async"]

FAILURE: Final = 1
USAGE: Final = 2
SIGNALLED: Final = 128  # plus the signal's number, as a shell says it

ENDING_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def guarded(command: Callable[[], int]) -> int:
    """Call ``command``; answer its exit status, or that of what stopped it."""
    status = 0
    try:
        status = command()
        if sys.stdout is not None:
            sys.stdout.flush()  # here, where a fault can be told
    except* KeyboardInterrupt:
        status = SIGNALLED + signal.SIGINT
    except* BrokenPipeError:
        status = SIGNALLED + signal.SIGPIPE
    except* (ForkwireError, OSError) as group:
        status = complain(first_of(group))
    let_go_of_what_cannot_be_written()
    return status


def let_go_of_what_cannot_be_written() -> None:
    """Else the interpreter would try it again at its exit, and say that it failed."""
    if sys.stdout is None:
        return
    try:
        sys.stdout.flush()
    except OSError:
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, sys.stdout.fileno())
        os.close(null)


def complain(fault: object, status: int = FAILURE) -> int:
    """Say on stderr what is wrong; answer ``status``."""
    print(f"forkwire: {fault}", file=sys.stderr)
    return status


def run_async(main: Callable[[], Awaitable[int]], backend: BackendName) -> int:
    """Run an async command, which SIGINT, SIGTERM and SIGHUP cancel; answer its exit status."""
    on_sigint = signal.getsignal(signal.SIGINT)
    try:
        if backend == "trio":
            return anyio.run(cancelled_by_signals, main, backend="trio")
        options = {"use_uvloop": backend == "uvloop"}
        return anyio.run(cancelled_by_signals, main, backend="asyncio", backend_options=options)
    finally:
        signal.signal(signal.SIGINT, on_sigint)  # asyncio does not put it back


async def cancelled_by_signals(main: Callable[[], Awaitable[int]]) -> int:
    status = 0
    heeded = [number for number in ENDING_SIGNALS if signal.getsignal(number) != signal.SIG_IGN]
    with anyio.open_signal_receiver(*heeded) as received:
        async with anyio.create_task_group() as tasks:

            async def listen() -> None:
                nonlocal status
                async for number in received:
                    status = SIGNALLED + number
                    tasks.cancel_scope.cancel()

            tasks.start_soon(listen)
            status = await main()
            tasks.cancel_scope.cancel()
    return status


def first_of(group: BaseExceptionGroup[BaseException]) -> BaseException:
    error = group.exceptions[0]
    return first_of(error) if isinstance(error, BaseExceptionGroup) else error

"""Signal masks and handlers as plain numbers.

:mod:`signal` turns each of some sixty numbers into an enum member on the way in and out, which took
a good part of the time to start a worker. These are the functions that it wraps.
"""

from __future__ import annotations

import importlib
import signal
from collections.abc import Callable, Iterable
from typing import Any, Final

__all__ = [
    "ALL_SIGNALS",
    "SIG_DFL",
    "SIG_IGN",
    "handled",
    "handler_of",
    "handlers",
    "pthread_sigmask",
    "set_handler",
]

ALL_SIGNALS: Final = frozenset(int(number) for number in signal.valid_signals())

_raw: Any = importlib.import_module("_signal")

SIG_DFL: Final[int] = _raw.SIG_DFL
SIG_IGN: Final[int] = _raw.SIG_IGN


def pthread_sigmask(how: int, mask: Iterable[int]) -> frozenset[int]:
    """Change the thread's mask; the one before. See :func:`signal.pthread_sigmask`."""
    return frozenset(_raw.pthread_sigmask(how, mask))


def handled() -> list[int]:
    """The signals that have a handler in Python."""
    getsignal = _raw.getsignal
    return [number for number in ALL_SIGNALS if callable(getsignal(number))]


def handlers() -> dict[int, Callable[[int, Any], Any]]:
    """Those handlers, by their signals."""
    getsignal = _raw.getsignal
    return {number: found for number in ALL_SIGNALS if callable(found := getsignal(number))}


def handler_of(number: int) -> object:
    """A handler in Python, or this module's SIG_DFL or SIG_IGN."""
    return _raw.getsignal(number)


def set_handler(number: int, handler: int | Callable[[int, Any], None]) -> None:
    """Set this module's SIG_DFL or SIG_IGN, or a function. In the main thread."""
    _raw.signal(number, handler)

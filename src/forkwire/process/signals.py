"""Signal masks and handlers as plain numbers.

:mod:`signal` turns each of some sixty numbers into an enum member on the way in and out, which took
a good part of the time to start a worker. These are the functions that it wraps.
"""

from __future__ import annotations

import importlib
import signal
from collections.abc import Iterable
from typing import Any, Final

__all__ = ["ALL_SIGNALS", "getsignal", "pthread_sigmask", "set_handler"]

ALL_SIGNALS: Final = frozenset(int(number) for number in signal.valid_signals())

_raw: Any = importlib.import_module("_signal")


def pthread_sigmask(how: int, mask: Iterable[int]) -> frozenset[int]:
    """Change the thread's mask; the one before. See :func:`signal.pthread_sigmask`."""
    return frozenset(_raw.pthread_sigmask(how, mask))


def getsignal(number: int) -> Any:
    """A handler, a number (SIG_DFL, SIG_IGN), or None for one that Python did not install."""
    return _raw.getsignal(number)


def set_handler(number: int, handler: int) -> None:
    """Set SIG_DFL or SIG_IGN."""
    _raw.signal(number, int(handler))

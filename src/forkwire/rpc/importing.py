"""What this process imports for its part as a worker or a template: at present, by thread.

A module that starts workers of itself as it is imported would have them do the same, without end.
Knows nothing of services.
"""

from __future__ import annotations

import contextlib
import importlib
import threading
from collections.abc import Iterator
from types import ModuleType
from typing import Final

from ..errors import UsageError

__all__ = ["HINT", "check_not_importing", "for_workers"]

HINT: Final = 'put that into a function, or below `if __name__ == "__main__":`'

_thread: Final = threading.local()


def for_workers(name: str) -> ModuleType:
    """Import a module that workers need; what it raises passes."""
    with being_imported(name):
        return importlib.import_module(name)


@contextlib.contextmanager
def being_imported(name: str) -> Iterator[None]:
    names: tuple[str, ...] = getattr(_thread, "names", ())
    _thread.names = (*names, name)
    try:
        yield
    finally:
        _thread.names = names


def check_not_importing(name: str) -> None:
    """Before a worker is started that imports ``name``. Raises :exc:`UsageError`."""
    if name in getattr(_thread, "names", ()):
        raise UsageError(
            f"importing {name} starts workers that import {name}, and so would start workers "
            f"themselves, without end: {HINT}"
        )

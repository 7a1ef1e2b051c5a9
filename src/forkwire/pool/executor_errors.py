"""Errors of executors: each is concurrent.futures' own, and ours with the whole story.

They stand apart from `errors` since their bases bring multiprocessing along.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import process
from concurrent.futures.process import BrokenProcessPool
from typing import Final

from ..errors import PoolBrokenError, ValueDecodeError, WorkerDied

__all__ = ["ExecutorBrokenError", "ExecutorWorkerDied", "NotUnpicklableError", "RemoteTraceback"]


class ExecutorWorkerDied(WorkerDied, BrokenProcessPool):
    """The worker that ran this very call died of it. The executor and other calls go on."""

    @classmethod
    def of(cls, died: WorkerDied, label: str) -> ExecutorWorkerDied:
        """``died``, while it ran the function ``label``."""
        error = cls(
            died.pid,
            died.returncode,
            died.reason,
            rusage=died.rusage,
            inside_message=died.inside_message,
            stderr_tail=died.stderr_tail,
            native_stack=died.native_stack,
            in_flight=(label,),
        )
        for note in getattr(died, "__notes__", ()):
            error.add_note(note)
        return error


class ExecutorBrokenError(PoolBrokenError, BrokenProcessPool):
    """Workers of this executor cannot be started. ``__cause__``: what the last one failed of."""


class NotUnpicklableError(ValueDecodeError, BrokenProcessPool):
    """A call could not be unpickled in its worker, or a result here. ``__cause__``: why."""


class OurTraceback(Exception):
    """The traceback of another process, as text."""

    def __init__(self, tb: str) -> None:
        super().__init__(tb)
        self.tb: Final = tb

    def __str__(self) -> str:
        return self.tb


# Programs know concurrent.futures' own class, by its private name.
RemoteTraceback: Final[Callable[[str], Exception]] = getattr(
    process, "_RemoteTraceback", OurTraceback
)

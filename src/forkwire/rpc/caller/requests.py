"""What is called and how: the same for callers in a loop and without one."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from ...errors import UsageError, WorkerClosedError
from ..links.link import Link, OutCall

__all__ = ["DEFAULT_WINDOW", "CallOptions", "OnProgress", "Request", "log_unseen", "report"]

OnProgress = Callable[[float, float | None, str], object]

# Items of a stream that may be on their way before the first is taken: enough to hide a turn of
# both sides, few enough to stop soon.
DEFAULT_WINDOW: Final = 32
LARGEST_WINDOW: Final = 2**20


@dataclass(frozen=True, slots=True, kw_only=True)
class CallOptions:
    """How to call: what ``options`` sets. ``timeout``: seconds, of callers without a loop."""

    on_progress: OnProgress | None = None
    window: int = DEFAULT_WINDOW
    timeout: float | None = None

    def __post_init__(self) -> None:
        window: object = self.window
        if not (isinstance(window, int) and 0 < window <= LARGEST_WINDOW):
            raise UsageError(
                f"window is a number of items, 1 to {LARGEST_WINDOW}, not {self.window!r}"
            )
        timeout: object = self.timeout
        if timeout is not None and not (isinstance(timeout, (int, float)) and timeout >= 0):
            raise UsageError(f"timeout is a number of seconds from 0 on, or None, not {timeout!r}")
        if self.on_progress is not None and not callable(self.on_progress):
            raise UsageError(
                f"on_progress is called as on_progress(done, total, text): {self.on_progress!r} "
                "is not callable"
            )


DEFAULTS: Final = CallOptions()


@dataclass(slots=True)
class Request:
    """One call to be made. ``convert``: of its result, or of each item."""

    method: str
    args: Sequence[object]
    kwargs: Mapping[str, object]
    options: CallOptions = DEFAULTS
    convert: Callable[[Any], Any] | None = None
    deadline: float = field(init=False)  # in time.monotonic's terms

    def __post_init__(self) -> None:
        timeout = self.options.timeout
        self.deadline = math.inf if timeout is None else time.monotonic() + timeout


def report(call: OutCall, on_progress: OnProgress | None) -> None:
    """Tell the progress that came."""
    while call.progress:
        progress = call.progress.popleft()
        if on_progress is not None:
            on_progress(progress.done, progress.total, progress.text)


def log_unseen(link: Link, call: OutCall, error: BaseException) -> None:
    """Nobody waits for the answer of a notification."""
    if link.over is None or not isinstance(error, WorkerClosedError):
        logging.getLogger("forkwire").warning(
            "%s: notify(%r) ended with %s: %s", link.name, call.method, type(error).__name__, error
        )

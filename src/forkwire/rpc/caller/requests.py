"""What is called and how: the same for callers in a loop and without one."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Protocol

from ...errors import UsageError, WorkerClosedError
from ...wire.messages import StreamRef
from ..links.link import Link, OutCall

if TYPE_CHECKING:
    from .streams import Stream
    from .sync_streams import SyncStream

__all__ = [
    "DEFAULT_WINDOW",
    "CallOptions",
    "Makes",
    "MakesBlocking",
    "NoRoomError",
    "OnProgress",
    "Request",
    "log_unseen",
    "report",
    "streams_in",
]

OnProgress = Callable[[float, float | None, str], object]

# Items of a stream that may be on their way before the first is taken: enough to hide a turn of
# both sides, few enough to stop soon.
DEFAULT_WINDOW: Final = 32
LARGEST_WINDOW: Final = 2**20

# Values of these types are never streamed, and most arguments are of one.
PLAIN: Final = frozenset({int, str, float, bool, bytes, type(None), list, dict, tuple, set})


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


class Makes(Protocol):
    """Makes calls in a loop, to one worker or to one of several."""

    async def call(self, request: Request) -> Any: ...

    async def notify(self, request: Request) -> None: ...

    def stream(self, request: Request) -> Stream[Any]: ...


class MakesBlocking(Protocol):
    """The same, and blocks. ``ours``: inside, nothing but what waits is interrupted."""

    def call(self, request: Request) -> Any: ...

    def notify(self, request: Request) -> None: ...

    def stream(self, request: Request) -> SyncStream[Any]: ...

    def check_here(self) -> None: ...

    def ours(self) -> AbstractContextManager[object]: ...


class NoRoomError(Exception):
    """Inside a link: what was to be sent has to wait."""


def streams_in(
    request: Request, is_streamed: Callable[[object], bool]
) -> tuple[Sequence[object], Mapping[str, object], list[Any]]:
    """The arguments with a reference for each that is streamed, and those.

    Raises :exc:`UsageError` where one is there twice.
    """
    streams: list[Any] = []

    def replaced(value: object) -> object:
        if type(value) in PLAIN or not is_streamed(value):
            return value
        if any(value is other for other in streams):
            raise UsageError(
                f"a {type(value).__name__} is an argument of {request.method} twice: each of its "
                "items could go to one of them only. Pass two, or a list"
            )
        streams.append(value)
        return StreamRef(len(streams) - 1)

    args = [replaced(value) for value in request.args]
    kwargs = {name: replaced(value) for name, value in request.kwargs.items()}
    return args, kwargs, streams


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

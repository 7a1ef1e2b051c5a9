"""Calls in flight, on both sides: what came for them, and who wants to know.

Who waits is told by plain callbacks, which never block. What a call is sent with, and when it is
over, is for `link`.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

from ...errors import WorkerClosedError
from ...wire.messages import Call, Notify, Progress, StreamRef

if TYPE_CHECKING:
    from .link import Link

__all__ = ["Arrivals", "InCall", "OutCall", "nothing"]

# Reports of progress that nobody took yet; older ones are superseded.
KEPT_PROGRESS: Final = 64


def nothing() -> None:
    """What is called when nobody wants to know."""


class Arrivals:
    """Items of a stream in the order they came, then its end. ``wake`` is called for each."""

    __slots__ = ("ended", "error", "items", "wake")

    def __init__(self) -> None:
        self.items: deque[Any] = deque()
        self.ended = False
        self.error: BaseException | None = None
        self.wake: Callable[[], None] = nothing

    def put(self, value: object) -> None:
        """An item came. After the end nobody takes it."""
        if not self.ended:
            self.items.append(value)
            self.wake()

    def end(self, error: BaseException | None = None) -> None:
        """Nothing comes any more. The first end counts."""
        if not self.ended:
            self.error = error
            self.ended = True
            self.wake()

    @property
    def ready(self) -> bool:
        """Whether there is an item, or the end."""
        return bool(self.items) or self.ended


class OutCall(Arrivals):
    """A call that we made, as long as it is in flight, and how it ended."""

    __slots__ = (
        "cancelled",
        "expected",
        "id",
        "method",
        "on_end",
        "on_grant",
        "progress",
        "since",
        "tree",
        "value",
    )

    def __init__(self, number: int, method: str, tree: str = "") -> None:
        super().__init__()
        self.id = number
        self.method = method
        self.tree = tree
        self.value: Any = None
        self.cancelled = False
        self.expected = True  # somebody waits for it
        self.progress: deque[Progress] = deque(maxlen=KEPT_PROGRESS)
        self.on_grant: dict[int, Callable[[int], None]] = {}
        self.on_end: Callable[[OutCall], None] | None = None
        self.since = time.monotonic()

    def end(self, error: BaseException | None = None) -> None:
        super().end(error)
        self.on_grant = {}  # who sends its arguments knows it: a circle otherwise
        on_end, self.on_end = self.on_end, None
        if on_end is not None:
            on_end(self)

    def result(self) -> Any:
        """What it ended with. Raises its error."""
        if self.error is not None:
            raise self.error
        return self.value


class InCall:
    """A call that the peer made; a notification has the id 0.

    ``cancelled``: the peer wants it stopped, or is gone. ``credit``: items that may be sent; None
    where no stream is wanted. ``deadline``: in :func:`time.monotonic`'s terms. ``nested``: a call
    of our own waits for it.
    """

    __slots__ = (
        "arguments",
        "begun",
        "cancelled",
        "credit",
        "deadline",
        "failed",
        "id",
        "kwargs",
        "lane",
        "link",
        "meta",
        "method",
        "nested",
        "on_cancel",
        "on_credit",
        "tree",
        "values",
    )  # fmt: skip

    def __init__(self, link: Link, message: Call | Notify) -> None:
        self.link = link
        self.id = message.id if isinstance(message, Call) else 0
        self.method = message.method
        self.meta = meta = message.meta
        self.cancelled = False
        self.credit: int | None = meta.get("credit") if meta else None
        self.deadline = deadline_in(meta["timeout"]) if "timeout" in meta else math.inf
        self.tree: str = meta.get("tree", "") if meta else ""
        self.nested = bool(self.tree) and any(
            call.tree == self.tree for call in list(link.calls.values())
        )
        self.begun = False  # its handler runs
        self.failed: Mapping[str, Any] | None = None  # what it ends with, whatever is raised
        self.lane: Any = None  # the one that runs it, if one does
        self.on_cancel: Callable[[], None] = nothing
        self.on_credit: Callable[[], None] = nothing
        self.arguments: dict[int, Arrivals] = {}
        self.values: Sequence[Any] = message.args
        self.kwargs: Mapping[str, Any] = message.kwargs
        for value in (*message.args, *message.kwargs.values()):
            if type(value) is StreamRef:
                self.arguments[value.number] = Arrivals()

    def cancel(self) -> None:
        """It is not wanted any more."""
        if not self.cancelled:
            self.cancelled = True
            for arrivals in self.arguments.values():
                arrivals.end(WorkerClosedError("the call was cancelled"))
            self.on_cancel()


def deadline_in(seconds: float) -> float:
    """What is so far ahead in the monotonic clock's terms, for any number of a peer's."""
    try:
        return time.monotonic() + max(0.0, seconds)
    except OverflowError:
        return math.inf

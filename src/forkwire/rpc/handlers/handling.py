"""What every handler has in common, in a loop or not: its arguments, and how it ends."""

from __future__ import annotations

import math
import numbers
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from ...errors import CallCancelledError, DeadlineExceededError, UsageError, WrongKindError
from ...wire.messages import LARGEST_TEXT, Grant, Progress, StreamRef
from ..data.kinds import is_a
from ..exceptions import describing as failures
from ..links.link import Arrivals, InCall
from .service import Method, Service

__all__ = ["ARGUMENT_WINDOW", "Argument", "bound", "check_kind", "find", "gave_up", "progress",
           "why_stopped"]  # fmt: skip

# Items of a streamed argument that may be on their way.
ARGUMENT_WINDOW: Final = 32

# A loop's timers may be early, by this much at most.
EARLY: Final = 0.02  # seconds

STREAMED: Final = ("generator", "async_generator")


def find(service: Service, call: InCall) -> Method:
    """The method that ``call`` wants, if it can be had that way.

    Raises :exc:`MethodNotFoundError`, :exc:`WrongKindError` and :exc:`DeadlineExceededError`.
    """
    method = service.get(call.method)
    if call.deadline != math.inf and call.deadline <= time.monotonic():
        raise DeadlineExceededError(f"{call.method}: its time was over before it began")
    check_kind(method.name, method.kind, streamed=call.credit is not None)
    return method


def check_kind(name: str, kind: str, *, streamed: bool) -> None:
    """Raise :exc:`WrongKindError` where what yields is called, or the other way round."""
    if streamed and kind not in STREAMED:
        raise WrongKindError(f"{name}() does not yield: use call({name!r}, ...), not stream()")
    if not streamed and kind in STREAMED:
        raise WrongKindError(
            f"{name}() yields, so it is streamed, not called: use stream({name!r}, ...)"
        )


class Argument:
    """One streamed argument, as its handler's side sees it. What waits is in the fronts."""

    def __init__(self, call: InCall, number: int, convert: Callable[[object], object]) -> None:
        self._call: Final = call
        self._number: Final = number
        self._convert: Final = convert
        self._granted = 0
        self.arrivals: Final[Arrivals] = call.arguments[number]

    def grant(self) -> None:
        """Let more come, if it is time."""
        if self._granted <= ARGUMENT_WINDOW // 2 and not self.arrivals.ended:
            more = ARGUMENT_WINDOW - self._granted
            self._granted += more
            self._call.link.send(Grant(self._call.id, self._number, more))

    def take(self) -> Any:
        """The next item that came. Raises the end's error, :exc:`ValueDecodeError`, StopIteration.

        Only when ``arrivals.ready``. Raises :exc:`CallCancelledError` where the call was cancelled.
        """
        if self._call.cancelled:
            raise CallCancelledError(f"{self._call.method} was cancelled")
        if self.arrivals.items:
            self._granted -= 1
            return self._convert(self.arrivals.items.popleft())
        if self.arrivals.error is not None:
            raise self.arrivals.error
        raise StopIteration

    def stop(self) -> None:
        """No more are wanted."""
        if not self.arrivals.ended:
            self.arrivals.end()
            if self._call.id in self._call.link.peers:
                self._call.link.send(Grant(self._call.id, self._number, 0))


def bound(
    method: Method, call: InCall, iterate: Callable[[Argument], object]
) -> tuple[Sequence[object], Mapping[str, object]]:
    """The arguments as the annotations say; what is streamed is what ``iterate`` makes of it.

    Raises :exc:`InvalidArgumentsError`.
    """
    shape = method.shape
    args, kwargs = shape.bind(call.values, call.kwargs)
    call.begun = True
    if not call.arguments:
        return args, kwargs

    def resolved(key: int | str, value: object) -> object:
        if not isinstance(value, StreamRef):
            return value
        return iterate(Argument(call, value.number, shape.argument_item(key)))

    return (
        [resolved(index, value) for index, value in enumerate(args)],
        {name: resolved(name, value) for name, value in kwargs.items()},
    )


def gave_up(call: InCall, error: BaseException) -> bool:
    """Whether ``error`` is what our own functions raise in a handler that was cancelled."""
    return call.cancelled and is_a(error, CallCancelledError)


def why_stopped(call: InCall) -> Mapping[str, object]:
    """What a call that was stopped ends with."""
    return failures.describe(stopped(call))


def stopped(call: InCall) -> CallCancelledError | DeadlineExceededError:
    if not call.cancelled and call.deadline <= time.monotonic() + EARLY:
        return DeadlineExceededError(f"{call.method}: its time was over, and it was stopped")
    return CallCancelledError(f"{call.method} was cancelled")


def progress(call: InCall, done: float, total: float | None, text: str) -> None:
    """Tell the caller, if it wants to know and is still there.

    Raises :exc:`UsageError`, also where nobody wants to know, and :exc:`ValueEncodeError`.
    """
    done = amount("done", done)
    total = None if total is None else amount("total", total)
    if not isinstance(text, str):
        raise UsageError(f"the text of a progress report is a str, not {type(text).__name__}")
    link = call.link
    wanted = call.meta and call.meta.get("progress") and call.id in link.peers
    if wanted and not link.outbox.crowded:  # a later report says more
        link.send(Progress(call.id, done, total, str(text)[:LARGEST_TEXT]))


def amount(name: str, value: object) -> float:
    """A number as a message can hold it: those of numpy too, but none below 0."""
    if isinstance(value, numbers.Real) and float(value) >= 0:
        return int(value) if isinstance(value, numbers.Integral) else float(value)
    raise UsageError(f"{name} of a progress report is a number from 0 on, not {value!r:.100}")

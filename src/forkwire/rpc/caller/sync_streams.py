"""Streams as iterators, for callers without an event loop."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Generic, Self, TypeVar

from ...errors import CallCancelledError
from ...wire.messages import Credit
from ..links.link import OutCall
from .requests import Request

if TYPE_CHECKING:
    from .blocking import BlockingCaller
    from .feeding import Feeder

__all__ = ["SyncStream"]

T = TypeVar("T")


class SyncStream(Generic[T]):
    """The items that a generator on the other side yields, as an iterator.

    Also a context manager: leaving the block, or the loop early, stops the generator there. Nothing
    is sent before the first item is asked for.
    """

    def __init__(self, caller: BlockingCaller, request: Request) -> None:
        self._caller: Final = caller
        self._request: Final = request
        self._call: OutCall | None = None
        self._feeders: list[Feeder] = []
        self._outstanding = 0
        self._over = False

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> T:
        with self._caller.waiter.ours():
            return self._next()

    def _next(self) -> T:
        if self._over:
            raise StopIteration
        try:
            call = self._call or self._begin()
            if not call.ready:
                self._caller.wait_for(call, self._feeders, self._request, lambda: call.ready)
            self._caller.report(call, self._request)
            if call.items:
                return self._take(call)
        except BaseException:
            self._stop()
            raise
        self._over = True
        self._caller.finish(call, self._feeders)
        raise StopIteration

    def _begin(self) -> OutCall:
        self._outstanding = self._request.options.window
        call, self._feeders = self._caller.begin(self._request, credit=self._outstanding)
        self._call = call
        return call

    def _take(self, call: OutCall) -> T:
        value = call.items.popleft()
        self._outstanding -= 1
        window = self._request.options.window
        if self._outstanding <= window // 2 and not call.ended:
            more = window - self._outstanding
            self._outstanding = window
            self._caller.waiter.send(lambda: self._caller.link.send(Credit(call.id, more)))
        convert = self._request.convert
        item: T = value if convert is None else convert(value)
        return item

    def _stop(self) -> None:
        self._over = True
        if self._call is not None:
            self._call.items.clear()
            self._caller.give_up(self._call, self._feeders)

    def close(self) -> None:
        """Stop the generator on the other side, and wait until it has. Idempotent.

        Raises what it raised at its end.
        """
        if self._over:
            return
        with self._caller.waiter.ours():
            self._stop()
        if self._call is None:
            return
        error, self._call.error = self._call.error, None
        try:
            if error is not None and not isinstance(error, CallCancelledError):
                raise error
        finally:
            del error  # its traceback has this frame

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def __del__(self) -> None:
        call = getattr(self, "_call", None)
        if call is not None and not self._over:
            self._caller.drop(call)
            for feeder in self._feeders:
                feeder.close()

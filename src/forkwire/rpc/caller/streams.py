"""Streams as async iterators, for callers in an event loop."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from types import NoneType
from typing import TYPE_CHECKING, Final, Generic, Protocol, Self, TypeAlias, TypeVar

from ...errors import CallCancelledError, DeadlineExceededError, UsageError
from ...wire.messages import Credit
from ..links.link import OutCall
from .requests import Request, report

if TYPE_CHECKING:
    from .aio import Caller
    from .pumps import ArgumentPump

__all__ = ["Begins", "Begun", "Stream"]

T = TypeVar("T")

# Who makes a call, the call, and its streamed arguments.
Begun: TypeAlias = "tuple[Caller, OutCall, Sequence[ArgumentPump]]"


class Begins(Protocol):
    """Begins a stream's call, on the one worker or on one of several."""

    def check_here(self) -> None: ...

    async def begin_stream(self, request: Request, credit: int) -> Begun: ...


class Stream(Generic[T]):
    """The items that a generator on the other side yields, as an async iterator.

    Also an async context manager: leaving the block stops the generator there, and waits until
    its ``finally`` has run. Leaving an ``async for`` early stops it too, without waiting. Nothing
    is sent before the first item is asked for.
    """

    def __init__(self, source: Begins, request: Request) -> None:
        self._source: Final = source
        self._caller: Caller  # once it is begun
        self._request: Final = request
        self._call: OutCall | None = None
        self._pumps: Sequence[ArgumentPump] = ()
        self._outstanding = 0
        self._busy = False
        self._over = False

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> T:
        if self._busy:
            raise UsageError("another task is waiting for this stream's next item")
        if self._over:
            raise StopAsyncIteration
        self._source.check_here()
        self._busy = True
        try:
            call = self._call or await self._begin()
            on_progress = self._request.options.on_progress
            while not (call.ready or self._over):
                if not call.progress:
                    await self._caller.next_news(call)
                report(call, on_progress)
            if self._over:  # another task has stopped it meanwhile
                raise StopAsyncIteration
            report(call, on_progress)
            if call.items:
                return self._take(call)
            self._over = True
        except BaseException:
            await self._stop()
            raise
        finally:
            self._busy = False
        await self._caller.finish(call, self._pumps)
        raise StopAsyncIteration

    def _take(self, call: OutCall) -> T:
        value = call.items.popleft()
        self._outstanding -= 1
        if self._outstanding <= self._request.options.window // 2 and not call.ended:
            more = self._request.options.window - self._outstanding
            self._outstanding += more
            self._caller.link.send(Credit(call.id, more))
        convert = self._request.convert
        item: T = value if convert is None else convert(value)
        return item

    async def _begin(self) -> OutCall:
        self._outstanding = self._request.options.window
        begun = await self._source.begin_stream(self._request, self._outstanding)
        self._caller, call, self._pumps = begun
        self._call = call
        return call

    async def _stop(self) -> None:
        self._over = True
        call = self._call
        if call is not None:
            call.items.clear()
            backend = self._caller.driver.backend
            await backend.uninterrupted(functools.partial(self._stop_call, call))

    async def _stop_call(self, call: OutCall) -> None:
        try:
            if not call.ended:
                await self._caller.stop(call)
        finally:
            await self._caller.end_pumps(self._pumps)

    async def aclose(self) -> None:
        """Stop the generator on the other side, and wait until it has. Idempotent.

        What its ``finally`` raises is raised here.
        """
        if self._over:
            return
        self._source.check_here()
        await self._stop()
        if self._call is None:
            return
        error, self._call.error = self._call.error, None
        try:
            if not isinstance(error, (NoneType, CallCancelledError, DeadlineExceededError)):
                raise error
        finally:
            del error  # its traceback has this frame

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *error: object) -> None:
        await self.aclose()

    def __del__(self) -> None:
        call = getattr(self, "_call", None)
        if not (call is None or self._over or call.ended):
            self._over = True
            caller, pumps = self._caller, self._pumps
            caller.driver.backend.run_soon(lambda: caller.abandon(call, pumps))

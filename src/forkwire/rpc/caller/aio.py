"""Calls in an event loop: what is awaited, streams, and arguments that are streamed.

The caller's half; what the other side calls here is run by `tasks`.
"""

from __future__ import annotations

import math
from collections.abc import (
    AsyncGenerator,
    AsyncIterable,
    Callable,
    Iterator,
    Mapping,
    Sequence,
)
from contextlib import aclosing
from types import NoneType
from typing import Any, Final, Generic, Self, TypeVar

import anyio
import anyio.lowlevel

from ...errors import CallCancelledError, DeadlineExceededError, UsageError
from ...wire.messages import Credit, Send, Sent, StreamRef
from ..exceptions import describing as failures
from ..links.drivers import LoopDriver
from ..links.link import Link, OutCall, nothing
from ..telling import context
from .current import Inside, handling, may_wait, new_tree, tree_for_call
from .requests import Request, log_unseen, report

__all__ = ["Caller", "Stream", "roomy"]

T = TypeVar("T")

# So much later than the other side's clock ours may say that a call's time is over.
PATIENCE: Final = 1.0  # seconds

WRITTEN: Final = 0.01  # seconds between looks, at the end of a worker only

# Values of these types are never streamed, and most arguments are of one.
PLAIN: Final = frozenset({int, str, float, bool, bytes, type(None), list, dict, tuple, set})


class Caller:
    """Makes calls over a link whose driver is this loop.

    ``stop``: is awaited, not interrupted, for a call that was cancelled here; it returns when the
    work has really stopped.
    """

    def __init__(self, driver: LoopDriver) -> None:
        self.driver: Final = driver
        self.link: Final[Link] = driver.link

    async def stop(self, call: OutCall) -> None:
        """Have the other side stop ``call``, and wait until it has."""
        self.link.cancel(call)
        await self.wait_ended(call)

    async def notify(self, request: Request) -> None:
        """Send ``request``; what becomes of it is only logged."""
        call, pumps = await self.begin(request)
        call.expected = False
        self.link.outbox.own()
        backend = self.driver.backend
        backend.spawn(lambda: self._see_off(call, pumps), f"forkwire: notify {request.method}")

    async def _see_off(self, call: OutCall, pumps: Sequence[ArgumentPump]) -> None:
        await self.wait_ended(call)
        try:
            await self.finish(call, pumps)
        except Exception as error:
            log_unseen(self.link, call, error)

    def abandon(self, call: OutCall, pumps: Sequence[ArgumentPump]) -> None:
        """Nobody waits for ``call`` any more: stop it in the background. In the loop."""
        self.link.cancel(call)
        backend = self.driver.backend
        if backend.is_current():
            backend.spawn(lambda: self._give_up(call, pumps), f"forkwire: stop {call.method}")

    async def wait_ended(self, call: OutCall) -> None:
        """Until it has ended, well or not."""
        while not call.ended:
            await next_news(call)

    async def wait_written(self) -> None:
        """Until all that was sent is out, or nobody reads it."""
        outbox = self.link.outbox
        while outbox.waiting and not outbox.gone:  # noqa: ASYNC110
            await anyio.sleep(WRITTEN)  # nothing tells when the last byte is out

    async def call(self, request: Request) -> Any:
        """The result of ``request``. Raises what the other side answered."""
        call, pumps = await self.begin(request)
        try:
            while not call.ended:
                if not call.progress:
                    await next_news(call)
                report(call, request.options.on_progress)
        except BaseException:
            await self.driver.backend.uninterrupted(lambda: self._give_up(call, pumps))
            raise
        report(call, request.options.on_progress)
        await self.finish(call, pumps)
        return call.value if request.convert is None else request.convert(call.value)

    async def _give_up(self, call: OutCall, pumps: Sequence[ArgumentPump]) -> None:
        try:
            await self.stop(call)
        finally:
            await self.end_pumps(pumps)

    async def finish(self, call: OutCall, pumps: Sequence[ArgumentPump]) -> None:
        """It has ended: raise its error, if it is one."""
        await self.end_pumps(pumps)
        error, call.error = call.error, None
        if error is None:
            return
        if isinstance(error, DeadlineExceededError):
            await self._until_our_deadline()
        for pump in pumps:
            if pump.failure is not None:
                error, pump.failure = pump.failure, None
                break
        try:
            raise error
        finally:
            del error  # nor does `call` hold it: its traceback has this frame, and the caller's

    async def _until_our_deadline(self) -> None:
        """Ours is the same, by another clock: let the scope say so that asked for it."""
        left = anyio.current_effective_deadline() - anyio.current_time()
        if left < PATIENCE:
            await anyio.sleep(max(left, 0) + PATIENCE)

    async def end_pumps(self, pumps: Sequence[ArgumentPump]) -> None:
        """Nobody takes the arguments any more."""
        for pump in pumps:
            pump.stop()
        for pump in pumps:
            await self.driver.backend.uninterrupted(pump.ended.wait)

    async def begin(
        self, request: Request, *, credit: int | None = None
    ) -> tuple[OutCall, list[ArgumentPump]]:
        """Send ``request`` once there is room for it."""
        link = self.link
        await anyio.lowlevel.checkpoint_if_cancelled()
        while not link.has_room and may_wait():
            await self._room()
        tree = tree_for_call()
        args, kwargs, streams = streams_in(request)
        meta = self._meta(request, credit, new_tree() if streams else tree)
        pumps: list[ArgumentPump] = []

        def prepare(call: OutCall) -> None:
            for number, iterable in enumerate(streams):
                pump = ArgumentPump(self, call, number, iterable)
                pumps.append(pump)
                call.on_grant[number] = pump.grant

        call = link.start(request.method, args, kwargs, meta, prepare)
        for pump in pumps:
            self.driver.backend.spawn(pump.run, f"forkwire: argument of {request.method}")
        return call, pumps

    async def _room(self) -> None:
        room = anyio.Event()
        wake = self.in_loop(room.set)
        self.link.when_room(wake)
        try:
            await room.wait()
        except BaseException:
            self.link.leave_queue(wake)
            raise

    def in_loop(self, function: Callable[[], None]) -> Callable[[], None]:
        """``function``, to be called from any thread."""
        return lambda: self.driver.backend.call(function)

    def _meta(self, request: Request, credit: int | None, tree: str) -> dict[str, object]:
        meta: dict[str, object] = {}
        deadline = anyio.current_effective_deadline()
        if deadline != math.inf:
            meta["timeout"] = max(0.0, deadline - anyio.current_time())
        if credit is not None:
            meta["credit"] = credit
        if request.options.on_progress is not None:
            meta["progress"] = True
        if tree:
            meta["tree"] = tree
        if (carried := context.capture(variables=self.link.limits.trusted)) is not None:
            meta["context"] = carried
        return meta


async def roomy(driver: LoopDriver) -> None:
    """Until what waits to be written is little, or nobody reads it any more."""
    outbox = driver.link.outbox
    while outbox.crowded and not outbox.gone:
        event = anyio.Event()
        outbox.when_roomy(lambda event=event: driver.backend.call(event.set))  # type: ignore[misc]
        await event.wait()


class Waiting(list[anyio.Event]):
    """The tasks that wait for one call: its own, and perhaps whoever stops it."""

    def __call__(self) -> None:
        for event in self:
            event.set()


async def next_news(call: OutCall) -> None:
    """Until something comes for ``call``. In the loop that reads it."""
    event = anyio.Event()
    waiting = call.wake if isinstance(call.wake, Waiting) else Waiting()
    call.wake = waiting
    waiting.append(event)
    try:
        await event.wait()
    finally:
        waiting.remove(event)


# -- arguments that are streamed --------------------------------------------------------------


def is_streamed(value: object) -> bool:
    """Whether an argument is sent item by item: async iterables and plain iterators are."""
    return type(value) not in PLAIN and isinstance(value, (AsyncIterable, Iterator))


def streams_in(
    request: Request,
) -> tuple[Sequence[object], Mapping[str, object], list[Any]]:
    """The arguments with a reference for each that is streamed, and those."""
    streams: list[Any] = []

    def replaced(value: object) -> object:
        if not is_streamed(value):
            return value
        streams.append(value)
        return StreamRef(len(streams) - 1)

    args = [replaced(value) for value in request.args]
    kwargs = {name: replaced(value) for name, value in request.kwargs.items()}
    return args, kwargs, streams


class ArgumentPump:
    """Sends the items of one argument, as many as are wanted."""

    def __init__(self, caller: Caller, call: OutCall, number: int, iterable: Any) -> None:
        # What the producer calls runs inside the call that waits for its items.
        self._context: Final = Inside(call.tree)
        self._caller: Final = caller
        self._call: Final = call
        self._number: Final = number
        self._iterable: Final = iterable
        self._credit = 0
        self._scope: Final = anyio.CancelScope()
        self._wake: Callable[[], None] = nothing
        self.ended: Final = anyio.Event()
        self.failure: BaseException | None = None

    def grant(self, count: int) -> None:
        """The other side wants ``count`` more; 0: none any more."""
        if not count:
            self.stop()
        self._credit += count
        self._wake()

    def stop(self) -> None:
        """No more are wanted."""
        self._scope.cancel()

    async def run(self) -> None:
        """In the background. What the iterable raises is the call's to raise."""
        token = handling.set(self._context)
        try:
            with self._scope:
                await self._run()
        except (Exception, SystemExit, KeyboardInterrupt) as error:
            self.failure = error
        finally:
            handling.reset(token)
            self._finish()
            self.ended.set()

    async def _run(self) -> None:
        iterator = iterate(self._iterable)
        async with aclosing(iterator):
            while True:
                await self._credited()
                try:
                    value = await anext(iterator)
                except StopAsyncIteration:
                    return
                self._credit -= 1
                self._caller.link.send(Send(self._call.id, self._number, value))

    async def _credited(self) -> None:
        await roomy(self._caller.driver)
        while not self._credit:
            event = anyio.Event()
            self._wake = event.set
            await event.wait()

    def _finish(self) -> None:
        call = self._call
        if not (call.ended or call.cancelled):
            data = None if self.failure is None else failures.describe(self.failure)
            self._caller.link.send(Sent(call.id, self._number, data))


async def iterate(iterable: Any) -> AsyncGenerator[Any, None]:
    """The items of ``iterable``, which may be a plain iterator, in a loop."""
    if isinstance(iterable, AsyncIterable):
        close = getattr(iterable, "aclose", None)
        try:
            async for item in iterable:
                yield item
        finally:
            if close is not None:
                with anyio.CancelScope(shield=True):
                    await close()
        return
    try:
        for item in iterable:
            yield item
            await anyio.lowlevel.checkpoint()
    finally:
        if hasattr(iterable, "close"):
            iterable.close()


# -- streams ----------------------------------------------------------------------------------


class Stream(Generic[T]):
    """The items that a generator on the other side yields, as an async iterator.

    Also an async context manager: leaving the block stops the generator there, and waits until
    its ``finally`` has run. Leaving an ``async for`` early stops it too, without waiting. Nothing
    is sent before the first item is asked for.
    """

    def __init__(self, caller: Caller, request: Request) -> None:
        self._caller: Final = caller
        self._request: Final = request
        self._call: OutCall | None = None
        self._pumps: list[ArgumentPump] = []
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
        self._busy = True
        try:
            call = self._call or await self._begin()
            while not call.ready:
                if not call.progress:
                    await next_news(call)
                report(call, self._request.options.on_progress)
            if self._over:  # another task has stopped it meanwhile
                raise StopAsyncIteration
            if call.items:
                return self._take(call)
        except BaseException:
            await self._caller.driver.backend.uninterrupted(self._stop)
            raise
        finally:
            self._busy = False
        self._over = True
        report(call, self._request.options.on_progress)
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
        call, self._pumps = await self._caller.begin(self._request, credit=self._outstanding)
        self._call = call
        return call

    async def _stop(self) -> None:
        self._over = True
        call = self._call
        if call is None:
            return
        call.items.clear()
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
        await self._caller.driver.backend.uninterrupted(self._stop)
        call = self._call
        error = None if call is None else call.error
        if not isinstance(error, (NoneType, CallCancelledError, DeadlineExceededError)):
            raise error

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

"""Calls from a thread without an event loop: what blocks, and streams as iterators.

Used by plain handlers in a worker, and by :mod:`forkwire.sync`. How to wait, and how a call is
stopped, each of them says itself: a `Waiter`.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import AsyncIterable, Callable, Generator, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, Final, Generic, Protocol, Self, TypeVar

from ..errors import CallCancelledError, UsageError
from ..wire.messages import Credit, Send, Sent, StreamRef
from . import context, failures
from .current import Inside, handling, new_tree, tree_for_call
from .interrupting import Interrupted
from .link import Link, OutCall
from .requests import Request, log_unseen, report

__all__ = ["BlockingCaller", "SyncStream", "Waiter"]

T = TypeVar("T")

# Values of these types are never streamed, and most arguments are of one.
PLAIN: Final = frozenset({int, str, float, bool, bytes, type(None), list, dict, tuple, set})


class Waiter(Protocol):
    """How a thread waits."""

    def wait(self, ready: Callable[[], bool], until: float = math.inf) -> None:
        """Block until ``ready()``, or a time of the monotonic clock, or nothing more can come.

        May raise what interrupts it.
        """
        ...

    def stop(self, call: OutCall) -> None:
        """Have ``call`` stopped, and wait until it has. What interrupts it is raised after that."""
        ...

    def ours(self) -> AbstractContextManager[None]:
        """Inside, nothing but what waits is interrupted."""
        ...

    def theirs(self, function: Callable[[], T]) -> T:
        """Inside of `ours`, call what is not our code, and may be interrupted."""
        ...

    def send(self, function: Callable[[], T]) -> T:
        """Call ``function``, which uses the link, so that nothing interrupts it half way."""
        ...


class NoRoomError(Exception):
    """Inside a link: what was to be sent has to wait."""


class BlockingCaller:
    """Makes calls over a link that something else reads, or that `Waiter.wait` does."""

    def __init__(self, link: Link, waiter: Waiter) -> None:
        self.link: Final = link
        self.waiter: Final = waiter

    def call(self, request: Request) -> Any:
        """The result of ``request``. Raises what the other side answered."""
        call, feeders = self.begin(request)
        try:
            self.wait_for(call, feeders, request, lambda: call.ended)
            self.report(call, request)
            self.finish(call, feeders)
        except BaseException:
            self.give_up(call, feeders)
            raise
        return call.value if request.convert is None else request.convert(call.value)

    def begin(self, request: Request, *, credit: int | None = None) -> tuple[OutCall, list[Feeder]]:
        """Send ``request`` once there is room for it."""
        tree = tree_for_call()
        args, kwargs, streams = streams_in(request)
        meta = meta_of(request, credit, new_tree() if streams else tree, self.link)
        call = self.new_call(request.method, str(meta.get("tree", "")))
        feeders = [Feeder(self, call, number, items) for number, items in enumerate(streams)]
        call.on_grant.update((feeder.number, feeder.grant) for feeder in feeders)
        try:
            self._start(request, call, args, kwargs, meta, inside=bool(tree))
        except BaseException:  # a signal's handler may have raised after it was sent
            self.give_up(call, feeders)
            raise
        return call, feeders

    def notify(self, request: Request) -> None:
        """Send ``request``; what becomes of it is only logged."""
        tree = tree_for_call()
        args, kwargs, streams = streams_in(request)
        if streams:
            raise UsageError(
                "notify() without an event loop streams no arguments, since nobody would be there "
                "to send them: use call(), or pass a list"
            )
        call = OutCall(0, request.method, tree)
        call.expected = False
        call.wake = lambda: self._see_off(call)
        meta = meta_of(request, None, tree, self.link)
        try:
            self._start(request, call, args, kwargs, meta, inside=bool(tree))
        finally:  # also when a signal's handler raised after it was sent
            self.waiter.send(self.link.outbox.own)

    def _start(
        self,
        request: Request,
        call: OutCall,
        args: Sequence[object],
        kwargs: Mapping[str, object],
        meta: Mapping[str, object],
        *,
        inside: bool,
    ) -> None:
        """Send it. ``inside``: others wait for it, so that it does not wait for others."""
        link = self.link

        def check_room(_: OutCall) -> None:
            if not (inside or link.has_room):
                raise NoRoomError

        def start() -> None:
            link.start(request.method, args, kwargs, meta, check_room, call)

        while True:
            if not inside:
                self._wait_for_room(request)
            try:
                return self.waiter.send(start)
            except NoRoomError:  # another thread was quicker
                call.id = 0

    def _see_off(self, call: OutCall) -> None:
        if call.ended and call.error is not None:
            with contextlib.suppress(Exception):  # of a logging handler
                log_unseen(self.link, call, call.error)

    def _wait_for_room(self, request: Request) -> None:
        link = self.link
        while not link.has_room:
            room: list[bool] = []

            def wake(room: list[bool] = room) -> None:
                room.append(True)
                self.wake()

            def ready(room: list[bool] = room) -> bool:
                return bool(room) or link.has_room

            try:
                self.waiter.send(lambda: link.when_room(wake))
                self.waiter.wait(ready, request.deadline)
                check_time(request)
            except BaseException:
                self.waiter.send(lambda: link.leave_queue(wake))
                raise

    # -- what those who drive a link themselves do otherwise ----------------------------------

    def wake(self) -> None:
        """What `Waiter.wait` waits for may have come."""

    def new_call(self, method: str, tree: str) -> OutCall:
        """One to be started."""
        return OutCall(0, method, tree)

    def sleep(self, call: OutCall, ready: Callable[[], bool], until: float) -> None:
        """Wait until something that came for ``call`` makes it ``ready()``."""
        self.waiter.wait(ready, until)

    def drop(self, call: OutCall) -> None:
        """Nobody waits for it any more: have it stopped, without waiting for that."""
        self.link.cancel(call)

    # -----------------------------------------------------------------------------------------

    def wait_for(
        self,
        call: OutCall,
        feeders: Sequence[Feeder],
        request: Request,
        ready: Callable[[], bool],
    ) -> None:
        """Wait, and meanwhile send arguments that are wanted, and report progress."""
        deadline = request.deadline

        def something() -> bool:
            return ready() or bool(call.progress) or any(feeder.wanted for feeder in feeders)

        while not ready():
            for feeder in feeders:
                feeder.feed()
            self.report(call, request)
            check_time(request)
            self.sleep(call, something, deadline)
            if self.link.over is not None and not ready():
                raise self.link.over

    def report(self, call: OutCall, request: Request) -> None:
        """Tell the progress that came."""
        if call.progress:
            self.waiter.theirs(lambda: report(call, request.options.on_progress))

    def give_up(self, call: OutCall, feeders: Sequence[Feeder]) -> None:
        """Stop it, and wait until it has."""
        try:
            if call.id and not call.ended:  # else it was never sent
                self.waiter.stop(call)
        finally:
            for feeder in feeders:
                feeder.close()

    def finish(self, call: OutCall, feeders: Sequence[Feeder]) -> None:
        """It has ended: raise its error, if it is one."""
        for feeder in feeders:
            feeder.close()
        if call.error is None:
            return
        for feeder in feeders:
            if feeder.failure is not None:
                raise feeder.failure
        raise call.error


def check_time(request: Request) -> None:
    """Raise :exc:`TimeoutError` when it is over."""
    if request.deadline != math.inf and time.monotonic() >= request.deadline:
        raise TimeoutError(f"{request.method} did not end within {request.options.timeout} seconds")


def streams_in(request: Request) -> tuple[list[object], dict[str, object], list[Iterator[Any]]]:
    """The arguments with references in place of iterators, and those."""
    streams: list[Iterator[Any]] = []

    def replaced(value: object) -> object:
        if isinstance(value, AsyncIterable):
            raise UsageError(
                "an async iterable cannot be an argument here, where there is no event loop: "
                "pass a plain iterator or generator"
            )
        if not isinstance(value, Iterator):
            return value
        streams.append(value)
        return StreamRef(len(streams) - 1)

    args = [value if type(value) in PLAIN else replaced(value) for value in request.args]
    kwargs = {name: replaced(value) for name, value in request.kwargs.items()}
    return args, kwargs, streams


def meta_of(request: Request, credit: int | None, tree: str, link: Link) -> Mapping[str, object]:
    meta: dict[str, object] = {}
    if request.deadline != math.inf:
        meta["timeout"] = max(0.0, request.deadline - time.monotonic())
    if credit is not None:
        meta["credit"] = credit
    if request.options.on_progress is not None:
        meta["progress"] = True
    if tree:
        meta["tree"] = tree
    if (carried := context.capture(variables=link.limits.trusted)) is not None:
        meta["context"] = carried
    return meta


class Feeder:
    """Sends the items of one argument, as many as are wanted, whenever its caller waits."""

    def __init__(
        self, caller: BlockingCaller, call: OutCall, number: int, iterator: Iterator[Any]
    ) -> None:
        self._caller: Final = caller
        self._call: Final = call
        self.number: Final = number
        self._iterator: Final = iterator
        self._inside: Final = Inside(call.tree)
        self._credit = 0
        self._over = False
        self._stopped = False
        self.failure: BaseException | None = None

    def grant(self, count: int) -> None:
        """The other side wants ``count`` more; 0: none any more."""
        self._credit += count
        self._stopped = self._stopped or not count
        self._call.wake()

    @property
    def wanted(self) -> bool:
        """Whether `feed` has something to do."""
        return not self._over and (self._stopped or self._credit > 0)

    def feed(self) -> None:
        """Send the next item, or the end, if it is wanted."""
        if not self.wanted or self._call.ended:
            return
        token = handling.set(self._inside)
        try:
            value = self._caller.waiter.theirs(lambda: next(self._iterator, self))
            if self._stopped or value is self:
                self._end()
                return
            self._credit -= 1
            self._send(Send(self._call.id, self.number, value))
        except Interrupted:
            raise
        except (Exception, SystemExit) as error:
            self.failure = error
            self._end()
        finally:
            handling.reset(token)

    def _send(self, message: Send | Sent) -> None:
        self._caller.waiter.send(lambda: self._caller.link.send(message))

    def _end(self) -> None:
        self._over = True
        data = None if self.failure is None else failures.describe(self.failure)
        if not (self._call.ended or self._call.cancelled):
            self._send(Sent(self._call.id, self.number, data))

    def close(self) -> None:
        """Nobody takes it any more."""
        self._over = True
        if isinstance(self._iterator, (Generator, SyncStream)):
            self._iterator.close()


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
        error = None if self._call is None else self._call.error
        if error is not None and not isinstance(error, CallCancelledError):
            raise error

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

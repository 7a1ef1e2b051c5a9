"""Calls from a thread without an event loop, which block.

Used by plain handlers in a worker, and by :mod:`forkwire.sync`. How to wait, and how a call is
stopped, each of them says itself: a `Waiter`.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, Final, Protocol, TypeVar

from ...errors import UsageError
from ..links.link import Link, OutCall
from ..telling import context
from .current import new_tree, tree_for_call
from .feeding import Feeder, is_streamed
from .requests import NoRoomError, Request, log_unseen, report, streams_in
from .sync_streams import SyncStream

__all__ = ["BlockingCaller", "Waiter", "check_time"]

T = TypeVar("T")


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


class BlockingCaller:
    """Makes calls over a link that something else reads, or that `Waiter.wait` does."""

    def __init__(self, link: Link, waiter: Waiter) -> None:
        self.link: Final = link
        self._waiter: Final = waiter

    @property
    def waiter(self) -> Waiter:
        """How this thread waits."""
        return self._waiter

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

    def ours(self) -> AbstractContextManager[object]:
        """Inside, nothing but what waits is interrupted."""
        return self.waiter.ours()

    def stream(self, request: Request) -> SyncStream[Any]:
        """The items of ``request``, which is sent when the first is asked for."""
        return SyncStream(self, request)

    def begin(self, request: Request, *, credit: int | None = None) -> tuple[OutCall, list[Feeder]]:
        """Send ``request`` once there is room for it."""
        self.check_here()
        tree = tree_for_call()
        args, kwargs, streams = streams_in(request, is_streamed)
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
        self.check_here()
        tree = tree_for_call()
        args, kwargs, streams = streams_in(request, is_streamed)
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

    def check_here(self) -> None:
        """Raise :exc:`UsageError` where a call would never end."""

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
                self.link.check_open()

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
        error, call.error = call.error, None
        if error is None:
            return
        for feeder in feeders:
            if feeder.failure is not None:
                error, feeder.failure = feeder.failure, None
                break
        try:
            raise error
        finally:
            del error  # nor does `call` hold it: its traceback has this frame, and the caller's


def check_time(request: Request) -> None:
    """Raise :exc:`TimeoutError` when it is over."""
    if request.deadline != math.inf and time.monotonic() >= request.deadline:
        raise TimeoutError(f"{request.method} did not end within {request.options.timeout} seconds")


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

"""Calls in an event loop: what is awaited.

The caller's half; what the other side calls here is run by `tasks`.
"""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, Final

import anyio
import anyio.lowlevel

from ...errors import DeadlineExceededError, UsageError
from ..links.drivers import LoopDriver
from ..links.link import Link, OutCall
from ..telling import context
from .current import may_wait, new_tree, tree_for_call
from .pumps import ArgumentPump, is_streamed
from .requests import NoRoomError, Request, log_unseen, report, streams_in
from .streams import Begun, Stream

__all__ = ["Caller"]

# So much later than the other side's clock ours may say that a call's time is over.
PATIENCE: Final = 1.0  # seconds

WRITTEN: Final = 0.01  # seconds between looks, at the end of a worker only


class Caller:
    """Makes calls over a link whose driver is this loop.

    ``stop``: is awaited, not interrupted, for a call that was cancelled here; it returns when the
    work has really stopped.
    """

    def __init__(self, driver: LoopDriver) -> None:
        self.driver: Final = driver
        self.link: Final[Link] = driver.link

    def check_here(self) -> None:
        """Raise :exc:`UsageError` anywhere but in the loop, and the process, that drives the link.

        Nobody would be woken elsewhere.
        """
        if not self.driver.backend.is_current():
            raise UsageError(
                f"{self.link.name} belongs to the event loop that started it, not to this one: "
                "open a worker in each loop, thread and process that calls one"
            )

    async def stop(self, call: OutCall) -> None:
        """Have the other side stop ``call``, and wait until it has."""
        self.link.cancel(call)
        await self.wait_ended(call)

    async def notify(self, request: Request) -> None:
        """Send ``request``; what becomes of it is only logged."""
        self.leave(*await self.begin(request))

    def leave(self, call: OutCall, pumps: Sequence[ArgumentPump]) -> None:
        """Nobody waits for ``call``, which runs all the same."""
        call.expected = False
        self.link.outbox.own()
        backend = self.driver.backend
        backend.spawn(lambda: self._see_off(call, pumps), f"forkwire: notify {call.method}")

    async def _see_off(self, call: OutCall, pumps: Sequence[ArgumentPump]) -> None:
        await self.wait_ended(call)
        try:
            await self.finish(call, pumps)
        except (Exception, SystemExit, KeyboardInterrupt) as error:  # these an argument may raise
            with contextlib.suppress(Exception):  # of a logging handler
                log_unseen(self.link, call, error)

    def abandon(self, call: OutCall, pumps: Sequence[ArgumentPump]) -> None:
        """Nobody waits for ``call`` any more: stop it in the background. In the loop."""
        self.link.cancel(call)
        backend = self.driver.backend
        if backend.is_current():
            backend.spawn(lambda: self.give_up(call, pumps), f"forkwire: stop {call.method}")

    async def wait_ended(self, call: OutCall) -> None:
        """Until it has ended, well or not."""
        while not call.ended:
            await self.next_news(call)

    async def next_news(self, call: OutCall) -> None:
        """Until something comes for ``call``."""
        event = anyio.Event()
        waiting = call.wake if isinstance(call.wake, Waiting) else Waiting()
        call.wake = waiting
        waiting.append(event)
        try:
            await event.wait()
        finally:
            waiting.remove(event)

    async def wait_written(self) -> None:
        """Until all that was sent is out, or nobody reads it."""
        outbox = self.link.outbox
        while outbox.waiting and not outbox.gone:  # noqa: ASYNC110
            await anyio.sleep(WRITTEN)  # nothing tells when the last byte is out

    async def call(self, request: Request) -> Any:
        """The result of ``request``. Raises what the other side answered."""
        return await self.complete(request, *await self.begin(request))

    def stream(self, request: Request) -> Stream[Any]:
        """The items of ``request``, which is sent when the first is asked for."""
        return Stream(self, request)

    async def begin_stream(self, request: Request, credit: int) -> Begun:
        """Send ``request``, which wants so many items to begin with."""
        return self, *await self.begin(request, credit=credit)

    async def complete(self, request: Request, call: OutCall, pumps: Sequence[ArgumentPump]) -> Any:
        """The result of ``call``, which was begun for ``request``."""
        on_progress = request.options.on_progress
        try:
            while not call.ended:
                if not call.progress:
                    await self.next_news(call)
                report(call, on_progress)
            report(call, on_progress)
        except BaseException:
            await self.driver.backend.uninterrupted(lambda: self.give_up(call, pumps))
            raise
        await self.finish(call, pumps)
        return call.value if request.convert is None else request.convert(call.value)

    async def give_up(self, call: OutCall, pumps: Sequence[ArgumentPump]) -> None:
        """Have it stopped, and wait until it has, and its arguments too."""
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
        self,
        request: Request,
        *,
        credit: int | None = None,
        on_end: Callable[[OutCall], None] | None = None,
    ) -> tuple[OutCall, Sequence[ArgumentPump]]:
        """Send ``request`` once there is room for it. ``on_end``: is told when it has ended."""
        link = self.link
        self.check_here()
        await anyio.lowlevel.checkpoint_if_cancelled()
        args, kwargs, streams = streams_in(request, is_streamed)
        tree = new_tree() if streams else tree_for_call()
        waits = may_wait()
        pumps: list[ArgumentPump] = []

        def prepare(call: OutCall) -> None:
            if waits and not link.has_room:  # another thread was quicker
                raise NoRoomError
            call.on_end = on_end
            for number, iterable in enumerate(streams):
                pump = ArgumentPump(self.driver, call, number, iterable)
                pumps.append(pump)
                call.on_grant[number] = pump.grant

        while True:
            while waits and not link.has_room:
                await self._room()
            meta = self._meta(request, credit, tree)
            try:
                call = link.start(request.method, args, kwargs, meta, prepare)
                break
            except NoRoomError:
                pass
        for pump in pumps:
            pump.start()
        return call, pumps

    async def _room(self) -> None:
        room = anyio.Event()
        wake = functools.partial(self.driver.backend.call, room.set)
        self.link.when_room(wake)
        try:
            await room.wait()
        except BaseException:
            self.link.leave_queue(wake)
            raise

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


class Waiting(list[anyio.Event]):
    """The tasks that wait for one call: its own, and perhaps whoever stops it."""

    def __call__(self) -> None:
        for event in self:
            event.set()

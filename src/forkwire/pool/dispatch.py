"""Which call goes to which worker, and when: calls wait in order, the least busy worker is next.

What workers there are is for :mod:`.crew`.
"""

from __future__ import annotations

import logging
import time
from collections import OrderedDict
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

import anyio
import anyio.lowlevel

from ..errors import (
    PoisonCallError,
    PoolBrokenError,
    TooManyCallsError,
    UsageError,
    WorkerClosedError,
    WorkerDied,
)
from ..rpc.caller.current import tree_for_call
from ..rpc.caller.requests import Request
from ..rpc.caller.streams import Begun, Stream
from .blame import Blame, has_streams
from .options import retries_of
from .states import State
from .statistics import Counters

if TYPE_CHECKING:
    from ..rpc.links.link import OutCall
    from .crew import Crew
    from .members import Post

__all__ = ["Dispatcher", "Waiter", "Work"]

clock = time.monotonic


class Waiter:
    """Waits for a worker; ``alone``: for one that does nothing, and is to be lent."""

    __slots__ = ("alone", "error", "event", "post")

    def __init__(self, *, alone: bool) -> None:
        self.alone: Final = alone
        self.event: Final = anyio.Event()
        self.post: Post | None = None
        self.error: Exception | None = None


class Work:
    """A call that has its worker, until it has ended.

    ``asked``: when it was made. ``alone``: the worker was lent for it.
    """

    __slots__ = ("_dispatcher", "alone", "asked", "begun", "post", "request")

    def __init__(
        self, dispatcher: Dispatcher, post: Post, request: Request, asked: float, *, alone: bool
    ) -> None:
        self._dispatcher: Final = dispatcher
        self.post: Final = post
        self.request: Final = request
        self.asked: Final = asked
        self.alone: Final = alone
        self.begun: Final = clock()
        post.work.add(self)

    def ended(self, call: OutCall) -> None:
        """In any way."""
        self.post.work.discard(self)
        self._dispatcher.ended(self, call.error)
        self._free()

    def withdraw(self) -> None:
        """It was not sent."""
        self.post.work.discard(self)
        self._dispatcher.give_back(self.post, alone=False)
        self._free()

    def _free(self) -> None:
        if self.alone:
            self._dispatcher.give_back(self.post, alone=True)


class Dispatcher:
    """Makes calls to whichever worker is the least busy.

    ``queue``: calls that may wait, None for any number. ``poison``: deaths of workers after which
    a call is not made any more.
    """

    def __init__(self, crew: Crew, *, queue: int | None, poison: int) -> None:
        self.counters: Final = Counters()
        self.blame: Final = Blame(poison, self.counters)
        self._crew: Final = crew
        self._supervisor: Final = crew.supervisor
        self._most_waiting: Final = queue
        self._queue: Final[OrderedDict[Waiter, None]] = OrderedDict()
        self.closing = ""  # why no new calls are taken
        crew.on_change = self.hand_out
        crew.on_death = self._suspect

    @property
    def waiting(self) -> int:
        """How many calls wait for a worker."""
        return len(self._queue)

    def check_here(self) -> None:
        """Raise :exc:`UsageError` in any other event loop, thread or process than the pool's."""
        if not self._crew.backend.is_current():
            raise UsageError(
                "a pool belongs to the event loop that opened it, not to this one: open a pool in "
                "each loop, thread and process that calls one"
            )

    # -- calls --------------------------------------------------------------------------------

    async def call(self, request: Request) -> Any:
        """The result of ``request``, from some worker."""
        return await self.run(request)

    async def run(self, request: Request, *, patient: bool = False) -> Any:
        """The same; ``patient``: it waits however many others do."""
        deaths: list[WorkerDied] = []
        while True:
            try:
                caller, call, pumps = await self.begin(request, patient=patient or bool(deaths))
                return await caller.complete(request, call, pumps)
            except WorkerDied as error:
                deaths.append(error)
                if len(deaths) > retries_of(request) or has_streams(request):
                    note(error, deaths)
                    raise
                self._tell_retry(request, error, len(deaths))
            except PoisonCallError as error:
                note(error, deaths)
                raise

    async def everywhere(self, request: Request) -> list[Any]:
        """The results of ``request`` from each worker that is ready, in the order of their starts.

        Raises an :exc:`ExceptionGroup` of all that failed, once all have ended.
        """
        self.check_here()
        await anyio.lowlevel.checkpoint_if_cancelled()
        self.check_open()
        if has_streams(request):
            raise UsageError(
                "broadcast() has no streamed arguments: only one worker could have them"
            )
        posts = [post for post in self._crew.posts.values() if post.member.state is State.READY]
        outcomes: dict[Post, Any] = {}
        failures: list[Exception] = []

        async def one(post: Post) -> None:
            try:
                outcomes[post] = await self._call_at(post, request)
            except Exception as error:
                failures.append(error)

        async with anyio.create_task_group() as tasks:
            for post in posts:
                self.take(post)
                tasks.start_soon(one, post)
        if failures:
            raise ExceptionGroup(
                f"{request.method} failed in {len(failures)} of {len(posts)} workers", failures
            )
        return [outcomes[post] for post in posts if post in outcomes]

    async def _call_at(self, post: Post, request: Request) -> Any:
        begun = await self.send(post, request, None, clock())
        if begun is None:
            await post.over.wait()
            raise post.gone()
        caller, call, pumps = begun
        return await caller.complete(request, call, pumps)

    async def notify(self, request: Request) -> None:
        """Send it to some worker; what becomes of it is only logged."""
        caller, call, pumps = await self.begin(request)
        caller.leave(call, pumps)

    def stream(self, request: Request) -> Stream[Any]:
        """Its items; it gets its worker when the first is asked for."""
        return Stream(self, request)

    async def begin_stream(self, request: Request, credit: int) -> Begun:
        return await self.begin(request, credit=credit)

    async def begin(
        self, request: Request, *, credit: int | None = None, patient: bool = False
    ) -> Begun:
        """Send it, once there is a worker for it."""
        self.check_here()
        asked = clock()
        while True:
            alone = self.blame.must_be_alone(request) and not tree_for_call()
            post = await self.acquire(alone=alone, patient=patient)
            if alone:
                self.take(post)
            begun = await self.send(post, request, credit, asked, alone=alone)
            if begun is not None:
                return begun
            await post.over.wait()  # it ends, and took nothing
            patient = True

    async def send(
        self,
        post: Post,
        request: Request,
        credit: int | None,
        asked: float,
        *,
        alone: bool = False,
    ) -> Begun | None:
        """Send it to a worker that was found for it; None if that takes nothing any more.

        ``alone``: the worker was lent for it.
        """
        work = Work(self, post, request, asked, alone=alone)
        caller = post.caller
        try:
            self.blame.must_be_alone(request)
            call, pumps = await caller.begin(request, credit=credit, on_end=work.ended)
        except (WorkerDied, WorkerClosedError):
            work.withdraw()
            if not post.is_lost:
                raise
            return None
        except BaseException:
            work.withdraw()
            raise
        return caller, call, pumps

    def _tell_retry(self, request: Request, error: WorkerDied, count: int) -> None:
        self.counters.retries += 1
        logging.getLogger("forkwire").warning(
            "%s is called again (retry %d of %d): worker %d %s",
            request.method,
            count,
            retries_of(request),
            error.pid,
            error.reason,
        )

    # -- workers for calls --------------------------------------------------------------------

    async def acquire(self, *, alone: bool = False, patient: bool = False) -> Post:
        """A worker with room for one more call, in the order in which they were asked for.

        ``alone``: one that does nothing, and is lent. Raises :exc:`TooManyCallsError` where too
        many wait, unless ``patient``; :exc:`PoolBrokenError` and :exc:`WorkerClosedError`.
        """
        await anyio.lowlevel.checkpoint_if_cancelled()
        post = None if alone else self._relative()
        if post is None:
            self.check_open(patient=patient)
            post = None if self._queue else self._pick(alone=alone)
        if post is not None:
            return post
        if not patient and self._most_waiting is not None:
            self._check_queue(self._most_waiting)
        return await self._wait(Waiter(alone=alone))

    async def _wait(self, waiter: Waiter) -> Post:
        self._queue[waiter] = None
        self._tell_waiting()
        try:
            await waiter.event.wait()
        except BaseException:
            if waiter.post is not None:
                self.give_back(waiter.post, alone=waiter.alone)
            elif self._queue.pop(waiter, self) is None:
                self._tell_waiting()
                self.hand_out()  # who is behind it may want another kind of worker
            raise
        if waiter.error is not None:
            raise waiter.error
        assert waiter.post is not None
        return waiter.post

    def hand_out(self) -> None:
        """Give those that wait what there is."""
        if self._supervisor.is_over:
            self.refuse_all()
        while self._queue:
            waiter = next(iter(self._queue))
            post = self._pick(alone=waiter.alone)
            if post is None:
                return
            del self._queue[waiter]
            waiter.post = post
            waiter.event.set()
            self._tell_waiting()

    def refuse_all(self) -> None:
        """No worker will come for those that wait."""
        while self._queue:
            waiter, _ = self._queue.popitem(last=False)
            waiter.error = self._refusal()
            waiter.event.set()
        self._tell_waiting()

    def _pick(self, *, alone: bool) -> Post | None:
        member = self._supervisor.pick(alone=alone)
        if member is None:
            return None
        post = self._crew.posts[member.number]
        self.take(post, alone=alone)
        return post

    def take(self, post: Post, *, alone: bool = False) -> None:
        """It is given a call, or lent."""
        take = self._supervisor.lease if alone else self._supervisor.began
        self._crew.apply(take(post.member, clock()))

    def _relative(self) -> Post | None:
        """For a call made while one of a worker's is handled here: a worker that must not wait.

        All workers may be busy with calls that wait for this one. So it goes to one that has room,
        else to the one that waits for it, which runs it inside of that.
        """
        tree = tree_for_call()
        if not tree:
            return None
        for post in self._crew.posts.values():
            if post.has_part_in(tree):
                other = self._pick(alone=False)
                if other is None:
                    self.take(post)
                return other or post
        return None

    def give_back(self, post: Post, *, alone: bool, fresh: bool = False) -> None:
        """It was not used, or is not lent any more."""
        now = clock()
        if alone:
            actions = self._supervisor.release(post.member, now, fresh=fresh)
        else:
            actions = self._supervisor.finished(post.member, now, answered=False)
        self._crew.ordered(actions)

    def ended(self, work: Work, error: BaseException | None) -> None:
        """A call ended, well or not."""
        post, now = work.post, clock()
        answered = post.link.over is None
        wait = work.begun - work.asked
        method = work.request.method
        self.counters.ended(method, wait, now - work.begun, error=error is not None)
        if answered:
            self.blame.answered(work.request)
        measures = answered and self._supervisor.recycle.memory is not None
        memory = post.resident() if measures else None
        actions = self._supervisor.finished(post.member, now, answered=answered, memory=memory)
        if actions:
            self._crew.ordered(actions)
        elif self._queue:
            self.hand_out()

    def _suspect(self, post: Post, error: BaseException) -> None:
        """A worker died: of one of the calls that it ran?"""
        self.blame.died([work.request for work in post.work], error)

    # -- refusals -----------------------------------------------------------------------------

    def _tell_waiting(self) -> None:
        self._crew.apply(self._supervisor.waiting(len(self._queue), clock()))

    def _check_queue(self, most: int) -> None:
        if len(self._queue) >= most:
            self.counters.refused += 1
            raise TooManyCallsError(
                f"{len(self._queue)} calls wait for a worker of the pool, which is as many as may "
                "(queue=): call later, or less at a time"
            )

    def check_open(self, *, patient: bool = False) -> None:
        """Raise why no new call is made; ``patient``: those of a drain's own are."""
        if self._supervisor.is_over or (self.closing and not patient):
            raise self._refusal()

    def _refusal(self) -> Exception:
        broken = self._supervisor.broken
        if broken is None:
            return WorkerClosedError(self.closing or "the pool was closed")
        if isinstance(broken, PoolBrokenError):
            error = PoolBrokenError(*broken.args)
            error.__cause__ = broken.__cause__
        else:
            error = PoolBrokenError(f"the pool is broken: its workers do not start: {broken}")
            error.__cause__ = broken
        return error


def note(error: Exception, deaths: Sequence[WorkerDied]) -> None:
    """Say on the last error that there were others."""
    if len(deaths) > 1:
        error.add_note(f"it was called {len(deaths)} times, and each time the worker died")

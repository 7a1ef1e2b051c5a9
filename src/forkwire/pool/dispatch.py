"""Which call goes to which worker, and when: calls wait in order, the least busy worker is next.

What workers there are is for :mod:`.crew`.
"""

from __future__ import annotations

import logging
import time
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
from .blame import Blame, Mark, has_streams
from .line import Line, Waiter
from .options import retries_of
from .states import Need, State
from .statistics import Counters
from .work import Work

if TYPE_CHECKING:
    from ..rpc.caller.offers import Offers
    from .crew import Crew
    from .members import Post

__all__ = ["Dispatcher"]

clock = time.monotonic


class Dispatcher:
    """Makes calls to whichever worker is the least busy.

    ``offers``: what they are called with. ``queue``: calls that may wait, None for any number.
    ``poison``: deaths of workers after which a call is not made any more.
    """

    def __init__(self, crew: Crew, offers: Offers, *, queue: int | None, poison: int) -> None:
        self.counters: Final = Counters()
        self.blame: Final = Blame(poison, self.counters)
        self._crew: Final = crew
        self._supervisor: Final = crew.supervisor
        self._offers: Final = offers
        self._most_waiting: Final = queue
        self._line: Final = Line()
        self.closing = ""  # why no new calls are taken
        crew.on_change = self.hand_out
        crew.on_death = self._suspect

    @property
    def waiting(self) -> int:
        """How many calls wait for a worker."""
        return len(self._line)

    def need_of(self, request: Request) -> Need:
        """What a worker must have to run it."""
        kind = self._offers.kinds.get(request.method, "")
        return Need.LANE if kind in ("plain", "generator") else Need.LOOP

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
        need, now = self.need_of(request), clock()
        outcomes: dict[Post, Any] = {}
        failures: list[Exception] = []

        async def one(work: Work) -> None:
            try:
                outcomes[work.post] = await self._call_at(work)
            except Exception as error:
                failures.append(error)

        async with anyio.create_task_group() as tasks:
            for post in posts:
                self.take(post, need)
                tasks.start_soon(one, Work(self, post, Mark(request), need, now))
        if failures:
            raise ExceptionGroup(
                f"{request.method} failed in {len(failures)} of {len(posts)} workers", failures
            )
        return [outcomes[post] for post in posts if post in outcomes]

    async def _call_at(self, work: Work) -> Any:
        begun = await self.send(work, None)
        if begun is None:
            await work.post.over.wait()
            raise work.post.gone()
        caller, call, pumps = begun
        return await caller.complete(work.mark.request, call, pumps)

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
        asked, mark = clock(), Mark(request)
        while True:
            need = self.need_of(request)
            alone = self.blame.must_be_alone(mark) and not tree_for_call()
            post = await self.acquire(Need.ALL if alone else need, patient=patient)
            if alone:
                self.take(post, need)
            begun = await self.send(Work(self, post, mark, need, asked, alone=alone), credit)
            if begun is not None:
                return begun
            await post.over.wait()  # it ends, and took nothing
            patient = True

    async def send(self, work: Work, credit: int | None) -> Begun | None:
        """Send it to the worker that was found for it; None if that takes nothing any more."""
        caller, request = work.post.caller, work.mark.request
        try:
            self.blame.must_be_alone(work.mark)
            call, pumps = await caller.begin(request, credit=credit, on_end=work.ended)
        except (WorkerDied, WorkerClosedError):
            work.withdraw()
            if not work.post.is_lost:
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

    async def acquire(self, need: Need, *, patient: bool = False) -> Post:
        """A worker that has what is needed, in the order in which it was asked for.

        Raises :exc:`TooManyCallsError` where too many wait, unless ``patient``;
        :exc:`PoolBrokenError` and :exc:`WorkerClosedError`.
        """
        await anyio.lowlevel.checkpoint_if_cancelled()
        post = None if need is Need.ALL else self._relative(need)
        if post is None:
            self.check_open(patient=patient)
            post = None if self._line.waits(need) else self._find(need)
        if post is not None:
            self.take(post, need)
            return post
        if not patient and self._most_waiting is not None:
            self._check_queue(self._most_waiting)
        return await self._wait(self._line.join(need, clock()))

    async def _wait(self, waiter: Waiter) -> Post:
        self._tell_waiting()
        try:
            await waiter.event.wait()
        except BaseException:
            if waiter.post is not None:
                self.give_back(waiter.post, waiter.need)
            elif self._line.leave(waiter):
                self._tell_waiting()
                self.hand_out()  # a worker may have been kept for it
            raise
        if waiter.error is not None:
            raise waiter.error
        assert waiter.post is not None
        return waiter.post

    def hand_out(self) -> None:
        """Give those that wait what there is."""
        if self._supervisor.is_over:
            self.refuse_all()
        in_vain: set[Need] = set()
        while (waiter := self._line.first(in_vain)) is not None:
            post = self._find(waiter.need, after=Need.ALL in in_vain)
            if post is None:
                in_vain.add(waiter.need)
                continue
            self._line.leave(waiter)
            waiter.post = post
            waiter.event.set()
            self.take(post, waiter.need)
            self._tell_waiting()

    def refuse_all(self) -> None:
        """No worker will come for those that wait."""
        while (waiter := self._line.first()) is not None:
            self._line.leave(waiter)
            waiter.error = self._refusal()
            waiter.event.set()
        self._tell_waiting()

    def _find(self, need: Need, *, after: bool = True) -> Post | None:
        """A worker that has it; ``after``: for one who came after those that need all of one."""
        kept = self._line.kept(clock()) if after else 0
        member = self._supervisor.pick(need, kept=kept)
        return None if member is None else self._crew.posts[member.number]

    def take(self, post: Post, need: Need) -> None:
        """It is given a call, or lent."""
        supervisor, member, now = self._supervisor, post.member, clock()
        if need is Need.ALL:
            self._crew.apply(supervisor.lease(member, now))
        else:
            self._crew.apply(supervisor.began(member, now, plain=need is Need.LANE))

    def _relative(self, need: Need) -> Post | None:
        """For a call made while one of a worker's is handled here: a worker that must not wait.

        All workers may be busy with calls that wait for this one. So it goes to one that has room,
        else to the one that waits for it, which runs it inside of that.
        """
        tree = tree_for_call()
        if not tree:
            return None
        for post in self._crew.posts.values():
            if post.has_part_in(tree):
                return self._find(need, after=False) or post
        return None

    def give_back(self, post: Post, need: Need, *, fresh: bool = False) -> None:
        """It was not used, or is not lent any more."""
        supervisor, member, now = self._supervisor, post.member, clock()
        if need is Need.ALL:
            actions = supervisor.release(member, now, fresh=fresh)
        else:
            plain = need is Need.LANE
            actions = supervisor.finished(member, now, plain=plain, answered=False)
        self._crew.ordered(actions)

    def ended(self, work: Work, error: BaseException | None) -> None:
        """A call ended, well or not."""
        post, now = work.post, clock()
        answered = post.link.over is None
        wait = work.begun - work.asked
        method, plain = work.mark.request.method, work.need is Need.LANE
        self.counters.ended(method, wait, now - work.begun, error=error is not None)
        if answered:
            self.blame.answered(work.mark)
        measures = answered and self._supervisor.recycle.memory is not None
        memory = post.resident() if measures else None
        actions = self._supervisor.finished(
            post.member, now, plain=plain, answered=answered, memory=memory
        )
        if actions:
            self._crew.ordered(actions)
        elif self._line:
            self.hand_out()

    def _suspect(self, post: Post, error: BaseException) -> None:
        """A worker died: of one of the calls that it ran?"""
        self.blame.died([work.mark for work in post.work], error)

    # -- refusals -----------------------------------------------------------------------------

    def _tell_waiting(self) -> None:
        self._crew.apply(self._supervisor.waiting(self._line.counts(), clock()))

    def _check_queue(self, most: int) -> None:
        if len(self._line) >= most:
            self.counters.refused += 1
            raise TooManyCallsError(
                f"{len(self._line)} calls wait for a worker of the pool, which is as many as may "
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

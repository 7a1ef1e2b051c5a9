"""One worker of an executor: its start, the calls that it is given, its end.

It runs one call at a time, each sent from the callback that heard of the end of another: a task for
each would cost turns of the loop. Where calls are short some are sent ahead, so that neither side
waits for the other; those that have not begun can be taken back, and are when the worker dies.
Knows its engine as what gives it calls.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing import process
from typing import TYPE_CHECKING, Any, Final, Protocol

from ..errors import WorkerClosedError, WorkerDied
from ..rpc.links.inflight import OutCall
from ..rpc.settings import StartMethod
from ..rpc.worker import Worker, open_worker
from . import executor_service as service
from .executor_claims import Claims
from .executor_work import StoppableFuture, Work, answer
from .pickling import pack

if TYPE_CHECKING:
    from ..rpc.links.link import Link

__all__ = ["Counters", "Member", "Owner", "Plan"]

# So much work, going by how long the last call took, may be ahead in a worker, in so many calls.
# Waking the other side takes a twentieth of that. What is there cannot be cancelled any more.
AHEAD: Final = 0.001  # seconds
MOST_AHEAD: Final = 16

NOT_CLAIMED: Final = "worker after worker passed the call over, as if it had been taken back"

# What workers import sooner or later, if it is there.
USED: Final = ("multiprocessing.process", "cloudpickle")


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What the workers are, and what becomes of calls; `ProcessExecutor` says what each means."""

    workers: int
    start: StartMethod
    preload: tuple[str, ...]
    initializer: Callable[..., object] | None
    initargs: tuple[object, ...]
    tasks_per_worker: int | None
    cancel_running: bool
    name: str
    grace: float
    start_timeout: float
    logging: bool

    @property
    def inherits(self) -> bool:
        """Whether workers have what is here."""
        return self.start == "fork"


@dataclass(slots=True)
class Counters:
    """What became of calls so far."""

    calls: int = 0  # that ended
    deaths: int = 0
    retries: int = 0


class Owner(Protocol):
    """What gives calls, and hears of what happens. In the loop."""

    @property
    def counters(self) -> Counters: ...

    def take(self) -> Work | None:
        """The next call that is to be run; None where none waits."""

    def take_ahead(self) -> Work | None:
        """The same for a worker that has one: only what nobody could begin at once."""

    def started(self, member: Member) -> None: ...

    def idle(self, member: Member) -> bool:
        """Whether it is to wait for a call; it then gets a `proceed`."""
        ...

    def lost(self, member: Member) -> None:
        """It takes no more calls."""

    def died(self, work: Work, error: WorkerDied | WorkerClosedError) -> None:
        """The worker did, while it ran ``work``."""

    def take_again(self, works: Sequence[Work], error: Exception | None) -> None:
        """They have not begun, and are to be run elsewhere. ``error``: what the worker died of."""

    def tell(self, function: Callable[[], object]) -> None:
        """Have it called in the loop. Any thread."""

    def look_after(self, task: asyncio.Task[None]) -> None:
        """The executor has not ended before it has."""


class Member:
    """One worker's place."""

    def __init__(self, plan: Plan, owner: Owner) -> None:
        self.worker: Worker | None = None  # once it can take calls
        self._plan: Final = plan
        self._owner: Final = owner
        self._path: list[str] = []  # what its worker knows of sys.path
        self._claims: Claims | None = None  # where the worker claims what it begins
        self._number = 0  # of the last call
        self._flight: Final[dict[int, Work]] = {}  # sent and not answered, in that order
        self._bereft = False  # all that it had was taken back, and it has not answered since
        self._most = 1  # that may be
        self._heard = 0.0  # when it last answered, or was given something to do
        self._link: Link | None = None
        self._calls = 0
        self._spent = False
        self._done: Final = asyncio.Event()

    @property
    def alive(self) -> bool:
        """Whether its worker can take a call."""
        return self._link is not None and self._link.is_open and not self._spent

    async def live(self) -> BaseException | None:
        """From its start to its end. What the initializer raised; raises why else it is not there.

        What is no Exception would mean something else to the task, or the loop, if it was raised.
        """
        self._path = [*sys.path]
        with contextlib.closing(Claims()) as claims:
            return await self._live(claims)

    async def _live(self, claims: Claims) -> BaseException | None:
        async with self._open() as worker:
            reply = await self._set_up(worker, claims.path)
            try:
                self._claims = claims if answer(reply, "the initializer") else None
            except BaseException as error:
                return error
            self._link = link = worker._own_caller().link
            link.on_over = self._on_over
            self.worker = worker
            self._owner.started(self)
            self.proceed()
            await self._done.wait()
            self._owner.lost(self)
        return None

    def _open(self) -> Worker:
        plan = self._plan
        inherits = plan.inherits and plan.initializer is not None
        return open_worker(
            service.__name__,
            start=plan.start,
            preload=(*plan.preload, *USED) if plan.start == "template" else (),
            initializer=service.initialize if inherits else None,
            initargs=(plan.initializer, plan.initargs) if inherits else (),
            name=plan.name,
            grace=plan.grace,
            start_timeout=plan.start_timeout,
            logging=plan.logging,
        )

    async def _set_up(self, worker: Worker, claims: str) -> list[Any]:
        plan = self._plan
        first = (None, ()) if plan.inherits else (plan.initializer, plan.initargs)
        key = bytes(process.current_process().authkey)
        packed = pack((key, plan.inherits, claims, *first), inherited=plan.inherits)
        reply: list[Any] = await worker.call("set_up", packed)
        return reply

    # -- calls --------------------------------------------------------------------------------

    @property
    def in_flight(self) -> int:
        """Calls that it has; the first one runs."""
        return len(self._flight)

    def proceed(self) -> None:
        """Send the next calls, or wait for one, or end."""
        while len(self._flight) < self._most:
            if not self.alive:
                if not self._flight:
                    self._done.set()
                return
            work = self._owner.take_ahead() if self._flight else self._owner.take()
            if work is not None:
                self._begin(work)
            elif self._flight or self._owner.idle(self):
                return
            else:
                self._done.set()
                return

    def _begin(self, work: Work) -> None:
        link = self._link
        assert link is not None
        try:
            packed = work.pack(inherited=self._plan.inherits)
        except BaseException as error:
            work.fail(error)
            return
        self._number = number = self._number + 1
        method = "run"
        args: tuple[object, ...] = number, packed
        if type(packed) is not bytes or sys.path != self._path:
            method = "run_large"
            args = number, packed, self._new_path()
        meta = {} if work.context is None else {"context": work.context}
        call = OutCall(0, method)
        if self._claims is not None:
            self._claims.offer(number)
        try:
            link.start(method, args, {}, meta, call=call)
        except (WorkerDied, WorkerClosedError) as error:
            self._spent = True
            self._owner.take_again([work], error)
            return
        except BaseException as error:
            work.refused(error)
            return
        if not self._flight:
            self._heard = time.monotonic()
        self._flight[number] = work
        call.on_end = functools.partial(self._on_end, number)
        if isinstance(work.future, StoppableFuture):
            self._make_stoppable(work.future, call)

    def _new_path(self) -> list[str]:
        """For a worker that does not know what was added since it started, if anything was."""
        if sys.path == self._path:
            return []
        self._path = [*sys.path]
        return [os.path.abspath(entry) if entry else entry for entry in self._path]

    def _on_end(self, number: int, call: OutCall) -> None:
        """It has ended, well or not."""
        work = self._flight.pop(number, None)
        if work is None:
            self._passed_over()
            return
        now = time.monotonic()
        took, self._heard = now - self._heard, now
        self._most = self._how_many(took)
        if isinstance(work.future, StoppableFuture):
            work.future.on_stop = None
        self._calls += 1
        self._owner.counters.calls += 1
        self._spent |= self._calls == self._plan.tasks_per_worker
        error, call.error = call.error, None
        if isinstance(error, (WorkerDied, WorkerClosedError)):
            self._spent = True
            self._owner.died(work, error)
            self.proceed()
            return
        if len(self._flight) <= self._most // 2:
            self.proceed()  # the worker has something to do while its answer is read
        if error is None and call.value[0] == service.NOT_BEGUN:
            self._owner.take_again([work], WorkerClosedError(NOT_CLAIMED))
        elif error is None:
            work.settle(call.value)
        else:
            work.refused(error)

    def _how_many(self, took: float) -> int:
        """Calls that it may have, if the next ones take as long. One can be stopped, or be last."""
        plan = self._plan
        if self._claims is None or plan.cancel_running or plan.tasks_per_worker:
            return 1
        return 1 + min(MOST_AHEAD, int(AHEAD / max(took, 1e-6)))

    def waits(self, now: float) -> float:
        """How long calls that have not begun have waited for the one that runs; 0: there are none.

        ``now``: in :func:`time.monotonic`'s terms.
        """
        return now - self._heard if len(self._flight) > 1 else 0.0

    def take_back(self) -> list[Work]:
        """The calls that have not begun, which in this worker they will not."""
        if self._claims is None:
            return []
        numbers = sorted(self._claims.take_back())
        works = [self._flight.pop(number) for number in numbers if number in self._flight]
        self._bereft = not self._flight
        return works

    def _passed_over(self) -> None:
        """It has come by a call that was taken back, so it is there, if it was not even that."""
        bereft, self._bereft = self._bereft, False
        if bereft:
            self.proceed()

    def _on_over(self) -> None:
        """The worker has ended; its calls, if it has any, are about to be told."""
        self._spent = True
        if works := self.take_back():
            assert self._link is not None
            self._owner.take_again(works, self._link.over)
        if not self._flight:
            self._owner.lost(self)
            self._done.set()

    def _make_stoppable(self, future: StoppableFuture, call: OutCall) -> None:
        future.on_stop = lambda: self._owner.tell(functools.partial(self._stop, call))
        if future.cancelled():  # before there was anything to stop
            self._stop(call)

    def _stop(self, call: OutCall) -> None:
        """Nobody wants what it does: in the background, until that has really stopped."""
        if not call.ended and self.worker is not None:
            stop: Any = self.worker._own_caller().stop(call)
            self._owner.look_after(asyncio.create_task(stop, name="forkwire: stop a call"))

"""One worker of an executor: its start, the calls that it is given, its end.

One call at a time, each given as soon as the one before has been answered, from the callback that
heard of it: a task for each would cost turns of the loop. Knows its engine as what gives it calls.
"""

from __future__ import annotations

import asyncio
import functools
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing import process
from typing import TYPE_CHECKING, Any, Final, Protocol

from ..errors import WorkerClosedError, WorkerDied
from ..rpc.links.inflight import OutCall
from ..rpc.settings import StartMethod
from ..rpc.worker import Worker, open_worker
from . import executor_service as service
from .executor_work import StoppableFuture, Work, answer
from .pickling import pack

if TYPE_CHECKING:
    from ..rpc.links.link import Link

__all__ = ["Counters", "Member", "Owner", "Plan"]

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

    def started(self, member: Member) -> None: ...

    def idle(self, member: Member) -> bool:
        """Whether it is to wait for a call; it then gets a `proceed`."""
        ...

    def lost(self, member: Member) -> None:
        """It takes no more calls."""

    def died(self, work: Work, error: WorkerDied | WorkerClosedError, *, begun: bool) -> None:
        """The worker did, while it ran ``work``, or before it was sent that."""

    def tell(self, function: Callable[[], object]) -> None:
        """Have it called in the loop. Any thread."""

    def look_after(self, task: asyncio.Task[None]) -> None:
        """The executor has not ended before it has."""


class Member:
    """One worker's place."""

    def __init__(self, plan: Plan, owner: Owner) -> None:
        self.worker: Worker | None = None  # once it can take calls
        self.work: Work | None = None
        self._plan: Final = plan
        self._owner: Final = owner
        self._path: list[str] = []  # what its worker knows of sys.path
        self._call: OutCall | None = None
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
        async with self._open() as worker:
            reply = await self._set_up(worker)
            try:
                answer(reply, "the initializer")
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

    async def _set_up(self, worker: Worker) -> list[Any]:
        plan = self._plan
        first = (None, ()) if plan.inherits else (plan.initializer, plan.initargs)
        key = bytes(process.current_process().authkey)
        packed = pack((key, plan.inherits, *first), inherited=plan.inherits)
        reply: list[Any] = await worker.call("set_up", packed)
        return reply

    # -- calls --------------------------------------------------------------------------------

    def proceed(self) -> None:
        """Run the next call, or wait for one, or end."""
        while self.work is None:
            if not self.alive:
                self._done.set()
                return
            work = self._owner.take()
            if work is not None:
                self._begin(work)
            elif self._owner.idle(self):
                return
            else:
                self._done.set()
                return

    def _begin(self, work: Work) -> None:
        link = self._link
        assert link is not None
        call = OutCall(0, "run")
        meta = {} if work.context is None else {"context": work.context}
        try:
            packed = work.pack(inherited=self._plan.inherits)
        except BaseException as error:
            work.fail(error)
            return
        args = (packed,) if sys.path == self._path else (packed, self._new_path())
        try:
            link.start("run", args, {}, meta, call=call)
        except (WorkerDied, WorkerClosedError) as error:
            self._spent = True
            self._owner.died(work, error, begun=False)
            return
        except BaseException as error:
            work.fail(error)
            return
        self.work, self._call = work, call
        call.on_end = functools.partial(self._on_end, work)
        future = work.future
        if isinstance(future, StoppableFuture):
            future.on_stop = lambda: self._owner.tell(functools.partial(self._stop, call))
            if future.cancelled():  # before there was anything to stop
                self._stop(call)

    def _new_path(self) -> list[str]:
        """For a worker that does not know what was added since it started."""
        self._path = [*sys.path]
        return [os.path.abspath(entry) if entry else entry for entry in self._path]

    def _on_end(self, work: Work, call: OutCall) -> None:
        """It has ended, well or not."""
        self.work = self._call = None
        if isinstance(work.future, StoppableFuture):
            work.future.on_stop = None
        self._calls += 1
        self._owner.counters.calls += 1
        self._spent |= self._calls == self._plan.tasks_per_worker
        error, call.error = call.error, None
        if isinstance(error, (WorkerDied, WorkerClosedError)):
            self._spent = True
            self._owner.died(work, error, begun=True)
            self.proceed()
            return
        self.proceed()  # the worker has something to do while its answer is read
        if error is None:
            work.settle(call.value)
        else:
            work.fail(error)

    def _on_over(self) -> None:
        """The worker has ended; its call, if it has one, is about to be told."""
        self._spent = True
        if self.work is None:
            self._owner.lost(self)
            self._done.set()

    def _stop(self, call: OutCall) -> None:
        """Nobody wants what it does: in the background, until that has really stopped."""
        if call is self._call and self.worker is not None:
            stop: Any = self.worker._own_caller().stop(call)
            self._owner.look_after(asyncio.create_task(stop, name="forkwire: stop a call"))

"""``open_pool``: several workers of one service, and what a program calls them with."""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Mapping
from types import MappingProxyType, TracebackType
from typing import Final, Self, Unpack

import anyio.lowlevel

from ..errors import UsageError
from ..process.backend import current_backend
from ..rpc.caller.offers import Offers
from ..rpc.settings import Settings, WorkerOptions, settings_of
from .calls import PoolCalls
from .crew import Crew
from .dispatch import Dispatcher
from .members import Post
from .policy import (
    Health,
    Recycle,
    Restart,
    check_count,
    check_policy,
    check_seconds,
    check_size,
)
from .reloading import Reloads
from .states import State
from .statistics import PoolStatistics
from .supervisor import Phase, Supervisor

__all__ = ["Pool", "open_pool"]

# Calls at a time on a worker whose functions wait for others more than they compute.
ASYNC_CONCURRENCY: Final = 64

clock = time.monotonic


@dataclasses.dataclass(frozen=True, slots=True)
class Plan:
    """What a pool is opened with; `open_pool` says what each means."""

    settings: Settings
    least: int
    most: int
    spares: int
    concurrency: int | None
    queue: int | None
    restart: Restart
    recycle: Recycle
    health: Health
    idle: float
    poison: int


def open_pool(
    service: object = None,
    *,
    size: int | tuple[int, int] | None = None,
    spares: int = 0,
    concurrency: int | None = None,
    queue: int | None = None,
    restart: Restart = Restart(),  # noqa: B008 - it is frozen
    recycle: Recycle = Recycle(),  # noqa: B008
    health: Health = Health(),  # noqa: B008
    idle: float = 60.0,
    poison: int = 3,
    **worker: Unpack[WorkerOptions],
) -> Pool:
    """Several workers that serve ``service``; enter it with ``async with`` to start them.

    A call goes to the least busy of them. What is not named here is as for
    :func:`forkwire.open_worker`, for each worker.

    ``size``: how many, or ``(least, most)``: more than ``least`` are started while calls wait, and
    ended after ``idle`` seconds without any; one a processor unless given. ``spares``: workers
    that are kept ready beyond those that are busy, up to ``most``. ``concurrency``: calls at a
    time on one worker; unless given ``threads`` where all functions are plain, 64 where some are
    async, of which ``threads`` may be plain ones. ``queue``: calls that may wait for a worker,
    above which :exc:`TooManyCallsError` is raised; unless given any number waits. ``restart``,
    ``recycle``, ``health``: when workers are replaced. ``poison``: so many workers die of a call
    before it is refused.

    Raises :exc:`UsageError` for what can never work.
    """
    least, most = sizes(size)
    check_size(least, most)
    check_count("spares", spares, 0)
    check_count("poison", poison, 1)
    check_seconds("idle", idle)
    for name, value in (("concurrency", concurrency), ("queue", queue)):
        if value is not None:
            check_count(name, value, 1 if name == "concurrency" else 0)
    check_policy("restart", restart, Restart)
    check_policy("recycle", recycle, Recycle)
    check_policy("health", health, Health)
    for name in worker.keys() - WorkerOptions.__annotations__.keys():
        raise TypeError(f"open_pool() got an unexpected keyword argument {name!r}")
    settings = settings_of(service, **worker)
    return Pool(
        Plan(
            settings=settings,
            least=least,
            most=most,
            spares=spares,
            concurrency=concurrency,
            queue=queue,
            restart=restart,
            recycle=recycle,
            health=health,
            idle=idle,
            poison=poison,
        )
    )


def sizes(size: int | tuple[int, int] | None) -> tuple[int, int]:
    if size is None:
        size = processors()
    if isinstance(size, tuple) and len(size) == 2:
        return size
    return size, size  # it is checked next


def processors() -> int:
    """Those that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


class Pool(PoolCalls):
    """Several workers of one service: made by :func:`open_pool`.

    An async context manager: entering it starts the workers and waits until they are ready, leaving
    it ends them as :meth:`aclose` does.
    """

    def __init__(self, plan: Plan) -> None:
        self._plan: Final = plan
        self._offers = Offers(plan.settings.label, plan.settings.service)
        self._supervisor: Final = Supervisor(
            least=plan.least,
            most=plan.most,
            spares=plan.spares,
            idle=plan.idle,
            restart=plan.restart,
            recycle=plan.recycle,
            health=plan.health,
        )
        self._generation = 0
        self._reloads: Reloads  # once it is opened
        self._learn_capacity()

    # -- start --------------------------------------------------------------------------------

    async def __aenter__(self) -> Self:
        await anyio.lowlevel.checkpoint()
        if self._dispatcher is not None:
            raise UsageError("a pool is opened once: call open_pool() again for another")
        plan = self._plan
        self._crew = crew = Crew(self._supervisor, plan.settings, current_backend())
        self._caller = self._dispatcher = Dispatcher(
            crew, self._offers, queue=plan.queue, poison=plan.poison
        )
        self._reloads = Reloads(crew, self._dispatcher)
        crew.on_ready = self._on_ready
        try:
            crew.open()
            await crew.until(lambda: self._supervisor.phase is not Phase.OPENING)
            if self._supervisor.broken is not None:
                raise self._supervisor.broken
        except BaseException:
            await self.aclose()
            raise
        return self

    def _on_ready(self, post: Post) -> None:
        """A worker says what it offers."""
        if post.member.generation > self._generation:
            self._generation = post.member.generation
            self._offers.renew(post.link)
        elif not self._offers.kinds:
            self._offers.learn(post.link)
        self._learn_capacity()

    def _learn_capacity(self) -> None:
        threads = self._plan.settings.threads
        is_async = any(kind.startswith("async") for kind in self._offers.kinds.values())
        capacity = self._plan.concurrency or (ASYNC_CONCURRENCY if is_async else threads)
        lanes = min(threads, capacity) if is_async else capacity
        self._supervisor.learn(capacity, lanes, answers=is_async or threads > 1)

    # -- what a user asks for -----------------------------------------------------------------

    async def drain(self) -> None:
        """Take no new calls, let those that wait and that run end, then end the workers.

        New calls raise :exc:`WorkerClosedError`; those that a running one makes are still taken.
        Cancelled, it goes on draining.
        """
        crew = self._opened_here()
        self._ready_dispatcher().closing = "the pool is draining: no new calls are made"
        crew.ordered(self._supervisor.drain(clock()))
        await crew.until(lambda: self._supervisor.settled)

    async def resize(self, least: int, most: int | None = None) -> None:
        """Have so many workers from now on; waits until the new ones are ready.

        Those that are too many end when their calls have. Raises :exc:`UsageError`, and what a new
        call would where the pool was closed, or broke meanwhile.
        """
        most = least if most is None else most
        check_size(least, most)
        crew, supervisor = self._opened_here(), self._supervisor
        self._ready_dispatcher().check_open()
        crew.ordered(supervisor.resize(least, most, clock()))
        await crew.until(lambda: supervisor.is_filled)
        self._ready_dispatcher().check_open()

    async def reload(self) -> None:
        """Replace all workers by such as run the code as it is now, and lose no call.

        The first of the new ones must start before any of the old ones goes; if it does not, its
        error is raised here, and all is as before. Returns when no call can begin on the old code.
        Raises :exc:`UsageError` for workers that inherit the code from this process, and what a new
        call would where the pool was closed, or broke meanwhile.
        """
        self._opened_here()
        await self._reloads.reload()

    @property
    def name(self) -> str:
        """Of the service."""
        return self._offers.name

    @property
    def methods(self) -> Mapping[str, str]:
        """The kind of each method that its workers offer, by its name, as :attr:`Worker.methods`.

        Empty before the pool is opened where the service is given by its name.
        """
        return dict(self._offers.kinds)

    def statistics(self) -> PoolStatistics:
        """What it has done so far, and does now."""
        supervisor, dispatcher = self._supervisor, self._ready_dispatcher()
        states = [member.state for member in supervisor.members.values()]
        starting = states.count(State.STARTING) + states.count(State.WAITING)
        ready = [m for m in supervisor.members.values() if m.state is State.READY]
        counters = dispatcher.counters
        return PoolStatistics(
            size=len(ready) + starting,
            ready=len(ready),
            busy=sum(member.works for member in ready),
            starting=starting,
            queued=dispatcher.waiting,
            calls=counters.all.calls,
            errors=counters.all.errors,
            deaths=supervisor.deaths,
            restarts=supervisor.restarts,
            recycled=supervisor.recycled,
            retries=counters.retries,
            refused=counters.refused,
            latency=counters.all.latency.histogram(),
            wait=counters.all.wait.histogram(),
            methods=counters.methods(),
            workers=MappingProxyType(self._opened().worker_statistics()),
        )

    # -- the end ------------------------------------------------------------------------------

    async def aclose(self) -> None:
        """End all workers: no new calls, those that wait raise :exc:`WorkerClosedError`.

        Those in flight are stopped, as when a worker is closed; :meth:`drain` first to let them
        end. Not interrupted by cancellation. Idempotent.
        """
        if self._dispatcher is None:
            return
        crew = self._opened()
        if crew.is_running:
            self._dispatcher.check_here()
        elif not self._supervisor.is_over:  # its loop was left as it was
            crew.kill_all()
        await current_backend().uninterrupted(self._close)

    async def _close(self) -> None:
        crew = self._opened()
        crew.ordered(self._supervisor.close(clock()))
        await crew.end()

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.aclose()

    def _opened_here(self) -> Crew:
        crew = self._opened()
        self._ready_dispatcher().check_here()
        return crew

    def __repr__(self) -> str:
        if self._dispatcher is None:
            return f"<Pool {self._offers.name} not open>"
        phase = self._supervisor.phase.name.lower()
        return f"<Pool {self._offers.name} {phase}, {len(self._supervisor.members)} workers>"

"""What an executor runs on: an event loop in a thread of its own, a task for each worker.

Calls wait in one queue here, not at a worker, so that one that has not begun can be cancelled. A
worker is started when there is a call and none is idle. Knows workers and calls, and not the
executor itself, which may be collected while this goes on.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from multiprocessing import process
from typing import Any, Final

from ..errors import UsageError, WorkerClosedError, WorkerDied
from ..rpc.settings import StartMethod
from ..rpc.worker import Worker, open_worker
from . import executor_service as service
from .executor_errors import ExecutorBrokenError, ExecutorWorkerDied
from .executor_work import StoppableFuture, Work, answer, logger
from .pickling import Packed, pack

__all__ = ["Engine", "ExecutorStatistics", "Plan"]

SERVICE: Final = service.__name__
# What workers import sooner or later, if it is there.
USED: Final = ("multiprocessing.process", "cloudpickle")

THREAD: Final = "forkwire: executor"

# Starts that fail one after the other, until the executor gives up: an initializer that raises
# does so again. Where none ever succeeded it gives up at once.
ATTEMPTS: Final = 5
TERMINATED: Final = "the executor's workers were terminated before this call began"
BACKOFF: Final = 0.1  # seconds after the first failure, doubled for each further one


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


@dataclass(frozen=True, slots=True)
class ExecutorStatistics:
    """What an executor has done so far, and what it has.

    ``pids``: of the workers that are there; ``starting``: on their way; ``pending``: calls that
    wait; ``running``: calls in a worker. ``calls``: ended; ``deaths``: of workers, with a call;
    ``retries``: calls that were run again after one.
    """

    pids: tuple[int, ...]
    starting: int
    pending: int
    running: int
    calls: int
    deaths: int
    retries: int


@dataclass(eq=False, slots=True)
class Member:
    """One worker's place."""

    worker: Worker | None = None
    work: Work | None = None
    wake: asyncio.Event = field(default_factory=asyncio.Event)
    task: asyncio.Task[None] | None = None
    calls: int = 0
    spent: bool = False  # takes no more calls

    @property
    def alive(self) -> bool:
        """Whether its worker can take a call."""
        worker = self.worker
        return worker is not None and worker.returncode is None and worker.died is None


class Engine:
    """The queue, the loop and the workers. What it is asked for, any thread may ask."""

    def __init__(self, plan: Plan) -> None:
        self.plan: Final = plan
        self.pid: Final = os.getpid()
        self.broken: BaseException | None = None
        self.closing = False
        self._terminated = False
        self.thread: threading.Thread | None = None
        self._loop: asyncio.SelectorEventLoop | None = None
        self._lock: Final = threading.Lock()
        self._ended: Final = threading.Event()
        self._pending: Final[deque[Work]] = deque()
        self._committed: Final[deque[Work]] = deque()  # run, as far as their futures know
        self._woken = False
        self._members: Final[set[Member]] = set()  # that count as workers
        self._tasks: Final[set[asyncio.Task[None]]] = set()  # of those, and of ending ones
        self._idle: Final[list[Member]] = []
        self._failures = 0
        self._proven = False
        self._paused = False
        self._over: asyncio.Event | None = None
        self._calls = self._deaths = self._retries = 0

    # -- from any thread ----------------------------------------------------------------------

    def check(self) -> None:
        """Raise why no call can be taken, if none can."""
        if self.pid != os.getpid():
            raise UsageError(
                f"this executor belongs to process {self.pid}, which made it, not to this one "
                f"({os.getpid()}), which inherited it: make one here"
            )
        if self.broken is not None:
            raise self._why_broken()
        if self.closing:
            raise RuntimeError("cannot schedule new futures after shutdown")
        if engines.exiting:
            raise RuntimeError("cannot schedule new futures after interpreter shutdown")

    def submit(self, work: Work) -> None:
        """Have it run. Raises as `check` does."""
        self.check()
        with self._lock:
            self.check()
            if self.thread is None:
                self._start_thread()
            self._pending.append(work)
        if not self._woken:
            self._tell(self._wake)

    def close(self, *, cancel_pending: bool = False) -> None:
        """No new calls; the workers end when those that wait have been run."""
        with self._lock:
            self.closing = True
        self._tell(self._cancel_pending if cancel_pending else self._wake)

    def abandon(self) -> None:
        """Nobody has the executor any more. Locks nothing: a collection may come anywhere."""
        if self.pid == os.getpid():
            self.closing = True
            self._tell(self._wake)

    def end_workers(self, *, kill: bool) -> None:
        """End the workers now, with whatever they do. After `close`."""
        self._tell(functools.partial(self._end_workers, kill))

    def join(self) -> None:
        """Wait until all has ended."""
        thread = self.thread
        if thread is not None and thread is not threading.current_thread():
            # A join that Ctrl-C interrupts takes the thread for ended, until Python 3.13.
            self._ended.wait()
            thread.join()

    def statistics(self) -> ExecutorStatistics:
        """A snapshot."""
        members = list(self._members)
        pids = sorted(each.worker.pid for each in members if each.worker and each.alive)
        return ExecutorStatistics(
            pids=tuple(pids),
            starting=sum(each.worker is None for each in members),
            pending=len(self._pending) + len(self._committed),
            running=sum(each.work is not None for each in members),
            calls=self._calls,
            deaths=self._deaths,
            retries=self._retries,
        )

    def _start_thread(self) -> None:
        self._loop = asyncio.SelectorEventLoop()
        thread = threading.Thread(target=self._run, name=THREAD, daemon=True)
        try:
            thread.start()
        except BaseException:
            self._loop.close()
            self._loop = None
            raise
        self.thread = thread
        engines.running[self] = None

    def _tell(self, function: Callable[[], object]) -> None:
        loop = self._loop
        if loop is not None:
            with contextlib.suppress(RuntimeError):  # closed: all has ended
                loop.call_soon_threadsafe(function)

    # -- the thread ---------------------------------------------------------------------------

    def _run(self) -> None:
        loop = self._loop
        assert loop is not None
        try:
            with asyncio.Runner(loop_factory=lambda: loop) as runner:
                runner.run(self._main())
        finally:
            engines.running.pop(self, None)
            self._ended.set()

    async def _main(self) -> None:
        self._over = asyncio.Event()
        self._wake()
        await self._over.wait()

    def _wake(self) -> None:
        self._woken = False
        if self._over is None:  # before the loop's first turn
            return
        self._dispatch()
        waiting = self._pending or self._committed
        if (self.closing or self.broken) and not waiting and not self._tasks:
            self._over.set()

    def _dispatch(self) -> None:
        """Give what waits to whoever is idle, and see that there are enough workers."""
        while self._idle and (self._committed or self._pending):
            member = self._idle.pop()
            if member.alive:
                member.work = self._take()
            member.wake.set()
        if not self._paused and not self._terminated:
            self._grow()
        if self.closing and not self._pending and not self._committed:
            while self._idle:
                self._idle.pop().wake.set()

    def _grow(self) -> None:
        """Start a worker for each call that has none, and commit so many calls to them."""
        starting = sum(member.worker is None for member in self._members)
        room = self.plan.workers - len(self._members)
        waiting = len(self._pending) + len(self._committed)
        for _ in range(min(waiting - starting, room)):
            self._add_member()
            starting += 1
        while len(self._committed) < starting and (work := self._next_pending()) is not None:
            self._committed.append(work)

    def _take(self) -> Work | None:
        """The next call that is to be run."""
        while self._committed:
            work = self._committed.popleft()
            if not work.future.done():  # stopped before it began
                return work
        return self._next_pending()

    def _next_pending(self) -> Work | None:
        while self._pending:
            work = self._pending.popleft()
            if work.future.set_running_or_notify_cancel():
                return work
        return None

    def _cancel_pending(self) -> None:
        self._wake()  # what has a worker by right is run
        while self._pending:
            future = self._pending.popleft().future
            future.cancel()
            future.set_running_or_notify_cancel()
        self._wake()

    def _add_member(self) -> None:
        member = Member()
        self._members.add(member)
        member.task = asyncio.create_task(self._live(member), name="forkwire: executor's worker")
        self._tasks.add(member.task)
        member.task.add_done_callback(functools.partial(self._member_ended, member))

    def _member_ended(self, member: Member, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        self._members.discard(member)
        if not task.cancelled() and (error := task.exception()) is not None:
            logger.error("forkwire: a worker of an executor", exc_info=error)
        self._wake()

    # -- one worker ---------------------------------------------------------------------------

    async def _live(self, member: Member) -> None:
        try:
            async with self._open() as worker:
                await self._set_up(worker)
                member.worker = worker
                self._failures, self._proven = 0, True
                await self._serve(member, worker)
                self._members.discard(member)  # another may be started while this one ends
                self._wake()
        except Exception as error:
            if member.worker is not None:
                raise
            self._start_failed(error)

    def _open(self) -> Worker:
        plan = self.plan
        inherits = plan.start == "fork" and plan.initializer is not None
        return open_worker(
            SERVICE,
            start=plan.start,
            preload=(*plan.preload, *USED) if plan.start == "template" else (),
            initializer=service.initialize if inherits else None,
            initargs=(plan.initializer, plan.initargs) if inherits else (),
            name=plan.name,
            grace=plan.grace,
            start_timeout=plan.start_timeout,
            logging=plan.logging,
        )

    async def _set_up(self, worker: Worker) -> None:
        plan = self.plan
        inherited = plan.start == "fork"
        first = (None, ()) if inherited else (plan.initializer, plan.initargs)
        key = bytes(process.current_process().authkey)
        packed = pack((key, inherited, *first), inherited=inherited)
        answer(await worker.call("set_up", packed), "the initializer")

    def _start_failed(self, error: Exception) -> None:
        self._failures += 1
        if not self._proven or self._failures >= ATTEMPTS:
            self._break(error)
            return
        logger.warning("forkwire: a worker of an executor did not start: %s", error)
        self._paused = True
        loop = asyncio.get_running_loop()
        loop.call_later(BACKOFF * 2 ** (self._failures - 1), self._resume)

    def _resume(self) -> None:
        self._paused = False
        self._wake()

    def _break(self, error: Exception) -> None:
        """Give up: no worker can be started."""
        with self._lock:
            self.broken = self.broken or error
        while (work := self._take()) is not None:
            work.fail(self._why_broken())
        while self._idle:
            self._idle.pop().wake.set()

    def _why_broken(self) -> ExecutorBrokenError:
        error = ExecutorBrokenError(
            "the executor gave up, since its workers cannot be started: "
            f"{type(self.broken).__name__}: {self.broken}"
        )
        error.__cause__ = self.broken
        return error

    async def _serve(self, member: Member, worker: Worker) -> None:
        """One call after the other, until there is none or the worker is not to have more."""
        while not member.spent and member.alive:
            member.work = member.work or self._take()
            if member.work is not None:
                await self._perform(member, worker, member.work)
                member.work = None
            elif self.closing or self.broken:
                return
            else:
                member.wake.clear()
                self._idle.append(member)
                await member.wake.wait()

    async def _perform(self, member: Member, worker: Worker, work: Work) -> None:
        try:
            packed = work.pack(inherited=self.plan.start == "fork")
        except BaseException as error:
            work.fail(error)
            return
        try:
            reply = await self._call(worker, work, packed)
        except (WorkerDied, WorkerClosedError) as error:
            member.spent = True
            self._died(work, error)
        except asyncio.CancelledError:
            if not work.future.cancelled():  # the loop ends
                work.fail(WorkerClosedError(f"{work.label} was stopped: its executor has ended"))
                raise
        except Exception as error:
            work.fail(error)
        else:
            if reply is not None:
                work.settle(reply)
        self._calls += 1
        member.calls += 1
        member.spent |= member.calls == self.plan.tasks_per_worker

    async def _call(self, worker: Worker, work: Work, packed: Packed) -> list[Any] | None:
        """What the worker answers; None for a call that was stopped."""
        if work.context is None and not self.plan.cancel_running:
            reply: list[Any] = await worker.call("run", packed)
            return reply
        call = asyncio.create_task(worker.call("run", packed), context=work.context)
        future = work.future
        if isinstance(future, StoppableFuture):
            future.on_stop = lambda: self._tell(call.cancel)
            if future.cancelled():  # before there was anything to stop
                call.cancel()
        try:
            await asyncio.wait({call})
            return None if call.cancelled() else call.result()
        finally:
            if isinstance(future, StoppableFuture):
                future.on_stop = None

    def _died(self, work: Work, error: WorkerDied | WorkerClosedError) -> None:
        """The worker did, while it ran ``work``."""
        self._deaths += 1
        if work.future.cancelled():
            return
        if work.tries < work.retries and not self._terminated:
            work.tries += 1
            self._retries += 1
            logger.warning(
                "forkwire: %s is run again (%d of %d), since %s",
                work.label, work.tries, work.retries, error,
            )  # fmt: skip
            self._committed.appendleft(work)
            return
        if isinstance(error, WorkerDied):
            error = ExecutorWorkerDied.of(error, work.label)
        if work.tries:
            error.add_note(f"forkwire: it was tried {work.tries + 1} times")
        work.fail(error)

    def _end_workers(self, kill: bool) -> None:
        self._terminated = True
        while self._committed:
            self._committed.popleft().fail(ExecutorBrokenError(TERMINATED))
        for member in list(self._members):
            if member.worker is None:
                if member.task is not None:
                    member.task.cancel()
            elif kill:
                member.worker.kill()
            else:
                member.worker.terminate()
        if not kill:
            loop = asyncio.get_running_loop()
            loop.call_later(self.plan.grace, self._end_workers, True)
        self._wake()


class Engines:
    """Those of this process that have not ended; at its end their calls are waited for."""

    def __init__(self) -> None:
        self.exiting = False
        self.running: Final[dict[Engine, None]] = {}

    def finish(self) -> None:
        """The interpreter ends: let what was submitted be done. Ctrl-C ends it at once."""
        self.exiting = True
        for engine in list(self.running):
            if engine.pid != os.getpid():
                continue
            engine.close()
            try:
                engine.join()
            except KeyboardInterrupt:
                engine.close(cancel_pending=True)
                engine.end_workers(kill=True)
                engine.join()


engines: Final = Engines()
# Before threads are joined and atexit's functions run: these could not start anything any more.
threading._register_atexit(engines.finish)  # type: ignore[attr-defined]

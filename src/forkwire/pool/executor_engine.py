"""What an executor runs on: an event loop in a thread of its own, and one queue of calls.

Calls wait here, not at a worker, so that one that has not begun can be cancelled; only a few short
ones wait there. A worker is started when there is a call and none is idle. Knows nothing of the
executor itself, which may be collected while this goes on.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from ..errors import UsageError, WorkerClosedError, WorkerDied
from .executor_ending import engines
from .executor_errors import ExecutorBrokenError, ExecutorWorkerDied
from .executor_member import Counters, Member, Plan
from .executor_work import Work, logger

__all__ = ["Engine", "ExecutorStatistics"]

THREAD: Final = "forkwire: executor"

# Starts that fail one after the other, until the executor gives up: an initializer that raises
# does so again. Where none ever succeeded it gives up at once.
ATTEMPTS: Final = 5
BACKOFF: Final = 0.1  # seconds after the first failure, doubled for each further one

# Calls that were sent ahead, in a worker that is busy for longer than this, are run elsewhere.
RELIEF: Final = 0.01  # seconds

# Workers that die before they begin a call that they have: then it may not be by chance.
MOVES: Final = 10

TERMINATED: Final = "the executor's workers were terminated before this call began"


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
        self._members: Final[set[Member]] = set()  # that take calls, or will
        self._starting: Final[dict[Member, asyncio.Task[None]]] = {}
        self._tasks: Final[set[asyncio.Task[None]]] = set()  # also of workers that end
        self._idle: Final[list[Member]] = []
        self._failures = 0
        self._proven = False
        self._paused = False
        self._relief: asyncio.TimerHandle | None = None
        self._over: asyncio.Event | None = None
        self.counters: Final = Counters()

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
            self._woken = True
            self.tell(self._wake)

    def close(self, *, cancel_pending: bool = False) -> None:
        """No new calls; the workers end when those that wait have been run."""
        with self._lock:
            self.closing = True
        self.tell(self._cancel_pending if cancel_pending else self._wake)

    def abandon(self) -> None:
        """Nobody has the executor any more. Locks nothing: a collection may come anywhere."""
        if self.pid == os.getpid():
            self.closing = True
            self.tell(self._wake)

    def end_workers(self, *, kill: bool) -> None:
        """End the workers now, with whatever they do. After `close`."""
        self.tell(functools.partial(self._end_workers, kill))

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
        flights = [each.in_flight for each in members]
        running = sum(map(bool, flights))
        pids = sorted(each.worker.pid for each in members if each.worker and each.alive)
        return ExecutorStatistics(
            pids=tuple(pids),
            starting=len(self._starting),
            pending=len(self._pending) + len(self._committed) + sum(flights) - running,
            running=running,
            calls=self.counters.calls,
            deaths=self.counters.deaths,
            retries=self.counters.retries,
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

    def tell(self, function: Callable[[], object]) -> None:
        """Have it called in the loop."""
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
            self._idle.pop().proceed()
        if not self._paused and not self._terminated:
            self._grow()
        if self.closing and not self._pending and not self._committed:
            self._dismiss()

    def _dismiss(self) -> None:
        """Those that wait need not wait any more."""
        idle = [*self._idle]
        self._idle.clear()
        for member in idle:
            member.proceed()

    def _grow(self) -> None:
        """Start a worker for each call that has none, and commit so many calls to them."""
        starting = len(self._starting)
        room = self.plan.workers - len(self._members)
        waiting = len(self._pending) + len(self._committed)
        for _ in range(min(waiting - starting, room)):
            self._add_member()
            starting += 1
        while len(self._committed) < starting and (work := self._next_pending()) is not None:
            self._committed.append(work)

    def take(self) -> Work | None:
        """The next call that is to be run."""
        while self._committed:
            work = self._committed.popleft()
            if not work.future.done():  # stopped before it began
                return work
        return self._next_pending()

    def take_ahead(self) -> Work | None:
        """The same for a worker that has one: only what nobody could begin at once."""
        if self._idle or self._starting or len(self._members) < self.plan.workers:
            return None
        if (work := self.take()) is not None and self._relief is None:
            self._relief = asyncio.get_running_loop().call_later(RELIEF, self._relieve)
        return work

    def _relieve(self) -> None:
        """Have calls run elsewhere that wait for one that takes longer than expected."""
        self._relief = None
        waits = {member: member.waits(time.monotonic()) for member in self._members}
        late = [work for member in waits if waits[member] > RELIEF for work in member.take_back()]
        if any(0 < wait <= RELIEF for wait in waits.values()):
            self._relief = asyncio.get_running_loop().call_later(RELIEF, self._relieve)
        self.take_again(late, None)

    def take_again(self, works: Sequence[Work], error: Exception | None) -> None:
        """They have not begun, and are to be run elsewhere. ``error``: what the worker died of."""
        for work in reversed(works):
            work.moves += error is not None
            if self._terminated:
                work.fail(ExecutorBrokenError(TERMINATED))
            elif error is not None and work.moves >= MOVES:
                self._fail(work, error)
            else:
                self._committed.appendleft(work)
        self._wake()

    def _next_pending(self) -> Work | None:
        while self._pending:
            work = self._pending.popleft()
            if work.commit():
                return work
        return None

    def _cancel_pending(self) -> None:
        self._wake()  # what has a worker by right is run
        while self._pending:
            self._pending.popleft().cancel()
        self._wake()

    # -- workers ------------------------------------------------------------------------------

    def _add_member(self) -> None:
        member = Member(self.plan, self)
        self._members.add(member)
        task = asyncio.create_task(self._live(member), name="forkwire: worker of an executor")
        self._starting[member] = task
        self.look_after(task)

    async def _live(self, member: Member) -> None:
        try:
            failure = await member.live()
            if failure is not None:
                self._start_failed(failure)
        except Exception as error:
            if member.worker is None:
                self._start_failed(error)
            else:
                logger.exception("forkwire: the end of a worker of an executor")
        finally:
            self._starting.pop(member, None)
            self._members.discard(member)

    def look_after(self, task: asyncio.Task[None]) -> None:
        """Not to end before it has."""
        self._tasks.add(task)
        task.add_done_callback(self._task_ended)

    def _task_ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled():
            task.exception()
        self._wake()

    def started(self, member: Member) -> None:
        """A worker is there."""
        self._starting.pop(member, None)
        self._failures, self._proven = 0, True

    def idle(self, member: Member) -> bool:
        """Whether it is to wait for a call."""
        if self.closing or self.broken:
            return False
        self._idle.append(member)
        return True

    def lost(self, member: Member) -> None:
        """A worker takes no more calls: another may be started while it ends."""
        self._members.discard(member)
        if member in self._idle:
            self._idle.remove(member)
        self._wake()

    def _start_failed(self, error: BaseException) -> None:
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

    def _break(self, error: BaseException) -> None:
        """Give up: no worker can be started."""
        with self._lock:
            self.broken = self.broken or error
        while (work := self.take()) is not None:
            work.fail(self._why_broken())
        self._dismiss()

    def _why_broken(self) -> ExecutorBrokenError:
        error = ExecutorBrokenError(
            "the executor gave up, since its workers cannot be started: "
            f"{type(self.broken).__name__}: {self.broken}"
        )
        error.__cause__ = self.broken
        return error

    def died(self, work: Work, error: WorkerDied | WorkerClosedError) -> None:
        """A worker did, while it ran ``work``."""
        self.counters.deaths += 1
        if work.future.done():
            return
        if self._terminated or work.tries >= work.retries:
            self._fail(work, error)
            return
        work.tries += 1
        self.counters.retries += 1
        logger.warning(
            "forkwire: %s is run again (%d of %d), since %s",
            work.label, work.tries, work.retries, error,
        )  # fmt: skip
        self._committed.appendleft(work)

    def _fail(self, work: Work, error: Exception) -> None:
        if isinstance(error, WorkerDied):
            error = ExecutorWorkerDied.of(error, work.label)
        if work.tries:
            error.add_note(f"forkwire: it was tried {work.tries + 1} times")
        work.fail(error)

    def _end_workers(self, kill: bool) -> None:
        self._terminated = True
        while self._committed:
            self._committed.popleft().fail(ExecutorBrokenError(TERMINATED))
        for task in list(self._starting.values()):
            task.cancel()
        for member in list(self._members):
            if member.worker is not None and kill:
                member.worker.kill()
            elif member.worker is not None:
                member.worker.terminate()
        if not kill:
            loop = asyncio.get_running_loop()
            loop.call_later(self.plan.grace, self._end_workers, True)
        self._wake()

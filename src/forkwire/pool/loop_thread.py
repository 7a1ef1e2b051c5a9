"""An event loop in a thread of its own, and how other threads have it run something, and wait.

While a thread waits it runs the errands of what it waits for: callbacks and iterators of its own.
Ctrl-C, and whatever else a signal's handler raises, stops what it waits for before it is raised.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import os
import threading
from collections import deque
from collections.abc import Awaitable, Callable, Iterator
from typing import Any, Final, Generic, TypeVar

import anyio

from ..errors import UsageError, WorkerClosedError
from ..process import doctor
from ..rpc.links.drivers import Bell
from ..rpc.links.uninterrupted import Uninterrupted

__all__ = ["Errands", "LoopThread"]

T = TypeVar("T")


class Errands:
    """What is to be called in a thread that waits, and not in the loop. One thread at a time."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.bell: Final = Bell()
        self._loop: Final = loop
        self._todo: Final[deque[Callable[[], object]]] = deque()

    @property
    def waiting(self) -> bool:
        return bool(self._todo)

    def post(self, function: Callable[[], object]) -> None:
        """Have ``function`` called; what it raises ends what the thread waits for. In the loop."""
        self._todo.append(function)
        self.bell.ring()

    async def do(self, function: Callable[[], T]) -> T:
        """What ``function`` answers there, or raises."""
        done = asyncio.Event()
        outcome: list[T] = []
        failure: list[BaseException] = []

        def work() -> None:
            try:
                outcome.append(function())
            except BaseException as error:
                failure.append(error)
                if not isinstance(error, Exception):
                    raise
            finally:
                with contextlib.suppress(RuntimeError):  # the loop has ended meanwhile
                    self._loop.call_soon_threadsafe(done.set)

        self._todo.append(work)
        self.bell.ring()
        await done.wait()
        if failure:
            raise failure.pop()
        return outcome[0]

    def run(self) -> None:
        """Run what there is, in the thread that waits."""
        while self._todo:
            self._todo.popleft()()


@contextlib.contextmanager
def standing_still() -> Iterator[None]:
    """Inside, this thread does nothing that a fork could leave half done."""
    here = threading.get_ident()
    doctor.standing_still.add(here)
    try:
        yield
    finally:
        doctor.standing_still.discard(here)


class Job(Generic[T]):
    """Something that the loop runs for a thread."""

    def __init__(self, function: Callable[[], Awaitable[T]], errands: Errands) -> None:
        self.errands: Final = errands
        self.posted = False
        self.done = False
        self._unwanted = False
        self._function: Final = function
        self._scope: anyio.CancelScope | None = None
        self._value: list[T] = []
        self._error: BaseException | None = None

    async def run(self) -> None:
        """In the loop. What it raises is for the thread that waits."""
        self._scope = anyio.CancelScope()
        try:
            with self._scope:
                if self._unwanted:
                    self._scope.cancel()
                self._value.append(await self._function())
            if self._scope.cancelled_caught and self._unwanted:
                raise WorkerClosedError("it was closed while this waited for it")
        except BaseException as error:
            self._error = error
            if isinstance(error, asyncio.CancelledError):  # the loop ends
                raise
        finally:
            self.done = True
            self.errands.bell.ring()

    def cancel(self) -> None:
        """In the loop, where it has been begun."""
        if self._scope is not None:
            self._scope.cancel()

    def give_up(self) -> None:
        """The same; whoever waits for it is told. In the loop."""
        self._unwanted = True
        self.cancel()

    def result(self) -> T:
        error, self._error = self._error, None
        try:
            if error is not None:
                raise error
        finally:
            del error  # its traceback has this frame
        return self._value[0]


class LoopThread:
    """The loop and its thread. ``name``: of the thread, and of what it is for, in messages."""

    def __init__(self, name: str) -> None:
        self.name: Final = name
        self.loop: Final = asyncio.SelectorEventLoop()
        self.stopped = False
        self._pid: Final = os.getpid()
        self._over = asyncio.Event()
        self._lock: Final = threading.Lock()  # nothing is posted once it is stopped
        self._jobs: Final[dict[asyncio.Task[None], Job[Any]]] = {}
        self._thread: Final = threading.Thread(
            target=self._main, name=f"forkwire: {name}", daemon=True
        )

    def start(self) -> None:
        """Begin."""
        try:
            self._thread.start()
        except BaseException:
            self.loop.close()
            raise

    def stop(self) -> None:
        """End the loop, and wait for its thread. In a fork there is neither. Idempotent."""
        if self._pid != os.getpid():
            return
        with Uninterrupted(lambda: None):
            with self._lock:
                if not self.stopped:
                    self.stopped = True
                    self.loop.call_soon_threadsafe(self._over.set)
            self._thread.join()

    def _main(self) -> None:
        with asyncio.Runner(loop_factory=lambda: self.loop) as runner:
            runner.run(self._until_over())

    async def _until_over(self) -> None:
        await self._over.wait()
        for job in [*self._jobs.values()]:
            job.give_up()
        while self._jobs:
            await asyncio.wait([*self._jobs])

    def check_here(self) -> None:
        """Raise :exc:`UsageError` where nothing could be waited for.

        And :exc:`WorkerClosedError` once it was stopped.
        """
        self._check_not_stopped()
        if self._pid != os.getpid():
            raise UsageError(
                f"the {self.name} belongs to process {self._pid}, which opened it, not to this "
                f"one ({os.getpid()}), which inherited it: open one here"
            )
        if threading.current_thread() is self._thread:
            raise UsageError(
                f"the {self.name} cannot be waited for here, in the thread that runs it, and "
                "handles its workers' log records: use another thread"
            )

    def _check_not_stopped(self) -> None:
        if self.stopped:
            raise WorkerClosedError(f"the {self.name} was closed")

    def run(self, function: Callable[[], Awaitable[T]], errands: Errands | None = None) -> T:
        """What ``function()`` answers in the loop, in this thread's context."""
        self.check_here()
        job = Job(function, errands or Errands(self.loop))
        try:
            with Uninterrupted(lambda: self._cancel(job)):
                self._post(job)
            while not job.done or job.errands.waiting:
                with Uninterrupted(lambda: self._cancel(job)), standing_still():
                    job.errands.bell.wait(lambda: job.done or job.errands.waiting)
                job.errands.run()
        except BaseException:
            with Uninterrupted(lambda: None):
                self._cancel(job)
                job.errands.bell.wait(lambda: job.done or not job.posted)
            raise
        return job.result()

    def _post(self, job: Job[Any]) -> None:
        context = contextvars.copy_context()
        with self._lock:
            self._check_not_stopped()
            self.loop.call_soon_threadsafe(self._begin, job, context=context)
            job.posted = True

    def _begin(self, job: Job[Any]) -> None:
        task = self.loop.create_task(job.run())
        self._jobs[task] = job
        task.add_done_callback(self._jobs.pop)

    def _cancel(self, job: Job[Any]) -> None:
        if job.posted and not job.done:
            with contextlib.suppress(RuntimeError):  # the loop has ended meanwhile, and so has it
                # One turn later: its task has begun by then.
                self.loop.call_soon_threadsafe(self.loop.call_soon, job.cancel)

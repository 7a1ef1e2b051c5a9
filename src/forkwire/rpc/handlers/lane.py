"""Plain handlers: functions and generators, one at a time in each lane, which is a thread.

A generator gives its lane back when its caller wants no more items for now, so that a consumer
that calls the same worker never waits for itself. A function keeps its lane until it ends; while it
waits for its host, calls of the same tree run in it, and no others: it may hold a lock.
"""

from __future__ import annotations

import _thread
import contextlib
import contextvars
import math
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any, Final, TypeVar

from ...errors import CallCancelledError, UsageError
from ...process.cancelling import Terminated
from ..caller.blocking import BlockingCaller
from ..caller.current import handling as current
from ..data.kinds import is_a
from ..interrupts.interrupting import Interrupted, Interrupter
from ..links.link import InCall, OutCall
from ..telling import context
from .handling import Argument, bound, gave_up, why_stopped
from .lanes import Job, Lanes

__all__ = ["Lane", "LaneCaller", "lane_of"]

T = TypeVar("T")

# Items of one generator, after which others have their turn.
BURST: Final = 32

# Of the stack, between a function that waits for its host and one that runs meanwhile.
NESTED_FRAMES: Final = 64


class Lane:
    """One thread's. ``interrupter``: only in the main thread of a worker."""

    def __init__(self, lanes: Lanes, interrupter: Interrupter | None) -> None:
        self.lanes: Final = lanes
        self.driver: Final = lanes.driver
        self.interrupter: Final = interrupter
        self.job: Job | None = None
        self.thread = 0  # that runs it
        self._context: Final = contextvars.copy_context()  # what every job begins with

    def run(self, over: Callable[[], bool]) -> None:
        """Run jobs until ``over()``, in this thread."""
        queue = self.lanes.queue

        def something() -> bool:
            return bool(queue) or over()

        while True:
            if not queue:
                self.driver.wait(something, self.lanes.next_deadline())
                self.lanes.put_late()
            if not queue and over():  # what was begun is closed first
                return
            self.driver.settle()  # nobody waits for an answer as long as the next call takes
            job = self.lanes.take()
            if job is not None:
                self.advance(job)
            del job

    def advance(self, job: Job) -> None:
        """Run ``job``, or its next part."""
        if not self.lanes.begin(job):
            return
        outer, self.job = self.job, job
        self.thread = _thread.get_ident()
        call = job.call
        call.lane = self  # a generator may go on in another
        try:
            if job.context is None:
                if call.cancelled or call.deadline <= time.monotonic():
                    job.over = True
                    call.link.reply_error(call, why_stopped(call))
                    job.release()
                    return
                self._enter(job)
            if job.method.kind == "generator":
                self._stream(job)
            else:
                self._call(job)
        finally:
            self.job = outer
            self.lanes.end(job)

    def _enter(self, job: Job) -> None:
        call = job.call
        data = call.meta.get("context") if call.meta else None
        job.context = fresh = self._context.copy()  # of no job that waits beneath this one
        if data:
            trusted = call.link.limits.trusted
            job.context = fresh.run(context.context_of, data, variables=trusted)
        job.context.run(current.set, call)
        job.span = context.server_span(self.lanes.name, job.method.name)
        if job.span is not context.NOTHING:
            job.context.run(job.span.__enter__)

    def _end_span(self, job: Job, error: BaseException | None = None) -> None:
        """In the job's context, where it began: of a generator between its first and last step."""
        span, job.span = job.span, context.NOTHING
        if span is not context.NOTHING:
            assert job.context is not None
            trace = None if error is None else error.__traceback__
            job.context.run(span.__exit__, None if error is None else type(error), error, trace)

    def _call(self, job: Job) -> None:
        call = job.call
        try:
            args, kwargs = bound(job.method, call, self._argument(job))
            value = self._guarded(call.id, job, job.method.function, *args, **kwargs)
        except BaseException as error:
            self._failed(job, error)
        else:
            self._end_span(job)
            call.link.reply(call, value)
        finally:
            self._finish(job)

    def _guarded(
        self, number: int, job: Job, function: Callable[..., T], /, *args: Any, **kw: Any
    ) -> T:
        """Call ``function`` in the job's context, where it can be interrupted."""
        assert job.context is not None
        if self.interrupter is None:
            return job.context.run(function, *args, **kw)
        return self.interrupter.run(number, job.context.run, function, *args, **kw)

    def _failed(self, job: Job, error: BaseException) -> None:
        self._end_span(job, error)
        if is_a(error, Terminated):  # the worker ends
            raise error
        if is_a(error, Interrupted) or gave_up(job.call, error):
            job.call.failed = why_stopped(job.call)
        job.call.link.reply_error(job.call, error)

    def _finish(self, job: Job) -> None:
        job.over = True
        for argument in job.arguments:
            argument.close()
        if self.interrupter is not None:
            self.interrupter.forget(job.call.id)
        job.release()

    def _argument(self, job: Job) -> Callable[[Argument], SyncArgument]:
        def iterate(argument: Argument) -> SyncArgument:
            job.arguments.append(SyncArgument(job.call, argument))
            return job.arguments[-1]

        return iterate

    # -- generators ---------------------------------------------------------------------------

    def _stream(self, job: Job) -> None:
        try:
            if job.items is None:
                args, kwargs = bound(job.method, job.call, self._argument(job))
                job.items = iter(
                    self._guarded(job.call.id, job, job.method.function, *args, **kwargs)
                )
            if self._burst(job):
                return
        except BaseException as error:  # perhaps before a step, and not in one
            self._failed(job, self._closed(job, error))
        else:
            self._end_span(job)
            job.call.link.reply(job.call, None)
        self._finish(job)

    def _burst(self, job: Job) -> bool:
        """Send items as long as they are wanted; whether there may be more."""
        call = job.call
        for _ in range(BURST):
            if call.cancelled or call.deadline <= time.monotonic():
                raise Interrupted(call.id)
            if not self._may_send(job):
                self.lanes.park(job)
                return True
            try:
                value = self._step(job)
            except StopIteration:
                return False
            call.link.item(call, value)
        self.driver.look()
        self.lanes.put(job)
        return True

    def _may_send(self, job: Job) -> bool:
        call = job.call
        outbox = call.link.outbox
        if call.credit and not outbox.crowded:
            return True
        call.on_credit = job.resume
        if call.credit and outbox.crowded:
            outbox.when_roomy(job.resume)
        if call.credit and not outbox.crowded:  # it came meanwhile
            self.lanes.put(job)
        return False

    def _step(self, job: Job) -> Any:
        assert job.context is not None
        if self.interrupter is None:
            return job.context.run(next, job.items)
        run, items = job.context.run, job.items
        return self.interrupter.step(job.call.id, lambda: run(next, items))

    def _closed(self, job: Job, error: BaseException) -> BaseException:
        """Have the generator's ``finally`` run; what that raises is told instead of ``error``."""
        assert job.context is not None
        close = getattr(job.items, "close", None)
        if close is not None:
            try:
                job.context.run(close)
            except BaseException as other:
                return other
        return error

    # -- inside a handler ---------------------------------------------------------------------

    def wait(self, ready: Callable[[], bool], until: float = math.inf) -> None:
        """Block a handler until ``ready()``, or ``until``; meanwhile calls of its tree run.

        Raises :exc:`CallCancelledError` where the handler's call was cancelled.
        """
        job = self.job
        assert job is not None
        call, lanes = job.call, self.lanes

        def something() -> bool:
            return ready() or call.cancelled or bool(call.tree and lanes.has(call.tree))

        while not ready() and time.monotonic() < until:
            if call.cancelled or call.link.over is not None:
                raise CallCancelledError(f"{call.method} was cancelled")
            nested = lanes.take(call.tree) if call.tree else None
            if nested is not None:
                self._nest(nested)
            else:
                self.driver.wait(something, until)

    def _nest(self, job: Job) -> None:
        """Run ``job`` on top of the one that waits; it may recurse as deep as any other."""
        sys.setrecursionlimit(sys.getrecursionlimit() + NESTED_FRAMES)
        try:
            self.advance(job)
        finally:
            with contextlib.suppress(RecursionError, ValueError):  # the job has set another
                sys.setrecursionlimit(sys.getrecursionlimit() - NESTED_FRAMES)

    def stop(self, call: OutCall) -> None:
        """The handler does not want what it asked its host for: wait until that has stopped."""
        link = self.driver.link
        link.cancel(call)
        job = self.job
        assert job is not None
        while not (call.ended or link.over):
            nested = self.lanes.take(call.tree) if call.tree else None
            if nested is not None:
                self._nest(nested)
            else:
                self.driver.wait(
                    lambda: call.ended or bool(call.tree and self.lanes.has(call.tree))
                )

    def send(self, function: Callable[[], T]) -> T:
        return function()

    def ours(self) -> contextlib.AbstractContextManager[None]:
        """A block in which our own code runs, called by a handler: nothing interrupts it."""
        return context.NOTHING if self.interrupter is None else self.interrupter.paused()

    def theirs(self, function: Callable[[], T]) -> T:
        """Inside of `ours`, call what is the handler's code, which may be interrupted."""
        if self.interrupter is None or self.job is None:
            return function()
        return self.interrupter.step(self.job.call.id, function)


def lane_of(call: InCall) -> Lane:
    """The lane that runs ``call`` now, in this thread. Raises :exc:`UsageError` in any other."""
    lane: Lane = call.lane
    if lane.thread != _thread.get_ident():
        raise UsageError(
            f"what {call.method} got from its call is used in another thread: host, progress and "
            "streamed arguments are for the handler's own"
        )
    return lane


class LaneCaller(BlockingCaller):
    """What a handler calls its host with."""

    def __init__(self, call: InCall) -> None:
        super().__init__(call.link, call.lane)
        self._call: Final = call

    @property
    def waiter(self) -> Lane:
        return lane_of(self._call)


class SyncArgument:
    """A streamed argument as an iterator."""

    def __init__(self, call: InCall, argument: Argument) -> None:
        self._call: Final = call
        self._argument: Final = argument

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        lane, argument = lane_of(self._call), self._argument
        with lane.ours():
            argument.grant()
            lane.wait(lambda: argument.arrivals.ready)
            return argument.take()

    def close(self) -> None:
        """No more items are wanted."""
        self._argument.stop()

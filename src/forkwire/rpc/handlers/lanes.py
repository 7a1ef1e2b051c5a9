"""The calls of plain handlers that wait for a lane, to begin or to go on."""

from __future__ import annotations

import contextlib
import contextvars
import functools
import math
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

from ..links.drivers import Driver
from ..links.link import InCall, nothing
from ..telling import context
from .handling import why_stopped
from .service import Method

if TYPE_CHECKING:
    from .lane import SyncArgument

__all__ = ["Job", "Lanes"]


class Job:
    """A call that a lane runs, perhaps in parts."""

    __slots__ = (
        "again", "arguments", "call", "context", "items", "method", "over", "queued", "resume",
        "running", "span",
    )  # fmt: skip

    def __init__(self, call: InCall, method: Method) -> None:
        self.call: Final = call
        self.method: Final = method
        self.queued = self.running = self.again = self.over = False
        self.items: Any = None
        self.resume: Callable[[], None] = nothing  # have it go on, from any thread
        self.context: contextvars.Context | None = None
        self.span: contextlib.AbstractContextManager[object] = context.NOTHING
        self.arguments: list[SyncArgument] = []

    def release(self) -> None:
        """It is over: what it held is freed now, and not when the collector comes by."""
        self.over = True
        self.items = None
        self.arguments.clear()
        self.call.link.outbox.forget(self.resume)
        self.resume = self.call.on_cancel = self.call.on_credit = nothing


class Lanes:
    """The queue that lanes take from."""

    def __init__(self, driver: Driver, name: str) -> None:
        self.driver: Final = driver
        self.name: Final = name
        self.queue: Final[deque[Job]] = deque()
        self.on_stop: Callable[[Job], None] = lambda job: None  # what has begun is not wanted
        self._lock: Final = threading.RLock()  # a finaliser may come in between
        self._parked: Final[set[Job]] = set()  # they wait to go on, and have a deadline

    def park(self, job: Job) -> None:
        """``job`` is put again when it may go on, or when its time is over."""
        if job.call.deadline != math.inf:
            self._parked.add(job)

    def next_deadline(self) -> float:
        """Of those that are parked, in :func:`time.monotonic`'s terms."""
        return min((job.call.deadline for job in self._parked.copy()), default=math.inf)

    def put_late(self) -> None:
        """Have those go on, to their end, whose time is over."""
        now = time.monotonic()
        for job in [job for job in self._parked.copy() if job.call.deadline <= now]:
            self.put(job)

    def put(self, job: Job) -> None:
        """Have ``job`` run, or go on. From any thread; once at a time, and not in two lanes."""
        with self._lock:
            if job.queued or job.over:
                return
            if job.running:
                job.again = True
                return
            job.queued = True
        self.enqueue(job)

    def enqueue(self, job: Job) -> None:
        """It waits for a lane."""
        self.queue.append(job)
        self.driver.wake()

    def refuse(self, job: Job, error: Exception) -> None:
        """There is no lane for it."""
        with self._lock:
            job.queued = False
        job.call.link.reply_error(job.call, error)
        job.release()

    def begin(self, job: Job) -> bool:
        """A lane runs it from now on; False if it has ended."""
        with self._lock:
            self._parked.discard(job)
            job.queued = False
            job.running = not job.over
            return job.running

    def end(self, job: Job) -> None:
        """The lane is done with it, for now."""
        with self._lock:
            job.running = False
            again, job.again = job.again, False
        if again:
            self.put(job)

    def accept(self, call: InCall, method: Method) -> None:
        """Queue a call that came."""
        job = Job(call, method)
        job.resume = functools.partial(self.put, job)
        call.on_cancel = lambda: self.drop(job)
        self.put(job)

    def drop(self, job: Job) -> None:
        """It is not wanted any more: answer at once if it has not begun, else its lane does."""
        with self._lock:
            waits = job.queued and job.context is None and not job.over
            job.over = job.over or waits
        if waits:
            job.call.link.reply_error(job.call, why_stopped(job.call))
            job.release()
        else:
            self.on_stop(job)
            self.put(job)

    def take(self, tree: str = "") -> Job | None:
        """The next job; with ``tree`` the next one in that."""
        with contextlib.suppress(IndexError):  # another lane was quicker
            if not tree:
                return self.queue.popleft()
        for job in list(self.queue) if tree else ():
            if job.call.tree == tree:
                with contextlib.suppress(ValueError):
                    self.queue.remove(job)
                    return job
        return None

    def has(self, tree: str) -> bool:
        return any(job.call.tree == tree for job in list(self.queue))

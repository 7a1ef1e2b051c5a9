"""What a host offers its worker (``host=``): run in the host's loop, or in threads beside it.

Plain functions run one at a time, so that they need not be thread-safe; one that is called while
its caller's call to the worker is handled here (the same tree) does not wait for its turn.
"""

from __future__ import annotations

from typing import Final

import anyio
import anyio.to_thread

from ..links.drivers import LoopDriver
from ..links.link import InCall
from .handling import find
from .lane import Lane
from .lanes import Job, Lanes
from .service import Service
from .tasks import Tasks

__all__ = ["Hosting"]

ASYNC: Final = ("async", "async_generator")

# Threads of nested calls: as deep as anybody nests.
THREADS: Final = 1000


class Hosting(Lanes):
    """Runs what the worker calls."""

    def __init__(self, driver: LoopDriver, service: Service) -> None:
        super().__init__(driver, service.name)
        service.load()
        self._loop: Final = driver
        self._service: Final = service
        self._tasks: Final = Tasks(driver, service.name, in_host=True)
        self._turn: Final = anyio.Lock()
        self._limiter: Final = anyio.CapacityLimiter(THREADS)
        self._trees: list[str] = []

    def take_call(self, call: InCall) -> None:
        """Have ``call`` run, or answer why not. In the loop."""
        try:
            method = find(self._service, call)
        except Exception as error:
            call.link.reply_error(call, error)
            return
        if method.kind in ASYNC:
            self._tasks.run(call, method)
        else:
            self.accept(call, method)

    def enqueue(self, job: Job) -> None:
        """A thread for ``job``, or for its next part."""
        backend = self._loop.backend
        backend.call(lambda: backend.spawn(lambda: self._run(job), f"forkwire: {self.name}"))

    async def _run(self, job: Job) -> None:
        try:
            if job.call.tree and job.call.tree in self._trees:
                await self._in_thread(job)
                return
            async with self._turn:
                await self._in_thread(job)
        except RuntimeError as error:  # the system has no thread left
            self.refuse(job, error)

    async def _in_thread(self, job: Job) -> None:
        lane = Lane(self, None)

        def run() -> None:
            lane.advance(job)

        self._trees.append(job.call.tree)
        try:
            await anyio.to_thread.run_sync(run, limiter=self._limiter)
        finally:
            self._trees.remove(job.call.tree)

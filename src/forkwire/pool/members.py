"""One worker of a pool: its start, its end, and who is told of them.

Knows nothing of the other workers, nor which calls it is given.
"""

from __future__ import annotations

import copy
import functools
import os
from typing import TYPE_CHECKING, Any, Final, Protocol

import anyio

from ..errors import WorkerClosedError, WorkerError
from ..rpc.caller.aio import Caller
from ..rpc.worker import Worker
from .states import Member

if TYPE_CHECKING:
    from ..process.backend import Backend
    from ..rpc.links.link import Link
    from ..rpc.settings import Settings

__all__ = ["Post", "Watcher"]

PAGE: Final = os.sysconf("SC_PAGE_SIZE")

DESERTED: Final = "the event loop of the pool has ended"


class Watcher(Protocol):
    """Is told what becomes of workers. In the loop, from callbacks: it must not block."""

    def started(self, post: Post) -> None: ...

    def failed(self, post: Post, error: BaseException) -> None: ...

    def died(self, post: Post, error: BaseException, *, fault: bool) -> None:
        """``fault``: nobody wanted that."""
        ...

    def buried(self, post: Post) -> None:
        """Nothing is left of it."""
        ...

    def desert(self) -> None:
        """The loop ends, and starts nothing any more."""
        ...


class Post:
    """A member of the pool and the worker that fills its place.

    ``work``: what is on its way to the worker, or in flight there; for whoever gives it calls.
    """

    def __init__(
        self, member: Member, settings: Settings, backend: Backend, watcher: Watcher
    ) -> None:
        self.member: Final = member
        self.worker: Final = Worker(settings)
        self.work: Final[set[Any]] = set()
        self.over: Final = anyio.Event()
        self._backend: Final = backend
        self._watcher: Final = watcher
        self._starting: Final = anyio.CancelScope()
        self._unwanted = False
        self.is_there = False
        self._own_kill = False

    @property
    def caller(self) -> Caller:
        """Makes the calls to it. Once it was started."""
        return self.worker._own_caller()

    @property
    def link(self) -> Link:
        return self.caller.link

    @property
    def is_lost(self) -> bool:
        """Whether it takes no calls any more."""
        return not self.link.is_open

    def gone(self) -> BaseException:
        """What a call raises that came too late."""
        error = self.link.over
        assert error is not None
        return copy.copy(error)

    def has_part_in(self, tree: str) -> bool:
        """Whether a call of that tree is in flight between it and us."""
        if not self.is_there:
            return False
        link = self.link
        ours = any(call.tree == tree for call in link.calls.values())
        return ours or any(call.tree == tree for call in link.peers.values())

    # -- start --------------------------------------------------------------------------------

    def start(self) -> None:
        """Begin to start it, in the background."""
        name = f"forkwire: worker {self.member.number} of a pool"
        self._backend.spawn(self._start, name)

    async def _start(self) -> None:
        try:
            with self._starting:
                await self.worker.__aenter__()
        except anyio.get_cancelled_exc_class():  # asyncio.run cancels every task at its end
            self._watcher.desert()
            self._watcher.failed(self, WorkerClosedError(DESERTED))
            raise
        except BaseException as error:
            self._watcher.failed(self, error)
            return
        if self._starting.cancelled_caught:
            self._watcher.failed(self, WorkerClosedError("it was not wanted any more"))
            return
        self.is_there = True
        self.link.on_over = self._on_over
        self._watcher.started(self)
        if self.link.over is not None:  # already, while nobody listened
            self._on_over()
        elif self._unwanted:
            await self.bury()

    # -- end ----------------------------------------------------------------------------------

    def end(self) -> None:
        """Close it, in the background, or give up its start."""
        self._unwanted = True
        if self.is_there:
            self._backend.spawn(self.bury, f"forkwire: end of worker {self.member.number}")
        else:
            self._starting.cancel()

    async def bury(self) -> None:
        """Close it, if it is not closed, and give back all that it had."""
        self._unwanted = True
        await self.worker.aclose()
        self._watcher.buried(self)

    def kill(self, reason: str) -> None:
        """Its calls raise :exc:`WorkerDied` with ``reason``."""
        self._own_kill = True
        self.worker._started_handle().killed_for = f"was killed by its pool, since it {reason}"
        self.worker.kill()

    def desert(self) -> None:
        """The loop ends: kill it."""
        self._unwanted = True
        self.worker._started_handle().desert()

    def _on_over(self) -> None:
        """Nothing more comes from it; its calls are about to be told."""
        if self.over.is_set():
            return
        self.over.set()
        error = self.link.over
        assert error is not None
        if isinstance(error, WorkerClosedError):
            if not self._unwanted:
                self._watcher.desert()
            self._watcher.died(self, error, fault=False)
            return
        if not self._unwanted:
            self._backend.spawn(self.bury, f"forkwire: death of worker {self.member.number}")
        asked = self.worker._started_handle().killed_for and not self._own_kill
        self._watcher.died(self, error, fault=not asked)

    # -- while it works -----------------------------------------------------------------------

    def ping(self, answered: functools.partial[None]) -> None:
        """Have ``answered`` called when it gives a sign of life."""

        def wake() -> None:
            if self.link.over is None:
                answered()

        self.link.ping(wake)

    def resident(self) -> int | None:
        """Bytes of it that are in memory; None where the system does not say."""
        try:
            with open(f"/proc/{self.worker.pid}/statm", "rb") as file:
                return int(file.read().split()[1]) * PAGE
        except (OSError, WorkerError):
            return None

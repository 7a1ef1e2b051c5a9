"""The workers of a pool: does what the supervisor says, and tells it what happened, and when.

Knows nothing of the calls that they run.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import math
import os
import time
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, Final

import anyio

from ..errors import WorkerClosedError, WorkerDied
from .members import Post
from .states import Action, Break, End, Kill, Ping, Start, Warn

if TYPE_CHECKING:
    from ..process.backend import Backend
    from ..rpc.handle import WorkerStatistics
    from ..rpc.settings import Settings
    from .supervisor import Supervisor

__all__ = ["Crew"]

clock = time.monotonic

# Turns that others have to begin with their ends when a loop ends.
LAST_TURNS: Final = 10


class Crew:
    """Carries out the supervisor's actions. In one event loop.

    ``settings``: of the workers that start from now on. ``on_ready``: is called with each worker
    that is ready, before it is given a call. ``on_death``: with a worker that died of a fault,
    before its calls are told. ``on_change``: when there may be room for a call, or never will be.
    """

    def __init__(self, supervisor: Supervisor, settings: Settings, backend: Backend) -> None:
        self.supervisor: Final = supervisor
        self.settings = settings
        self.backend: Final = backend
        self.posts: Final[dict[int, Post]] = {}
        self.on_ready: Callable[[Post], None] = lambda post: None
        self.on_death: Callable[[Post, BaseException], None] = lambda post, error: None
        self.on_change: Callable[[], None] = lambda: None
        self._unburied: Final[set[Post]] = set()
        self._deserted = False
        self._pid: Final = os.getpid()
        self._alarm = anyio.Event()
        self._waiting: Final[set[anyio.Event]] = set()

    # -- what is to be done -------------------------------------------------------------------

    def apply(self, actions: Iterable[Action]) -> None:
        """Do it."""
        for action in actions:
            DOING[type(action)](self, action)
            self._alarm.set()

    def _changed(self, actions: Iterable[Action]) -> None:
        """Do it, and tell whoever waits for what has changed."""
        self._alarm.set()
        self.apply(actions)
        self.on_change()
        for event in self._waiting:
            event.set()

    def _start(self, action: Start) -> None:
        post = Post(action.member, self.settings, self.backend, self)
        self.posts[action.member.number] = post
        if self._deserted:
            self.failed(post, WorkerClosedError("the event loop of the pool ends"))
        else:
            post.start()

    def _end(self, action: End) -> None:
        if not self._deserted:
            self.posts[action.member.number].end()

    def _kill(self, action: Kill) -> None:
        post = self.posts[action.member.number]
        self._warn(Warn(action.member, f"{action.reason}, so it is killed"))
        post.kill(action.reason)

    def _ping(self, action: Ping) -> None:
        post = self.posts[action.member.number]
        post.ping(functools.partial(self._ponged, post))

    def _ponged(self, post: Post) -> None:
        self._changed(self.supervisor.ponged(post.member, clock()))

    def _warn(self, action: Warn) -> None:
        post = self.posts[action.member.number]
        logging.getLogger("forkwire").warning("%s %s", post.link.name, action.reason)

    def _break(self, action: Break) -> None:
        """The supervisor says so to whoever asks."""

    # -- what happened ------------------------------------------------------------------------

    def started(self, post: Post) -> None:
        self._unburied.add(post)
        self.on_ready(post)
        self._changed(self.supervisor.started(post.member, clock()))

    def failed(self, post: Post, error: BaseException) -> None:
        del self.posts[post.member.number]
        self._changed(self.supervisor.failed(post.member, error, clock()))

    def died(self, post: Post, error: BaseException, *, fault: bool) -> None:
        if fault:
            self.on_death(post, error)
        del self.posts[post.member.number]
        well = not fault or (isinstance(error, WorkerDied) and error.returncode == 0)
        how = None if well else error
        self._changed(self.supervisor.died(post.member, how, clock(), fault=fault))

    def buried(self, post: Post) -> None:
        self._unburied.discard(post)

    async def end(self) -> None:
        """Wait until nothing is left of any worker."""
        if self._deserted:  # nothing is done in the background any more
            for post in [*self._unburied]:
                await post.bury()
        await self.until(lambda: self.supervisor.settled)
        for post in [*self._unburied]:  # those too whose burial was cancelled
            await post.bury()

    def desert(self) -> None:
        self._deserted = True

    def worker_statistics(self) -> dict[int, WorkerStatistics]:
        """Of those that are there, by their numbers."""
        posts = self.posts.items()
        return {n: post.worker.statistics() for n, post in posts if post.is_there}

    def ordered(self, actions: Iterable[Action]) -> None:
        """The user asked for something."""
        self._changed(actions)

    # -- time ---------------------------------------------------------------------------------

    def open(self) -> None:
        """Begin."""
        self.backend.spawn(self._tick, "forkwire: clock of a pool")
        self._changed(self.supervisor.open(clock()))

    async def _tick(self) -> None:
        supervisor = self.supervisor
        try:
            while not (self._deserted or self.is_over):
                self._alarm = anyio.Event()
                when = supervisor.next_tick()
                left = math.inf if when is None else when - clock()
                if left > 0:
                    with anyio.move_on_after(left):
                        await self._alarm.wait()
                else:
                    self._changed(supervisor.tick(clock()))
                    await anyio.lowlevel.checkpoint()
        except anyio.get_cancelled_exc_class():  # asyncio.run cancels every task at its end
            await self._give_turns()
            if supervisor.is_over:
                self.desert()
            else:
                self.kill_all()
            raise

    async def _give_turns(self) -> None:
        """Whoever has opened the pool may be cancelled as well, and about to close it."""
        with contextlib.suppress(anyio.get_cancelled_exc_class()), anyio.CancelScope(shield=True):
            for _ in range(LAST_TURNS):
                await anyio.lowlevel.checkpoint()

    def kill_all(self) -> None:
        """Nobody will close the pool, and nothing could be awaited."""
        self.desert()
        self._changed(self.supervisor.close(clock()))
        for post in [*self._unburied]:
            post.desert()

    @property
    def is_running(self) -> bool:
        """Whether the loop still is, or another process has it."""
        return self.backend.is_running() or self._pid != os.getpid()

    @property
    def is_over(self) -> bool:
        """No worker is left, and none will come."""
        return self.supervisor.is_over and self.supervisor.settled

    async def until(self, condition: Callable[[], object]) -> None:
        """Wait until ``condition()`` holds; it is asked after each change."""
        while not condition():
            event = anyio.Event()
            self._waiting.add(event)
            try:
                await event.wait()
            finally:
                self._waiting.discard(event)


DOING: Final[dict[type[Action], Callable[[Crew, Any], None]]] = {
    Start: Crew._start,
    End: Crew._end,
    Kill: Crew._kill,
    Ping: Crew._ping,
    Warn: Crew._warn,
    Break: Crew._break,
}

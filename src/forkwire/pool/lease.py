"""One worker of a pool for one block of code alone."""

from __future__ import annotations

import functools
import time
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final

import anyio

from ..errors import UsageError
from ..rpc.caller.calls import Calls
from ..rpc.caller.streams import Begun, Stream
from .blame import Mark
from .dispatch import Dispatcher
from .states import Need
from .work import Work

if TYPE_CHECKING:
    from ..errors import WorkerDied
    from ..rpc.caller.offers import Offers
    from ..rpc.caller.requests import CallOptions, Request
    from ..rpc.handle import WorkerStatistics
    from ..rpc.links.inflight import OutCall
    from .members import Post

__all__ = ["Lease", "LentWorker"]

clock = time.monotonic


class Lease:
    """What ``pool.worker()`` answers: enter it with ``async with``."""

    def __init__(
        self, dispatcher: Dispatcher, offers: Offers, options: CallOptions, *, fresh: bool
    ) -> None:
        self._dispatcher: Final = dispatcher
        self._offers: Final = offers
        self._options: Final = options
        self._fresh: Final = fresh
        self._caller: LeaseCaller | None = None

    async def __aenter__(self) -> LentWorker:
        if self._caller is not None:
            raise UsageError("a worker is lent once: call pool.worker() again for another")
        self._dispatcher.check_here()
        post = await self._dispatcher.acquire(Need.ALL)
        self._caller = LeaseCaller(self._dispatcher, post)
        return LentWorker(self._caller, self._offers, self._options)

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        assert self._caller is not None
        await self._caller.give_back(fresh=self._fresh)


class LentWorker(Calls):
    """A worker of a pool that runs nothing but what its block calls.

    Once the block is left, calls raise :exc:`UsageError`.
    """

    def __init__(self, caller: LeaseCaller, offers: Offers, options: CallOptions) -> None:
        self._caller = self._lease = caller
        self._offers = offers
        self._options = options

    @property
    def pid(self) -> int:
        """The process id."""
        return self._lease.post.worker.pid

    @property
    def died(self) -> WorkerDied | None:
        """All that is known of a bad end; None while it runs."""
        return self._lease.post.worker.died

    def statistics(self) -> WorkerStatistics:
        """What it has done so far, also before it was lent."""
        return self._lease.post.worker.statistics()

    def kill(self) -> None:
        """Send SIGKILL: calls in flight raise :exc:`WorkerDied`, and the pool replaces it."""
        self._lease.check_lent()
        self._lease.post.worker.kill()

    def __repr__(self) -> str:
        state = "given back" if self._lease.over else "lent"
        return f"<LentWorker {self._offers.name} pid={self.pid} {state}>"


class LeaseCaller:
    """Makes calls to the one worker, and counts them as the pool's."""

    def __init__(self, dispatcher: Dispatcher, post: Post) -> None:
        self.post: Final = post
        self.over = False
        self._dispatcher: Final = dispatcher
        self._calls: set[OutCall] = set()

    def check_here(self) -> None:
        """Raise :exc:`UsageError` in another event loop."""
        self._dispatcher.check_here()

    def check_lent(self) -> None:
        """Raise :exc:`UsageError` after the block."""
        if self.over:
            raise UsageError(
                "the worker was given back to its pool at the end of `async with pool.worker()`"
            )

    async def call(self, request: Request) -> Any:
        caller, call, pumps = await self._begin(request, None)
        return await caller.complete(request, call, pumps)

    async def notify(self, request: Request) -> None:
        caller, call, pumps = await self._begin(request, None)
        caller.leave(call, pumps)

    def stream(self, request: Request) -> Stream[Any]:
        return Stream(self, request)

    async def begin_stream(self, request: Request, credit: int) -> Begun:
        return await self._begin(request, credit)

    async def _begin(self, request: Request, credit: int | None) -> Begun:
        self.check_here()
        self.check_lent()
        post, dispatcher = self.post, self._dispatcher
        need = dispatcher.need_of(request)
        dispatcher.take(post, need)
        work = Work(dispatcher, post, Mark(request), need, clock())
        begun = await dispatcher.send(work, credit)
        if begun is not None:
            self._calls = {call for call in self._calls if not call.ended}
            self._calls.add(begun[1])
            return begun
        await post.over.wait()
        raise post.gone()

    async def give_back(self, *, fresh: bool) -> None:
        """Stop what is still in flight, and let others have it."""
        self.over = True
        backend = self.post.caller.driver.backend
        await backend.uninterrupted(functools.partial(self._give_back, fresh=fresh))

    async def _give_back(self, *, fresh: bool) -> None:
        try:
            async with anyio.create_task_group() as tasks:
                for call in self._calls:  # no one else's: broadcasts come here too
                    if call.expected and not call.ended:
                        tasks.start_soon(self.post.caller.stop, call)
        finally:
            self._dispatcher.give_back(self.post, Need.ALL, fresh=fresh)

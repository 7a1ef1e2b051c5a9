"""``forkwire.sync.open_pool``: a pool that threads without an event loop call, and wait for."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable
from types import TracebackType
from typing import Any, Final, Self, TypeVar, Unpack

from ..errors import UsageError, WorkerClosedError
from ..rpc.settings import WorkerOptions
from .loop_thread import LoopThread
from .policy import Health, Recycle, Restart
from .pool import Pool
from .pool import open_pool as open_async_pool
from .statistics import PoolStatistics
from .sync_calls import LoopCaller, SyncPoolCalls

__all__ = ["SyncPool", "open_pool"]

T = TypeVar("T")


@functools.wraps(open_async_pool, assigned=())
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
) -> SyncPool:
    """Several workers that serve ``service``; enter it with ``with`` to start them.

    Everything is as for :func:`forkwire.open_pool`. Any number of threads may call it. An event
    loop in a thread of its own does the work.
    """
    return SyncPool(
        open_async_pool(
            service,
            size=size,
            spares=spares,
            concurrency=concurrency,
            queue=queue,
            restart=restart,
            recycle=recycle,
            health=health,
            idle=idle,
            poison=poison,
            **worker,
        )
    )


class SyncPool(SyncPoolCalls):
    """Several workers of one service: made by :func:`forkwire.sync.open_pool`.

    A context manager: entering it starts the workers and waits until they are ready, leaving it
    ends them as :meth:`close` does.
    """

    def __init__(self, pool: Pool) -> None:
        self._pool: Final = pool
        self._offers = pool._offers
        self._thread: LoopThread | None = None
        self._over = False

    def __enter__(self) -> Self:
        if self._thread is not None:
            raise UsageError("a pool is opened once: call open_pool() again for another")
        self._thread = thread = LoopThread("pool")
        thread.start()
        try:
            thread.run(self._pool.__aenter__)
        except BaseException:
            self._over = True
            thread.stop()
            raise
        self._connect(LoopCaller(thread, self._pool._ready_dispatcher()), self._pool)
        return self

    def drain(self) -> None:
        """Take no new calls, let those that wait and that run end, then end the workers.

        New calls raise :exc:`WorkerClosedError`; those that a running one makes are still taken.
        """
        self._run(self._pool.drain)

    def resize(self, least: int, most: int | None = None) -> None:
        """Have so many workers from now on; blocks until the new ones are ready.

        Those that are too many end when their calls have. Raises :exc:`UsageError`.
        """
        self._run(functools.partial(self._pool.resize, least, most))

    def reload(self) -> None:
        """Replace all workers by such as run the code as it is now, and lose no call.

        Raises as :meth:`forkwire.Pool.reload` does.
        """
        self._run(self._pool.reload)

    def statistics(self) -> PoolStatistics:
        """What it has done so far, and does now."""

        async def statistics() -> PoolStatistics:
            return self._pool.statistics()

        if self._over:
            return self._pool.statistics()
        answer: PoolStatistics = self._run(statistics)
        return answer

    def close(self) -> None:
        """End all workers: no new calls, those that wait raise :exc:`WorkerClosedError`.

        Those in flight are stopped, as when a worker is closed; :meth:`drain` first to let them
        end. Idempotent.
        """
        if self._thread is None or self._over:
            return
        try:
            with contextlib.suppress(WorkerClosedError):  # another thread was quicker
                self._thread.run(self._pool.aclose)
        finally:
            self._over = True
            self._thread.stop()

    def _run(self, function: Callable[[], Any]) -> Any:
        return self._ready_caller().run(function)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<Sync{repr(self._pool)[1:]}"

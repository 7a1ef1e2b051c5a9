"""What a type checker makes of pools: checked by mypy and pyright, never run.

The ignored lines are errors; both checkers are told to mind an ignore that is not needed.
"""

# pyright: reportUnnecessaryTypeIgnoreComment=true

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from typing import Any, Protocol, assert_type

import forkwire
from forkwire import Health, LentWorker, Pool, PoolCalls, PoolStatistics, Recycle, Restart, sync
from forkwire.pool.mapping import Results
from forkwire.sync import SyncLentWorker, SyncPool, SyncPoolCalls, SyncResults


def add(a: int, b: int = 10) -> int:
    return a + b


async def describe(name: str) -> bytes:
    return name.encode()


def count(n: int) -> Iterator[int]:
    yield from range(n)


def four(a: int, b: int, c: int, d: int) -> float:
    return 0.5


class Adds(Protocol):
    async def add(self, a: int, b: int) -> int: ...


async def rows() -> AsyncIterator[int]:
    yield 1


async def opening() -> None:
    pool = forkwire.open_pool(
        "calc",
        size=(1, 4),
        spares=1,
        concurrency=2,
        queue=10,
        restart=Restart(kind="transient", intensity=3),
        recycle=Recycle(calls=1000, memory="512M"),
        health=Health(interval=None),
        start="exec",
        threads=2,
        initializer=add,
        initargs=[1, 2],
    )
    assert_type(pool, Pool)
    forkwire.open_pool("calc", sizes=4)  # type: ignore[call-arg]
    Restart(kind="always")  # type: ignore[arg-type]
    async with pool as entered:
        assert_type(entered, Pool)
        assert_type(entered.statistics(), PoolStatistics)
        assert_type(entered.options(retries=2, window=4), PoolCalls)


async def calling(pool: Pool) -> None:
    assert_type(await pool.call(add, 1, 2), int)
    assert_type(await pool.call("add", 1, 2), Any)
    assert_type(await pool.options(retries=1).call(describe, "x"), bytes)
    await pool.call(add, "1")  # type: ignore[call-overload]
    async for number in pool.stream(count, 3):
        assert_type(number, int)
    assert_type(await pool.broadcast(add, 1), list[int])
    assert_type(await pool.broadcast(describe, "x"), list[bytes])
    assert_type(await pool.broadcast("add", 1), list[Any])
    await pool.broadcast(add, "1")  # type: ignore[call-overload]
    assert_type(await pool.proxy(Adds).add(1, 2), int)
    async with pool.worker(fresh=True) as worker:
        assert_type(worker, LentWorker)
        assert_type(await worker.call(add, 1), int)


async def mapping(pool: Pool) -> None:
    assert_type(pool.map(add, [1, 3], [2, 4]), Results[int])
    assert_type(pool.map(add, rows(), ordered=False), Results[int])
    assert_type(pool.map(describe, ["a"]), Results[bytes])
    assert_type(pool.map(four, [1], [2], [3], [4]), Results[float])
    assert_type(pool.map("add", [1]), Results[Any])
    assert_type(pool.starmap(add, [(1, 2)], window=3), Results[int])
    assert_type(pool.starmap(describe, [("a",)]), Results[bytes])
    assert_type(pool.starmap("add", [(1, 2)]), Results[Any])
    async for number in pool.map(add, [1]):
        assert_type(number, int)
    async with pool.map(describe, ["a"]) as results:
        assert_type(await anext(results), bytes)
    async for _ in pool.map(count, [1]):  # type: ignore[attr-defined]
        pass


def blocking(pool: SyncPool) -> None:
    assert_type(sync.open_pool("calc", size=2), SyncPool)
    assert_type(pool.call(add, 1, 2), int)
    assert_type(pool.map(add, [1, 3], [2, 4]), SyncResults[int])
    assert_type(pool.map(describe, ["a"]), SyncResults[bytes])
    assert_type(pool.map("add", [1]), SyncResults[Any])
    assert_type(pool.starmap(add, [(1, 2)]), SyncResults[int])
    assert_type(list(pool.map(add, [1])), list[int])
    assert_type(pool.broadcast(describe, "x"), list[bytes])
    assert_type(pool.options(timeout=1, retries=2), SyncPoolCalls)
    with pool.worker() as worker:
        assert_type(worker, SyncLentWorker)
        assert_type(worker.call(add, 1), int)

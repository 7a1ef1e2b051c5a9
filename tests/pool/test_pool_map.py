"""Many calls at once over a pool: ``map`` and ``starmap``."""

from __future__ import annotations

import gc
import itertools
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import anyio
import pytest

from forkwire import MethodNotFoundError, UsageError, WorkerDied

from ..rpc.support_pains import nothing_left_behind
from .services import working
from .support_pools import LIMIT, pool_of, there, until

__all__ = ["nothing_left_behind"]

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("nothing_left_behind")]


class Source:
    """Counts what is taken of it."""

    def __init__(self) -> None:
        self.taken = 0
        self.closed = False

    def plain(self, end: int = 10**9) -> Iterator[int]:
        for number in range(end):
            self.taken += 1
            yield number

    async def later(self, end: int = 10**9) -> AsyncIterator[int]:
        try:
            for number in range(end):
                await anyio.lowlevel.checkpoint()
                self.taken += 1
                yield number
        finally:
            self.closed = True


async def test_results_come_in_order() -> None:
    """As with :meth:`concurrent.futures.Executor.map`, and it ends with the shortest iterable."""
    async with pool_of(size=3) as pool:
        results = [r async for r in pool.map("add", range(200), itertools.count(1000))]
        assert results == [1000 + 2 * n for n in range(200)]
        assert [r async for r in pool.map(working.add, [1, 3], [2, 4])] == [3, 7]
        assert [r async for r in pool.map("add", [1])] == [11]
        assert [r async for r in pool.map("add", [])] == []


async def test_calls_begin_in_the_order_of_the_rows(tmp_path: Path) -> None:
    """Also in a loop that runs its tasks in any order."""
    async with pool_of(size=1) as pool:
        rows = [(str(tmp_path / "order"), number) for number in range(20)]
        assert [r async for r in pool.starmap("note", rows, window=20)] == [*range(20)]
        order = (tmp_path / "order").read_text().split()
        assert order == [str(number) for number in range(20)]


async def test_results_as_they_come(tmp_path: Path) -> None:
    """With ``ordered=False`` a slow call holds up nobody."""
    begun, go = str(tmp_path / "begun"), tmp_path / "go"
    rows = [(begun, str(go)), (begun, begun), (begun, begun)]
    async with pool_of() as pool, pool.starmap("wait_for", rows, ordered=False) as results:
        await anext(results)
        await anext(results)
        go.touch()
        assert len([r async for r in results]) == 1


async def test_rows_may_be_async() -> None:
    """Plain and async iterables go together; an async one is closed at the end."""
    source = Source()
    async with pool_of() as pool:
        results = [r async for r in pool.map("add", source.later(50), range(100))]
        assert results == [2 * n for n in range(50)]
        assert source.closed
        rows = Source()

        async def pairs() -> AsyncIterator[tuple[int, int]]:
            async for number in rows.later(5):
                yield number, 1

        assert [r async for r in pool.starmap("add", pairs())] == [1, 2, 3, 4, 5]
        assert rows.closed


@pytest.mark.parametrize("ordered", [True, False])
async def test_rows_are_taken_as_results_are(ordered: bool) -> None:
    """No more than the window is read ahead, however long the iterable is."""
    source = Source()
    async with (
        pool_of() as pool,
        pool.map("add", source.plain(), ordered=ordered, window=5) as results,
    ):
        assert source.taken == 0
        for number in range(20):
            assert await anext(results) == number + 10 or not ordered
            assert source.taken <= number + 1 + 5
        await until(lambda: source.taken == 25)
        await until(lambda: pool.statistics().busy == 0)
        assert source.taken == 25


async def test_an_error_is_raised_in_its_place() -> None:
    """The results before it arrive; then what is in flight is stopped, and nothing is begun."""
    source = Source()
    async with pool_of() as pool:
        results = pool.map("fail_at", source.plain(), itertools.repeat(7), window=4)
        got = [await anext(results) for _ in range(7)]
        assert got == list(range(7))
        with pytest.raises(ValueError, match="7 is bad"):
            await anext(results)
        taken = source.taken
        with pytest.raises(StopAsyncIteration):
            await anext(results)
        assert await pool.call("add", 1) == 11
        assert source.taken == taken <= 12


@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt, SystemExit, GeneratorExit])
async def test_an_error_of_the_rows_comes_after_the_results(error: type[BaseException]) -> None:
    """What the iterable raises is raised once all that came before it was taken."""

    def rows() -> Iterator[int]:
        yield 1
        yield 2
        raise error("no more")

    for ordered in (True, False):
        async with pool_of() as pool:
            results = pool.map("add", rows(), ordered=ordered)
            assert {await anext(results), await anext(results)} == {11, 12}
            with pytest.raises(error, match="no more"):
                await anext(results)


async def test_leaving_the_block_stops_the_calls(tmp_path: Path) -> None:
    """They are interrupted when the block is left, and the iterable is closed."""
    source = Source()
    begun = [str(tmp_path / f"begun {n}") for n in range(2)]

    async def rows() -> AsyncIterator[tuple[str, str]]:
        async for number in source.later(2):
            yield begun[number], str(tmp_path / "never")
        async for _ in source.later():
            pass

    async with pool_of() as pool:
        with anyio.CancelScope() as scope:
            async with pool.starmap("wait_for", rows()) as results, anyio.create_task_group() as t:
                t.start_soon(anext, results)
                await there(*begun)
                scope.cancel()
        assert source.closed
        assert pool.statistics().busy == 0
        assert pool.statistics().deaths == 0


async def test_a_loop_left_early_stops_the_calls(tmp_path: Path) -> None:
    """Without the block too, once the iterator is collected."""
    source = Source()
    async with pool_of() as pool:
        async for _ in pool.map("add", source.later(), window=3):
            break
        gc.collect()
        await until(lambda: source.closed)
        await until(lambda: pool.statistics().busy == 0)


async def test_a_deadline_ends_it(tmp_path: Path) -> None:
    """The consumer's scope holds for the calls as well, which end before it goes on."""
    async with pool_of() as pool:
        paths = [str(tmp_path / name) for name in ("begun", "never")]
        with pytest.raises(TimeoutError), anyio.fail_after(0.2):
            async for _ in pool.starmap("wait_for", [paths] * 10):
                pass
        assert pool.statistics().busy == 0


async def test_a_deadline_for_one_result_holds_for_no_other(tmp_path: Path) -> None:
    """Calls that were begun meanwhile go on; without a result in time all of them are stopped."""
    go = tmp_path / "go"
    async with pool_of(size=2) as pool:
        results = pool.starmap("wait_for", [(str(tmp_path / "1"), str(tmp_path))] +
                               [(str(tmp_path / "2"), str(go))] * 3, window=4)  # fmt: skip
        with anyio.fail_after(1.0) as scope:
            await anext(results)
        await there(tmp_path / "2")
        await anyio.sleep_until(scope.deadline + 0.01)
        assert pool.statistics().busy == 2
        go.touch()
        assert len([r async for r in results]) == 3
        go.unlink()
        results = pool.starmap("wait_for", [(str(tmp_path / "2"), str(go))] * 3)
        with pytest.raises(TimeoutError), anyio.fail_after(0.1):
            await anext(results)
        assert pool.statistics().busy == 0
        assert [r async for r in results] == []


async def test_a_deadline_travels_with_each_call() -> None:
    """That of the block which all of a map is in; once that was left, of the next one."""
    async with pool_of() as pool:
        with anyio.fail_after(LIMIT / 2):
            results = pool.map("seconds_left", range(3), window=1)
            assert 0 < await anext(results) <= LIMIT / 2
        assert all([LIMIT / 2 < r <= LIMIT async for r in results])


async def test_a_death_is_raised_or_retried(tmp_path: Path) -> None:
    """``retries`` hold for these calls as for others."""
    async with pool_of() as pool:
        with pytest.raises(WorkerDied):
            async for _ in pool.map("die_once", [str(tmp_path / "one")]):
                pass
        again = pool.options(retries=1).map("die_once", [str(tmp_path / f"{n}") for n in range(3)])
        assert [r async for r in again] == ["alive"] * 3


async def test_they_wait_however_many_others_do() -> None:
    """A window larger than ``queue`` is no error."""
    async with pool_of(queue=0) as pool:
        results = [r async for r in pool.map("add", range(50), window=20)]
        assert results == [n + 10 for n in range(50)]


async def test_misuse_is_refused(tmp_path: Path) -> None:
    """At once, where that can be known."""
    async with pool_of() as pool:
        with pytest.raises(MethodNotFoundError):
            pool.map("nothing", [1])
        with pytest.raises(UsageError, match="window"):
            pool.map("add", [1], window=0)
        with pytest.raises(UsageError, match="iterable"):
            pool.map("add")
        begun, go = tmp_path / "begun", tmp_path / "go"
        results = pool.starmap("wait_for", [(str(begun), str(go))] * 3)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(anext, results)
            await there(begun)
            with pytest.raises(UsageError, match="another task"):
                await anext(results)
            go.touch()
        assert len([r async for r in results]) == 2

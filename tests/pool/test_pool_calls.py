"""Calls to a pool: who runs them, who waits, and what a death takes along."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anyio
import pytest

import forkwire.sync
from forkwire import (
    InvalidArgumentsError,
    MethodNotFoundError,
    PoisonCallError,
    RemoteError,
    TooManyCallsError,
    UsageError,
    WorkerClosedError,
    WorkerDied,
    WrongKindError,
    open_pool,
)

from ..rpc.support_pains import nothing_left_behind
from .services import working
from .support_pools import kill, pids_of, pool_of, there, until

__all__ = ["nothing_left_behind"]

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("nothing_left_behind")]


async def test_calls_by_name_and_by_function() -> None:
    """A pool is called as a worker is, and errors arrive as they are."""
    async with pool_of() as pool:
        assert await pool.call("add", 1, 2) == 3
        assert await pool.call(working.add, 1, b=5) == 6
        with pytest.raises(ValueError, match="bad") as caught:
            await pool.call("fail", "bad")
        assert isinstance(caught.value, RemoteError)
        with pytest.raises(MethodNotFoundError):
            await pool.call("nothing_of_that_name")
        with pytest.raises(InvalidArgumentsError):
            await pool.call("add", 1, "two")
        with pytest.raises(WrongKindError):
            await pool.call("count", 1)


async def test_as_many_calls_run_at_a_time_as_there_are_workers(tmp_path: Path) -> None:
    """Plain functions run one at a time in each worker; the third call waits."""
    go = tmp_path / "go"
    begun = [tmp_path / f"begun {number}" for number in range(3)]
    pids: list[int] = []

    async with pool_of() as pool, anyio.create_task_group() as tasks:

        async def one(path: Path) -> None:
            pids.append(await pool.call("wait_for", str(path), str(go)))

        for path in begun:
            tasks.start_soon(one, path)
        await until(lambda: sum(path.exists() for path in begun) == 2)
        await until(lambda: pool.statistics().queued == 1)
        statistics = pool.statistics()
        assert (statistics.size, statistics.ready, statistics.busy) == (2, 2, 2)
        assert sum(path.exists() for path in begun) == 2
        go.touch()
    assert len(pids) == 3
    assert len(set(pids)) == 2


async def test_the_least_busy_worker_is_next(tmp_path: Path) -> None:
    """While one worker is busy, the other runs what comes."""
    async with pool_of() as pool, anyio.create_task_group() as tasks:
        tasks.start_soon(pool.call, "wait_for", str(tmp_path / "begun"), str(tmp_path / "go"))
        await there(tmp_path / "begun")
        assert len({await pool.call("pid") for _ in range(5)}) == 1
        (tmp_path / "go").touch()


async def test_async_functions_share_a_worker(tmp_path: Path) -> None:
    """Many calls of async functions run at a time in one worker."""
    begun = [tmp_path / f"begun {number}" for number in range(5)]
    async with pool_of(working.Later, size=1) as pool, anyio.create_task_group() as tasks:
        for path in begun:
            tasks.start_soon(pool.call, "wait_for", str(path), str(tmp_path / "go"))
        await there(*begun)
        (tmp_path / "go").touch()


async def test_concurrency_is_what_one_worker_runs(tmp_path: Path) -> None:
    """With ``concurrency=2`` the third call waits."""
    begun = [tmp_path / f"begun {number}" for number in range(3)]
    async with (
        pool_of(working.Later, size=1, concurrency=2) as pool,
        anyio.create_task_group() as tasks,
    ):
        for path in begun:
            tasks.start_soon(pool.call, "wait_for", str(path), str(tmp_path / "go"))
        await until(lambda: sum(path.exists() for path in begun) == 2)
        await until(lambda: pool.statistics().queued == 1)
        assert sum(path.exists() for path in begun) == 2
        (tmp_path / "go").touch()


async def test_a_full_queue_refuses(tmp_path: Path) -> None:
    """With ``queue=1`` the second call that would wait is refused, and the others go on."""
    go = tmp_path / "go"
    async with pool_of(size=1, queue=1) as pool, anyio.create_task_group() as tasks:
        tasks.start_soon(pool.call, "wait_for", str(tmp_path / "begun"), str(go))
        await there(tmp_path / "begun")
        tasks.start_soon(pool.call, "add", 1)
        await until(lambda: pool.statistics().queued == 1)
        with pytest.raises(TooManyCallsError, match="1 calls wait"):
            await pool.call("add", 1)
        assert pool.statistics().refused == 1
        go.touch()


async def test_a_call_that_waits_can_be_cancelled(tmp_path: Path) -> None:
    """A deadline counts in the queue too; the call is never run, and its place is another's."""
    go = tmp_path / "go"
    async with pool_of(size=1) as pool, anyio.create_task_group() as tasks:
        tasks.start_soon(pool.call, "wait_for", str(tmp_path / "begun"), str(go))
        await there(tmp_path / "begun")
        with pytest.raises(TimeoutError), anyio.fail_after(0.05):
            await pool.call("set_value", 7)
        assert pool.statistics().queued == 0
        go.touch()
        assert await pool.call("value") == 0


async def test_a_cancelled_call_stops_its_function(tmp_path: Path) -> None:
    """The function is interrupted, and its worker kept."""
    async with pool_of(size=1) as pool:
        pid = await pool.call("pid")
        with anyio.move_on_after(0.2) as scope:
            await pool.call("wait_for", str(tmp_path / "begun"), str(tmp_path / "never"))
        assert scope.cancelled_caught
        assert await pool.call("pid") == pid
        assert pool.statistics().deaths == 0


async def test_what_cannot_be_stopped_is_killed_and_replaced(tmp_path: Path) -> None:
    """A call stuck in C is killed with its worker after the grace; that counts as no fault."""
    async with pool_of(size=1, grace=0.2) as pool:
        pid = await pool.call("pid")
        with anyio.CancelScope() as scope:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(pool.call, "stuck", str(tmp_path / "begun"))
                await there(tmp_path / "begun")
                scope.cancel()
        assert await pool.call("pid") != pid
        statistics = pool.statistics()
        assert (statistics.deaths, statistics.restarts) == (0, 0)


async def test_a_death_fails_only_its_own_calls(tmp_path: Path) -> None:
    """The other worker's call ends well, and those that waited run."""
    go = tmp_path / "go"
    results: list[Any] = []

    async def one(pool: forkwire.Pool, *call: Any) -> None:
        try:
            results.append(await pool.call(*call))
        except WorkerDied as error:
            results.append(error)

    async with pool_of() as pool, anyio.create_task_group() as tasks:
        tasks.start_soon(one, pool, "wait_for", str(tmp_path / "begun"), str(go))
        await there(tmp_path / "begun")
        tasks.start_soon(one, pool, "die")
        for number in range(5):
            tasks.start_soon(one, pool, "add", number)
        await until(lambda: len(results) == 6)
        go.touch()
    died = [result for result in results if isinstance(result, WorkerDied)]
    assert len(died) == 1
    assert died[0].signal_name == "SIGKILL"
    assert died[0].in_flight == (f"die (call {died[0].in_flight[0].split()[-1][:-1]})",)
    assert sum(isinstance(result, int) for result in results) == 6


async def test_dead_workers_are_replaced() -> None:
    """Each one that is killed from outside has a successor."""
    async with pool_of() as pool:
        before = pids_of(pool)
        for pid in before:
            kill(pid)
        await until(lambda: len(pids_of(pool) - before) == 2)
        assert await pool.call("pid") not in before
        assert pool.statistics().deaths == 2
        assert pool.statistics().restarts == 2


async def test_retries_are_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """With ``retries=`` a call whose worker died is made again; that is logged and counted."""
    async with pool_of() as pool:
        with caplog.at_level(logging.WARNING, "forkwire"):
            again = pool.options(retries=1)
            assert await again.call("die_once", str(tmp_path / "once")) == "alive"
        assert pool.statistics().retries == 1
    assert "die_once is called again (retry 1 of 1)" in caplog.text


async def test_without_retries_nothing_is_called_twice(tmp_path: Path) -> None:
    """Only the caller knows what may run twice."""
    async with pool_of() as pool:
        with pytest.raises(WorkerDied):
            await pool.call("die_once", str(tmp_path / "once"))
        assert pool.statistics().retries == 0


async def test_retries_end() -> None:
    """The last error says that there were others."""
    async with pool_of() as pool:
        with pytest.raises(WorkerDied) as caught:
            await pool.options(retries=1).call("die")
        assert any("it was called 2 times" in note for note in caught.value.__notes__)


async def test_streamed_arguments_are_not_repeated() -> None:
    """They are used up: such a call is made once, whatever ``retries`` says."""

    def rows() -> Iterator[int]:
        yield 1

    async with pool_of() as pool:
        with pytest.raises(WorkerDied):
            await pool.options(retries=3).call("die_of", rows())
        assert pool.statistics().retries == 0


async def test_poison_is_refused() -> None:
    """A call of which ``poison`` workers died is not run; one with other arguments is."""
    async with pool_of(poison=2) as pool:
        for _ in range(2):
            with pytest.raises(WorkerDied):
                await pool.call("die")
        with pytest.raises(PoisonCallError) as caught:
            await pool.call("die")
        assert caught.value.deaths == 2
        assert isinstance(caught.value.__cause__, WorkerDied)
        with pytest.raises(PoisonCallError):
            await pool.notify("die")
        assert pool.statistics().refused == 2
        with pytest.raises(WorkerDied):
            await pool.call("die", 6)
        assert await pool.call("add", 1) == 11


async def test_retries_end_where_poison_begins() -> None:
    """A call that is repeated until it is poison is refused, with the last death as the cause."""
    async with pool_of(poison=2) as pool:
        with pytest.raises(PoisonCallError) as caught:
            await pool.options(retries=9).call("die")
        assert isinstance(caught.value.__cause__, WorkerDied)
        assert pool.statistics().deaths == 2


async def test_who_was_merely_there_is_cleared(tmp_path: Path) -> None:
    """A call that was in flight at a death is no suspect any more once it succeeded."""
    go = tmp_path / "go"

    async with pool_of(working.Later, size=1, poison=2) as pool:

        async def innocent(number: int) -> None:
            begun = tmp_path / "begun"
            begun.unlink(missing_ok=True)
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(fails, pool, str(begun), str(go))
                await there(begun)
                with pytest.raises(WorkerDied):
                    await pool.call("die", number)

        call = ("wait_for", str(tmp_path / "begun"), str(go))
        await innocent(9)
        go.touch()
        await pool.call(*call)
        go.unlink()
        await innocent(6)
        go.touch()
        assert await pool.call(*call) > 0


async def test_only_who_was_alone_with_a_dead_worker_is_refused(tmp_path: Path) -> None:
    """Of two calls in flight at a death both run alone from then on, which shows which it was."""
    go, begun = tmp_path / "go", tmp_path / "begun"
    async with pool_of(working.Later, size=1, poison=1) as pool:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(fails, pool, str(begun), str(go))
            await there(begun)
            with pytest.raises(WorkerDied):
                await pool.call("die")
        begun.unlink()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(pool.call, "wait_for", str(begun), str(go))
            await there(begun)
            tasks.start_soon(dies, pool)
            await until(lambda: pool.statistics().queued)
            go.touch()
        with pytest.raises(PoisonCallError):
            await pool.call("die")
        assert await pool.call("wait_for", str(begun), str(go)) > 0
        assert (pool.statistics().deaths, pool.statistics().queued) == (2, 0)


async def dies(pool: forkwire.Pool) -> None:
    with pytest.raises(WorkerDied):
        await pool.call("die")


async def fails(pool: forkwire.Pool, *paths: str) -> None:
    with pytest.raises(WorkerDied):
        await pool.call("wait_for", *paths)


async def test_streams_and_notifications(tmp_path: Path) -> None:
    """They go to a worker as calls do; a stream gets its own when it is first iterated."""
    async with pool_of() as pool:
        assert [n async for n in pool.stream("count", 100)] == list(range(100))
        assert [n async for n in pool.stream(working.count, 3)] == [0, 1, 2]
        unused = pool.stream("count", 1)
        assert pool.statistics().busy == 0
        await unused.aclose()
        (tmp_path / "go").touch()
        await pool.notify("wait_for", str(tmp_path / "begun"), str(tmp_path / "go"))
        await there(tmp_path / "begun")
        await until(lambda: pool.statistics().busy == 0)


async def test_a_stream_has_one_worker_until_it_ends(tmp_path: Path) -> None:
    """It counts as busy as long as the generator runs; closed early it is free again."""
    closed = tmp_path / "closed"
    async with pool_of(size=1) as pool:
        async with pool.stream("endless", str(closed)) as items:
            assert [await anext(items) for _ in range(3)] == [0, 1, 2]
            assert pool.statistics().busy == 1
        assert closed.exists()
        assert pool.statistics().busy == 0
        assert await pool.call("add", 1) == 11


async def test_a_stream_that_is_dropped_gives_its_worker_back(tmp_path: Path) -> None:
    """Also where nobody closes it."""
    async with pool_of(size=1) as pool:
        async for _ in pool.stream("endless", str(tmp_path / "closed")):
            break
        await there(tmp_path / "closed")
        assert await pool.call("add", 1) == 11


async def test_a_stream_fails_with_its_worker() -> None:
    """The items before the death arrive, then it is raised."""
    async with pool_of(size=1) as pool:
        async with pool.stream("die_at", 3) as items:
            assert await anext(items) == 0
            with pytest.raises(WorkerDied):
                await collect(items)
        assert await pool.call("add", 1) == 11


async def collect(items: Any) -> list[Any]:
    return [item async for item in items]


async def test_progress_and_proxies() -> None:
    """Options and typed stubs work as with one worker."""
    told: list[float] = []

    class Adds:
        async def add(self, a: int, b: int = 10) -> int:
            raise NotImplementedError

    async with pool_of() as pool:
        show = pool.options(on_progress=lambda done, total, text: told.append(done))
        assert await show.call("progressing", 3) == 3
        assert await pool.proxy(Adds).add(1, 2) == 3
    assert told == [0, 1, 2]


class Host:
    """Calls the pool again, for the handler that calls it."""

    def __init__(self) -> None:
        self.pool: forkwire.Pool | None = None

    async def again(self, a: int, b: int) -> int:
        assert self.pool is not None
        result: int = await self.pool.call("add", a, b)
        return result


async def test_a_handler_may_call_its_own_pool() -> None:
    """All workers wait for calls to the very pool, and none is stuck: such calls run inside."""
    host = Host()
    async with pool_of(host=host) as pool:
        host.pool = pool
        results: list[int] = []

        async def one(number: int) -> None:
            results.append(await pool.call("ask", "again", number, 1))

        async with anyio.create_task_group() as tasks:
            for number in range(6):
                tasks.start_soon(one, number)
    assert sorted(results) == [1, 2, 3, 4, 5, 6]


async def test_statistics() -> None:
    """Calls, errors and times are counted, for each method too."""
    async with pool_of() as pool:
        for number in range(4):
            await pool.call("add", number)
        with pytest.raises(ValueError, match="no"):
            await pool.call("fail", "no")
        statistics = pool.statistics()
        assert (statistics.calls, statistics.errors) == (5, 1)
        assert statistics.methods["add"].calls == 4
        assert statistics.methods["fail"].errors == 1
        assert statistics.latency.count == statistics.wait.count == 5
        assert 0 < statistics.latency.quantile(0.5) <= statistics.latency.max < math.inf
        assert sum(each.calls for each in statistics.workers.values()) == 5


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({"size": 0}, UsageError, "above 0, .*, not 0$"),
        ({"size": (3, 2)}, UsageError, r"not \(3, 2\)$"),
        ({"size": (1, 2, 3)}, UsageError, r"not \(1, 2, 3\)$"),
        ({"restart": 3}, UsageError, r"restart is a Restart\(...\), not 3"),
        ({"recycle": "512M"}, UsageError, "recycle is a Recycle"),
        ({"health": None}, UsageError, "health is a Health"),
        ({"treads": 3}, TypeError, r"open_pool\(\) got an unexpected keyword argument 'treads'"),
    ],
)
def test_what_can_never_work_is_refused(
    options: dict[str, Any], error: type[Exception], text: str
) -> None:
    """When the pool is made, by name."""
    for opens in (open_pool, forkwire.sync.open_pool):
        with pytest.raises(error, match=text):
            opens(working, **options)


async def test_misuse_is_refused() -> None:
    """Before anything is started."""
    wrong: list[dict[str, Any]] = [
        {"size": 0},
        {"size": (3, 2)},
        {"size": "4"},
        {"spares": -1},
        {"concurrency": 0},
        {"queue": -1},
        {"poison": 0},
        {"idle": 0},
        {"grace": -1},
    ]
    for options in wrong:
        with pytest.raises(UsageError):
            open_pool(working, **options)
    with pytest.raises(UsageError):
        open_pool()
    pool = open_pool(working, size=1)
    with pytest.raises(UsageError, match="not open"):
        await pool.call("add", 1)
    async with pool:
        with pytest.raises(UsageError, match="once"):
            await pool.__aenter__()
        with pytest.raises(UsageError, match="retries"):
            pool.options(retries=-1)
    with pytest.raises(WorkerClosedError):
        await pool.call("add", 1)

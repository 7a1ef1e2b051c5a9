"""All workers of a pool, and one alone: ``broadcast`` and ``worker``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import anyio
import pytest

from forkwire import (
    LentWorker,
    Pool,
    UsageError,
    WorkerClosedError,
    WorkerDied,
    WrongKindError,
)

from ..rpc.support_pains import nothing_left_behind
from .services import working
from .support_pools import kill, pids_of, pool_of, there, until

__all__ = ["nothing_left_behind"]

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("nothing_left_behind")]


# -- all --------------------------------------------------------------------------------------


async def test_broadcast_reaches_every_worker() -> None:
    """Each runs it once; the results come in the order in which the workers were started."""
    async with pool_of(size=3) as pool:
        pids = await pool.broadcast("set_value", 7)
        assert set(pids) == pids_of(pool)
        assert pids == [each.pid for _, each in sorted(pool.statistics().workers.items())]
        assert await pool.broadcast(working.value) == [7, 7, 7]


async def test_broadcast_reaches_those_that_are_busy(tmp_path: Path) -> None:
    """It runs after what the worker runs now, and waits for that."""
    async with pool_of(size=1) as pool, anyio.create_task_group() as tasks:
        tasks.start_soon(pool.call, "wait_for", str(tmp_path / "begun"), str(tmp_path / "go"))
        await there(tmp_path / "begun")
        done = anyio.Event()

        async def all_of_them() -> None:
            assert len(await pool.broadcast("set_value", 1)) == 1
            done.set()

        tasks.start_soon(all_of_them)
        await anyio.wait_all_tasks_blocked()
        assert not done.is_set()
        (tmp_path / "go").touch()
        await done.wait()


async def test_broadcast_tells_of_all_failures() -> None:
    """Where some fail, the others end, and then a group with each error is raised."""
    async with pool_of(size=3) as pool:
        pids = await pool.broadcast("pid")
        with pytest.raises(ExceptionGroup, match="fail_where failed in 2 of 3 workers") as caught:
            await pool.broadcast("fail_where", pids[:2])
        assert [type(error).__mro__[1:3] for error in caught.value.exceptions]
        assert all(isinstance(error, ValueError) for error in caught.value.exceptions)
        with pytest.raises(ExceptionGroup) as deaths:
            await pool.broadcast("die")
        assert all(isinstance(error, WorkerDied) for error in deaths.value.exceptions)
        assert len(deaths.value.exceptions) == 3


async def test_broadcast_refuses_what_cannot_be() -> None:
    """Generators are not called, and a streamed argument could go to one worker only."""
    async with pool_of() as pool:
        with pytest.raises(WrongKindError):
            await pool.broadcast("count", 1)
        with pytest.raises(UsageError, match="streamed"):
            await pool.broadcast("echo", iter([1]))


# -- one --------------------------------------------------------------------------------------


async def test_a_lent_worker_is_one_and_alone(tmp_path: Path) -> None:
    """All that the block calls goes to one worker; other calls go to the others."""
    async with pool_of() as pool, pool.worker() as worker:
        assert isinstance(worker, LentWorker)
        assert {await worker.call("pid") for _ in range(5)} == {worker.pid}
        assert await worker.call(working.set_value, 5) == worker.pid
        assert await worker.call(working.value) == 5
        assert [n async for n in worker.stream("pids", 2)] == [worker.pid] * 2
        await worker.notify("wait_for", str(tmp_path / "begun"), str(tmp_path))
        assert {await pool.call("pid") for _ in range(5)} == pids_of(pool) - {worker.pid}
        assert worker.statistics().pid == worker.pid
        assert pool.statistics().busy == 1


async def test_a_lease_waits_for_an_idle_worker(tmp_path: Path) -> None:
    """Async workers too are lent only when nothing is in flight on them."""
    async with pool_of(working.Later, size=1) as pool, anyio.create_task_group() as tasks:
        order: list[str] = []

        async def lend() -> None:
            async with pool.worker() as worker:
                order.append("lent")
                assert pool.statistics().workers[1].in_flight == 0
                await worker.call("pid")
            order.append("given back")

        async def call() -> None:
            await pool.call("pid")
            order.append("called")

        tasks.start_soon(pool.call, "wait_for", str(tmp_path / "begun"), str(tmp_path / "go"))
        await there(tmp_path / "begun")
        tasks.start_soon(lend)
        await until(lambda: pool.statistics().queued == 1)
        tasks.start_soon(call)
        await until(lambda: pool.statistics().queued == 2)
        (tmp_path / "go").touch()
        await until(lambda: len(order) == 3)
    assert order.index("lent") < order.index("called")


async def test_after_the_block_it_is_not_to_be_had() -> None:
    """The handle is of no use any more, nor a stream that was made with it."""
    async with pool_of(size=1) as pool:
        async with pool.worker() as worker:
            unused = worker.stream("count", 1)
        with pytest.raises(UsageError, match="given back"):
            await worker.call("pid")
        with pytest.raises(UsageError, match="given back"):
            await anext(unused)
        with pytest.raises(UsageError, match="given back"):
            worker.kill()
        assert "given back" in repr(worker)
        assert await pool.call("pid") == worker.pid


async def test_what_is_in_flight_at_the_end_of_the_block_is_stopped(tmp_path: Path) -> None:
    """A stream that was left open ends before the next one has the worker."""
    closed = tmp_path / "closed"
    async with pool_of(size=1) as pool:
        async with pool.worker() as worker:
            items = worker.stream("endless", str(closed))
            assert await anext(items) == 0
        assert closed.exists()
        assert await pool.call("pid") == worker.pid
        await items.aclose()


async def test_fresh_leaves_nothing_behind() -> None:
    """With ``fresh=True`` the worker is replaced after the block."""
    async with pool_of(size=1) as pool:
        async with pool.worker(fresh=True) as worker:
            await worker.call("set_value", 9)
        assert await pool.call("value") == 0
        assert await pool.call("pid") != worker.pid
        assert pool.statistics().recycled == 1
        assert pool.statistics().deaths == 0


async def test_a_lent_worker_that_dies() -> None:
    """Its calls raise how it died, those after it too, and the pool replaces it."""
    async with pool_of(size=1) as pool:
        async with pool.worker() as worker:
            with pytest.raises(WorkerDied):
                await worker.call("die")
            with pytest.raises(WorkerDied):
                await worker.call("pid")
            assert worker.died is not None
            await until(lambda: pids_of(pool) - {worker.pid})
        assert await pool.call("pid") != worker.pid


async def test_an_exception_in_the_block_leaves_as_it_is() -> None:
    """Not in a group; the worker is given back."""
    async with pool_of(size=1) as pool:
        with pytest.raises(KeyError):
            async with pool.worker():
                raise KeyError("mine")
        assert pool.statistics().busy == 0
        assert await pool.call("add", 1) == 11


async def test_a_lease_stops_what_it_called_and_nothing_else(tmp_path: Path) -> None:
    """A broadcast that reached the lent worker goes on there when the block is left."""
    go, ours, theirs = tmp_path / "go", tmp_path / "ours", tmp_path / "theirs"
    found: list[list[int]] = []

    async def broadcast() -> None:
        found.append(await pool.broadcast("wait_for", str(theirs), str(go)))

    async with pool_of(working.Later, size=1) as pool, anyio.create_task_group() as tasks:
        async with pool.worker() as worker, anyio.create_task_group() as inner:
            inner.start_soon(worker.call, "wait_for", str(ours), str(go))
            tasks.start_soon(broadcast)
            await there(ours, theirs)
            inner.cancel_scope.cancel()
        assert not found
        assert pool.statistics().busy == 1
        go.touch()
        await until(lambda: found)
        assert found == [[worker.pid]]


async def test_waiting_for_a_lease_can_be_cancelled() -> None:
    """And a worker that comes at that moment is given back."""
    async with pool_of(size=1) as pool:
        async with pool.worker():
            with anyio.move_on_after(0.05) as scope:
                await pool.worker().__aenter__()
            assert scope.cancelled_caught
        for _ in range(20):
            await cancelled_as_it_comes(pool)
        assert await pool.call("add", 1) == 11
        assert pool.statistics().busy == 0


async def borrow(pool: Pool) -> None:
    async with pool.worker():
        pass


async def cancelled_as_it_comes(pool: Pool) -> None:
    async with anyio.create_task_group() as tasks:
        lease = pool.worker()
        await lease.__aenter__()
        tasks.start_soon(borrow, pool)
        await until(lambda: pool.statistics().queued == 1)
        await lease.__aexit__(None, None, None)
        tasks.cancel_scope.cancel()


async def test_options_hold_for_a_lent_worker() -> None:
    """Those of the pool's view, and further ones."""
    told: list[float] = []

    def show(done: float, total: float | None, text: str) -> None:
        told.append(done)

    async with pool_of() as pool:
        async with pool.options(on_progress=show).worker() as worker:
            await worker.call("progressing", 2)
        async with pool.worker() as worker:
            await worker.options(on_progress=show).call("progressing", 1)
    assert told == [0, 1, 0]


async def test_a_pool_that_is_closed_closes_what_is_lent(tmp_path: Path) -> None:
    """The block's calls raise that."""
    async with pool_of(size=1) as pool:
        results: list[Any] = []

        async def lend() -> None:
            async with pool.worker() as worker:
                try:
                    await worker.call("wait_for", str(tmp_path / "begun"), str(tmp_path / "never"))
                except WorkerClosedError as error:
                    results.append(error)

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(lend)
            await there(tmp_path / "begun")
            await pool.aclose()
    assert len(results) == 1


async def test_a_killed_worker_is_replaced_while_it_is_lent() -> None:
    """Killed from outside, in the midst of a block that calls nothing."""
    async with pool_of(size=1) as pool:
        async with pool.worker() as worker:
            kill(worker.pid)
            await until(lambda: pids_of(pool) - {worker.pid})
        assert await pool.call("pid") != worker.pid

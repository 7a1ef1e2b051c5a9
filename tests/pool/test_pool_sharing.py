"""Which calls may share a worker, who waits for whom, and who is not held up by whom."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import anyio
import anyio.abc
import pytest

from forkwire import Pool, Recycle
from forkwire.pool import line

from ..rpc.support_pains import nothing_left_behind
from .services import working
from .support_pools import LIMIT, pids_of, pool_of, there, until

__all__ = ["nothing_left_behind"]

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("nothing_left_behind")]


class Held:
    """Calls that run until they are let go."""

    def __init__(self, pool: Pool, tasks: anyio.abc.TaskGroup, folder: Path) -> None:
        self.pids: list[int] = []
        self._pool = pool
        self._tasks = tasks
        self._folder = folder
        self._count = 0

    async def begin(self, method: str) -> None:
        """Make one, and wait until it runs."""
        begun = self.ask(method)
        await there(begun)

    def ask(self, method: str) -> Path:
        """Make one, which may wait; what is there once it runs."""
        self._count += 1
        begun = self._folder / f"{method}{self._count}"
        self._tasks.start_soon(self._call, method, begun)
        return begun

    async def _call(self, method: str, begun: Path) -> None:
        self.pids.append(await self._pool.call(method, str(begun), str(self._folder / "go")))

    def let_go(self) -> None:
        (self._folder / "go").touch()


async def test_plain_functions_go_to_workers_that_run_none(tmp_path: Path) -> None:
    """They would only wait for each other in one, however few calls it has; so they wait here."""
    async with pool_of(working.Both, size=2) as pool, anyio.create_task_group() as tasks:
        held = Held(pool, tasks, tmp_path)
        await held.begin("hold")
        for _ in range(3):
            await held.begin("wait_for")
        assert {await pool.call("pid") for _ in range(4)} <= pids_of(pool)
        await held.begin("hold")
        third = held.ask("hold")
        await until(lambda: pool.statistics().queued == 1)
        assert await pool.call("add", 1) == 11, "async ones do not wait behind it"
        assert not third.exists()
        held.let_go()
        await there(third)
    assert pool.statistics().queued == 0


async def test_threads_are_for_so_many_plain_functions(tmp_path: Path) -> None:
    """Beside async ones, each worker runs as many as it has threads."""
    async with (
        pool_of(working.Both, size=1, threads=2) as pool,
        anyio.create_task_group() as tasks,
    ):
        held = Held(pool, tasks, tmp_path)
        for _ in range(2):
            await held.begin("hold")
        held.ask("hold")
        await until(lambda: pool.statistics().queued == 1)
        held.let_go()


async def test_a_lease_holds_up_no_calls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """While it waits for a worker that does nothing, the others go on: one gets no more calls."""
    monkeypatch.setattr(line, "PATIENCE", LIMIT)
    async with pool_of(working.Both, size=2) as pool, anyio.create_task_group() as tasks:
        held = Held(pool, tasks, tmp_path)
        await held.begin("wait_for")
        await held.begin("wait_for")
        lent: list[int] = []

        async def lend() -> None:
            async with pool.worker() as worker:
                lent.append(worker.pid)

        tasks.start_soon(lend)
        await until(lambda: pool.statistics().queued == 1)
        pids = {await pool.call("pid") for _ in range(5)}
        assert len(pids) == 1
        assert not lent
        held.let_go()
        await until(lambda: lent)


async def test_a_lease_has_its_turn_though_calls_never_cease(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """On the worker that is kept for it a stream never ends: after a while another is kept too."""
    monkeypatch.setattr(line, "PATIENCE", 0.1)
    async with pool_of(working.Both, size=2) as pool, anyio.create_task_group() as tasks:
        stream = pool.stream("endless")
        async with stream:
            subscribed = await anext(stream)
            over = False

            async def call_on() -> None:
                while not over:
                    await pool.call("pid")

            for _ in range(4):
                tasks.start_soon(call_on)
            async with pool.worker() as worker:
                assert worker.pid != subscribed
            over = True


async def test_the_pool_grows_for_a_lease(tmp_path: Path) -> None:
    """Though its workers have room for more calls."""
    async with pool_of(working.Both, size=(1, 2)) as pool, anyio.create_task_group() as tasks:
        held = Held(pool, tasks, tmp_path)
        await held.begin("wait_for")
        async with pool.worker() as worker:
            assert worker.pid in pids_of(pool)
            held.let_go()
        await until(lambda: held.pids)
        assert held.pids != [worker.pid]


async def test_a_lease_that_is_given_up_keeps_no_worker(tmp_path: Path) -> None:
    """What waited behind it goes on at once."""
    async with pool_of(working.Both, size=1) as pool, anyio.create_task_group() as tasks:
        held = Held(pool, tasks, tmp_path)
        await held.begin("wait_for")
        found: list[Any] = []

        async def call() -> None:
            found.append(await pool.call("pid"))

        with anyio.CancelScope() as scope:
            async with anyio.create_task_group() as inner:
                inner.start_soon(pool.worker().__aenter__)
                await until(lambda: pool.statistics().queued == 1)
                tasks.start_soon(call)
                await until(lambda: pool.statistics().queued == 2)
                assert not found
                scope.cancel()
        await until(lambda: found)
        held.let_go()


async def test_a_stream_does_not_hold_up_the_successor_of_its_worker() -> None:
    """It goes on in the old one, as long as it takes; other calls go to the new one."""
    recycle = Recycle(calls=3)
    async with pool_of(working.Both, size=1, recycle=recycle) as pool:
        async with pool.stream("endless") as stream:
            old = await anext(stream)
            pids = [await pool.call("pid") for _ in range(8)]
            assert pids[0] == old
            assert pids[-1] != old
            assert await anext(stream) == old
        assert pool.statistics().deaths == 0
        await until(lambda: old not in pids_of(pool))

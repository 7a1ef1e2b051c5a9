"""The workers of a pool: how many there are, what replaces them, and how a pool ends."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any, NoReturn

import anyio
import pytest

from forkwire import (
    Health,
    Pool,
    PoolBrokenError,
    Recycle,
    Restart,
    UsageError,
    WorkerClosedError,
    WorkerDied,
    open_pool,
)

from ..rpc.support_pains import (
    BACKENDS,
    is_running,
    nothing_left_behind,
    outcome,
    script,
    until_true,
)
from .services import working
from .support_pools import LIMIT, kill, pids_of, pool_of, there, until

__all__ = ["nothing_left_behind"]

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("nothing_left_behind")]


# -- opening ----------------------------------------------------------------------------------


async def test_all_are_ready_when_it_is_open() -> None:
    """And each has run its initializer."""
    async with pool_of(size=3, initializer=working.set_value, initargs=[4]) as pool:
        assert pool.statistics().ready == 3
        assert await pool.broadcast("value") == [4, 4, 4]
        assert repr(pool).endswith(".working open, 3 workers>")


async def test_what_an_initializer_raises_is_raised() -> None:
    """By the entry of the block, once, and nothing is started again."""
    pool = open_pool(working, size=3, initializer=working.fail, initargs=["not today"])
    with anyio.fail_after(LIMIT), pytest.raises(ValueError, match="not today"):
        await pool.__aenter__()
    assert pool.statistics().restarts == 0
    with pytest.raises(PoolBrokenError):
        await pool.call("add", 1)


async def test_opening_can_be_cancelled() -> None:
    """Nothing is left of workers that were about to start."""
    with anyio.move_on_after(0.1) as scope:
        async with open_pool(working, size=2, initializer=working.die, initargs=[signal.SIGSTOP]):
            pytest.fail("they stand still")
    assert scope.cancelled_caught


async def test_workers_on_demand() -> None:
    """With ``size=(0, 2)`` none is started before a call waits."""
    async with pool_of(size=(0, 2)) as pool:
        assert pool.statistics().size == 0
        assert await pool.call("add", 1) == 11
        assert pool.statistics().size == 1


async def test_on_demand_a_worker_that_cannot_start_breaks_the_pool() -> None:
    """The call that waited for it gets the reason."""
    async with pool_of(size=(0, 2), initializer=working.fail, initargs=["not today"]) as pool:
        with pytest.raises(PoolBrokenError, match="not today") as caught:
            await pool.call("add", 1)
        assert isinstance(caught.value.__cause__, ValueError)
        with pytest.raises(PoolBrokenError):
            await pool.call("add", 1)


# -- how many ---------------------------------------------------------------------------------


async def busy(pool: Pool, tasks: Any, folder: Path, count: int) -> Path:
    """Have so many calls run, until the file that is answered is there."""
    go = folder / f"go {count}"
    begun = [folder / f"begun {count} {number}" for number in range(count)]
    for path in begun:
        tasks.start_soon(pool.call, "wait_for", str(path), str(go))
    await there(*begun)
    return go


async def test_it_grows_while_calls_wait_and_shrinks_when_idle(tmp_path: Path) -> None:
    """Up to ``most``, and back to ``least`` after ``idle`` seconds."""
    async with pool_of(size=(1, 3), idle=0.2) as pool:
        async with anyio.create_task_group() as tasks:
            go = await busy(pool, tasks, tmp_path, 3)
            assert pool.statistics().size == 3
            go.touch()
        await until(lambda: pool.statistics().size == 1)
        await until(lambda: len(pids_of(pool)) == 1)
        assert pool.statistics().deaths == 0


async def test_spares_are_kept_ready(tmp_path: Path) -> None:
    """One more than are busy, up to ``most``."""
    async with pool_of(size=(1, 3), spares=1) as pool, anyio.create_task_group() as tasks:
        go = await busy(pool, tasks, tmp_path, 1)
        await until(lambda: pool.statistics().ready == 2)
        other = await busy(pool, tasks, tmp_path, 2)
        await until(lambda: pool.statistics().ready == 3)
        go.touch()
        other.touch()


async def test_resize(tmp_path: Path) -> None:
    """More are ready when it returns; those that are too many end when their calls have."""
    async with pool_of(size=1) as pool, anyio.create_task_group() as tasks:
        await pool.resize(3)
        assert pool.statistics().ready == 3
        go = await busy(pool, tasks, tmp_path, 3)
        await pool.resize(1)
        assert pool.statistics().ready == 1
        assert len(pids_of(pool)) == 3
        go.touch()
        await until(lambda: len(pids_of(pool)) == 1)
        assert await pool.call("add", 1) == 11
        with pytest.raises(UsageError):
            await pool.resize(0)


# -- restarts ---------------------------------------------------------------------------------


async def test_a_pool_whose_workers_keep_dying_breaks() -> None:
    """More restarts than the policy allows: the calls that wait get the reason, and new ones."""
    restart = Restart(intensity=3, backoff=0.001)
    async with pool_of(size=1, restart=restart, poison=99) as pool:
        outcomes: list[BaseException] = []

        async def call() -> None:
            try:
                await pool.call("die")
            except (WorkerDied, PoolBrokenError) as error:
                outcomes.append(error)

        async with anyio.create_task_group() as tasks:
            for _ in range(9):
                tasks.start_soon(call)
        broken = [error for error in outcomes if isinstance(error, PoolBrokenError)]
        assert len(outcomes) == 9
        assert len(broken) == 9 - 4
        assert all(isinstance(error.__cause__, WorkerDied) for error in broken)
        with pytest.raises(PoolBrokenError, match="more than 3 times"):
            await pool.call("add", 1)
        with pytest.raises(PoolBrokenError):
            await anext(pool.stream("count", 1))
        with pytest.raises(PoolBrokenError):
            await pool.notify("add", 1)
        with pytest.raises(PoolBrokenError):
            async for _ in pool.map("add", [1]):
                pass
        with pytest.raises(PoolBrokenError):
            await pool.broadcast("pid")
        with pytest.raises(PoolBrokenError):
            async with pool.worker():
                pass
        assert "broken" in repr(pool)


@pytest.mark.parametrize(
    ("kind", "status", "again"),
    [("transient", 0, False), ("transient", 3, True), ("permanent", 0, True)],
)
async def test_kinds_of_restarts(kind: Any, status: int, again: bool) -> None:
    """A transient worker is replaced after a bad end, a permanent one always."""
    async with pool_of(restart=Restart(kind=kind)) as pool:
        before = pids_of(pool)
        with pytest.raises(WorkerDied):
            await pool.call("leave", status)
        await until(lambda: pool.statistics().deaths == 1)
        await until(lambda: len(pids_of(pool)) == 1 + again)
        assert pool.statistics().restarts == again
        assert len(pids_of(pool) - before) == again


async def test_temporary_workers_come_to_an_end() -> None:
    """None is replaced; a pool with none left is broken, and says so."""
    async with pool_of(restart=Restart(kind="temporary")) as pool:
        for _ in range(2):
            with pytest.raises(WorkerDied):
                await pool.call("die")
        with pytest.raises(PoolBrokenError, match="none of its workers is left"):
            await pool.call("add", 1)


# -- recycling --------------------------------------------------------------------------------


async def test_recycling_by_calls() -> None:
    """Each worker runs at most so many; no call is lost, and none of the ends is a death."""
    async with pool_of(recycle=Recycle(calls=5)) as pool:
        pids = [pid async for pid in pool.map("pid_for", range(60))]
        assert len(pids) == 60
        assert max(pids.count(pid) for pid in pids) <= 5
        statistics = pool.statistics()
        assert statistics.deaths == 0
        assert statistics.recycled >= 10


async def test_recycling_by_memory() -> None:
    """A worker that has grown is replaced after the call."""
    if sys.platform != "linux":
        pytest.skip("the system does not say how much memory another process has")
    async with pool_of(size=1, recycle=Recycle(memory="250M")) as pool:
        pid = await pool.call("pid")
        await pool.call("grow", 300 * 2**20)
        await until(lambda: pid not in pids_of(pool))
        assert await pool.call("pid") != pid
        assert pool.statistics().recycled == 1


async def test_recycling_by_age() -> None:
    """Its successor is there before it goes."""
    async with pool_of(size=1, recycle=Recycle(age=0.2)) as pool:
        pid = await pool.call("pid")

        def replaced() -> bool:
            assert pool.statistics().ready >= 1
            return pid not in pids_of(pool)

        await until(replaced)
        assert pool.statistics().recycled >= 1
        assert pool.statistics().deaths == 0


# -- health -----------------------------------------------------------------------------------

QUICK = Health(interval=0.05, timeout=0.2)


async def test_an_async_worker_that_does_not_answer_is_replaced(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Its calls raise that; the death is told."""
    async with pool_of(working.Later, size=1, health=QUICK) as pool:
        pid = await pool.call("pid")
        with pytest.raises(WorkerDied, match=r"did not answer a ping for 0\.2 s"):
            await pool.call("hold_the_loop", str(tmp_path / "begun"))
        assert await pool.call("pid") != pid
        assert pool.statistics().deaths == 1
    assert "did not answer a ping for 0.2 s, so it is killed" in caplog.text


async def test_an_idle_worker_that_stands_still_is_replaced() -> None:
    """A plain one too."""
    async with pool_of(size=1, health=QUICK) as pool:
        pid = await pool.call("pid")
        signal_to(pid, signal.SIGSTOP)
        await until(lambda: pids_of(pool) - {pid})
        assert await pool.call("pid") != pid


async def test_a_busy_plain_worker_is_not_judged(tmp_path: Path) -> None:
    """It cannot answer while it runs a function, however long that takes."""
    health = Health(interval=0.01, timeout=0.02)
    async with pool_of(size=1, health=health) as pool, anyio.create_task_group() as tasks:
        go = await busy(pool, tasks, tmp_path, 1)
        await anyio.sleep(0.3)  # many intervals
        go.touch()
    assert pool.statistics().deaths == 0


async def test_only_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """With ``unresponsive="warn"`` nobody is killed."""
    health = Health(interval=0.05, timeout=0.1, unresponsive="warn")
    async with pool_of(size=1, health=health) as pool:
        pid = await pool.call("pid")
        signal_to(pid, signal.SIGSTOP)
        await until(lambda: "did not answer a ping" in caplog.text)
        signal_to(pid, signal.SIGCONT)
        assert await pool.call("pid") == pid


def signal_to(pid: int, number: int) -> None:
    os.kill(pid, number)


# -- the end ----------------------------------------------------------------------------------


async def test_drain_lets_what_was_asked_for_end(tmp_path: Path) -> None:
    """What runs and what waits ends well, new calls are refused, then no worker is left."""
    results: list[Any] = []
    async with pool_of(size=1) as pool, anyio.create_task_group() as tasks:

        async def call(*what: Any) -> None:
            results.append(await pool.call(*what))

        tasks.start_soon(call, "wait_for", str(tmp_path / "begun"), str(tmp_path / "go"))
        await there(tmp_path / "begun")
        tasks.start_soon(call, "add", 1)
        await until(lambda: pool.statistics().queued == 1)
        tasks.start_soon(pool.drain)
        await anyio.wait_all_tasks_blocked()
        with pytest.raises(WorkerClosedError, match="draining"):
            await pool.call("add", 2)
        (tmp_path / "go").touch()
        await until(lambda: len(results) == 2)
        await pool.drain()
        assert pool.statistics().size == 0
        assert pids_of(pool) == set()
    assert results[1] == 11


async def test_leaving_the_block_stops_what_runs(tmp_path: Path) -> None:
    """Calls in flight are interrupted, those that wait never run; each caller is told."""
    outcomes: list[BaseException] = []

    async def call(pool: Pool, *what: Any) -> None:
        try:
            await pool.call(*what)
        except WorkerClosedError as error:
            outcomes.append(error)

    async with anyio.create_task_group() as tasks, pool_of(size=1) as pool:
        tasks.start_soon(call, pool, "wait_for", str(tmp_path / "begun"), str(tmp_path / "no"))
        await there(tmp_path / "begun")
        for _ in range(3):
            tasks.start_soon(call, pool, "add", 1)
        await until(lambda: pool.statistics().queued == 3)
    assert len(outcomes) == 4


async def test_an_exception_in_the_body_leaves_as_it_is() -> None:
    """Not in a group."""

    def raises() -> NoReturn:
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        async with pool_of():
            raises()


async def test_closing_while_workers_start() -> None:
    """Those that were about to come are given up."""
    async with pool_of(size=(1, 3)) as pool, anyio.create_task_group() as tasks:
        for _ in range(9):
            tasks.start_soon(swallow, pool)
        await anyio.lowlevel.checkpoint()
        await pool.aclose()
        await pool.aclose()
    assert pids_of(pool) == set()


async def swallow(pool: Pool) -> None:
    with contextlib.suppress(WorkerClosedError):
        await pool.call("pid")


async def test_cancelled_from_outside(tmp_path: Path) -> None:
    """The block ends as it should, whatever runs."""
    with anyio.CancelScope() as scope:
        async with pool_of() as pool, anyio.create_task_group() as tasks:
            await busy(pool, tasks, tmp_path, 2)
            scope.cancel()
    assert scope.cancelled_caught


async def test_random_kills_lose_only_their_calls(caplog: pytest.LogCaptureFixture) -> None:
    """Workers are killed in the midst of a map with retries: each row has its result."""
    caplog.set_level(logging.ERROR, "forkwire")
    async with pool_of(size=3, restart=Restart(intensity=1000, backoff=0.01)) as pool:
        done = 0
        async for result in pool.options(retries=50).map("add", range(300), window=12):
            assert result == done + 10
            done += 1
            if done % 40 == 0:
                kill(next(iter(pids_of(pool))))
        assert done == 300
        assert pool.statistics().deaths >= 1


# -- loops that end ---------------------------------------------------------------------------


LOST = """
import gc, sys
import anyio
import forkwire

def add(a, b):
    return a + b

async def main():
    pool = forkwire.open_pool({"add": add}, size=2)
    await pool.__aenter__()
    pids = [each.pid for each in pool.statistics().workers.values()]
    print(await pool.call("add", 1, 2), *pids, flush=True)

anyio.run(main, <backend>)
channels = (forkwire.InputChannel, forkwire.OutputChannel)
print([each for each in gc.get_objects() if isinstance(each, channels) and not each.closed])
sys.stdout.flush()
sys.stdin.read()
"""


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_loop_that_ends_before_its_pool(backend: str, tmp_path: Path) -> None:
    """It was never closed: its workers are killed then, and no channel of theirs stays open."""
    command = script(tmp_path, LOST, backend=BACKENDS[backend])
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as program:
        assert program.stdout is not None
        result, *pids = program.stdout.readline().split()
        assert (result, len(pids)) == ("3", 2)
        assert program.stdout.readline() == "[]\n"
        until_true(lambda: not any(is_running(int(pid)) for pid in pids))
        _, errors = program.communicate("", timeout=LIMIT)
    assert program.returncode == 0, errors
    assert "Traceback" not in errors


HELD = """
import anyio, asyncio
import forkwire

def add(a, b):
    return a + b

def spin():
    while True:
        pass

async def hold():
    async with forkwire.open_pool({"add": add, "spin": spin}, size=2) as pool:
        print(await pool.call("add", 1, 2), *(w.pid for w in pool.statistics().workers.values()))
        opened.set()
        await pool.call("spin")

async def main():
    global opened
    opened = asyncio.Event()
    asyncio.create_task(hold())
    await opened.wait()

anyio.run(main, <backend>)
print("ended")
"""


@pytest.mark.parametrize("backend", ["asyncio", "uvloop"])
def test_a_loop_that_cancels_its_pool(backend: str, tmp_path: Path) -> None:
    """What is cancelled at the end of asyncio.run closes its pool, whichever task comes first."""
    done = outcome(script(tmp_path, HELD, backend=BACKENDS[backend]))
    assert done.returncode == 0, done.stderr
    first, last = done.stdout.splitlines()
    assert last == "ended"
    result, *pids = first.split()
    assert result == "3"
    assert not any(is_running(int(pid)) for pid in pids)
    assert not done.stderr

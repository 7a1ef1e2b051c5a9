"""Real pools with real workers, to which everything happens in any order: no call is lost."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

import anyio
import anyio.abc
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

import forkwire
from forkwire import Recycle, Restart, WorkerClosedError, WorkerDied

from .services import working
from .support_pools import LIMIT, kill, pids_of, until

MOST: Final = 3


class Call:
    """One that runs until it is let go, and what became of it."""

    def __init__(self, folder: Path, number: int) -> None:
        self.begun: Final = folder / f"begun{number}"
        self.go: Final = folder / f"go{number}"
        self.scope: Final = anyio.CancelScope()
        self.outcomes: Final[list[str]] = []

    async def run(self, calls: forkwire.Calls) -> None:
        with self.scope:
            try:
                pid = await calls.call("wait_for_once", str(self.begun), str(self.go))
            except WorkerDied:
                self.outcomes.append("died")
            except WorkerClosedError:
                self.outcomes.append("closed")
            else:
                assert pid > 0
                self.outcomes.append("ok")
        if self.scope.cancelled_caught:
            self.outcomes.append("cancelled")


class Pool:
    """A pool, what is in flight, and what a step may do."""

    def __init__(self, pool: forkwire.Pool, folder: Path, tasks: anyio.abc.TaskGroup) -> None:
        self.pool: Final = pool
        self.folder: Final = folder
        self.tasks: Final = tasks
        self.calls: Final[list[Call]] = []
        self.leases: Final[list[tuple[anyio.Event, anyio.CancelScope]]] = []
        self.killed = False
        self.draining = False

    # -- steps --------------------------------------------------------------------------------

    async def call(self, number: int) -> None:
        self.begin(self.pool)

    def begin(self, calls: forkwire.Calls) -> Call:
        call = Call(self.folder, len(self.calls))
        self.calls.append(call)
        self.tasks.start_soon(call.run, calls)
        return call

    async def let_go(self, number: int) -> None:
        if self.calls:
            self.calls[number % len(self.calls)].go.touch()

    async def cancel(self, number: int) -> None:
        if self.calls:
            self.calls[number % len(self.calls)].scope.cancel()

    async def kill(self, number: int) -> None:
        if pids := sorted(pids_of(self.pool)):
            self.killed = True
            with suppress(ProcessLookupError):
                kill(pids[number % len(pids)])

    async def quick(self, number: int) -> None:
        self.tasks.start_soon(self.bear, self.pool.call, "add", number)

    async def stream(self, number: int) -> None:
        self.tasks.start_soon(self.bear, self.read, number)

    async def read(self, number: int) -> None:
        items = [item async for item in self.pool.stream("count", number)]
        assert items == list(range(number))

    async def map(self, number: int) -> None:
        self.tasks.start_soon(self.bear, self.read_map, number)

    async def read_map(self, number: int) -> None:
        results = [result async for result in self.pool.map("add", range(number))]
        assert results == [n + 10 for n in range(number)]

    async def lease(self, number: int) -> None:
        over, scope = anyio.Event(), anyio.CancelScope()
        self.leases.append((over, scope))
        self.tasks.start_soon(self.bear, self.hold, over, scope, number)

    async def hold(self, over: anyio.Event, scope: anyio.CancelScope, number: int) -> None:
        with scope:
            async with self.pool.worker(fresh=number % 3 == 0) as worker:
                assert await worker.call("set_value", number) == worker.pid
                await over.wait()
                assert await worker.call("value") == number

    async def release(self, number: int) -> None:
        if self.leases:
            over, scope = self.leases[number % len(self.leases)]
            if number % 2:
                scope.cancel()
            over.set()

    async def resize(self, number: int) -> None:
        least = number % (MOST + 1)
        most = max(least, 1, number % 7 % (MOST + 1))
        self.tasks.start_soon(self.bear, self.pool.resize, least, most)

    async def reload(self, number: int) -> None:
        self.tasks.start_soon(self.bear, self.pool.reload)

    async def drain(self, number: int) -> None:
        if number % 4 == 0:
            self.draining = True
            self.tasks.start_soon(self.pool.drain)

    async def rest(self, number: int) -> None:
        """Until a call runs that may, or for a moment."""
        with anyio.move_on_after(0.02):
            await until(lambda: any(call.begun.exists() for call in self.calls[-1:]))

    # -- what may come of it ------------------------------------------------------------------

    async def bear(self, function: Callable[..., Awaitable[Any]], *args: Any) -> None:
        """A worker may be killed at any time, and calls are refused once it drains."""
        try:
            await function(*args)
        except WorkerDied:
            assert self.killed
        except WorkerClosedError:
            assert self.draining

    async def finish(self) -> None:
        """Let all go on: whatever was called ends by itself."""
        for call in self.calls:
            call.go.touch()
        for over, _ in self.leases:
            over.set()

    def check(self) -> None:
        """Each call had one outcome, one that it may have; none ran twice."""
        allowed = {"ok", "cancelled"}
        allowed |= {"died"} if self.killed else set()
        allowed |= {"closed"} if self.draining else set()
        for call in self.calls:
            assert len(call.outcomes) == 1, call.outcomes
            assert set(call.outcomes) <= allowed
            if call.begun.exists():
                assert call.begun.read_text().count("x") == 1, "it ran twice"


STEPS: Final = (
    Pool.call, Pool.call, Pool.call, Pool.let_go, Pool.let_go, Pool.cancel, Pool.kill, Pool.quick,
    Pool.stream, Pool.map, Pool.lease, Pool.release, Pool.resize, Pool.reload, Pool.drain,
    Pool.rest, Pool.rest,
)  # fmt: skip

scripts = st.lists(st.tuples(st.sampled_from(STEPS), st.integers(0, 40)), min_size=5, max_size=40)
recycles = st.builds(
    Recycle, calls=st.none() | st.integers(1, 5), age=st.none() | st.floats(0.01, 0.3)
)
plans = st.fixed_dictionaries(
    {
        "size": st.integers(1, MOST) | st.just((0, MOST)) | st.just((1, 2)),
        "spares": st.integers(0, 1),
        "start": st.sampled_from(["template", "template", "fork"]),
        "idle": st.sampled_from([0.02, 60.0]),
        "recycle": recycles,
    }
)


@pytest.mark.slow
@settings(
    max_examples=12,
    deadline=None,
    phases=[Phase.explicit, Phase.generate],  # what happens depends on time: it does not shrink
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(script=scripts, plan=plans)
def test_no_call_is_lost(
    anyio_backend: tuple[str, dict[str, Any]], script: list[Any], plan: dict[str, Any]
) -> None:
    """Whatever happens to the pool, each call ends once, and nothing is left when it is closed."""
    name, options = anyio_backend
    with TemporaryDirectory() as folder:
        anyio.run(live, script, Path(folder), plan, backend=name, backend_options=options)


async def live(script: list[Any], folder: Path, plan: dict[str, Any]) -> None:
    before = await what_is_there(plan["start"])
    with anyio.fail_after(LIMIT):
        await play(script, folder, plan)
    end = time.monotonic() + LIMIT
    while (left := await what_is_left(before, plan["start"])) is not None:
        assert time.monotonic() < end, left


async def play(script: list[Any], folder: Path, plan: dict[str, Any]) -> None:
    restart = Restart(intensity=10**6, backoff=0.01)
    async with forkwire.open_pool(working, restart=restart, **plan) as pool:
        async with anyio.create_task_group() as tasks:
            state = Pool(pool, folder, tasks)
            for step, number in script:
                if step is not Pool.reload or plan["start"] != "fork":
                    await step(state, number)
                await anyio.lowlevel.checkpoint()
            await state.finish()
        state.check()
        found = pool.statistics()
        assert (found.queued, found.busy) == (0, 0)


async def what_is_left(before: tuple[int, int, set[threading.Thread]], start: Any) -> Any:
    """More than before: an old template is given back by the first look after its end."""
    descriptors, children, threads = await what_is_there(start)
    if descriptors > before[0] or children > before[1] or not threads <= before[2]:
        return descriptors, children, threads
    return None


async def what_is_there(start: Any) -> tuple[int, int, set[threading.Thread]]:
    """Descriptors, children and threads, once what comes and goes with a worker is there."""
    async with forkwire.open_worker(working, start=start) as worker:
        await worker.call("pid")
        tasks = Path("/proc/self/task").iterdir()
        children = sum(len((task / "children").read_text().split()) for task in tasks)
        return len(os.listdir("/proc/self/fd")), children, set(threading.enumerate())

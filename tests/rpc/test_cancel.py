"""Calls that are cancelled or out of time: the work stops, then the caller goes on."""

from __future__ import annotations

import asyncio
import functools
import random
import time
from pathlib import Path
from typing import Any

import anyio
import pytest

import forkwire
import forkwire.sync
from forkwire import DeadlineExceededError, Worker, WorkerDied

from .support_calls import cancel_once, until, until_state, worker_of

pytestmark = pytest.mark.anyio

STOPPABLE = pytest.mark.parametrize("function", ["nap_later", "nap", "spin"])


def arguments(function: str) -> tuple[float, ...]:
    return () if function == "spin" else (60.0,)


# -- the ways to cancel -----------------------------------------------------------------------


@STOPPABLE
async def test_move_on_after(function: str) -> None:
    """The scope catches it, the worker goes on."""
    async with worker_of() as worker:
        pid = await worker.call("pid")
        with anyio.move_on_after(0.05) as scope:
            await worker.call(function, *arguments(function))
        assert scope.cancelled_caught
        assert await worker.call("pid") == pid


@pytest.mark.parametrize("start", ["fork", "exec", "template"])
async def test_with_close_fds(start: Any) -> None:
    """The pipe that interrupts a plain function is not among the files that are let go."""
    async with worker_of(start=start, close_fds=True) as worker:
        pid = await worker.call("pid")
        with anyio.move_on_after(0.05) as scope:
            await worker.call("spin")
        assert scope.cancelled_caught
        assert await worker.call("pid") == pid


@STOPPABLE
async def test_fail_after(function: str) -> None:
    """Raises the scope's own TimeoutError, whichever side was first."""
    async with worker_of() as worker:
        for delay in (0.05, 0.0):
            with pytest.raises(TimeoutError) as caught, anyio.fail_after(delay):
                await worker.call(function, *arguments(function))
            assert type(caught.value) is TimeoutError
        assert await worker.call("add", 1) == 11


@STOPPABLE
async def test_cancelled_scope(function: str) -> None:
    """``scope.cancel()`` from another task."""
    async with worker_of() as worker:
        with anyio.CancelScope() as scope:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(worker.call, function, *arguments(function))
                await until(lambda: worker.statistics().in_flight)
                scope.cancel()
        assert worker.statistics().in_flight == 0
        assert await worker.call("add", 1) == 11


@STOPPABLE
async def test_native_cancellation(function: str, anyio_backend_name: str) -> None:
    """Asyncio's own ``task.cancel()`` and ``asyncio.timeout`` do the same."""
    if anyio_backend_name != "asyncio":
        return
    async with worker_of() as worker:
        task = asyncio.create_task(worker.call(function, *arguments(function)))
        await until(lambda: worker.statistics().in_flight)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert worker.statistics().in_flight == 0
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await worker.call(function, *arguments(function))
        assert await worker.call("add", 1) == 11


async def test_native_cancellation_twice(anyio_backend_name: str) -> None:
    """A second ``task.cancel()`` does not make the caller leave before the work has stopped."""
    if anyio_backend_name != "asyncio":
        return
    async with worker_of() as worker:
        task = asyncio.create_task(worker.call("nap_shielded", 0.1))
        await until_state(worker, "begun", 1)
        for _ in range(3):
            task.cancel()
            await asyncio.sleep(0.01)
        with pytest.raises(asyncio.CancelledError):
            await task
        assert await worker.call("state", "closed") == 1


async def test_cancelled_before_it_is_sent() -> None:
    """Nothing is sent in a scope that is cancelled already."""
    async with worker_of() as worker:
        with anyio.CancelScope() as scope:
            scope.cancel()
            await worker.call("count_run")
        assert scope.cancelled_caught
        assert worker.statistics().calls == 0


# -- when the work has stopped ----------------------------------------------------------------


async def test_an_async_finally_runs_before_the_caller_returns() -> None:
    """A shielded one is waited for."""
    async with worker_of() as worker:
        begun = functools.partial(until_state, worker, "begun", 1)
        await cancel_once(begun, worker.call, "nap_shielded", 0.1)
        assert await worker.call("state", "closed") == 1


async def test_a_plain_finally_runs_before_the_caller_returns() -> None:
    """A loop is interrupted, and unwinds."""
    async with worker_of() as worker:
        await cancel_once(functools.partial(until_state, worker, "begun", 1), worker.call, "spin")
        assert await worker.call("state", "closed") == 1


async def test_a_handler_that_swallows_it_and_returns() -> None:
    """The caller is cancelled all the same; what was returned is dropped."""
    async with worker_of() as worker:
        result = None
        with anyio.CancelScope() as scope:
            async with anyio.create_task_group() as tasks:

                async def call() -> None:
                    nonlocal result
                    result = await worker.call("stubborn")

                tasks.start_soon(call)
                await worker.call("add_later", 1)
                scope.cancel()
        assert result is None
        assert await worker.call("add", 1) == 11


@pytest.mark.parametrize("function", ["in_c", "in_c_later"])
async def test_what_does_not_stop_is_killed_with_its_worker(function: str, tmp_path: Path) -> None:
    """After the grace. The caller is cancelled, its neighbours hear why the worker died."""
    async with worker_of(grace=0.2) as worker:
        errors: list[WorkerDied] = []

        async def neighbour() -> None:
            with pytest.raises(WorkerDied) as caught:
                await worker.call("nap_later", 60)
            errors.append(caught.value)

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(neighbour)
            await worker.call("add_later", 1)
            path = tmp_path / "begun"
            begun = functools.partial(until, path.exists)
            await cancel_once(begun, worker.call, function, str(path))
        with pytest.raises(WorkerDied) as caught:
            await worker.call("add", 1)
        for error in (*errors, caught.value):
            assert f"{function} (call" in error.reason
            assert "cancelled and did not stop within 0.2 seconds" in error.reason
        assert len(errors) == 1


async def test_cancelled_neighbours_are_unharmed() -> None:
    """Of calls that run at the same time just the one that is meant is stopped."""
    async with worker_of() as worker:
        results: list[Any] = []

        async def call(function: str, *args: Any) -> None:
            results.append(await worker.call(function, *args))

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(call, "nap_later", 0.1)
            tasks.start_soon(call, "nap", 0.1)
            await worker.call("add_later", 1)
            with anyio.move_on_after(0.02):
                await worker.call("nap_later", 60)
            with anyio.move_on_after(0.02):
                await worker.call("nap_shielded", 0.01)
        assert results == ["slept", "slept"]


# -- calls that wait for their turn -----------------------------------------------------------


class OnlyPlain:
    """Without async functions: a worker that has one thread."""

    def __init__(self) -> None:
        self.ran = 0

    def touch_and_wait(self, begun: str, path: str) -> str:
        Path(begun).touch()
        while not Path(path).exists():
            time.sleep(0.002)
        return "found"

    def count_run(self) -> int:
        self.ran += 1
        return self.ran

    def add(self, a: int) -> int:
        return a + 10

    def spin(self) -> None:
        while True:
            pass


@pytest.mark.parametrize("service", [None, OnlyPlain], ids=["loop", "one-thread"])
async def test_a_queued_call_that_is_cancelled_never_runs(service: Any, tmp_path: Path) -> None:
    """The caller does not wait for the one that runs, nor is that one harmed."""
    begun, path = tmp_path / "begun", tmp_path / "path"
    async with worker_of(**({"service": service} if service else {}), grace=5) as worker:
        results: list[str] = []

        async def running() -> None:
            results.append(await worker.call("touch_and_wait", str(begun), str(path)))

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(running)
            await until(begun.exists)
            started = anyio.current_time()
            with anyio.move_on_after(0.02) as scope:
                await worker.call("count_run")
            assert scope.cancelled_caught
            assert anyio.current_time() - started < 2
            path.touch()
        assert results == ["found"]
        assert await worker.call("count_run") == 1
        assert worker.statistics().in_flight == 0


async def test_a_deadline_that_passes_in_the_queue(tmp_path: Path) -> None:
    """A plain call whose time is over before its turn is not run."""
    begun, path = tmp_path / "begun", tmp_path / "path"
    async with worker_of(grace=5) as worker:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(worker.call, "touch_and_wait", str(begun), str(path))
            await until(begun.exists)
            with pytest.raises(TimeoutError), anyio.fail_after(0.02):
                await worker.call("count_run")
            path.touch()
        assert await worker.call("count_run") == 1


# -- deadlines --------------------------------------------------------------------------------


async def deadline_later() -> float:
    return forkwire.current_call().deadline


def deadline() -> float:
    return forkwire.sync.current_call().deadline


SERVICE = {"deadline": deadline, "deadline_later": deadline_later}


@pytest.mark.parametrize("function", ["deadline", "deadline_later"])
async def test_deadlines_travel(function: str) -> None:
    """The handler sees the caller's, in the terms of its own clock."""
    async with worker_of(SERVICE) as worker:
        with anyio.fail_after(5):
            seen = await worker.call(function)
        assert abs(seen - (time.monotonic() + 5)) < 0.5
        with anyio.CancelScope(shield=True):
            assert await worker.call(function) == float("inf")


async def test_the_other_side_keeps_deadlines_too() -> None:
    """Where the caller's loop is late, the handler has been stopped in time."""
    async with worker_of() as worker:
        link = worker._own_caller().link
        call = link.start("nap_shielded", [0], {}, {"timeout": 0.05})
        await until(lambda: call.ended)
        assert isinstance(call.error, DeadlineExceededError)
        assert isinstance(call.error, TimeoutError)
        assert await worker.call("state", "closed") == 1
        late = link.start("count_run", [], {}, {"timeout": 0.0})
        await until(lambda: late.ended)
        assert isinstance(late.error, DeadlineExceededError)
        assert await worker.call("state", "ran") == 0


# -- races ------------------------------------------------------------------------------------


@pytest.mark.parametrize("function", ["echo", "echo_later"])
async def test_cancels_that_race_with_results(function: str) -> None:
    """Five hundred times: each call has its own result or none, and the next is unharmed."""
    async with worker_of() as worker:
        chance = random.Random(1)
        caught = 0
        for n in range(500):
            with anyio.move_on_after(chance.uniform(0, 0.001)) as scope:
                assert await worker.call(function, n) == n
            caught += scope.cancelled_caught
            if n % 10 == 0:
                assert await worker.call(function, -n) == -n
        assert worker.statistics().in_flight == 0
        assert await worker.call("add", 1) == 11


async def test_cancels_that_race_with_each_other() -> None:
    """A hundred calls in all kinds, cancelled at about the same time."""
    async with worker_of() as worker:
        chance = random.Random(2)

        async def call(worker: Worker, n: int) -> None:
            with anyio.move_on_after(chance.uniform(0, 0.1)):
                function = ("nap_later", "nap", "spin", "echo_later")[n % 4]
                await worker.call(function, *arguments(function))

        async with anyio.create_task_group() as tasks:
            for n in range(100):
                tasks.start_soon(call, worker, n)
        assert worker.statistics().in_flight == 0
        assert await worker.call("add", 1) == 11
        await until_state(worker, "ran", 0)

"""Many calls at once: a thousand in flight, and the limit that makes callers wait."""

from __future__ import annotations

from typing import Any

import anyio
import pytest

from forkwire import Worker, WorkerDied

from .support_calls import until, worker_of

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize("function", ["add", "add_later"])
async def test_a_thousand_calls_at_once(function: str) -> None:
    """Each gets its own result."""
    async with worker_of() as worker:
        results: dict[int, int] = {}

        async def call(n: int) -> None:
            results[n] = await worker.call(function, n, n)

        async with anyio.create_task_group() as tasks:
            for n in range(1000):
                tasks.start_soon(call, n)
        assert results == {n: 2 * n for n in range(1000)}
        assert worker.statistics().in_flight == 0


async def test_async_handlers_run_at_the_same_time() -> None:
    """A hundred naps take as long as one; plain functions go on meanwhile."""
    async with worker_of() as worker:
        started = anyio.current_time()
        async with anyio.create_task_group() as tasks:
            for _ in range(100):
                tasks.start_soon(worker.call, "nap_later", 0.1)
            assert await worker.call("add", 1) == 11
            assert anyio.current_time() - started < 0.1
        assert anyio.current_time() - started < 2


async def test_threads_run_plain_functions_at_the_same_time(tmp_path: Any) -> None:
    """With ``threads=2`` one of them may wait for what the other does."""
    path = tmp_path / "there"
    service = {"wait": wait, "touch": touch}
    async with worker_of(service, threads=2) as worker, anyio.create_task_group() as tasks:
        tasks.start_soon(worker.call, "wait", str(path))
        await worker.call("touch", str(path))


def wait(path: str) -> str:
    from .services import calling

    return calling.wait_for_file(path)


def touch(path: str) -> None:
    open(path, "w").close()


def limited(worker: Worker, calls: int) -> None:
    """As if the worker had said that it takes no more than so many calls."""
    worker._own_caller().link.session.peer_calls = calls


async def test_callers_wait_for_the_limit() -> None:
    """Never more in flight than the worker takes; all are served in the end."""
    async with worker_of() as worker:
        limited(worker, 3)
        most = 0
        done = 0

        async def call() -> None:
            nonlocal most, done
            await worker.call("nap_later", 0.002)
            done += 1

        async def watch() -> None:
            nonlocal most
            while done < 50:
                most = max(most, worker.statistics().in_flight)
                await anyio.sleep(0)

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(watch)
            for _ in range(50):
                tasks.start_soon(call)
        assert most == 3


async def test_waiting_callers_that_give_up() -> None:
    """Whoever is cancelled while it waits for room takes nobody's turn."""
    async with worker_of() as worker:
        limited(worker, 1)
        done: list[int] = []
        scopes = [anyio.CancelScope() for _ in range(10)]

        async def call(n: int) -> None:
            with scopes[n]:
                await worker.call("add_later", n)
                done.append(n)

        with anyio.CancelScope() as first:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(worker.call, "nap_later", 0.05)
                await until(lambda: worker.statistics().in_flight)
                for n in range(10):
                    tasks.start_soon(call, n)
                await anyio.wait_all_tasks_blocked()
                for n in range(0, 10, 2):
                    scopes[n].cancel()
        assert not first.cancel_called
        assert sorted(done) == [1, 3, 5, 7, 9]


async def test_a_turn_given_to_one_that_gave_up_is_passed_on() -> None:
    """A caller that is woken and cancelled in the same moment wakes the next."""
    async with worker_of() as worker:
        limited(worker, 1)
        link = worker._own_caller().link
        done: list[int] = []
        scope = anyio.CancelScope()

        async def gives_up() -> None:
            with scope:
                await worker.call("add_later", 1)

        async def stays() -> None:
            done.append(await worker.call("add_later", 2))

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(worker.call, "nap_later", 0.02)
            await until(lambda: worker.statistics().in_flight)
            tasks.start_soon(gives_up)
            await until(lambda: len(link._room._waiting) == 1)
            tasks.start_soon(stays)
            await until(lambda: len(link._room._waiting) == 2)
            before = link._room._waiting[0]

            def woken_and_cancelled() -> None:
                before()
                scope.cancel()

            link._room._waiting[0] = woken_and_cancelled
        assert done == [12]


async def test_those_who_wait_for_room_hear_of_a_death() -> None:
    """They raise WorkerDied like those in flight."""
    async with worker_of() as worker:
        limited(worker, 1)
        died = 0

        async def call() -> None:
            nonlocal died
            with pytest.raises(WorkerDied):
                await worker.call("nap_later", 60)
            died += 1

        async with anyio.create_task_group() as tasks:
            for _ in range(5):
                tasks.start_soon(call)
            await until(lambda: worker.statistics().in_flight)
            worker.kill()
        assert died == 5


async def test_large_arguments_wait_for_the_pipe() -> None:
    """Callers with much to send take turns, and nothing piles up without bounds."""
    async with worker_of() as worker:
        data = b"x" * 2_000_000
        most = 0

        async def call() -> None:
            nonlocal most
            assert len(await worker.call("echo", data)) == len(data)

        async def watch(scope: anyio.CancelScope) -> None:
            nonlocal most
            with scope:
                while True:
                    most = max(most, worker.statistics().bytes_waiting)
                    await anyio.sleep(0)

        watching = anyio.CancelScope()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(watch, watching)
            async with anyio.create_task_group() as calls:
                for _ in range(10):
                    calls.start_soon(call)
            watching.cancel()
        assert most < 10_000_000

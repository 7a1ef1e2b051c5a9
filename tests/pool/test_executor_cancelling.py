"""Cancelling calls of an executor, those that wait and those that run."""

from __future__ import annotations

import asyncio
import concurrent.futures
import os
import threading
import time
from collections.abc import Iterator
from concurrent.futures import CancelledError
from pathlib import Path

import pytest

from forkwire import ProcessExecutor

from . import support_executor as there
from .support_executor import until


@pytest.fixture(scope="module")
def executor() -> Iterator[ProcessExecutor]:
    """One worker; calls that run can be cancelled."""
    with ProcessExecutor(1, cancel_running=True, grace=1.0) as executor:
        executor.submit(int).result()
        yield executor


def test_a_call_that_runs_is_not_cancelled(tmp_path: Path) -> None:
    """Unless it was asked for: concurrent.futures says so."""
    with ProcessExecutor(1) as executor:
        go = tmp_path / "go"
        future = executor.submit(there.hold, str(tmp_path / "begun"), str(go))
        until((tmp_path / "begun").exists)
        assert future.running()
        assert not future.cancel()
        go.touch()
        assert future.result() == "held"


def test_a_call_that_waits_is_cancelled(tmp_path: Path) -> None:
    """It never begins; waiters and callbacks hear of it."""
    told: list[bool] = []
    with ProcessExecutor(1) as executor:
        go = tmp_path / "go"
        first = executor.submit(there.hold, str(tmp_path / "begun"), str(go))
        until((tmp_path / "begun").exists)
        second = executor.submit(there.hold, str(tmp_path / "never"), str(go))
        second.add_done_callback(lambda future: told.append(future.cancelled()))
        assert second.cancel()
        go.touch()
        assert first.result() == "held"
        done, _ = concurrent.futures.wait([second], timeout=there.LIMIT)
        assert done == {second}
    assert told == [True]
    assert not (tmp_path / "never").exists()


def test_a_function_that_runs_is_interrupted(executor: ProcessExecutor, tmp_path: Path) -> None:
    """A busy loop stops, its cleanup runs, and the worker is kept."""
    pid = executor.submit(os.getpid).result()
    begun, stopped = tmp_path / "begun", tmp_path / "stopped"
    told: list[bool] = []
    future = executor.submit(there.spin, str(begun), str(stopped))
    future.add_done_callback(lambda future: told.append(future.cancelled()))
    until(begun.exists)
    assert future.cancel()
    assert future.cancelled()
    assert told == [True]
    with pytest.raises(CancelledError):
        future.result()
    until(stopped.exists)
    assert executor.submit(os.getpid).result() == pid


def test_a_waiter_hears_that_it_was_cancelled(executor: ProcessExecutor) -> None:
    """Whoever waits in another thread, for the future or for several."""
    future = executor.submit(time.sleep, 60)
    until(future.running)
    found: list[object] = []

    def wait() -> None:
        found.append(concurrent.futures.wait([future], timeout=there.LIMIT).done)

    thread = threading.Thread(target=wait)
    thread.start()
    assert future.cancel()
    thread.join()
    assert found == [{future}]


def test_what_is_stuck_in_c_is_killed(executor: ProcessExecutor, tmp_path: Path) -> None:
    """After the grace, and its worker is replaced."""
    pid = executor.submit(os.getpid).result()
    begun = tmp_path / "begun"
    future = executor.submit(there.sleep_in_c, str(begun))
    until(begun.exists)
    assert future.cancel()
    assert executor.submit(os.getpid).result(there.LIMIT) != pid


def test_a_call_that_has_ended_is_not_cancelled(executor: ProcessExecutor) -> None:
    """Its result stays."""
    future = executor.submit(there.square, 3)
    assert future.result() == 9
    assert not future.cancel()
    assert future.result() == 9


def test_cancelling_twice_is_no_harm(executor: ProcessExecutor) -> None:
    """It says True as often, as concurrent.futures does for one that waited."""
    future = executor.submit(time.sleep, 60)
    until(future.running)
    assert future.cancel()
    assert future.cancel() is False or future.cancelled()
    assert executor.submit(int).result() == 0


def test_a_task_that_is_cancelled_stops_the_work(executor: ProcessExecutor, tmp_path: Path) -> None:
    """Asyncio cancels the future that it waits for."""
    begun, stopped = tmp_path / "begun", tmp_path / "stopped"

    async def main() -> None:
        loop = asyncio.get_running_loop()
        call = loop.run_in_executor(executor, there.spin, str(begun), str(stopped))
        while not begun.exists():
            await asyncio.sleep(0.005)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call

    asyncio.run(main())
    until(stopped.exists)


def test_shutdown_waits_until_the_work_has_stopped(tmp_path: Path) -> None:
    """Of what was cancelled, too."""
    begun, stopped = tmp_path / "begun", tmp_path / "stopped"
    executor = ProcessExecutor(1, cancel_running=True)
    future = executor.submit(there.spin, str(begun), str(stopped))
    until(begun.exists)
    future.cancel()
    executor.shutdown()
    assert stopped.exists()


def test_cancelled_at_random_moments_nothing_is_lost(executor: ProcessExecutor) -> None:
    """Each future ends, cancelled or with its own result."""
    futures = [executor.submit(there.square, n) for n in range(200)]
    for number, future in enumerate(futures):
        if number % 2:
            future.cancel()
    for number, future in enumerate(futures):
        try:
            assert future.result(there.LIMIT) == number**2
        except CancelledError:
            assert number % 2

"""Several threads that share a worker, and a worker with several threads."""

from __future__ import annotations

import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import forkwire
from forkwire.sync import SyncWorker, open_worker

from .services import plain
from .support_sync import in_background, in_threads, until, worker

__all__ = ["worker"]


def test_twenty_threads_make_two_hundred_calls_each(worker: SyncWorker) -> None:
    """Each gets its own answers."""

    def call(number: int) -> None:
        for other in range(200):
            assert worker.call("add", number, other) == number + other

    in_threads(call, 20)
    assert worker.statistics().calls == 4000
    assert worker.statistics().in_flight == 0


def test_threads_stream_at_once(worker: SyncWorker) -> None:
    """Results and arguments, without mixing them up."""

    def stream(number: int) -> None:
        assert list(worker.stream("count", 50 + number)) == list(range(50 + number))
        assert worker.call("total", iter(range(number))) == sum(range(number))
        doubled = worker.stream("doubled", iter([number] * 40))
        assert list(doubled) == [2 * number] * 40

    in_threads(stream, 10)


@pytest.fixture
def narrow() -> Iterator[SyncWorker]:
    """A worker that takes three calls at a time."""
    worker = open_worker(plain)
    worker._settings.limits.calls = 3
    with worker:
        yield worker


def test_more_calls_than_the_worker_takes_wait_for_room(narrow: SyncWorker) -> None:
    """Each is made once one of those in flight has ended, notifications too."""

    def call(number: int) -> Any:
        narrow.notify("add", number, 0)
        return [narrow.call("add", number, n) for n in range(20)]

    assert in_threads(call, 20) == [[number + n for n in range(20)] for number in range(20)]


def test_the_time_of_a_call_that_waits_for_room_is_limited(
    narrow: SyncWorker, tmp_path: Path
) -> None:
    """It was never made."""
    begun, go = tmp_path / "begun", tmp_path / "go"

    def hold() -> Any:
        return narrow.call("hold", str(begun), str(go))

    with in_background(hold) as one, in_background(hold) as two, in_background(hold) as three:
        until(lambda: begun.exists() and narrow.statistics().in_flight == 3)
        with pytest.raises(TimeoutError, match=r"did not end within 0\.05 seconds"):
            narrow.options(timeout=0.05).call("add", 1, 2)
        assert narrow.statistics().calls == 3
        go.touch()
    assert [*one, *two, *three] == ["let go"] * 3
    assert narrow.call("add", 1, 2) == 3


def test_large_values_from_many_threads(worker: SyncWorker) -> None:
    """What is larger than the pipe goes out whole."""

    def call(number: int) -> None:
        data = bytes([number]) * 500_000
        assert worker.call("echo", data) == data

    in_threads(call, 8)


def test_a_thread_may_open_a_worker() -> None:
    """Not only the main one."""

    def use(number: int) -> Any:
        with open_worker({"add": plain.add}) as worker:
            return worker.call("add", number, 1)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", forkwire.ForkThreadsWarning)
        assert in_threads(use, 3) == [1, 2, 3]


# -- threads in the worker --------------------------------------------------------------------


@pytest.mark.parametrize("count", [2, 5])
def test_so_many_functions_run_at_a_time(count: int) -> None:
    """``threads`` is how many, each in a thread of its own."""
    with open_worker(plain, threads=count) as worker:
        names = in_threads(lambda number: worker.call("meet", count)[0], count)
        assert len(set(names)) == count
        lanes = [name for name in worker.call("threads") if name != "forkwire: link"]
        assert len(lanes) == count


def test_without_threads_functions_take_turns(worker: SyncWorker, tmp_path: Path) -> None:
    """One at a time, and the worker has but its main thread."""
    assert worker.call("threads") == ["MainThread"]
    begun, go = tmp_path / "begun", tmp_path / "go"
    with in_background(lambda: worker.call("hold", str(begun), str(go))) as outcome:
        until(begun.exists)
        with pytest.raises(TimeoutError):
            worker.options(timeout=0.05).call("add", 1, 2)
        go.touch()
    assert outcome == ["let go"]
    assert worker.call("add", 1, 2) == 3


def test_what_waits_for_the_lane_is_given_up_alone(worker: SyncWorker, tmp_path: Path) -> None:
    """A call that never began kills nobody: the one that runs goes on."""
    begun, go = tmp_path / "begun", tmp_path / "go"
    with open_worker(plain, grace=0.1) as hasty:
        with in_background(lambda: hasty.call("hold", str(begun), str(go))) as outcome:
            until(begun.exists)
            with pytest.raises(TimeoutError):
                hasty.options(timeout=0.05).call("add", 1, 2)
            go.touch()
        assert outcome == ["let go"]


def test_in_another_thread_a_function_sees_that_it_is_cancelled(tmp_path: Path) -> None:
    """It cannot be interrupted there, and cooperates."""
    with open_worker(plain, threads=3) as worker:
        paths = [tmp_path / str(number) for number in range(3)]

        def call(number: int) -> None:
            with pytest.raises(TimeoutError):
                worker.options(timeout=1.0).call("wait_for_cancel", str(paths[number]))

        in_threads(call, 3)
        assert all(path.exists() for path in paths)
        assert worker.call("add", 1, 2) == 3
        assert worker.call("state", "stopped") >= 2


def test_in_another_thread_what_does_not_stop_ends_with_the_worker() -> None:
    """After the grace it is killed, with all that runs there."""
    with open_worker(plain, threads=2, grace=0.2) as worker:

        def call(number: int) -> type[BaseException]:
            try:
                worker.options(timeout=0.05).call("deaf", 60)
            except (TimeoutError, forkwire.WorkerDied) as error:
                return type(error)
            raise AssertionError

        before = time.monotonic()
        in_threads(call, 2)
        assert time.monotonic() - before < 10
        with pytest.raises(forkwire.WorkerDied):
            worker.call("add", 1, 2)


def test_streams_of_a_worker_with_threads() -> None:
    """Generators go on in whatever thread is free."""
    with open_worker(plain, threads=3) as worker:

        def stream(number: int) -> None:
            assert list(worker.stream("count", 100)) == list(range(100))
            assert worker.call("total", iter(range(100))) == sum(range(100))
            with worker.stream("endless") as numbers:
                next(numbers)

        in_threads(stream, 6)
        assert worker.call("state", "closed") == 12

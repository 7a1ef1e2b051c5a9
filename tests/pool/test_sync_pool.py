"""A pool without an event loop: what blocks, what stops it, and in which thread things run."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from forkwire import PoolBrokenError, UsageError, WorkerClosedError, WorkerDied, sync
from forkwire.sync import SyncPool, open_pool

from ..rpc.support_pains import LIMIT, nothing_left_behind, outcome, script, until_true
from .services import working

__all__ = ["nothing_left_behind"]

pytestmark = pytest.mark.usefixtures("nothing_left_behind")


def opened(**options: Any) -> SyncPool:
    options.setdefault("size", 2)
    return open_pool(working, **options)


def test_calls_streams_and_notifications(tmp_path: Path) -> None:
    """A pool is called as a worker is."""
    with opened() as pool:
        assert pool.call("add", 1, 2) == 3
        assert pool.call(working.add, 1, b=5) == 6
        with pytest.raises(ValueError, match="bad"):
            pool.call("fail", "bad")
        assert list(pool.stream("count", 100)) == list(range(100))
        (tmp_path / "go").touch()
        pool.notify("wait_for", str(tmp_path / "begun"), str(tmp_path / "go"))
        until_true((tmp_path / "begun").exists)
        until_true(lambda: pool.statistics().busy == 0)
        assert len(set(pool.broadcast("pid"))) == 2
        assert pool.statistics().methods["add"].calls == 2


def test_map_reads_its_rows_in_this_thread() -> None:
    """In order, lazily, and not in the thread of the loop."""
    threads: set[str] = set()
    taken = 0

    def rows() -> Iterator[int]:
        nonlocal taken
        for number in range(10**9):
            threads.add(threading.current_thread().name)
            taken += 1
            yield number

    with opened() as pool:
        with pool.map("add", rows(), window=5) as results:
            assert [next(results) for _ in range(20)] == [n + 10 for n in range(20)]
            assert taken <= 26
        assert list(pool.map("add", range(50), range(50))) == [2 * n for n in range(50)]
        assert sorted(pool.starmap("add", [(1, 2), (3, 4)], ordered=False)) == [3, 7]
        with pytest.raises(ValueError, match="3 is bad"):
            list(pool.map("fail_at", range(10), [3] * 10))
        assert pool.statistics().busy == 0
    assert threads == {threading.current_thread().name}


def test_callbacks_and_argument_streams_run_in_this_thread() -> None:
    """Progress is told, and iterators are read, by the thread that waits."""
    threads: set[str] = set()
    closed: list[bool] = []

    def show(done: float, total: float | None, text: str) -> None:
        threads.add(threading.current_thread().name)

    def rows() -> Iterator[int]:
        try:
            for number in range(100):
                threads.add(threading.current_thread().name)
                yield number
        finally:
            closed.append(True)

    with opened() as pool:
        assert pool.options(on_progress=show).call("progressing", 3) == 3
        assert pool.call("total", rows()) == sum(range(100))
        assert closed == [True]

        def broken(done: float, total: float | None, text: str) -> None:
            raise KeyError("mine")

        with pytest.raises(KeyError, match="mine"):
            pool.options(on_progress=broken).call("progressing", 3)
        both = rows()
        with pytest.raises(UsageError, match="twice"):
            pool.call("add", both, both)
        with pytest.raises(UsageError, match="notify"):
            pool.notify("total", rows())
    assert threads == {threading.current_thread().name}


def test_timeouts(tmp_path: Path) -> None:
    """They stop the function, count in the queue, and for a whole stream or map."""
    paths = (str(tmp_path / "begun"), str(tmp_path / "never"))
    with opened(size=1) as pool:
        soon = pool.options(timeout=0.2)
        with pytest.raises(TimeoutError, match=r"wait_for did not end within 0\.2 seconds"):
            soon.call("wait_for", *paths)
        with pytest.raises(TimeoutError):
            list(soon.starmap("wait_for", [paths] * 3))
        with pytest.raises(TimeoutError):
            for _ in soon.stream("endless", str(tmp_path / "closed")):
                pass
        assert (tmp_path / "closed").exists()
        with pool.worker(), pytest.raises(TimeoutError):
            soon.call("add", 1)
        assert pool.call("add", 1) == 11
        assert pool.statistics().deaths == 0


def test_a_stream_that_is_left_is_stopped(tmp_path: Path) -> None:
    """By its block, or when it is dropped."""
    with opened(size=1) as pool:
        with pool.stream("endless", str(tmp_path / "one")) as items:
            assert next(items) == 0
        assert (tmp_path / "one").exists()
        for _ in pool.stream("endless", str(tmp_path / "two")):
            break
        until_true((tmp_path / "two").exists)
        assert pool.call("add", 1) == 11


def test_a_lent_worker() -> None:
    """One for the block alone."""
    with opened() as pool:
        with pool.worker(fresh=True) as worker:
            assert {worker.call("pid") for _ in range(4)} == {worker.pid}
            worker.call("set_value", 3)
            assert list(worker.stream("count", 2)) == [0, 1]
            assert pool.call("pid") != worker.pid
            worker.kill()
            with pytest.raises(WorkerDied):
                worker.call("pid")
            assert worker.died is not None
        with pytest.raises(UsageError, match="given back"):
            worker.call("pid")


def test_many_threads() -> None:
    """Each waits for its own calls."""
    with opened() as pool, ThreadPoolExecutor(8) as threads:
        results = list(threads.map(lambda n: pool.call("add", n, n), range(200)))
    assert results == [2 * n for n in range(200)]


def test_retries_and_deaths(tmp_path: Path) -> None:
    """As in a loop."""
    with opened() as pool:
        with pytest.raises(WorkerDied):
            pool.call("die")
        assert pool.options(retries=1).call("die_once", str(tmp_path / "once")) == "alive"
        pool.resize(3)
        assert pool.statistics().ready == 3
        pool.drain()
        with pytest.raises(WorkerClosedError):
            pool.call("add", 1)


def test_what_cannot_start_raises_why() -> None:
    """And leaves no thread."""
    with (
        pytest.raises(ValueError, match="not today"),
        opened(initializer=working.fail, initargs=["not today"]),
    ):
        pass
    with (
        opened(size=(0, 1), initializer=working.fail, initargs=["no"]) as pool,
        pytest.raises(PoolBrokenError),
    ):
        pool.call("add", 1)


def test_after_the_end() -> None:
    """Calls are refused, statistics are still there."""
    pool = opened()
    with pytest.raises(UsageError, match="not open"):
        pool.call("add", 1)
    with pool:
        pool.call("add", 1)
        with pytest.raises(UsageError, match="once"):
            pool.__enter__()
    pool.close()
    for use in (lambda: pool.call("add", 1), pool.drain, lambda: pool.map("add", [1])):
        with pytest.raises(WorkerClosedError):
            use()
    assert pool.statistics().calls == 1


def test_what_a_signal_handler_raises_stops_the_call(tmp_path: Path) -> None:
    """Ctrl-C, or any other: the function has stopped when the exception is raised."""

    class Enough(Exception):
        pass

    def handler(number: int, frame: object) -> None:
        raise Enough

    before = signal.signal(signal.SIGUSR1, handler)
    try:
        with opened(size=1) as pool:
            for rows in (False, True):
                begun = tmp_path / f"begun {rows}"
                threading.Thread(target=signal_when, args=(begun,)).start()
                paths = (str(begun), str(tmp_path / "never"))
                use = map_one if rows else call_one
                with pytest.raises(Enough):
                    use(pool, *paths)
                assert pool.statistics().busy == 0
            assert pool.call("add", 1) == 11
    finally:
        signal.signal(signal.SIGUSR1, before)


def call_one(pool: SyncPool, *paths: str) -> None:
    pool.call("wait_for", *paths)


def map_one(pool: SyncPool, *paths: str) -> None:
    list(pool.starmap("wait_for", [paths]))


def signal_when(path: Path) -> None:
    until_true(path.exists)
    os.kill(os.getpid(), signal.SIGUSR1)


def test_an_iterator_that_blocks_can_be_interrupted(tmp_path: Path) -> None:
    """It is the program's own code, in its own thread: the exception comes at once."""

    def rows() -> Iterator[int]:
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(LIMIT)
        yield 1

    with opened(size=1) as pool:
        started = time.monotonic()
        with pytest.raises(KeyboardInterrupt):
            pool.call("total", rows())
        assert time.monotonic() - started < LIMIT / 2
        assert pool.statistics().busy == 0


def test_arguments_may_be_taken_from_the_pool_itself() -> None:
    """What an iterator calls runs inside the call that it is an argument of, in its worker."""
    with opened(size=1) as pool:
        assert pool.call("total", (pool.call("add", n) for n in range(3))) == 33
        assert list(pool.map("add", (pool.call("add", n) for n in range(3)))) == [20, 21, 22]
        with pool.worker() as worker:
            assert worker.call("total", (worker.call("add", n) for n in range(3))) == 33


def test_several_threads_may_close_it() -> None:
    """At the same time, while others call it: nobody hangs, and all are told the same."""
    for _ in range(10):
        pool = opened(size=1)
        pool.__enter__()
        with ThreadPoolExecutor(6) as threads:
            callers = [threads.submit(call_on, pool) for _ in range(3)]
            closers = [threads.submit(pool.close) for _ in range(3)]
            for closer in closers:
                assert closer.result(LIMIT) is None
            for caller in callers:
                assert isinstance(caller.exception(LIMIT), WorkerClosedError)


def call_on(pool: SyncPool) -> None:
    while True:
        pool.call("add", 1)


def test_a_call_that_comes_as_it_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that has looked before and is posted after the end is told so."""
    with opened(size=1) as pool:
        thread = pool._thread
        assert thread is not None

        def close_first(job: Any) -> None:
            monkeypatch.undo()
            pool.close()
            thread._post(job)

        monkeypatch.setattr(thread, "_post", close_first)
        with pytest.raises(WorkerClosedError):
            pool.call("add", 1)


def test_closing_waits_for_no_iterator() -> None:
    """A thread that is about to take an item of its own is told when it has."""
    taken, closed = threading.Event(), threading.Event()

    def rows() -> Iterator[int]:
        taken.set()
        assert closed.wait(LIMIT)
        yield 1

    with opened(size=1) as pool, ThreadPoolExecutor(1) as threads:
        call = threads.submit(pool.call, "total", rows())
        assert taken.wait(LIMIT)
        pool.close()
        closed.set()
        assert isinstance(call.exception(LIMIT), WorkerClosedError)


FORGOTTEN = """
import forkwire.sync

def add(a, b):
    return a + b

pool = forkwire.sync.open_pool({"add": add}, size=2)
pool.__enter__()
print(pool.call("add", 1, 2))
"""


def test_a_program_ends_that_forgot_its_pool(tmp_path: Path) -> None:
    """The thread of the loop keeps nobody."""
    done = outcome(script(tmp_path, FORGOTTEN))
    assert (done.returncode, done.stdout) == (0, "3\n")


def test_not_in_a_forked_child() -> None:
    """A pool belongs to the process that opened it."""
    with opened(size=1) as pool, sync.open_worker({"ask": lambda: told(pool)}) as worker:
        assert "belongs to process" in worker.call("ask")


def told(pool: SyncPool) -> str:
    try:
        pool.call("add", 1)
    except UsageError as error:
        return str(error)
    return "it was called"

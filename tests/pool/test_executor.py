"""`ProcessExecutor` as a concurrent.futures executor: calls, results, sizes, ends."""

from __future__ import annotations

import asyncio
import concurrent.futures
import gc
import multiprocessing
import os
import pickle
import threading
import time
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import uvloop

import forkwire
from forkwire import ProcessExecutor
from forkwire.pool import executor as module

from . import support_executor as there
from .support_executor import until


@pytest.fixture(scope="module")
def executor() -> Iterator[ProcessExecutor]:
    """Two workers, shared by tests that leave them as they were."""
    with ProcessExecutor(2) as executor:
        yield executor


def test_it_is_an_executor(executor: ProcessExecutor) -> None:
    """Functions are called in another process, with any arguments, and answer futures."""
    assert isinstance(executor, concurrent.futures.Executor)
    future = executor.submit(pow, 2, 10)
    assert isinstance(future, concurrent.futures.Future)
    assert future.result() == 1024
    assert executor.submit(dict, a=1, fn=2, self=3).result() == {"a": 1, "fn": 2, "self": 3}
    assert executor.submit(os.getpid).result() != os.getpid()


def test_an_error_comes_back_as_itself(executor: ProcessExecutor) -> None:
    """Its class, arguments and notes, and the remote traceback as its cause."""
    error = executor.submit(there.fail, "x").exception()
    assert type(error) is ValueError
    assert error.args == ("x", 7)
    assert "a note" in error.__notes__
    assert "in fail" in str(error.__cause__)
    assert 'support_executor.py", line' in str(error.__cause__)
    assert "forkwire" not in str(error.__cause__)


@pytest.mark.parametrize("error", [SystemExit(3), KeyboardInterrupt(), GeneratorExit()])
def test_other_errors_are_the_futures_too(executor: ProcessExecutor, error: BaseException) -> None:
    """What ends a program elsewhere ends the call only."""
    pid = executor.submit(os.getpid).result()
    found = executor.submit(there.fail_with, type(error), *error.args).exception()
    assert type(found) is type(error)
    assert executor.submit(os.getpid).result() == pid


@pytest.mark.parametrize("size", [None, 1, 3])
@pytest.mark.parametrize("chunk", [1, 2, 7])
def test_map_answers_in_order(executor: ProcessExecutor, size: int | None, chunk: int) -> None:
    """However the calls travel."""
    found = executor.map(pow, range(10), [2] * 10, chunksize=chunk, buffersize=size)
    assert list(found) == [n * n for n in range(10)]


def test_map_reads_no_more_than_its_buffer(executor: ProcessExecutor) -> None:
    """With ``buffersize`` an endless iterable will do."""
    read: list[int] = []

    def endless() -> Iterator[int]:
        while True:
            read.append(len(read))
            yield len(read)

    found = executor.map(there.square, endless(), buffersize=3)
    assert len(read) == 3
    assert [next(found), next(found)] == [1, 4]
    assert len(read) == 5
    found.close()  # type: ignore[attr-defined]


def test_map_reads_all_without(executor: ProcessExecutor) -> None:
    """As concurrent.futures does, and at once."""
    read = iter(range(5))
    found = executor.map(there.square, read)
    assert list(read) == []
    assert list(found) == [0, 1, 4, 9, 16]


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({"chunksize": 0}, ValueError, "chunksize must be >= 1."),
        ({"buffersize": 0}, ValueError, "buffersize must be None or > 0"),
        ({"buffersize": "3"}, TypeError, "buffersize must be an integer or None"),
    ],
)
def test_map_checks_its_sizes(
    executor: ProcessExecutor, options: Any, error: type[Exception], text: str
) -> None:
    """In concurrent.futures' words, and before anything is read."""
    with pytest.raises(error, match=text):
        executor.map(there.square, iter([1]), **options)


def test_leaving_a_map_cancels_the_rest(tmp_path: Path) -> None:
    """What has not begun never does; also where the time is over."""
    go = tmp_path / "go"
    with ProcessExecutor(1) as executor:
        found = executor.map(
            there.hold, [str(tmp_path / str(n)) for n in range(9)], [str(go)] * 9, timeout=0.3
        )
        with pytest.raises(TimeoutError):
            next(found)
        until((tmp_path / "0").exists)
        go.touch()
    assert len(list(tmp_path.iterdir())) < 4


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({"max_workers": 0}, ValueError, "max_workers must be greater than 0"),
        ({"max_workers": -1}, ValueError, "max_workers must be greater than 0"),
        ({"max_workers": 2.5}, TypeError, "cannot be interpreted as an integer"),
        ({"preload": "numpy"}, forkwire.UsageError, r"preload is a list of modules: \['numpy'\]"),
        ({"initializer": 7}, TypeError, "initializer must be a callable"),
        ({"max_tasks_per_child": 0}, ValueError, "max_tasks_per_child must be >= 1"),
        ({"max_tasks_per_child": "1"}, TypeError, "max_tasks_per_child must be an integer"),
        ({"retries": -1}, forkwire.UsageError, "retries is how often"),
        ({"grace": -1}, forkwire.UsageError, "grace"),
        ({"start": "spawn"}, forkwire.UsageError, "start is"),
        ({"sandbox": object()}, forkwire.UsageError, "takes no sandbox"),
        ({"sandbox": False}, forkwire.UsageError, "takes no sandbox"),
    ],
)
def test_what_can_never_work_is_refused(options: Any, error: type[Exception], text: str) -> None:
    """When it is made, in concurrent.futures' words where it has some."""
    with pytest.raises(error, match=text):
        ProcessExecutor(**options)


def test_a_limit_of_calls_and_multiprocessings_fork_are_refused_together() -> None:
    """As concurrent.futures does."""
    context = multiprocessing.get_context("fork")
    with pytest.raises(ValueError, match="incompatible with the 'fork'"):
        ProcessExecutor(1, context, max_tasks_per_child=1)


def test_as_many_workers_as_processors() -> None:
    """Of those that this process may use."""
    assert ProcessExecutor()._max_workers == module.processors()
    assert module.processors() <= (os.cpu_count() or 1)


@pytest.mark.parametrize(
    ("method", "start"), [("fork", "fork"), ("spawn", "exec"), ("forkserver", "template")]
)
def test_multiprocessings_start_methods_are_ours(method: str, start: str) -> None:
    """Of a context only that is looked at."""
    executor = ProcessExecutor(1, multiprocessing.get_context(method))
    assert executor._engine.plan.start == start


def test_workers_start_on_demand(tmp_path: Path) -> None:
    """No thread and no process before the first call; one for calls that follow each other."""
    before = set(threading.enumerate())
    with ProcessExecutor(4) as executor:
        assert before.issuperset(threading.enumerate())
        for _ in range(3):
            executor.submit(int).result()
        assert len(executor.statistics().pids) == 1
        go = tmp_path / "go"
        held = [executor.submit(there.hold, str(tmp_path / str(n)), str(go)) for n in range(2)]
        until(lambda: executor.statistics().running == 2)
        assert len(executor.statistics().pids) == 2
        go.touch()
        assert [future.result() for future in held] == ["held"] * 2
    assert executor.statistics().pids == ()
    assert before.issuperset(threading.enumerate())


def test_a_worker_is_replaced_after_its_calls() -> None:
    """``max_tasks_per_child`` calls, then another process."""
    with ProcessExecutor(1, max_tasks_per_child=2) as executor:
        pids = [executor.submit(os.getpid).result() for _ in range(6)]
    assert pids[0::2] == pids[1::2]
    assert len(set(pids)) == 3


@pytest.mark.parametrize("start", ["template", "exec", "fork"])
def test_the_initializer_runs_first_in_each_worker(start: Any) -> None:
    """With its arguments, however the workers start."""
    with ProcessExecutor(1, None, there.start_with, ("hello",), start=start) as executor:
        assert executor.submit(there.state).result() == ["hello"]


def test_no_calls_after_shutdown() -> None:
    """In concurrent.futures' words."""
    executor = ProcessExecutor(1)
    executor.shutdown()
    with pytest.raises(RuntimeError, match="cannot schedule new futures after shutdown"):
        executor.submit(int)


def test_shutdown_waits_for_what_was_submitted() -> None:
    """All of it, also what had not begun."""
    executor = ProcessExecutor(2)
    futures = [executor.submit(there.square, n) for n in range(20)]
    executor.shutdown()
    assert all(future.done() for future in futures)
    assert [future.result() for future in futures] == [n * n for n in range(20)]


def test_shutdown_need_not_wait(tmp_path: Path) -> None:
    """It returns at once, what was submitted is done, and then the workers end."""
    executor = ProcessExecutor(1)
    go = tmp_path / "go"
    future = executor.submit(there.hold, str(tmp_path / "begun"), str(go))
    executor.shutdown(wait=False)
    assert not future.done()
    go.touch()
    assert future.result() == "held"
    until(lambda: executor._engine.thread and not executor._engine.thread.is_alive())


def test_shutdown_cancels_what_has_not_begun(tmp_path: Path) -> None:
    """With ``cancel_futures``; what runs is waited for, and waiters hear of the others."""
    executor = ProcessExecutor(1)
    go = tmp_path / "go"
    first = executor.submit(there.hold, str(tmp_path / "begun"), str(go))
    others = [executor.submit(int) for _ in range(5)]
    until((tmp_path / "begun").exists)
    executor.shutdown(wait=False, cancel_futures=True)
    done, _ = concurrent.futures.wait(others, timeout=there.LIMIT)
    assert done == set(others)
    assert all(future.cancelled() for future in others)
    go.touch()
    executor.shutdown()
    assert first.result() == "held"


def test_a_collected_executor_ends_its_workers() -> None:
    """After what was submitted is done."""
    executor = ProcessExecutor(1)
    future = executor.submit(os.getpid)
    engine, found = executor._engine, weakref.ref(executor)
    del executor
    gc.collect()
    assert found() is None
    pid = future.result()
    assert engine.thread is not None
    engine.thread.join(there.LIMIT)
    assert not engine.thread.is_alive()
    assert not os.path.exists(f"/proc/{pid}")


def test_a_call_keeps_nothing(executor: ProcessExecutor) -> None:
    """When it has ended, neither its arguments nor its result are held."""

    class Thing:
        def __reduce__(self) -> Any:
            return int, ()

    thing = Thing()
    gone = weakref.ref(thing)
    executor.submit(there.square, thing).result()  # type: ignore[arg-type]
    del thing
    until(lambda: gc.collect() >= 0 and gone() is None)


def test_a_future_tells_its_callbacks_in_order(executor: ProcessExecutor) -> None:
    """Once each, also where one of them raises."""
    told: list[object] = []
    done = threading.Event()
    future = executor.submit(time.sleep, 0.05)
    future.add_done_callback(lambda f: told.append(1))
    future.add_done_callback(lambda f: told.append(1 // 0))
    future.add_done_callback(lambda f: told.append(2))
    future.add_done_callback(lambda f: done.set())
    assert done.wait(there.LIMIT)
    assert told == [1, 2]
    assert executor.submit(int).result() == 0


class Left(BaseException):
    """Nobody handles it."""


def leave(future: concurrent.futures.Future[Any]) -> None:
    raise Left


@pytest.mark.parametrize("cancel", [False, True])
def test_callbacks_may_raise_anything(
    cancel: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """It is logged, and the other calls are not lost."""
    with ProcessExecutor(1) as executor:
        go = tmp_path / "go"
        held = executor.submit(there.hold, str(tmp_path / "begun"), str(go))
        until((tmp_path / "begun").exists)
        others = [executor.submit(there.square, n) for n in range(5)]
        for future in others:
            future.add_done_callback(leave)
        executor.shutdown(wait=False, cancel_futures=cancel)
        go.touch()
    assert held.result() == "held"
    assert [future.cancelled() for future in others] == [cancel] * 5
    assert caplog.text.count("a callback of a future of") == 5


def test_a_future_that_was_given_a_result_is_let_alone(tmp_path: Path) -> None:
    """By somebody else, as it may not be; the calls behind it are run."""
    with ProcessExecutor(1) as executor:
        go = tmp_path / "go"
        executor.submit(there.hold, str(tmp_path / "begun"), str(go))
        until((tmp_path / "begun").exists)
        strange, last = executor.submit(there.square, 2), executor.submit(there.square, 3)
        strange.set_result(7)
        go.touch()
        assert last.result(there.LIMIT) == 9
        assert strange.result() == 7


def test_a_callback_may_submit(executor: ProcessExecutor) -> None:
    """From the thread that runs it."""
    later: list[Any] = []
    done = threading.Event()

    def more(_: object) -> None:
        later.append(executor.submit(there.square, 3))
        done.set()

    executor.submit(int).add_done_callback(more)
    assert done.wait(there.LIMIT)
    assert later[0].result() == 9


def test_many_threads_may_submit(executor: ProcessExecutor) -> None:
    """Each call is answered once, to whoever made it."""
    found: dict[int, list[int]] = {}

    def submit(number: int) -> None:
        futures = [executor.submit(there.square, number * 100 + n) for n in range(50)]
        found[number] = [future.result() for future in futures]

    threads = [threading.Thread(target=submit, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {n: [(n * 100 + k) ** 2 for k in range(50)] for n in range(4)}


@pytest.mark.parametrize("factory", [asyncio.new_event_loop, uvloop.new_event_loop])
def test_loops_run_in_it(executor: ProcessExecutor, factory: Any) -> None:
    """``run_in_executor``, gathered, from asyncio and uvloop."""

    async def main() -> list[int]:
        loop = asyncio.get_running_loop()
        calls = [loop.run_in_executor(executor, there.square, n) for n in range(10)]
        return await asyncio.gather(*calls)

    with asyncio.Runner(loop_factory=factory) as runner:
        assert runner.run(main()) == [n * n for n in range(10)]


def test_prints_and_logs_come_out_here(
    executor: ProcessExecutor, capfd: pytest.CaptureFixture[str], caplog: Any
) -> None:
    """As from any worker of ours, with its name."""
    executor.submit(there.say, "hello").result()
    output = ""

    def come() -> bool:
        nonlocal output
        output += capfd.readouterr().out
        return "hello" in output

    until(come)
    assert "[executor " in output
    until(lambda: "logged hello" in caplog.text)


def test_it_says_how_it_is(executor: ProcessExecutor) -> None:
    """In its repr and its statistics."""
    before = executor.statistics().calls
    executor.submit(int).result()
    until(lambda: executor.statistics().calls == before + 1)
    assert "open" in repr(executor)
    assert executor.statistics().running == executor.statistics().pending == 0


def test_an_executor_is_not_pickled(executor: ProcessExecutor) -> None:
    """It is its process's own."""
    with pytest.raises(TypeError):
        pickle.dumps(executor)

"""What becomes of an executor whose workers die, do not start, or are ended."""

from __future__ import annotations

import logging
import os
import signal
import threading
from asyncio import CancelledError
from collections.abc import Callable, Iterator
from concurrent.futures import BrokenExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import pytest

import forkwire
from forkwire import ProcessExecutor

from . import support_executor as there
from .support_executor import until


@pytest.fixture(scope="module")
def executor() -> Iterator[ProcessExecutor]:
    """One worker, replaced where a test kills it."""
    with ProcessExecutor(1) as executor:
        yield executor


def test_a_death_fails_its_own_call_only(tmp_path: Path) -> None:
    """The others go on, in the other worker and in a new one."""
    with ProcessExecutor(2) as executor:
        go = tmp_path / "go"
        held = executor.submit(there.hold, str(tmp_path / "begun"), str(go))
        until((tmp_path / "begun").exists)
        dead = executor.submit(there.crash)
        later = [executor.submit(there.square, n) for n in range(5)]
        assert isinstance(dead.exception(), forkwire.WorkerDied)
        assert [future.result() for future in later] == [0, 1, 4, 9, 16]
        go.touch()
        assert held.result() == "held"
        assert executor.statistics().deaths == 1


def test_a_death_is_explained(executor: ProcessExecutor) -> None:
    """By an error that is concurrent.futures' own, and ours with the whole story."""
    error = executor.submit(there.crash).exception()
    assert isinstance(error, BrokenProcessPool)
    assert isinstance(error, forkwire.WorkerDied)
    assert error.returncode == -9
    assert error.signal_name == "SIGKILL"
    assert error.in_flight == (f"{there.__name__}.crash",)
    assert "crash in flight" in str(error)


def test_a_segfault_has_its_native_stack(executor: ProcessExecutor) -> None:
    """Where the interpreter could still write it."""
    error = executor.submit(os.abort).exception()
    assert isinstance(error, forkwire.WorkerDied)
    assert error.signal_name == "SIGABRT"
    assert "Aborted" in error.native_stack + error.stderr_tail


def test_a_worker_that_dies_idle_harms_nobody(executor: ProcessExecutor) -> None:
    """The next call gets another."""
    pid = executor.submit(os.getpid).result()
    os.kill(pid, signal.SIGKILL)
    until(lambda: not executor.statistics().pids)
    assert executor.submit(os.getpid).result() != pid


def test_a_call_is_run_again_where_that_is_asked_for(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """With ``retries``, after a death; it is logged."""
    with ProcessExecutor(1, retries=2) as executor:
        assert executor.submit(there.crash_once, str(tmp_path / "flag")).result() == "at last"
        assert executor.statistics().retries == 1
    assert "is run again (1 of 2)" in caplog.text


def test_retries_have_an_end() -> None:
    """The last death is the answer, and says how often it was tried."""
    with ProcessExecutor(1, retries=1) as executor:
        error = executor.submit(there.crash).exception()
        assert isinstance(error, forkwire.WorkerDied)
        assert any("tried 2 times" in note for note in error.__notes__)
        assert executor.submit(int).result() == 0


def test_an_error_is_no_reason_to_run_again(tmp_path: Path) -> None:
    """Only a death is."""
    log = tmp_path / "log"
    with ProcessExecutor(1, retries=3) as executor:
        assert isinstance(executor.submit(there.refuse, str(log)).exception(), RuntimeError)
    assert log.read_text() == "x"


@pytest.mark.parametrize("start", ["template", "exec", "fork"])
def test_an_initializer_that_raises_breaks_it(start: Any, tmp_path: Path) -> None:
    """Once run, no loop: its error is the cause of what futures and `submit` raise."""
    log = tmp_path / "log"
    with ProcessExecutor(1, None, there.refuse, (str(log),), start=start) as executor:
        futures = [executor.submit(int) for _ in range(3)]
        for future in futures:
            error = future.exception()
            assert isinstance(error, BrokenProcessPool)
            assert isinstance(error, forkwire.PoolBrokenError)
            assert isinstance(error.__cause__, RuntimeError)
            assert "no database" in str(error)
        with pytest.raises(BrokenExecutor, match="no database"):
            executor.submit(int)
    assert log.read_text() == "x"


@pytest.mark.parametrize(
    "error",
    [SystemExit(3), KeyboardInterrupt(), GeneratorExit(), StopIteration(4), CancelledError()],
    ids=lambda error: type(error).__name__,
)
def test_an_initializer_may_raise_anything(error: BaseException) -> None:
    """Also what would mean something to the loop here, which goes on."""
    with ProcessExecutor(1, initializer=there.throw, initargs=(error,)) as executor:
        broken = executor.submit(int).exception(there.LIMIT)
        assert isinstance(broken, BrokenProcessPool)
        assert type(broken.__cause__) is type(error)


def test_an_initializer_that_begins_to_raise_has_a_few_attempts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Then the executor is broken too, and no longer tries."""
    monkeypatch.setattr("forkwire.pool.executor_engine.BACKOFF", 0.001)
    log = tmp_path / "log"
    with ProcessExecutor(1, None, there.refuse_second, (str(log),)) as executor:
        assert executor.submit(int).result() == 0
        assert isinstance(executor.submit(there.crash).exception(), forkwire.WorkerDied)
        with pytest.raises(BrokenProcessPool, match="no database any more"):
            executor.submit(int).result()
    assert log.read_text() == "x" * 6


def test_an_initializer_that_dies_breaks_it() -> None:
    """With the death as the cause."""
    with ProcessExecutor(1, None, os._exit, (3,)) as executor:
        error = executor.submit(int).exception()
        assert isinstance(error, BrokenProcessPool)
        assert isinstance(error.__cause__, forkwire.WorkerDied)
        assert error.__cause__.returncode == 3


def test_an_initializer_that_raises_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    """Where programs that come from concurrent.futures look for it."""
    with ProcessExecutor(1, None, there.fail, ("x",)) as executor:
        assert executor.submit(int).exception()
    records = [r for r in caplog.records if r.name == "concurrent.futures"]
    assert [r.levelno for r in records] == [logging.CRITICAL]


@pytest.mark.parametrize("how", ["terminate_workers", "kill_workers"])
def test_workers_can_be_ended(how: str, tmp_path: Path) -> None:
    """What runs raises, what waits is cancelled, and nothing is left."""
    before = set(threading.enumerate())
    executor = ProcessExecutor(1)
    begun = tmp_path / "begun"
    running = executor.submit(there.hold, str(begun), str(tmp_path / "never"))
    waiting = [executor.submit(int) for _ in range(3)]
    pid = int(until(lambda: begun.exists() and begun.read_text()))
    getattr(executor, how)()
    error = running.exception(there.LIMIT)
    assert isinstance(error, BrokenProcessPool)
    assert isinstance(error, forkwire.WorkerDied)
    assert error.signal_name == ("SIGTERM" if how.startswith("term") else "SIGKILL")
    executor.shutdown()
    assert all(future.cancelled() for future in waiting)
    assert not os.path.exists(f"/proc/{pid}")
    assert before.issuperset(threading.enumerate())
    with pytest.raises(RuntimeError, match="after shutdown"):
        executor.submit(int)


def test_what_does_not_terminate_is_killed(tmp_path: Path) -> None:
    """After the grace."""
    with ProcessExecutor(1, grace=0.1) as executor:
        future = executor.submit(there.sleep_in_c, str(tmp_path / "begun"))
        until((tmp_path / "begun").exists)
        executor.terminate_workers()
        error = future.exception(there.LIMIT)
    assert isinstance(error, forkwire.WorkerDied)
    assert error.signal_name == "SIGKILL"


@pytest.mark.parametrize("how", ["terminate_workers", "kill_workers"])
def test_workers_that_are_starting_can_be_ended(how: str) -> None:
    """No call is lost: each is cancelled or raises."""
    executor = ProcessExecutor(2)
    futures = [executor.submit(int) for _ in range(4)]
    getattr(executor, how)()
    executor.shutdown()
    assert all(future.done() for future in futures)
    for future in futures:
        assert future.cancelled() or future.exception() is None or isinstance(
            future.exception(), BrokenProcessPool
        )  # fmt: skip


def test_ctrl_c_in_the_block_ends_the_workers(tmp_path: Path) -> None:
    """They do not hear of it themselves, so leaving the block would wait for them."""
    begun = tmp_path / "begun"
    try:
        with ProcessExecutor(1) as executor:
            future = executor.submit(there.hold, str(begun), str(tmp_path / "never"))
            until(begun.exists)
            raise KeyboardInterrupt
    except KeyboardInterrupt:
        pass
    assert isinstance(future.exception(), forkwire.WorkerDied)


def test_nothing_is_left_of_many_deaths() -> None:
    """Neither descriptors nor processes nor threads."""
    threads = set(threading.enumerate())
    before = len(os.listdir("/proc/self/fd"))
    with ProcessExecutor(2) as executor:
        executor.submit(int).result()
        calls: list[Callable[[], object]] = [there.crash if n % 3 else int for n in range(12)]
        futures = [executor.submit(call) for call in calls]
        kinds = [type(future.exception()) for future in futures]
        assert len([kind for kind in kinds if kind is not type(None)]) == 8
    assert len(os.listdir("/proc/self/fd")) <= before + 1  # the guard's, if it was the first
    assert threads.issuperset(threading.enumerate())

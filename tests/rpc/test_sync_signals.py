"""Ctrl-C, and whatever else a signal's handler raises, in callers without an event loop."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import NoReturn

import pytest

from forkwire.rpc.links.drivers import Bell
from forkwire.rpc.links.uninterrupted import Postponed, Uninterrupted
from forkwire.sync import SyncWorker, open_worker

from .services import plain
from .support_sync import in_background, is_running, path_with_services, run_script, until, worker

__all__ = ["worker"]


class Alarm(Exception):
    pass


def raise_alarm(number: int, frame: FrameType | None) -> NoReturn:
    raise Alarm


@pytest.fixture(autouse=True)
def alarm() -> Iterator[None]:
    """SIGUSR1 raises here, as SIGINT does in a program."""
    previous = signal.signal(signal.SIGUSR1, raise_alarm)
    yield
    signal.signal(signal.SIGUSR1, previous)


def main_thread_sleeps() -> bool:
    """Whether it waits for what a worker sends."""
    ident = threading.main_thread().ident
    assert ident is not None
    code = sys._current_frames()[ident].f_code
    return code is Bell.wait.__code__


def when(condition: Callable[[], object], times: int = 1) -> threading.Thread:
    """A thread that sends the signal once ``condition()``."""

    def watch() -> None:
        for _ in range(times):
            until(condition)
            os.kill(os.getpid(), signal.SIGUSR1)

    thread = threading.Thread(target=watch)
    thread.start()
    return thread


# -- one interruption -------------------------------------------------------------------------


def test_an_interrupted_call_was_stopped(worker: SyncWorker, tmp_path: Path) -> None:
    """The caller gets its exception when the work has stopped; the worker goes on."""
    begun = tmp_path / "begun"
    thread = when(begun.exists)
    with pytest.raises(Alarm):
        worker.call("hold", str(begun), str(tmp_path / "never"))
    thread.join()
    assert worker.statistics().in_flight == 0
    assert worker.call("add", 1, 2) == 3


def test_an_interrupted_stream_was_stopped(worker: SyncWorker) -> None:
    """Its generator is closed, and the stream is over."""
    items = worker.stream("silent")
    assert next(items) == 1
    thread = when(main_thread_sleeps)
    with pytest.raises(Alarm):
        next(items)
    thread.join()
    assert worker.call("state", "closed") == 1
    assert list(items) == []


def test_an_interruption_while_it_stops_comes_after_that(tmp_path: Path) -> None:
    """However often: control comes back when the work has stopped, or was killed."""
    with open_worker(plain, grace=0.3) as worker:
        ticks = iter(range(1000))
        thread = when(lambda: worker.statistics().in_flight and next(ticks) > 5, times=5)
        with pytest.raises(Alarm):
            worker.call("deaf", 60)
        try:
            thread.join()
        except Alarm:
            thread.join()
        assert worker.statistics().in_flight == 0
        with pytest.raises(Exception, match="did not stop within"):
            worker.call("add", 1, 2)
    assert not is_running(worker.pid)


def test_an_interrupted_generator_argument(worker: SyncWorker) -> None:
    """What is raised in it is raised at the call, and it is closed."""
    closed = []

    def numbers() -> Iterator[int]:
        try:
            yield 1
            os.kill(os.getpid(), signal.SIGUSR1)
            time.sleep(10)
            yield 2
        finally:
            closed.append(True)

    with pytest.raises(Alarm):
        worker.call("total", numbers())
    assert closed == [True]
    assert worker.call("add", 1, 2) == 3


def test_an_interrupted_end_is_quick_and_complete(tmp_path: Path) -> None:
    """What would have had its grace is killed; the worker is reaped all the same."""
    begun = tmp_path / "begun"
    before = time.monotonic()
    with pytest.raises(Alarm), open_worker(plain, grace=30) as worker:  # noqa: PT012
        worker.notify("hold", str(begun), str(tmp_path / "never"))
        until(begun.exists)
        thread = when(lambda: worker._handle and worker._handle.closing)
    thread.join()
    assert time.monotonic() - before < 10
    assert worker.returncode == -9
    assert not is_running(worker.pid)


def test_an_interrupted_start_leaves_nothing(tmp_path: Path) -> None:
    """A worker that is not there yet is killed and reaped."""
    worker = open_worker(command=["sleep", "60"])
    thread = when(lambda: worker._handle and worker._handle.link.session.state.name != "NEW")
    with pytest.raises(Alarm):
        worker.__enter__()
    thread.join()
    assert not is_running(worker.pid)
    assert [t.name for t in threading.enumerate() if t.name.startswith("forkwire: worker")] == []


def test_a_handler_that_raises_nothing_changes_nothing(worker: SyncWorker) -> None:
    """Signals whose handlers return are handled while a call goes on, and it goes on."""
    handled = []
    signal.signal(signal.SIGUSR1, lambda number, frame: handled.append(number))
    thread = when(lambda: worker.statistics().in_flight)
    assert worker.call("nap", 0.2) == "slept"
    thread.join()
    assert handled == [signal.SIGUSR1]


def test_a_handler_may_call_the_worker() -> None:
    """While a call of the same thread waits, and at any other moment of many."""
    results: list[int] = []
    with open_worker(plain, threads=2) as worker:
        signal.signal(
            signal.SIGUSR1, lambda number, frame: results.append(worker.call("add", 1, 2))
        )
        thread = when(lambda: worker.statistics().in_flight, times=50)
        while thread.is_alive():
            assert worker.call("add", 3, 4) == 7
            assert list(worker.stream("count", 40)) == list(range(40))
        thread.join()
        assert worker.call("add", 1, 2) == 3
    assert set(results) == {3}


# -- the block --------------------------------------------------------------------------------


def test_what_a_handler_raises_comes_at_the_end_of_the_block() -> None:
    """The block itself is not left in its midst, and is told."""
    steps = []
    with pytest.raises(Alarm), Uninterrupted(lambda: steps.append("told")):  # noqa: PT012
        os.kill(os.getpid(), signal.SIGUSR1)
        steps.append("done")
    assert steps == ["told", "done"]
    assert signal.getsignal(signal.SIGUSR1) is raise_alarm


def test_blocks_nest() -> None:
    """The outermost one raises."""
    steps = []
    with pytest.raises(Alarm), Uninterrupted(lambda: None):  # noqa: PT012
        with Uninterrupted(lambda: None):
            os.kill(os.getpid(), signal.SIGUSR1)
            steps.append("inner")
        os.kill(os.getpid(), signal.SIGUSR1)
        steps.append("outer")
    assert steps == ["inner", "outer"]


def test_a_postponed_handler_runs_at_the_end_of_the_block() -> None:
    """All of them, and the last error is raised."""
    steps = []
    previous = signal.signal(signal.SIGUSR2, lambda number, frame: steps.append("two"))
    try:
        with pytest.raises(Alarm), Postponed():  # noqa: PT012
            os.kill(os.getpid(), signal.SIGUSR1)
            os.kill(os.getpid(), signal.SIGUSR2)
            steps.append("done")
    finally:
        signal.signal(signal.SIGUSR2, previous)
    assert steps == ["done", "two"]
    assert signal.getsignal(signal.SIGUSR1) is raise_alarm


def test_other_threads_have_no_handlers() -> None:
    """There a block is nothing special."""
    with in_background(lambda: Postponed().__enter__()._handlers) as outcome:
        pass
    assert outcome == [{}]


def test_a_handler_set_inside_stays() -> None:
    """What somebody else set meanwhile is not undone."""
    with Uninterrupted(lambda: None):
        signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    assert signal.getsignal(signal.SIGUSR1) is signal.SIG_IGN


# -- Ctrl-C -----------------------------------------------------------------------------------


def test_ctrl_c_in_a_script_is_one_short_traceback() -> None:
    """KeyboardInterrupt, no storm; the worker ends without a word, with status 0."""
    script = """
import plain, os, signal, threading
from forkwire.sync import open_worker
with open_worker(plain) as worker:
    print(worker.pid, flush=True)
    threading.Timer(0.05, os.kill, (os.getpid(), signal.SIGINT)).start()
    try:
        worker.call("nap", 60)
    finally:
        print(worker.call("add", 1, 2), worker.call("state", "stopped"))
"""
    done = run_script(script, check=False)
    assert done.returncode in (1, -signal.SIGINT)
    pid, rest = done.stdout.split("\n", 1)
    assert rest.strip() == "3 1"
    assert done.stderr.count("Traceback") == 1
    assert done.stderr.strip().endswith("KeyboardInterrupt")
    assert not is_running(int(pid))


def test_ctrl_c_of_the_whole_process_group() -> None:
    """As a terminal sends it: the worker ignores it and ends with its host."""
    script = """
import plain
from forkwire.sync import open_worker
with open_worker(plain) as worker:
    print(worker.pid, flush=True)
    worker.call("nap", 60)
"""
    process = subprocess.Popen(
        [sys.executable, "-c", script],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        process_group=0,
        env={**os.environ, "PYTHONPATH": path_with_services()},
    )
    assert process.stdout is not None
    pid = int(process.stdout.readline())
    os.killpg(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=20)
    assert errors.count("Traceback") == 1
    assert errors.strip().endswith("KeyboardInterrupt")
    assert not is_running(pid)


HAMMER = """
import gc, json, os, random, signal, sys, threading, time, warnings
import forkwire, plain
from forkwire.sync import open_worker

warnings.simplefilter("ignore", forkwire.ForkThreadsWarning)  # of the attacker
random.seed(int(sys.argv[1]))
caught, calls, pids, wrong, on = 0, 0, [], [], True

def attack():
    while on:
        time.sleep(random.random() * 0.01)
        os.kill(os.getpid(), signal.SIGINT)

def work():
    global calls, caught
    with open_worker(plain, grace=1.0) as worker:
        pids.append(worker.pid)
        for _ in range(4):
            try:
                for n in range(5):
                    assert worker.call("add", n, 1) == n + 1
                    calls += 1
                assert list(worker.stream("count", 50)) == list(range(50))
                assert worker.call("total", iter(range(40))) == 780
                worker.call("nap", 0.02)
            except KeyboardInterrupt:
                caught += 1

attacker = threading.Thread(target=attack)
end = time.monotonic() + float(sys.argv[2])
attacker.start()
while True:
    try:
        while caught < 150 and time.monotonic() < end:
            try:
                work()
            except KeyboardInterrupt:
                caught += 1
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        break
    except KeyboardInterrupt:
        pass
    except BaseException as error:
        wrong.append(repr(error))
on = False
attacker.join()
gc.collect()

def runs(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True

print(json.dumps({
    "caught": caught, "calls": calls, "wrong": wrong, "workers": len(pids),
    "alive": [pid for pid in pids if runs(pid)],
    "threads": [thread.name for thread in threading.enumerate()],
    "fds": len(os.listdir("/proc/self/fd")),
}))
"""


def test_hundreds_of_interruptions_at_random_moments() -> None:
    """Of starts, calls, streams and ends: nothing breaks, nothing is left, nothing is printed."""
    done = run_script(HAMMER, "7", "30")
    found = json.loads(done.stdout)
    assert done.stderr == ""
    assert found["wrong"] == []
    assert found["caught"] >= 150
    assert found["calls"] > 20
    assert found["alive"] == []
    assert found["threads"] == ["MainThread"]
    assert found["fds"] <= 10

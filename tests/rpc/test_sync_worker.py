"""A worker without an event loop: start, calls, errors, deaths, the end."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import threading
import time
from pathlib import Path
from typing import Any, Protocol

import pytest

import forkwire
from forkwire.rpc.handle import Handle
from forkwire.sync import SyncWorker, open_worker

from .services import calling, plain
from .support_sync import importable, in_background, is_running, run_script, until, worker

__all__ = ["importable", "worker"]


class Adder(Protocol):
    def add(self, a: int, b: int) -> int: ...


class Counter:
    def __init__(self, start: int) -> None:
        self.value = start

    def up(self, by: int = 1) -> int:
        self.value += by
        return self.value


# -- calls ------------------------------------------------------------------------------------


def test_calls_by_name_and_by_function(worker: SyncWorker) -> None:
    """A function is called by its name or by itself."""
    assert worker.call("add", 1, 2) == 3
    assert worker.call(plain.add, 1, 2) == 3
    assert worker.call("add", a=1, b=2) == 3


@pytest.mark.usefixtures("importable")
def test_a_service_by_name() -> None:
    """A service may be given as the name of its module."""
    with open_worker("plain") as named:
        assert named.name == "plain"
        assert named.call("add", 1, 2) == 3


def test_an_instance_is_inherited_with_its_state() -> None:
    """What a worker of an instance changes is its own."""
    counter = Counter(5)
    with open_worker(counter) as worker:
        assert worker.call("up") == 6
        assert worker.call("up", 2) == 8
    assert counter.value == 5


def test_async_functions_are_called_too() -> None:
    """Where the service has async functions they run in a loop of the worker's."""
    with open_worker(calling) as worker:
        assert worker.call("add_later", 1, 2) == 3
        assert worker.call(calling.add_later, 1, 2) == 3
        assert list(worker.stream("count_later", 3)) == [0, 1, 2]
        assert worker.call("total_later", iter([1, 2, 3])) == 6
        with pytest.raises(TimeoutError):
            worker.options(timeout=0.05).call("nap_later", 60)


@pytest.mark.parametrize("backend", ["asyncio", "uvloop", "trio"])
def test_the_loop_of_async_functions_is_chosen(backend: Any) -> None:
    """``backend`` says which loop runs the service's async functions."""
    with open_worker(calling, backend=backend) as worker:
        assert worker.call("add_later", 1, 2) == 3


def test_values_come_back_as_annotated(worker: SyncWorker) -> None:
    """Arguments and results are what the annotations say."""
    with open_worker(calling) as typed:
        point = typed.call(calling.move, calling.Point(1), 2)
        assert point == calling.Point(3)
        assert type(point) is calling.Point
        assert [type(p) for p in typed.stream(calling.points, 2)] == [calling.Point] * 2


def test_a_proxy_has_plain_methods(worker: SyncWorker) -> None:
    """A stub made of a Protocol calls and blocks."""
    assert worker.proxy(Adder).add(1, 2) == 3


def test_a_large_value_goes_both_ways(worker: SyncWorker) -> None:
    """What is larger than a pipe is neither cut nor stuck."""
    data = os.urandom(3_000_000)
    assert worker.call("echo", data) == data


def test_remote_errors_are_caught_as_what_they_were(worker: SyncWorker) -> None:
    """An exception arrives as its own class and as a `RemoteError`; the worker goes on."""
    with pytest.raises(ValueError, match="boo") as caught:
        worker.call("fail", "boo")
    assert isinstance(caught.value, forkwire.RemoteError)
    assert worker.call("add", 1, 2) == 3


@pytest.mark.parametrize(
    ("name", "args", "error"),
    [
        ("nothing", (), forkwire.MethodNotFoundError),
        ("add", (1,), forkwire.InvalidArgumentsError),
        ("count", (1,), forkwire.WrongKindError),
        ("echo", (object(),), forkwire.ValueEncodeError),
    ],
)
def test_misuse_is_an_error_of_that_call_alone(
    worker: SyncWorker, name: str, args: tuple[object, ...], error: type[Exception]
) -> None:
    """A call that cannot be made or answered raises, and the worker stays usable."""
    with pytest.raises(error):
        worker.call(name, *args)
    assert worker.call("add", 1, 2) == 3


def test_what_cannot_be_sent_is_no_call(worker: SyncWorker) -> None:
    """An argument without an encoding leaves nothing in flight."""
    with pytest.raises(forkwire.ValueEncodeError, match=r"\[1\]"):
        worker.call("echo", [1, object()])
    assert worker.statistics().in_flight == 0


def test_statistics_and_repr(worker: SyncWorker) -> None:
    """The worker says what it has done."""
    worker.call("add", 1, 2)
    statistics = worker.statistics()
    assert statistics.calls == 1
    assert statistics.errors == statistics.in_flight == 0
    assert repr(worker) == f"<Worker {worker.name} pid={worker.pid} running>"
    assert worker.methods["count"] == "generator"
    assert 0 <= worker.ping() < 20


def test_inside_a_running_loop_it_blocks() -> None:
    """In a coroutine it works as anywhere, and blocks the loop."""

    async def main() -> int:
        with open_worker(plain) as worker:
            result: int = worker.call("add", 1, 2)
            return result

    assert asyncio.run(main()) == 3


def test_a_worker_may_have_a_worker(worker: SyncWorker) -> None:
    """A handler may open a worker of its own."""
    assert worker.call("grand", 21) == 42


# -- notify -----------------------------------------------------------------------------------


def test_notify_returns_at_once_and_runs(worker: SyncWorker, tmp_path: Path) -> None:
    """A notification is not waited for."""
    begun, let_go = tmp_path / "begun", tmp_path / "go"
    worker.notify("hold", str(begun), str(let_go))
    until(begun.exists)
    let_go.touch()
    assert worker.call("add", 1, 2) == 3


def test_what_a_notification_raises_is_logged(
    worker: SyncWorker, caplog: pytest.LogCaptureFixture
) -> None:
    """Its failure is a warning."""
    worker.notify("fail", "unseen")
    worker.call("add", 1, 2)
    assert "notify('fail') ended with" in caplog.text
    assert "unseen" in caplog.text


def test_notifications_run_before_the_end(tmp_path: Path) -> None:
    """Leaving the block lets what was notified be done."""
    done = tmp_path / "done"
    with open_worker({"touch": lambda path: Path(path).touch()}) as worker:
        worker.notify("touch", str(done))
    assert done.exists()


def test_notify_refuses_what_it_would_have_to_wait_for(worker: SyncWorker) -> None:
    """Nobody would send the items of an iterator."""
    with pytest.raises(forkwire.UsageError, match="streams no arguments"):
        worker.notify("total", iter([1]))


def test_a_notification_keeps_what_it_was_given(worker: SyncWorker) -> None:
    """What is changed after `notify` is not what is sent."""
    big = bytearray(b"a" * 2_000_000)
    with open_worker({"check": check_all_a}) as other:
        other.notify("check", big)
        big[:] = b"b" * len(big)
        assert other.call("check", b"a") == 1


def check_all_a(data: bytes) -> int:
    assert set(data) == {ord("a")}
    return len(data)


# -- options ----------------------------------------------------------------------------------


def test_a_timeout_stops_the_work(worker: SyncWorker) -> None:
    """The function is interrupted, and the worker goes on."""
    with pytest.raises(TimeoutError, match=r"nap did not end within 0\.05 seconds"):
        worker.options(timeout=0.05).call("nap", 60)
    assert worker.call("state", "stopped") == 1


def test_a_timeout_that_is_over_raises_at_once(worker: SyncWorker) -> None:
    """No time at all is a timeout too."""
    with pytest.raises(TimeoutError):
        worker.options(timeout=0).call("nap", 60)
    assert worker.call("add", 1, 2) == 3


def test_the_deadline_travels(worker: SyncWorker) -> None:
    """The handler knows how long it has."""
    assert 1 < worker.options(timeout=30).call("deadline") <= 30
    assert worker.call("deadline") == float("inf")


@pytest.mark.parametrize("timeout", [-1, "1", float("nan")])
def test_a_timeout_is_a_number(worker: SyncWorker, timeout: Any) -> None:
    """Anything else is refused when it is set."""
    with pytest.raises(forkwire.UsageError, match="timeout is a number of seconds"):
        worker.options(timeout=timeout)


def test_progress_is_told_in_the_callers_thread(worker: SyncWorker) -> None:
    """``on_progress`` is called where the call was made."""
    told: list[tuple[float, float | None, str, int]] = []

    def show(done: float, total: float | None, text: str) -> None:
        told.append((done, total, text, threading.get_ident()))

    assert worker.options(on_progress=show).call("steps", 3) == "done"
    here = threading.get_ident()
    assert told == [(n, 3, f"step {n}", here) for n in (1, 2, 3)]


def test_what_on_progress_raises_ends_the_call(worker: SyncWorker) -> None:
    """It is raised as it is, and the work stops."""

    def refuse(done: float, total: float | None, text: str) -> None:
        raise LookupError("enough")

    with pytest.raises(LookupError, match="enough"):
        worker.options(on_progress=refuse).call("steps", 10_000)
    assert worker.call("add", 1, 2) == 3


# -- death ------------------------------------------------------------------------------------


def test_a_death_is_told_to_the_call_in_flight() -> None:
    """`WorkerDied` says how, and during what; later calls say so too."""
    with open_worker(plain) as worker:
        with pytest.raises(forkwire.WorkerDied) as caught:
            worker.call("exit_hard", 7)
        assert caught.value.returncode == 7
        assert caught.value.pid == worker.pid
        assert caught.value.in_flight == ("exit_hard (call 1)",)
        with pytest.raises(forkwire.WorkerDied):
            worker.call("add", 1, 2)
        with pytest.raises(forkwire.WorkerDied):
            worker.notify("add", 1, 2)
        with pytest.raises(forkwire.WorkerDied):
            list(worker.stream("count", 2))
        with pytest.raises(forkwire.WorkerDied):
            worker.ping()


def test_every_thread_hears_of_a_death(tmp_path: Path) -> None:
    """All calls in flight raise."""
    begun = tmp_path / "begun"
    with open_worker(plain, threads=3) as worker:

        def call() -> None:
            worker.call("hold", str(begun), str(tmp_path / "never"))

        with in_background(call) as one, in_background(call) as two:
            until(begun.exists)
            until(lambda: worker.statistics().in_flight == 2)
            worker.kill()
        assert [type(e) for e in (*one, *two)] == [forkwire.WorkerDied] * 2
        assert one[0].returncode == -9
        assert worker.returncode == -9


def test_terminate_ends_it(tmp_path: Path) -> None:
    """SIGTERM ends the worker, with the code of that."""
    begun = tmp_path / "begun"
    with open_worker(plain) as worker:
        with in_background(lambda: worker.call("hold", str(begun), "never")) as outcome:
            until(begun.exists)
            worker.terminate()
        assert isinstance(outcome[0], forkwire.WorkerDied)
        assert worker.returncode == -15


def test_what_does_not_stop_is_killed_with_its_worker() -> None:
    """After the grace the caller gets control back, and knows why the worker is gone."""
    with open_worker(plain, grace=0.2) as worker:
        before = time.monotonic()
        with pytest.raises(TimeoutError):
            worker.options(timeout=0.05).call("deaf", 60)
        assert time.monotonic() - before < 5
        with pytest.raises(forkwire.WorkerDied, match=r"did not stop within 0\.2 seconds"):
            worker.call("add", 1, 2)


# -- start and end ----------------------------------------------------------------------------


def test_a_service_that_does_not_load_says_why() -> None:
    """What importing it raises is raised here; nothing is left."""
    with pytest.raises(ModuleNotFoundError, match="no_such_module"), open_worker("no_such_module"):
        raise AssertionError


def test_what_a_worker_said_before_its_end_is_heard(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also when it has ended before it was greeted, and cannot be written to."""
    greet = Handle.greet

    def greet_late(self: Handle) -> None:
        until(lambda: self.process.returncode is not None)
        greet(self)

    monkeypatch.setattr(Handle, "greet", greet_late)
    with pytest.raises(ModuleNotFoundError, match="no_such_module"), open_worker("no_such_module"):
        raise AssertionError


def test_a_worker_that_does_not_greet_is_given_up() -> None:
    """The start has a deadline."""
    worker = open_worker(command=["sleep", "60"], start_timeout=0.1, grace=0.1)
    with pytest.raises(forkwire.WorkerStartError, match=r"did not greet within 0\.1 seconds"):
        worker.__enter__()
    assert not is_running(worker.pid)


def test_what_the_body_raises_leaves_as_it_is() -> None:
    """Not wrapped, and the worker has ended."""
    error = LookupError("mine")
    with pytest.raises(LookupError) as caught, open_worker(plain) as worker:
        raise error
    assert caught.value is error
    assert worker.returncode == 0


def test_after_the_end_calls_say_so() -> None:
    """A closed worker refuses, and closing again does nothing."""
    with open_worker(plain) as worker:
        pass
    worker.close()
    assert worker.returncode == 0
    with pytest.raises(forkwire.WorkerClosedError):
        worker.call("add", 1, 2)
    with pytest.raises(forkwire.WorkerClosedError):
        worker.notify("add", 1, 2)
    with pytest.raises(forkwire.UsageError, match="started once"):
        worker.__enter__()


def test_before_the_start_calls_say_so() -> None:
    """It is used inside ``with``."""
    worker = open_worker(plain)
    for use in (
        lambda: worker.call("add", 1, 2),
        lambda: worker.stream("count", 1),
        lambda: worker.pid,
        worker.ping,
    ):
        with pytest.raises(forkwire.UsageError, match="not started"):
            use()


def test_closing_stops_what_another_thread_waits_for(tmp_path: Path) -> None:
    """Its call ends with an error, the function was stopped."""
    begun = tmp_path / "begun"
    with open_worker(plain) as worker:
        with in_background(lambda: worker.call("hold", str(begun), "never")) as outcome:
            until(begun.exists)
            worker.close()
        assert isinstance(outcome[0], (forkwire.CallCancelledError, forkwire.WorkerClosedError))
        assert worker.returncode == 0


def test_fifty_workers_leave_nothing_behind() -> None:
    """No descriptor, thread or process is left of those that were opened and closed."""
    with open_worker(plain):
        pass
    gc.collect()
    descriptors, threads = len(os.listdir("/proc/self/fd")), set(threading.enumerate())
    pids = []
    for _ in range(50):
        with open_worker({"add": plain.add}) as worker:
            pids.append(worker.pid)
            worker.call("add", 1, 2)
    gc.collect()
    assert len(os.listdir("/proc/self/fd")) == descriptors
    assert threads.issuperset(threading.enumerate())
    assert not any(map(is_running, pids))


def test_deaths_and_failed_starts_leave_nothing_behind() -> None:
    """The same where it goes wrong."""
    descriptors, threads = len(os.listdir("/proc/self/fd")), set(threading.enumerate())
    for _ in range(5):
        with pytest.raises(ModuleNotFoundError), open_worker("no_such_module"):
            pass
        with open_worker(plain) as worker, pytest.raises(forkwire.WorkerDied):
            worker.call("exit_hard", 7)
    gc.collect()
    assert len(os.listdir("/proc/self/fd")) == descriptors
    assert threads.issuperset(threading.enumerate())


def test_a_forked_process_is_told_that_the_worker_is_not_its_own(worker: SyncWorker) -> None:
    """A child that inherited the handle can neither call nor close what is the parent's."""
    worker.call("add", 1, 2)
    script = """
import os, warnings
warnings.simplefilter("ignore")
import plain, forkwire
from forkwire.sync import open_worker
with open_worker(plain) as worker:
    pid = os.fork()
    if not pid:
        try:
            worker.call("add", 1, 2)
        except forkwire.UsageError as error:
            worker.close()
            os._exit(42 if "belongs to process" in str(error) else 1)
        os._exit(2)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 42
    assert worker.call("add", 1, 2) == 3
"""
    run_script(script)


def test_a_worker_that_nobody_closed_ends_with_the_program() -> None:
    """Without ``with`` it is closed when the interpreter ends."""
    script = """
import plain
from forkwire.sync import open_worker
worker = open_worker(plain).__enter__()
assert worker.call("add", 1, 2) == 3
print(worker.pid)
"""
    done = run_script(script)
    assert done.stderr == ""
    assert not is_running(int(done.stdout))


def test_log_records_are_handled_here(worker: SyncWorker, caplog: pytest.LogCaptureFixture) -> None:
    """What the service logs arrives at this process's loggers."""
    caplog.set_level(logging.INFO)
    with open_worker(plain) as logging_worker:
        logging_worker.call("log", "said in the worker")
    assert [record.levelname for record in caplog.records] == ["INFO", "ERROR"]


class Explosive(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        raise RuntimeError("a handler failed")


def test_a_logging_handler_that_raises_harms_no_call(
    worker: SyncWorker, capsys: pytest.CaptureFixture[str]
) -> None:
    """Calls are answered also when this process's handlers fail, which is said on stderr."""
    logger, handler = logging.getLogger("plain"), Explosive()
    logger.addHandler(handler)
    try:
        worker.call("log", "to nobody")
        assert worker.call("add", 1, 2) == 3
    finally:
        logger.removeHandler(handler)
    assert "a handler failed" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [{}, {"service": plain, "command": ["x"]}])
def test_what_can_never_work_is_refused_at_once(arguments: dict[str, Any]) -> None:
    """A service or a program, and not both."""
    with pytest.raises(forkwire.UsageError, match="takes a service"):
        open_worker(**arguments)

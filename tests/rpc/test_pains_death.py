"""What users of other libraries suffer when workers die, crash, cannot start, or outlive others."""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
import time
import warnings
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, NoReturn

import anyio
import pytest

import forkwire
from forkwire import (
    ForkThreadsWarning,
    RemoteError,
    Worker,
    WorkerDied,
    WorkerStartError,
    open_worker,
    sync,
)
from forkwire.process import doctor

from .services import suffering
from .support_pains import (
    LIMIT,
    WAYS_TO_SERVE,
    is_running,
    nothing_left_behind,  # noqa: F401
    open_files,
    sync_worker_of,
    until,
    until_true,
    worker_of,
)

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.usefixtures("nothing_left_behind"),
    pytest.mark.timeout(30),
    pytest.mark.skipif(sys.platform != "linux", reason="reads /proc"),
]

CODES = {
    "SIGKILL": -signal.SIGKILL,
    "SIGSEGV": -signal.SIGSEGV,
    "SIGABRT": -signal.SIGABRT,
    "os._exit": 7,
    "held pipe": 9,
}
WAYS = pytest.mark.parametrize("how", CODES)
SERVED = pytest.mark.parametrize("served", WAYS_TO_SERVE)


# -- a worker dies ----------------------------------------------------------------------------


@WAYS
async def test_a_call_does_not_hang_when_its_worker_dies(how: str) -> None:
    """Elsewhere the caller waits for ever; here the call raises, however the worker died.

    Also where something that it started still holds its pipes.
    """
    for method in ("die", "die_later"):
        async with worker_of() as worker:
            with pytest.raises(WorkerDied) as caught:
                await worker.call(method, how)
            assert caught.value.returncode == worker.returncode == CODES[how]


def test_a_worker_that_lives_or_was_closed_has_not_died() -> None:
    """There is nothing to tell; nor where it ended because it was asked to."""
    with sync_worker_of() as worker:
        assert worker.call("add", 1, 2) == 3
        assert worker.died is None
    assert worker.died is None


@WAYS
def test_a_blocking_call_does_not_hang_when_its_worker_dies(how: str) -> None:
    """Without a loop it is the same."""
    with sync_worker_of() as worker:
        with pytest.raises(WorkerDied) as caught:
            worker.call("die", how)
        assert caught.value.returncode == worker.returncode == CODES[how]


async def test_a_call_does_not_hang_when_its_worker_died_before() -> None:
    """Elsewhere tasks given to a dead worker wait for ever; here they raise, one and all."""
    async with worker_of() as worker:
        os.kill(worker.pid, signal.SIGKILL)
        for _ in range(3):
            with pytest.raises(WorkerDied):
                await worker.call("pid")
        with pytest.raises(WorkerDied):
            await worker.notify("pid")
        with pytest.raises(WorkerDied):
            await worker.ping()
        with pytest.raises(WorkerDied):
            await anext(worker.stream("numbers"))


async def test_every_call_in_flight_ends_when_the_worker_dies(tmp_path: Path) -> None:
    """Elsewhere one of many waiters learns of a death; here calls, streams and their inputs do."""
    ended: list[str] = []

    async def endless() -> AsyncIterator[int]:
        try:
            while True:
                yield 1
                await anyio.lowlevel.checkpoint()
        finally:
            ended.append("argument")

    async def expect(name: str, method: Any, *args: Any) -> None:
        with pytest.raises(WorkerDied):
            await method(*args)
        ended.append(name)

    async def follow(method: str) -> None:
        async for _ in worker.stream(method):
            pass

    begun = [tmp_path / name for name in "ab"]
    never = str(tmp_path / "never")
    async with worker_of() as worker, anyio.create_task_group() as tasks:
        tasks.start_soon(expect, "stream", follow, "numbers_later")
        tasks.start_soon(expect, "plain", worker.call, "wait_for", str(begun[0]), never)
        tasks.start_soon(expect, "async", worker.call, "wait_for_later", str(begun[1]), never)
        fed = (endless(), 3, str(tmp_path / "c"), never)
        tasks.start_soon(expect, "fed", worker.call, "take_later", *fed)
        await until(lambda: all(path.exists() for path in [*begun, tmp_path / "c"]))
        tasks.start_soon(expect, "queued", worker.call, "pid")
        await until(lambda: worker.statistics().in_flight == 5)
        worker.kill()
    assert sorted(ended) == ["argument", "async", "fed", "plain", "queued", "stream"]


@SERVED
async def test_calls_end_when_the_worker_dies_before_it_has_read_them(
    served: str, tmp_path: Path
) -> None:
    """Elsewhere the writer of a large argument waits for ever for room; here its call ends."""
    begun, errors = tmp_path / "begun", list[WorkerDied]()

    async def call(*what: Any) -> None:
        with pytest.raises(WorkerDied) as caught:
            await worker.call(*what)
        errors.append(caught.value)

    async with worker_of(**WAYS_TO_SERVE[served]) as worker, anyio.create_task_group() as tasks:
        tasks.start_soon(call, "wait_for", str(begun), str(tmp_path / "never"))
        await until(begun.exists)
        for _ in range(2):
            tasks.start_soon(call, "size_of", bytes(2**25))
        await until(lambda: worker.statistics().in_flight > 1)
        worker.kill()
    assert [error.signal_name for error in errors] == ["SIGKILL"] * 3


async def echo_for_ever(worker: Worker) -> None:
    while True:
        assert len(await worker.call("echo", bytes(2**24))) == 2**24


@pytest.mark.skipif(not os.path.exists("/proc/self/io"), reason="tells how much was written")
async def test_a_call_does_not_hang_when_its_worker_dies_in_the_midst_of_the_answer() -> None:
    """Elsewhere half an answer is waited on for ever, or taken for one; here the call raises."""
    async with worker_of() as worker, anyio.create_task_group() as tasks:

        async def kill() -> None:
            path = Path(f"/proc/{worker.pid}/io")
            await until(lambda: int(path.read_text().split("wchar: ")[1].split()[0]) > 2**20)
            worker.kill()

        tasks.start_soon(kill)
        with pytest.raises(WorkerDied, match="SIGKILL"):
            await echo_for_ever(worker)


@pytest.mark.parametrize("method", ["down", "down_later"])
async def test_what_a_dead_worker_asked_of_its_host_is_stopped(method: str) -> None:
    """Elsewhere the parent goes on with work that nobody wants any more; here it is cancelled."""
    begun, ended = anyio.Event(), list[str]()

    class Host:
        async def up(self, depth: int) -> None:
            try:
                begun.set()
                await anyio.sleep(60)
            finally:
                ended.append("up")

        up_later = up

    async def call() -> None:
        with pytest.raises(WorkerDied):
            await worker.call(method, 1)

    async with worker_of(host=Host()) as worker, anyio.create_task_group() as tasks:
        tasks.start_soon(call)
        await begun.wait()
        worker.kill()
    await until(lambda: ended == ["up"])


async def test_a_stream_does_not_hang_when_its_worker_dies() -> None:
    """Elsewhere an iterator over results stops short or for ever; here it raises after the last."""
    async with worker_of() as worker:
        stream = worker.stream("die_in_stream", "SIGKILL")
        assert await anext(stream) == 1
        with pytest.raises(WorkerDied):
            await anext(stream)


def test_threads_that_share_a_worker_all_learn_of_its_death(tmp_path: Path) -> None:
    """Elsewhere every thread but one goes on waiting; here each has its error."""
    begun, errors = tmp_path / "begun", list[WorkerDied]()

    def call(worker: sync.SyncWorker, *what: Any) -> None:
        try:
            worker.call(*what)
        except WorkerDied as error:
            errors.append(error)

    with sync_worker_of() as worker:
        what: list[tuple[Any, ...]] = [("sleep", str(begun)), *[("pid",)] * 3]
        threads = [threading.Thread(target=call, args=(worker, *each)) for each in what]
        threads[0].start()
        until_true(begun.exists)
        for thread in threads[1:]:
            thread.start()
        until_true(lambda: worker.statistics().in_flight == 4)
        worker.kill()
        for thread in threads:
            thread.join(LIMIT)
    assert [error.signal_name for error in errors] == ["SIGKILL"] * 4


# -- why it died ------------------------------------------------------------------------------


@SERVED
async def test_a_death_has_a_code_however_it_is_served(served: str) -> None:
    """Elsewhere some of the ways to run functions tell less; here it is all the same."""
    async with worker_of(**WAYS_TO_SERVE[served]) as worker:
        with pytest.raises(WorkerDied) as caught:
            await worker.call("die", "os._exit")
        assert caught.value.exit_code == 7
    async with worker_of(**WAYS_TO_SERVE[served]) as worker:
        worker.terminate()
        with pytest.raises(WorkerDied) as caught:
            await worker.call("sleep", os.devnull)
        assert caught.value.signal_name == "SIGTERM"


async def test_a_death_has_a_reason(capfd: pytest.CaptureFixture[str]) -> None:
    """Elsewhere it says "terminated abruptly", or nothing; here all that is known of it."""
    async with worker_of() as worker:
        with pytest.raises(WorkerDied) as caught:
            await worker.call("complain_and_die", "the disk is full")
    died = caught.value
    kept = worker.died
    assert kept is not None
    assert (str(kept), kept.in_flight) == (str(died), died.in_flight)
    assert (died.pid, died.returncode, died.exit_code) == (worker.pid, 3, 3)
    assert died.signal_name is None
    assert "the disk is full" in died.stderr_tail
    assert died.rusage is not None
    assert died.rusage.ru_maxrss > 0
    (in_flight,) = died.in_flight
    assert in_flight.startswith("complain_and_die (call ")
    for part in (str(worker.pid), "exit status 3", "complain_and_die", "the disk is full"):
        assert part in str(died)
    assert "the disk is full" in capfd.readouterr().err


async def test_a_crash_in_c_shows_where() -> None:
    """Elsewhere a segmentation fault leaves no trace; here the signal's name and the stack."""
    async with worker_of() as worker:
        with pytest.raises(WorkerDied) as caught:
            await worker.call("crash_in_c", "about to crash")
    died = caught.value
    assert (died.signal_name, died.exit_code) == ("SIGSEGV", None)
    assert "SIGSEGV" in died.reason
    assert "_crash_in_c" in died.native_stack
    assert "about to crash" in died.stderr_tail


async def test_a_death_names_the_calls_that_it_took_along(tmp_path: Path) -> None:
    """Elsewhere nobody can tell which task was the poison; here the report names what ran."""
    begun, errors = tmp_path / "begun", list[WorkerDied]()

    async def call(method: str, *args: str) -> None:
        try:
            await worker.call(method, *args)
        except WorkerDied as error:
            errors.append(error)

    async with worker_of() as worker, anyio.create_task_group() as tasks:
        assert await worker.call("add", 1, 2) == 3
        tasks.start_soon(call, "sleep_later", str(begun))
        await until(begun.exists)
        await call("die", "SIGABRT")
    assert len(errors) == 2
    for error in errors:
        methods = {name.partition(" ")[0] for name in error.in_flight}
        assert methods == {"sleep_later", "die"}


# -- one of several ---------------------------------------------------------------------------


async def test_a_crash_fails_nobody_elses_calls(tmp_path: Path) -> None:
    """Elsewhere one crash breaks the whole pool; here only the calls of the one that crashed."""
    begun, path = tmp_path / "begun", tmp_path / "path"
    answers: list[str] = []

    async def wait() -> None:
        answers.append(await healthy.call("wait_for", str(begun), str(path)))

    async with worker_of() as healthy, anyio.create_task_group() as tasks:
        tasks.start_soon(wait)
        await until(begun.exists)
        for _ in range(2):
            async with worker_of() as crashing:
                with pytest.raises(WorkerDied):
                    await crashing.call("die", "SIGSEGV")
        async with worker_of() as fresh:
            assert await fresh.call("add", 1, 2) == 3
        path.touch()
    assert answers == ["found"]


def pipes_of(pid: int) -> set[str]:
    """Those that a process has open."""
    return {target for _, target in open_files(pid) if target.startswith("pipe:")}


async def test_a_worker_ends_though_its_younger_sibling_lives(tmp_path: Path) -> None:
    """Elsewhere the sibling has inherited the pipe, so end of file comes when that one ends too.

    Here it comes at once, on both sides: the elder ends by itself when it is closed, and its death
    is seen; the younger does not notice.
    """
    before = pipes_of(os.getpid())
    async with worker_of(grace=LIMIT) as elder, worker_of() as younger:
        assert pipes_of(elder.pid) & pipes_of(younger.pid) <= before
        await elder.aclose()
        assert elder.returncode == 0
        assert await younger.call("add", 1, 2) == 3
    async with worker_of() as elder, worker_of() as younger:
        with pytest.raises(WorkerDied):
            await elder.call("die", "SIGKILL")
        assert await younger.call("add", 1, 2) == 3


def sleep_and_exit() -> NoReturn:
    try:
        time.sleep(60)
    finally:
        os._exit(0)


@pytest.mark.parametrize("how", ["os.fork", "os.spawnlp"])
async def test_a_worker_ends_though_other_children_of_its_host_live(how: str) -> None:
    """Elsewhere whatever the host forks or starts holds the worker's pipe; here it does not."""
    async with worker_of(grace=LIMIT) as worker:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # there are threads, perhaps
            if how == "os.fork":
                pid = os.fork() or sleep_and_exit()
            else:
                pid = os.spawnlp(os.P_NOWAIT, "sleep", "sleep", "60")
        try:
            await worker.aclose()
            assert worker.returncode == 0
        finally:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)


# -- fork, threads, signals -------------------------------------------------------------------


def test_forking_beside_threads_is_warned_of(monkeypatch: pytest.MonkeyPatch) -> None:
    """Elsewhere a lock that another thread held deadlocks the child; here a warning names it."""
    monkeypatch.setattr(doctor, "_told", set())
    monkeypatch.setattr(doctor, "_examined", 0)
    release = threading.Event()
    thread = threading.Thread(target=release.wait, name="the pool of somebody's database")
    thread.start()
    try:
        with (
            pytest.warns(ForkThreadsWarning, match="the pool of somebody's database"),
            sync_worker_of(start="fork") as worker,
        ):
            assert worker.call("add", 1, 2) == 3
    finally:
        release.set()
        thread.join()


def test_workers_are_started_from_many_threads_at_once() -> None:
    """Elsewhere a fork while another thread holds a lock of the library hangs; here none does.

    Four threads start, use and end workers, beside each other and beside one that is busy.
    """
    done: list[int] = []

    def use(busy: sync.SyncWorker) -> None:
        for number in range(4):
            with sync_worker_of() as worker:
                done.append(worker.call("add", number, 1) + busy.call("add_later", 0, 0))
                logging.getLogger("here").debug("not handled")
                worker.call("log_later", logging.DEBUG, "there")

    with sync_worker_of() as busy:
        threads = [threading.Thread(target=use, args=(busy,)) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(LIMIT)
        assert not [thread for thread in threads if thread.is_alive()]
    assert sorted(done) == [1] * 4 + [2] * 4 + [3] * 4 + [4] * 4


def test_a_worker_lives_on_when_the_thread_that_started_it_ends() -> None:
    """Elsewhere the kernel kills it then (PR_SET_PDEATHSIG is of the thread); here it serves on."""
    started: list[sync.SyncWorker] = []
    worker = sync.open_worker(suffering)
    thread = threading.Thread(target=lambda: started.append(worker.__enter__()))
    thread.start()
    thread.join()
    try:
        assert started == [worker]
        until_true(lambda: thread.native_id not in [int(t) for t in os.listdir("/proc/self/task")])
        assert worker.call("pid") == worker.pid
        assert worker.call("pid_later") == worker.pid
    finally:
        worker.close()
    assert worker.returncode == 0


async def test_a_loop_in_a_thread_of_its_own_starts_workers(
    anyio_backend: tuple[str, dict[str, Any]],
) -> None:
    """Elsewhere fork off the main thread confuses signals and loops; here calls are stopped too.

    From 3.13 on no handler runs in such a worker while it computes: there, what blocks is stopped.
    """
    backend, options = anyio_backend
    done: list[object] = []
    busy = "spin" if sys.version_info < (3, 13) else "sleep"

    async def main() -> None:
        async with worker_of() as worker:
            done.append(await worker.call("add", 1, 2))
            with anyio.move_on_after(0.05):
                await worker.call(busy, os.devnull)
            done.append(await worker.call("counted", "closed"))

    def run() -> None:
        anyio.run(main, backend=backend, backend_options=options)

    thread = threading.Thread(target=run)
    thread.start()
    await until(lambda: not thread.is_alive())
    assert done == [3, 1]


async def test_a_worker_does_not_inherit_the_hosts_signal_handlers(
    anyio_backend: tuple[str, dict[str, Any]],
) -> None:
    """Elsewhere a SIGTERM to the child runs the parent's handler, or nothing; here it ends it."""
    heard: list[int] = []

    def hear(number: int, frame: object) -> None:
        heard.append(number)

    numbers = (signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP)
    before = {number: signal.signal(number, hear) for number in numbers}
    try:
        async with worker_of() as worker:
            found = await worker.call("handlers")
            assert not {"SIGUSR1", "SIGHUP"} & set(found)
            assert not [name for name, where in found.items() if where == __name__]
            os.kill(worker.pid, signal.SIGTERM)
            with pytest.raises(WorkerDied) as caught:
                await worker.call("sleep", os.devnull)
        assert caught.value.signal_name == "SIGTERM"
        async with worker_of() as worker:
            os.kill(worker.pid, signal.SIGUSR1)
            with pytest.raises(WorkerDied) as caught:
                await worker.call("sleep", os.devnull)
        assert caught.value.signal_name == "SIGUSR1"
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    assert heard == []


async def test_a_worker_does_not_wake_the_hosts_loop(anyio_backend: tuple[str, Any]) -> None:
    """Elsewhere a signal to the child arrives in the parent's loop: they share its wakeup pipe."""
    heard: list[int] = []

    async def listen(*, task_status: anyio.abc.TaskStatus[None]) -> None:
        with anyio.open_signal_receiver(signal.SIGTERM, signal.SIGUSR2) as signals:
            task_status.started()
            async for number in signals:
                heard.append(number)
                if number == signal.SIGUSR2:
                    return

    async with anyio.create_task_group() as tasks:
        await tasks.start(listen)
        async with worker_of() as worker:
            os.kill(worker.pid, signal.SIGTERM)
            with pytest.raises(WorkerDied) as caught:
                await worker.call("sleep_later", os.devnull)
            assert caught.value.signal_name == "SIGTERM"
        os.kill(os.getpid(), signal.SIGUSR2)
    assert heard == [signal.SIGUSR2]


# -- a service that cannot be loaded ----------------------------------------------------------


@pytest.fixture
def broken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A module that cannot be imported, and the file in which it counts the attempts."""
    attempts = tmp_path / "attempts"
    (tmp_path / "broken_service.py").write_text(
        f"open({str(attempts)!r}, 'a').write('x')\nraise LookupError('no such table: users')\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    return attempts


@pytest.mark.parametrize("start", ["fork", "exec", "template"])
async def test_a_failing_service_is_not_started_for_ever(broken: Path, start: Any) -> None:
    """Elsewhere a failing initialiser is respawned without end; here its error is raised, once.

    A template tries, and then the one worker that tells.
    """
    with anyio.fail_after(LIMIT), pytest.raises(LookupError) as caught:
        async with open_worker("broken_service", start=start):
            pytest.fail("it started")
    assert isinstance(caught.value, RemoteError)
    assert caught.value.message == "no such table: users"
    assert "broken_service.py" in caught.value.traceback
    assert broken.read_text() == ("xx" if start == "template" else "x")


def test_a_failing_service_is_not_started_for_ever_without_a_loop(broken: Path) -> None:
    """The same, blocking."""
    with (
        pytest.raises(LookupError, match="no such table"),
        sync.open_worker("broken_service", start="fork"),
    ):
        pytest.fail("it started")
    assert broken.read_text() == "x"


class _Failing:
    def __init__(self) -> None:
        raise PermissionError(13, "no licence")

    def ask(self) -> NoReturn:
        raise AssertionError


async def test_a_failing_constructor_is_raised_where_the_worker_is_started() -> None:
    """Elsewhere it is printed somewhere, and calls hang; here it is what starting raises."""
    with anyio.fail_after(LIMIT), pytest.raises(PermissionError, match="no licence") as caught:
        async with open_worker(_Failing):
            pytest.fail("it started")
    assert isinstance(caught.value, RemoteError)


async def test_a_service_that_dies_while_it_loads_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Elsewhere the pool starts another and another; here the death is reported, with its words."""
    (tmp_path / "dying_service.py").write_text(
        "import os, sys\nprint('no GPU', file=sys.stderr, flush=True)\nos._exit(4)\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    with anyio.fail_after(LIMIT), pytest.raises(WorkerDied) as caught:
        async with open_worker("dying_service"):
            pytest.fail("it started")
    assert caught.value.returncode == 4
    assert "no GPU" in caught.value.stderr_tail


# A template is an interpreter of its own, which takes a while to get there.
@pytest.mark.parametrize(("start", "seconds"), [("fork", 0.3), ("template", 4)])
async def test_a_service_that_hangs_while_it_loads_is_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, start: Any, seconds: float
) -> None:
    """Elsewhere starting waits for ever; here it has a deadline, and nothing is left behind."""
    told = tmp_path / "pid"
    (tmp_path / "hanging_service.py").write_text(
        "import os, pathlib, time\n"
        f"pathlib.Path({str(told)!r}).write_text(str(os.getpid()))\n"
        "time.sleep(60)\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    with anyio.fail_after(LIMIT), pytest.raises(WorkerStartError, match="start_timeout"):
        async with open_worker("hanging_service", start=start, start_timeout=seconds):
            pytest.fail("it started")
    await until(lambda: not is_running(int(told.read_text())))
    assert issubclass(WorkerStartError, forkwire.ForkwireError)

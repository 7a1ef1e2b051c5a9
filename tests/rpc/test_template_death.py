"""However a template, its host or its import ends or hangs: no orphan, no hang, and a reason."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import re
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import anyio
import pytest

import forkwire
from forkwire import WorkerDied, WorkerStartError, sync
from forkwire.process import guard, steps, template, templates

from .services import starting
from .support_calls import until, worker_of

pytestmark = [pytest.mark.anyio, pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")]

SERVICES = Path(__file__).parent / "services"
HOST = SERVICES / "template_host.py"


def is_over(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return True


def children(pid: int) -> list[int]:
    with contextlib.suppress(FileNotFoundError):
        return [int(each) for each in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return []


def wait_for(condition: Callable[[], Any]) -> None:
    end = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < end, "in vain"
        time.sleep(0.005)


@pytest.fixture
def importable(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The services can be imported by their names; their templates end with the test."""
    monkeypatch.syspath_prepend(str(SERVICES))
    yield
    forkwire.close_templates()


# -- the template dies --------------------------------------------------------------------------


@pytest.mark.parametrize("work", ["nap", "spin", "stuck_in_c"])
async def test_its_workers_end_with_it(anyio_backend: Any, work: str) -> None:
    """Also those that hear no SIGTERM: within their grace, and the caller is told."""
    async with worker_of(starting, start="template", grace=0.3) as worker:
        _, parent, _ = await worker.call("pids")
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(kill_once_called, worker, parent)
            with pytest.raises(WorkerDied, match="template"):
                await worker.call(work, *([60] if work == "nap" else []))
        assert is_over(worker.pid)
    async with worker_of(starting, start="template") as worker:
        assert (await worker.call("pids"))[1] != parent


async def kill_once_called(worker: forkwire.Worker, pid: int) -> None:
    await until(lambda: worker.statistics().in_flight)
    os.kill(pid, signal.SIGKILL)


async def test_one_that_died_unseen_is_replaced(anyio_backend: Any) -> None:
    """The next start finds it gone, and makes another."""
    async with worker_of(starting, start="template") as worker:
        _, parent, _ = await worker.call("pids")
    os.kill(parent, signal.SIGKILL)
    await until(lambda: is_over(parent))
    async with worker_of(starting, start="template") as worker:
        assert (await worker.call("pids"))[1] != parent


async def test_a_request_that_meets_the_end_is_repeated(anyio_backend: Any) -> None:
    """It was taken by a template that died before it answered."""
    async with worker_of(starting, start="template") as worker:
        _, parent, _ = await worker.call("pids")
    os.kill(parent, signal.SIGSTOP)

    async def start() -> None:
        async with worker_of(starting, start="template") as worker:
            parents.append((await worker.call("pids"))[1])

    parents: list[int] = []
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(start)
        await until(lambda: any(each.pid == 0 for each in guard.workers()))
        os.kill(parent, signal.SIGKILL)
    assert parents
    assert parents != [parent]


# -- the template is stopped --------------------------------------------------------------------


@contextlib.contextmanager
def stopped(pid: int) -> Iterator[None]:
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


async def test_a_death_is_seen_though_the_template_is_stopped(anyio_backend: Any) -> None:
    """How it ended may be lost, that it did is not; closing ends too."""
    async with worker_of(starting, start="template", grace=0.3) as worker:
        _, parent, _ = await worker.call("pids")
        with stopped(parent):
            with pytest.raises(WorkerDied, match=r"did not say how|SIGKILL"):
                await worker.call("die", signal.SIGKILL)
            await worker.aclose()
        await until(lambda: is_over(worker.pid))


@pytest.mark.parametrize("closing", [False, True])
async def test_a_slow_template_still_says_how_it_ended(anyio_backend: Any, closing: bool) -> None:
    """Nobody is held up meanwhile, nor does the loop turn."""
    async with worker_of(starting, start="template") as worker:
        _, parent, _ = await worker.call("pids")
        child: Any = worker._handle and worker._handle.process._child
        before = time.process_time()
        with stopped(parent):
            os.kill(worker.pid, signal.SIGKILL)
            await until(lambda: child._patient_until)
            await anyio.sleep(0.3)
            assert worker.returncode is None
            assert time.process_time() - before < 0.25
        async with anyio.create_task_group() as tasks:
            if closing:
                tasks.start_soon(worker.aclose)
            await until(lambda: worker.returncode is not None)
        assert worker.returncode == -signal.SIGKILL


async def test_a_stopped_template_hangs_nobody_who_starts(anyio_backend: Any) -> None:
    """The start fails in its time, and the next gets a template of its own."""
    async with worker_of(starting, start="template") as worker:
        _, parent, _ = await worker.call("pids")
        with stopped(parent):
            with pytest.raises(WorkerStartError, match="template"):
                async with worker_of(starting, start="template", start_timeout=0.3):
                    pass
            async with worker_of(starting, start="template") as other:
                assert (await other.call("pids"))[1] != parent
        assert await worker.call("add", 1, 2) == 3
    await until(lambda: is_over(parent))  # retired, it ends with its last worker


async def test_many_requests_to_a_stopped_template_end(anyio_backend: Any) -> None:
    """Though it takes none, and there is no room for more."""
    async with worker_of(starting, start="template") as worker:
        _, parent, _ = await worker.call("pids")
        with stopped(parent):
            errors: list[WorkerStartError] = []

            async def start() -> None:
                try:
                    async with worker_of(starting, start="template", start_timeout=1):
                        pass
                except WorkerStartError as error:
                    errors.append(error)

            async with anyio.create_task_group() as tasks:
                for _ in range(60):
                    tasks.start_soon(start)
            assert len(errors) == 60
        assert await worker.call("add", 1, 2) == 3


@pytest.mark.parametrize("first", [True, False])
async def test_where_no_more_files_can_be_open_a_start_fails_and_leaves_nothing(
    anyio_backend: Any, first: bool
) -> None:
    """Whichever descriptor it is that cannot be had, of the template or the worker."""
    async with worker_of(starting, start="template") as worker:
        assert await worker.call("add", 1, 2) == 3
    outcomes: list[int | None] = []
    for room in range(0, 60, 3 if first else 1):
        if first:
            forkwire.close_templates()
        before = open_now()
        with room_for(room):
            try:
                async with worker_of(starting, start="template", grace=0.3) as worker:
                    assert await worker.call("add", 1, 2) == 3
                outcomes.append(0)
            except WorkerStartError as error:
                outcomes.append(error.errno)
        if first:
            forkwire.close_templates()
        await until(lambda before=before: open_now() <= before)  # type: ignore[misc]
        if outcomes[-3:] == [0] * 3:
            break
    assert set(outcomes) == {0, errno.EMFILE}


async def test_a_start_that_cannot_wait_fails_as_one_that_cannot_begin(
    anyio_backend: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where many are started at once, with room for some."""

    async def refuse(fd: int, backend: Any) -> None:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    async with worker_of(starting, start="template") as worker:
        _, parent, _ = await worker.call("pids")
        before = open_now()
        with stopped(parent), monkeypatch.context() as patch:
            patch.setattr(steps, "readable", refuse)
            with pytest.raises(WorkerStartError, match="could not be started: Too many open files"):
                async with worker_of(starting, start="template"):
                    pass
        assert open_now() == before


@contextlib.contextmanager
def room_for(number: int) -> Iterator[None]:
    """So many files can be open more."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    highest = max(int(name) for name in os.listdir("/proc/self/fd"))
    resource.setrlimit(resource.RLIMIT_NOFILE, (highest + 64, hard))
    fillers = []
    try:
        with contextlib.suppress(OSError):
            while True:
                fillers.append(os.open(os.devnull, os.O_RDONLY))
        for _ in range(number):
            os.close(fillers.pop())
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        for fd in fillers:
            os.close(fd)


# -- its import ---------------------------------------------------------------------------------


async def test_an_import_that_takes_too_long(
    anyio_backend: Any, importable: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The start fails in its time and says what was imported; the template is killed."""
    begun = tmp_path / "begun"
    monkeypatch.setenv("FORKWIRE_TEST_BEGUN", str(begun))
    for how in ("sleep", "c"):
        monkeypatch.setenv("FORKWIRE_TEST_IMPORT", how)
        with pytest.raises(WorkerStartError, match="importing slow_import"):
            async with worker_of("slow_import", start="template", start_timeout=5):
                pass
        pid = int(begun.read_text())
        await until(lambda pid=pid: is_over(pid))  # type: ignore[misc]


async def test_each_waits_as_long_as_it_may(
    anyio_backend: Any, importable: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who gives up a template takes it from nobody: the others get another that imports."""
    monkeypatch.setenv("FORKWIRE_TEST_IMPORT", "sleep")
    errors: list[str] = []

    async def start(seconds: float) -> None:
        try:
            async with worker_of("slow_import", start="template", start_timeout=seconds):
                pass
        except WorkerStartError as error:
            errors.append(str(error))

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(start, 2)
        tasks.start_soon(start, 6)
    assert [re.search(r"within (\d) seconds: its template", each)[1] for each in errors] == [  # type: ignore[index]
        "2",
        "6",
    ]


async def test_a_start_that_is_cancelled_leaves_nothing(
    anyio_backend: Any, importable: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """While the template imports, and while it is asked."""
    begun = tmp_path / "begun"
    monkeypatch.setenv("FORKWIRE_TEST_BEGUN", str(begun))
    monkeypatch.setenv("FORKWIRE_TEST_IMPORT", "sleep")
    async with worker_of(starting, start="template") as worker:
        _, parent, _ = await worker.call("pids")
    await cancel_once(begun.exists)
    fds, slots = open_now(), len(guard.workers())
    await cancel_once(lambda: open_now() > fds)
    assert (open_now(), len(guard.workers())) == (fds, slots)
    spares = await until(lambda: children(parent))
    with stopped(parent):
        fds, slots = open_now(), len(guard.workers())
        with anyio.CancelScope() as scope:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(enter, starting)
                await until(lambda: len(guard.workers()) > slots)
                scope.cancel()
        assert (open_now(), len(guard.workers())) == (fds, slots)
    # What it had forked, unwanted, it kills and reaps; by then there may be another spare.
    await until(lambda: not set(spares) & set(children(parent)) and len(children(parent)) < 2)


async def cancel_once(begun: Callable[[], Any]) -> None:
    with anyio.CancelScope() as scope:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(enter, "slow_import")
            await until(begun)
            scope.cancel()


async def enter(service: object) -> None:
    async with worker_of(service, start="template"):
        raise AssertionError("it was not to start")


def open_now() -> int:
    return len(os.listdir("/proc/self/fd"))


async def test_what_starts_threads_is_imported_by_the_worker(
    anyio_backend: Any,
    importable: None,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Each has them; one warning names them. A later template may do without them."""
    monkeypatch.setenv("FORKWIRE_TEST_IMPORT", "threads")
    for _ in range(2):
        async with worker_of("slow_import", start="template") as worker:
            pid, _, threads = await worker.call("imported_in")
            assert (pid, threads) == (worker.pid, 1)
    warnings = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert len(warnings) == 1
    assert "a thread of the service" in warnings[0].getMessage()


async def test_a_template_with_threads_does_not_stay(
    anyio_backend: Any, importable: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Though one of them never ends, and Python would wait for that."""
    monkeypatch.setenv("FORKWIRE_TEST_IMPORT", "stubborn thread")
    pids: list[int] = []
    execute = template.execute

    def executed(*arguments: Any) -> int:
        pids.append(execute(*arguments))
        return pids[-1]

    monkeypatch.setattr(template, "execute", executed)
    async with worker_of("slow_import", start="template", grace=0.2) as worker:
        _, parent, _ = await worker.call("imported_in")
    useless, bare = pids
    assert bare == parent
    await until(lambda: is_over(useless))


async def test_a_terminal_s_interrupt_may_come_as_it_is_started(
    anyio_backend: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is meant for this process, and the template hears nothing of it."""
    monkeypatch.setattr(template, "DETACH", "kill -INT $$; " + template.DETACH)
    async with worker_of(starting, start="template") as worker:
        assert await worker.call("blocked") == []


@pytest.mark.parametrize(("how", "code"), [("exit", 7), ("crash", -signal.SIGSEGV)])
async def test_what_ends_the_process_at_import_ends_the_worker(
    anyio_backend: Any,
    importable: None,
    monkeypatch: pytest.MonkeyPatch,
    how: str,
    code: int,
) -> None:
    """Its death tells the story."""
    monkeypatch.setenv("FORKWIRE_TEST_IMPORT", how)
    with pytest.raises(WorkerDied) as died:
        async with worker_of("slow_import", start="template"):
            pass
    assert died.value.returncode == code
    if how == "crash":
        assert "slow_import" in died.value.native_stack


async def test_one_that_is_killed_as_it_imports_is_replaced(
    anyio_backend: Any,
    importable: None,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """That says nothing of what it imported: the next one does the same, for many that wait."""
    begun = tmp_path / "begun"
    monkeypatch.setenv("FORKWIRE_TEST_BEGUN", str(begun))
    monkeypatch.setenv("FORKWIRE_TEST_IMPORT", "sleep")
    parents = []

    async def start() -> None:
        async with worker_of("slow_import", start="template") as worker:
            parents.append((await worker.call("imported_in"))[1])

    async with anyio.create_task_group() as tasks:
        for _ in range(3):
            tasks.start_soon(start)
        await until(lambda: begun.exists() and begun.read_text())
        monkeypatch.setenv("FORKWIRE_TEST_IMPORT", "")
        os.kill(int(begun.read_text()), signal.SIGKILL)
    assert set(parents) == {int(begun.read_text())}  # that has imported it
    assert not caplog.records


async def test_what_the_import_raises_is_raised(
    anyio_backend: Any, importable: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As if the worker had imported it by itself, which it did."""
    monkeypatch.setenv("FORKWIRE_TEST_IMPORT", "raise")
    with pytest.raises(LookupError, match="no table to be found"):
        async with worker_of("slow_import", start="template"):
            pass
    with pytest.raises(ModuleNotFoundError, match="there_is_no_such"):
        async with worker_of("there_is_no_such", start="template"):
            pass


@pytest.mark.parametrize("start", ["template", "exec"])
async def test_a_program_that_is_its_own_service_does_not_start_itself_for_ever(
    anyio_backend: Any, importable: None, monkeypatch: pytest.MonkeyPatch, start: Any
) -> None:
    """What starts workers at its import, of itself, is told what to do."""
    monkeypatch.setenv("FORKWIRE_TEST_START", start)
    with pytest.raises(TypeError, match="importing endless starts workers that import endless"):
        async with worker_of("endless:Service", start=start):
            pass


async def test_a_preload_that_fails_is_left_out(anyio_backend: Any, importable: None) -> None:
    """It was only to save time."""
    async with worker_of(
        starting, start="template", preload=["there_is_no_such", "json.tool"]
    ) as worker:
        assert await worker.call("add", 1, 2) == 3


# -- the host dies ------------------------------------------------------------------------------


@contextlib.contextmanager
def host(service: str, how: str, **environment: str) -> Iterator[tuple[Any, dict[str, int]]]:
    """A program that has a worker from a template, and the pids that it told so far."""
    path = os.pathsep.join(filter(None, [str(SERVICES), os.environ.get("PYTHONPATH")]))
    process = subprocess.Popen(
        [sys.executable, str(HOST), service, how],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env={**os.environ, "PYTHONPATH": path, **environment},
    )
    pids: dict[str, int] = {}
    assert process.stdout is not None
    try:
        while how not in pids and (line := process.stdout.readline()):
            name, number = line.split()
            pids[name] = int(number)
            if {"template": "start", "worker": how}.get(name) == how and "template" in pids:
                break
        yield process, pids
    finally:
        process.kill()
        with process:
            for pid in pids.values():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)


@pytest.mark.parametrize("how", ["idle", "busy"])
@pytest.mark.parametrize("stop", [False, True], ids=["running", "stopped"])
def test_a_host_that_is_killed_takes_all_along(how: str, stop: bool) -> None:
    """Its template, stopped or not, and the worker, in C or not."""
    with host("starting", how) as (process, pids):
        assert set(pids) == {"host", "template", "worker"}
        if stop:
            os.kill(pids["template"], signal.SIGSTOP)
        process.kill()
        wait_for(lambda: is_over(pids["template"]) and is_over(pids["worker"]))


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
@pytest.mark.parametrize("how", ["sleep", "c"])
def test_a_host_that_ends_takes_a_template_along_that_imports(
    how: str, number: int, tmp_path: Path
) -> None:
    """Though that reads nothing; also when the host ends as programs do."""
    begun = tmp_path / "begun"
    environment = {"FORKWIRE_TEST_IMPORT": how, "FORKWIRE_TEST_BEGUN": str(begun)}
    with host("slow_import", "start", **environment) as (process, pids):
        wait_for(begun.exists)
        process.send_signal(number)
        process.wait(20)
        wait_for(lambda: is_over(pids["template"]))


def test_exit_functions_of_a_template_are_not_waited_for_long() -> None:
    """Also when the host has ended, and nobody is left to end it."""
    with host("slow_import", "idle", FORKWIRE_TEST_IMPORT="stubborn exit") as (process, pids):
        process.send_signal(signal.SIGINT)
        process.wait(20)
        wait_for(lambda: is_over(pids["template"]))


def test_without_a_loop_a_killed_template_is_told(importable: None) -> None:
    """The blocking front hears of it as the loop's does."""
    with sync.open_worker("starting", start="template", grace=0.3) as worker:
        os.kill(worker.call("pids")[1], signal.SIGKILL)
        with pytest.raises(WorkerDied, match="template"):
            worker.call("nap", 60)
    assert templates._current

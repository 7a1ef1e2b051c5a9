"""Every way to start a worker gives the same: one suite for all of them."""

from __future__ import annotations

import logging
import os
import signal
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import anyio
import pytest

from forkwire import RemoteError, UsageError, Worker, WorkerDied, open_worker, sync
from forkwire.process import ownership

from .services import starting
from .support_calls import wait_for_spare, worker_of

pytestmark = pytest.mark.anyio

STARTS = ["template", "spare", "fork", "exec"]
LINKS = {"pipe:", "socke"}


@pytest.fixture(params=STARTS)
def start(request: pytest.FixtureRequest) -> Any:
    """The method; "spare": from a template that has forked its next worker in advance."""
    if request.param == "spare":
        if sys.platform != "linux":
            pytest.skip("reads /proc")
        name, options = request.getfixturevalue("anyio_backend")
        backend: Any = "uvloop" if options.get("use_uvloop") else name
        with sync.open_worker(starting, start="template", backend=backend) as worker:
            wait_for_spare(worker.call("pids")[1], worker.pid)
        return "template"
    return request.param


class Host:
    def square(self, n: int) -> int:
        return n * n


@pytest.fixture
async def worker(start: Any, anyio_backend: Any) -> AsyncIterator[Worker]:
    async with worker_of(starting, start=start, host=Host(), grace=0.5) as worker:
        yield worker


async def test_calls_and_streams(worker: Worker) -> None:
    """Plain and async functions, generators of both kinds."""
    assert await worker.call("add", 1, 2) == 3
    assert await worker.call(starting.add_later, 1, 2) == 3
    assert [n async for n in worker.stream("count", 100)] == list(range(100))
    assert [n async for n in worker.stream("count_later", 100)] == list(range(100))


async def test_cancelled_means_stopped(worker: Worker) -> None:
    """A loop in Python and an await are interrupted, and the worker is kept."""
    for name, args in (("spin", ()), ("nap", (60,))):
        with anyio.move_on_after(0.1) as scope:
            await worker.call(name, *args)
        assert scope.cancelled_caught
    assert await worker.call("add", 1, 2) == 3


async def test_errors_come_back(worker: Worker) -> None:
    with pytest.raises(ValueError, match="boo") as raised:
        await worker.call("fail", "boo")
    assert isinstance(raised.value, RemoteError)
    assert "in fail" in str(raised.value)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV, signal.SIGTERM, 0])
async def test_a_death_is_explained(worker: Worker, number: int) -> None:
    """Its code, the call that it took along, the resources, and what it said at last."""
    await worker.call("speak", "last words")
    with pytest.raises(WorkerDied) as died:
        await worker.call("die", number)
    assert died.value.returncode == (-number or 3)
    assert died.value.in_flight[0].startswith("die")
    assert died.value.rusage is not None
    if number != signal.SIGSEGV:  # after which faulthandler has much to say
        assert "last words" in died.value.stderr_tail


async def test_logs_arrive(worker: Worker, caplog: pytest.LogCaptureFixture) -> None:
    await worker.call("log", "a line")
    await worker.call("add", 1, 2)
    records = [record for record in caplog.records if record.name == "starting"]
    assert [record.getMessage() for record in records] == ["a line"]
    assert records[0].levelno == logging.WARNING


async def test_prints_arrive(worker: Worker, capfd: pytest.CaptureFixture[str]) -> None:
    await worker.call("speak", "a line")
    await worker.aclose()
    said = capfd.readouterr()
    line = f" {worker.pid}] a line\n"
    assert said.out.endswith(line)
    assert said.err.endswith(line)


async def test_the_host_is_called(worker: Worker) -> None:
    assert await worker.call("square_there", 7) == 49
    assert await worker.call("square_there_later", 7) == 49


async def test_it_is_a_process_of_its_own(worker: Worker) -> None:
    """It leads a group, in the host's session; nothing is blocked, Ctrl-C unheard."""
    pid, group, session = await worker.call("groups")
    assert pid == group == worker.pid
    assert session == os.getsid(0)
    assert await worker.call("blocked") == []
    assert "SIGINT" in await worker.call("handlers")


async def test_nothing_of_its_host_is_open(start: Any, anyio_backend: Any) -> None:
    """It has none of our pipes and sockets that were there before it, as another worker's.

    Its stdin is empty.
    """
    if start == "fork":
        pytest.skip("inherits what the host has open")
    async with worker_of(starting, start=start):
        mine = starting.descriptors()
        before = {mine[str(fd)] for fd in ownership._owned if mine[str(fd)][:5] in LINKS}
        async with worker_of(starting, start=start) as worker:
            found = await worker.call("descriptors")
    assert before
    assert not before & set(found.values())
    assert found["0"] == "/dev/null"


async def test_it_has_the_surroundings_of_its_host(
    start: Any, anyio_backend: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Environment, folder, arguments and path, nothing more, for whatever it starts itself."""
    (tmp_path / "anyio.py").write_text("raise LookupError('of a folder where nobody looks')")
    monkeypatch.setenv("A_TEST", "\udc80 as it is")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["program", "--option"])
    async with worker_of(starting, start=start) as worker:
        assert await worker.call("surroundings_safely", "A_TEST") == [
            ascii("\udc80 as it is"),
            str(tmp_path),
            sys.argv,
            sys.path,
        ]
        assert await worker.call("environment") == sorted(os.environ)


async def test_it_ends(start: Any, anyio_backend: Any) -> None:
    async with worker_of(starting, start=start) as worker:
        assert await worker.call("add", 1, 2) == 3
    assert worker.returncode == 0


@pytest.mark.parametrize("named", [False, True], ids=["function", "name"])
async def test_the_initializer_runs_first(start: Any, named: bool, anyio_backend: Any) -> None:
    """With its arguments, once in each worker, before anything is called."""
    initializer = f"{starting.__name__}:initialize" if named else starting.initialize
    values = [1, "two", [3.0, None], b"x" * 50_000]
    for _ in range(2):
        async with worker_of(
            starting, start=start, initializer=initializer, initargs=values
        ) as worker:
            assert await worker.call("initialized") == values


async def test_what_the_initializer_raises_is_raised(start: Any, anyio_backend: Any) -> None:
    with pytest.raises(LookupError, match="no table"):
        async with worker_of(starting, start=start, initializer=starting.fail_to_initialize):
            pass


async def test_an_initializer_without_a_name(start: Any, anyio_backend: Any) -> None:
    """It can only be inherited."""
    values: list[int] = []

    def initialize(value: int) -> None:
        starting._initialized.append(value)
        values.append(value)

    if start == "fork":
        async with worker_of(starting, start=start, initializer=initialize, initargs=[7]) as worker:
            assert await worker.call("initialized") == [7]
        return
    with pytest.raises(UsageError, match="initializer"):
        open_worker(starting, start=start, initializer=initialize)
    with pytest.raises(UsageError, match="initargs"):
        open_worker(starting, start=start, initializer=starting.initialize, initargs=[object()])


@pytest.fixture
def sync_worker(start: Any) -> Iterator[sync.SyncWorker]:
    with sync.open_worker(starting, start=start, host=Host(), grace=0.5) as worker:
        yield worker


@pytest.mark.parametrize("anyio_backend", [("asyncio", {})], ids=["blocking"])
def test_without_a_loop(sync_worker: sync.SyncWorker, anyio_backend: Any) -> None:
    """The same, blocking: calls, streams, cancels, the host's calls, and the death."""
    assert sync_worker.call("add", 1, 2) == 3
    assert list(sync_worker.stream("count_later", 100)) == list(range(100))
    with pytest.raises(TimeoutError):
        sync_worker.options(timeout=0.1).call("spin")
    assert sync_worker.call("square_there", 7) == 49
    with pytest.raises(WorkerDied) as died:
        sync_worker.call("die", signal.SIGKILL)
    assert died.value.returncode == -signal.SIGKILL

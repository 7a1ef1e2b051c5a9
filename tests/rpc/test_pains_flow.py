"""What users of other libraries suffer when they cancel, send much at once, or call back."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import anyio
import anyio.from_thread
import pytest

import forkwire
from forkwire import DeadlineExceededError, ValueEncodeError, Worker, WorkerDied, sync

from .services import suffering
from .support_pains import (
    LIMIT,
    WAYS_TO_SERVE,
    is_running,
    nothing_left_behind,  # noqa: F401
    sync_worker_of,
    until,
    worker_of,
)

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.usefixtures("nothing_left_behind"),
    pytest.mark.timeout(60),
    pytest.mark.skipif(sys.platform != "linux", reason="reads /proc"),
]

MIB = 2**20
IN_FLIGHT = 1024  # calls that a worker takes before it has ended some
SERVED = pytest.mark.parametrize("served", WAYS_TO_SERVE)
WINDOW = 32  # items of a stream on their way, unless asked otherwise


# -- cancelling -------------------------------------------------------------------------------


STOPPABLE = ["spin", "sleep", "sleep_later", "join_a_lock", "wait_for_a_program"]


@pytest.mark.parametrize("method", STOPPABLE)
async def test_cancelling_stops_the_work(method: str, tmp_path: Path) -> None:
    """Elsewhere only the waiting is cancelled and the child works on; here the work has stopped.

    A loop, a sleep, a lock, a program that is waited for, an async function: its ``finally`` has
    run when the caller goes on, and the same worker takes the next call.
    """
    begun = tmp_path / "begun"
    async with worker_of() as worker:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(worker.call, method, str(begun))
            await until(begun.exists)
            tasks.cancel_scope.cancel()
        assert worker.statistics().in_flight == 0
        assert await worker.call("counted", "closed") == 1
        assert await worker.call("pid") == worker.pid


@pytest.mark.parametrize("method", ["spin", "sleep_later"])
async def test_a_timeout_stops_the_work(method: str) -> None:
    """Elsewhere ``wait_for`` and ``result(timeout)`` leave the work running; here it stops."""
    async with worker_of() as worker:
        with pytest.raises(TimeoutError):
            with anyio.fail_after(0.1):
                await worker.call(method, os.devnull)
        assert await worker.call("counted", "closed") == 1


@pytest.mark.parametrize("method", ["spin", "sleep_later"])
def test_a_timeout_stops_the_work_without_a_loop(method: str) -> None:
    """Elsewhere there is no way to stop a running task; here a timeout of a blocking call does."""
    with sync_worker_of() as worker:
        with pytest.raises(TimeoutError):
            worker.options(timeout=0.1).call(method, os.devnull)
        assert worker.call("counted", "closed") == 1
        assert worker.call("pid") == worker.pid


async def test_work_in_c_that_cannot_be_interrupted_is_killed(tmp_path: Path) -> None:
    """Elsewhere the process runs on for hours; here it ends after the grace, and the caller waits.

    Later calls say what became of the worker.
    """
    begun = tmp_path / "begun"
    async with worker_of(grace=0.1) as worker:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(worker.call, "work_in_c", str(begun))
            await until(begun.exists)
            tasks.cancel_scope.cancel()
        assert not is_running(worker.pid)
        with pytest.raises(WorkerDied, match="work_in_c"):
            await worker.call("add", 1, 2)


@pytest.mark.parametrize("method", ["spin", "sleep", "wait_for_a_program"])
async def test_cancelling_stops_the_work_of_plain_functions(method: str, tmp_path: Path) -> None:
    """Elsewhere a sync function cannot be stopped at all; here a service of nothing else can."""
    begun = tmp_path / "begun"
    async with worker_of(**WAYS_TO_SERVE["alone"]) as worker:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(worker.call, method, str(begun))
            await until(begun.exists)
            tasks.cancel_scope.cancel()
        assert await worker.call("counted", "closed") == 1
        assert await worker.call("pid") == worker.pid


@SERVED
async def test_a_call_is_cancelled_that_the_worker_has_not_read(
    served: str, tmp_path: Path
) -> None:
    """Elsewhere a writer of a large argument cannot be cancelled, or breaks the pipe; here it can.

    What runs before it goes on, and what comes after it is answered.
    """
    begun, path, found = tmp_path / "begun", tmp_path / "path", list[str]()

    async def wait() -> None:
        found.append(await worker.call("wait_for", str(begun), str(path)))

    options = WAYS_TO_SERVE[served]
    async with worker_of(grace=0.3, **options) as worker, anyio.create_task_group() as tasks:
        tasks.start_soon(wait)
        await until(begun.exists)
        with anyio.move_on_after(0.05):
            await worker.call("size_of", bytes(32 * MIB))
            if served != "threads":
                pytest.fail("it was not cancelled")
        path.touch()
        assert await worker.call("add", 1, 2) == 3
    assert found == ["found"]


async def test_a_queued_call_that_is_cancelled_never_runs(tmp_path: Path) -> None:
    """Elsewhere what waits in the queue is run all the same; here it is taken out of it."""
    begun, path, ran = (tmp_path / name for name in ("begun", "path", "ran"))
    async with worker_of() as worker, anyio.create_task_group() as tasks:
        tasks.start_soon(worker.call, "wait_for", str(begun), str(path))
        await until(begun.exists)
        with anyio.move_on_after(0.05) as scope:
            await worker.call("sleep", str(ran))
        assert scope.cancelled_caught
        path.touch()
        assert await worker.call("counted", "closed") == 1
        assert not ran.exists()


async def test_leaving_the_block_does_not_wait_for_work_without_end(tmp_path: Path) -> None:
    """Elsewhere closing a pool joins its busy workers for ever; here what runs is stopped."""
    begun, errors = tmp_path / "begun", list[Exception]()

    async def spin() -> None:
        try:
            await worker.call("spin", str(begun))
        except forkwire.CallError as error:
            errors.append(error)

    async with anyio.create_task_group() as tasks, worker_of() as worker:
        tasks.start_soon(spin)
        await until(begun.exists)
    assert len(errors) == 1
    assert worker.returncode == 0


async def test_leaving_takes_one_grace_where_the_work_cannot_be_stopped(tmp_path: Path) -> None:
    """Elsewhere an executor waits for its threads for ever; here the process ends after the grace.

    A function in another than the worker's first thread cannot be interrupted.
    """
    begun, never = [tmp_path / name for name in "ab"], str(tmp_path / "never")

    async def wait(path: Path) -> None:
        with pytest.raises(forkwire.CallError):
            await worker.call("wait_for", str(path), never)

    options = WAYS_TO_SERVE["threads"]
    async with anyio.create_task_group() as tasks, worker_of(grace=0.5, **options) as worker:
        for path in begun:
            tasks.start_soon(wait, path)
        await until(lambda: all(path.exists() for path in begun))
        start = time.monotonic()
        await worker.aclose()
        assert time.monotonic() - start < 2 * 0.5
    assert worker.returncode == -signal.SIGTERM


# -- large values -----------------------------------------------------------------------------


async def _echo(worker: Worker, method: str, size: int, fill: int) -> None:
    value = bytes([fill]) * size
    assert await worker.call(method, value) == value


@pytest.mark.parametrize("method", ["echo", "echo_later"])
@pytest.mark.parametrize(("size", "count"), [(65_537, 40), (3 * MIB, 6)], ids=["64K", "3M"])
async def test_large_messages_both_ways_at_once(method: str, size: int, count: int) -> None:
    """Elsewhere two sides that both write more than a pipe holds wait for each other for ever."""
    async with worker_of() as worker, anyio.create_task_group() as tasks:
        for number in range(count):
            tasks.start_soon(_echo, worker, method, size, number)


@SERVED
async def test_large_messages_both_ways_however_they_are_served(served: str) -> None:
    """Elsewhere a side that only writes never gets to read; here whoever writes reads too."""
    options = WAYS_TO_SERVE[served]
    async with worker_of(**options) as worker, anyio.create_task_group() as tasks:
        for number in range(5):
            tasks.start_soon(_echo, worker, "echo", 2 * MIB, number)


@pytest.mark.slow
async def test_very_large_messages_both_ways_at_once() -> None:
    """Elsewhere sizes are a matter of luck; here 64 MiB go both ways at once, and more between."""
    async with worker_of() as worker, anyio.create_task_group() as tasks:
        for number in range(2):
            tasks.start_soon(_echo, worker, "echo", 64 * MIB, number)
        assert await worker.call("add_later", 1, 2) == 3


def test_large_messages_both_ways_without_a_loop() -> None:
    """Elsewhere a blocking write of a large value deadlocks with the answer to the last one."""
    value = os.urandom(3 * MIB)
    with sync_worker_of() as worker, anyio.from_thread.start_blocking_portal() as portal:
        futures = [portal.start_task_soon(_in_thread, worker, value) for _ in range(4)]
        assert all(future.result(LIMIT) == value for future in futures)


async def _in_thread(worker: sync.SyncWorker, value: bytes) -> Any:
    return await anyio.to_thread.run_sync(worker.call, "echo", value)


@pytest.mark.parametrize("value", [b"x", "x", [0]], ids=["bytes", "text", "list"])
async def test_a_value_above_the_limit_is_refused_before_anything_is_sent(value: Any) -> None:
    """Elsewhere it fails half-way (2 GiB), and the connection with it; here nothing was sent."""
    async with worker_of(max_message_size=MIB) as worker:
        assert await worker.call("add", 1, 2) == 3
        sent = worker.statistics().bytes_sent
        with pytest.raises(ValueEncodeError, match=str(MIB)):
            await worker.call("echo", value * (2 * MIB))
        assert worker.statistics().bytes_sent == sent
        assert await worker.call("echo", value * (MIB // 2)) == value * (MIB // 2)


@pytest.mark.parametrize("method", ["echo", "echo_later"])
async def test_a_result_above_the_limit_is_an_error_of_that_call(method: str) -> None:
    """Elsewhere a result that is too large kills the worker or hangs; here the call says so."""
    async with worker_of(max_message_size=MIB) as worker:
        (half,) = [bytes(MIB - 1000)]
        with pytest.raises(ValueEncodeError, match=str(MIB)):
            await worker.call("twice" if method == "echo" else "twice_later", half)
        assert await worker.call(method, half) == half


# -- backpressure -----------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["numbers", "numbers_later"])
async def test_a_producer_is_not_run_ahead(method: str) -> None:
    """Elsewhere a generator fills memory if its reader is slow; here it makes a window's worth."""
    async with worker_of() as worker, worker.stream(method) as stream:
        for expected in range(10):
            assert await anext(stream) == expected
        await worker.ping()
        made = await worker.call("counted", "made")
        assert 10 <= made <= 10 + WINDOW + 1
        await worker.ping()
        assert await worker.call("counted", "made") == made


@SERVED
async def test_a_producer_is_not_run_ahead_however_it_is_served(served: str) -> None:
    """Elsewhere only async generators know of backpressure; here plain ones wait as well."""
    async with (
        worker_of(**WAYS_TO_SERVE[served]) as worker,
        worker.options(window=4).stream("numbers") as stream,
    ):
        for expected in range(10):
            assert await anext(stream) == expected
        for _ in range(5):
            await worker.ping()
            assert 10 <= await worker.call("counted", "made") <= 15


async def test_large_items_do_not_fill_memory() -> None:
    """Elsewhere results pile up in the parent; here 200 MiB go through with a few at a time."""
    async with worker_of() as worker:
        here, there = suffering.forget_memory(), await worker.call("forget_memory")
        options = worker.options(window=4)
        async with options.stream("blocks", MIB, 200) as stream:
            count = 0
            async for block in stream:
                count += len(block)
        assert count == 200 * MIB
        assert suffering.memory() - here < 40_000
        assert await worker.call("memory") - there < 40_000


@pytest.mark.parametrize("kind", ["plain", "async"])
@pytest.mark.parametrize("method", ["take", "take_later"])
async def test_an_argument_is_not_read_ahead(kind: str, method: str, tmp_path: Path) -> None:
    """Elsewhere ``map`` eats its whole input at once, an endless one for ever; here as needed."""
    begun, path = tmp_path / "begun", tmp_path / "path"
    made = 0
    total = 2000

    def source() -> Iterator[int]:
        nonlocal made
        for number in range(total):
            made += 1
            yield number

    async def source_later() -> AsyncIterator[int]:
        for number in source():
            yield number

    sources: dict[str, Callable[[], Any]] = {"plain": source, "async": source_later}
    taken: list[int] = []

    async def call(worker: Worker) -> None:
        taken.append(await worker.call(method, sources[kind](), 5, str(begun), str(path)))

    async with worker_of() as worker, anyio.create_task_group() as tasks:
        tasks.start_soon(call, worker)
        await until(begun.exists)
        for _ in range(30):
            await worker.ping()
        assert 5 <= made <= 5 + 2 * WINDOW
        path.touch()
    assert taken == [total]
    assert made == total


async def test_thousands_of_calls_at_once_do_not_fill_memory(tmp_path: Path) -> None:
    """Elsewhere every submitted task is queued at the worker; here those beyond its limit wait."""
    count, size = 4_000, 4_000
    begun, path = tmp_path / "begun", tmp_path / "path"
    value, sizes = bytes(size), list[int]()

    async def call() -> None:
        sizes.append(await worker.call("size_of", value))

    async with worker_of() as worker:
        here, there = suffering.forget_memory(), await worker.call("forget_memory")
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(worker.call, "wait_for", str(begun), str(path))
            await until(begun.exists)
            for _ in range(count):
                tasks.start_soon(call)
            await until(lambda: worker.statistics().in_flight == IN_FLIGHT)
            for _ in range(20):
                await worker.ping()
            assert worker.statistics().in_flight == IN_FLIGHT
            assert worker.statistics().bytes_waiting <= 2 * MIB
            path.touch()
        assert sizes == [size] * count
        assert suffering.memory() - here < 120_000  # most of it are thousands of tasks
        assert await worker.call("memory") - there < 20_000


@pytest.mark.parametrize("method", ["size_of", "echo_later"])
async def test_calls_that_the_worker_does_not_read_wait_here(method: str, tmp_path: Path) -> None:
    """Elsewhere their arguments are copied into a queue, all of them; here 1 MiB or so is."""
    begun, path = tmp_path / "begun", tmp_path / "path"
    plain = method == "size_of"
    options = WAYS_TO_SERVE["alone" if plain else "loop"]
    value, answers = bytes(100_000), list[Any]()

    async def call() -> None:
        answers.append(await worker.call(method, value))

    async with worker_of(**options) as worker, anyio.create_task_group() as tasks:
        tasks.start_soon(worker.call, "wait_for", str(begun), str(path))
        await until(begun.exists)
        for _ in range(200):
            tasks.start_soon(call)
        for _ in range(50):
            await anyio.lowlevel.checkpoint()
            assert worker.statistics().bytes_waiting <= 2 * MIB
        path.touch()
    assert answers == [len(value) if plain else value] * 200


async def test_notifications_wait_while_the_worker_is_busy(tmp_path: Path) -> None:
    """Elsewhere fire-and-forget fills a queue without a bound; here the sender is slowed down."""
    begun, path = tmp_path / "begun", tmp_path / "path"
    sent, count = 0, IN_FLIGHT + 300

    async def send() -> None:
        nonlocal sent
        for _ in range(count):
            await worker.notify("size_of", b"x" * 1000)
            sent += 1

    async with worker_of() as worker, anyio.create_task_group() as tasks:
        tasks.start_soon(worker.call, "wait_for", str(begun), str(path))
        await until(begun.exists)
        tasks.start_soon(send)
        await until(lambda: worker.statistics().in_flight == IN_FLIGHT)
        for _ in range(20):
            await worker.ping()
        assert sent < IN_FLIGHT
        path.touch()
    assert sent == count


# -- calling back -----------------------------------------------------------------------------


class Host:
    """Calls the worker again, which calls here again."""

    def __init__(self) -> None:
        self.worker: Any = None

    async def up(self, depth: int) -> int:
        return 0 if not depth else await self.worker.call("down", depth - 1) + 1

    async def up_later(self, depth: int) -> int:
        return 0 if not depth else await self.worker.call("down_later", depth - 1) + 1


class BlockingHost:
    def __init__(self) -> None:
        self.worker: Any = None

    def up(self, depth: int) -> int:
        return 0 if not depth else self.worker.call("down", depth - 1) + 1


@pytest.mark.parametrize("method", ["down", "down_later"])
async def test_calls_that_call_back_do_not_deadlock(method: str) -> None:
    """Elsewhere two sides that wait for each other's answer hang; here calls nest 20 deep.

    Also those of plain functions, of which the worker runs one at a time.
    """
    host = Host()
    async with worker_of(host=host) as worker:
        host.worker = worker
        assert await worker.call(method, 20) == 20


@pytest.mark.parametrize("method", ["down", "down_later"])
async def test_many_calls_that_call_back_do_not_deadlock(method: str) -> None:
    """Elsewhere the pool's threads are all used up by callers; here 30 nest side by side."""
    host, answers = Host(), []

    async def call() -> None:
        answers.append(await worker.call(method, 6))

    async with worker_of(host=host) as worker:
        host.worker = worker
        async with anyio.create_task_group() as tasks:
            for _ in range(30):
                tasks.start_soon(call)
    assert answers == [6] * 30


def test_blocking_calls_that_call_back_do_not_deadlock() -> None:
    """The same, blocking on both sides."""
    host = BlockingHost()
    with sync_worker_of(host=host) as worker:
        host.worker = worker
        assert worker.call("down", 20) == 20


async def test_workers_that_call_each_other_do_not_deadlock() -> None:
    """Elsewhere A waits for B, which waits for A; here A's second call runs inside its first."""

    class Between:
        def __init__(self) -> None:
            self.other: Any = None

        async def up(self, depth: int) -> int:
            return 0 if not depth else await self.other.call("down", depth - 1) + 1

    of_first, of_second = Between(), Between()
    async with worker_of(host=of_first) as first, worker_of(host=of_second) as second:
        of_first.other, of_second.other = second, first
        assert await first.call("down", 12) == 12


async def test_a_deadline_holds_through_calls_that_call_back() -> None:
    """Elsewhere a nested call forgets the caller's timeout; here it travels, and all stops."""

    class Slow:
        async def up(self, depth: int) -> int:
            await anyio.sleep(60)
            return depth

    async with worker_of(host=Slow()) as worker:
        start = time.monotonic()
        with pytest.raises(TimeoutError):
            with anyio.fail_after(0.2):
                await worker.call("down", 5)
        assert time.monotonic() - start < 5
        assert worker.statistics().in_flight == 0
        assert await worker.call("add", 1, 2) == 3
    assert issubclass(DeadlineExceededError, TimeoutError)

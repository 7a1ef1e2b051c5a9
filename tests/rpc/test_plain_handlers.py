"""What a plain handler can do: `forkwire.sync.current_call`, called from a loop and without one."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import anyio
import pytest

import forkwire
from forkwire import current_call
from forkwire import sync as blocking
from forkwire.sync import SyncWorker

from .services import mixed, plain
from .support_calls import until, worker_of
from .support_sync import is_running

pytestmark = pytest.mark.anyio

DEPTHS = [1, 10, 100]


class Host:
    """Offers both kinds of functions, which call the worker."""

    def __init__(self) -> None:
        self.ended = self.asleep = 0

    def square(self, n: int) -> int:
        return n * n

    async def square_later(self, n: int) -> int:
        await anyio.lowlevel.checkpoint()
        return n * n

    async def bounce(self, n: int) -> int:
        """A turn in the host's loop."""
        return int(await current_call().host.call("countdown", n))

    def bounce_plain(self, n: int) -> int:
        """A turn in a thread of the host's."""
        return int(blocking.current_call().host.call("countdown_plain", n))

    async def bounce_mixed(self, n: int) -> int:
        return int(await current_call().host.call("countdown_mixed", n))

    async def bounce_plainly(self, n: int) -> int:
        return int(await current_call().host.call("countdown_plainly", n))

    def numbers(self, n: int) -> Iterator[int]:
        yield from range(n)

    async def endless_numbers(self) -> AsyncIterator[int]:
        n = 0
        try:
            while True:
                yield n
                n += 1
        finally:
            self.ended += 1

    async def total(self, numbers: AsyncIterator[int]) -> int:
        return sum([n async for n in numbers])

    async def sleep(self) -> None:
        self.asleep += 1
        try:
            await anyio.sleep(60)
        finally:
            self.ended += 1


# -- calls to the host ------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["square", "square_later"])
async def test_a_plain_handler_calls_its_host(method: str) -> None:
    """What its host offers, whatever kind of function that is; the call blocks."""
    async with worker_of(plain, host=Host()) as worker:
        assert await worker.call("ask", method, 7) == 49


async def test_streams_between_a_plain_handler_and_its_host() -> None:
    """Results and arguments, whole and left early."""
    host = Host()
    async with worker_of(plain, host=host) as worker:
        assert await worker.call("gather", 100) == list(range(100))
        assert await worker.call("gather_some", 40) == list(range(40))
        await until(lambda: host.ended == 1)
        assert await worker.call("feed", 100) == sum(range(100))


@pytest.mark.parametrize("depth", DEPTHS)
async def test_plain_and_async_functions_nest(depth: int) -> None:
    """A plain handler and the host's loop call each other as deep as anybody likes."""
    async with worker_of(plain, host=Host()) as worker:
        assert await worker.call("countdown", depth) == depth


@pytest.mark.parametrize("depth", DEPTHS)
async def test_plain_functions_nest(depth: int) -> None:
    """On both sides plain functions, each of which waits for the other."""
    async with worker_of(plain, host=Host()) as worker:
        assert await worker.call("countdown_plain", depth) == depth


@pytest.mark.parametrize("depth", DEPTHS)
async def test_plain_and_async_functions_of_one_worker_nest(depth: int) -> None:
    """In the worker plain and async functions take turns, in the host an async one."""
    async with worker_of(mixed, host=Host()) as worker:
        assert await worker.call("countdown_mixed", depth) == depth


async def test_several_trees_nest_at_once() -> None:
    """Calls of one tree run inside each other; those of others wait for their turn."""
    async with worker_of(plain, host=Host()) as worker:
        results: list[int] = []

        async def call(depth: int) -> None:
            results.append(await worker.call("countdown", depth))

        async with anyio.create_task_group() as tasks:
            for depth in range(10):
                tasks.start_soon(call, depth)
        assert sorted(results) == list(range(10))


async def test_what_is_of_another_tree_does_not_run_inside() -> None:
    """A handler that waits for its host holds what it holds: others wait."""
    host = Host()
    async with worker_of(plain, host=host) as worker:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(worker.call, "ask", "sleep")
            await until(lambda: host.asleep)
            with anyio.move_on_after(0.05) as scope:
                await worker.call("add", 1, 2)
            assert scope.cancelled_caught
            tasks.cancel_scope.cancel()
        assert host.ended == 1
        assert await worker.call("add", 1, 2) == 3


async def test_a_host_call_that_times_out() -> None:
    """The plain handler goes on, and the host's function has been cancelled."""
    host = Host()
    async with worker_of(plain, host=host) as worker:
        assert await worker.call("ask_for", 0.05, "sleep") == (
            "sleep did not end within 0.05 seconds"
        )
        assert host.ended == 1


# -- the call itself --------------------------------------------------------------------------


async def test_progress_of_a_plain_handler() -> None:
    """It is told as it comes."""
    told: list[Any] = []
    async with worker_of(plain) as worker:
        options = worker.options(on_progress=lambda *report: told.append(report))
        assert await options.call("steps", 3) == "done"
        assert told == [(n, 3, f"step {n}") for n in (1, 2, 3)]
        assert await worker.call("steps", 3) == "done"


async def test_the_deadline_of_the_caller_is_known() -> None:
    """A scope's deadline travels."""
    async with worker_of(plain) as worker:
        with anyio.fail_after(10):
            assert 0 < await worker.call("deadline") <= 10


async def test_who_am_i() -> None:
    """A handler's call has its method's name."""
    async with worker_of(plain) as worker:
        assert await worker.call("who") == "who False <SyncCurrentCall who id=1>"


async def test_a_thread_of_a_handler_has_no_call() -> None:
    """Only the handler's own context has."""
    async with worker_of(plain) as worker:
        assert await worker.call("who_elsewhere") == "UsageError"


async def test_each_kind_of_handler_has_its_own_current_call() -> None:
    """The other one says which is right."""
    async with worker_of(mixed) as worker:
        assert "forkwire.sync.current_call" in await worker.call("wrong_in_plain")
        assert "forkwire.current_call" in await worker.call("wrong_in_async")


async def test_outside_of_handlers_there_is_no_call() -> None:
    """Both say so."""
    for function in (blocking.current_call, current_call):
        with pytest.raises(forkwire.UsageError, match="no call is being handled here"):
            function()


async def test_a_shield_holds_off_the_cancellation(tmp_path: Path) -> None:
    """What is in it is done; the interruption comes after."""
    begun, go = tmp_path / "begun", tmp_path / "go"
    async with worker_of(plain) as worker:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(worker.call, "shielded", str(begun), str(go))
            await until(begun.exists)
            tasks.cancel_scope.cancel()
            with anyio.CancelScope(shield=True):
                await anyio.sleep(0.1)  # it has the cancel by now
                go.touch()
        assert await worker.call("state", "stopped") == 1


async def test_a_handler_may_look_whether_it_is_cancelled(tmp_path: Path) -> None:
    """In a shield, or in another thread than the first."""
    begun = tmp_path / "begun"
    async with worker_of(plain, threads=2) as worker:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(worker.call, "wait_for_cancel", str(begun))
            tasks.start_soon(worker.call, "wait_for_cancel", str(begun))
            await until(begun.exists)
            tasks.cancel_scope.cancel()
        assert await worker.call("add", 1, 2) == 3


async def test_cancelling_interrupts_a_plain_handler_that_waits_for_its_host() -> None:
    """Both ends of the call are stopped before the caller goes on."""
    host = Host()
    async with worker_of(plain, host=host) as worker:
        with anyio.move_on_after(0.1) as scope:
            await worker.call("ask", "sleep")
        assert scope.cancelled_caught
        assert host.ended == 1
        assert await worker.call("add", 1, 2) == 3


async def test_streamed_arguments_in_plain_handlers() -> None:
    """A plain function iterates over what an async generator makes."""

    async def numbers() -> AsyncIterator[int]:
        for n in range(100):
            yield n

    async with worker_of(plain) as worker:
        assert await worker.call("total", numbers()) == sum(range(100))
        assert await worker.call("first", numbers()) == 0
        doubled = [n async for n in worker.stream("doubled", numbers())]
        assert doubled == [2 * n for n in range(100)]


async def test_an_argument_that_waits_does_not_outlive_its_call() -> None:
    """A plain handler that waits for an item is interrupted there."""

    async def never() -> AsyncIterator[int]:
        yield 1
        await anyio.sleep(60)

    async with worker_of(plain) as worker:
        with anyio.move_on_after(0.1) as scope:
            await worker.call("total", never())
        assert scope.cancelled_caught
        assert await worker.call("add", 1, 2) == 3


async def test_a_slow_callback_of_a_plain_feeder_is_interrupted() -> None:
    """What makes the items of an argument is the handler's own code, and is interrupted too."""
    async with worker_of(plain, host=Host(), grace=5) as worker:
        before = time.monotonic()
        with anyio.move_on_after(0.2):
            await worker.call("feed_slowly")
        assert time.monotonic() - before < 3
        assert await worker.call("add", 1, 2) == 3


async def test_a_worker_may_open_a_worker() -> None:
    """In a plain handler, with `forkwire.sync`."""
    async with worker_of(plain) as worker:
        assert await worker.call("grand", 21) == 42


async def test_a_cancelled_handler_ends_the_worker_that_it_opened(tmp_path: Path) -> None:
    """Its block is left as any block is; nothing is left of what it started."""
    note = tmp_path / "pid"
    async with worker_of(plain) as worker:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(worker.call, "grand_nap", str(note))
            await until(lambda: note.exists() and note.read_text())
            tasks.cancel_scope.cancel()
        assert not is_running(int(note.read_text()))
        assert await worker.call("threads") == ["MainThread"]


async def test_a_handler_may_be_cancelled_at_any_moment() -> None:
    """In the midst of whatever it asks its host for: the worker goes on, nothing is in flight."""
    moments = random.Random(5)
    asked: list[tuple[Any, ...]] = [
        ("gather", 50), ("gather_some", 40), ("feed", 60), ("countdown", 6), ("ask", "square", 3),
    ]  # fmt: skip
    async with worker_of(plain, host=Host()) as worker:
        for _ in range(60):
            with anyio.move_on_after(moments.random() * 0.01):
                await worker.call(*moments.choice(asked))
            assert await worker.call("add", 1, 2) == 3
        assert worker.statistics().in_flight == 0


# -- from a caller without a loop ---------------------------------------------------------------


class TestWithoutALoop:
    """The same where the host has no loop; more of it is in test_sync_host."""

    @pytest.fixture
    def worker(self) -> Iterator[SyncWorker]:
        with blocking.open_worker(mixed, host=PlainHost()) as worker:
            yield worker

    @pytest.mark.parametrize("depth", DEPTHS)
    def test_plain_and_async_functions_nest(self, worker: SyncWorker, depth: int) -> None:
        """An async handler and a host without a loop call each other."""
        assert worker.call("countdown_mixed", depth) == depth

    def test_interruption(self, worker: SyncWorker) -> None:
        """A plain function beside a loop is interrupted as without one."""
        with pytest.raises(TimeoutError):
            worker.options(timeout=0.1).call("spin")
        assert worker.call("add_later", 1, 2) == 3


class PlainHost:
    def bounce_mixed(self, n: int) -> int:
        return int(blocking.current_call().host.call("countdown_mixed", n))

    def bounce_plainly(self, n: int) -> int:
        return int(blocking.current_call().host.call("countdown_plainly", n))


def test_main_threads() -> None:
    """Plain handlers run in the worker's main thread, also beside a loop."""
    with blocking.open_worker(mixed) as worker:
        assert worker.call("my_thread") == threading.main_thread().name


async def test_what_cannot_be_sent_to_the_host_is_an_error_there() -> None:
    """Nothing is in flight after that, and the handler may go on."""
    async with worker_of(plain, host=Host()) as worker:
        assert await worker.call("ask_badly") == "ValueEncodeError"
        assert await worker.call("ask", "square", 7) == 49

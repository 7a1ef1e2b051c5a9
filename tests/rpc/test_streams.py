"""Streams: items in order and by credit, and generators that are stopped when nobody wants more."""

from __future__ import annotations

import gc
import itertools
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any

import anyio
import pytest

from forkwire import (
    CallError,
    DeadlineExceededError,
    RemoteError,
    UsageError,
    ValueEncodeError,
    WorkerDied,
    WrongKindError,
)

from .services import calling
from .support_calls import until_state, worker_of

pytestmark = pytest.mark.anyio

COUNTS = pytest.mark.parametrize("function", ["count", "count_later"])
ENDLESS = pytest.mark.parametrize("function", ["endless", "endless_later"])


@COUNTS
@pytest.mark.parametrize("window", [1, 3, 1000])
async def test_all_items_in_order(function: str, window: int) -> None:
    """Whatever the window is."""
    async with worker_of() as worker:
        options = worker.options(window=window)
        assert [n async for n in options.stream(function, 300)] == list(range(300))
        assert [n async for n in options.stream(function, 0)] == []


async def test_by_function_and_by_name() -> None:
    """A function that yields is streamed by itself or by its name."""
    async with worker_of() as worker:
        assert [n async for n in worker.stream(calling.count, 3)] == [0, 1, 2]
        assert [n async for n in worker.stream(calling.count_later, n=3)] == [0, 1, 2]


async def test_iterators_that_are_no_generators() -> None:
    """What is annotated as an iterator is streamed; what a generator returns is dropped."""
    async with worker_of() as worker:
        assert [n async for n in worker.stream("cursor", 3)] == [2, 1, 0]
        async with worker.stream("cursor", 3) as stream:
            assert await anext(stream) == 2
        assert [n async for n in worker.stream("returns_something")] == [1]


@ENDLESS
async def test_leaving_the_block_waits_for_the_finally(function: str) -> None:
    """When the block is left the generator's ``finally`` has run."""
    async with worker_of() as worker:
        async with worker.stream(function) as stream:
            async for n in stream:
                if n == 10:
                    break
        assert await worker.call("state", "closed") == 1
        assert [n async for n in stream] == []
        await stream.aclose()
        async with aclosing(worker.stream("endless_slow_end")) as slow:
            assert await anext(slow) == 1
        assert await worker.call("state", "closed") == 2


@ENDLESS
async def test_an_exception_in_the_block_passes(function: str) -> None:
    """It leaves the block as it is, and the generator is stopped."""
    async with worker_of() as worker:

        async def read() -> None:
            async with worker.stream(function) as stream:
                async for _ in stream:
                    raise KeyError("mine")

        with pytest.raises(KeyError, match="mine"):
            await read()
        assert await worker.call("state", "closed") == 1


@ENDLESS
async def test_a_loop_that_is_left_early(function: str) -> None:
    """Without a block the generator is stopped as well, a little later."""
    async with worker_of() as worker:
        async for n in worker.stream(function):
            if n == 100:
                break
        gc.collect()
        await until_state(worker, "closed", 1)
        assert worker.statistics().in_flight == 0


@ENDLESS
async def test_a_dropped_stream(function: str) -> None:
    """One that nobody refers to any more is stopped."""
    async with worker_of() as worker:
        stream = worker.stream(function)
        assert await anext(stream) == 0
        del stream
        gc.collect()
        await until_state(worker, "closed", 1)


async def test_a_stream_that_is_never_iterated() -> None:
    """Costs nothing: no message is sent."""
    async with worker_of() as worker:
        before = worker.statistics().bytes_sent
        stream = worker.stream("endless")
        async with stream:
            pass
        del stream
        worker.stream("count", 1)
        gc.collect()
        assert worker.statistics().bytes_sent == before
        assert worker.statistics().calls == 0


@pytest.mark.parametrize("function", ["fails_after", "fails_after_later"])
async def test_an_error_comes_after_the_items_before_it(function: str) -> None:
    """What was yielded arrives first, then what was raised, once."""
    async with worker_of() as worker:
        for n in (0, 3, 100):
            stream = worker.stream(function, n)
            for expected in range(n):
                assert await anext(stream) == expected
            with pytest.raises(ValueError, match="no more") as caught:
                await anext(stream)
            assert isinstance(caught.value, RemoteError)
            with pytest.raises(StopAsyncIteration):
                await anext(stream)


@pytest.mark.parametrize("function", ["bad_end", "bad_end_later"])
async def test_a_finally_that_raises(function: str) -> None:
    """What a generator raises when it is stopped is raised where the block is left."""
    async with worker_of() as worker:
        stream = worker.stream(function)
        assert await anext(stream) == 1
        with pytest.raises(OSError, match="the finally failed") as caught:
            await stream.aclose()
        assert isinstance(caught.value, RemoteError)
        await stream.aclose()
        assert await worker.call("add", 1) == 11


@pytest.mark.parametrize("function", ["unsendable_items", "unsendable_items_later"])
async def test_an_item_that_cannot_be_encoded(function: str) -> None:
    """Ends the stream after the items before it; the generator is closed."""
    async with worker_of() as worker:
        stream = worker.stream(function)
        assert await anext(stream) == 1
        with pytest.raises(ValueEncodeError, match="Odd"):
            await anext(stream)
        assert await worker.call("state", "closed") == 1


@pytest.mark.parametrize("function", ["silent", "silent_later"])
async def test_a_cancelled_consumer(function: str) -> None:
    """It gets control back when the generator has stopped."""
    async with worker_of() as worker:
        stream = worker.stream(function)
        assert await anext(stream) == 1
        with anyio.move_on_after(0.05) as scope:
            await anext(stream)
        assert scope.cancelled_caught
        assert await worker.call("state", "closed") == 1
        with pytest.raises(StopAsyncIteration):
            await anext(stream)


async def test_cancelled_before_its_first_item() -> None:
    """Nothing is sent in a scope that is cancelled."""
    async with worker_of() as worker:
        with anyio.CancelScope() as scope:
            scope.cancel()
            await anext(worker.stream("endless"))
        assert scope.cancelled_caught
        assert worker.statistics().calls == 0


@pytest.mark.parametrize("function", ["silent", "silent_later"])
async def test_a_deadline_over_a_stream(function: str) -> None:
    """``fail_after`` around the loop stops the generator, and raises its own TimeoutError."""
    async with worker_of() as worker:

        async def read() -> None:
            with anyio.fail_after(60) as scope:
                async for _ in worker.stream(function):
                    scope.deadline = anyio.current_time() + 0.02

        with pytest.raises(TimeoutError) as caught:
            await read()
        assert not isinstance(caught.value, DeadlineExceededError)
        assert await worker.call("state", "closed") == 1


@pytest.mark.parametrize("pair", list(itertools.product(["endless", "endless_later"], repeat=2)))
async def test_two_streams_in_turns(pair: tuple[str, str]) -> None:
    """Neither waits for the other, of plain generators neither."""
    async with worker_of() as worker:
        async with worker.stream(pair[0]) as one, worker.stream(pair[1]) as two:
            for n in range(100):
                assert await anext(one) == n
                assert await anext(two) == n
        assert await worker.call("state", "closed") == 2


@ENDLESS
async def test_calls_to_the_same_worker_inside_the_loop(function: str) -> None:
    """A consumer that calls plain functions of its worker never waits for itself."""
    async with worker_of() as worker, worker.stream(function) as stream:
        async for n in stream:
            assert await worker.call("add", n, 1) == n + 1
            assert await worker.call("add_later", n, 1) == n + 1
            if n == 100:
                break


@ENDLESS
@pytest.mark.parametrize("window", [1, 32])
async def test_no_further_ahead_than_the_window(function: str, window: int) -> None:
    """The generator is never advanced beyond what the consumer has room for."""
    async with worker_of() as worker, worker.options(window=window).stream(function) as stream:
        for taken in range(1, 41):
            await anext(stream)
            assert await worker.call("state", "sent") <= taken + window + 1
        assert await worker.call("state", "sent") >= 40


async def test_a_stream_that_nobody_reads_holds_up_nobody() -> None:
    """Large items stay where they are; calls and other streams go on."""
    async with worker_of() as worker:  # noqa: SIM117
        async with worker.options(window=4).stream("chunks", 100, 300_000) as large:
            assert len(await anext(large)) == 300_000
            for n in range(20):
                assert await worker.call("add", n, 1) == n + 1
            assert [n async for n in worker.stream("count", 50)] == list(range(50))
            sizes = [len(chunk) async for chunk in large]
            assert sizes == [300_000] * 99


async def test_windows_that_make_no_sense() -> None:
    """Are refused at once."""
    bad: list[Any] = [0, -1, 2**40, "3", 1.5]
    async with worker_of() as worker:
        for window in bad:
            with pytest.raises(UsageError, match="window"):
                worker.options(window=window)


async def test_a_large_window_does_not_make_others_wait() -> None:
    """A plain generator with credit for all its items lets other calls in between."""
    async with worker_of() as worker:
        async with worker.options(window=2**20).stream("endless") as stream:
            await anext(stream)
            for n in range(5):
                assert await worker.call("add", n, 1) == n + 1
        assert await worker.call("state", "closed") == 1


class OnlyPlain:
    """Without async functions: a worker that has one thread."""

    def __init__(self) -> None:
        self.closed = 0

    def endless(self) -> Any:
        try:
            yield from itertools.count()
        finally:
            self.closed += 1

    def add(self, a: int, b: int) -> int:
        return a + b

    def closings(self) -> int:
        return self.closed


async def test_a_worker_with_one_thread() -> None:
    """All the same where a worker needs no event loop."""
    async with worker_of(OnlyPlain) as worker:
        async with worker.options(window=2**20).stream("endless") as stream:
            async for n in stream:
                if n < 20:
                    assert await worker.call("add", n, 1) == n + 1
                if n == 100:
                    break
        assert await worker.call("closings") == 1
        async with worker.stream("endless") as one, worker.stream("endless") as two:
            for n in range(100):
                assert await anext(one) == await anext(two) == n
        assert await worker.call("closings") == 3


async def test_a_stream_of_a_stream() -> None:
    """A stream can be an argument, of a function that is streamed itself."""
    async with worker_of() as worker:
        numbers = worker.stream("count", 100)
        squares = worker.stream("squares", worker.stream("squares_later", numbers))
        assert [n async for n in squares] == [n**4 for n in range(100)]
        async with worker.stream("squares", worker.stream("endless")) as endless:
            assert [await anext(endless) for _ in range(3)] == [0, 1, 4]
        await until_state(worker, "closed", 1)


async def test_two_tasks_that_read_one_stream() -> None:
    """The second is told so; the first gets its item."""
    async with worker_of() as worker:
        stream = worker.stream("silent_later")
        assert await anext(stream) == 1
        with anyio.CancelScope() as scope:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(anext, stream)
                await anyio.wait_all_tasks_blocked()
                with pytest.raises(UsageError, match="another task"):
                    await anext(stream)
                scope.cancel()


async def test_streaming_what_does_not_yield() -> None:
    """Is an error, and no stream."""
    async with worker_of() as worker:
        with pytest.raises(WrongKindError):
            worker.stream("add", 1)


@ENDLESS
async def test_a_worker_that_dies(function: str) -> None:
    """Ends its streams with how it died, after what had arrived."""
    async with worker_of() as worker:
        stream = worker.stream(function)
        assert await anext(stream) == 0
        worker.kill()
        with pytest.raises(WorkerDied) as caught:
            async for _ in stream:
                pass
        assert any(function in call for call in caught.value.in_flight)
        await stream.aclose()


@ENDLESS
async def test_leaving_the_worker_with_an_open_stream(function: str) -> None:
    """The generator is stopped, and the stream has ended."""
    async with worker_of() as worker:
        stream: AsyncIterator[int] = worker.stream(function)
        assert await anext(stream) == 0
    assert worker.returncode == 0
    with pytest.raises(CallError):
        [item async for item in stream]

"""Streams without an event loop, in both directions."""

from __future__ import annotations

import gc
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

import forkwire
from forkwire.sync import SyncWorker

from .services import plain
from .support_sync import until, worker

__all__ = ["worker"]


def until_closed(worker: SyncWorker, times: int) -> None:
    until(lambda: worker.call("state", "closed") == times)


# -- results ----------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [0, 1, 31, 32, 33, 1000])
def test_all_items_come_in_order(worker: SyncWorker, n: int) -> None:
    """Whatever their number is to the window."""
    assert list(worker.stream("count", n)) == list(range(n))
    assert list(worker.stream(plain.count, n)) == list(range(n))


@pytest.mark.parametrize("window", [1, 2, 1000])
def test_any_window_does(worker: SyncWorker, window: int) -> None:
    """Items come one by one, or many at a time."""
    assert list(worker.options(window=window).stream("count", 100)) == list(range(100))


def test_nothing_is_sent_before_the_first_item_is_wanted(worker: SyncWorker) -> None:
    """A stream that nobody iterates is no call."""
    stream = worker.stream("endless")
    stream.close()
    with pytest.raises(StopIteration):
        next(stream)
    assert worker.statistics().calls == 0


def test_leaving_the_block_stops_the_generator(worker: SyncWorker) -> None:
    """Its ``finally`` has run when the block is left."""
    with worker.stream("endless") as numbers:
        assert [next(numbers) for _ in range(3)] == [0, 1, 2]
    assert worker.call("state", "closed") == 1
    assert list(numbers) == []


def test_closing_stops_the_generator(worker: SyncWorker) -> None:
    """So does `close`, more than once."""
    numbers = worker.stream("endless")
    next(numbers)
    numbers.close()
    numbers.close()
    assert worker.call("state", "closed") == 1


def test_leaving_the_loop_early_stops_the_generator(worker: SyncWorker) -> None:
    """What is dropped is stopped, soon and without waiting."""
    for number in worker.stream("endless"):
        if number == 40:
            break
    until_closed(worker, 1)
    assert worker.statistics().in_flight == 0


def test_a_dropped_stream_is_stopped(worker: SyncWorker) -> None:
    """Also where a cycle held it."""
    numbers = worker.stream("endless")
    next(numbers)
    cycle = [numbers]
    cycle.append(cycle)  # type: ignore[arg-type]
    del numbers, cycle
    gc.collect()
    until_closed(worker, 1)


def test_an_exception_in_the_loop_leaves_as_it_is(worker: SyncWorker) -> None:
    """And the generator is stopped."""
    with pytest.raises(LookupError, match="mine"), worker.stream("endless") as numbers:  # noqa: PT012
        for _ in numbers:
            raise LookupError("mine")
    assert worker.call("state", "closed") == 1


def test_a_generator_that_waits_is_interrupted(worker: SyncWorker) -> None:
    """Closing does not wait for its next item."""
    before = time.monotonic()
    with worker.stream("silent") as items:
        assert next(items) == 1
    assert time.monotonic() - before < 10
    assert worker.call("state", "closed") == 1


def test_what_the_end_of_a_generator_raises_is_told(worker: SyncWorker) -> None:
    """A ``finally`` that fails is not lost."""
    numbers = worker.stream("bad_end")
    next(numbers)
    with pytest.raises(OSError, match="the finally failed"):
        numbers.close()


def test_a_timeout_is_of_the_whole_stream(worker: SyncWorker) -> None:
    """It ends between two items, and the generator is stopped."""
    with pytest.raises(TimeoutError):
        list(worker.options(timeout=0.1).stream("silent"))
    assert worker.call("state", "closed") == 1


def test_several_streams_and_calls_take_turns(worker: SyncWorker) -> None:
    """A consumer may call, and open another stream, in between."""
    pairs = zip(worker.stream("count", 100), worker.stream("count", 100), strict=True)
    assert all(worker.call("add", a, -b) == 0 for a, b in pairs)


def test_what_a_stream_raises_ends_it(worker: SyncWorker) -> None:
    """Once, and then it is over."""
    numbers = worker.stream("count", "many")
    with pytest.raises(forkwire.InvalidArgumentsError):
        next(numbers)
    assert list(numbers) == []


def test_a_plain_function_is_called_not_streamed(worker: SyncWorker) -> None:
    """And the other way round."""
    with pytest.raises(forkwire.WrongKindError):
        worker.stream("add", 1, 2)
    with pytest.raises(forkwire.WrongKindError):
        worker.call("count", 2)


def test_a_death_ends_a_stream(worker: SyncWorker) -> None:
    """Items that came are given, then it is told."""
    numbers = worker.stream("endless")
    next(numbers)
    worker.kill()
    with pytest.raises(forkwire.WorkerDied):
        for _ in numbers:
            pass


# -- arguments --------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [0, 1, 32, 33, 1000])
def test_an_iterator_is_streamed(worker: SyncWorker, n: int) -> None:
    """The handler takes its items as they come."""
    assert worker.call("total", iter(range(n))) == sum(range(n))
    assert worker.call(plain.total, (number for number in range(n))) == sum(range(n))


def test_a_streamed_argument_makes_a_stream(worker: SyncWorker) -> None:
    """In and out at the same time."""
    assert list(worker.stream("doubled", iter(range(200)))) == [2 * n for n in range(200)]


def test_a_stream_of_the_worker_may_be_an_argument_of_it(worker: SyncWorker) -> None:
    """Its own items come back to it."""
    assert worker.call("total", worker.stream("count", 100)) == sum(range(100))


def test_a_generator_argument_may_call_the_worker(worker: SyncWorker) -> None:
    """Such a call runs inside the one that waits for the items."""
    numbers = (worker.call("add", n, 1) for n in range(10))
    assert worker.call("total", numbers) == sum(range(1, 11))


def test_what_is_not_wanted_is_closed(worker: SyncWorker) -> None:
    """A generator whose items are left over is closed when the call ends."""
    closed = []

    def numbers() -> Iterator[int]:
        try:
            yield from range(10_000)
        finally:
            closed.append(True)

    assert worker.call("first", numbers()) == 0
    assert closed == [True]


def test_what_a_generator_argument_raises_is_raised(worker: SyncWorker) -> None:
    """The very exception, at the call."""
    error = LookupError("mine")

    def numbers() -> Iterator[int]:
        yield 1
        raise error

    with pytest.raises(LookupError) as caught:
        worker.call("total", numbers())
    assert caught.value is error
    assert worker.call("add", 1, 2) == 3


def test_an_item_that_cannot_be_sent_is_raised(worker: SyncWorker) -> None:
    """It names what it is."""
    with pytest.raises(forkwire.ValueEncodeError, match="object"):
        worker.call("total", iter([1, object()]))
    assert worker.call("add", 1, 2) == 3


def test_an_async_iterable_is_refused(worker: SyncWorker) -> None:
    """There is no loop that could run it."""

    async def numbers() -> AsyncIterator[int]:
        yield 1

    with pytest.raises(forkwire.UsageError, match="no event loop"):
        worker.call("total", numbers())


def test_a_timeout_closes_the_arguments(worker: SyncWorker, tmp_path: Path) -> None:
    """Nothing is asked of a generator whose call was given up."""
    closed = []

    def numbers() -> Iterator[int]:
        try:
            n = 0
            while True:
                yield n
                n += 1
        finally:
            closed.append(True)

    with pytest.raises(TimeoutError):
        worker.options(timeout=0.1).call("total", numbers())
    assert closed == [True]
    assert worker.call("add", 1, 2) == 3

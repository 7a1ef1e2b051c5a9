"""What a call held is freed when it ends, and does not wait for the garbage collector.

A circle that holds an argument of fifty megabytes keeps a dozen of them until that comes by.
"""

from __future__ import annotations

import contextlib
import gc
import weakref
from collections.abc import Callable, Iterator
from typing import Any, Final

import anyio
import pytest

import forkwire.sync
from forkwire import Worker, open_worker
from forkwire.sync import SyncWorker

pytestmark = pytest.mark.anyio

LIMIT: Final = 20.0

_held: list[weakref.ref[set[int]]] = []


def without_collector() -> None:
    gc.collect()
    gc.disable()


def hold(value) -> None:  # type: ignore[no-untyped-def]  # as it came, not converted
    _held.append(weakref.ref(value))


def hold_and_fail(value) -> None:  # type: ignore[no-untyped-def]
    hold(value)
    raise ValueError("boo")


def hold_and_yield(value) -> Iterator[int]:  # type: ignore[no-untyped-def]
    hold(value)
    yield from range(100)


def hold_and_iterate(value, numbers) -> int:  # type: ignore[no-untyped-def]
    hold(value)
    return sum(numbers)


def hold_and_stay(value) -> None:  # type: ignore[no-untyped-def]
    hold(value)
    while True:
        forkwire.sync.current_call().host.call("begun")


def hold_and_ask(value) -> None:  # type: ignore[no-untyped-def]
    hold(value)
    with contextlib.suppress(forkwire.MethodNotFoundError):
        forkwire.sync.current_call().host.call("nothing of that name")


async def hold_later(value) -> None:  # type: ignore[no-untyped-def]
    hold(value)


def held() -> tuple[int, int]:
    """How many there were, and how many there are."""
    return len(_held), sum(reference() is not None for reference in _held)


PLAIN: Final[dict[str, Callable[..., Any]]] = {
    function.__name__: function
    for function in (
        without_collector, hold, hold_and_fail, hold_and_yield, hold_and_iterate, hold_and_stay,
        hold_and_ask, held,
    )
}  # fmt: skip
WAYS_TO_SERVE: Final[dict[str, dict[str, Any]]] = {
    "loop": {"service": {**PLAIN, "hold_later": hold_later}},
    "alone": {"service": PLAIN},
    "threads": {"service": PLAIN, "threads": 2},
}


@contextlib.contextmanager
def no_collector() -> Iterator[None]:
    without_collector()
    try:
        yield
    finally:
        gc.enable()


async def make_each_call(worker: Worker, stays: anyio.Event) -> int:
    """One of every kind, and one that is interrupted where it can be; how many they are."""
    await worker.call("hold", {1})
    with contextlib.suppress(ValueError):
        await worker.call("hold_and_fail", {1})
    assert [n async for n in worker.stream("hold_and_yield", {1})] == list(range(100))
    async with worker.options(window=2).stream("hold_and_yield", {1}) as items:
        async for _ in items:
            break
    await worker.call("hold_and_iterate", {1}, iter([1, 2]))
    await worker.call("hold_and_ask", {1})
    with anyio.CancelScope() as scope:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(worker.call, "hold_and_stay", {1})
            await stays.wait()
            scope.cancel()
    return 7


@pytest.mark.parametrize("served", WAYS_TO_SERVE)
async def test_a_worker_keeps_no_arguments_of_calls_that_ended(served: str) -> None:
    """However a plain function ended, what it was called with is gone when the next one runs.

    Of several threads each frees what it had, a moment after it has answered.
    """
    stays = anyio.Event()

    async def begun() -> None:
        stays.set()

    with anyio.fail_after(LIMIT):
        async with open_worker(**WAYS_TO_SERVE[served], host=begun, grace=LIMIT) as worker:
            await worker.call("without_collector")
            count = await make_each_call(worker, stays)
            while await worker.call("held") != (count, 0):  # another thread may just be at it
                assert served == "threads"


class Large:
    """An iterator, or something in the frame of who calls."""

    def __iter__(self) -> Large:
        return self

    def __next__(self) -> int:
        raise StopIteration


async def test_a_host_keeps_no_streamed_argument_of_a_call_that_ended() -> None:
    """The iterator is gone, also where it was not taken to its end."""
    with anyio.fail_after(LIMIT):
        async with open_worker(PLAIN) as worker:

            async def call() -> weakref.ref[Large]:
                numbers = Large()
                assert await worker.call("hold_and_iterate", {1}, numbers) == 0
                return weakref.ref(numbers)

            with no_collector():
                found = await call()
                assert found() is None


def fail(worker: SyncWorker, large: Large) -> None:
    worker.call("hold_and_fail", {1})


def fail_in_a_stream(worker: SyncWorker, large: Large) -> None:
    list(worker.stream("fail_and_yield"))


def fail_in_the_end_of_a_stream(worker: SyncWorker, large: Large) -> None:
    with worker.stream("yield_and_fail") as items:
        next(items)


def fail_in_an_argument(worker: SyncWorker, large: Large) -> None:
    def numbers() -> Iterator[int]:
        yield 1
        raise ValueError("boo")

    worker.call("hold_and_iterate", {1}, numbers())


def stream_an_argument(worker: SyncWorker, large: Large) -> None:
    worker.call("hold_and_iterate", {1}, large)


def fail_and_yield() -> Iterator[int]:
    raise ValueError("boo")
    yield


def yield_and_fail() -> Iterator[int]:
    try:
        yield from range(100)
    finally:
        raise ValueError("boo")


@pytest.mark.parametrize(
    "use",
    [
        fail,
        fail_in_a_stream,
        fail_in_the_end_of_a_stream,
        fail_in_an_argument,
        stream_an_argument,
    ],
)
def test_a_host_without_a_loop_keeps_nothing_of_a_call_that_ended(
    use: Callable[[SyncWorker, Large], None],
) -> None:
    """Once its error was handled, what its frames held is gone."""
    service = {**PLAIN, "fail_and_yield": fail_and_yield, "yield_and_fail": yield_and_fail}
    with forkwire.sync.open_worker(service) as worker, no_collector():

        def call() -> weakref.ref[Large]:
            large = Large()
            with contextlib.suppress(ValueError):
                use(worker, large)
            return weakref.ref(large)

        assert call()() is None

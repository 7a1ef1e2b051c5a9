"""What a type checker makes of streams and of iterators as arguments: checked, never run.

The ignored lines are errors; both checkers are told to mind an ignore that is not needed.
"""

# pyright: reportUnnecessaryTypeIgnoreComment=true
# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

from collections.abc import (
    AsyncGenerator,
    AsyncIterable,
    AsyncIterator,
    Generator,
    Iterable,
    Iterator,
)
from typing import Any, TypeVar, assert_type

from forkwire import Calls, Stream
from forkwire.sync import SyncCalls, SyncStream

T = TypeVar("T")


def count(n: int, *, step: int = 1) -> Iterator[int]:
    yield from range(0, n, step)


def generate(n: int) -> Generator[int, str, bool]:
    yield n
    return True


async def tick(every: float) -> AsyncIterator[str]:
    yield ""


async def tock(every: float) -> AsyncGenerator[str, None]:
    yield ""


def batches(n: int) -> AsyncIterable[list[int]]:
    raise NotImplementedError


def split(items: Iterable[T]) -> Iterator[list[T]]:
    yield list(items)


def perhaps(n: int) -> Iterator[int | None]:
    yield None


def unannotated(n):
    yield n


def anything(n: int) -> Iterator[Any]:
    yield n


def add(a: int, b: int) -> int:
    return a + b


def listed(n: int) -> list[int]:
    return [n]


def iterable(n: int) -> Iterable[int]:
    yield n


async def nap(seconds: float) -> str:
    return ""


def total(numbers: Iterator[int]) -> int:
    return sum(numbers)


async def total_later(numbers: AsyncIterable[int]) -> int:
    raise NotImplementedError


async def total_of_either(numbers: AsyncIterable[int] | Iterable[int]) -> int:
    raise NotImplementedError


class Counter:
    def count(self, n: int) -> Iterator[int]:
        yield n

    async def tick(self, *, every: float) -> AsyncIterator[str]:
        yield ""

    @classmethod
    def names(cls) -> Iterator[str]:
        yield ""


async def items(calls: Calls) -> None:
    assert_type(calls.stream(count, 10), Stream[int])
    assert_type(calls.stream(count, 10, step=2), Stream[int])
    assert_type(calls.stream(generate, 10), Stream[int])
    assert_type(calls.stream(tick, 0.5), Stream[str])
    assert_type(calls.stream(tock, every=1), Stream[str])
    assert_type(calls.stream(batches, 10), Stream[list[int]])
    assert_type(calls.stream(split, [1, 2]), Stream[list[int]])
    assert_type(calls.stream(perhaps, 1), Stream[int | None])
    assert_type(calls.stream(Counter().count, 10), Stream[int])
    assert_type(calls.stream(Counter().tick, every=1), Stream[str])
    assert_type(calls.stream(Counter.names), Stream[str])
    assert_type(calls.stream("count", 10, any_name=1), Stream[Any])
    assert_type(calls.stream(anything, 10), Stream[Any])
    assert_type(calls.stream(unannotated, 10), Stream[Any])


async def iterating(calls: Calls) -> None:
    stream = calls.stream(count, 10)
    async for number in stream:
        assert_type(number, int)
    assert_type([number async for number in stream], list[int])
    assert_type(await anext(stream), int)
    assert_type(aiter(stream), Stream[int])
    assert_type(await stream.aclose(), None)
    async with calls.stream(tick, 1) as same:
        assert_type(same, Stream[str])
        async for text in same:
            assert_type(text, str)
    async with calls.stream("count") as untyped:
        async for item in untyped:
            assert_type(item, Any)
    integers: AsyncIterator[int] = stream
    texts: AsyncIterator[str] = stream  # type: ignore[assignment]
    del integers, texts


async def wrong(calls: Calls) -> None:
    calls.stream()  # type: ignore[call-overload]
    calls.stream(7)  # type: ignore[call-overload]
    calls.stream(count)  # type: ignore[call-overload]
    calls.stream(count, "10")  # type: ignore[call-overload]
    calls.stream(count, 10, 2)  # type: ignore[call-overload]
    calls.stream(count, 10, steps=2)  # type: ignore[call-arg]
    calls.stream(count, 10, step="2")  # type: ignore[arg-type]
    calls.stream(tick, "1")  # type: ignore[call-overload]
    calls.stream(unannotated)  # type: ignore[call-overload]
    calls.stream(Counter.count, 10)  # type: ignore[call-overload]
    calls.stream(count(10))  # type: ignore[call-overload]
    calls.stream(tick(1))  # type: ignore[call-overload]
    await calls.stream(count, 10)  # type: ignore[misc]
    for _ in calls.stream(count, 10):  # type: ignore[attr-defined]
        pass
    with calls.stream(count, 10):  # type: ignore[attr-defined]
        pass
    _ = calls.stream(count, 10)[0]  # type: ignore[index]
    async for number in calls.stream(count, 10):
        number.upper()  # type: ignore[attr-defined]


async def not_streamed(calls: Calls) -> None:
    calls.stream(add, 1, 2)  # type: ignore[call-overload]
    calls.stream(nap, 1)  # type: ignore[call-overload]
    calls.stream(listed, 1)  # type: ignore[call-overload]
    # It may be streamed, and that is not known of an Iterable, which a list is too: say Iterator.
    calls.stream(iterable, 1)  # type: ignore[call-overload]


async def iterators_as_arguments(calls: Calls, numbers: AsyncIterator[int]) -> None:
    assert_type(await calls.call(total, iter([1, 2])), int)
    assert_type(await calls.call(total, (n for n in (1, 2))), int)
    assert_type(await calls.call(total_later, numbers), int)
    assert_type(await calls.call(total_of_either, numbers), int)
    assert_type(await calls.call(total_of_either, iter([1, 2])), int)
    assert_type(await calls.call(total_later, calls.stream(count, 10)), int)
    assert_type(calls.stream(split, iter([1, 2])), Stream[list[int]])
    await calls.call(total, iter("text"))  # type: ignore[call-overload]
    await calls.call(total_later, calls.stream(tick, 1))  # type: ignore[call-overload]
    # These two work, and only their names can be said: what is iterated there in one way may come
    # from what is iterated here in the other.
    await calls.call(total, numbers)  # type: ignore[call-overload]
    await calls.call(total_later, iter([1, 2]))  # type: ignore[call-overload]


def blocking(calls: SyncCalls) -> None:
    assert_type(calls.stream(count, 10), SyncStream[int])
    assert_type(calls.stream(generate, 10), SyncStream[int])
    assert_type(calls.stream(tick, 1), SyncStream[str])
    assert_type(calls.stream(split, iter([1])), SyncStream[list[int]])
    assert_type(calls.stream(Counter().count, 10), SyncStream[int])
    assert_type(calls.stream("count", 10), SyncStream[Any])
    assert_type(calls.stream(unannotated, 10), SyncStream[Any])
    for number in calls.stream(count, 10):
        assert_type(number, int)
    assert_type(list(calls.stream(tick, 1)), list[str])
    with calls.stream(count, 10) as stream:
        assert_type(stream, SyncStream[int])
        assert_type(next(stream), int)
        assert_type(iter(stream), SyncStream[int])
    assert_type(stream.close(), None)
    assert_type(calls.call(total, calls.stream(count, 10)), int)
    integers: Iterator[int] = stream
    texts: Iterator[str] = stream  # type: ignore[assignment]
    calls.stream(count, "10")  # type: ignore[call-overload]
    calls.stream(count, 10, steps=2)  # type: ignore[call-arg]
    calls.stream(add, 1, 2)  # type: ignore[call-overload]
    calls.stream(nap, 1)  # type: ignore[call-overload]
    del integers, texts


async def blocking_is_not_awaited(calls: SyncCalls) -> None:
    async for _ in calls.stream(tick, 1):  # type: ignore[attr-defined]
        pass
    async with calls.stream(tick, 1):  # type: ignore[attr-defined]
        pass

"""What a type checker makes of calls: checked by mypy and pyright, never run.

The ignored lines are errors; both checkers are told to mind an ignore that is not needed. What the
checkers cannot see is at the end.
"""

# pyright: reportUnnecessaryTypeIgnoreComment=true
# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

import functools
from collections.abc import (
    AsyncGenerator,
    AsyncIterable,
    AsyncIterator,
    Awaitable,
    Callable,
    Coroutine,
    Generator,
    Iterable,
    Iterator,
    Mapping,
    Sequence,
)
from dataclasses import dataclass
from typing import (
    Any,
    NoReturn,
    ParamSpec,
    Protocol,
    Self,
    TypedDict,
    TypeVar,
    Unpack,
    assert_type,
    overload,
)

from forkwire import Calls, Worker
from forkwire.rpc.caller.typed import StreamedNotCalled

P = ParamSpec("P")
T = TypeVar("T")
K = TypeVar("K", int, str)


@dataclass
class Point:
    x: float
    y: float


class Options(TypedDict, total=False):
    depth: int
    label: str


def add(a: int, b: int = 1) -> int:
    return a + b


def nothing() -> None: ...


def perhaps(a: int) -> int | None: ...


def shaped(a: int, /, b: str, *, key: str, size: float = 1) -> bytes:
    return b""


def many(*numbers: int, **names: str) -> list[int]:
    return list(numbers)


def with_options(**options: Unpack[Options]) -> Point:
    return Point(1, 2)


async def nap(seconds: float) -> str:
    return ""


def promise() -> Awaitable[int]:
    raise NotImplementedError


def table() -> dict[str, Any]:
    raise NotImplementedError


async def fetch_table() -> dict[str, Any]:
    raise NotImplementedError


def coroutine() -> Coroutine[Any, Any, int]:
    raise NotImplementedError


def count(n: int) -> Iterator[int]:
    yield n


def generate(n: int) -> Generator[int, str, None]:
    yield n


async def tick(n: int) -> AsyncIterator[int]:
    yield n


async def tock(n: int) -> AsyncGenerator[int, None]:
    yield n


def batches(n: int) -> AsyncIterable[int]:
    raise NotImplementedError


def listed(n: int) -> Iterable[int]:
    return [n]


def same(value: T) -> T:
    return value


async def later(value: T) -> T:
    return value


def pair(one: T, others: list[T]) -> tuple[T, list[T]]:
    raise NotImplementedError


def either(value: K) -> K:
    return value


def apply(values: Sequence[T], key: Mapping[str, T]) -> dict[T, str]:
    raise NotImplementedError


@overload
def parse(value: int) -> bytes: ...
@overload
def parse(value: str, *, base: int) -> float: ...
def parse(value: Any, *, base: int = 10) -> Any: ...


@overload
async def fetch(value: int) -> bytes: ...
@overload
async def fetch(value: str) -> float: ...
async def fetch(value: Any) -> Any: ...


@functools.cache
def cached(a: int) -> str:
    return ""


def decorate(function: Callable[P, T]) -> Callable[P, T]:
    return function


@decorate
def decorated(a: int, *, key: str = "") -> str:
    return ""


def unannotated(a, b):
    return a


def anything(a: int) -> Any: ...


async def anything_later(a: int) -> Any: ...


def fail(text: str) -> NoReturn:
    raise ValueError(text)


class Calculator:
    def add(self, a: int, b: int) -> int:
        return a + b

    async def nap(self, seconds: float) -> str:
        return ""

    def count(self, n: int) -> Iterator[int]:
        yield n

    @classmethod
    def make(cls, a: int) -> Self:
        return cls()

    @staticmethod
    def negate(a: int) -> int:
        return -a

    def __call__(self, a: int) -> str:
        return ""


class Handler(Protocol):
    def __call__(self, a: int, *, key: str) -> float: ...


async def plain_and_async(calls: Calls) -> None:
    assert_type(await calls.call(add, 1, 2), int)
    assert_type(await calls.call(add, 1), int)
    assert_type(await calls.call(add, a=1, b=2), int)
    assert_type(await calls.call(nothing), None)
    assert_type(await calls.call(perhaps, 1), int | None)
    assert_type(await calls.call(shaped, 1, "b", key="k"), bytes)
    assert_type(await calls.call(shaped, 1, b="b", key="k", size=2.0), bytes)
    assert_type(await calls.call(many), list[int])
    assert_type(await calls.call(many, 1, 2, three="3"), list[int])
    assert_type(await calls.call(with_options, depth=1, label="l"), Point)
    assert_type(await calls.call(table), dict[str, Any])
    assert_type(await calls.call(listed, 1), Iterable[int])
    assert_type(await calls.call(nap, 1), str)
    assert_type(await calls.call(nap, seconds=0.5), str)
    assert_type(await calls.call(promise), int)
    assert_type(await calls.call(cached, 1), str)
    assert_type(await calls.call(decorated, 1, key=""), str)
    assert_type(await calls.call(len, [1]), int)
    assert_type(await calls.call(sorted, [1]), list[int])


async def methods(calls: Calls, calculator: Calculator, handler: Handler) -> None:
    assert_type(await calls.call(calculator.add, 1, b=2), int)
    assert_type(await calls.call(calculator.nap, 1), str)
    assert_type(await calls.call(Calculator.make, 1), Calculator)
    assert_type(await calls.call(calculator.make, 1), Calculator)
    assert_type(await calls.call(Calculator.negate, 1), int)
    assert_type(await calls.call(calculator, 1), str)
    assert_type(await calls.call(handler, 1, key="k"), float)
    assert_type(await calls.notify(calculator.add, 1, 2), None)
    # Of the class it takes the instance too; a service of the class is called through an
    # instance, or a proxy.
    await calls.call(Calculator.add, 1, 2)  # type: ignore[call-overload]


async def generic_and_overloaded(calls: Calls) -> None:
    assert_type(await calls.call(same, 1), int)
    assert_type(await calls.call(same, Point(1, 2)), Point)
    assert_type(await calls.call(later, "text"), str)
    assert_type(await calls.call(pair, 1, [2]), tuple[int, list[int]])
    assert_type(await calls.call(either, "text"), str)
    assert_type(await calls.call(apply, [1.5], {"a": 2.5}), dict[float, str])
    assert_type(await calls.call(parse, 1), bytes)
    assert_type(await calls.call(parse, "1", base=2), float)
    assert_type(await calls.call(fetch, 1), bytes)
    assert_type(await calls.call(fetch, "1"), float)


async def untyped(calls: Calls, function: Any, some: Callable[..., str]) -> None:
    assert_type(await calls.call("add", 1, 2), Any)
    assert_type(await calls.call("add", any_name=object()), Any)
    assert_type(await calls.call(function, 1, key=2), Any)
    assert_type(await calls.call(anything, 1), Any)
    assert_type(await calls.call(anything_later, 1), Any)
    assert_type(await calls.call(unannotated, 1, 2), Any)
    assert_type(await calls.call(some, 1, key=2), str)
    await calls.call(anything, "text")  # type: ignore[call-overload]
    await calls.call(anything_later, "text")  # type: ignore[call-overload]


async def what_follows_is_checked(calls: Calls) -> None:
    assert_type(await calls.call(fail, "text"), Any)
    add("text")  # type: ignore[arg-type]
    calls.call(count, 3)
    add("text")  # type: ignore[arg-type]
    await calls.call(count, 3)  # type: ignore[misc]
    add("text")  # type: ignore[arg-type]
    await calls.notify(tick, 3)  # type: ignore[misc]
    add("text")  # type: ignore[arg-type]


async def fits_what_is_wider(calls: Calls) -> float | None:
    number: float = await calls.call(add, 1)
    thing: object = await calls.call(add, 1)
    numbers: Sequence[float] = await calls.call(many, 1)
    mapping: Mapping[str, int] = await calls.call(fetch_table)
    text: str | None = await calls.call(nap, 1)
    coroutines = [calls.call(add, 1), calls.call(add, 2)]
    del number, thing, numbers, mapping, text, coroutines
    return await calls.call(add, 1)


async def notifying(calls: Calls) -> None:
    assert_type(await calls.notify("log", 1, key=2), None)
    assert_type(await calls.notify(add, 1, b=2), None)
    assert_type(await calls.notify(nap, 1), None)
    assert_type(await calls.notify(many, 1, two="2"), None)
    assert_type(await calls.notify(same, 1), None)
    await calls.notify(unannotated, 1, 2)
    await calls.notify(add)  # type: ignore[call-overload]
    await calls.notify(add, "1")  # type: ignore[call-overload]
    await calls.notify(nap, second=1)  # type: ignore[call-overload]
    await calls.notify(7)  # type: ignore[call-overload]
    await calls.notify()  # type: ignore[call-overload]


async def wrong_arguments(calls: Calls) -> None:
    await calls.call()  # type: ignore[call-overload]
    await calls.call(None)  # type: ignore[call-overload]
    await calls.call(7, 1)  # type: ignore[call-overload]
    await calls.call(b"add", 1)  # type: ignore[call-overload]
    await calls.call(Point(1, 2))  # type: ignore[call-overload]
    await calls.call(function=add)  # type: ignore[call-overload]
    await calls.call(add)  # type: ignore[call-overload]
    await calls.call(add, "1")  # type: ignore[call-overload]
    await calls.call(add, 1, 2, 3)  # type: ignore[call-overload]
    await calls.call(add, 1, c=2)  # type: ignore[call-arg, arg-type]
    await calls.call(add, 1, a=2)  # type: ignore[arg-type, misc]
    await calls.call(add(1))  # type: ignore[call-overload]
    await calls.call(nap, "1")  # type: ignore[call-overload]
    await calls.call(nap(1))  # type: ignore[call-overload]
    await calls.call(nothing, 1)  # type: ignore[call-overload]
    await calls.call(shaped, 1, "b")  # type: ignore[call-overload]
    await calls.call(shaped, 1, "b", "k")  # type: ignore[call-overload]
    await calls.call(shaped, a=1, b="b", key="k")  # type: ignore[call-overload]
    await calls.call(many, "1")  # type: ignore[call-overload]
    await calls.call(many, two=2)  # type: ignore[call-overload]
    await calls.call(decorated, 1, "")  # type: ignore[call-overload]
    await calls.call(same)  # type: ignore[call-overload]
    await calls.call(pair, 1, 2)  # type: ignore[call-overload]
    await calls.call(parse, "1")  # type: ignore[call-overload]
    await calls.call(parse, 1, base=2)  # type: ignore[arg-type]
    await calls.call(fetch, b"")  # type: ignore[call-overload]
    await calls.call(Calculator.negate)  # type: ignore[call-overload]
    await calls.call(Calculator().add, 1)  # type: ignore[call-overload]
    await calls.call(count, "1")  # type: ignore[call-overload]


async def wrong_results(calls: Calls) -> str:
    text: str = await calls.call(add, 1)  # type: ignore[call-overload]
    texts: list[str] = await calls.call(many, 1)  # type: ignore[call-overload]
    (await calls.call(add, 1)).upper()  # type: ignore[attr-defined]
    (await calls.call(perhaps, 1)).bit_length()  # type: ignore[union-attr]
    calls.call(add, 1).bit_length()  # type: ignore[attr-defined]
    del text, texts
    return await calls.call(nothing)  # type: ignore[call-overload, no-any-return]


async def forgotten_await(calls: Calls) -> None:
    calls.call(add, 1)  # type: ignore[unused-coroutine]
    calls.call("add", 1)  # type: ignore[unused-coroutine]
    calls.notify("add", 1)  # type: ignore[unused-coroutine]


async def streamed_functions_are_not_called(calls: Calls) -> None:
    assert_type(calls.call(count, 1), StreamedNotCalled)
    assert_type(calls.call(generate, 1), StreamedNotCalled)
    assert_type(calls.call(tick, 1), StreamedNotCalled)
    assert_type(calls.call(tock, 1), StreamedNotCalled)
    assert_type(calls.call(batches, 1), StreamedNotCalled)
    assert_type(calls.call(Calculator().count, 1), StreamedNotCalled)
    assert_type(calls.notify(count, 1), StreamedNotCalled)
    number: int = await calls.call(count, 1)  # type: ignore[misc]
    async for _ in calls.call(tick, 1):  # type: ignore[attr-defined]
        pass
    for _ in await calls.call(count, 1):  # type: ignore[misc]
        pass
    del number


async def workers_are_calls(worker: Worker) -> None:
    calls: Calls = worker
    assert_type(await worker.call(add, 1), int)
    await worker.call(add)  # type: ignore[call-overload]
    del calls


async def not_seen(calls: Calls) -> None:
    """Where Any is inside what an async function answers, mypy takes all for Any, pyright none."""
    known: dict[str, Any] = await calls.call(fetch_table)
    number: int = await calls.call(coroutine)
    # A partial's remaining arguments are only mypy's to know; and a worker refuses partials.
    assert_type(await calls.call(functools.partial(add, 1), 2), int)
    # functools.cache keeps what is answered, not what is taken.
    assert_type(await calls.call(cached, "text"), str)
    # What a function that yields is annotated with may be no more than Iterable: then it looks
    # like one that answers a list. Iterator is clear.
    assert_type(await calls.call(listed, 1), Iterable[int])
    del known, number

"""A service with every kind of handler, for the tests of calls."""

from __future__ import annotations

import dataclasses
import datetime
import decimal
import enum
import os
import sys
import time
import uuid
from collections.abc import AsyncIterator, Generator, Iterator
from pathlib import Path
from typing import Any, NoReturn

import anyio

_UNOFFERED = os  # an imported module is not offered, nor what begins with "_"

_state = {"sent": 0, "closed": 0, "ran": 0, "begun": 0}


class Colour(enum.Enum):
    RED = "red"
    BLUE = "blue"


class Level(enum.IntEnum):
    LOW = 1
    HIGH = 2


@dataclasses.dataclass
class Point:
    x: int
    y: float = 0.5
    colour: Colour = Colour.RED
    tags: tuple[str, ...] = ()


class Odd:
    """Has no encoding."""


# -- plain and async --------------------------------------------------------------------------


def add(a: int, b: int = 10) -> int:
    return a + b


async def add_later(a: int, b: int = 10) -> int:
    await anyio.lowlevel.checkpoint()
    return a + b


def echo(value: Any) -> Any:
    return value


async def echo_later(value: Any) -> Any:
    return value


def repeat(text: str, times: int) -> str:
    return text * times


async def repeat_later(text: str, times: int) -> str:
    return text * times


def keyword_only(*, name: str, greeting: str = "hello") -> str:
    return f"{greeting} {name}"


def several(first: int, /, *rest: int, **named: int) -> list[Any]:
    return [first, list(rest), named]


async def state(key: str) -> int:
    """What other handlers have counted. Async, so that it answers while a plain one runs."""
    return _state[key]


def count_run() -> int:
    _state["ran"] += 1
    return _state["ran"]


async def count_run_later() -> int:
    return count_run()


async def nap_then_count(seconds: float) -> None:
    await anyio.sleep(seconds)
    count_run()


def append_slowly(path: str, text: str) -> None:
    time.sleep(0.03)
    with open(path, "a") as file:
        file.write(text)


async def append_slowly_later(path: str, text: str) -> None:
    await anyio.sleep(0.03)
    append_slowly(path, text)


_kept = b""


def keep(data: bytes) -> None:
    global _kept
    _kept = data


def kept() -> dict[int, int]:
    return {value: _kept.count(value) for value in set(_kept)}


def pid() -> int:
    return os.getpid()


def _private() -> int:
    return 1


# -- values -----------------------------------------------------------------------------------


def move(point: Point, by: int) -> Point:
    assert type(point) is Point
    return dataclasses.replace(point, x=point.x + by)


def points(n: int) -> Iterator[Point]:
    for x in range(n):
        yield Point(x)


def level_up(level: Level) -> Level:
    assert type(level) is Level
    return Level.HIGH


def paint(colour: Colour) -> Colour:
    assert type(colour) is Colour
    return Colour.BLUE


def a_day_later(when: datetime.datetime) -> datetime.datetime:
    return when + datetime.timedelta(days=1)


def twice_as_long(span: datetime.timedelta) -> datetime.timedelta:
    return span * 2


def same_uuid(value: uuid.UUID) -> uuid.UUID:
    assert type(value) is uuid.UUID
    return value


def half(value: decimal.Decimal) -> decimal.Decimal:
    return value / 2


def parent(path: Path) -> Path:
    assert isinstance(path, Path)
    return path.parent


def as_set(values: set[int]) -> frozenset[int]:
    assert type(values) is set
    return frozenset(values)


def as_tuple(pair: tuple[int, str]) -> tuple[str, int]:
    return pair[1], pair[0]


def wrong_result() -> int:
    return "seven"  # type: ignore[return-value]


def unsendable() -> object:
    return {"deep": [1, Odd()]}


async def unsendable_later() -> object:
    return Odd()


def unsendable_items() -> Iterator[object]:
    try:
        yield 1
        yield Odd()
    finally:
        _state["closed"] += 1


async def unsendable_items_later() -> AsyncIterator[object]:
    try:
        yield 1
        yield Odd()
    finally:
        _state["closed"] += 1


# -- errors -----------------------------------------------------------------------------------


class OutOfRange(ValueError):
    pass


def fail(message: str) -> NoReturn:
    raise ValueError(message)


async def fail_later(message: str) -> NoReturn:
    raise ValueError(message)


def fail_with(name: str) -> NoReturn:
    raise {
        "exit": SystemExit(3),
        "interrupt": KeyboardInterrupt(),
        "stop": StopIteration(5),
        "generator_exit": GeneratorExit(),
        "own": OutOfRange("too far"),
        "memory": MemoryError("all of it"),
        "group": ExceptionGroup("several", [ValueError("one"), KeyError("two")]),
        "os": FileNotFoundError(2, "No such file", "/nowhere"),
    }[name]


async def fail_later_with(name: str) -> NoReturn:
    fail_with(name)


class Monster(Exception):
    """Everything about it raises."""

    def __str__(self) -> str:
        raise RuntimeError("no text")

    __repr__ = __str__

    def __getattribute__(self, name: str) -> Any:
        raise RuntimeError("no attributes")


def fail_monstrously() -> NoReturn:
    raise Monster


async def fail_monstrously_later() -> NoReturn:
    raise Monster


def fail_at_length() -> NoReturn:
    raise ValueError("x" * 5_000_000)


def recurse() -> None:
    recurse()


def exit_hard() -> None:
    os._exit(7)


async def exit_hard_later() -> None:
    os._exit(7)


def exit_softly() -> None:
    sys.exit(5)


# -- streams ----------------------------------------------------------------------------------


def count(n: int) -> Iterator[int]:
    yield from range(n)


async def count_later(n: int) -> AsyncIterator[int]:
    for i in range(n):
        yield i


def endless(path: str = "") -> Iterator[int]:
    """Counts what it made in ``state("sent")``; its ``finally`` in ``state("closed")``."""
    i = 0
    try:
        while True:
            _state["sent"] += 1
            yield i
            i += 1
    finally:
        _state["closed"] += 1


async def endless_later() -> AsyncIterator[int]:
    i = 0
    try:
        while True:
            _state["sent"] += 1
            yield i
            i += 1
    finally:
        with anyio.CancelScope(shield=True):
            await anyio.sleep(0.05)  # leaving waits for it
        _state["closed"] += 1


def endless_slow_end() -> Iterator[int]:
    try:
        while True:
            yield 1
    finally:
        time.sleep(0.05)
        _state["closed"] += 1


def silent() -> Iterator[int]:
    """Never gets to its second item."""
    try:
        yield 1
        while True:
            time.sleep(0.01)
    finally:
        _state["closed"] += 1


async def silent_later() -> AsyncIterator[int]:
    try:
        yield 1
        await anyio.sleep(60)
    finally:
        _state["closed"] += 1


def fails_after(n: int) -> Iterator[int]:
    yield from range(n)
    raise ValueError("no more")


async def fails_after_later(n: int) -> AsyncIterator[int]:
    for i in range(n):
        yield i
    raise ValueError("no more")


def bad_end() -> Iterator[int]:
    try:
        while True:
            yield 1
    finally:
        raise OSError("the finally failed")


async def bad_end_later() -> AsyncIterator[int]:
    try:
        while True:
            yield 1
    finally:
        raise OSError("the finally failed")


def returns_something() -> Generator[int, None, int]:
    yield 1
    return 5


class Cursor:
    """An iterator that is no generator."""

    def __init__(self, n: int) -> None:
        self.left = n

    def __iter__(self) -> Cursor:
        return self

    def __next__(self) -> int:
        if not self.left:
            raise StopIteration
        self.left -= 1
        return self.left


def cursor(n: int) -> Iterator[int]:
    return Cursor(n)


def chunks(n: int, size: int) -> Iterator[bytes]:
    for i in range(n):
        yield bytes([i % 256]) * size


# -- arguments that are streamed --------------------------------------------------------------


def total(numbers: Iterator[int]) -> int:
    return sum(numbers)


async def total_later(numbers: AsyncIterator[int]) -> int:
    return sum([n async for n in numbers])


def run_total(numbers: Iterator[int]) -> None:
    _state["ran"] = sum(numbers)


def first(numbers: Iterator[int]) -> int:
    return next(numbers)


async def first_later(numbers: AsyncIterator[int]) -> int:
    return await anext(numbers)


def ignore(numbers: Iterator[int]) -> str:
    return "ignored"


async def ignore_later(numbers: AsyncIterator[int]) -> str:
    return "ignored"


def caught(numbers: Iterator[int]) -> str:
    try:
        for _ in numbers:
            pass
    except ValueError as error:
        return f"{type(error).__name__} {error.args}"
    return "nothing"


async def caught_later(numbers: AsyncIterator[int]) -> str:
    try:
        async for _ in numbers:
            pass
    except ValueError as error:
        return f"{type(error).__name__} {error.args}"
    return "nothing"


def spread(points: Iterator[Point], *, more: Iterator[int]) -> list[Any]:
    found = list(points)
    assert all(type(point) is Point for point in found)
    return [[point.x for point in found], list(more)]


async def spread_later(points: AsyncIterator[Point], *, more: AsyncIterator[int]) -> list[Any]:
    found = [point async for point in points]
    assert all(type(point) is Point for point in found)
    return [[point.x for point in found], [n async for n in more]]


def squares(numbers: Iterator[int]) -> Iterator[int]:
    for number in numbers:
        yield number**2


async def squares_later(numbers: AsyncIterator[int]) -> AsyncIterator[int]:
    async for number in numbers:
        yield number**2


def take_slowly(numbers: Iterator[int], n: int) -> list[int]:
    """Takes ``n``, then waits to be cancelled."""
    taken = [next(numbers) for _ in range(n)]
    _state["ran"] = n
    try:
        while True:
            time.sleep(0.01)
    finally:
        _state["closed"] = len(taken)


async def take_slowly_later(numbers: AsyncIterator[int], n: int) -> None:
    taken = [await anext(numbers) for _ in range(n)]
    _state["ran"] = n
    try:
        await anyio.sleep(60)
    finally:
        _state["closed"] = len(taken)


# -- cancelling -------------------------------------------------------------------------------


def spin() -> None:
    _state["begun"] += 1
    try:
        while True:
            pass
    finally:
        _state["closed"] += 1


def nap(seconds: float) -> str:
    time.sleep(seconds)
    return "slept"


def wait_for_file(path: str) -> str:
    """Runs until the file is there."""
    while not os.path.exists(path):
        time.sleep(0.002)
    return "found"


def touch_and_wait(begun: str, path: str) -> str:
    Path(begun).touch()
    return wait_for_file(path)


async def nap_later(seconds: float) -> str:
    await anyio.sleep(seconds)
    return "slept"


async def nap_shielded(seconds: float) -> None:
    _state["begun"] += 1
    try:
        await anyio.sleep(60)
    finally:
        with anyio.CancelScope(shield=True):
            await anyio.sleep(seconds)
        _state["closed"] += 1


async def stubborn() -> str:
    try:
        await anyio.sleep(60)
    except BaseException:
        return "swallowed"
    return "slept"


def in_c(path: str) -> int:
    Path(path).touch()
    return sum(range(10**11))


async def in_c_later(path: str) -> int:
    Path(path).touch()
    return sum(range(10**11))

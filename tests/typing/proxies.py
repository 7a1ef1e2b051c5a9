"""What a type checker makes of stubs of Protocols and classes: checked, never run.

The ignored lines are errors; both checkers are told to mind an ignore that is not needed.
"""

# pyright: reportUnnecessaryTypeIgnoreComment=true

from __future__ import annotations

import abc
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Iterator
from contextlib import aclosing
from typing import Protocol, TypeVar, assert_type, overload

from forkwire import Calls, Worker, current_call, open_worker
from forkwire.sync import SyncCalls

T = TypeVar("T")
Item = TypeVar("Item", covariant=True)


class CalculatorProtocol(Protocol):
    async def add(self, a: int, b: int = 1) -> int: ...

    async def total(self, *numbers: int, start: float = 0) -> float: ...

    async def same(self, value: T) -> T: ...

    def later(self, a: int) -> Awaitable[str]: ...

    def count(self, n: int) -> AsyncIterator[int]: ...

    def tick(self, *, every: float) -> AsyncGenerator[str, None]: ...

    @overload
    async def parse(self, value: int) -> bytes: ...
    @overload
    async def parse(self, value: str) -> float: ...


class ScientificProtocol(CalculatorProtocol, Protocol):
    async def root(self, number: float) -> float: ...


class Source(Protocol[Item]):
    async def first(self) -> Item: ...

    def items(self) -> AsyncIterator[Item]: ...


class Abstract(abc.ABC):
    @abc.abstractmethod
    async def add(self, a: int, b: int) -> int: ...


class Service:
    """With arguments of its own: a stub makes none."""

    def __init__(self, scale: int) -> None:
        self.scale = scale

    async def scaled(self, a: int) -> int:
        return a * self.scale

    async def counted(self, n: int) -> AsyncIterator[int]:
        yield n


class Plain(Protocol):
    def add(self, a: int, b: int = 1) -> int: ...

    def count(self, n: int) -> Iterator[int]: ...


class PlainService:
    def add(self, a: int, b: int = 1) -> int:
        return a + b

    def count(self, n: int) -> Iterator[int]:
        yield n


async def a_stub_is_what_it_is_of(worker: Worker, calls: Calls) -> None:
    assert_type(worker.proxy(CalculatorProtocol), CalculatorProtocol)
    assert_type(calls.proxy(ScientificProtocol), ScientificProtocol)
    assert_type(worker.options(window=1).proxy(CalculatorProtocol), CalculatorProtocol)
    assert_type(worker.proxy(Source[int]), Source[int])
    assert_type(worker.proxy(Abstract), Abstract)
    assert_type(worker.proxy(Service), Service)
    assert_type(current_call().host.proxy(CalculatorProtocol), CalculatorProtocol)
    base: CalculatorProtocol = worker.proxy(ScientificProtocol)
    other: Abstract = worker.proxy(CalculatorProtocol)  # type: ignore[assignment]
    worker.proxy(CalculatorProtocol())  # type: ignore[misc, arg-type]
    worker.proxy("CalculatorProtocol")  # type: ignore[arg-type]
    worker.proxy(7)  # type: ignore[arg-type]
    worker.proxy(None)  # type: ignore[arg-type]
    worker.proxy()  # type: ignore[call-arg]
    worker.proxy(CalculatorProtocol, "calc")  # type: ignore[call-arg]
    await worker.proxy(CalculatorProtocol)  # type: ignore[misc]
    del base, other


async def methods_are_awaited(worker: Worker) -> None:
    calculator = worker.proxy(CalculatorProtocol)
    assert_type(await calculator.add(1, 2), int)
    assert_type(await calculator.add(a=1), int)
    assert_type(await calculator.total(1, 2, 3, start=1.5), float)
    assert_type(await calculator.same("text"), str)
    assert_type(await calculator.later(1), str)
    assert_type(await calculator.parse(1), bytes)
    assert_type(await calculator.parse("1"), float)
    assert_type(await worker.proxy(ScientificProtocol).root(await calculator.add(1)), float)
    assert_type(await worker.proxy(Source[str]).first(), str)
    assert_type(await worker.proxy(Abstract).add(1, 2), int)
    assert_type(await worker.proxy(Service).scaled(1), int)
    await calculator.add()  # type: ignore[call-arg]
    await calculator.add("1")  # type: ignore[arg-type]
    await calculator.add(1, 2, 3)  # type: ignore[call-arg]
    await calculator.add(1, c=2)  # type: ignore[call-arg]
    await calculator.total("1")  # type: ignore[arg-type]
    await calculator.parse(b"")  # type: ignore[call-overload]
    await calculator.subtract(1, 2)  # type: ignore[attr-defined]
    calculator.add(1)  # type: ignore[unused-coroutine]
    (await calculator.add(1)).upper()  # type: ignore[attr-defined]


async def streams_are_iterated(worker: Worker) -> None:
    calculator = worker.proxy(CalculatorProtocol)
    async for number in calculator.count(10):
        assert_type(number, int)
    async for text in calculator.tick(every=1):
        assert_type(text, str)
    async with aclosing(calculator.tick(every=1)) as ticks:
        assert_type(await anext(ticks), str)
    async for item in worker.proxy(Source[bytes]).items():
        assert_type(item, bytes)
    async for counted in worker.proxy(Service).counted(1):
        assert_type(counted, int)
    await calculator.count(10)  # type: ignore[misc]
    for _ in calculator.count(10):  # type: ignore[attr-defined]
        pass
    calculator.count("10")  # type: ignore[arg-type]
    calculator.tick(1)  # type: ignore[call-arg]


async def stubs_are_passed_on() -> None:
    async def use(calculator: CalculatorProtocol) -> int:
        return await calculator.add(1)

    async with open_worker("calc") as worker:
        assert_type(await use(worker.proxy(CalculatorProtocol)), int)
        await use(worker.proxy(Abstract))  # type: ignore[arg-type]
        await use(worker)  # type: ignore[arg-type]


def blocking(calls: SyncCalls) -> None:
    plain = calls.proxy(Plain)
    assert_type(plain, Plain)
    assert_type(plain.add(1), int)
    assert_type([number for number in plain.count(10)], list[int])  # noqa: C416
    service = calls.proxy(PlainService)
    assert_type(service, PlainService)
    assert_type(service.add(1, b=2), int)
    also: Plain = service
    plain.add("1")  # type: ignore[arg-type]
    plain.add()  # type: ignore[call-arg]
    plain.count(n="1")  # type: ignore[arg-type]
    plain.subtract(1)  # type: ignore[attr-defined]
    calls.proxy("Plain")  # type: ignore[arg-type]
    del also


async def not_seen(worker: Worker) -> None:
    """A plain method of a class is typed as plain, and to be awaited in a loop: use a Protocol."""
    plain = worker.proxy(PlainService)
    await plain.add(1)  # type: ignore[misc]
    # A function passes for a class, as both can be called; proxy() itself refuses it.
    assert_type(worker.proxy(len), int)

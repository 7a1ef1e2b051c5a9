"""Stubs: typed objects whose methods call a worker, and refuse what cannot work."""

from __future__ import annotations

import abc
import copy
import inspect
import pickle
import traceback
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Iterable, Iterator
from typing import Any, Generic, Protocol, TypeVar, runtime_checkable

import pytest

from forkwire import UsageError
from forkwire.errors import InvalidArgumentsError
from forkwire.rpc.caller.proxy import proxy
from forkwire.rpc.data.kinds import Kind
from forkwire.rpc.data.shape import Shape
from forkwire.rpc.handlers.service import Service

from ..naming import named

T = TypeVar("T", covariant=True)


class Front:
    """Takes down what a stub asks of it, and answers with a number."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, str, tuple[Any, ...], dict[str, Any]]] = []
        self.shapes: list[Shape] = []

    def __call__(
        self, name: str, shape: Shape, kind: Kind, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        self.calls.append((name, kind, args, kwargs))
        self.shapes.append(shape)
        return len(self.calls)


@runtime_checkable
class Calculator(Protocol):
    """Calculates."""

    async def add(self, a: int, b: int = 2) -> int:
        """Add two numbers."""
        ...

    def count(self, n: int) -> AsyncIterator[int]: ...

    async def ticks(self, *, every: float) -> AsyncIterator[int]:
        yield 1

    async def total(self, *numbers: int, start: int = 0) -> int: ...


OFFERED = {"add": "plain", "count": "generator", "ticks": "async_generator", "total": "async"}


def test_methods_ask_the_front() -> None:
    """Each call reaches the front as name, kind and arguments; its answer is the stub's."""
    front = Front()
    stub = proxy(Calculator, front)
    assert stub.add(1, b=3) == 1  # type: ignore[comparison-overlap]
    assert stub.count(3) == 2  # type: ignore[comparison-overlap]
    assert stub.ticks(every=1.5) == 3  # type: ignore[comparison-overlap]
    assert stub.total(1, 2, start=3) == 4  # type: ignore[comparison-overlap]
    assert front.calls == [
        ("add", "async", (1,), {"b": 3}),
        ("count", "async_generator", (3,), {}),
        ("ticks", "async_generator", (), {"every": 1.5}),
        ("total", "async", (1, 2), {"start": 3}),
    ]


def test_shape_is_the_protocols() -> None:
    """The front is given the protocol's own annotations, without ``self``."""
    front = Front()
    stub: Any = proxy(Calculator, front, offered=OFFERED)
    stub.add(1)
    assert list(front.shapes[0].signature.parameters) == ["a", "b"]


@pytest.mark.parametrize(
    ("name", "args", "kwargs", "message"),
    [
        ("add", (), {}, "missing a required argument: 'a'"),
        ("add", (1, 2, 3), {}, "too many positional arguments"),
        ("add", (1,), {"a": 1}, "multiple values for argument 'a'"),
        ("add", (1,), {"c": 1}, "unexpected keyword argument 'c'"),
        ("ticks", (), {}, "missing a required"),
        ("ticks", (1,), {}, "too many positional"),
        ("total", (), {"begin": 1}, "unexpected keyword argument 'begin'"),
    ],
)
def test_arguments_are_checked_before_sending(
    name: str, args: tuple[Any, ...], kwargs: dict[str, Any], message: str
) -> None:
    """Arguments that do not fit the protocol's signature never reach the front."""
    front = Front()
    method = getattr(proxy(Calculator, front), name)
    with pytest.raises(InvalidArgumentsError, match=message) as caught:
        method(*args, **kwargs)
    assert str(caught.value).startswith(f"{name}(")
    assert not front.calls


def test_signature_in_the_message_is_as_written() -> None:
    """The message shows the signature without ``self`` and without quotes."""
    with pytest.raises(InvalidArgumentsError, match=r"^add\(a: int, b: int = 2\) -> int: missing"):
        proxy(Calculator, Front()).add()  # type: ignore[call-arg, unused-coroutine]


def test_names_outside_the_protocol() -> None:
    """An unknown attribute is an `AttributeError` with the near names, a private one without."""
    stub: Any = proxy(Calculator, Front())
    with pytest.raises(AttributeError, match="has no 'ad'; did you mean 'add'") as caught:
        _ = stub.ad
    with pytest.raises(AttributeError, match="there is add, count, ticks, total"):
        _ = stub.zzz
    assert "Did you" not in "".join(traceback.format_exception_only(caught.value))
    for name in ("_hidden", "__len__", "__await__", "__aenter__", "_repr_html_"):
        assert not hasattr(stub, name)


def test_stub_is_only_a_stub() -> None:
    """It lists its methods, cannot be set, called or copied, and says what it is of."""
    stub: Any = proxy(Calculator, Front(), service="calc")
    assert repr(stub) == "<Calculator of calc>"
    assert dir(stub) == ["add", "count", "ticks", "total"]
    assert not callable(stub)
    with pytest.raises(AttributeError, match="cannot be set"):
        stub.add = None
    with pytest.raises(AttributeError, match="cannot be set"):
        stub.new = None
    with pytest.raises(AttributeError, match="cannot be deleted"):
        del stub.add
    for copying in (copy.copy, copy.deepcopy, pickle.dumps):
        with pytest.raises(UsageError, match="belongs to its worker"):
            copying(stub)
    assert isinstance(stub, Calculator)


def test_methods_say_what_they_are() -> None:
    """Name, doc and signature of a stub's method are those of the protocol."""
    method: Any = proxy(Calculator, Front()).add
    assert method.__name__ == "add"
    assert method.__doc__ == "Add two numbers."
    assert list(inspect.signature(method).parameters) == ["a", "b"]
    assert not inspect.iscoroutinefunction(method)


def test_service_name_of_a_peer_is_made_safe() -> None:
    """What the peer calls itself is cut short and escaped."""
    stub = proxy(Calculator, Front(), service="\x1b[2J" + "x" * 10_000)
    assert len(repr(stub)) < 200
    assert repr(stub).isprintable()


class Divider(Protocol):
    async def add(self, a: int, b: int) -> int: ...

    async def divide(self, a: int, b: int) -> float: ...


def test_method_that_is_not_offered() -> None:
    """A protocol with more than the service offers is refused when the stub is made."""
    with pytest.raises(UsageError, match=r"^Divider has divide\(\), which calc does not offer$"):
        proxy(Divider, Front(), service="calc", offered={"add": "plain"})
    with pytest.raises(UsageError, match="did you mean 'divided'"):
        proxy(Divider, Front(), service="calc", offered={"add": "plain", "divided": "plain"})


def test_unknown_offer_is_not_checked() -> None:
    """Where nothing is known of what the worker offers, every method is there."""
    assert dir(proxy(Divider, Front(), offered=None)) == ["add", "divide"]
    assert dir(proxy(Divider, Front(), offered={})) == ["add", "divide"]


@pytest.mark.parametrize("kind", ["generator", "async_generator"])
def test_plain_in_the_protocol_streamed_in_the_service(kind: str) -> None:
    """A method that is awaited cannot be a function that yields: refused at once."""
    offered = {"add": kind, "divide": "plain"}
    with pytest.raises(UsageError, match=r"Divider.add\(\) is no iterator, but calc offers"):
        proxy(Divider, Front(), service="calc", offered=offered)


@pytest.mark.parametrize("kind", ["plain", "async"])
def test_streamed_in_the_protocol_plain_in_the_service(kind: str) -> None:
    """A method that is an iterator cannot be a function that does not yield."""
    with pytest.raises(UsageError, match=r"Calculator.count\(\) is an iterator, but calc offers"):
        proxy(Calculator, Front(), service="calc", offered={**OFFERED, "count": kind})


class Streams(Protocol):
    def iterator(self) -> Iterator[int]: ...
    def async_iterable(self) -> AsyncIterable[int]: ...
    def async_generator(self) -> AsyncGenerator[int, None]: ...
    def iterable(self) -> Iterable[int]: ...
    def unknown(self): ...  # type: ignore[no-untyped-def]
    def anything(self) -> Any: ...
    def number(self) -> int: ...


def kinds(offered: dict[str, str] | None) -> list[str]:
    front = Front()
    stub: Any = proxy(Streams, front, offered=offered)
    for name in dir(stub):
        getattr(stub, name)()
    return [f"{name}: {kind}" for name, kind, _, _ in front.calls]


def test_kinds_by_annotation() -> None:
    """An iterator is streamed; what the annotation leaves open is as the service offers it."""
    streamed = ["async_generator: async_generator", "async_iterable: async_generator"]
    certain = [*streamed, "iterable: plain", "iterator: generator", "number: plain"]
    assert kinds(None) == ["anything: plain", *certain, "unknown: plain"]
    offered = dict.fromkeys(dir(proxy(Streams, Front())), "generator") | {"number": "plain"}
    certain[2] = "iterable: generator"
    assert kinds(offered) == ["anything: generator", *certain, "unknown: generator"]


def test_async_def_that_returns_an_iterator() -> None:
    """Type checkers take it for something to be awaited first: refused, with what to write."""

    class Wrong(Protocol):
        async def count(self, n: int) -> AsyncIterator[int]: ...

    with pytest.raises(UsageError, match=r"Wrong\.count is an async def .*: write def instead"):
        proxy(Wrong, Front())


def test_plain_class() -> None:
    """A class gives a stub of its public methods; its instance is never made."""

    class Tool(abc.ABC):
        limit: int = 3

        def __init__(self, path: str) -> None:
            raise AssertionError("an instance was made")

        @abc.abstractmethod
        def work(self, n: int) -> int: ...

        @staticmethod
        def static(a: int) -> int:
            return a

        @classmethod
        def of_class(cls, a: int) -> int:
            return a

        @property
        def prop(self) -> int:
            raise AssertionError("a property was read")

        def _private(self) -> int:
            return self.limit

    front = Front()
    stub: Any = proxy(Tool, front, offered=dict(Service.of({"work": len, "static": len,
                                                          "of_class": len}).kinds))  # fmt: skip
    assert dir(stub) == ["of_class", "static", "work"]
    stub.work(1)
    stub.static(2)
    stub.of_class(a=3)
    assert [call[0] for call in front.calls] == ["work", "static", "of_class"]
    with pytest.raises(InvalidArgumentsError):
        stub.static()


def test_inherited_and_generic_protocols() -> None:
    """Methods of base protocols count; a protocol with its parameters filled in is taken too."""

    class Store(Protocol[T]):
        async def get(self, key: str) -> T: ...

    class Both(Store[int], Divider, Protocol):
        async def put(self, key: str, value: int) -> None: ...

    assert dir(proxy(Both, Front())) == ["add", "divide", "get", "put"]
    filled: Any = Store[int]
    assert repr(proxy(filled, Front(), service="s")).endswith("Store of s>")


def test_attributes_in_a_protocol() -> None:
    """A protocol with an attribute or a property promises what no stub can keep."""

    class Named(Protocol):
        name: str

        async def work(self) -> None: ...

    class Property(Protocol):
        @property
        def size(self) -> int: ...

        async def work(self) -> None: ...

    with pytest.raises(UsageError, match=r"Named\.name is not a method"):
        proxy(Named, Front())
    with pytest.raises(UsageError, match=r"Property\.size is not a method"):
        proxy(Property, Front())


class Empty(Protocol): ...


class OnlyCall(Protocol):
    def __call__(self, a: int) -> int: ...


class Box(Generic[T]): ...


@pytest.mark.parametrize("protocol", [Empty, OnlyCall, Box, Box[int], object])
def test_protocols_without_methods(protocol: Any) -> None:
    """Nothing to call is a mistake."""
    with pytest.raises(UsageError, match="has no public methods"):
        proxy(protocol, Front())


@pytest.mark.parametrize("protocol", [None, "calc", len, 3, inspect, lambda: 1, Front()], ids=named)
def test_what_is_no_protocol(protocol: Any) -> None:
    """Anything but a class is refused, with what to write."""
    with pytest.raises(UsageError, match="takes a Protocol or a class"):
        proxy(protocol, Front())

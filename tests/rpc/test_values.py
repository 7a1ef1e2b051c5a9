"""What a function's annotations make of its arguments, results and items, and what is refused."""

from __future__ import annotations

import collections
import dataclasses
import enum
import functools
import gc
import ipaddress
import os
import re
import timeit
import weakref
from array import array
from collections.abc import (
    AsyncIterable,
    AsyncIterator,
    Awaitable,
    Callable,
    Generator,
    Iterable,
    Iterator,
    Mapping,
    Sequence,
)
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import (
    TYPE_CHECKING,
    Annotated,
    Any,
    Generic,
    Literal,
    NamedTuple,
    NewType,
    NotRequired,
    Optional,
    ParamSpec,
    Protocol,
    Self,
    TypedDict,
    TypeVar,
    Union,
)
from uuid import UUID

import msgspec
import numpy
import numpy.typing
import pytest

from forkwire import InvalidArgumentsError, ValueDecodeError
from forkwire.rpc.data.converting import converter_of
from forkwire.rpc.data.mismatch import Mismatch
from forkwire.rpc.data.shape import Shape
from forkwire.wire.messages import StreamRef

if TYPE_CHECKING:
    from nowhere import Unknown  # type: ignore[import-not-found]

T = TypeVar("T")
P = ParamSpec("P")
UserId = NewType("UserId", int)


class Colour(enum.Enum):
    RED = 1
    GREEN = "green"


@dataclasses.dataclass
class Point:
    x: int
    y: float = 0.5


@dataclasses.dataclass
class Box(Generic[T]):
    content: T
    others: list[T] = dataclasses.field(default_factory=list)


class Cell(msgspec.Struct, Generic[T]):
    content: T


class Strict(msgspec.Struct, forbid_unknown_fields=True, tag="strict"):
    a: int


class Loose(msgspec.Struct, array_like=True):
    a: int
    b: int = 2


class Row(NamedTuple):
    a: int
    b: str = "x"


class Movie(TypedDict):
    title: str
    year: NotRequired[int]


class Celsius(float):
    __slots__ = ()


class Plain:
    pass


class Sized(Protocol):
    def size(self) -> int: ...


def converted(annotation: Any, value: Any) -> Any:
    convert = converter_of(annotation)
    return value if convert is None else convert(value)


def same(one: Any, other: Any) -> bool:
    return type(one) is type(other) and bool(one == other)


@pytest.mark.parametrize(
    ("annotation", "value", "made"),
    [
        (int, 1, 1), (int, True, True), (float, 1, 1.0), (float, 1.5, 1.5), (complex, 1, 1 + 0j),
        (str, "a", "a"), (bytes, b"a", b"a"), (None, None, None), (Any, [1], [1]),
        (object, [1], [1]), (bytearray, b"a", bytearray(b"a")),
        (bytes, numpy.frombuffer(b"ab", "u1"), b"ab"),
        (datetime, "2024-02-29T01:02:03", datetime(2024, 2, 29, 1, 2, 3)),
        (date, "2024-02-29", date(2024, 2, 29)), (time, "01:02", time(1, 2)),
        (timedelta, "P1DT2.5S", timedelta(1, 2.5)), (timedelta, "-PT1H2M", -timedelta(0, 3720)),
        (timedelta, "P2W", timedelta(14)), (Decimal, 1, Decimal(1)),
        (Decimal, float("inf"), Decimal("Infinity")), (Fraction, 2, Fraction(2)),
        (UUID, str(UUID(int=5)), UUID(int=5)), (Path, "/a", Path("/a")),
        (Path, b"\xff", Path(os.fsdecode(b"\xff"))), (os.PathLike[str], "a", Path("a")),
        (ipaddress.IPv4Address, "127.0.0.1", ipaddress.IPv4Address("127.0.0.1")),
        (Celsius, 1.5, Celsius(1.5)), (Colour, 1, Colour.RED), (Colour, "green", Colour.GREEN),
        (UserId, 1, 1), (Literal["a", 1], 1, 1), (Literal[Colour.RED], 1, Colour.RED),
        (Annotated[int, "note"], 1, 1), (Annotated[int, msgspec.Meta(gt=0)], 1, 1),
        (Optional[int], None, None), (Union[int, str], "a", "a"), (int | None, 1, 1),  # noqa: UP007, UP045
        (float | int, 1, 1), (int | float, 1.5, 1.5), (str | Path, "a", "a"),
        (bytes | str, b"a", b"a"), (datetime | date, date(2024, 1, 1), date(2024, 1, 1)),
        (list[Path | None], ["a", None], [Path("a"), None]), (list, [1], [1]),
        (Sequence[float], [1], [1.0]), (set[int], {1}, {1}), (set[int], [1], {1}),
        (frozenset[Path], ["a"], frozenset({Path("a")})), (tuple[int, ...], [1, 2], (1, 2)),
        (tuple[int, str], [1, "a"], (1, "a")), (tuple[()], [], ()), (tuple, [1], (1,)),
        (collections.deque[int], [1], collections.deque([1])),
        (dict[int, Point], {1: {"x": 1}}, {1: Point(1)}), (dict, {1: 2}, {1: 2}),
        (dict[Colour, int], {1: 2}, {Colour.RED: 2}),
        (Mapping[str, Path], {"a": "b"}, {"a": Path("b")}),
        (collections.OrderedDict[str, int], {"a": 1}, collections.OrderedDict(a=1)),
        (collections.Counter[str], {"a": 1}, collections.Counter("a")),
        (Point, {"x": 1, "unknown": 2}, Point(1)), (Point, {"x": 1, "y": 2}, Point(1, 2.0)),
        (Point | None, {"x": 1}, Point(1)), (Box[int], {"content": 1}, Box(1)),
        (Box[Path], {"content": "a", "others": ["b"]}, Box(Path("a"), [Path("b")])),
        (Cell[Path], {"content": "a"}, Cell(Path("a"))), (Row, [1], Row(1)),
        (Row, [1, "y"], Row(1, "y")), (Movie, {"title": "a", "more": 1}, {"title": "a", "more": 1}),
        (Strict, {"type": "strict", "a": 1}, Strict(1)), (Loose, [1], Loose(1)),
        (Strict | Point, {"type": "strict", "a": 1}, Strict(1)),
        (Point | Movie, {"title": "a"}, {"title": "a"}), (Sized, 5, 5), (Callable[[], int], 5, 5),
        (T, 5, 5), (Self, 5, 5), (Iterable[int], [1], [1]), (type(StreamRef(1)), 5, 5),
        (numpy.float32, 1, numpy.float32(1)), (numpy.int8, 5, numpy.int8(5)),
        (array, numpy.array([1, 2], "i4"), array("i", [1, 2])),
    ],
)  # fmt: skip
def test_a_value_becomes_what_the_annotation_says(annotation: Any, value: Any, made: Any) -> None:
    """Natural values of the wire, and the class that is made of each."""
    back = converted(annotation, value)
    assert back == made
    assert type(back) is type(made)


@pytest.mark.parametrize(
    ("annotation", "value", "says"),
    [
        (int, "1", "expected int, got str"), (int, 1.0, "expected int, got float"),
        (int, None, "expected int, got None"), (str, 1, "expected str, got int"),
        (float, "1", "expected float, got str"), (float, 10**400, "too large"),
        (bool, 1, "expected bool, got int"), (bytes, "a", "expected bytes, got str"),
        (None, 1, "expected None, got int"), (datetime, 1, "expected datetime, got int"),
        (datetime, "x", "expected datetime, got the str 'x'"), (timedelta, "P", "timedelta"),
        (timedelta, "P999999999DT99999999999S", "timedelta"), (Decimal, 1.5, "expected Decimal"),
        (Decimal, "1", "expected Decimal"), (UUID, "x", "expected UUID, got the str 'x'"),
        (Path, 1, "expected Path, got int"), (Colour, 3, "3 is no value of Colour"),
        (Literal["a", 1], 2, "expected one of 'a', 1, got 2"),
        (Literal[1], True, "expected one of 1"),
        (Annotated[int, msgspec.Meta(gt=0)], 0, ">= 1"), (int | None, "a", "int | None, got str"),
        (list[int], [1, "a"], "$[1]: expected int, got str"), (list[int], "a", "expected list"),
        (Sequence[str], "abc", "expected Sequence, got str"),
        (dict[str, list[int]], {"k": [1, None]}, "$['k'][1]: expected int, got None"),
        (dict[int, int], {"1": 1}, "$['1']: expected int, got str"),
        (tuple[int, str], [1], "expected a tuple of 2 items, got 1"),
        (tuple[int, str], [1, 2], "$[1]: expected str, got int"),
        (Point, {}, "Point needs 'x', which is missing"), (Point, [1], "expected Point, got list"),
        (Point, {"x": "a"}, "$.x: expected int, got str"),
        (Point | None, {"x": "a"}, "$.x: expected int, got str"),
        (list[Point] | None, [{"x": None}], "$[0].x: expected int"),
        (Row, [], "Row has 1 items, got 0"), (Row, ["a"], "$[0]: expected int"),
        (Movie, {}, "Movie needs 'title'"), (Movie, {"title": 1}, "$['title']: expected str"),
        (Strict, {"a": 1}, "type is not 'strict'"),
        (Strict, {"type": "strict", "a": 1, "b": 2}, "has no field 'b'"),
        (Plain, {}, "Plain has no form on the wire; make it a dataclass"),
        (numpy.int8, 300, "expected numpy.int8"), (numpy.int8, 1.5, "expected numpy.int8"),
        (numpy.ndarray, "a", "expected ndarray, got str"),
        (numpy.ndarray, ["a"], "other things than numbers"),
        (numpy.typing.NDArray[numpy.int32], numpy.zeros(1), "expected an array of int32"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_named_with_its_path(annotation: Any, value: Any, says: str) -> None:
    """What was expected, what came, and where."""
    with pytest.raises(Mismatch) as caught:
        converted(annotation, value)
    assert says in caught.value.sentence("$")


def test_arrays_take_the_annotated_type() -> None:
    """If that loses nothing; abstract number types and none at all are satisfied by many."""
    ndarray = numpy.typing.NDArray
    assert converted(ndarray[numpy.float64], numpy.array([1], "i4")).dtype == "f8"
    assert converted(ndarray[numpy.floating[Any]], numpy.array([1.0], "f4")).dtype == "f4"
    assert converted(ndarray[Any], numpy.array([1.0], "f4")).dtype == "f4"
    assert converted(numpy.ndarray, [[1, 2], [3, 4]]).shape == (2, 2)


def test_a_value_that_is_an_instance_already_stays_itself() -> None:
    """Whatever its class: nothing is copied that needs no copy."""
    for kind, value in [
        (Point, Point(1)),
        (Plain, Plain()),
        (Path, Path("a")),
        (Colour, Colour.RED),
    ]:
        assert converted(kind, value) is value


# -- functions --------------------------------------------------------------------------------


def add(a: int, b: int) -> int:
    return a + b


def everything(
    a: Path, /, b: float = 2.0, *rest: int, key: Colour, **more: bytes | str
) -> None: ...


def test_arguments_are_bound_and_converted() -> None:
    """Positional-only, keyword-only, and the rest; defaults are left to the function."""
    shape = Shape.of(everything)
    assert shape.bind(["x"], {"key": 1}) == ([Path("x")], {"key": Colour.RED})
    args, kwargs = shape.bind(["x", 1, 2, 3], {"key": "green", "z": b"b"})
    assert args == [Path("x"), 1.0, 2, 3]
    assert type(args[1]) is float
    assert kwargs == {"key": Colour.GREEN, "z": b"b"}
    assert shape.bind(["x"], {"b": 1, "key": 1}) == ([Path("x"), 1.0], {"key": Colour.RED})


@pytest.mark.parametrize(
    ("args", "kwargs", "says"),
    [
        ([1], {}, "add(a: int, b: int) -> int: missing argument 'b'"),
        ([1, 2, 3], {}, "add(a: int, b: int) -> int: too many positional arguments"),
        ([1], {"c": 1}, "add(a: int, b: int) -> int: missing argument 'b'"),
        ([1, 2], {"c": 1}, "got an unexpected keyword argument 'c'"),
        ([1, 2], {"a": 1}, "multiple values for argument 'a'"),
        ([1, "2"], {}, "add(a: int, b: int) -> int: b: expected int, got str"),
    ],
)
def test_wrong_arguments_name_the_signature(
    args: list[Any], kwargs: dict[str, Any], says: str
) -> None:
    """What the function takes, and what is wrong."""
    with pytest.raises(InvalidArgumentsError, match=re.escape(says)):
        Shape.of(add).bind(args, kwargs)


def test_wrong_arguments_name_the_path() -> None:
    """By parameter, index and key."""
    shape = Shape.of(everything)
    for args, kwargs, says in [
        (["x", 1, "a"], {"key": 1}, "rest[0]: expected int"),
        (["x"], {"key": 1, "z": 5}, "z: expected bytes | str, got int"),
        ([5], {"key": 1}, "a: expected Path"),
    ]:
        with pytest.raises(InvalidArgumentsError, match=re.escape(says)):
            shape.bind(args, kwargs)  # type: ignore[arg-type]


def test_streams_pass_unconverted() -> None:
    """A `StreamRef` stands for an iterator, wherever it is an argument; its items are converted."""

    def total(numbers: Iterator[float], *more: Iterator[Path], by: Iterable[int]) -> None: ...

    shape = Shape.of(total)
    assert shape.bind([StreamRef(0), StreamRef(1)], {"by": StreamRef(2)}) == (
        [StreamRef(0), StreamRef(1)],
        {"by": StreamRef(2)},
    )
    assert same(shape.argument_item(0)(1), 1.0)
    assert shape.argument_item(1)("a") == shape.argument_item(4)("a") == Path("a")
    with pytest.raises(ValueDecodeError, match=r"an item of 'by' does not fit, \$: expected int"):
        shape.argument_item("by")("a")
    (numbers,), _ = Shape.of(lambda numbers: numbers).bind([StreamRef(0)], {})
    assert numbers == StreamRef(0)
    args, _ = shape.bind([[1, 2]], {"by": [1]})
    assert list(args[0]) == [1.0, 2.0]  # type: ignore[call-overload]


def test_a_choice_of_a_stream_converts_its_items() -> None:
    """``Iterator[T] | None`` is an ``Iterator[T]`` where a stream comes."""

    def total(numbers: Iterator[Path] | None, more: Annotated[Iterable[Path], 1]) -> None: ...

    shape = Shape.of(total)
    refs = [StreamRef(0), StreamRef(1)]
    assert shape.bind(refs, {}) == (refs, {})
    assert shape.argument_item(0)("a") == shape.argument_item(1)("a") == Path("a")


def plain_list(found: list[int]) -> None: ...
def plain_text(found: str) -> None: ...
def plain_later(*found: AsyncIterator[int]) -> None: ...
async def later_plain(found: Iterator[int]) -> None: ...
async def later_either(found: Iterable[int] | AsyncIterable[int]) -> None: ...
def plain_any(found: Any, more) -> None: ...  # type: ignore[no-untyped-def]
def plain_choice(found: list[int] | Iterable[int]) -> None: ...


@pytest.mark.parametrize(
    ("function", "why"),
    [
        (plain_list, "found: expected list[int], got a stream: pass list(...) of it"),
        (plain_text, "found: expected str, got a stream: pass list(...) of it"),
        (plain_later, "found[0]: a stream is no AsyncIterator[int] here: take it as Iterator"),
        (
            later_plain,
            "found: a stream is no Iterator[int] here: an async function takes it as AsyncIterator",
        ),
        (later_either, ""),
        (plain_any, ""),
        (plain_choice, ""),
    ],
)
def test_a_stream_goes_where_it_can_be_iterated(function: Callable[..., Any], why: str) -> None:
    """What wants all of it at once, or iterates in another way, gets an error instead of it."""
    args: list[object] = [StreamRef(0)]
    args += [1] if function is plain_any else []
    if why:
        with pytest.raises(InvalidArgumentsError, match=re.escape(f": {why}") + "$"):
            Shape.of(function).bind(args, {})
    else:
        assert Shape.of(function).bind(args, {}) == (args, {})


@pytest.mark.anyio
async def test_a_list_is_an_asynchronous_iterator_too() -> None:
    """So that what is called need not know how it was passed."""

    async def total(paths: AsyncIterator[Path], more: AsyncIterable[Any]) -> None: ...

    (paths, more), _ = Shape.of(total).bind([["a", "b"], [1]], {})
    assert [path async for path in paths] == [Path("a"), Path("b")]  # type: ignore[attr-defined]
    assert [n async for n in more] == [1]  # type: ignore[attr-defined]
    with pytest.raises(InvalidArgumentsError, match=r"paths\[0\]: expected Path, got int"):
        Shape.of(total).bind([[1], []], {})
    with pytest.raises(
        InvalidArgumentsError, match=r"more: expected AsyncIterable\[Any\], got int"
    ):
        Shape.of(total).bind([[], 1], {})


def test_a_signature_is_shown_as_it_was_written() -> None:
    """Quotes that belong to it stay."""

    def pick(of: Literal["a", 1], then: str = "x") -> None: ...

    with pytest.raises(InvalidArgumentsError) as caught:
        Shape.of(pick).bind([2], {})
    assert str(caught.value).startswith("pick(of: Literal['a', 1], then: str = 'x') -> None: of: ")


def test_results_and_items_are_converted() -> None:
    """By the return annotation; an error names the function and the path."""

    def points() -> dict[str, list[Point]]:
        return {}

    def walk() -> Generator[Path, None, int]:
        yield Path()
        return 1

    async def ticks() -> AsyncIterator[float]:
        yield 1.0

    assert Shape.of(points).result({"a": [{"x": 1}]}) == {"a": [Point(1)]}
    with pytest.raises(
        ValueDecodeError, match=r"points\(\).*the result does not fit, \$\['a'\]\[0\]\.x: "
    ):
        Shape.of(points).result({"a": [{"x": ""}]})
    assert Shape.of(walk).item("a") == Path("a")
    assert Shape.of(walk).result(None) is None
    assert same(Shape.of(ticks).item(1), 1.0)
    with pytest.raises(ValueDecodeError, match="an item does not fit"):
        Shape.of(ticks).item("a")


async def nap() -> int:
    return 1


def forwarded() -> Awaitable[Path]:
    raise NotImplementedError


def listed() -> Iterator[int]:
    return iter([1])


class Service:
    def method(self, a: int) -> Self:
        return self

    def __call__(self, a: Path) -> Iterator[Path]:
        yield a


@pytest.mark.parametrize(
    ("function", "kind"),
    [
        (add, "plain"), (nap, "async"), (forwarded, "async"), (listed, "generator"),
        (Service().method, "plain"), (Service(), "generator"), (Service, "plain"),
        (functools.partial(add, 1), "plain"), (functools.partial(nap), "async"),
        (functools.wraps(nap)(lambda: nap()), "async"), (len, "plain"), (print, "plain"),
        (max, "plain"),
    ],
)  # fmt: skip
def test_the_kind_of_a_function(function: Any, kind: str) -> None:
    """Whether it is called, awaited or iterated, behind wrappers, for objects and builtins."""
    assert Shape.of(function).kind == kind


def test_methods_partial_objects_and_builtins_are_bound() -> None:
    """Without self; with what is left; a builtin without a signature takes anything."""
    assert str(Shape.of(Service().method)) == "method(a: int) -> Self"
    assert Shape.of(Service()).bind(["x"], {}) == ([Path("x")], {})
    assert Shape.of(functools.partial(add, 1)).bind([2], {}) == ([2], {})
    with pytest.raises(InvalidArgumentsError, match="b: expected int"):
        Shape.of(functools.partial(add, 1)).bind(["2"], {})
    assert Shape.of(max).bind([1, "a"], {"key": 3}) == ([1, "a"], {"key": 3})


def decorated(function: Callable[P, T]) -> Callable[P, T]:
    @functools.wraps(function)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> T:
        return function(*args, **kwargs)

    return wrapper


def test_decorated_functions_show_what_they_wrap() -> None:
    """And a wrapper that says only ParamSpec takes anything."""
    assert Shape.of(decorated(everything)).bind(["x"], {"key": 1})[0] == [Path("x")]

    def naked(function: Callable[P, T]) -> Callable[P, T]:
        def bare(*args: P.args, **kwargs: P.kwargs) -> T:
            return function(*args, **kwargs)

        return bare

    assert Shape.of(naked(print)).bind([1], {"a": 2}) == ([1], {"a": 2})


def test_what_cannot_be_resolved_takes_anything() -> None:
    """A name that only a type checker sees spoils its own parameter alone."""

    def mixed(a: Unknown, b: Path, c: list[Unknown], d: Path | None) -> Unknown: ...

    args, _ = Shape.of(mixed).bind([1, "b", 2, "d"], {})
    assert args == [1, Path("b"), 2, Path("d")]
    assert Shape.of(mixed).result("r") == "r"
    assert "a: Unknown, b: Path" in str(Shape.of(mixed))


def test_a_class_that_holds_itself_is_no_trap() -> None:
    """However deep the value is: an error, not a crash."""
    value: dict[str, Any] = {}
    for _ in range(100_000):
        value = {"children": [value]}
    shape = Shape.of(plant)
    with pytest.raises(InvalidArgumentsError, match="nested too deeply"):
        shape.bind([value], {})
    del value


@dataclasses.dataclass
class Tree:
    children: list[Tree] = dataclasses.field(default_factory=list)


def plant(tree: Tree) -> None: ...


def test_a_shape_lives_as_long_as_its_function() -> None:
    """It is made once, and kept by nobody else."""
    assert Shape.of(add) is Shape.of(add)

    def passing(a: int) -> None: ...

    kept = weakref.ref(passing)
    Shape.of(passing)
    del passing
    gc.collect()
    assert kept() is None


@pytest.mark.slow
def test_binding_plain_arguments_is_fast() -> None:
    """Measured 0.4 us for two ints; a bound that only a change of method breaks."""
    shape = Shape.of(add)
    best = min(timeit.repeat(lambda: shape.bind([1, 2], {}), number=2000, repeat=5)) / 2000
    assert best < 5e-6

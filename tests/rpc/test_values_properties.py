"""Whatever is sent by annotation comes back equal: encode, decode, convert, for many types."""

from __future__ import annotations

import collections
import dataclasses
import enum
import ipaddress
from datetime import UTC, date, datetime, time, timedelta, timezone
from decimal import Decimal
from fractions import Fraction
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple, TypedDict, cast
from uuid import UUID

import msgspec
import numpy
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from forkwire.rpc.data.codec import decode, encode
from forkwire.rpc.data.converting import converter_of
from forkwire.rpc.data.hashing import frozen


class Colour(enum.Enum):
    RED = 1
    GREEN = "green"
    PAIR = (1, 2)


class Level(enum.IntEnum):
    LOW = 1
    HIGH = 2


class Mode(enum.StrEnum):
    FAST = "fast"


class Rights(enum.Flag):
    READ = 1
    WRITE = 2


@dataclasses.dataclass(frozen=True)
class Point:
    x: int
    y: float = 0.5
    _hidden: str = ""


@dataclasses.dataclass
class Tree:
    name: str
    at: Point
    colour: Colour = Colour.RED
    children: list[Tree] = dataclasses.field(default_factory=list)
    depth: int = dataclasses.field(default=3, init=False)


class Row(NamedTuple):
    a: int
    b: str = "x"


class Options(TypedDict, total=False):
    when: datetime
    path: Path


class Item(msgspec.Struct, rename="camel", omit_defaults=True, tag="item", frozen=True):
    item_name: str
    sizes: tuple[int, ...] = ()


class Flat(msgspec.Struct, array_like=True, frozen=True):
    a: int
    b: bytes | str = b""


texts = st.text(max_size=8)
small_ints = st.integers(-(2**70), 2**70)
zones = st.integers(-1439, 1439).map(lambda minutes: timezone(timedelta(minutes=minutes)))
points = st.builds(Point, st.integers(), st.floats(allow_nan=False), texts)
paths = texts.filter(lambda text: "\0" not in text).map(Path)

LEAVES: dict[Any, st.SearchStrategy[Any]] = {
    int: small_ints,
    float: st.floats(allow_nan=False),
    str: texts,
    bool: st.booleans(),
    bytes: st.binary(max_size=40),
    type(None): st.none(),
    complex: st.complex_numbers(allow_nan=False),
    datetime: st.datetimes() | st.datetimes(min_value=datetime(2, 1, 1), timezones=zones),
    date: st.dates(),
    time: st.times() | st.times(timezones=zones),
    timedelta: st.timedeltas(),
    Decimal: st.decimals(allow_nan=False),
    Fraction: st.fractions(),
    UUID: st.uuids(),
    Path: paths,
    ipaddress.IPv4Address: st.ip_addresses(v=4),
    ipaddress.IPv6Address: st.ip_addresses(v=6),
    Colour: st.sampled_from(Colour),
    Level: st.sampled_from(Level),
    Mode: st.sampled_from(Mode),
    Rights: st.sampled_from([Rights.READ, Rights.READ | Rights.WRITE, Rights(0)]),
    Point: points,
    Row: st.builds(Row, st.integers(), texts),
    Item: st.builds(Item, texts, st.lists(st.integers(), max_size=3).map(tuple)),
    Flat: st.builds(Flat, st.integers(), st.binary(max_size=5) | texts),
}

Pair = tuple[Any, st.SearchStrategy[Any]]

# Their items are chosen at run time, which a type checker does not want to see.
LIST, TUPLE, DICT, DEQUE = (cast(Any, kind) for kind in (list, tuple, dict, collections.deque))
SET, FROZENSET = cast(Any, set), cast(Any, frozenset)
leaves = st.sampled_from(list(LEAVES.items()))


def containers(inner: st.SearchStrategy[Pair]) -> st.SearchStrategy[Pair]:
    def of_list(pair: Pair) -> Pair:
        return LIST[pair[0]], st.lists(pair[1], max_size=4)

    def of_tuple(pair: Pair) -> Pair:
        return TUPLE[pair[0], ...], st.lists(pair[1], max_size=4).map(tuple)

    def of_two(pairs: tuple[Pair, Pair]) -> Pair:
        (a, values), (b, others) = pairs
        return TUPLE[a, b], st.tuples(values, others)

    def of_deque(pair: Pair) -> Pair:
        return DEQUE[pair[0]], st.lists(pair[1], max_size=4).map(collections.deque)

    def of_optional(pair: Pair) -> Pair:
        return pair[0] | None, pair[1] | st.none()

    def of_map(pairs: tuple[Pair, Pair]) -> Pair:
        (key, keys), (value, values) = pairs
        return DICT[key, value], st.dictionaries(keys, values, max_size=4)

    return st.one_of(
        inner.map(of_list),
        inner.map(of_tuple),
        st.tuples(inner, inner).map(of_two),
        inner.map(of_deque),
        inner.map(of_optional),
        st.tuples(leaves, inner).map(of_map),
    )


typed_values = st.recursive(leaves, containers, max_leaves=5).flatmap(
    lambda pair: pair[1].map(lambda value: (pair[0], value))
)


def sent(value: Any, *, trusted: bool = True) -> Any:
    body, attachments = encode([3, 1, value])
    return decode(body, [bytes(memory) for memory in attachments], trusted=trusted)[2]


def converted(annotation: Any, value: Any) -> Any:
    convert = converter_of(annotation)
    return value if convert is None else convert(value)


many = settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])


@many
@given(typed_values, st.booleans())
def test_every_typed_value_comes_back_equal(pair: tuple[Any, Any], trusted: bool) -> None:
    """encode, decode and convert give back an equal value of the same type."""
    annotation, value = pair
    back = converted(annotation, sent(value, trusted=trusted))
    assert back == value
    assert type(back) is type(value)


@many
@given(leaves.flatmap(lambda pair: st.tuples(st.just(pair[0]), st.frozensets(pair[1], max_size=4))))
def test_sets_come_back_equal(pair: tuple[Any, frozenset[Any]]) -> None:
    """Sets of anything hashable, frozen dataclasses and Structs too, and sets of sets."""
    kind, value = pair
    assert converted(FROZENSET[kind], sent(value)) == value
    nested = {value}
    assert converted(SET[FROZENSET[kind]], sent(nested)) == nested
    assert converted(SET[FROZENSET[kind]], sent(nested, trusted=False)) == nested


@many
@given(st.recursive(st.builds(Tree, texts, points), lambda inner: st.builds(
    Tree, texts, points, st.sampled_from(Colour), st.lists(inner, max_size=3))))  # fmt: skip
def test_a_class_that_holds_itself_comes_back_equal(tree: Tree) -> None:
    """Nested dataclasses keep their defaults, private names and fields outside __init__."""
    assert converted(Tree, sent(tree)) == tree


@many
@given(st.fixed_dictionaries({}, optional={"when": LEAVES[datetime], "path": paths}))
def test_typed_dicts_come_back_equal(value: dict[str, Any]) -> None:
    """Keys may be absent; values are converted."""
    assert converted(Options, sent(value)) == value


DTYPES = ["?", "u1", "i2", "<u4", ">i8", "f2", "<f4", ">f8"]


@many
@given(st.sampled_from(DTYPES), st.lists(st.integers(0, 3), max_size=4), st.booleans())
def test_arrays_come_back_equal(dtype: str, shape: list[int], fortran: bool) -> None:
    """Every dtype, byte order, shape and memory order."""
    array = numpy.arange(numpy.prod(shape, dtype=int)).reshape(shape).astype(dtype)
    if fortran:
        array = numpy.asfortranarray(array)
    back = converted(dict[str, numpy.ndarray], sent({"a": array}))["a"]
    assert back.dtype == array.dtype
    assert back.shape == array.shape
    assert (back == array).all()


plain = st.recursive(
    st.none() | st.booleans() | small_ints | st.floats(allow_nan=False) | texts | st.binary(),
    lambda inner: st.lists(inner) | st.dictionaries(texts | st.integers(), inner),
)


@many
@given(plain, st.booleans())
def test_plain_data_comes_back_equal_without_annotation(value: Any, trusted: bool) -> None:
    """What CBOR has itself needs no annotation."""
    assert sent(value, trusted=trusted) == value
    assert sent([value] * 30, trusted=trusted) == [value] * 30


@many
@given(st.datetimes(timezones=st.just(UTC)), st.builds(PurePosixPath, texts))
def test_a_union_takes_the_member_that_came(moment: datetime, path: PurePosixPath) -> None:
    """Unions that msgspec refuses: of dates, of bytes and text, of classes."""
    assert converted(datetime | date, sent(moment)) == moment
    assert converted(datetime | date, sent(moment.date())) == moment.date()
    assert converted(bytes | str, sent(str(path))) == str(path)
    assert converted(Point | Item | None, sent(Item("a"))) == Item("a")
    assert converted(Point | Tree, sent(Tree("t", Point(1)))) == Tree("t", Point(1))


@many
@given(plain)
def test_what_is_frozen_can_stand_in_a_set(value: Any) -> None:
    """Lists, maps and sets inside become tuples, frozen maps and frozen sets."""
    assert len({frozen(value), frozen(value)}) <= 2

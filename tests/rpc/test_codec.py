"""Values to bytes and back: what travels as what, and what is refused at either end."""

from __future__ import annotations

import array
import collections
import contextlib
import dataclasses
import enum
import gc
import mmap
import os
import re
import subprocess
import sys
import time
import types
import weakref
from collections.abc import Iterator
from datetime import UTC, date, datetime
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple

import cbor2
import msgspec
import numpy
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from forkwire import ProtocolError, ValueEncodeError
from forkwire.rpc.data.codec import ATTACHMENT_SIZE, MAX_DEPTH, UnknownTag, decode, encode
from forkwire.rpc.data.hashing import MAP_TAG, KeyBudget, maps_as_arrays
from forkwire.rpc.data.tags import TAGS
from forkwire.wire.messages import StreamRef

LARGE = bytes(range(256)) * 256
PRIME = 2**61 - 1  # integers hash modulo this


def sent(value: Any, *, trusted: bool = True) -> Any:
    """``value`` as it arrives, without annotations."""
    body, attachments = encode([3, 1, value])
    return decode(body, [bytes(memory) for memory in attachments], trusted=trusted)[2]


def refusal(value: Any) -> str:
    """What is said about argument ``value``."""
    with pytest.raises(ValueEncodeError) as caught:
        encode([1, 7, "f", [value], {}, {}])
    return str(caught.value)


def fault(body: str | bytes, *attachments: bytes, trusted: bool = True) -> str:
    """What is said about a peer's bytes."""
    raw = bytes.fromhex(body) if isinstance(body, str) else body
    with pytest.raises(ProtocolError) as caught:
        decode(raw, attachments, trusted=trusted)
    return str(caught.value)


# -- what is sent -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "value",
    [0, 23, 24, 255, 256, 1023, 1024, 65535, 65536, 2**32, 2**64 - 1, 2**64, -1, -24, -25,
     -(2**64), -(2**64) - 1, 2**200, 1.5, float("inf"), "", "é", "x" * 300, b"", b"x" * 300, None,
     True, False, [], [1, [2]], {}, {"a": 1}, {1: 2, b"k": None, 2.5: []}, list(range(300)),
     [{"a": [1]}] * 40, {str(n): n for n in range(300)}, {n: {"x": n} for n in range(40)}],
)  # fmt: skip
def test_plain_values_are_ordinary_cbor(value: Any) -> None:
    """Any CBOR decoder reads our bytes, and we read those of another encoder."""
    body, attachments = encode(value)
    assert not attachments
    assert cbor2.loads(body) == value
    assert decode(cbor2.dumps(value)) == value
    assert decode(cbor2.dumps(value), trusted=False) == value


class Level(enum.IntEnum):
    LOW = 1


class Word(str):
    __slots__ = ()


class Row(NamedTuple):
    a: int
    b: int


@dataclasses.dataclass
class Config:
    name: str
    options: Any = None


class Renamed(msgspec.Struct, rename="camel", omit_defaults=True, tag=True):
    some_name: int
    others: list[int] = []
    unset: int | msgspec.UnsetType = msgspec.UNSET


class Flat(msgspec.Struct, array_like=True, tag="flat"):
    a: int


@pytest.mark.parametrize(
    ("value", "arrives"),
    [
        (Level.LOW, 1),
        (Word("w"), "w"),
        ((1, 2), [1, 2]),
        (Row(1, 2), [1, 2]),
        (collections.deque([1]), [1]),
        (collections.OrderedDict(a=1), {"a": 1}),
        (collections.Counter("aa"), {"a": 2}),
        (types.MappingProxyType({"a": 1}), {"a": 1}),
        (Config("n", [Config("m")]), {"name": "n", "options": [{"name": "m", "options": None}]}),
        (bytearray(b"a"), b"a"),
        (memoryview(b"abc"), b"abc"),
        (memoryview(b"abcd")[::2], b"ac"),
        (memoryview(b"ab").cast("H"), b"ab"),
        (Path("/tmp"), "/tmp"),
        (datetime(2024, 2, 29), "2024-02-29T00:00:00"),
        (datetime(2024, 2, 29, tzinfo=UTC), datetime(2024, 2, 29, tzinfo=UTC)),
        (numpy.float32(0.5), 0.5),
        (numpy.int8(-1), -1),
        (numpy.bool_(True), True),
        (numpy.str_("s"), "s"),
        (1 + 2j, 1 + 2j),
        (Decimal("Infinity"), float("inf")),
        (StreamRef(3), StreamRef(3)),
        ({1, (2, 3)}, {1, (2, 3)}),
    ],
)
def test_other_values_arrive_as_natural_ones(value: Any, arrives: Any) -> None:
    """Without an annotation there is no class to come back to."""
    back = sent(value)
    assert back == arrives
    assert type(back) is type(arrives)
    assert sent([value] * 30) == [arrives] * 30


@pytest.mark.parametrize("value", [Renamed(1), Renamed(1, [2], 3), Flat(1)])
def test_structs_are_laid_out_as_msgspec_does(value: Any) -> None:
    """Renamed, tagged, without defaults, or as an array."""
    assert sent(value) == msgspec.to_builtins(value)


@pytest.mark.parametrize("make", [bytes, bytearray, memoryview, numpy.frombuffer])
def test_large_memory_is_attached_and_not_copied(make: Any) -> None:
    """From ATTACHMENT_SIZE on, memory travels behind the body, which names it."""
    value = make(LARGE) if make is not numpy.frombuffer else numpy.frombuffer(LARGE, "u1")
    body, attachments = encode([1, 7, "f", [{"a": [value]}]])
    assert len(body) < 50
    (memory,) = attachments
    owner = numpy.frombuffer(value, "u1")
    assert numpy.shares_memory(owner, numpy.frombuffer(memory, "u1"))
    assert bytes(decode(body, [bytes(memory)])[3][0]["a"][0]) == LARGE


def test_memory_is_attached_from_the_threshold_on() -> None:
    """One byte less stays inside."""
    assert encode([3, 1, bytes(ATTACHMENT_SIZE - 1)])[1] == []
    assert encode([3, 1, bytearray(ATTACHMENT_SIZE - 1)])[1] == []
    assert len(encode([3, 1, [bytes(ATTACHMENT_SIZE), bytearray(ATTACHMENT_SIZE)]])[1]) == 2


def test_mapped_memory_and_arrays_of_the_standard_library_travel() -> None:
    """An mmap as bytes, an array.array as numbers."""
    with mmap.mmap(-1, 4096) as mapped:
        assert sent(mapped) == bytes(4096)
    assert sent(array.array("h", [1, -2])).tolist() == [1, -2]
    assert sent(array.array("d")).tolist() == []


@pytest.mark.parametrize(
    "value",
    [numpy.arange(6.0).reshape(2, 3), numpy.array(5), numpy.zeros((0, 3)),
     numpy.array([True, False]), numpy.arange(10000, dtype=">i4").reshape(100, 100).T,
     numpy.arange(9)[::2]],
)  # fmt: skip
def test_arrays_keep_type_and_shape_and_cannot_be_written(value: Any) -> None:
    """Small and attached ones behave alike: both are views of the message's memory."""
    back = sent(value)
    assert back.dtype == value.dtype
    assert back.shape == value.shape
    assert (back == value).all()
    assert not back.flags.writeable


def test_arrays_are_memoryviews_where_numpy_is_missing() -> None:
    """Also of the other byte order, and with a shape."""
    script = """
import sys
sys.modules["numpy"] = None
from forkwire.rpc.data.codec import decode
little = decode(bytes.fromhex("d84e48" "01000000ffffffff"))
big = decode(bytes.fromhex("d84a48" "00000001ffffffff"))
assert little.tolist() == big.tolist() == [1, -1]
shaped = decode(bytes.fromhex("d82882820102d84a4800000001ffffffff"))
assert shaped.tolist() == [[1, -1]]
assert decode(bytes.fromhex("da464b0003d840420100")).tolist() == [True, False]
"""
    subprocess.run([sys.executable, "-c", script], check=True)


def test_the_codec_imports_no_numpy_and_no_msgspec() -> None:
    """A fresh worker pays for what it uses."""
    script = """
import sys
from forkwire.rpc.data.codec import decode, encode
decode(encode([1, 2, "f", [1, {"a": b""}]])[0])
assert not {"numpy", "msgspec"} & set(sys.modules), "too much"
"""
    subprocess.run([sys.executable, "-c", script], check=True)


def test_a_class_made_at_run_time_is_not_kept_alive() -> None:
    """How a type is written is remembered no longer than the type lives."""
    made = dataclasses.make_dataclass("Made", ["a"])
    assert sent(made(1)) == {"a": 1}
    alive = weakref.ref(made)
    del made
    gc.collect()
    assert alive() is None


# -- what is refused at sending ---------------------------------------------------------------


def counted() -> Iterator[int]:
    yield 1


class Broken:
    __slots__ = ()

    def __repr__(self) -> str:
        raise RuntimeError


@pytest.mark.parametrize(
    ("value", "says"),
    [
        (object(), r"^cannot send \$\.args\[0\]: object has no encoding: make it a dataclass"),
        (Broken(), r"test_codec\.Broken has no encoding"),
        ({"config": [1, {"key": object()}]}, r"\$\.args\[0\]\['config'\]\[1\]\['key'\]: "),
        (Config("n", Config("m", object())), r"\$\.args\[0\]\.options\.options: object"),
        (Renamed(object()), r"\$\.args\[0\]\.someName: "),  # type: ignore[arg-type]
        ({1, int}, r"\$\.args\[0\]\{<class 'int'>\}: "),
        ([{}] * 40 + [int], r"\$\.args\[0\]\[40\]: "),
        (range(3), r"range has no encoding: send list"),
        (counted(), r"generator has no encoding: an iterator is sent"),
        ({}.keys(), r"send list"),
        (len, r"code is not sent"),
        (re.compile("a"), r"send its \.pattern"),
        (ValueError("x"), r"raise it"),
        (os, r"module has no encoding"),
        ("\ud800", r"half of a surrogate pair.*os\.fsencode"),
        (["x"] * 40 + ["\ud800"], r"\$\.args\[0\]\[40\]: the str"),
        ({"\udc80": 1}, r"\$\.args\[0\]\['\\udc80'\]: the str"),
        (Path(os.fsdecode(b"\xff")), r"not valid UTF-8: send os\.fsencode"),
        (Decimal("1e9999999"), r"send it as text"),
        (Fraction(1, 10**6000), r"send it as text"),
        (numpy.array([object()]), r"a numpy array of object has no encoding: send \.tolist"),
        (numpy.array(["2020"], "M8[D]"), r"send \.astype\('int64'\)"),
        (numpy.zeros(2, "i4,f4"), r"send its columns"),
        (numpy.zeros(2, "c16"), r"send \.real and \.imag"),
        (numpy.ma.array([1], mask=[True]), r"masked array"),
        (numpy.datetime64("2020"), r"numpy\.datetime64 has no encoding"),
        (array.array("w" if sys.version_info >= (3, 13) else "u", "a"), r"send \.tounicode"),
        (UnknownTag(5, 1), r"not part of the protocol"),
        (cbor2.CBORTag(28, 1), r"not part of the protocol"),
        ({Path("a"): 1, "a": 2}, r"are one key once they are encoded"),
        ({Level.LOW, 2, Path("a"), "a"}, r"are one key once they are encoded"),
    ],
)
def test_what_cannot_be_sent_is_named_with_its_path(value: Any, says: str) -> None:
    """Where it is, what it is, and what to do."""
    assert re.search(says, refusal(value)), refusal(value)


def test_a_path_begins_where_the_message_says() -> None:
    """Arguments by their list, results and items at the root."""
    for message, path in [
        ([1, 7, "f", [], {"x": int}], r"$.kwargs['x']"),
        ([1, 7, "f", [], {}, {"context": int}], r"$.meta['context']"),
        ([2, "f", [int]], r"$.args[0]"),
        ([3, 1, int], r"$: "),
        ([6, 1, [int]], r"$[0]"),
        ([14, 1, 0, [int]], r"$[0]"),
    ]:
        with pytest.raises(ValueEncodeError, match=re.escape(f"cannot send {path}")):
            encode(message)


def test_cycles_are_found() -> None:
    """In lists, maps and objects, and said so."""
    loop: list[Any] = []
    loop.append(loop)
    config = Config("a")
    config.options = {"again": config}
    for value in (loop, {"a": loop}, config, [1] * 40 + [loop]):
        assert "contains itself" in refusal(value)
    assert "$.args[0].options['again']: it contains itself" in refusal(config)


@pytest.mark.parametrize("wrap", [lambda v: [v], lambda v: {"a": v}, lambda v: (v,), Config])
def test_the_deepest_value_that_is_sent_is_also_received(wrap: Any) -> None:
    """One level more is refused by the sender, never by the receiver."""
    value: Any = 1
    refused = (0, "")
    for depth in range(1, MAX_DEPTH + 5):
        value = wrap(value)
        try:
            body, _ = encode([3, 1, value])
        except ValueEncodeError as error:
            refused = (depth, str(error))
            break
        decode(body)
        decode(body, trusted=False)
    assert refused[0] == MAX_DEPTH
    assert f"more than {MAX_DEPTH} levels" in refused[1]


@pytest.mark.parametrize("value", [{frozenset({1})}, numpy.zeros((1, 1)), Fraction(1, 2)])
def test_tags_count_for_depth_alike_on_both_sides(value: Any) -> None:
    """Sets, shapes and numbers under tags take levels of their own."""
    for _ in range(MAX_DEPTH):
        try:
            body, _attachments = encode([3, 1, value])
        except ValueEncodeError:
            return
        decode(body)
        decode(body, trusted=False)
        value = [value]
    pytest.fail("no limit")


def test_what_changes_while_it_is_read_is_refused() -> None:
    """A body never holds fewer items than its head says."""

    class Shrinking(list[Any]):
        def __iter__(self) -> Iterator[Any]:
            return iter(())

    value: list[Any] = [1, 2]

    class Popping:
        __attrs_attrs__ = (types.SimpleNamespace(name="pop"),)

        @property
        def pop(self) -> int:
            value.pop()
            return 1

    value.insert(0, Popping())
    assert "changed while it was read" in refusal(value)
    growing: dict[Any, Any] = {}

    class Adding(Popping):
        @property
        def pop(self) -> int:
            growing["b"] = 1
            return 1

    growing["a"] = Adding()
    assert "changed size" in refusal(growing)


# -- what is refused at receiving -------------------------------------------------------------


# With care, another check is the first to see them.
OTHERWISE_SAID = {"a201020103", "bb7fffffffffffffff"}


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ("", "premature end"),
        ("8301", "premature end"),
        ("0102", "bytes follow its end"),
        ("9f01ff", "indefinite"),
        ("7f6161ff", "indefinite"),
        ("a201020103", "Duplicate map key: 1"),
        ("61ff", "utf-8"),
        ("ff", "break"),
        ("1c", "subtype"),
        ("9b0000ffffffffffff", "premature end"),
        ("5b7fffffffffffffff", "premature end"),
        ("bb7fffffffffffffff", "premature end"),
        ("81" * 300 + "01", "depth"),
        ("d81c80", "tag 28 shares"),
        ("d81d00", "tag 29 shares"),
        ("d9010080", "tag 256 shares"),
        ("d81900", "tag 25 shares"),
        ("c001", "a date is a text"),
        ("c06161", "isoformat"),
        ("c07864" + "31" * 100, "at most"),
        ("c1fb7fefffffffffffff", "years"),
        ("c1f97e00", "years"),
        ("c11b7fffffffffffffff", "years"),
        ("d8641b7fffffffffffffff", "years"),
        ("c4821b7fffffffffffffff01", "exponent"),
        ("c4823b7fffffffffffffff01", "exponent"),
        ("c48201f5", "an integer is needed"),
        ("c401", "array of two"),
        ("c483010203", "array of two"),
        ("d81e820100", "denominator"),
        ("d81e820120", "denominator"),
        ("c48200c2590900" + "ff" * 0x900, "bits"),
        ("d82541ff", "16 bytes"),
        ("d8256161", "16 bytes"),
        ("d9010201", "a set is an array"),
        ("d90102820101", "comes twice"),
        ("d9a7f882016161", "two numbers"),
        ("d9a7f88201c24101", None),
        ("d85643010203", "whole number of items"),
        ("d85601", "holds bytes"),
        ("d828828103d8404101", "do not fill"),
        ("d828828120d8404101", "natural number"),
        ("d82882810101", "typed array"),
        ("da464b0003d8404102", "0 or 1"),
        ("da464b000301", "typed array"),
        ("da464b000100", "none came"),
        ("da464b000220", "natural number"),
        ("a1f6f600", "bytes follow"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("trusted", [True, False])
def test_a_faulty_message_is_refused_in_a_sentence(
    body: str, says: str | None, trusted: bool
) -> None:
    """Every fault is a ProtocolError that names it, whoever the peer is."""
    if says is None:
        decode(bytes.fromhex(body), trusted=trusted)
        return
    said = fault(body, trusted=trusted)
    assert said.startswith("the message cannot be decoded: ")
    if trusted or body not in OTHERWISE_SAID:
        assert says in said


def test_attachments_are_named_once_each() -> None:
    """Neither twice, nor not at all, nor one that did not come."""
    name = "da464b0001"
    assert decode(bytes.fromhex(f"81{name}00"), [b"x"]) == [b"x"]
    assert decode(bytes.fromhex(f"81{name}00"), [b"x"], trusted=False) == [b"x"]
    assert "named twice" in fault(f"82{name}00{name}00", b"x")
    assert "none is named" in fault(f"81{name}01", b"x")
    assert "none is named" in fault(f"81{name}20", b"x")
    assert "none is named" in fault(f"81{name}6161", b"x")
    assert "it does not name" in fault("80", b"x")


def test_a_tag_without_meaning_spoils_no_message() -> None:
    """It arrives as what it is; a regular expression is not compiled, a big float not computed."""
    assert decode(bytes.fromhex("82d8236128c5821b7fffffffffffffff01")) == [
        UnknownTag(35, "("),
        UnknownTag(5, [2**63 - 1, 1]),
    ]
    assert decode(bytes.fromhex("a1d823616101")) == {UnknownTag(35, "a"): 1}


def test_undefined_is_none() -> None:
    """A JavaScript function that returns nothing answers that; a float may hold its byte."""
    assert decode(bytes.fromhex("84f7a16161f781f7fbf7f7f7f7f7f7f7f7")) == [
        None, {"a": None}, [None], float.fromhex("-0x1.7f7f7f7f7f7f7p+896"),
    ]  # fmt: skip
    assert decode(bytes.fromhex("82f7a101f7"), trusted=False) == [None, {1: None}]


def test_other_encodings_of_dates_are_read() -> None:
    """Seconds and days since 1970, which other languages' libraries write."""
    assert decode(bytes.fromhex("c11a514b67b0")) == datetime(2013, 3, 21, 20, 4, tzinfo=UTC)
    assert decode(bytes.fromhex("d86400")) == date(1970, 1, 1)


def test_a_peers_words_are_cut_and_made_visible() -> None:
    """A key in an error cannot move the cursor or fill the log."""
    key = cbor2.dumps("\x1b[2J" + "x" * 10000)
    said = fault(b"\xa2" + key + b"\x00" + key + b"\x00")
    assert len(said) < 300
    assert "\x1b" not in said


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=60) | st.recursive(st.integers() | st.text() | st.binary(), st.lists).map(
    lambda value: cbor2.dumps(value)[:-1]), st.booleans())  # fmt: skip
def test_random_bytes_raise_nothing_else(body: bytes, trusted: bool) -> None:
    """A value or a ProtocolError, never another exception."""
    with contextlib.suppress(ProtocolError):
        decode(body, trusted=trusted)


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_random_tags_raise_nothing_else(data: st.DataObject) -> None:
    """Any tag that means something, over any plain value."""
    tag = data.draw(st.sampled_from([*TAGS, 2, 3, 52, 54, 258, 0x464B0001, MAP_TAG]))
    plain = st.integers() | st.floats() | st.text() | st.binary() | st.none() | st.booleans()
    content = data.draw(st.recursive(plain, lambda inner: st.lists(inner, max_size=3)))
    body = cbor2.dumps([cbor2.CBORTag(tag, content)])
    for trusted in (True, False):
        with contextlib.suppress(ProtocolError):
            decode(body, trusted=trusted)


# -- keys that collide ------------------------------------------------------------------------


def colliding(count: int, head: bytes = b"\xba") -> bytes:
    """A map (or array) of integers that all hash to the same number."""
    items = [cbor2.dumps(n * PRIME) for n in range(count)]
    after = b"\x00" if head == b"\xba" else b""
    return head + count.to_bytes(4, "big") + after.join(items) + after


@pytest.mark.parametrize("make", [colliding, lambda n: b"\xd9\x01\x02" + colliding(n, b"\x9a")])
def test_keys_made_to_collide_end_soon(make: Any) -> None:
    """520 KB of them would take 16 seconds (measured) in a plain dict or set."""
    body = make(40_000)
    begun = time.thread_time()
    assert "collide" in fault(body, trusted=False)
    assert time.thread_time() - begun < 2


def test_ordinary_integer_keys_pass_for_anyone() -> None:
    """As many as anybody likes, and as keys of any type, in maps and sets."""
    keys = {n * 7919: [n] for n in range(50_000)}
    assert sent(keys, trusted=False) == keys
    mixed = {
        1: {"a": {(1, 2): {3}}},
        Decimal(2): {"": {}},
        frozenset({4}): [{5: 6}],
        "t": {b"b": 1},
    }
    assert sent(mixed, trusted=False) == mixed


def test_maps_as_arrays_refuses_what_would_fool_it() -> None:
    """The decoder's own tag, lengths beyond the message, indefinite ones."""
    for body in (
        cbor2.dumps(cbor2.CBORTag(MAP_TAG, [])),
        b"\xbb" + b"\xff" * 8,
        b"\xbf\xff",
        b"\x1c",
    ):
        with pytest.raises(ValueError, match=r"tag|larger|begins no item"):
            maps_as_arrays(body)


def test_the_budget_grows_with_honest_keys() -> None:
    """It is of a whole message: many small maps cost what they hold."""
    budget = KeyBudget()
    for _ in range(2000):
        assert budget.map_of([1, 2, 3, 4]) == {1: 2, 3: 4}
    with pytest.raises(ValueError, match="twice"):
        budget.map_of([1, 2, 1, 3])

"""The bytes of a message's body, value by value.

A writer appends the encoding of one value to a :class:`Body`. Small values are written here: cbor2
takes longer for them, writes a memoryview as a list, and asks nobody about what it thinks it
knows. Long runs of plain items go through the body's ``plain`` encoder, cbor2's, which is faster.
This module must not know cbor2, nor what the items of a message mean.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from enum import Enum
from pathlib import PurePath
from struct import Struct
from typing import Any, Final, TypeAlias
from weakref import WeakKeyDictionary

from .reducing import Elements, Fields, Memory, Reducer, Tagged, Unencodable, reducer_of
from .tags import ATTACHMENT_TAG, SET_TAG

__all__ = ["ATTACHMENT_SIZE", "MAX_DEPTH", "WRITERS", "Body", "head"]

# From here on, writing a frame of its own costs less than copying the bytes into the body, and
# the reader gets them in memory of their own.
ATTACHMENT_SIZE: Final = 16 * 1024

# Of arrays, maps and tags in each other, the message's own two included. Deep enough for documents
# that people write; Python's recursion and msgspec's stay far from their ends.
MAX_DEPTH: Final = 200

# From so many items on, to ask whether they are all plain costs less than it saves.
BULK: Final = 24

Writer: TypeAlias = Callable[[Any, "Body", int], None]

PLAIN: Final = frozenset({int, str, float, bool, type(None), list, dict})
PLAIN_KEYS: Final = frozenset({str, int})
CONTAINERS: Final = frozenset({list, dict})

# Two keys of these types that differ differ on the wire as well.
DISTINCT: Final = frozenset({int, str, float, bool, bytes, type(None)})

# Of type objects: made at run time, so that it may vanish (Py_TPFLAGS_HEAPTYPE).
HEAP_TYPE: Final = 1 << 9

# A key or an item of a set is shown in a path up to here.
LONGEST_STEP: Final = 60

_float: Final = Struct(">Bd").pack
_two: Final = Struct(">BH").pack
_four: Final = Struct(">BI").pack
_eight: Final = Struct(">BQ").pack
chained: Final = itertools.chain.from_iterable


class Body(list[bytes]):
    """The parts of a message's body, and the memory that follows it."""

    __slots__ = ("attachments",)

    attachments: list[memoryview | bytes]

    @staticmethod
    def plain(value: object) -> bytes:
        """Plain data, encoded at once."""
        raise NotImplementedError


def head(major: int, number: int) -> bytes:
    """The first bytes of an item: its major type, and a length, tag or integer."""
    kind = major << 5
    if number < 24:
        return bytes((kind | number,))
    if number < 0x100:
        return bytes((kind | 24, number))
    if number < 0x1_0000:
        return _two(kind | 25, number)
    if number < 0x1_0000_0000:
        return _four(kind | 26, number)
    return _eight(kind | 27, number)


# Integers below are looked up.
SMALL: Final = 1024

SMALL_INTS: Final = tuple(head(0, number) for number in range(SMALL))
TEXT_HEADS: Final = tuple(head(3, size) for size in range(256))
ARRAY_HEADS: Final = tuple(head(4, size) for size in range(256))
MAP_HEADS: Final = tuple(head(5, size) for size in range(256))


# -- one item ---------------------------------------------------------------------------------


def write_int(value: int, body: Body, depth: int) -> None:
    if 0 <= value < SMALL:
        body.append(SMALL_INTS[value])
        return
    if 0 <= value < 0x1_0000:
        body.append(_two(25, value))
        return
    major, number = (0, value) if value >= 0 else (1, -1 - value)
    if number < 2**64:
        body.append(head(major, number))
    else:
        payload = number.to_bytes((number.bit_length() + 7) // 8, "big")
        body.append(head(6, 2 + major))
        write_bytes(payload, body, depth)


def write_float(value: float, body: Body, depth: int) -> None:
    body.append(_float(0xFB, value))


def write_text(value: str, body: Body, depth: int) -> None:
    try:
        encoded = value.encode()
    except UnicodeEncodeError as error:
        raise lone_surrogate(value, error.start) from None
    size = len(encoded)
    body.append(TEXT_HEADS[size] if size < 256 else head(3, size))
    body.append(encoded)


def lone_surrogate(value: str, position: int) -> Unencodable:
    return Unencodable(
        f"the str holds {value[position]!r} at index {position}, half of a surrogate pair, which "
        "has no UTF-8: send a file's name as os.fsencode(name), or clean the text"
    )


def write_bytes(value: bytes, body: Body, depth: int) -> None:
    size = len(value)
    if size < ATTACHMENT_SIZE:
        body.append(head(2, size))
        body.append(value)
    else:
        attach(value, body)


def write_memory(value: Memory, body: Body, depth: int) -> None:
    view = value.view
    if view.nbytes < ATTACHMENT_SIZE:
        body.append(head(2, view.nbytes) + view.tobytes())
    else:
        attach(view, body)


def attach(memory: memoryview | bytes, body: Body) -> None:
    body.append(head(6, ATTACHMENT_TAG) + head(0, len(body.attachments)))
    body.attachments.append(memory)


def write_bool(value: bool, body: Body, depth: int) -> None:
    body.append(b"\xf5" if value else b"\xf4")


def write_none(value: None, body: Body, depth: int) -> None:
    body.append(b"\xf6")


# -- containers -------------------------------------------------------------------------------


def write_array(value: Sequence[Any], body: Body, depth: int) -> None:
    size = len(value)
    if size >= BULK and write_plain(value, body, depth):
        return
    if depth > MAX_DEPTH:
        check_depth(depth)
    body.append(ARRAY_HEADS[size] if size < 256 else head(4, size))
    written = 0
    try:
        for item in value:
            kind = type(item)
            if kind is int and 0 <= item < SMALL:
                body.append(SMALL_INTS[item])
            else:
                WRITERS[kind](item, body, depth + 1)
            written += 1
    except Unencodable as fault:
        raise fault.inside(value, f"[{written}]") from fault.__cause__
    if written != size:
        raise Unencodable(f"the {type(value).__name__} changed while it was read: send a copy")


def write_map(value: Mapping[Any, Any], body: Body, depth: int) -> None:
    size = len(value)
    if size >= BULK and write_plain(value, body, depth):
        return
    if depth > MAX_DEPTH:
        check_depth(depth)
    body.append(MAP_HEADS[size] if size < 256 else head(5, size))
    key: Any = None
    checked = False
    try:
        for key, item in value.items():
            if type(key) is str:
                write_text(key, body, depth)
            else:
                checked = checked or check_keys(value)
                WRITERS[type(key)](key, body, depth + 1)
            WRITERS[type(item)](item, body, depth + 1)
    except Unencodable as fault:
        raise fault.inside(value, f"[{short(key)}]") from fault.__cause__
    except RuntimeError as error:  # another thread put something in
        raise Unencodable(f"{error}: send a copy") from error


def check_keys(keys: Iterable[Any]) -> bool:
    """See that no two keys become one on the wire, which a decoder refuses."""
    if set(map(type, keys)) <= DISTINCT:
        return True
    seen: dict[object, object] = {}
    for key in keys:
        other = seen.setdefault(wire_form(key), key)
        if other is not key:
            raise Unencodable(f"{short(other)} and {short(key)} are one key once they are encoded")
    return True


def wire_form(key: Any) -> object:
    if isinstance(key, Enum):
        return key.value
    return str(key) if isinstance(key, PurePath) else key


def write_fields(value: Fields, body: Body, depth: int) -> None:
    check_depth(depth)
    body.append(head(5, len(value.items)))
    for name, item in value.items.items():
        try:
            write_text(name, body, depth)
            WRITERS[type(item)](item, body, depth + 1)
        except Unencodable as fault:
            raise fault.inside(value, f".{name}") from fault.__cause__


def write_elements(value: Elements, body: Body, depth: int) -> None:
    """A set, under its tag."""
    check_depth(depth + 1)
    check_keys(value.items)
    body.append(head(6, SET_TAG) + head(4, len(value.items)))
    for item in value.items:
        try:
            WRITERS[type(item)](item, body, depth + 2)
        except Unencodable as fault:
            raise fault.inside(value, f"{{{short(item)}}}") from fault.__cause__


def write_tagged(value: Tagged, body: Body, depth: int) -> None:
    check_depth(depth)
    body.append(head(6, value.tag))
    content = value.content
    WRITERS[type(content)](content, body, depth + 1)


def check_depth(depth: int) -> None:
    if depth > MAX_DEPTH:
        raise Unencodable(f"it is nested more than {MAX_DEPTH} levels deep: flatten it")


def short(value: object) -> str:
    """``value`` as a step of a path."""
    try:
        text = repr(value)
    except Exception:
        text = f"<{type(value).__name__}>"
    return text if len(text) <= LONGEST_STEP else f"{text[:LONGEST_STEP]}..."


# -- many plain items -------------------------------------------------------------------------


def write_plain(value: Any, body: Body, depth: int) -> bool:
    """Write a list or map of plain items at once, if it is one."""
    if not is_plain(value, depth):
        return False
    try:
        body.append(body.plain(value))
    except UnicodeEncodeError:  # found again item by item, with its path
        return False
    return True


def is_plain(value: Any, depth: int) -> bool:
    """Whether ``value`` holds nothing but plain items: asked level by level, at the speed of C."""
    level: list[Any] = [value]
    while level:
        maps = [item for item in level if isinstance(item, dict)]
        if depth > MAX_DEPTH or not set(map(type, chained(maps))) <= PLAIN_KEYS:
            return False
        items = list(chained(map(dict.values, maps)))
        items += chained(item for item in level if not isinstance(item, dict))
        kinds = set(map(type, items))
        if not kinds <= PLAIN:
            return False
        level = [item for item in items if type(item) in CONTAINERS] if kinds & CONTAINERS else []
        depth += 1
    return True


# -- by type ----------------------------------------------------------------------------------


class Writers(dict[type, Writer]):
    """A writer for every type; one that was made at run time is not kept alive."""

    __slots__ = ("_fleeting",)

    def __init__(self, writers: Mapping[type, Writer]) -> None:
        super().__init__(writers)
        self._fleeting: WeakKeyDictionary[type, Writer] = WeakKeyDictionary()

    def __missing__(self, kind: type) -> Writer:
        writer = self._fleeting.get(kind)
        if writer is None:
            writer = reduced_by(reducer_of(kind))
            if kind.__flags__ & HEAP_TYPE:
                self._fleeting[kind] = writer
            else:
                self[kind] = writer
        return writer


def reduced_by(reducer: Reducer) -> Writer:
    """A writer of what ``reducer`` makes of the value."""

    def write(value: Any, body: Body, depth: int) -> None:
        try:
            simpler = reducer(value)
            WRITERS[type(simpler)](simpler, body, depth)
        except Unencodable as fault:
            raise fault.inside(value, "") from fault.__cause__

    return write


WRITERS: Final = Writers(
    {
        int: write_int,
        float: write_float,
        str: write_text,
        bytes: write_bytes,
        bool: write_bool,
        type(None): write_none,
        list: write_array,
        tuple: write_array,
        dict: write_map,
        Memory: write_memory,
        Tagged: write_tagged,
        Fields: write_fields,
        Elements: write_elements,
    }
)

"""Python's types in terms of CBOR's: each value that is not plain becomes something simpler.

A reducer takes a value apart one level deep; what it answers may need reducing again. This module
must not know how bytes are laid out.
"""

from __future__ import annotations

import dataclasses
import enum
import ipaddress
import mmap
import os
import sys
from array import array
from collections import deque
from collections.abc import Callable, Mapping
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from fractions import Fraction
from pathlib import PurePath
from typing import Any, Final, TypeAlias
from uuid import UUID

from ...wire.messages import StreamRef
from .arrays import NotAnArray, array_parts, ndarray_parts
from .tags import (
    BOOLEANS_TAG,
    EXACT_BITS,
    LARGEST_EXPONENT,
    STREAM_TAG,
    UnknownTag,
)

__all__ = ["Elements", "Fields", "Memory", "Reducer", "Tagged", "Unencodable", "reducer_of"]

Reducer: TypeAlias = Callable[[Any], object]


class Unencodable(Exception):
    """Why a value has no encoding; the path grows while the containers around it are left."""

    def __init__(self, why: str) -> None:
        super().__init__(why)
        self.why = why
        self._steps: list[tuple[object, str]] = []

    def inside(self, owner: object, step: str) -> Unencodable:
        """It happened inside ``owner``, one ``step`` down."""
        self._steps.append((owner, step))
        return self

    def path(self) -> tuple[list[str], bool]:
        """From the outside in, and whether it ends where a container comes again."""
        steps: list[str] = []
        seen: set[int] = set()
        for owner, step in reversed(self._steps):
            if id(owner) in seen:
                return steps, True
            seen.add(id(owner))
            steps.append(step)
        return steps, False


@dataclasses.dataclass(frozen=True, slots=True)
class Tagged:
    """``content`` under a tag."""

    tag: int
    content: object


@dataclasses.dataclass(frozen=True, slots=True)
class Memory:
    """Flat bytes, sent behind the message if they are many."""

    view: memoryview


@dataclasses.dataclass(frozen=True, slots=True)
class Fields:
    """A map whose keys are the names of fields."""

    items: dict[str, object]


@dataclasses.dataclass(frozen=True, slots=True)
class Elements:
    """The items of a set."""

    items: list[object]


def reducer_of(kind: type) -> Reducer:
    """How a value of type ``kind`` is made simpler; for a type that has no encoding, raises."""
    if issubclass(kind, enum.Enum):
        return enum_value
    if issubclass(kind, UnknownTag):
        return no_encoding
    if (found := third_party_reducer(kind)) is not None:
        return found
    if dataclasses.is_dataclass(kind) and not issubclass(kind, StreamRef):
        return fields_of([field.name for field in dataclasses.fields(kind)])
    for base in kind.__mro__:
        if (reducer := REDUCERS.get(base)) is not None:
            return reducer
    if issubclass(kind, Mapping):
        return dict
    return no_encoding


def third_party_reducer(kind: type) -> Reducer | None:
    """For types of packages that must have been imported, if a value of theirs is here."""
    msgspec = sys.modules.get("msgspec")
    if msgspec is not None and issubclass(kind, msgspec.Struct):
        return struct_reducer(kind, msgspec)
    numpy = sys.modules.get("numpy")
    if numpy is not None and issubclass(kind, numpy.ndarray):
        return numpy_array
    if numpy is not None and issubclass(kind, numpy.generic):
        return numpy_scalar
    attributes = getattr(kind, "__attrs_attrs__", None)
    if attributes is not None:
        return fields_of([attribute.name for attribute in attributes])
    return None


def fields_of(names: list[str]) -> Reducer:
    def reduce(value: object) -> Fields:
        try:
            return Fields({name: getattr(value, name) for name in names})
        except AttributeError as error:
            raise Unencodable(f"a field of it is not set: {error}") from error

    return reduce


def struct_reducer(kind: Any, msgspec: Any) -> Reducer:
    """As msgspec lays a Struct out: renamed, tagged, as an array, without what is at default."""
    config = kind.__struct_config__
    fields = msgspec.structs.fields(kind)
    tag: list[object] = [] if config.tag is None else [config.tag]

    def as_array(value: object) -> list[object]:
        return tag + [getattr(value, field.name) for field in fields]

    def as_map(value: object) -> Fields:
        items: dict[str, object] = {config.tag_field: config.tag} if tag else {}
        for field in fields:
            item = getattr(value, field.name)
            if item is msgspec.UNSET or (config.omit_defaults and is_default(item, field)):
                continue
            items[field.encode_name] = item
        return Fields(items)

    return as_array if config.array_like else as_map


def is_default(item: object, field: Any) -> bool:
    """Whether msgspec leaves ``item`` out: the default itself, or as empty as a fresh one."""
    factory = field.default_factory
    if factory in (list, dict, set):
        return type(item) is factory and not item
    return item is field.default


def enum_value(value: enum.Enum) -> object:
    return value.value


def numpy_array(value: Any) -> object:
    try:
        tag, memory, shape = ndarray_parts(value)
    except NotAnArray as error:
        raise Unencodable(str(error)) from None
    content: object = Memory(memory)
    if tag == BOOLEANS_TAG:
        content = Tagged(64, content)
    typed = Tagged(tag, content)
    return typed if len(shape) == 1 else Tagged(40, [list(shape), typed])


def numpy_scalar(value: Any) -> object:
    item = value.item()
    if type(item) not in (bool, int, float, complex, str, bytes):
        raise Unencodable(
            f"numpy.{type(value).__name__} has no encoding: convert it, for example with "
            "float(...), or .astype(object) for dates"
        )
    return item


def typed_array(value: array[Any]) -> object:
    try:
        tag, memory = array_parts(value)
    except NotAnArray as error:
        raise Unencodable(str(error)) from None
    return Tagged(tag, Memory(memory))


def flat(value: Any) -> object:
    """Bytes of any buffer. A memoryview arrives as bytes whatever its format."""
    try:
        view = memoryview(value)
    except (ValueError, BufferError) as error:
        raise Unencodable(f"its memory cannot be read: {error}") from None
    if "O" in view.format:
        raise Unencodable("its memory holds Python objects, addresses that mean nothing elsewhere")
    if not view.nbytes or not view.c_contiguous:
        return view.tobytes()
    return Memory(view.cast("B"))


def moment(value: datetime) -> object:
    """Text under tag 0 must have an offset (RFC 8949, 3.4.1); a naive one is bare text."""
    text = value.isoformat()
    return text if value.utcoffset() is None else Tagged(0, text)


def day(value: date) -> object:
    return Tagged(1004, value.isoformat())


def clock_time(value: time) -> object:
    return value.isoformat()


def duration(value: timedelta) -> object:
    """ISO 8601, days and seconds, as msgspec writes it."""
    sign = "-" if value.days < 0 else ""
    size = abs(value)
    fraction = f".{size.microseconds:06d}" if size.microseconds else ""
    return f"{sign}P{size.days}DT{size.seconds}{fraction}S"


def decimal_parts(value: Decimal) -> object:
    if not value.is_finite():
        return float(value) if not value.is_snan() else float("nan")
    sign, digits, exponent = value.as_tuple()
    assert isinstance(exponent, int)
    if abs(exponent) > LARGEST_EXPONENT or len(digits) > EXACT_BITS // 4:
        raise Unencodable("so large a Decimal is not taken by the other side: send it as text")
    coefficient = int(Decimal((sign, digits, 0)))
    return Tagged(4, [exponent, coefficient])


def fraction_parts(value: Fraction) -> object:
    if max(abs(value.numerator), value.denominator).bit_length() > EXACT_BITS:
        raise Unencodable("so large a Fraction is not taken by the other side: send it as text")
    return Tagged(30, [value.numerator, value.denominator])


def complex_parts(value: complex) -> object:
    return Tagged(43000, [value.real, value.imag])


def uuid_bytes(value: UUID) -> object:
    return Tagged(37, value.bytes)


def address_tag(value: Any) -> int:
    return 52 if value.version == 4 else 54


def address(value: Any) -> object:
    scope = getattr(value, "scope_id", None)
    if scope is not None:
        return Tagged(54, [value.packed, None, scope.encode()])
    return Tagged(address_tag(value), value.packed)


def network(value: Any) -> object:
    packed = value.network_address.packed.rstrip(b"\0")
    return Tagged(address_tag(value), [value.prefixlen, packed])


def interface(value: Any) -> object:
    if getattr(value, "scope_id", None) is not None:
        return Tagged(54, [value.packed, value.network.prefixlen, value.scope_id.encode()])
    return Tagged(address_tag(value), [value.packed, value.network.prefixlen])


def path_text(value: PurePath) -> object:
    text = os.fspath(value)
    try:
        text.encode()
    except UnicodeEncodeError:
        raise Unencodable(
            "the path's name is not valid UTF-8: send os.fsencode(path), and os.fsdecode it there"
        ) from None
    return text


def stream_number(value: StreamRef) -> object:
    return Tagged(STREAM_TAG, value.number)


def elements(value: Any) -> object:
    return Elements(list(value))


def no_encoding(value: object) -> object:
    kind = type(value)
    module = "" if kind.__module__ == "builtins" else f"{kind.__module__}."
    raise Unencodable(f"{module}{kind.__qualname__} has no encoding: {advice(value)}")


def advice(value: object) -> str:
    """What to send instead."""
    kind = type(value)
    for name, text in ADVICE.items():
        if any(base.__name__.lstrip("_") == name for base in kind.__mro__):
            return text
    if hasattr(kind, "__next__") or hasattr(kind, "__anext__"):
        return "an iterator is sent as an argument of its own, or as list(...)"
    if callable(value):
        return "code is not sent; offer it as a method of a service and send its name"
    if hasattr(kind, "__iter__"):
        return "send list(...) of it"
    return "make it a dataclass, or send plain data (dict, list, str, numbers, bytes)"


ADVICE: Final = {
    "BaseModel": "send .model_dump()",
    "DataFrame": "send .to_dict('list'), or its columns as numpy arrays",
    "Series": "send .to_numpy()",
    "Tensor": "send .numpy()",
    "Pattern": "send its .pattern, and compile it there",
    "BaseException": "raise it, or send str(...) of it",
    "range": "send list(...) of it, or its start, stop and step",
    "slice": "send its start, stop and step",
    "IOBase": "an open file stays in its process: send its path, or what .read() gives",
    "CBORTag": "its meaning is not part of the protocol: send what it holds",
    "UnknownTag": "its meaning is not part of the protocol: send what it holds",
    "socket": "an open socket stays in its process",
}

REDUCERS: Final[dict[type, Reducer]] = {
    int: int.__int__,
    float: float.__float__,
    str: str.__str__,
    bytes: bytes,
    list: list,
    tuple: list,
    dict: dict,
    deque: list,
    set: elements,
    frozenset: elements,
    complex: complex_parts,
    bytearray: flat,
    memoryview: flat,
    mmap.mmap: flat,
    array: typed_array,
    datetime: moment,
    date: day,
    time: clock_time,
    timedelta: duration,
    Decimal: decimal_parts,
    Fraction: fraction_parts,
    UUID: uuid_bytes,
    PurePath: path_text,
    StreamRef: stream_number,
    ipaddress.IPv4Address: address,
    ipaddress.IPv6Address: address,
    ipaddress.IPv4Network: network,
    ipaddress.IPv6Network: network,
    ipaddress.IPv4Interface: interface,
    ipaddress.IPv6Interface: interface,
}

"""Converters of values that hold no others: numbers, text, dates, addresses, arrays."""

from __future__ import annotations

import enum
import ipaddress
import os
import re
import sys
from array import array
from collections.abc import Callable
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from fractions import Fraction
from pathlib import Path, PurePath
from typing import Any, Final, TypeAlias, get_args
from uuid import UUID

from .mismatch import Mismatch, wrong

__all__ = ["Converter", "enum_converter", "leaf_converter", "numpy_converter"]

Converter: TypeAlias = Callable[[Any], Any]

# As `reducing.duration` and msgspec write it; weeks, hours and minutes from others.
DURATION: Final = re.compile(
    r"([+-]?)P(?:(\d{1,9})W)?(?:(\d{1,9})D)?"
    r"(?:T(?:(\d{1,9})H)?(?:(\d{1,9})M)?(?:(\d{1,12})(?:[.,](\d{1,6})\d*)?S)?)?",
    re.ASCII,
)


def exactly(kind: type) -> Converter:
    """Instances only."""

    def convert(value: object) -> object:
        if isinstance(value, kind):
            return value
        raise wrong(kind.__name__, value)

    return convert


def to_none(value: object) -> None:
    if value is not None:
        raise wrong("None", value)


def to_float(value: object) -> float:
    if isinstance(value, float):
        return value
    if isinstance(value, int):
        try:
            return float(value)
        except OverflowError:
            raise Mismatch("the int is too large for a float") from None
    raise wrong("float", value)


def to_complex(value: object) -> complex:
    return value if isinstance(value, complex) else complex(to_float(value))


def to_bytes(value: Any) -> bytes:
    if isinstance(value, bytes):
        return value
    if isinstance(value, bytearray | memoryview) or getattr(value, "dtype", None) == "u1":
        return bytes(value)
    raise wrong("bytes", value)


def to_datetime(value: object) -> datetime:
    return (
        value
        if isinstance(value, datetime)
        else from_text(datetime.fromisoformat, value, "datetime")
    )


def to_date(value: object) -> date:
    if isinstance(value, date) and not isinstance(value, datetime):
        return value
    made: date = from_text(date.fromisoformat, value, "date")
    return made


def to_time(value: object) -> time:
    return value if isinstance(value, time) else from_text(time.fromisoformat, value, "time")


def to_duration(value: object) -> timedelta:
    return value if isinstance(value, timedelta) else from_text(duration, value, "timedelta")


def duration(text: str) -> timedelta:
    match = DURATION.fullmatch(text)
    if match is None or text[-1] in "PT":
        raise ValueError
    sign, weeks, days, hours, minutes, seconds, fraction = match.groups()
    size = timedelta(
        weeks=int(weeks or 0),
        days=int(days or 0),
        hours=int(hours or 0),
        minutes=int(minutes or 0),
        seconds=int(seconds or 0),
        microseconds=int((fraction or "").ljust(6, "0")),
    )
    return -size if sign == "-" else size


def from_text(parse: Callable[[str], Any], value: object, name: str) -> Any:
    """What ``parse`` reads from text, the form in which the value travels."""
    if not isinstance(value, str):
        raise wrong(name, value)
    try:
        return parse(value)
    except (ValueError, OverflowError):
        shown = value if len(value) <= 40 else f"{value[:40]}..."
        raise Mismatch(f"expected {name}, got the str {shown!r}") from None


def to_decimal(value: object) -> Decimal:
    if isinstance(value, Decimal):
        return value
    if isinstance(value, int) or (isinstance(value, float) and value - value != 0):
        return Decimal(value)  # infinities and NaN travel as floats
    raise wrong("Decimal", value)


def to_fraction(value: object) -> Fraction:
    if isinstance(value, Fraction):
        return value
    if isinstance(value, int):
        return Fraction(value)
    raise wrong("Fraction", value)


def parsed(kind: Any) -> Converter:
    """Instances, or the text that ``kind`` itself reads."""

    def convert(value: object) -> object:
        return value if isinstance(value, kind) else from_text(kind, value, kind.__name__)

    return convert


def path_converter(kind: Any) -> Converter:
    def convert(value: object) -> object:
        if isinstance(value, kind):
            return value
        if isinstance(value, bytes):
            return kind(os.fsdecode(value))
        if isinstance(value, str):
            return kind(value)
        raise wrong(kind.__name__, value)

    return convert


def buffer_converter(kind: Any) -> Converter:
    def convert(value: object) -> object:
        return value if isinstance(value, kind) else kind(to_bytes(value))

    return convert


def to_array(value: Any) -> array[Any]:
    """An :class:`array.array` of the numbers of a typed array."""
    if isinstance(value, array):
        return value
    if not isinstance(value, memoryview) and not hasattr(value, "dtype"):
        raise wrong("array", value)
    view = memoryview(value)
    if view.ndim != 1 or view.format not in "bBhHiIlLqQfd":
        raise Mismatch(f"expected array, got numbers in {view.ndim} dimensions ({view.format})")
    return array(view.format, view.tobytes())


LEAVES: Final[dict[object, Converter]] = {
    type(None): to_none,
    None: to_none,
    int: exactly(int),
    bool: exactly(bool),
    str: exactly(str),
    float: to_float,
    complex: to_complex,
    bytes: to_bytes,
    bytearray: buffer_converter(bytearray),
    memoryview: buffer_converter(memoryview),
    datetime: to_datetime,
    date: to_date,
    time: to_time,
    timedelta: to_duration,
    Decimal: to_decimal,
    Fraction: to_fraction,
    UUID: parsed(UUID),
    array: to_array,
    **{
        kind: parsed(kind)
        for kind in (
            ipaddress.IPv4Address,
            ipaddress.IPv6Address,
            ipaddress.IPv4Network,
            ipaddress.IPv6Network,
            ipaddress.IPv4Interface,
            ipaddress.IPv6Interface,
        )
    },
}


def leaf_converter(kind: Any) -> Converter | None:
    """For a class whose values hold no others; None for every other class."""
    if kind in LEAVES:
        return LEAVES[kind]
    if issubclass(kind, enum.Enum):
        return enum_converter(kind)
    if issubclass(kind, PurePath):
        return path_converter(kind)
    if kind is os.PathLike:
        return path_converter(Path)
    for base in (int, float, str, bytes):
        if issubclass(kind, base):
            return subclass_converter(kind, LEAVES[base])
    return None


def subclass_converter(kind: Any, convert: Converter) -> Converter:
    """A user's own kind of number or text, made from the plain one that travelled."""

    def convert_to(value: object) -> object:
        if isinstance(value, kind):
            return value
        plain = convert(value)
        try:
            return kind(plain)
        except (TypeError, ValueError) as error:
            raise Mismatch(f"expected {kind.__name__}: {error}") from error

    return convert_to


def enum_converter(kind: type[enum.Enum]) -> Converter:
    """Members travel by value; a value that is a tuple arrives as a list."""

    def convert(value: Any) -> enum.Enum:
        if isinstance(value, kind):
            return value
        for form in (value, as_tuples(value)):
            try:
                return kind(form)
            except (ValueError, TypeError, KeyError):
                continue
        raise Mismatch(f"{short(value)} is no value of {kind.__name__}")

    members = {member.value: member for member in kind if is_hashable(member.value)}

    def convert_known(value: Any) -> enum.Enum:
        try:
            return convert(value)
        except Mismatch:
            # A member whose value is a date, a path and so on: by what its value looks like here.
            for form, member in members.items():
                if not isinstance(form, str | int | float | bytes | tuple) and str(form) == value:
                    return member
            raise

    return convert_known


def is_hashable(value: object) -> bool:
    try:
        hash(value)
    except TypeError:
        return False
    return True


def as_tuples(value: Any) -> Any:
    return tuple(map(as_tuples, value)) if isinstance(value, list) else value


def short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:60]}..."


def numpy_converter(kind: Any, annotation: Any) -> Converter | None:
    """For numpy's arrays and scalars, which can be annotations only if numpy is imported."""
    numpy = sys.modules.get("numpy")
    if numpy is None or not isinstance(kind, type):
        return None
    if issubclass(kind, numpy.ndarray):
        return ndarray_converter(numpy, kind, wanted_dtype(annotation))
    if issubclass(kind, numpy.generic):
        return scalar_converter(numpy, kind)
    return None


def wanted_dtype(annotation: Any) -> Any:
    """``numpy.float64`` of ``NDArray[numpy.float64]``; None if anything goes."""
    arguments = get_args(annotation)
    inner = get_args(arguments[1]) if len(arguments) == 2 else ()
    return inner[0] if inner and isinstance(inner[0], type) and inner[0] is not Any else None


def ndarray_converter(numpy: Any, kind: Any, scalar: Any) -> Converter:
    def convert(value: Any) -> Any:
        if isinstance(value, list | memoryview):
            value = as_array(numpy, value)
        if not isinstance(value, numpy.ndarray):
            raise wrong(kind.__name__, value)
        made = value if scalar is None else cast(numpy, value, scalar)
        return made if isinstance(made, kind) else made.view(kind)

    return convert


def as_array(numpy: Any, value: Any) -> Any:
    """Numbers that a peer without typed arrays sent in plain lists."""
    try:
        made = numpy.asarray(value)
    except ValueError as error:
        raise Mismatch(f"expected an array: {error}") from None
    if made.dtype.kind not in "biuf":
        raise Mismatch("expected an array, got a list that holds other things than numbers")
    return made


def cast(numpy: Any, value: Any, scalar: Any) -> Any:
    """``value`` with items of type ``scalar``, if that loses nothing."""
    if issubclass(value.dtype.type, scalar):
        return value
    try:
        dtype = numpy.dtype(scalar)
    except TypeError:  # an abstract one, numpy.floating
        dtype = None
    if dtype is None or not numpy.can_cast(value.dtype, dtype, "safe"):
        raise Mismatch(f"expected an array of {scalar.__name__}, got one of {value.dtype}")
    return value.astype(dtype)


def scalar_converter(numpy: Any, kind: Any) -> Converter:
    def convert(value: Any) -> Any:
        if isinstance(value, kind):
            return value
        if kind is numpy.bool_ and type(value) is not bool:
            raise wrong("numpy.bool", value)
        if issubclass(kind, numpy.integer) and not isinstance(value, int):
            raise wrong(f"numpy.{kind.__name__}", value)
        if not isinstance(value, int | float | complex | str | bytes):
            raise wrong(f"numpy.{kind.__name__}", value)
        try:
            return kind(value)
        except (TypeError, ValueError, OverflowError) as error:
            raise Mismatch(f"expected numpy.{kind.__name__}: {error}") from None

    return convert

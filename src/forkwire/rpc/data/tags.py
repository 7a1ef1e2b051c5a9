"""What the tags of a peer mean: an allow-list, each checked before anything is made of it.

Each function takes what is under the tag and raises ValueError with a sentence about a fault. A
tag that is not listed here becomes an `UnknownTag`, so that a stray one spoils one call and not
the whole conversation. This module must not know how bytes are laid out.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from fractions import Fraction
from typing import Any, Final, TypeAlias
from uuid import UUID

from ...wire.messages import StreamRef
from .arrays import BOOLEANS_TAG, DTYPES, array_from, booleans_from, shaped

__all__ = [
    "ATTACHMENT_TAG",
    "BOOLEANS_TAG",
    "EXACT_BITS",
    "LARGEST_EXPONENT",
    "NATIVE_TAGS",
    "REFUSED_TAGS",
    "SET_TAG",
    "STREAM_TAG",
    "TAGS",
    "UnknownTag",
]

TagFunction: TypeAlias = Callable[[Any], object]

ATTACHMENT_TAG: Final = 0x464B0001
STREAM_TAG: Final = 0x464B0002
SET_TAG: Final = 258

# The codec's own: bignums and addresses, which take linear time.
NATIVE_TAGS: Final = frozenset({2, 3, 52, 54})

# They let one value stand in many places, or inside itself.
REFUSED_TAGS: Final = frozenset({25, 28, 29, 256})

# Of a Decimal's and a Fraction's integers: reducing or converting larger ones takes longer than
# their bytes warrant (measured: 0.3 ms at this size).
EXACT_BITS: Final = 16384

# Of a Decimal, that of Python's own context: int(Decimal("1e999999")) still ends in a moment.
LARGEST_EXPONENT: Final = 999_999

# "2024-02-29T23:59:59.123456+23:59:59.999999" has 42 characters.
LONGEST_DATE: Final = 48

EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
EPOCH_DAY: Final = date(1970, 1, 1).toordinal()


@dataclasses.dataclass(frozen=True, slots=True)
class UnknownTag:
    """A value under a tag that this protocol gives no meaning."""

    tag: int
    value: object


def moment(content: object) -> datetime:
    return datetime.fromisoformat(date_text(content))


def day(content: object) -> date:
    return date.fromisoformat(date_text(content))


def date_text(content: object) -> str:
    if isinstance(content, str) and len(content) <= LONGEST_DATE:
        return content
    raise ValueError(f"a date is a text of at most {LONGEST_DATE} characters")


def epoch_moment(content: object) -> datetime:
    if not isinstance(content, int | float):
        raise ValueError("seconds since 1970 are a number")
    try:
        return EPOCH + timedelta(seconds=content)
    except (OverflowError, ValueError):
        raise ValueError("the seconds lie outside the years 1 to 9999") from None


def epoch_day(content: object) -> date:
    if not isinstance(content, int):
        raise ValueError("days since 1970 are an integer")
    try:
        return date.fromordinal(EPOCH_DAY + content)
    except (OverflowError, ValueError):
        raise ValueError("the day lies outside the years 1 to 9999") from None


def pair(content: object) -> tuple[Any, Any]:
    if isinstance(content, list | tuple) and len(content) == 2:
        return content[0], content[1]
    raise ValueError("an array of two numbers is needed")


def exact_integer(number: object) -> int:
    if type(number) is not int:
        raise ValueError(f"an integer is needed, not {type(number).__name__}")
    if number.bit_length() > EXACT_BITS:
        raise ValueError(f"an integer of {number.bit_length()} bits is above {EXACT_BITS}")
    return number


def decimal(content: object) -> Decimal:
    exponent, coefficient = map(exact_integer, pair(content))
    if abs(exponent) > LARGEST_EXPONENT:
        raise ValueError(f"an exponent lies between -{LARGEST_EXPONENT} and {LARGEST_EXPONENT}")
    sign, digits, _ = Decimal(coefficient).as_tuple()
    return Decimal((sign, digits, exponent))


def rational(content: object) -> Fraction:
    numerator, denominator = map(exact_integer, pair(content))
    if denominator < 1:
        raise ValueError("a denominator is above 0")
    return Fraction(numerator, denominator)


def complex_number(content: object) -> complex:
    real, imaginary = pair(content)
    if not (isinstance(real, float | int) and isinstance(imaginary, float | int)):
        raise ValueError("a complex number is two numbers")
    try:
        return complex(real, imaginary)
    except OverflowError:
        raise ValueError("a part of a complex number is too large") from None


def uuid(content: object) -> UUID:
    if isinstance(content, bytes) and len(content) == 16:
        return UUID(bytes=content)
    raise ValueError("a UUID is 16 bytes")


def shaped_array(content: object) -> object:
    shape, numbers = pair(content)
    if not (hasattr(numbers, "reshape") or isinstance(numbers, memoryview)):
        raise ValueError("under a shape there is a typed array")
    return shaped(shape, numbers)


def booleans(content: object) -> object:
    if not (hasattr(content, "dtype") or isinstance(content, memoryview)):
        raise ValueError("an array of booleans holds a typed array")
    return booleans_from(content)


def stream(content: object) -> StreamRef:
    if type(content) is int and content >= 0:
        return StreamRef(content)
    raise ValueError("the number of an argument stream is a natural number")


def typed(tag: int) -> TagFunction:
    return lambda content: array_from(tag, content)


TAGS: Final[dict[int, TagFunction]] = {
    0: moment,
    1: epoch_moment,
    4: decimal,
    30: rational,
    37: uuid,
    40: shaped_array,
    **{tag: typed(tag) for tag in DTYPES},
    100: epoch_day,
    1004: day,
    43000: complex_number,
    STREAM_TAG: stream,
    BOOLEANS_TAG: booleans,
}

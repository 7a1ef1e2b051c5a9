"""Arrays of numbers as RFC 8746 has them: a tag for the kind of number, and flat memory.

numpy is imported only when an array arrives; without it an array is a memoryview of its numbers.
"""

from __future__ import annotations

import math
import sys
from array import array
from collections.abc import Sequence
from types import ModuleType
from typing import Any, Final

__all__ = ["BOOLEANS_TAG", "NotAnArray", "array_from", "array_parts", "ndarray_parts", "shaped"]

# RFC 8746 has no tag for booleans; as numbers they would select other items when used as an index.
# Ours holds a typed array of bytes that are 0 or 1.
BOOLEANS_TAG: Final = 0x464B0003

# numpy itself stops at 64.
LARGEST_RANK: Final = 64

# RFC 8746, table 1: number's kind and size to the tag of its big-endian form, and of its
# little-endian one.
NUMBERS: Final = {
    "u1": (64, 64), "u2": (65, 69), "u4": (66, 70), "u8": (67, 71),
    "i1": (72, 72), "i2": (73, 77), "i4": (74, 78), "i8": (75, 79),
    "f2": (80, 84), "f4": (81, 85), "f8": (82, 86),
}  # fmt: skip

LITTLE: Final = sys.byteorder == "little"

# tag -> numpy's name of the type, big-endian first so that bytes (64, 72) have one
DTYPES: Final = {
    **{tags[0]: f">{name}" for name, tags in NUMBERS.items()},
    **{tags[1]: f"<{name}" for name, tags in NUMBERS.items()},
    68: "|u1",  # clamped: what JavaScript's Uint8ClampedArray is
}

FORMATS: Final = {
    "u1": "B", "u2": "H", "u4": "I", "u8": "Q", "i1": "b", "i2": "h", "i4": "i", "i8": "q",
    "f4": "f", "f8": "d",
}  # fmt: skip


class NotAnArray(Exception):
    """Why these numbers have no encoding."""


def ndarray_parts(value: Any) -> tuple[int, memoryview, tuple[int, ...]]:
    """A numpy array's tag, its memory (copied only where it is not in C's order) and shape."""
    if hasattr(value, "mask"):
        raise NotAnArray("a masked array has no encoding: send .filled(...), or .data and .mask")
    dtype = value.dtype
    name = f"{dtype.kind}{dtype.itemsize}"
    if name != "b1" and name not in NUMBERS:
        raise NotAnArray(f"a numpy array of {dtype} has no encoding: {dtype_advice(dtype.kind)}")
    flat = value if value.flags.c_contiguous else value.copy(order="C")
    big = dtype.byteorder == ">" or (dtype.byteorder == "=" and not LITTLE)
    tag = BOOLEANS_TAG if name == "b1" else NUMBERS[name][0 if big else 1]
    return tag, flat.reshape(-1).view("u1").data, value.shape


def dtype_advice(kind: str) -> str:
    return {
        "M": "send .astype('int64') and its unit, or .tolist()",
        "m": "send .astype('int64') and its unit, or .tolist()",
        "O": "send .tolist()",
        "V": "send its columns one by one",
        "U": "send .tolist()",
        "S": "send .tolist()",
        "T": "send .tolist()",
        "c": "send .real and .imag, or .view('float64')",
    }.get(kind, "convert it with .astype('float64')")


def array_parts(value: array[Any]) -> tuple[int, memoryview]:
    """An :class:`array.array`'s tag and memory."""
    code = value.typecode
    if code in "uw":
        raise NotAnArray("an array of characters has no encoding: send .tounicode()")
    kind = "f" if code in "fd" else "i" if code.islower() else "u"
    tag = NUMBERS[f"{kind}{value.itemsize}"][1 if LITTLE else 0]
    view = memoryview(value)
    return tag, view.cast("B") if view.nbytes else memoryview(b"")


def imported_numpy() -> ModuleType | None:
    try:
        import numpy
    except ImportError:
        return None
    return numpy


def array_from(tag: int, memory: object) -> Any:
    """Read-only numbers over ``memory``: a numpy array, else a memoryview."""
    if not isinstance(memory, bytes):
        raise ValueError(f"a typed array (tag {tag}) holds bytes, not {type(memory).__name__}")
    dtype = DTYPES[tag]
    if len(memory) % int(dtype[2:]):
        raise ValueError(f"{len(memory)} bytes are no whole number of items of {dtype[2:]} bytes")
    numpy = imported_numpy()
    if numpy is not None:
        return numpy.frombuffer(memory, dtype=dtype)
    return view_of(memory, dtype)


def view_of(memory: bytes, dtype: str) -> memoryview:
    code = FORMATS.get(dtype[1:])
    if code is None:
        raise ValueError("numbers of 16 bits with a fraction need numpy to be installed")
    if int(dtype[2:]) == 1 or (dtype[0] == "<") == LITTLE:
        return memoryview(memory).cast(code)  # type: ignore[call-overload,no-any-return]
    numbers = array(code, memory)
    numbers.byteswap()
    return memoryview(numbers).toreadonly()


def booleans_from(numbers: Any) -> Any:
    """Booleans over an array of bytes that are 0 or 1."""
    view = memoryview(numbers)
    if view.itemsize != 1 or (view.nbytes and max(bytes(view)) > 1):
        raise ValueError("an array of booleans holds bytes that are 0 or 1")
    return view.cast("?") if isinstance(numbers, memoryview) else numbers.view("?")


def shaped(shape: object, numbers: Any) -> Any:
    """``numbers`` in rows and columns, C's order."""
    if not isinstance(shape, Sequence) or len(shape) > LARGEST_RANK:
        raise ValueError(f"a shape is an array of at most {LARGEST_RANK} sizes")
    if not all(type(size) is int and size >= 0 for size in shape):
        raise ValueError("a size of a shape is a natural number")
    if math.prod(shape) != len(numbers):
        raise ValueError(f"{len(numbers)} numbers do not fill a shape of {list(shape)}")
    if isinstance(numbers, memoryview):
        if not numbers.nbytes:
            return numbers
        return numbers.cast("B").cast(numbers.format, list(shape))  # type: ignore[call-overload]
    return numbers.reshape(tuple(shape))

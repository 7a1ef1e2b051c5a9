"""Maps and sets of a peer that nobody trusts, whose keys may have been made to collide.

Text and bytes hash by a secret of this process. Integers and all that is made of them do not: a
peer can choose keys that all fall on one place of a dict, where n keys take n * n steps (measured:
40,000 keys, 520 KB, 16 s). So the codec first refuses every other key; where that fails, maps are
turned into arrays here, and each dict is filled against the clock. Dicts of honest integers pass.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from itertools import islice
from typing import Any, Final

__all__ = ["KEYS_AT_ONCE", "MAP_TAG", "KeyBudget", "frozen", "maps_as_arrays"]

# Stands for a map on the way into the decoder, never on the wire.
MAP_TAG: Final = 0x464B00FF

# A key takes 0.1 us to put in, or 1 us where memory is cold; one that collides with 10,000 others
# 100 us. The floor forgives a pause of the machine, once a message.
SECONDS_PER_KEY: Final = 10e-6
SECONDS_FLOOR: Final = 0.05

# So few cannot take long (measured: 256 colliding keys, 0.7 ms).
KEYS_AT_ONCE: Final = 256

# Bytes that follow the first one of an item, by its low five bits.
ARGUMENT_SIZES: Final = {24: 1, 25: 2, 26: 4, 27: 8}


class KeyBudget:
    """The processor time that the keys of one message may take."""

    def __init__(self) -> None:
        self._left = SECONDS_FLOOR

    def fill(self, put: Callable[[Iterable[Any]], object], items: Sequence[Any]) -> None:
        """``put`` the ``items`` some at a time. Raises ValueError once it takes too long."""
        rest = iter(items)
        for _ in range(0, len(items), KEYS_AT_ONCE):
            begun = time.thread_time()
            put(islice(rest, KEYS_AT_ONCE))
            self._left += KEYS_AT_ONCE * SECONDS_PER_KEY - (time.thread_time() - begun)
            if self._left < 0:
                raise ValueError("the keys of a map, or the items of a set, collide")
            self._left = min(self._left, SECONDS_FLOOR)

    def map_of(self, flat: Sequence[Any]) -> dict[Any, Any]:
        """A dict of keys and values in turn."""
        keys = list(map(frozen, flat[::2]))
        made: dict[Any, Any] = {}
        self.fill(made.update, list(zip(keys, flat[1::2], strict=True)))
        if len(made) != len(keys):
            raise ValueError("a key comes twice in a map")
        return made

    def set_of(self, items: Sequence[Any]) -> set[Any]:
        made: set[Any] = set()
        self.fill(made.update, list(map(frozen, items)))
        if len(made) != len(items):
            raise ValueError("an item comes twice in a set")
        return made


class FrozenMap(dict[Any, Any]):
    """A map that is a key itself, or an item of a set; nobody changes it."""

    __slots__ = ()

    def __hash__(self) -> int:  # type: ignore[override]
        return hash(frozenset(self.items()))


def frozen(value: Any) -> Any:
    """``value`` as it can stand in a set: tuples for lists, and so on inside."""
    if isinstance(value, list | tuple):
        return tuple(map(frozen, value))
    if isinstance(value, set):
        return frozenset(value)
    if isinstance(value, dict):
        return FrozenMap((key, frozen(item)) for key, item in value.items())
    return value


def maps_as_arrays(body: bytes) -> bytes:
    """``body`` with every map that is not empty written as ``MAP_TAG`` over its keys and values.

    CBOR without indefinite lengths is a flat row of heads: nothing needs to be followed. Raises
    ValueError for what is no such row.
    """
    parts: list[bytes] = []
    done = position = 0
    end = len(body)
    while position < end:
        start, first = position, body[position]
        major, number = first >> 5, first & 31
        position += 1
        if number > 23:
            size = ARGUMENT_SIZES.get(number)
            if size is None:
                raise ValueError(f"byte {first:#04x} begins no item that is allowed")
            number = int.from_bytes(body[position : position + size], "big")
            position += size
        if major in (2, 3):
            position += number
        elif major == 5 and number:
            parts += body[done:start], map_head(number, end)
            done = position
        elif major == 6 and number == MAP_TAG:
            raise ValueError(f"tag {MAP_TAG} is the decoder's own")
    parts.append(body[done:])
    return b"".join(parts)


def map_head(pairs: int, end: int) -> bytes:
    if 2 * pairs > end:
        raise ValueError(f"a map of {pairs} keys is larger than the whole message")
    return b"\xda" + MAP_TAG.to_bytes(4, "big") + b"\x9a" + (2 * pairs).to_bytes(4, "big")

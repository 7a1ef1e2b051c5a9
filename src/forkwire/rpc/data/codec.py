"""Values to the bytes of a message and back. The only file that imports cbor2.

Decoding switches off, limits or replaces all in cbor2 that a peer could use against us. What is a
fault of the peer raises :exc:`ProtocolError`, in time and memory that grow with the bytes alone.
This module must not know what the items of a message mean, only how to name them in an error.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any, Final, NoReturn, TypeAlias

import cbor2

from ...errors import ProtocolError, ValueEncodeError
from ...wire.text import clean
from .hashing import KEYS_AT_ONCE, MAP_TAG, KeyBudget, frozen, maps_as_arrays
from .reducing import Unencodable
from .tags import ATTACHMENT_TAG, NATIVE_TAGS, REFUSED_TAGS, SET_TAG, TAGS, UnknownTag
from .writing import ATTACHMENT_SIZE, MAX_DEPTH, WRITERS, Body

__all__ = ["ATTACHMENT_SIZE", "MAX_DEPTH", "UnknownTag", "decode", "encode"]

# How the items of a message are called in an error, by its type.
NAMES: Final[dict[object, dict[int, str]]] = {
    1: {3: ".args", 4: ".kwargs", 5: ".meta"},
    2: {2: ".args", 3: ".kwargs", 4: ".meta"},
    3: {2: ""},
    4: {2: ".error"},
    6: {2: ""},
    8: {2: ".done", 3: ".total", 4: ".text"},
    9: {1: ".record"},
    12: {1: ".error"},
    14: {3: ""},
    15: {3: ".error"},
}

# A peer's own words in an error are cut here.
SHOWN: Final = 160

# Of a path in an error, so many steps are shown.
STEPS_SHOWN: Final = 12

# The decoder stops after one item and says nothing of what follows. So an array of two is made of
# the body and this: it comes out second only if the body was one item. Nobody can guess it.
GUARD: Final = int.from_bytes(os.urandom(8), "big") | 1 << 63
GUARD_BYTES: Final = b"\x1b" + GUARD.to_bytes(8, "big")


class CborBody(Body):
    """A body whose runs of plain data are written by cbor2."""

    __slots__ = ()

    @staticmethod
    def plain(value: object) -> bytes:
        return cbor2.dumps(value)


SemanticDecoder: TypeAlias = Callable[[Any, bool], object]

# cbor2's words for a key that is neither text nor bytes, where only those are allowed.
ANY_KEYS: Final = "map key must be a text string or byte string"

# Ours for a set that wants a budget.
CARE: Final = "a large set"


class Refused(Exception):
    """What is wrong with a message, where cbor2 has nothing against it."""


# -- encoding ---------------------------------------------------------------------------------


def encode(value: object) -> tuple[bytes, list[memoryview | bytes]]:
    """The body of a message, and the large memory of it that travels behind it, not copied.

    ``value``: the whole message, an array that begins with the type.

    Raises :exc:`ValueEncodeError`, which names the path of the value, its type and what to do.
    """
    body = CborBody()
    body.attachments = []
    try:
        WRITERS[type(value)](value, body, 1)
    except Unencodable as fault:
        raise ValueEncodeError(sentence(value, fault)) from fault.__cause__
    except RecursionError:
        raise ValueEncodeError("$: nested too deeply for what is left of the stack") from None
    return b"".join(body), body.attachments


def sentence(message: object, fault: Unencodable) -> str:
    """What cannot be sent, where it is, and why."""
    steps, cycle = fault.path()
    if isinstance(message, list | tuple) and message and steps:
        number = int(steps[0][1:-1])
        kind = message[0] if type(message[0]) is int else -1
        steps[0] = NAMES.get(kind, {}).get(number, steps[0])
    shown = [step for step in steps if step]
    if len(shown) > STEPS_SHOWN:
        shown[STEPS_SHOWN // 2 : -(STEPS_SHOWN // 2)] = ["..."]
    path = "$" + "".join(shown)
    if cycle:
        return f"cannot send {path}: it contains itself; send a copy without the cycle"
    return f"cannot send {path}: {fault.why}"


# -- decoding ---------------------------------------------------------------------------------


class Decoders(dict[int, SemanticDecoder]):
    """What cbor2 asks about every tag: ours, but for those it may read itself."""

    __slots__ = ()

    def __missing__(self, tag: int) -> SemanticDecoder:
        if tag in NATIVE_TAGS:
            raise KeyError(tag)
        return refused(tag) if tag in REFUSED_TAGS else unknown(tag)


def refused(tag: int) -> SemanticDecoder:
    def refuse(content: object, immutable: bool) -> NoReturn:
        raise ValueError(f"tag {tag} shares values between places, which is not allowed")

    return refuse


def unknown(tag: int) -> SemanticDecoder:
    return lambda content, immutable: UnknownTag(tag, content)


def no_attachment(content: object, immutable: bool) -> NoReturn:
    raise ValueError("an attachment is named, and none came with the message")


def plain_set(content: object, immutable: bool) -> object:
    items = array_of_set(content)
    made = set(map(frozen, items))
    if len(made) != len(items):
        raise ValueError("an item comes twice in a set")
    return frozenset(made) if immutable else made


def array_of_set(content: object) -> Sequence[Any]:
    if isinstance(content, list | tuple):
        return content
    raise ValueError("a set is an array under its tag")


def checked(function: Callable[[Any], object]) -> SemanticDecoder:
    return lambda content, immutable: function(content)


DECODERS: Final = Decoders(
    {
        **{tag: checked(function) for tag, function in TAGS.items()},
        SET_TAG: plain_set,
        ATTACHMENT_TAG: no_attachment,
    }
)


def small_set(content: object, immutable: bool) -> object:
    """As `plain_set`, but for sets whose items may take long to collide."""
    if len(array_of_set(content)) > KEYS_AT_ONCE:
        raise Refused(CARE)
    return plain_set(content, immutable)


# For a peer that is not trusted; maps have keys of text or bytes.
WARY: Final = Decoders({**DECODERS, SET_TAG: small_set})


class Attachments:
    """The attachments of one message; each is named once."""

    def __init__(self, attachments: Sequence[bytes]) -> None:
        self._left: dict[int, bytes] = dict(enumerate(attachments))
        self._count = len(attachments)

    def take(self, content: object, immutable: bool) -> bytes:
        if type(content) is int and content in self._left:
            return self._left.pop(content)
        if type(content) is int and 0 <= content < self._count:
            raise ValueError(f"attachment {content} is named twice")
        raise ValueError(f"there are {self._count} attachments, and one that is none is named")

    def check(self) -> None:
        if self._left:
            raise Refused(f"it does not name {len(self._left)} of its attachments")


def decode(body: bytes, attachments: Sequence[bytes] = (), *, trusted: bool = True) -> Any:
    """The message that ``body`` and its ``attachments`` hold.

    Tags without a meaning here become :class:`UnknownTag`. Arrays of numbers are read-only numpy
    arrays over the memory that came, or memoryviews where numpy is not installed.

    ``trusted``: false for a peer that may try to exhaust this process. Maps with keys other than
    text and bytes, and large sets, then take some ten times longer.

    Raises :exc:`ProtocolError`, which says in a sentence what is wrong.
    """
    try:
        if trusted:
            return loaded(body, attachments, DECODERS)
        try:
            return loaded(body, attachments, WARY, strict=True)
        except cbor2.CBORDecodeError as error:
            if not needs_care(error):
                raise
        return loaded_with_care(body, attachments)
    except (cbor2.CBORDecodeError, Refused) as error:
        raise ProtocolError(f"the message cannot be decoded: {reason(error)}") from None


def loaded(
    body: bytes,
    attachments: Sequence[bytes],
    decoders: Decoders,
    *,
    strict: bool = False,
    depth: int = MAX_DEPTH + 1,
) -> Any:
    if attachments:
        named = Attachments(attachments)
        decoders = Decoders({**decoders, ATTACHMENT_TAG: named.take})
    value, guard = cbor2.loads(
        b"\x82" + body + GUARD_BYTES,
        semantic_decoders=decoders,
        max_depth=depth,
        allow_indefinite=False,
        allow_duplicate_keys=False,
        strict_hashable_types=strict,
    )
    if type(guard) is not int or guard != GUARD:
        raise Refused("bytes follow its end")
    if attachments:
        named.check()
    if b"\xf7" in body:
        replace_undefined(value)
    return value


def replace_undefined(container: object) -> None:
    """JavaScript's undefined, simple value 23, is None here."""
    if isinstance(container, list):
        entries: list[tuple[Any, Any]] = list(enumerate(container))
    elif isinstance(container, dict):
        entries = list(container.items())
    else:
        return
    for place, item in entries:
        if item is cbor2.undefined:
            container[place] = None
        elif type(item) in (list, dict):
            replace_undefined(item)


def reason(error: BaseException) -> str:
    """What is wrong, in one sentence: cbor2's, or that of the cause below it."""
    while isinstance(error, cbor2.CBORDecodeError) and error.__cause__ is not None:
        error = error.__cause__
    return clean(str(error) or type(error).__name__, SHOWN)


def needs_care(error: cbor2.CBORDecodeError) -> bool:
    """Whether nothing is wrong but that keys may collide."""
    return ANY_KEYS in str(error) or CARE in reason(error)


def loaded_with_care(body: bytes, attachments: Sequence[bytes]) -> Any:
    """As `loaded`, with every map and set filled under a budget of time."""
    budget = KeyBudget()

    def map_of(content: Any, immutable: bool) -> object:
        made = budget.map_of(content)
        return frozen(made) if immutable else made

    def set_of(content: object, immutable: bool) -> object:
        made = budget.set_of(array_of_set(content))
        return frozenset(made) if immutable else made

    try:
        rewritten = maps_as_arrays(body)
    except ValueError as error:
        raise Refused(str(error)) from None
    decoders = Decoders({**DECODERS, MAP_TAG: map_of, SET_TAG: set_of})
    return loaded(rewritten, attachments, decoders, depth=2 * MAX_DEPTH + 1)

"""The messages of calls, protocol-spec/3-calls.md: one class a message, and their table.

What a message may hold is checked here; when it may be sent is for `session`. The values inside
(arguments, results) are anything: encoding them is not known here.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Final, TypeAlias

from ..errors import ProtocolError

__all__ = [
    "CALLEE_MESSAGES",
    "CALLER_MESSAGES",
    "CARRIERS",
    "LARGEST_CREDIT",
    "LARGEST_ID",
    "LARGEST_TEXT",
    "MAX_ATTACHMENTS",
    "Attach",
    "Call",
    "Cancel",
    "Credit",
    "Error",
    "Goodbye",
    "Grant",
    "Hello",
    "Ignored",
    "Item",
    "Log",
    "Message",
    "Notify",
    "Ping",
    "Pong",
    "Progress",
    "Result",
    "Send",
    "Sent",
    "StreamRef",
    "Unknown",
    "array_of",
    "parse",
]

# Every integer up to here is exact in every language, JavaScript included (C-12).
LARGEST_ID: Final = 2**53 - 1

# Of a method's name, and of a progress report, in characters (C-13).
LARGEST_TEXT: Final = 4096

# What a stream's credit may add up to (C-31): more than anybody reads ahead.
LARGEST_CREDIT: Final = 2**31 - 1

# Of one message (C-22): what a receiver keeps an entry for before any of them has come.
MAX_ATTACHMENTS: Final = 4096

# What a size may be: the largest that a frame can have.
LARGEST_SIZE: Final = 2**31 - 1

# One-way messages that may be added later; a peer that does not know them ignores them (C-40).
RESERVED: Final = range(17, 24)

Data: TypeAlias = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class StreamRef:
    """Stands for an argument that is streamed: number ``number`` of its call, from 0."""

    number: int


@dataclass(slots=True)
class Hello:
    """What a side speaks and takes; the first thing it sends."""

    TYPE: ClassVar = 0
    about: Data


@dataclass(slots=True)
class Call:
    """Run ``method``. In ``meta``, ``credit`` asks for a stream."""

    TYPE: ClassVar = 1
    id: int
    method: str
    args: Sequence[Any]
    kwargs: Data = field(default_factory=dict)
    meta: Data = field(default_factory=dict)


@dataclass(slots=True)
class Notify:
    """Run ``method``, and say nothing of it."""

    TYPE: ClassVar = 2
    method: str
    args: Sequence[Any]
    kwargs: Data = field(default_factory=dict)
    meta: Data = field(default_factory=dict)


@dataclass(slots=True)
class Result:
    """A call ended well; a stream ends with the value None."""

    TYPE: ClassVar = 3
    id: int
    value: Any


@dataclass(slots=True)
class Error:
    """A call, or a stream, ended badly."""

    TYPE: ClassVar = 4
    id: int
    error: Data


@dataclass(slots=True)
class Cancel:
    """Stop: the call still ends with its result or an error."""

    TYPE: ClassVar = 5
    id: int


@dataclass(slots=True)
class Item:
    """The next item of a stream, for one credit."""

    TYPE: ClassVar = 6
    id: int
    value: Any


@dataclass(slots=True)
class Credit:
    """``count`` more items may be sent."""

    TYPE: ClassVar = 7
    id: int
    count: int


@dataclass(slots=True)
class Progress:
    """How far a call is."""

    TYPE: ClassVar = 8
    id: int
    done: int | float
    total: int | float | None
    text: str


@dataclass(slots=True)
class Log:
    """A record for the peer's log."""

    TYPE: ClassVar = 9
    record: Data


@dataclass(slots=True)
class Ping:
    """To be answered with a pong of the same number."""

    TYPE: ClassVar = 10
    number: int


@dataclass(slots=True)
class Pong:
    """The answer to a ping."""

    TYPE: ClassVar = 11
    number: int


@dataclass(slots=True)
class Goodbye:
    """No new calls, either way; those in flight still end. ``error``: why, if it is one."""

    TYPE: ClassVar = 12
    error: Data | None


@dataclass(slots=True)
class Attach:
    """The next frames are raw bytes that the message after them refers to."""

    TYPE: ClassVar = 13
    sizes: Sequence[int]


@dataclass(slots=True)
class Send:
    """The next item of an argument that is streamed, for one credit."""

    TYPE: ClassVar = 14
    id: int
    stream: int
    value: Any


@dataclass(slots=True)
class Sent:
    """An argument that is streamed has ended, with ``error`` or without."""

    TYPE: ClassVar = 15
    id: int
    stream: int
    error: Data | None


@dataclass(slots=True)
class Grant:
    """``count`` more items of a streamed argument may be sent; 0: no more are wanted."""

    TYPE: ClassVar = 16
    id: int
    stream: int
    count: int


@dataclass(slots=True)
class Ignored:
    """A one-way message of a later version."""

    type: int


@dataclass(slots=True)
class Unknown:
    """A request of a later version, which is to be refused."""

    type: int
    id: int


Known: TypeAlias = (
    Hello | Call | Notify | Result | Error | Cancel | Item | Credit | Progress | Log | Ping | Pong
    | Goodbye | Attach | Send | Sent | Grant
)  # fmt: skip
Message: TypeAlias = Known | Ignored | Unknown

# -- what the fields may be -----------------------------------------------------------------------

Check: TypeAlias = Callable[[object], bool]


def is_id(value: object) -> bool:
    return type(value) is int and 0 < value <= LARGEST_ID


def is_unsigned(value: object) -> bool:
    return type(value) is int and 0 <= value <= LARGEST_ID


def is_method(value: object) -> bool:
    return type(value) is str and 0 < len(value) <= LARGEST_TEXT


def is_text(value: object) -> bool:
    return type(value) is str and len(value) <= LARGEST_TEXT


def is_number(value: object) -> bool:
    return type(value) in (int, float)


def is_boolean(value: object) -> bool:
    return type(value) is bool


def is_any_text(value: object) -> bool:
    return type(value) is str


def is_credit(value: object) -> bool:
    return type(value) is int and 0 <= value <= LARGEST_CREDIT


def is_positive_credit(value: object) -> bool:
    return type(value) is int and 0 < value <= LARGEST_CREDIT


def is_done(value: object) -> bool:
    return type(value) in (int, float) and not value < 0  # type: ignore[operator]


def is_array(value: object) -> bool:
    return type(value) is list


def is_map(value: object) -> bool:
    return type(value) is dict and all(type(key) is str for key in value)


def has_keys(value: object, known: Mapping[str, Check], required: Sequence[str] = ()) -> bool:
    """Whether ``value`` is a map whose ``known`` keys are right; others are ignored (C-4)."""
    if type(value) is not dict or any(name not in value for name in required):
        return False
    for key, item in value.items():
        if type(key) is not str:
            return False
        check = known.get(key)
        if check is not None and not check(item):
            return False
    return True


def is_limit(value: object) -> bool:
    return type(value) is int and 0 <= value <= LARGEST_SIZE


def is_versions(value: object) -> bool:
    return type(value) is list and bool(value) and all(type(n) is int and n >= 0 for n in value)


def is_limits(value: object) -> bool:
    return has_keys(value, {"message": is_limit, "calls": is_unsigned})


def is_greeting(value: object) -> bool:
    return has_keys(value, {"protocol": is_versions, "limits": is_limits}, ("protocol",))


def is_meta(value: object) -> bool:
    return has_keys(value, META)


def is_failure(value: object) -> bool:
    return has_keys(value, {"code": is_integer, "message": is_any_text}, ("code", "message"))


def is_integer(value: object) -> bool:
    return type(value) is int


def is_failure_or_null(value: object) -> bool:
    return value is None or is_failure(value)


def is_anything(value: object) -> bool:
    return True


def is_sizes(value: object) -> bool:
    return (
        type(value) is list
        and 0 < len(value) <= MAX_ATTACHMENTS
        and all(is_unsigned(size) for size in value)
    )


def is_number_or_null(value: object) -> bool:
    return value is None or is_number(value)


# The keys of meta that are known.
META: Final[dict[str, Check]] = {
    "timeout": is_number,
    "credit": is_credit,
    "progress": is_boolean,
    "tree": is_any_text,
    "context": is_map,
}

# The table: of each message the checks of its fields, and how many of them may be left off.
TABLE: Final[dict[int, tuple[type[Known], tuple[Check, ...], int]]] = {
    Hello.TYPE: (Hello, (is_greeting,), 0),
    Call.TYPE: (Call, (is_id, is_method, is_array, is_map, is_meta), 2),
    Notify.TYPE: (Notify, (is_method, is_array, is_map, is_meta), 2),
    Result.TYPE: (Result, (is_id, is_anything), 0),
    Error.TYPE: (Error, (is_id, is_failure), 0),
    Cancel.TYPE: (Cancel, (is_id,), 0),
    Item.TYPE: (Item, (is_id, is_anything), 0),
    Credit.TYPE: (Credit, (is_id, is_positive_credit), 0),
    Progress.TYPE: (Progress, (is_id, is_done, is_number_or_null, is_text), 0),
    Log.TYPE: (Log, (is_map,), 0),
    Ping.TYPE: (Ping, (is_unsigned,), 0),
    Pong.TYPE: (Pong, (is_unsigned,), 0),
    Goodbye.TYPE: (Goodbye, (is_failure_or_null,), 0),
    Attach.TYPE: (Attach, (is_sizes,), 0),
    Send.TYPE: (Send, (is_id, is_unsigned, is_anything), 0),
    Sent.TYPE: (Sent, (is_id, is_unsigned, is_failure_or_null), 0),
    Grant.TYPE: (Grant, (is_id, is_unsigned, is_credit), 0),
}

# Only these may have attachments (C-20).
CARRIERS: Final = frozenset({Call.TYPE, Notify.TYPE, Result.TYPE, Error.TYPE, Item.TYPE, Send.TYPE})

# About a call of the sender's, and about one of the receiver's.
CALLER_MESSAGES: Final = (Cancel, Credit, Send, Sent)
CALLEE_MESSAGES: Final = (Result, Error, Item, Progress, Grant)


def parse(array: object) -> Message:
    """The message that a decoded ``array`` is. Raises :exc:`ProtocolError`."""
    if type(array) is not list or not array or type(array[0]) is not int or array[0] < 0:
        raise ProtocolError(
            "the peer sent a message that is not an array with its type, an unsigned integer, "
            "first: it may not speak the protocol of calls; close the connection"
        )
    entry = TABLE.get(array[0])
    if entry is None:
        return parse_unknown(array)
    kind, checks, optional = entry
    count = len(array) - 1
    if not len(checks) - optional <= count <= len(checks):
        raise ProtocolError(
            f"the peer sent a {kind.__name__} message of {count} fields: it has {len(checks)}"
        )
    for index in range(count):
        if not checks[index](array[index + 1]):
            name = dataclasses.fields(kind)[index].name
            raise ProtocolError(
                f"the peer sent a {kind.__name__} message whose field {name!r} is not "
                f"{checks[index].__name__.removeprefix('is_').replace('_', ' ')}"
            )
    return kind(*array[1:])


def parse_unknown(array: list[Any]) -> Ignored | Unknown:
    """A type of a later version: odd ones from 24 on are requests (C-41), all else is one-way."""
    number = array[0]
    if number not in RESERVED and number % 2:
        if len(array) < 2 or not is_id(array[1]):
            raise ProtocolError(
                f"the peer sent a message of unknown type {number}, a request, without an id"
            )
        return Unknown(number, array[1])
    return Ignored(number)


def array_of(message: Known) -> list[Any]:
    """The array of ``message``, to be encoded. Empty maps at the end of a call are left off."""
    if isinstance(message, Call):
        head: list[Any] = [1, message.id, message.method, message.args]
    elif isinstance(message, Notify):
        head = [2, message.method, message.args]
    else:
        return [message.TYPE, *[getattr(message, name) for name in NAMES[type(message)]]]
    if message.meta:
        head += (message.kwargs, message.meta)
    elif message.kwargs:
        head.append(message.kwargs)
    return head


NAMES: Final = {
    kind: tuple(field.name for field in dataclasses.fields(kind)) for kind, _, _ in TABLE.values()
}

"""From the data of an error map back to an exception that the caller can catch.

What the peer sent is believed in nothing: text is cleaned and cut, no module is imported for it,
and a class is made only where it is on a list. See `failures` for the way out.
"""

from __future__ import annotations

import builtins
import functools
import sys
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Final, TypeVar, cast

from ..errors import (
    CallCancelledError,
    CallError,
    DeadlineExceededError,
    InvalidArgumentsError,
    MethodNotFoundError,
    RemoteError,
    TooManyCallsError,
    UsageError,
    ValueEncodeError,
    WorkerClosedError,
    WrongKindError,
)
from ..wire.text import clean

__all__ = ["CODES", "FIELDS", "HANDLER_RAISED", "PROTOCOL_BROKEN", "allowed_name", "known_class",
           "plain_args", "rebuild", "register"]  # fmt: skip

HANDLER_RAISED: Final = -32000
PROTOCOL_BROKEN: Final = -32600

# The classes of the codes that have one of their own.
CODES: Final[Mapping[int, type[CallError]]] = {
    -32601: MethodNotFoundError,
    -32602: InvalidArgumentsError,
    -32603: ValueEncodeError,
    HANDLER_RAISED: RemoteError,
    -32001: CallCancelledError,
    -32002: DeadlineExceededError,
    -32003: TooManyCallsError,
    -32004: WrongKindError,
    -32005: WorkerClosedError,
    PROTOCOL_BROKEN: CallError,
}

# Several times what `failures` sends, since the peer may be another program. A person reads it.
MESSAGE_LIMIT: Final = 32768
TRACEBACK_LIMIT: Final = 65536
NOTE_LIMIT: Final = 4096
NAME_LIMIT: Final = 256
NOTES: Final = 64

# Errors in one map, and how deep; some levels of Python's stack go to each.
ERRORS: Final = 256
DEPTH: Final = 32

# What is not plain data of about this size says nothing in ``args``.
ARGS: Final = 16
ARG_SIZE: Final = 4096
ARG_BITS: Final = 1024
SCALARS: Final = (type(None), bool, int, float, str, bytes)

# A traceback draws as many carets as a syntax error says.
COLUMNS: Final = 1000
LINES: Final = 2**31

# What a builtin knows beside its arguments. All of these can be set.
FIELDS: Final[Mapping[type[BaseException], tuple[str, ...]]] = {
    AttributeError: ("name",),
    NameError: ("name",),
    ImportError: ("name", "path"),
    OSError: ("filename", "filename2"),
}

# They mean something to the machinery between the handler and whoever catches it.
NOT_RAISED: Final = (StopIteration, StopAsyncIteration, BaseExceptionGroup)

# Of the standard library, where they can be made from their ``args``; if imported already.
STANDARD: Final = frozenset(
    {
        "_queue.Empty",
        "asyncio.queues.QueueEmpty",
        "asyncio.queues.QueueFull",
        "configparser.Error",
        "queue.Full",
        "sqlite3.DatabaseError",
        "sqlite3.IntegrityError",
        "sqlite3.OperationalError",
        "sqlite3.ProgrammingError",
        "struct.error",
        "subprocess.CalledProcessError",
        "subprocess.TimeoutExpired",
        "zipfile.BadZipFile",
        "zlib.error",
    }
)

Class = TypeVar("Class", bound=type[Exception])


def is_rebuilt(found: object) -> bool:
    """Whether a builtin is one to mix with `RemoteError`."""
    return (
        isinstance(found, type)
        and issubclass(found, Exception)
        and found is not Exception
        and not issubclass(found, NOT_RAISED)
    )


registered: dict[str, type[Exception]] = {
    f"builtins.{found.__name__}": found for found in vars(builtins).values() if is_rebuilt(found)
}
names: dict[type, str] = {found: name for name, found in registered.items()}


def register(cls: Class) -> Class:
    """Let a class of yours come back as itself, and as `RemoteError`. May be used as a decorator.

    It must be possible to make one from its ``args``, as pickle demands too; where it is not, the
    nearest builtin above it is rebuilt. Register it where it is caught. Its constructor is called
    with what the other side sent: do nothing in it that you would not have the other side do.

    Raises :exc:`UsageError`.
    """
    if not (isinstance(cls, type) and issubclass(cls, Exception)) or issubclass(cls, NOT_RAISED):
        raise UsageError(f"register() takes a class of exceptions that is no group, not {cls!r}")
    if issubclass(cls, CallError) or cls is Exception:
        raise UsageError(f"{cls.__name__} cannot be mixed with RemoteError")
    try:
        remote_class(cls)
    except TypeError as error:
        raise UsageError(f"{cls.__name__} cannot be mixed with RemoteError: {error}") from None
    name = f"{cls.__module__}.{cls.__qualname__}"
    registered[name] = cls
    names[cls] = name
    return cls


def allowed_name(cls: type) -> str:
    """Under which name a class is on the lists; "" where it is not."""
    return names.get(cls, "")


def known_class(name: object) -> type[Exception] | None:
    """The class of that name, if it is on a list and imported."""
    if not isinstance(name, str):
        return None
    if name in STANDARD:
        module, _, attribute = name.rpartition(".")
        found = getattr(sys.modules.get(module), attribute, None)
        return found if is_rebuilt(found) else None
    return registered.get(name)


class MixedError(RemoteError):
    """A `RemoteError` that is another exception too: it travels as that one and its state."""

    def __reduce__(self) -> tuple[Any, ...]:
        base = base_of(type(self))
        extra = {name: getattr(self, name) for name in fields_of(base)}
        return remake, (base, self.args), {**extra, **self.__dict__}


class MixedGroup(MixedError):
    """An exception group. What ``except*`` splits off is remote as well."""

    def derive(self, errors: Any, /) -> RemoteError:
        state = {name: value for name, value in vars(self).items() if name != "__notes__"}
        return remake(base_of(type(self)), (self.message, list(errors)), state)


@functools.cache
def remote_class(base: type[Exception]) -> type[RemoteError]:
    """The class that is both a `RemoteError` and a ``base``."""
    mixed: type[RemoteError] = MixedGroup if issubclass(base, ExceptionGroup) else MixedError
    name = f"RemoteError[{base.__name__}]"
    text = f"The handler raised a {base.__name__}."
    return type(name, (mixed, base), {"__module__": "forkwire", "__doc__": text})


def base_of(cls: type[RemoteError]) -> type[Exception]:
    return cast("type[Exception]", cls.__bases__[1])


def fields_of(base: type[BaseException]) -> tuple[str, ...]:
    return next((found for cls, found in FIELDS.items() if issubclass(base, cls)), ())


def remake(
    base: type[Exception],
    args: tuple[object, ...],
    state: Mapping[str, object] = MappingProxyType({}),
) -> RemoteError:
    """Make one without `RemoteError.__init__`, whose arguments are others."""
    cls = remote_class(base)
    # MemoryError keeps spare objects of its own, and refuses to make one of a mixed class.
    maker: Any = Exception if issubclass(base, MemoryError) else base
    error = maker.__new__(cls, *args)
    vars(error).update(state)
    cast("Any", base).__init__(error, *args)
    return cast("RemoteError", error)


def rebuild(data: object, *, worker: str = "", method: str = "") -> CallError:
    """The exception of an error map, whatever is in it. Raises nothing.

    ``worker`` and ``method`` are what the caller asked; they become fields and a note.
    """
    try:
        error = Rebuilding().error(data, 0)
    except Exception:  # a class that somebody registered
        error = RemoteError("the other side sent an error that cannot be rebuilt")
    error.worker, error.method = worker, method
    where = [f"method {clean(method, NAME_LIMIT)!r}"] if method else []
    where += [f"worker {clean(worker, NAME_LIMIT)}"] if worker else []
    if where:
        error.add_note(f"in {' of '.join(where)}")
    return error


class Rebuilding:
    """One error map and those in it; ``left`` bounds how many."""

    def __init__(self) -> None:
        self.left = ERRORS

    def error(self, data: object, depth: int) -> CallError:
        """One map, with its causes and parts."""
        self.left -= 1
        found: Mapping[object, object] = data if isinstance(data, Mapping) else {}
        code = found.get("code")
        code = code if type(code) is int else HANDLER_RAISED
        message = text_of(found.get("message"), MESSAGE_LIMIT)
        cls = CODES.get(code, RemoteError)
        if cls is RemoteError:
            error: CallError = self.remote(found, code, message, depth)
        else:
            error = cls(message or f"the other side answered with error {code}")
            if trace := text_of(found.get("traceback"), TRACEBACK_LIMIT):
                error.add_note(trace)
        for note in notes_of(found.get("notes")):
            error.add_note(note)
        self.link(error, found, depth)
        return error

    def remote(
        self, found: Mapping[object, object], code: int, message: str, depth: int
    ) -> RemoteError:
        """What the handler raised, as near to what it was as can be made."""
        args = plain_args(found.get("args"))
        fields = found.get("data")
        state: dict[str, object] = {
            "message": message,
            "type_name": text_of(found.get("type"), NAME_LIMIT),
            "traceback": text_of(found.get("traceback"), TRACEBACK_LIMIT),
            "remote_args": args or (),
            "data": fields if isinstance(fields, Mapping) else {},
            "code": code,
        }
        if parts := self.parts(found.get("errors"), depth):
            return remake(ExceptionGroup, (message, parts), state)
        best = known_class(found.get("type")) or known_class(found.get("base"))
        return make(best, args, state)

    def parts(self, data: object, depth: int) -> list[CallError]:
        """The errors of a group."""
        if not isinstance(data, (list, tuple)) or depth >= DEPTH:
            return []
        return [self.error(part, depth + 1) for part in data[:ERRORS] if self.left > 0]

    def link(self, error: CallError, found: Mapping[object, object], depth: int) -> None:
        """What ``raise ... from`` and ``except`` had left on it."""
        linked = {
            key: self.error(found[key], depth + 1)
            for key in ("cause", "context")
            if isinstance(found.get(key), Mapping) and depth < DEPTH and self.left > 0
        }
        error.__cause__ = linked.get("cause")
        error.__context__ = linked.get("context")
        error.__suppress_context__ = found.get("suppress") is True or "cause" in linked


def make(
    best: type[Exception] | None, args: tuple[object, ...] | None, state: Mapping[str, object]
) -> RemoteError:
    """A ``best``, or the nearest class above it that can be made from what is known."""
    said = (state["message"],)
    if best is OSError and args is not None and len(args) > 1 and type(args[0]) is int:
        best = type(OSError(args[0], ""))
    for base in filter(is_rebuilt, best.__mro__ if best else ()):
        for choice in (said,) if args is None else (args, said):
            try:
                return filled(remake(base, suited(base, choice), state))
            except Exception:  # a constructor of somebody else
                continue
    error = RemoteError()
    error.args = said
    vars(error).update(state)
    return error


def filled(error: RemoteError) -> RemoteError:
    """``error`` with the fields that a builtin has beside its arguments."""
    for name in fields_of(base_of(type(error))):
        value = error.data.get(name)
        if isinstance(value, SCALARS) and is_plain(value):
            setattr(error, name, value)
    if isinstance(error, SyntaxError) and error.traceback:
        error.add_note(error.traceback)  # its text is not what Python prints of one
    return error


def suited(base: type[Exception], args: tuple[object, ...]) -> tuple[object, ...]:
    """``args``; those of a syntax error, which tracebacks draw from, bounded and cleaned."""
    if not issubclass(base, SyntaxError):
        return args
    place = args[1] if len(args) > 1 else None
    if not isinstance(place, tuple) or len(place) not in (4, 6):
        return args[:1]
    return (text_of(args[0], MESSAGE_LIMIT), tuple(map(place_item, range(len(place)), place)))


def place_item(index: int, value: object) -> object:
    """Of file, line, column, text, last line and last column: ``value`` if that can be shown."""
    if index in (0, 3):
        return clean(value, COLUMNS, multiline=index == 3) if isinstance(value, str) else None
    most = COLUMNS if index in (2, 5) else LINES
    return value if type(value) is int and 0 <= value <= most else None


def text_of(value: object, limit: int) -> str:
    return clean(value, limit, multiline=True) if isinstance(value, str) else ""


def notes_of(value: object) -> list[str]:
    if not isinstance(value, (list, tuple)):
        return []
    notes = [text_of(note, NOTE_LIMIT) for note in value[:NOTES]]
    return [note for note in notes if note]


def is_plain(value: object) -> bool:
    """Whether it is a scalar, none of its subclasses, and short."""
    if type(value) is int:
        return value.bit_length() <= ARG_BITS
    return type(value) in SCALARS and (
        not isinstance(value, (str, bytes)) or len(value) <= ARG_SIZE
    )


def plain_args(value: object, depth: int = 0) -> tuple[object, ...] | None:
    """Scalars and tuples of them, short ones; else None. Lists are tuples that have travelled."""
    if not isinstance(value, (list, tuple)) or len(value) > ARGS or depth > 1:
        return None
    plain: list[object] = []
    for item in value:
        if is_plain(item):
            plain.append(item)
        elif isinstance(item, (list, tuple)) and (inner := plain_args(item, depth + 1)) is not None:
            plain.append(inner)
        else:
            return None
    return tuple(plain)

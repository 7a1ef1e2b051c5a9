"""From the data of an error map back to an exception that the caller can catch.

What the peer sent is believed in nothing: text is cleaned and cut, every count and depth has a
limit, and a class is made only where `remote` has it on its list. See `failures` for the way out.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from typing import Any, Final

from ...errors import (
    CallCancelledError,
    CallError,
    DeadlineExceededError,
    InvalidArgumentsError,
    MethodNotFoundError,
    RemoteError,
    TooManyCallsError,
    ValueEncodeError,
    WorkerClosedError,
    WrongKindError,
)
from ...wire.text import clean
from .remote import (
    bare,
    base_of,
    fields_of,
    is_plain,
    is_rebuilt,
    is_registered,
    known_class,
    plain_args,
    remake,
)

__all__ = ["CODES", "HANDLER_RAISED", "PROTOCOL_BROKEN", "rebuild"]

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

# A traceback draws as many carets as a syntax error says.
COLUMNS: Final = 1000
LINES: Final = 2**31


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
            "type_name": " ".join(text_of(found.get("type"), NAME_LIMIT).split()),
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
        for choice in choices(base, args, said):
            with contextlib.suppress(Exception):  # a constructor of somebody else
                return filled(remake(base, suited(base, choice), state))
        if is_registered(base):
            with contextlib.suppress(Exception):  # its builtin's
                return filled(bare(base, said if args is None else args, state))
    error = RemoteError()
    error.args = said
    vars(error).update(state)
    return error


def choices(
    base: type[Exception], args: tuple[object, ...] | None, said: tuple[object, ...]
) -> list[tuple[object, ...]]:
    """What a constructor may be called with; that of a registered class with nothing else."""
    known = [] if args is None else [args]
    return known if is_registered(base) else [*known, said]


def filled(error: RemoteError) -> RemoteError:
    """``error`` with the fields that it had beside its arguments."""
    base = base_of(type(error))
    if is_registered(base):
        vars(error).update(attributes(error.data))
        error.args = error.remote_args or error.args
    for name in fields_of(base):
        value = error.data.get(name)
        if value is not None and is_plain(value):
            setattr(error, name, value)
    if isinstance(error, SyntaxError) and error.traceback:
        error.add_note(error.remote_text())  # Python prints its `msg`, not its text
    return error


def attributes(data: Mapping[Any, object]) -> dict[str, object]:
    """Of ``data`` what a registered class may have as its own; none that is `RemoteError`'s."""
    return {
        name: tuple(value) if isinstance(value, list) else value
        for name, value in data.items()
        if isinstance(name, str) and not name.startswith("_") and not hasattr(RemoteError, name)
    }


def suited(base: type[Exception], args: tuple[object, ...]) -> tuple[object, ...]:
    """``args``; those of a syntax error, which tracebacks draw from, bounded and cleaned."""
    if not issubclass(base, SyntaxError) or not args:
        return args
    said = text_of(args[0], MESSAGE_LIMIT)
    if len(args) != 2 or not isinstance(place := args[1], tuple) or len(place) not in (4, 6):
        return (said,)
    return said, tuple(map(place_item, range(len(place)), place))


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

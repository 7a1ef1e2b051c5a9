"""From an exception to the data of an error map. Nothing of it is pickled.

Whatever was raised, this raises nothing, and what it returns has a bounded size: a handler's
exception is a stranger's object. The way back is `rebuilding`. This must not know of messages.
"""

from __future__ import annotations

import difflib
import itertools
import os
from collections.abc import Iterable, Iterator
from types import TracebackType
from typing import Any, Final

from ...errors import CallError, ProtocolError, RemoteError, ValueDecodeError
from .rebuilding import CODES, HANDLER_RAISED, PROTOCOL_BROKEN, rebuild
from .remote import FIELDS, allowed_name, is_plain, plain_args, register
from .strangers import (
    cut,
    guarded,
    is_a,
    mro_of,
    name_of,
    of_base,
    stack_text,
    text_of,
    text_or,
    without,
)

__all__ = ["CODES", "CODE_OF", "HANDLER_RAISED", "code_of", "describe", "rebuild", "register",
           "suggestions"]  # fmt: skip

# The most of each text, in bytes of UTF-8: what a person can make use of.
MESSAGE_SIZE: Final = 8192
TRACEBACK_SIZE: Final = 16384
NOTE_SIZE: Final = 2048
NAME_SIZE: Final = 256

# The most of all texts together, well inside the smallest frames that peers take (1 MiB).
TOTAL_SIZE: Final = 131072

# Of what is left out when that is used up, this much is said nevertheless.
LEAST_SIZE: Final = 128

NOTES: Final = 16
PARTS: Final = 32
ERRORS: Final = 64
DEPTH: Final = 16

# Modules that stand between the loop and a handler.
OURS: Final = ("forkwire.rpc", "forkwire.process", "anyio", "asyncio", "contextlib", "trio")

# Functions of ours that call a handler's. Where a trace ends in one, what was raised came out of C.
CALLERS: Final = frozenset({"run", "step", "_guarded", "_step", "<lambda>", "_invoke"})

# Names compared for a suggestion, and how long they may be: the comparison is quadratic.
NAMES: Final = 500
NAME_LENGTH: Final = 48

CANCELLED: Final = -32001
CANCELLATIONS: Final = frozenset({"asyncio.exceptions.CancelledError", "trio.Cancelled"})

CODE_OF: Final[dict[type[BaseException], int]] = {
    **{cls: code for code, cls in CODES.items() if cls is not CallError},
    ValueDecodeError: -32602,
    ProtocolError: PROTOCOL_BROKEN,
}


def describe(
    error: BaseException, *, code: int | None = None, skip: tuple[str, ...] = OURS
) -> dict[str, object]:
    """The error map of ``error``: bounded plain data, whatever it is.

    ``code``: instead of the one of its class; pass `HANDLER_RAISED` for what came out of a
    handler, which may be another call's error. ``skip``: modules, whose frames are left out
    where the traceback begins with them.
    """
    try:
        return Describing(skip).error(error, code, ())
    except BaseException:  # no memory, no stack
        return {"code": HANDLER_RAISED, "message": "(an exception that cannot be described)"}


def code_of(error: BaseException) -> int:
    """The code of an error that no handler raised; a rebuilt one came out of a handler."""
    if name_of(type(error)) in CANCELLATIONS:
        return CANCELLED
    if is_a(error, CallError) and guarded(lambda: error.worker or error.method, ""):
        return HANDLER_RAISED
    return next((CODE_OF[cls] for cls in mro_of(type(error)) if cls in CODE_OF), HANDLER_RAISED)


class Describing:
    """One exception and those linked to it; ``room`` and ``left`` bound the whole."""

    def __init__(self, skip: tuple[str, ...]) -> None:
        self.skip = skip
        self.room = TOTAL_SIZE
        self.left = ERRORS

    def text(self, value: str, size: int) -> str:
        """``value``, the middle cut out of it where there is no room."""
        shown = cut(value, max(min(size, self.room), LEAST_SIZE))
        self.room -= len(shown.encode())
        return shown

    def error(
        self, error: BaseException, code: int | None, above: tuple[int, ...]
    ) -> dict[str, object]:
        """One map. ``above``: the ids of those that it is in."""
        self.left -= 1
        code = code_of(error) if code is None else code
        name = text_or(lambda: error.type_name if is_a(error, RemoteError) else "", "")
        found: dict[str, object] = {
            "code": code,
            "type": self.text(name or name_of(type(error)), NAME_SIZE),
            "message": self.text(message_of(error), MESSAGE_SIZE),
        }
        if (base := base_of(type(error))) and base != found["type"]:
            found["base"] = base
        if self.room > 0 and (trace := text_or(lambda: self.trace(error, code), "")):
            found["traceback"] = self.text(trace, TRACEBACK_SIZE)
        self.add_arguments(found, error)
        self.add_notes(found, error)
        self.add_linked(found, error, (*above, id(error)))
        return found

    def trace(self, error: BaseException, code: int) -> str:
        """The frames of user code; where the handler has none, ours if they are to blame."""
        whole: TracebackType | None = of_base("__traceback__", error)
        begin = without(whole, self.skip)
        if begin is None and code == HANDLER_RAISED and not came_out_of_c(whole):
            begin = whole
        here = stack_text(begin) if begin else ""
        there = error.traceback if is_a(error, RemoteError) else ""
        intro = "\nRemote " if here and there else ""
        return f"{here}{intro}{there}"

    def add_arguments(self, found: dict[str, object], error: BaseException) -> None:
        """Its ``args`` and further fields, where they are plain data and short."""
        if (plain := plain_args(args_of(error))) is not None and self.fits(plain):
            found["args"] = encodable(plain)
        nothing: dict[str, object] = {}
        fields = guarded(lambda: fields_of(error), nothing)
        if fields and self.fits(tuple(fields.values())):
            found["data"] = encodable(fields)

    def fits(self, values: tuple[object, ...]) -> bool:
        """Take the room for them, if it is there."""
        size = sum(size_of(value) for value in values)
        if size > self.room:
            return False
        self.room -= size
        return True

    def add_notes(self, found: dict[str, object], error: BaseException) -> None:
        """Its notes, those that there is room for."""
        notes = guarded(lambda: getattr(error, "__notes__", None), None)
        if type(notes) not in (list, tuple) or not notes or self.room <= 0:
            return
        texts = [self.text(text_of(note), NOTE_SIZE) for note in notes[:NOTES]]
        if len(notes) > NOTES:
            texts.append(f"({len(notes) - NOTES} more notes)")
        found["notes"] = texts

    def add_linked(
        self, found: dict[str, object], error: BaseException, above: tuple[int, ...]
    ) -> None:
        """Its cause, its context and the parts of a group."""
        cause, context = of_base("__cause__", error), of_base("__context__", error)
        if self.may_add(cause, above):
            found["cause"] = self.error(cause, None, above)
        if context is not cause and self.may_add(context, above):
            found["context"] = self.error(context, None, above)
        if of_base("__suppress_context__", error):
            found["suppress"] = True
        if is_a(error, BaseExceptionGroup):
            self.add_parts(found, error, above)

    def add_parts(
        self, found: dict[str, object], group: BaseExceptionGroup[Any], above: tuple[int, ...]
    ) -> None:
        parts = BaseExceptionGroup.__dict__["exceptions"].__get__(group)
        shown = [part for part in parts[:PARTS] if self.may_add(part, above)]
        described = [self.error(part, None, above) for part in shown if self.left > 0]
        found["errors"] = described
        if left_out := len(parts) - len(described):
            notes = found.setdefault("notes", [])
            assert isinstance(notes, list)
            notes.append(f"({left_out} more errors in this group)")

    def may_add(self, error: BaseException | None, above: tuple[int, ...]) -> bool:
        return error is not None and id(error) not in above and self.left > 0 and len(above) < DEPTH


def came_out_of_c(trace: TracebackType | None) -> bool:
    """Whether ``trace``, all of it ours, ends where a handler is called, which has no frames."""
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return trace is not None and trace.tb_frame.f_code.co_name in CALLERS


def base_of(cls: type) -> str:
    """The nearest class, or one above, that the other side may know; "" where none is."""
    return next(filter(None, map(allowed_name, mro_of(cls))), "")


def message_of(error: BaseException) -> str:
    """Its text. A `RemoteError` says its own, a group only what it was made with."""
    unknown = f"(an exception of {name_of(type(error))} whose text cannot be had)"
    if is_a(error, RemoteError):
        return text_or(lambda: error.message, unknown)
    if is_a(error, BaseExceptionGroup):
        return text_or(lambda: BaseExceptionGroup.__dict__["message"].__get__(error), unknown)
    text = text_or(lambda: str(error), unknown)
    return "the call was cancelled" if not text and code_of(error) == CANCELLED else text


def args_of(error: BaseException) -> object:
    """Its ``args``; of a `RemoteError` those that came."""
    if is_a(error, RemoteError):
        return guarded(lambda: error.remote_args or None, None)
    return of_base("args", error)


def fields_of(error: BaseException) -> dict[str, object]:
    """What it knows beside its ``args``: a builtin's fields, and what was set on it.

    Of a `RemoteError` the ``data`` that came.
    """
    if is_a(error, RemoteError):
        items: Iterable[tuple[object, object]] = itertools.islice(error.data.items(), PARTS)
    else:
        names = next((names for cls, names in FIELDS.items() if is_a(error, cls)), ())
        found = ((name, getattr(error, name)) for name in names)
        known = [item for item in found if item[1] is not None]
        items = [*known, *itertools.islice(own_fields(error), PARTS)]
    named = {name: plain_args((path_text(value),)) for name, value in items if is_plain(name)}
    return {name: plain[0] for name, plain in named.items() if type(name) is str and plain}


def own_fields(error: BaseException) -> Iterator[tuple[object, object]]:
    """Its public attributes, those that it has itself."""
    for name, value in of_base("__dict__", error).items():
        if type(name) is str and not name.startswith("_"):
            yield name, value


def path_text(value: object) -> object:
    """Paths as text."""
    return os.fspath(value) if isinstance(value, os.PathLike) else value


def size_of(value: object) -> int:
    """About how much room a plain value takes."""
    if isinstance(value, tuple):
        return sum(map(size_of, value))
    return 4 * len(value) if isinstance(value, (str, bytes)) else 16


def encodable(value: Any) -> Any:
    """Plain data with lists for tuples, and text that has an encoding."""
    if isinstance(value, str):
        return value.encode("utf-8", "backslashreplace").decode()
    if isinstance(value, tuple):
        return list(map(encodable, value))
    if isinstance(value, dict):
        return {encodable(key): encodable(item) for key, item in value.items()}
    return value


def suggestions(name: str, known: Iterable[str]) -> str:
    """``"; did you mean 'add' or 'added'?"``, or "" where nothing is near."""
    if len(name) > NAME_LENGTH:
        return ""
    fit = (found for found in known if len(found) <= NAME_LENGTH)
    near = difflib.get_close_matches(name, list(itertools.islice(fit, NAMES)))
    if not near:
        return ""
    *others, last = map(repr, near)
    first = f"{', '.join(others)} or " if others else ""
    return f"; did you mean {first}{last}?"

"""Asking an exception that may be anybody's: nothing here raises, or believes what it answers.

Attributes are read as the builtin base has them; what has to run a stranger's code is caught. Time
is the one thing that it may take: a ``__str__`` that never returns is not stopped here.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable
from types import TracebackType
from typing import Any, Final, TypeGuard, TypeVar

__all__ = ["cut", "guarded", "is_a", "mro_of", "name_of", "of_base", "stack_text", "text_of",
           "text_or", "without"]  # fmt: skip

# Frames shown of a traceback: where it began, and where it was raised.
FIRST_FRAMES: Final = 16
LAST_FRAMES: Final = 32

Found = TypeVar("Found")
Kind = TypeVar("Kind")


def guarded(ask: Callable[[], Found], default: Found) -> Found:
    """What ``ask`` answers; it may run a handler's code, which may raise anything."""
    try:
        return ask()
    except BaseException:
        return default


def text_or(ask: Callable[[], object], default: str) -> str:
    """The exact str that ``ask`` answers: a subclass may have another idea of its length."""
    text = guarded(ask, None)
    return str.__getitem__(text, slice(None)) if is_a(text, str) else default


def is_a(error: object, cls: type[Kind]) -> TypeGuard[Kind]:
    """``isinstance``, whatever ``error`` says of its class."""
    return issubclass(type(error), cls)


def of_base(name: str, error: BaseException) -> Any:
    """An attribute as `BaseException` has it, whatever the class puts in its place."""
    return BaseException.__dict__[name].__get__(error)


def of_type(name: str, cls: type) -> Any:
    """An attribute as `type` has it, whatever the metaclass puts in its place."""
    return type.__dict__[name].__get__(cls)


def mro_of(cls: type) -> tuple[type, ...]:
    """The classes above that can be looked up: a metaclass may have a hash of its own."""
    return tuple(found for found in of_type("__mro__", cls) if type(found) is type)


def name_of(cls: type) -> str:
    """``"builtins.ValueError"``."""
    module = guarded(lambda: of_type("__module__", cls), "")
    name = str(of_type("__qualname__", cls))
    return f"{module}.{name}" if type(module) is str and module else name


def text_of(note: object) -> str:
    """The text of a note, as tracebacks show it."""
    return text_or(lambda: str(note), "(a note whose text cannot be had)")


def cut(text: str, size: int) -> str:
    """``text`` in an encodable form, its middle left out above ``size`` bytes."""
    if len(text) <= size:
        whole = text.encode("utf-8", "backslashreplace")
        if len(whole) <= size:
            return whole.decode()
    third = size // 3
    head = text[:size].encode("utf-8", "backslashreplace")[:third].decode("utf-8", "ignore")
    tail = text[-size:].encode("utf-8", "backslashreplace")[-2 * third :].decode("utf-8", "ignore")
    left_out = max(len(text) - len(head) - len(tail), 1)
    return f"{head} ... [{left_out} characters left out] ... {tail}"


def without(trace: TracebackType | None, modules: tuple[str, ...]) -> TracebackType | None:
    """Where ``trace`` leaves ``modules`` first."""
    while trace is not None:
        name = trace.tb_frame.f_globals.get("__name__")
        if type(name) is not str or not f"{name}.".startswith(tuple(f"{m}." for m in modules)):
            break
        trace = trace.tb_next
    return trace


def stack_text(trace: TracebackType) -> str:
    """The frames as Python prints them; of a deep stack its two ends."""
    count = sum(1 for _ in traceback.walk_tb(trace))
    lines = ["Traceback (most recent call last):\n"]
    if count <= FIRST_FRAMES + LAST_FRAMES:
        lines += traceback.format_tb(trace)
    else:
        lines += traceback.format_tb(trace, limit=FIRST_FRAMES)
        lines.append(f"  ... [{count - FIRST_FRAMES - LAST_FRAMES} frames left out] ...\n")
        lines += traceback.format_tb(trace, limit=-LAST_FRAMES)
    return "".join(lines)

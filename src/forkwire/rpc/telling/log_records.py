"""A log record as plain data of bounded size, made where it was logged.

Its arguments and objects stay there: what travels is text, numbers, and a note where making them
failed. Knows nothing of how records travel.
"""

from __future__ import annotations

import logging
import traceback
from typing import Final, TypeGuard

__all__ = [
    "EXTRA",
    "EXTRAS",
    "LARGEST_INT",
    "MESSAGE",
    "NAME",
    "PATH",
    "STANDARD",
    "TRACEBACK",
    "Data",
    "data_of",
    "is_small_int",
    "message_of",
]

Data = dict[str, object]

# What is kept of a record. A longer text says how much is missing.
MESSAGE: Final = 16 * 1024  # characters
TRACEBACK: Final = 32 * 1024  # its end, where the error is
NAME: Final = 256
PATH: Final = 1024
EXTRAS: Final = 32
EXTRA: Final = 1024

LARGEST_INT: Final = 2**63  # what every peer has room for

STANDARD: Final = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


def data_of(record: logging.LogRecord) -> Data:
    """``record`` as plain data of bounded size."""
    data: Data = {
        "name": cut(record.name, NAME),
        "level": number(record.levelno),
        "levelname": cut(record.levelname, NAME),
        "message": cut(message_of(record), MESSAGE),
        "created": float(record.created),
        "pathname": cut(record.pathname, PATH),
        "lineno": number(record.lineno),
        "funcName": cut(record.funcName or "", NAME),
        "thread": number(record.thread),
        "threadName": cut(record.threadName or "", NAME),
    }
    task = getattr(record, "taskName", None)  # since Python 3.12
    if task:
        data["taskName"] = cut(task, NAME)
    exc_text = exception_of(record)
    if exc_text:
        data["exc_text"] = cut_head(exc_text, TRACEBACK)
    if record.stack_info:
        data["stack_info"] = cut_head(str(record.stack_info), TRACEBACK)
    extra = extra_of(record)
    if extra:
        data["extra"] = extra
    return data


def message_of(record: logging.LogRecord) -> str:
    """The message, made here: its arguments stay here. If that fails, what there is of it."""
    try:
        return record.getMessage()
    except Exception as error:
        return f"{shown(record.msg)} [cannot be formatted: {described(error)}]"


def exception_of(record: logging.LogRecord) -> str:
    """The traceback as text, or ""."""
    if record.exc_text or not record.exc_info:
        return str(record.exc_text or "")
    try:
        return "".join(traceback.format_exception(*record.exc_info)).removesuffix("\n")
    except Exception as error:
        return f"{record.exc_info[0]} [cannot be formatted: {described(error)}]"


def extra_of(record: logging.LogRecord) -> Data:
    """The fields of ``extra=`` that are plain scalars; the rest is left out."""
    extra: Data = {}
    for name, value in list(vars(record).items()):
        if name in STANDARD or len(extra) == EXTRAS or len(name) > NAME:
            continue
        if isinstance(value, str):
            extra[name] = cut(value, EXTRA)
        elif value is None or type(value) in (bool, float) or is_small_int(value):
            extra[name] = value
    return extra


def is_small_int(value: object) -> TypeGuard[int]:
    return type(value) is int and -LARGEST_INT <= value < LARGEST_INT


def number(value: object) -> int:
    """``value``, or 0 for what somebody else put there."""
    return int(value) if isinstance(value, int) and abs(value) < LARGEST_INT else 0


def cut(value: object, limit: int) -> str:
    """The beginning of the text, which can be encoded, and a note of the rest."""
    text = str(value)
    rest = len(text) - limit
    return encodable(text) if rest <= 0 else f"{encodable(text[:limit])}... [{rest} more]"


def cut_head(text: str, limit: int) -> str:
    """The end of ``text``, and a note of what was before."""
    rest = len(text) - limit
    return encodable(text) if rest <= 0 else f"[{rest} more] ...{encodable(text[-limit:])}"


def encodable(text: str) -> str:
    """``text`` without the halves of surrogate pairs that an undecodable file name has."""
    return text if text.isascii() else text.encode("utf-8", "backslashreplace").decode()


def shown(value: object) -> str:
    try:
        return repr(value)
    except Exception as error:
        return f"<{type(value).__qualname__} [{described(error)}]>"


def described(error: Exception) -> str:
    try:
        return f"{type(error).__qualname__}: {error}"
    except Exception:
        return type(error).__qualname__

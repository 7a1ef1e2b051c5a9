"""A worker's log record made a record of the host's again, and handled by the host's loggers.

The worker may be hostile: types are checked, sizes bounded, texts escaped; nothing here raises.
"""

from __future__ import annotations

import logging
import sys
import time
import traceback
from collections.abc import Mapping
from typing import Final

from ...process.stderr import write_to
from ...wire.text import clean
from .log_records import EXTRA, EXTRAS, MESSAGE, NAME, PATH, STANDARD, TRACEBACK, is_small_int

__all__ = ["replay"]

ROOM: Final = 2  # for escapes, and for notes of what the worker cut already

HIGHEST_LEVEL: Final = 100  # CRITICAL is 50; a program's own may be above
LEVEL_NAME: Final = 32
LAST_LINE: Final = 2**31
END_OF_TIME: Final = 2.0**33  # in the year 2242; what formats a time has limits too

# Loggers are kept for ever, with all their parents: what a worker has no room for comes by PARENT.
NEW_NAMES: Final = 256
DEEPEST: Final = 12  # parts of a name
PARENT: Final = "forkwire.worker"

QUOTE: Final = "  | "  # before the lines of a traceback that nobody trusts

OURS: Final = "forkwire_"  # begins the names of the fields that we add

_names: set[str] = set()


def replay(
    record: Mapping[str, object],
    *,
    worker: str,
    pid: int,
    names: set[str] = _names,
    trusted: bool = True,
) -> None:
    """Handle ``record`` as if it had been logged here, by the logger of its name. Never raises.

    It has the worker's ``pid`` as ``process`` and its name as ``processName``, and the fields
    ``forkwire_worker``, ``forkwire_pid``, ``forkwire_call`` and ``forkwire_method`` (None outside
    of a call). ``names``: the loggers made so far for this worker, which are limited. ``trusted``:
    whether its messages may have several lines.
    """
    try:
        reader = Reader(record, multiline=trusted)
        level = reader.level()
        logger = logger_of(reader.text("name", NAME), names)
        if logger.isEnabledFor(level):
            logger.handle(record_of(reader, level, worker, pid))
    except Exception:  # a handler of the program's, or a filter
        if logging.raiseExceptions:
            write_to(sys.stderr, clean(traceback.format_exc(), TRACEBACK, multiline=True))


class Reader:
    """Reads fields of unknown types."""

    def __init__(self, record: object, *, multiline: bool) -> None:
        self.record: Mapping[object, object] = record if isinstance(record, Mapping) else {}
        self.multiline = multiline

    def text(self, field: str, limit: int, *, multiline: bool = False) -> str:
        """Printable text; "" for what is none."""
        value = self.record.get(field)
        return clean(value, limit, multiline=multiline) if isinstance(value, str) else ""

    def lines(self, field: str, limit: int) -> str:
        """Text of several lines, of which none can pass for a record of its own."""
        text = self.text(field, limit, multiline=True)
        return text if self.multiline or not text else QUOTE + text.replace("\n", f"\n{QUOTE}")

    def number(self, field: str, highest: int) -> int:
        """An int from 0 to ``highest``; 0 for what is none."""
        value = self.record.get(field)
        return value if is_small_int(value) and 0 <= value <= highest else 0

    def level(self) -> int:
        """What it was logged with; a level that is none counts as INFO."""
        value = self.record.get("level")
        return min(max(value, 1), HIGHEST_LEVEL) if is_small_int(value) else logging.INFO

    def created(self) -> float:
        """When, by the worker's clock; now, if that cannot be."""
        value = self.record.get("created")
        if isinstance(value, (int, float)) and 0 <= value <= END_OF_TIME:
            return float(value)
        return time.time()

    def extra(self) -> dict[str, str | float | None]:
        """Fields of the program's own: plain scalars, under names that are free."""
        given = self.record.get("extra")
        found: dict[str, str | float | None] = {}
        for name, value in given.items() if isinstance(given, Mapping) else ():
            if len(found) == EXTRAS:
                break
            if not isinstance(name, str) or not is_free(name):
                continue
            if isinstance(value, str):
                found[name] = clean(value, ROOM * EXTRA, multiline=self.multiline)
            elif value is None or isinstance(value, (bool, float)) or is_small_int(value):
                found[name] = value
        return found


def is_free(name: str) -> bool:
    """Whether a record may have a field of this name."""
    return (
        len(name) <= NAME
        and name.isidentifier()
        and name not in STANDARD
        and not name.startswith(("_", OURS))
        and not hasattr(logging.LogRecord, name)
    )


def logger_of(name: str, names: set[str]) -> logging.Logger:
    """The logger of that name, if it is there already or there is room for one more."""
    root = logging.getLogger()
    if name in ("", root.name):
        return root
    if isinstance(root.manager.loggerDict.get(name), logging.Logger):
        return logging.getLogger(name)
    if name.count(".") >= DEEPEST or len(names) >= NEW_NAMES:
        return logging.getLogger(PARENT)
    names.add(name)
    return logging.getLogger(name)


def record_of(reader: Reader, level: int, worker: str, pid: int) -> logging.LogRecord:
    """The record, made by the program's own factory."""
    record = logging.getLogRecordFactory()(
        reader.text("name", NAME) or "root",
        level,
        reader.text("pathname", ROOM * PATH),
        reader.number("lineno", LAST_LINE),
        reader.text("message", ROOM * MESSAGE, multiline=reader.multiline),
        (),
        None,
        reader.text("funcName", NAME) or None,
        reader.lines("stack_info", ROOM * TRACEBACK) or None,
    )
    for name, value in reader.extra().items():
        setattr(record, name, value)
    if record.levelname == f"Level {level}":
        record.levelname = reader.text("levelname", LEVEL_NAME) or record.levelname
    record.exc_text = reader.lines("exc_text", ROOM * TRACEBACK) or None
    set_time(record, reader.created())
    record.process, record.processName = pid, worker
    record.thread = reader.number("thread", sys.maxsize)
    record.threadName = reader.text("threadName", NAME)
    if hasattr(record, "taskName"):
        record.taskName = reader.text("taskName", NAME) or None
    set_origin(record, reader, worker, pid)
    return record


def set_time(record: logging.LogRecord, created: float) -> None:
    record.relativeCreated += (created - record.created) * 1000
    record.msecs = int((created - int(created)) * 1000) + 0.0
    record.created = created


def set_origin(record: logging.LogRecord, reader: Reader, worker: str, pid: int) -> None:
    """What a program's formatters and filters can ask for."""
    fields = vars(record)
    fields[f"{OURS}worker"], fields[f"{OURS}pid"] = worker, pid
    fields[f"{OURS}call"] = reader.number("call", 2**53) or None
    fields[f"{OURS}method"] = reader.text("method", NAME) or None

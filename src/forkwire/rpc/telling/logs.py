"""The logging bridge: records made in a worker are handled by the host's loggers.

In the worker a `Bridge` is the only handler: it makes plain data of each record, and never blocks.
The host makes a record of it again, and trusts nothing in it. Records that the host would not
show are not made at all: a worker starts with the host's levels.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Final

from ..interrupts import interrupting
from .log_records import Data, data_of
from .replaying import replay

__all__ = ["Bridge", "complain", "host_level", "install", "replay"]

# More would drown what matters, on a pipe that carries the calls too. A burst is a start's.
RATE: Final = 2000.0  # records a second
BURST: Final = 4000.0

# Seconds between two counts of what was dropped, as long as more is: one for each record that gets
# through would be as many again.
TELLING: Final = 1.0

LEVELS: Final = 200  # of single loggers, that a worker is told which does not inherit them

OURS: Final = "forkwire.worker"  # the logger of our own records


class Bridge(logging.Handler):
    """Posts each record as data; what comes too fast is counted, and told in one record.

    ``post`` answers False for a record that it has no room for.
    """

    def __init__(
        self,
        post: Callable[[Data], object],
        *,
        current: Callable[[], tuple[int, str] | None] = lambda: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__()
        self.dropped = 0
        self._post = post
        self._current = current
        self._clock = clock
        self._pid = os.getpid()
        self._inside = threading.local()
        self._budget = threading.RLock()  # a signal's handler may log too
        self._tokens = BURST
        self._filled = clock()
        self._told = -TELLING
        self._replaced: list[tuple[logging.Logger, list[logging.Handler], bool]] = []
        self._root_level = logging.WARNING

    def createLock(self) -> None:  # noqa: N802
        """None: an exception that comes in between, of a cancelled call, would leave it locked."""
        self.lock = None

    def handle(self, record: logging.LogRecord) -> bool:
        """`emit`, unless a filter minds, or posting a record is what logs here.

        A function that is cancelled meanwhile is interrupted at the end of it.
        """
        interrupter = interrupting.current()
        if interrupter is None:
            return self._handle(record)
        with interrupter.paused():
            return self._handle(record)

    def _handle(self, record: logging.LogRecord) -> bool:
        if getattr(self._inside, "emitting", False):
            return False
        filtered = self.filter(record)
        if not filtered:
            return False
        if isinstance(filtered, logging.LogRecord):
            record = filtered
        try:
            self._inside.emitting = True
            self.emit(record)
        finally:
            self._inside.emitting = False
        return True

    def emit(self, record: logging.LogRecord) -> None:
        """Post ``record``, or count it. An exception here is told as logging does it."""
        try:
            if os.getpid() != self._pid:  # forked by the worker: the pipes are not its own
                complain(data_of(record))
            elif self._take_token():
                if self._clock() >= self._told + TELLING:
                    self._tell_dropped()
                if self._post(self._data(record)) is False:
                    self._count_dropped(1)
        except Exception:
            self.handleError(record)

    def flush(self) -> None:
        """Tell at once of what was dropped: when a worker has nothing to do, and at its end."""
        if self.dropped and os.getpid() == self._pid:
            with contextlib.suppress(Exception):
                self._tell_dropped()

    def _take_token(self) -> bool:
        with self._budget:
            now = self._clock()
            self._tokens = min(BURST, self._tokens + RATE * max(0.0, now - self._filled))
            self._filled = now
            if self._tokens < 1:
                self.dropped += 1
                return False
            self._tokens -= 1
            return True

    def _count_dropped(self, count: int) -> None:
        with self._budget:
            self.dropped += count

    def _tell_dropped(self) -> None:
        with self._budget:
            count, self.dropped = self.dropped, 0
            if not count:
                return
            self._told = self._clock()
        plural = "s" if count > 1 else ""
        note: Data = {
            "name": OURS,
            "level": logging.WARNING,
            "levelname": "WARNING",
            "message": f"forkwire: {count} record{plural} dropped, which came too fast",
            "created": time.time(),
        }
        if self._post(note) is False:
            self._count_dropped(count)

    def _data(self, record: logging.LogRecord) -> Data:
        data = data_of(record)
        call = self._current()
        if call is not None:
            data["call"], data["method"] = call
        return data

    def install(self, level: int) -> None:
        """Be the only handler of this process, whose root logger then has ``level``.

        The host's handlers that a fork brought along are left alone, unused: they would write a
        second time, and their locks may be held by a thread that is not here.
        """
        root = logging.getLogger()
        for logger in all_loggers():
            self._replaced.append((logger, logger.handlers, logger.propagate))
            logger.handlers, logger.propagate = [], True
        self._root_level = root.level
        root.handlers = [self]
        root.setLevel(level)

    def set_level(self, level: int | None) -> None:
        """The host has told its level; None: it wants no records."""
        if level is None:
            self.uninstall()
        else:
            logging.getLogger().setLevel(level)

    def uninstall(self) -> None:
        """Put back what `install` replaced."""
        self.flush()
        for logger, handlers, propagate in self._replaced:
            logger.handlers, logger.propagate = handlers, propagate
        if self._replaced:
            logging.getLogger().setLevel(self._root_level)
        self._replaced.clear()


def install(
    post: Callable[[Data], object],
    level: int,
    current: Callable[[], tuple[int, str] | None],
    *,
    warnings: bool = False,
) -> Bridge:
    """Send what is logged in this process through ``post``, from now on.

    ``post``: sends a message, from any thread; never blocks, may refuse. ``level``: the host's, see
    `host_level`. ``current``: the running call's id and method. ``warnings``: log those of
    :mod:`warnings` too, instead of printing them.
    """
    bridge = Bridge(post, current=current)
    bridge.install(level)
    if warnings:
        logging.captureWarnings(True)
    return bridge


def host_level() -> int:
    """Below it no record is made here: the root logger's level, or what is disabled altogether."""
    root = logging.getLogger()
    return max(root.getEffectiveLevel(), root.manager.disable + 1)


def levels_of_loggers() -> dict[str, int]:
    """Of those that were given one here, but for the root's."""
    loggers = [each for each in all_loggers() if each.level and each.parent is not None]
    return {each.name: each.level for each in loggers[:LEVELS]}


def all_loggers() -> Iterator[logging.Logger]:
    """The root, and every one that was ever asked for."""
    root = logging.getLogger()
    yield root
    for logger in list(root.manager.loggerDict.values()):
        if isinstance(logger, logging.Logger):
            yield logger


def complain(data: Data) -> None:
    """On stderr, where a record goes that has no way to the host's loggers."""
    if sys.stderr is not None:
        text = f"{data.get('levelname', '')}:{data['name']}:{data['message']}\n"
        if data.get("exc_text"):
            text += f"{data['exc_text']}\n"
        sys.stderr.write(text)

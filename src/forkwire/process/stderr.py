"""What a worker says on stderr or stdout: passed on line by line, its end kept for the report."""

from __future__ import annotations

import codecs
import contextlib
import os
import sys
import threading
from collections.abc import Callable
from typing import Final, TextIO

from . import ownership
from .backend import Backend, Stop

__all__ = ["Relay", "Sink", "to_stderr", "to_stdout", "write_to"]

Sink = Callable[[str], None]

KEPT: Final = 64 * 1024  # bytes kept: faulthandler prints up to 100 frames for each thread
TAIL: Final = 8 * 1024  # characters of them in a report
LINE: Final = 16 * 1024  # a longer line is passed on in parts
AT_ONCE: Final = 64 * 1024  # what a pipe holds: more comes only from somebody who still writes
CRASH: Final = "Fatal Python error: "  # how faulthandler begins


def write_to(stream: TextIO | None, text: str) -> None:
    """Write at once, so that no other worker's line comes in between. Never raises."""
    if stream is not None:
        with contextlib.suppress(Exception):  # theirs, of a stream that somebody put there
            stream.write(text)
            stream.flush()


def to_stderr(text: str) -> None:
    """Pass it on to what is ``sys.stderr`` now."""
    write_to(sys.stderr, text)


def to_stdout(text: str) -> None:
    """Pass it on to what is ``sys.stdout`` now."""
    write_to(sys.stdout, text)


class Relay:
    """Reads a pipe whenever there is something; the loop holds this, never the worker's handle.

    Without a ``label`` the text is passed on as it came. With one, each line begins with it, a
    part of a long line is a line of its own, and the last line ends with a newline.
    """

    def __init__(self, fd: int, sink: Sink = to_stderr) -> None:
        self.fd = fd
        self.sink = sink
        self.label = ""
        self._inside_line = False
        self._kept = bytearray()
        self._line = bytearray()
        self._decoder = codecs.getincrementaldecoder("utf-8")("backslashreplace")
        self._stop: Stop | None = None
        self._closed = False
        self._lock = threading.RLock()  # the loop drains it, and whoever reaps the worker

    def watch(self, backend: Backend) -> None:
        """Read in the background of ``backend``'s loop."""
        if not self._closed:
            self._stop = backend.watch(self.fd, self.drain)

    def drain(self) -> None:
        """Take what is there, a pipe's worth at most; at the end of the file, close."""
        if self._drain_to_end():
            self.close()

    def _drain_to_end(self) -> bool:
        with self._lock:
            for _ in range(AT_ONCE // LINE):
                if self._closed:
                    return False
                try:
                    data = os.read(self.fd, LINE)
                except BlockingIOError:
                    return False
                if not data:
                    return True
                self._take(data)
        return False

    def finish(self) -> None:
        """The worker has ended: take what it left, though a descendant may hold the pipe open."""
        self.drain()
        self.close()

    def close(self) -> None:
        """Pass on what is left of the last line, and leave."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            self._pass_on(len(self._line), final=True)

        def release() -> None:
            ownership.close(self.fd)

        if self._stop is None:
            release()
        else:
            self._stop(release)

    def tail(self) -> str:
        """The last of it, whole lines, as text."""
        text = bytes(self._kept).decode("utf-8", "backslashreplace")
        if len(text) <= TAIL:
            return text
        cut = text[-TAIL:]
        return cut.partition("\n")[2] or cut

    def native_stack(self) -> str:
        """What faulthandler wrote when the worker crashed in C, or ""."""
        text = bytes(self._kept).decode("utf-8", "backslashreplace")
        _, found, after = text.rpartition(CRASH)
        return found + after if found else ""

    def _take(self, data: bytes) -> None:
        self._kept += data
        if len(self._kept) > 2 * KEPT:
            del self._kept[:-KEPT]
        self._line += data
        end = self._line.rfind(b"\n") + 1
        if end or len(self._line) > LINE:
            self._pass_on(end or len(self._line))

    def _pass_on(self, count: int, *, final: bool = False) -> None:
        text = self._decoder.decode(self._line[:count], final)
        del self._line[:count]
        if self.label:
            text = self._labelled(text)
        if text:
            self.sink(text)

    def _labelled(self, text: str) -> str:
        if self._inside_line and text.startswith("\n"):  # that line was ended for it
            text, self._inside_line = text[1:], False
        if not text:
            return ""
        self._inside_line = not text.endswith("\n")
        lines = text.removesuffix("\n").split("\n")
        return "".join(f"{self.label}{line}\n" for line in lines)

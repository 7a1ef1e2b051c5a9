"""What a worker prints: both of its streams come out at the host's own, line by line, labelled.

The base layer reads the pipes (:mod:`forkwire.process.stderr`) and puts ``[name pid]`` before each
line, on a terminal and elsewhere alike: a line in a file is told apart no other way. Whole lines
are written at once, so those of two workers never mix; a line of more than 16 KiB comes in parts,
each a line of its own; what is no UTF-8 comes as backslash escapes. What is printed and what is
answered go through different pipes: a result may be here before the line printed ahead of it.
"""

from __future__ import annotations

import contextlib
import faulthandler
import io
import sys
from typing import Final

from ...process.backend import BackendName
from ...process.fork import Options
from ...process.stderr import Sink, to_stderr, to_stdout
from ...wire.text import clean

__all__ = ["LABEL", "capturing", "label", "print_at_once", "sinks"]

LABEL: Final = 40  # characters of a worker's name; more would crowd out the line itself

# An escape is "\\U0001d173" at most: nothing is cut here, the relay passes on little at once.
LONGEST_ESCAPE: Final = 10


def sinks(*, trusted: bool) -> tuple[Sink, Sink]:
    """Where stdout and stderr of a worker go: what are the host's ``sys.stdout`` and ``stderr``.

    A trusted worker's text comes as it is, colours and all. From another every control character
    is escaped, so that it cannot move the cursor, hide a line, or speak to the terminal.
    """
    return (to_stdout, to_stderr) if trusted else (cleaned(to_stdout), cleaned(to_stderr))


def cleaned(sink: Sink) -> Sink:
    """``sink``, with nothing but printable lines."""

    def pass_on(text: str) -> None:
        sink(clean(text, LONGEST_ESCAPE * len(text), multiline=True))

    return pass_on


def label(name: str) -> str:
    """``name`` as it stands before each line: printable, on one line, not long."""
    return clean(name, LABEL)


def capturing(
    backend: BackendName, grace: float, max_message_size: int, *, close_fds: bool = False
) -> Options:
    """How a service's worker is forked: 1 and 2 are captured, and 0 is ``/dev/null``."""
    return Options(
        backend,
        grace,
        max_message_size,
        close_fds,
        capture_stderr=True,
        capture_stdout=True,
        null_stdin=True,
    )


def print_at_once() -> None:
    """In an interpreter of its own: what is printed into a pipe would wait until there is much.

    As in a forked worker every line goes out as it ends, in UTF-8, and a crash in C is told.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(encoding="utf-8", errors="backslashreplace", line_buffering=True)
    with contextlib.suppress(OSError, ValueError, AttributeError, RuntimeError):  # no stderr
        faulthandler.enable()

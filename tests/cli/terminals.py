"""Run the command in a pseudo-terminal of its own, as a person would."""

from __future__ import annotations

import os
import re
import select
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from contextlib import contextmanager

FORKWIRE = [sys.executable, "-m", "forkwire"]
LIMIT = 40.0  # seconds

# A session of its own, whose terminal is descriptor 0; then the command in its place.
LOGIN = "import os, sys; os.login_tty(0); os.execvp(sys.argv[1], sys.argv[1:])"


def environment(**variables: str) -> dict[str, str]:
    """No home, no locale, no terminal settings of the person who runs the tests."""
    ours = {name: text for name, text in os.environ.items() if name.startswith("PYTHON")}
    ours.pop("PYTHONUNBUFFERED", None)  # it hides what becomes of the last output
    return {**ours, "PATH": os.environ["PATH"], **variables}


class Terminal:
    """A command in a terminal, and what it has written so far."""

    def __init__(self, process: subprocess.Popen[bytes], master: int) -> None:
        self.process = process
        self.master = master
        self.output = b""
        self.deadline = time.monotonic() + LIMIT

    def read(self) -> bool:
        """Wait for some output; False at its end."""
        left = max(self.deadline - time.monotonic(), 0)
        assert select.select([self.master], [], [], left)[0], self.output
        try:
            data = os.read(self.master, 65536)
        except OSError:  # Linux: nobody has the terminal open any more
            data = b""
        self.output += data
        return bool(data)

    def read_until(self, pattern: bytes) -> re.Match[bytes]:
        while not (found := re.search(pattern, self.output)):
            assert self.read(), self.output
        return found

    def finish(self) -> int:
        """Read to the end; the exit status."""
        while self.read():
            pass
        return self.process.wait(max(self.deadline - time.monotonic(), 0))

    def press(self, keys: bytes) -> None:
        os.write(self.master, keys)


@contextmanager
def terminal(
    command: list[str], columns: int = 80, cwd: str | None = None, **variables: str
) -> Iterator[Terminal]:
    """Run ``command`` in a terminal that is ``columns`` wide, in the folder ``cwd``."""
    variables = {"TERM": "xterm-256color", **variables}
    master, slave = os.openpty()
    termios.tcsetwinsize(slave, (24, columns))
    process = subprocess.Popen(
        [sys.executable, "-c", LOGIN, *command],
        stdin=slave,
        stdout=slave,
        stderr=slave,
        env=environment(**variables),
        cwd=cwd,
    )
    os.close(slave)
    try:
        yield Terminal(process, master)
    finally:
        process.kill()
        process.wait()
        os.close(master)

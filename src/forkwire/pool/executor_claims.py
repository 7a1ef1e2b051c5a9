"""Who may have a call: the worker that it was sent to, or again the executor.

A pipe holds the number of each call that was sent and has not begun, in that order. The worker
takes a number before it begins the call; the executor takes those that are left, to have these
calls run elsewhere. What the kernel gives to one it does not give to the other, so that no call
runs twice, and it is known of each whether it has begun, whatever the worker does or died of.

Both sides are here; it knows neither. It imports little, since workers import it.
"""

from __future__ import annotations

import contextlib
import os
import struct
from typing import Final

from ..process import ownership
from ..process.descriptors import make_pipe

__all__ = ["Claiming", "Claims"]

NUMBER: Final = struct.Struct("=q")

# What is left is read at once: more than ever wait in one worker.
ALL: Final = 256 * NUMBER.size


class Claims:
    """The executor's side, for one worker. Not waiting, ever."""

    def __init__(self) -> None:
        self._read, self._write = ownership.make_owned(make_pipe)
        self.path: Final = f"/proc/{os.getpid()}/fd/{self._read}"

    def offer(self, number: int) -> None:
        """Call ``number`` is about to be sent. Numbers grow."""
        os.write(self._write, NUMBER.pack(number))

    def take_back(self) -> set[int]:
        """The calls that have not begun, and in that worker never will."""
        with contextlib.suppress(BlockingIOError):
            return {number for (number,) in NUMBER.iter_unpack(os.read(self._read, ALL))}
        return set()

    def close(self) -> None:
        """The worker has ended."""
        ownership.close(self._read)
        ownership.close(self._write)


class Claiming:
    """The worker's side. ``works``: whether the pipe could be opened."""

    def __init__(self, path: str = "") -> None:
        self._fd = -1
        self._held = 0
        if path:
            with contextlib.suppress(OSError):
                self._fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        self.works: Final = self._fd >= 0

    def claim(self, number: int) -> bool:
        """Whether call ``number`` may begin: it was not taken back."""
        if self._fd < 0:
            return True
        # What is held may be of a call that was never sent, or was interrupted just here.
        while self._held < number:
            try:
                (self._held,) = NUMBER.unpack(os.read(self._fd, NUMBER.size))
            except (BlockingIOError, struct.error):  # none is left; the executor is gone
                return False
        return self._held == number

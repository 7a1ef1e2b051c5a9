"""Who waits until the other side takes one more call, in order.

Each call that ends wakes one of them. So that none of these chances is lost, whoever gives up
before it has used its own hands it on.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

__all__ = ["Room"]

Wake = Callable[[], None]


class Room:
    """Not thread-safe: under the link's lock. What is answered is to be called outside of it."""

    def __init__(self) -> None:
        self._waiting: deque[Wake] = deque()

    def wait(self, wake: Wake) -> None:
        """Have ``wake`` called in its turn."""
        self._waiting.append(wake)

    def leave(self, wake: Wake) -> bool:
        """Do not call it; False if that has happened already, or is about to."""
        if wake in self._waiting:
            self._waiting.remove(wake)
            return True
        return False

    def next(self) -> list[Wake]:
        """Whom to wake for one call that may be made."""
        return [self._waiting.popleft()] if self._waiting else []

    def everybody(self) -> list[Wake]:
        """All of them: there is much room now, or there will be none."""
        waiting, self._waiting = self._waiting, deque()
        return list(waiting)

"""How often workers may be restarted, and how long to wait before. It is told the time."""

from __future__ import annotations

from collections import deque
from random import Random
from typing import Final

from .policy import Restart

__all__ = ["Restarts"]

# Doublings of the backoff: beyond these any is longer than longest_backoff, or infinite.
MOST_DOUBLINGS: Final = 64


class Restarts:
    """The restarts of one pool. ``in_a_row``: those since a worker last finished a call."""

    def __init__(self, policy: Restart, random: Random) -> None:
        self.policy: Final = policy
        self.in_a_row = 0
        self._random: Final = random
        self._recent: Final[deque[float]] = deque()

    def wants(self, *, bad: bool) -> bool:
        """Whether a worker is replaced whose end was ``bad``."""
        return self.policy.kind == "permanent" or (self.policy.kind == "transient" and bad)

    def allow(self, now: float) -> bool:
        """Count one more; False if that is too much."""
        recent, policy = self._recent, self.policy
        while recent and recent[0] <= now - policy.period:
            recent.popleft()
        recent.append(now)
        self.in_a_row += 1
        return max(len(recent), self.in_a_row) <= policy.intensity

    def succeeded(self) -> None:
        """A worker has finished a call: workers can."""
        self.in_a_row = 0

    def delay(self) -> float:
        """Seconds until the next start: a random part of the backoff, so that no two coincide."""
        if not self.in_a_row:
            return 0.0
        policy = self.policy
        doublings = min(self.in_a_row - 1, MOST_DOUBLINGS)
        longest = min(policy.longest_backoff, policy.backoff * 2.0**doublings)
        return self._random.uniform(0.0, longest)

"""When a worker is pinged, and what its silence means. It is told the time."""

from __future__ import annotations

import math
from typing import Final

from .policy import Health
from .states import Kill, Member, Ping, Warn

__all__ = ["Pulse"]


class Pulse:
    """The health of a pool's workers.

    ``answers``: whether a worker can answer while it runs a call. If not, it is not judged then.
    """

    def __init__(self, policy: Health) -> None:
        self.policy: Final = policy
        self.interval: Final = policy.interval or math.inf
        self.answers = False

    def looks_at(self, member: Member) -> float:
        """When to look at it next."""
        if member.pinged is None:
            return member.ping_at
        return member.pinged + self.policy.timeout

    def look(self, member: Member, now: float) -> Ping | Warn | Kill | None:
        """It is time: ping it, or judge it by the ping that it has not answered."""
        before, member.pinged = member.pinged, now
        if before is None:
            return Ping(member)
        if member.in_flight and not self.answers:
            return None
        reason = f"did not answer a ping for {self.policy.timeout:g} s"
        if self.policy.unresponsive == "warn":
            return Warn(member, reason)
        return Kill(member, reason)

    def saw_life(self, member: Member, now: float) -> None:
        """It did something else than to answer a ping."""
        member.ping_at = now + self.interval
        if member.pinged is not None:
            member.pinged = now

    def ponged(self, member: Member, now: float) -> None:
        """It answered the ping."""
        member.pinged = None
        member.ping_at = now + self.interval

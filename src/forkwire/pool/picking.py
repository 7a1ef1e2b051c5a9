"""Which worker of a pool is given a call. No I/O and no clock."""

from __future__ import annotations

import math

from .roster import Roster
from .states import Member, Need

__all__ = ["Picking"]


class Picking(Roster):
    """The members of one pool, of which one is chosen at a time."""

    def pick(self, need: Need = Need.LOOP, *, kept: int = 0) -> Member | None:
        """The least busy member that has what is needed; for a plain function plain ones count.

        Among equals the least recently used; the most recently used where there are more than
        ``least``, so that the others become idle and end. No more calls at a time than ``most``
        members may have, also while some are being replaced. ``kept``: so many of the least busy
        are kept for whoever waits to have one alone.
        """
        plain = need is Need.LANE
        if len(self.members) > self.most and self._is_full(plain=plain):
            return None  # else the members themselves are the limit
        room = 1 if need is Need.ALL else self.lanes if plain else self.capacity
        order = -1.0 if len(self._ready) > self.least else 1.0
        spared = self._least_busy(kept) if kept else ()
        best: Member | None = None
        lowest = (math.inf, math.inf, math.inf)
        for member in self._ready:
            calls = member.in_flight
            count = member.plain if plain else calls
            if count >= room or calls >= self.capacity or member.leased or member in spared:
                continue
            rank = (count, calls, order * member.last_used)
            if best is None or rank < lowest:
                best, lowest = member, rank
        return best

    def _is_full(self, *, plain: bool) -> bool:
        """Whether so many calls run as may, those of members that are being replaced among them."""
        capacity, lanes = self.capacity, self.lanes
        calls = plains = 0
        for member in self.members.values():
            calls += capacity if member.leased else min(capacity, member.in_flight)
            plains += lanes if member.leased else min(lanes, member.plain)
        return calls >= self.most * capacity or (plain and plains >= self.most * lanes)

    def _least_busy(self, count: int) -> list[Member]:
        free = [member for member in self._ready if not member.leased]
        return sorted(free, key=lambda member: (member.in_flight, member.number))[:count]

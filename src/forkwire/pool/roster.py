"""The workers that a pool has and should have: who is added, who goes, who comes in whose place.

No I/O and no clock; what is to be done is collected as actions. What happens to workers, and what
follows, is in :mod:`.supervisor`.
"""

from __future__ import annotations

import math
from enum import Enum, auto
from random import Random
from typing import Final

from ..errors import PoolBrokenError
from .policy import Restart
from .restarting import Restarts
from .states import TABLE, Action, Break, End, Event, Member, Need, Start, State

__all__ = ["LIVE", "OVER", "Phase", "Roster"]

# Processes beyond `most`: one may start while the one in whose place it comes still works.
SURGE: Final = 1

SERVING: Final = (State.WAITING, State.STARTING, State.READY)
LIVE: Final = (State.READY, State.DRAINING)

RELOADED: Final = "it ran the code of before the reload"


class Phase(Enum):
    """What the pool as a whole does."""

    NEW = auto()
    OPENING = auto()  # until its first workers are ready
    OPEN = auto()
    DRAINING = auto()  # what is queued and in flight ends, then the workers
    CLOSED = auto()
    BROKEN = auto()


OVER: Final = (Phase.CLOSED, Phase.BROKEN)


class Roster:
    """The members of one pool, and how many there are to be.

    ``members``: all whose process may exist, or is to be. ``capacity``: calls at a time on one
    worker; ``lanes``: of these, plain functions. ``generation``: of the code, one more with each
    reload. ``broken``: why the pool is of no use any more.
    """

    def __init__(
        self,
        *,
        least: int,
        most: int,
        spares: int,
        capacity: int,
        restart: Restart,
        random: Random,
    ) -> None:
        self.least = least
        self.most = most
        self.spares: Final = spares
        self.capacity = self.lanes = capacity
        self.random: Final = random
        self.phase = Phase.NEW
        self.members: Final[dict[int, Member]] = {}
        self.broken: BaseException | None = None
        self.generation = 0
        self._restarts: Final = Restarts(restart, random)
        self._ready: list[Member] = []
        self._actions: list[Action] = []
        self._last_number = 0
        self._working = 0
        self._waiting = 0
        self._waiting_for: dict[Need, int] = dict.fromkeys(Need, 0)
        self._last: BaseException | None = None  # how a worker ended last
        self._given_up = 0  # places of workers that are not restarted
        self._wants_probe = False
        self._probe: Member | None = None  # the first worker of a new generation

    @property
    def settled(self) -> bool:
        """Nothing is left of any worker."""
        return not self.members

    @property
    def is_over(self) -> bool:
        """It was closed, or is broken: no call begins any more, save on a worker that is lent."""
        return self.phase in OVER

    @property
    def ready(self) -> int:
        """How many take calls."""
        return len(self._ready)

    @property
    def is_filled(self) -> bool:
        """As many take calls as are always to do so, or no more will."""
        opens = self.phase in (Phase.OPENING, Phase.OPEN)
        return not opens or self.ready >= self.least - self._given_up

    @property
    def idle(self) -> bool:
        """No call waits or is in flight, and no worker is lent."""
        return not self._waiting and not self._working

    @property
    def proving(self) -> bool:
        """Whether it is to be seen yet if the new code of a reload starts."""
        return self._wants_probe or self._probe is not None

    @property
    def reloading(self) -> bool:
        """Calls may still begin on code of before the reload."""
        if self.phase in OVER:
            return False
        return self.proving or any(
            member.generation < self.generation and member.state in SERVING
            for member in self.members.values()
        )

    # -- how many -----------------------------------------------------------------------------

    def _settle(self, now: float) -> list[Action]:
        """Bring the workers to what they should be."""
        if self.phase is Phase.NEW:
            return []
        if self.phase in OVER or (self.phase is Phase.DRAINING and not self._waiting):
            self._retire_all()
            if not self.members and self.phase is Phase.DRAINING:
                self.phase = Phase.CLOSED
            return self._taken()
        self._shrink()
        self._fill(now)
        self._replace(now)
        if not self.members and self.most <= self._given_up:
            self._break_for("none of its workers is left, and its policy starts no other")
            self._retire_all()
        return self._taken()

    def _serving(self) -> list[Member]:
        """Those that are to stay; a successor counts from when it is ready."""
        return [
            member
            for member in self.members.values()
            if member.state in SERVING and member.predecessor is None and member is not self._probe
        ]

    def _target(self, serving: list[Member]) -> int:
        """How many members are to serve."""
        most = self.most - self._given_up
        ready = [member for member in serving if member.state is State.READY]
        more = self._lacking([member for member in ready if not member.leased])
        working = sum(member.works for member in ready)
        least = 0 if self.phase is Phase.DRAINING else self.least - self._given_up
        spares = 0 if self.phase is Phase.DRAINING else self.spares
        return min(most, max(least, working + spares, len(ready) + more if more else 0))

    def _lacking(self, free: list[Member]) -> int:
        """How many workers calls wait for, beside these."""
        loops = sum(max(0, self.capacity - member.in_flight) for member in free)
        lanes = sum(max(0, self.lanes - member.plain) for member in free)
        idle = sum(not member.in_flight for member in free)
        waiting = self._waiting_for
        return (
            math.ceil(max(0, waiting[Need.LOOP] - loops) / self.capacity)
            + math.ceil(max(0, waiting[Need.LANE] - lanes) / self.lanes)
            + max(0, waiting[Need.ALL] - idle)
        )

    def _has_too_many(self) -> bool:
        """One that is idle may end."""
        serving = self._serving()
        return len(serving) > self._target(serving)

    def _has_room(self) -> bool:
        return len(self.members) < self.most + SURGE

    def _fill(self, now: float) -> None:
        serving = self._serving()
        count, target = len(serving), self._target(serving)
        while count < target and self._has_room():
            self._add(now, self.generation)
            count += 1

    def _shrink(self) -> None:
        """Let go what is beyond `most`, the least useful first."""
        serving = self._serving()
        beyond = len(serving) - max(0, self.most - self._given_up)
        if beyond > 0:
            serving.sort(key=use_of)
            for member in serving[:beyond]:
                self._retire(member, "the pool became smaller")

    def _replace(self, now: float) -> None:
        """Start successors of those that are due, as far as there is room; one proves first."""
        if self._wants_probe and self._has_room():
            self._wants_probe = False
            self._probe = self._add(now, self.generation + 1, at_once=True)
        due = [m for m in self.members.values() if m.due and m.state is State.READY]
        due = [m for m in due if m.successor is None]
        for old in sorted(due, key=turn_of):
            if self._probe is not None or not self._has_room():
                return
            new = self._add(now, self.generation)
            new.predecessor, old.successor = old, new

    def _retire_all(self) -> None:
        self._wants_probe = False
        closed = self.phase is Phase.CLOSED
        for member in [*self.members.values()]:
            if member.state in SERVING:
                self._retire(member, "the pool was closed" if closed else "the pool ends")
            if closed and member.state in LIVE:
                self._stop(member, "the pool was closed")

    # -- one member ---------------------------------------------------------------------------

    def _add(self, now: float, generation: int, *, at_once: bool = False) -> Member:
        self._last_number += 1
        delay = 0.0 if at_once else self._restarts.delay()
        member = Member(self._last_number, generation, State.WAITING, starts_at=now + delay)
        self.members[member.number] = member
        if not delay:
            self._move(member, Event.DUE)
            self._actions.append(Start(member))
        return member

    def _is_to_stay(self, member: Member) -> bool:
        return member.state is State.READY and not member.due

    def _retire(self, member: Member, reason: str) -> None:
        """It is not wanted any more: it ends once no call is in flight."""
        if member.state is State.STARTING:
            self._stop(member, reason)
            return
        self._move(member, Event.RETIRED)
        if member.state is State.DRAINING:
            member.due = reason
            if not member.works:
                self._stop(member, reason)

    def _rested(self, member: Member) -> list[Action]:
        if member.state is State.DRAINING and not member.works:
            self._stop(member, member.due)
        return self._taken()

    def _stop(self, member: Member, reason: str) -> None:
        self._move(member, Event.STOPPED)
        self._actions.append(End(member, reason))

    def _move(self, member: Member, event: Event) -> None:
        state = TABLE[member.state].get(event)
        assert state is not None, f"{event.name} of {member!r}"
        was, member.state = member.state, state
        if State.READY in (was, state) and was is not state:
            self._ready = [m for m in self.members.values() if m.state is State.READY]
        if state is State.GONE:
            del self.members[member.number]
            self._working -= member.works
        if state not in SERVING:
            self._unlink(member)
            if member is self._probe:
                self._probe = None

    def _unlink(self, member: Member) -> None:
        """Who came in its place comes for itself, and in whose place it came stays."""
        if member.successor is not None:
            member.successor.predecessor = None
        if member.predecessor is not None:
            member.predecessor.successor = None
        member.successor = member.predecessor = None

    # -- all of them --------------------------------------------------------------------------

    def _turn_over(self, probe: Member) -> None:
        """The new code starts: it is what all are to run."""
        self._probe = None
        self.generation = probe.generation
        for member in [*self.members.values()]:
            if member.generation == self.generation:
                continue
            if member.state is State.WAITING:
                member.generation = self.generation
            elif member.state is State.STARTING:
                self._stop(member, RELOADED)
            elif member.state is State.READY:
                member.due = RELOADED
        old = [member for member in self._ready if member.due == RELOADED]
        if old:
            self._retire(min(old, key=use_of), RELOADED)

    def _see_if_open(self) -> None:
        if self.phase is Phase.OPENING and len(self._ready) >= self.least:
            self.phase = Phase.OPEN

    def _break(self, error: BaseException) -> None:
        self.phase = Phase.BROKEN
        self.broken = error
        self._actions.append(Break(error))

    def _break_for(self, reason: str) -> None:
        last = self._last if self._last is not None else "it ended by itself, with status 0"
        error = PoolBrokenError(f"the pool gave up: {reason}; of the last: {last}")
        error.__cause__ = self._last
        self._break(error)

    def _taken(self) -> list[Action]:
        actions, self._actions = self._actions, []
        return actions


def turn_of(member: Member) -> tuple[bool, int, bool, int]:
    """The less, the sooner it is replaced: it is not lent, its code is old, it is idle, it is old.

    Were the young replaced first, which may be due again soon, the old might never be.
    """
    return member.leased, member.generation, member.works, member.number


def use_of(member: Member) -> tuple[bool, bool, bool, int, int]:
    """The less, the sooner it may go: what is not there yet, is due, is idle, is young."""
    ready = member.state is State.READY
    return ready, not member.due, member.leased, member.in_flight, -member.number

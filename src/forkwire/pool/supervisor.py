"""What a pool does about its workers: a state machine that starts, replaces and ends them.

Sans-I/O: a driver tells what happened, and when; each method answers what is to be done, in order.
It knows no process, no loop and no clock. A state's table is in :mod:`.states`; what it does not
allow is a bug of the driver's, an :exc:`AssertionError`.

A driver asks :meth:`Supervisor.next_tick` anew after each method, save `began`, `finished`, `lease`
and `release` where they answered nothing: those only move it later.
"""

from __future__ import annotations

import math
from enum import Enum, auto
from random import Random
from typing import Final

from ..errors import PoolBrokenError
from .policy import Health, Recycle, Restart, bytes_of
from .restarting import Restarts
from .states import (
    TABLE,
    Action,
    Break,
    End,
    Event,
    Kill,
    Member,
    Ping,
    Start,
    State,
    Warn,
)

__all__ = ["Phase", "Supervisor"]

# Processes beyond `most`: one may start while the one in whose place it comes still works.
SURGE: Final = 1

# Part of a limit by which some workers end earlier than others, so that not all do at once.
JITTER: Final = 0.1

COMING: Final = (State.WAITING, State.STARTING)
SERVING: Final = (*COMING, State.READY)
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


class Supervisor:
    """The workers of one pool.

    ``members``: all whose process may exist, or is to be. ``broken``: why the pool is of no use any
    more. ``capacity``: calls at a time on one worker. ``answers``: whether a worker can answer a
    ping while it runs a call. ``generation``: of the code, one more with each reload;
    ``reload_error``: why the last one was given up. ``deaths``, ``restarts``, ``recycled``: so far.
    """

    def __init__(
        self,
        *,
        least: int,
        most: int,
        spares: int = 0,
        idle: float = 60.0,
        capacity: int = 1,
        restart: Restart | None = None,
        recycle: Recycle | None = None,
        health: Health | None = None,
        random: Random | None = None,
    ) -> None:
        self.least = least
        self.most = most
        self.spares: Final = spares
        self.idle_after: Final = idle
        self.capacity = capacity
        self.answers = False
        self.recycle: Final = recycle or Recycle()
        self.health: Final = health or Health()
        self.random: Final = random or Random()
        self.policy: Final = restart or Restart()
        self.memory: Final = bytes_of(self.recycle.memory) if self.recycle.memory else math.inf
        self.phase = Phase.NEW
        self.members: Final[dict[int, Member]] = {}
        self.broken: BaseException | None = None
        self.generation = 0
        self.reload_error: BaseException | None = None
        self.deaths = 0
        self.restarts = 0
        self.recycled = 0
        self._restarts: Final = Restarts(self.policy, self.random)
        self._ready: list[Member] = []
        self._actions: list[Action] = []
        self._last_number = 0
        self._working = 0
        self._waiting = 0
        self._given_up = 0  # places of workers that are not restarted
        self._last: BaseException | None = None  # how a worker ended last
        self._proved = False  # a worker of this pool has been ready
        self._wants_probe = False
        self._probe: Member | None = None  # the first worker of a new generation

    # -- what a driver looks at ---------------------------------------------------------------

    @property
    def settled(self) -> bool:
        """Nothing is left of any worker."""
        return not self.members

    @property
    def idle(self) -> bool:
        """No call waits or is in flight, and no worker is lent."""
        return not self._waiting and not self._working

    @property
    def reloading(self) -> bool:
        """Calls may still begin on code of before the reload."""
        if self.phase in OVER:
            return False
        if self._wants_probe or self._probe is not None:
            return True
        return any(
            member.generation < self.generation and member.state in SERVING
            for member in self.members.values()
        )

    def pick(self, *, alone: bool = False) -> Member | None:
        """The least busy member with room for a call; ``alone``: one without any.

        Among equals the least recently used; the most recently used where there are more than
        ``least``, so that the others become idle and end. No more than ``most`` work at a time,
        also while some are being replaced.
        """
        room = 1 if alone else self.capacity
        full = self._working >= self.most
        order = -1.0 if len(self._ready) > self.least else 1.0
        best: Member | None = None
        least, used = room, math.inf
        for member in self._ready:
            calls = member.in_flight
            if calls > least or calls >= room or member.leased or (full and not calls):
                continue
            if calls < least or order * member.last_used < used:
                best, least, used = member, calls, order * member.last_used
        return best

    def next_tick(self) -> float | None:
        """When :meth:`tick` is to be called; None: not before something else happens."""
        times = [self._looked_at(member) for member in self.members.values()]
        soonest = min(times, default=math.inf)
        return None if soonest == math.inf else soonest

    def _looked_at(self, member: Member) -> float:
        if member.state is State.WAITING:
            return member.starts_at
        if member.state not in LIVE:
            return math.inf
        when = self._judged_at(member)
        if member.state is State.READY:
            if not member.due:
                when = min(when, member.old_at)
            if self.most > self.least:
                when = min(when, member.idle_at)
        return when

    def _judged_at(self, member: Member) -> float:
        if member.pinged is None:
            return member.ping_at
        return member.pinged + self.health.timeout

    # -- what happens to members --------------------------------------------------------------

    def open(self, now: float) -> list[Action]:
        """Start the first workers. Until all are ready, one that fails breaks the pool."""
        self.phase = Phase.OPENING
        self._see_if_open()
        return self._settle(now)

    def started(self, member: Member, now: float) -> list[Action]:
        """It is ready for calls."""
        self._move(member, Event.STARTED)
        if member.state is not State.READY:
            return self._settle(now)
        self._proved = True
        member.since = member.last_used = now
        self._set_limits(member, now)
        if member is self._probe:
            self._turn_over(member)
        old, member.predecessor = member.predecessor, None
        if old is not None:
            self._retire(old, old.due)
        self._see_if_open()
        return self._settle(now)

    def failed(self, member: Member, error: BaseException, now: float) -> list[Action]:
        """It could not start."""
        wanted = member.state is State.STARTING
        self._move(member, Event.FAILED)
        if member is self._probe:
            self._probe = None
            self.reload_error = error
        elif wanted and (self.phase is Phase.OPENING or not self._proved):
            self._break(error)
        elif wanted:
            self._lose(error, now, bad=True)
        return self._settle(now)

    def died(
        self, member: Member, error: BaseException | None, now: float, *, fault: bool = True
    ) -> list[Action]:
        """Its process is gone. ``error``: how, None if it ended well.

        ``fault``: False if the pool itself killed it for a call that would not stop.
        """
        before, bad = member.state, error is not None
        self._move(member, Event.DIED)
        asked = before is State.ENDING and not member.hung
        if fault and not asked:
            self.deaths += 1
            if before is not State.DRAINING or bad:
                self._lose(error, now, bad=bad, place=before is not State.DRAINING)
        return self._settle(now)

    def began(self, member: Member, now: float) -> list[Action]:
        """A call was given to it."""
        assert member.leased or member.state is State.READY, member
        if not member.works and member.state is not State.GONE:
            self._working += 1
        member.in_flight += 1
        member.begun += 1
        if self.spares and member.in_flight == 1:
            return self._see_limit(member, now) or self._settle(now)
        return self._see_limit(member, now)

    def finished(
        self, member: Member, now: float, *, answered: bool = True, memory: int | None = None
    ) -> list[Action]:
        """A call ended. ``answered``: the worker said so; False if it ended with the worker.

        ``memory``: bytes of it that are resident then.
        """
        member.in_flight -= 1
        assert member.in_flight >= 0, member
        if member.state is State.GONE:
            return []
        if not member.works:
            self._working -= 1
        if answered:
            self._restarts.succeeded()
            self._saw_life(member, now)
        if memory is not None and memory >= self.memory and self._is_to_stay(member):
            member.due = f"{memory} bytes of it were resident"
            self.recycled += 1
            return self._settle(now)
        return self._rested(member)

    def notified(self, member: Member, now: float) -> list[Action]:
        """A notification was given to it."""
        member.begun += 1
        member.notified = True
        return self._see_limit(member, now)

    def lease(self, member: Member, now: float) -> list[Action]:
        """It is lent to one task alone."""
        assert not member.works, member
        assert member.state is State.READY, member
        member.leased = True
        self._working += 1
        return self._settle(now) if self.spares else self._taken()

    def release(self, member: Member, now: float, *, fresh: bool = False) -> list[Action]:
        """It is given back. ``fresh``: nobody else is to see what it was left as."""
        assert member.leased, member
        member.leased = False
        if member.state is State.GONE:
            return []
        member.last_used = now
        member.idle_at = now + self.idle_after
        if not member.works:
            self._working -= 1
        if fresh and member.state is State.READY:
            self.recycled += 1
            self._retire(member, "it was lent")
            return self._settle(now)
        return self._see_limit(member, now) or self._rested(member)

    def _see_limit(self, member: Member, now: float) -> list[Action]:
        """Give it no more calls than it may begin."""
        enough = member.begun >= member.most_calls and not member.leased
        if not enough or member.state is not State.READY:
            return self._taken()
        self.recycled += 1
        self._retire(member, f"it was given {member.begun} calls")
        return self._settle(now)

    def waiting(self, count: int, now: float) -> list[Action]:
        """So many calls wait for a worker with room."""
        before, self._waiting = self._waiting, count
        grows = count > before and self.most > self.least
        if grows or (self.phase is Phase.DRAINING and not count):
            return self._settle(now)
        return []

    # -- time and health ----------------------------------------------------------------------

    def tick(self, now: float) -> list[Action]:
        """See to what is due by now: backoff, age, idleness, pings."""
        for member in [*self.members.values()]:
            if member.state is State.WAITING and member.starts_at <= now:
                self._move(member, Event.DUE)
                self._actions.append(Start(member))
            elif member.state in LIVE:
                self._look_at(member, now)
        return self._settle(now)

    def ponged(self, member: Member, now: float) -> list[Action]:
        """It answered the ping."""
        member.pinged = None
        member.excused = False
        member.ping_at = now + (self.health.interval or math.inf)
        return []

    def _look_at(self, member: Member, now: float) -> None:
        if self._judged_at(member) <= now:
            self._check_health(member, now)
        if member.old_at <= now and self._is_to_stay(member):
            member.due = f"it was {now - member.since:.0f} s old"
            self.recycled += 1
        if member.idle_at <= now:
            member.idle_at = now + self.idle_after
            if self._is_to_stay(member) and not member.works and self._has_too_many():
                self._retire(member, f"it did nothing for {self.idle_after:g} s")

    def _check_health(self, member: Member, now: float) -> None:
        """Ping it, or judge it by the ping that it did not answer."""
        busy = bool(member.in_flight) or member.excused or member.notified
        if member.pinged is None:
            member.pinged = now
            member.excused, member.notified = member.notified, False
            self._actions.append(Ping(member))
        elif busy and not self.answers:
            member.pinged = now
        else:
            self._judge(member, now)

    def _judge(self, member: Member, now: float) -> None:
        reason = f"did not answer a ping for {self.health.timeout:g} s"
        if self.health.unresponsive == "warn":
            member.pinged = now
            self._actions.append(Warn(member, reason))
            return
        member.hung = True
        self._move(member, Event.STOPPED)
        self._actions.append(Kill(member, reason))

    def _saw_life(self, member: Member, now: float) -> None:
        member.last_used = now
        member.idle_at = now + self.idle_after
        if member.pinged is not None:
            member.pinged = now
        elif self.health.interval is not None:
            member.ping_at = now + self.health.interval

    # -- what a user asks for -----------------------------------------------------------------

    def learn(self, capacity: int, *, answers: bool) -> None:
        """Once workers said what they offer: ``capacity`` and ``answers`` of this class."""
        self.capacity = capacity
        self.answers = answers

    def reload(self, now: float) -> list[Action]:
        """Replace all workers, one by one; the first new one has to start before any goes.

        Done once `reloading` is False: `reload_error` is why it was given up, else None.
        """
        assert not self.reloading
        self.reload_error = None
        self._wants_probe = self.phase in (Phase.OPENING, Phase.OPEN)
        return self._settle(now)

    def resize(self, least: int, most: int, now: float) -> list[Action]:
        self.least, self.most = least, most
        self._given_up = 0
        return self._settle(now)

    def drain(self, now: float) -> list[Action]:
        """What waits and is in flight ends, then all workers; done once `settled`."""
        if self.phase not in OVER:
            self.phase = Phase.DRAINING
        return self._settle(now)

    def close(self, now: float) -> list[Action]:
        """End all workers now; done once `settled`."""
        self.phase = Phase.CLOSED
        return self._settle(now)

    # -- how many workers ---------------------------------------------------------------------

    def _settle(self, now: float) -> list[Action]:
        """Bring the workers to what they should be."""
        if self.phase is Phase.NEW:
            return []
        if self.phase in OVER or (self.phase is Phase.DRAINING and not self._waiting):
            self._retire_all()
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
        room = sum(self.capacity - member.in_flight for member in ready if not member.leased)
        more = math.ceil(max(0, self._waiting - room) / self.capacity)
        working = sum(member.works for member in ready)
        least = 0 if self.phase is Phase.DRAINING else self.least - self._given_up
        spares = 0 if self.phase is Phase.DRAINING else self.spares
        return min(most, max(least, working + spares, len(ready) + more if more else 0))

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
        for old in sorted(due, key=use_of):
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

    def _set_limits(self, member: Member, now: float) -> None:
        recycle, health, random = self.recycle, self.health, self.random
        if recycle.calls is not None:
            member.most_calls = recycle.calls - random.randint(0, int(recycle.calls * JITTER))
        if recycle.age is not None:
            member.old_at = now + recycle.age * random.uniform(1 - JITTER, 1)
        if health.interval is not None:
            member.ping_at = now + health.interval
        member.idle_at = now + self.idle_after

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

    def _unlink(self, member: Member) -> None:
        """Who came in its place comes for itself, and in whose place it came stays."""
        if member.successor is not None:
            member.successor.predecessor = None
        if member.predecessor is not None:
            member.predecessor.successor = None
        member.successor = member.predecessor = None

    # -- reloading ----------------------------------------------------------------------------

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

    # -- failures -----------------------------------------------------------------------------

    def _see_if_open(self) -> None:
        if self.phase is Phase.OPENING and len(self._ready) >= self.least:
            self.phase = Phase.OPEN

    def _lose(
        self, error: BaseException | None, now: float, *, bad: bool, place: bool = True
    ) -> None:
        """A worker ended that nobody asked to end; ``place``: it was to stay."""
        if self.phase in OVER:
            return
        if not self._restarts.wants(bad=bad):
            self._given_up += place
            self._last = error
            return
        self.restarts += place
        self._last = error
        if not self._restarts.allow(now):
            self._break_for(
                f"its workers ended or failed to start more than {self.policy.intensity} times "
                f"in {self.policy.period:g} s, or in a row"
            )

    def _break_for(self, reason: str) -> None:
        error = PoolBrokenError(f"the pool gave up: {reason}; the last: {self._last}")
        error.__cause__ = self._last
        self._break(error)

    def _break(self, error: BaseException) -> None:
        self.phase = Phase.BROKEN
        self.broken = error
        self._actions.append(Break(error))

    def _taken(self) -> list[Action]:
        actions, self._actions = self._actions, []
        return actions


def use_of(member: Member) -> tuple[bool, bool, bool, int, int]:
    """The less, the sooner it may go: what is not there yet, is due, is idle, is young."""
    ready = member.state is State.READY
    return ready, not member.due, member.leased, member.in_flight, -member.number

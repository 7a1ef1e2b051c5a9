"""What a pool does about its workers: a state machine that starts, replaces and ends them.

Sans-I/O: a driver tells what happened, and when; each method answers what is to be done, in order.
It knows no process, no loop and no clock. A state's table is in :mod:`.states`; what it does not
allow is a bug of the driver's, an :exc:`AssertionError`.

A driver asks :meth:`Supervisor.next_tick` anew after each method, save `began`, `finished`, `lease`
and `release` where they answered nothing: those only move it later.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from random import Random
from typing import Final

from .picking import Picking
from .policy import Health, Recycle, Restart, bytes_of
from .pulse import Pulse
from .roster import LIVE, OVER, Phase
from .states import Action, Event, Kill, Member, Need, Start, State

__all__ = ["Phase", "Supervisor"]

# Part of a limit by which some workers end earlier than others, so that not all do at once.
JITTER: Final = 0.1


class Supervisor(Picking):
    """The workers of one pool.

    ``idle``: seconds after which a worker beyond ``least`` ends that does nothing. ``deaths``,
    ``restarts``, ``recycled``: so far. ``reload_error``: why the last reload was given up.
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
        self.restart: Final = restart or Restart()
        super().__init__(
            least=least,
            most=most,
            spares=spares,
            capacity=capacity,
            restart=self.restart,
            random=random or Random(),
        )
        self.idle_after: Final = idle
        self.recycle: Final = recycle or Recycle()
        self.deaths = 0
        self.restarts = 0
        self.recycled = 0
        self.reload_error: BaseException | None = None
        self._pulse: Final = Pulse(health or Health())
        self._memory: Final = bytes_of(self.recycle.memory) if self.recycle.memory else math.inf
        self._proved = False  # a worker of this pool has been ready

    # -- what a driver looks at ---------------------------------------------------------------

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
        when = self._pulse.looks_at(member)
        if member.state is State.READY:
            if not member.due:
                when = min(when, member.old_at)
            if self.most > self.least:
                when = min(when, member.idle_at)
        return when

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
        wanted, proving = member.state is State.STARTING, member is self._probe
        self._move(member, Event.FAILED)
        if proving:
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

    def began(self, member: Member, now: float, *, plain: bool = False) -> list[Action]:
        """A call or a notification was given to it. ``plain``: of a plain function."""
        assert member.works or member.state is State.READY, member
        if not member.works and member.state is not State.GONE:
            self._working += 1
        member.in_flight += 1
        member.plain += plain
        member.begun += 1
        if self.spares and member.in_flight == 1:
            return self._see_limit(member, now) or self._settle(now)
        return self._see_limit(member, now)

    def finished(
        self,
        member: Member,
        now: float,
        *,
        plain: bool = False,
        answered: bool = True,
        memory: int | None = None,
    ) -> list[Action]:
        """A call ended. ``answered``: the worker said so; False if it ended with the worker.

        ``memory``: bytes of it that are resident then.
        """
        member.in_flight -= 1
        member.plain -= plain
        assert member.in_flight >= member.plain >= 0, member
        if member.state is State.GONE:
            return []
        self._used(member, now)
        if answered:
            self._restarts.succeeded()
            self._pulse.saw_life(member, now)
        if memory is not None and memory >= self._memory and self._is_to_stay(member):
            member.due = f"{memory} bytes of it were resident"
            self.recycled += 1
            return self._settle(now)
        return self._rested(member)

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
        self._used(member, now)
        if fresh and member.state is State.READY:
            self.recycled += 1
            self._retire(member, "it was lent")
            return self._settle(now)
        return self._see_limit(member, now) or self._rested(member)

    def _used(self, member: Member, now: float) -> None:
        member.last_used = now
        member.idle_at = now + self.idle_after
        if not member.works:
            self._working -= 1

    def _see_limit(self, member: Member, now: float) -> list[Action]:
        """Give it no more calls than it may begin."""
        enough = member.begun >= member.most_calls and not member.leased
        if not enough or member.state is not State.READY:
            return self._taken()
        self.recycled += 1
        self._retire(member, f"it was given {member.begun} calls")
        return self._settle(now)

    def waiting(self, counts: Mapping[Need, int], now: float) -> list[Action]:
        """So many calls wait for a worker."""
        count = sum(counts.values())
        before, self._waiting = self._waiting, count
        self._waiting_for = {need: counts.get(need, 0) for need in Need}
        grows = count > before and self.most > self.least
        if grows or self.phase is Phase.DRAINING:  # of which the least number is none
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
        self._pulse.ponged(member, now)
        return []

    def _look_at(self, member: Member, now: float) -> None:
        if self._pulse.looks_at(member) <= now:
            self._feel_pulse(member, now)
        if member.old_at <= now and self._is_to_stay(member):
            member.due = f"it was {now - member.since:.0f} s old"
            self.recycled += 1
        if member.idle_at <= now:
            member.idle_at = now + self.idle_after
            if self._is_to_stay(member) and not member.works and self._has_too_many():
                self._retire(member, f"it did nothing for {self.idle_after:g} s")

    def _feel_pulse(self, member: Member, now: float) -> None:
        action = self._pulse.look(member, now)
        if isinstance(action, Kill):
            member.hung = True
            self._move(member, Event.STOPPED)
        if action is not None:
            self._actions.append(action)

    # -- what a user asks for -----------------------------------------------------------------

    def learn(self, capacity: int, lanes: int, *, answers: bool) -> None:
        """Once workers said what they offer: ``capacity`` calls at a time on one.

        ``lanes``: of these, plain functions. ``answers``: whether a worker answers a ping while it
        runs one.
        """
        self.capacity, self.lanes = capacity, lanes
        self._pulse.answers = answers

    def reload(self, now: float) -> list[Action]:
        """Replace all workers, one by one; the first new one has to start before any goes.

        Done once `reloading` is False: `reload_error` is why it was given up, else None. Not while
        another reload goes on.
        """
        assert not self.reloading
        self.reload_error = None
        self._wants_probe = self.phase in (Phase.OPENING, Phase.OPEN)
        return self._settle(now)

    def resize(self, least: int, most: int, now: float) -> list[Action]:
        self.least, self.most = least, most
        self._given_up = 0
        self._see_if_open()
        return self._settle(now)

    def drain(self, now: float) -> list[Action]:
        """What waits and is in flight ends, then all workers; done once `settled`, then closed."""
        if self.phase not in OVER:
            self.phase = Phase.DRAINING
        return self._settle(now)

    def close(self, now: float) -> list[Action]:
        """End all workers now; done once `settled`."""
        self.phase = Phase.CLOSED
        return self._settle(now)

    # -- failures -----------------------------------------------------------------------------

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
                f"its workers ended or failed to start more than {self.restart.intensity} times "
                f"in {self.restart.period:g} s, or in a row"
            )

    def _set_limits(self, member: Member, now: float) -> None:
        recycle, random = self.recycle, self.random
        if recycle.calls is not None:
            member.most_calls = recycle.calls - random.randint(0, int(recycle.calls * JITTER))
        if recycle.age is not None:
            member.old_at = now + recycle.age * random.uniform(1 - JITTER, 1)
        member.ping_at = now + self._pulse.interval
        member.idle_at = now + self.idle_after

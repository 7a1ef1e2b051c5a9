"""A pool without processes: the core, a clock that is set by hand, and workers that are made up."""

from __future__ import annotations

from collections.abc import Iterable
from random import Random
from typing import Any, Final

from forkwire.pool.policy import Health
from forkwire.pool.states import Action, Break, End, Kill, Member, Need, Ping, Start, State, Warn
from forkwire.pool.supervisor import Supervisor

DEATH: Final = RuntimeError("was killed by SIGSEGV")
NO_PINGS: Final = Health(interval=None)


class Desk:
    """Does what the supervisor says, as far as it is told to, and keeps what it was told.

    ``starting``, ``running``, ``ending``: the workers that there would be.
    """

    def __init__(self, **options: Any) -> None:
        options.setdefault("health", NO_PINGS)
        self.core: Final = Supervisor(random=Random(1), **options)
        self.now = 1000.0
        self.starting: Final[list[Member]] = []
        self.running: Final[list[Member]] = []
        self.ending: Final[dict[Member, str]] = {}
        self.killed: Final[dict[Member, str]] = {}
        self.pings: Final[list[Member]] = []
        self.warnings: Final[list[str]] = []
        self.broken: BaseException | None = None

    # -- what it is told ----------------------------------------------------------------------

    def apply(self, actions: Iterable[Action]) -> None:
        for action in actions:
            DOING[type(action)](self, action)

    def _start(self, action: Start) -> None:
        assert action.member.state is State.STARTING
        self.starting.append(action.member)

    def _end(self, action: End) -> None:
        assert action.member not in self.ending, "twice"
        assert action.reason
        self.ending[action.member] = action.reason

    def _kill(self, action: Kill) -> None:
        assert action.member not in self.killed, "twice"
        self.killed[action.member] = action.reason

    def _ping(self, action: Ping) -> None:
        assert action.member not in self.pings, "two at a time"
        self.pings.append(action.member)

    def _warn(self, action: Warn) -> None:
        self.warnings.append(action.reason)

    def _break(self, action: Break) -> None:
        assert self.broken is None, "twice"
        self.broken = action.error

    # -- what it tells ------------------------------------------------------------------------

    def open(self) -> None:
        self.apply(self.core.open(self.now))

    def start(self, member: Member | None = None) -> Member:
        """It is ready; the one that was ordered first, unless it is said."""
        member = member or self.starting[0]
        self.starting.remove(member)
        self.running.append(member)
        self.apply(self.core.started(member, self.now))
        return member

    def start_all(self) -> None:
        while self.starting:
            self.start()

    def fail(self, member: Member | None = None, error: BaseException = DEATH) -> None:
        member = member or self.starting[0]
        self.starting.remove(member)
        self.ending.pop(member, None)
        self.apply(self.core.failed(member, error, self.now))

    def die(
        self, member: Member, error: BaseException | None = DEATH, *, fault: bool = True
    ) -> None:
        self.running.remove(member)
        self.ending.pop(member, None)
        self.killed.pop(member, None)
        if member in self.pings:
            self.pings.remove(member)
        self.apply(self.core.died(member, error, self.now, fault=fault))

    def end(self, member: Member) -> None:
        """What was ordered to end has ended, well."""
        if member in self.starting:
            self.fail(member)
        else:
            self.die(member, None)

    def end_all(self) -> None:
        while self.ending:
            self.end(next(iter(self.ending)))

    def begin(self, member: Member | None = None, *, plain: bool = False) -> Member:
        """A call, on the one that would be picked."""
        member = member or self.core.pick(Need.LANE if plain else Need.LOOP)
        assert member is not None
        self.apply(self.core.began(member, self.now, plain=plain))
        return member

    def finish(self, member: Member, **how: Any) -> None:
        self.apply(self.core.finished(member, self.now, **how))

    def lease(self) -> Member:
        member = self.core.pick(Need.ALL)
        assert member is not None
        self.apply(self.core.lease(member, self.now))
        return member

    def release(self, member: Member, *, fresh: bool = False) -> None:
        self.apply(self.core.release(member, self.now, fresh=fresh))

    def wait(self, count: int, *, plain: int = 0, alone: int = 0) -> None:
        """``count``: that wait for an async function."""
        counts = {Need.LOOP: count, Need.LANE: plain, Need.ALL: alone}
        self.apply(self.core.waiting(counts, self.now))

    def pong(self, member: Member) -> None:
        self.pings.remove(member)
        self.apply(self.core.ponged(member, self.now))

    def advance(self, seconds: float) -> None:
        """Let time go by, with each tick when it was asked for."""
        until = self.now + seconds
        while (when := self.core.next_tick()) is not None and when <= until:
            self.now = max(self.now, when)
            self.apply(self.core.tick(self.now))
            after = self.core.next_tick()
            assert after is None or after > self.now, "it would tick for ever"
        self.now = until


DOING: Final[dict[type[Action], Any]] = {
    Start: Desk._start,
    End: Desk._end,
    Kill: Desk._kill,
    Ping: Desk._ping,
    Warn: Desk._warn,
    Break: Desk._break,
}


def opened(**options: Any) -> Desk:
    """A pool all of whose first workers are ready."""
    desk = Desk(**options)
    desk.open()
    desk.start_all()
    return desk

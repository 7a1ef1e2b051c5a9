"""The states of a pool's worker, what leads from one to the other, and what is done about it.

Plain data: it knows no process and no clock. :mod:`.supervisor` moves members along the table.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import Enum, auto
from typing import Final, TypeAlias

__all__ = [
    "TABLE",
    "Action",
    "Break",
    "End",
    "Event",
    "Kill",
    "Member",
    "Need",
    "Ping",
    "Start",
    "State",
    "Warn",
]


class State(Enum):
    """What a member is doing."""

    WAITING = auto()  # to be started when its backoff is over
    STARTING = auto()
    READY = auto()
    DRAINING = auto()  # no new calls; those in flight end
    ENDING = auto()  # being closed or killed
    GONE = auto()


class Need(Enum):
    """What a call waits for."""

    LOOP = auto()  # a worker with room for one more call
    LANE = auto()  # the same, and a thread of it for a plain function
    ALL = auto()  # one that does nothing, to be lent


class Event(Enum):
    """What happens to a member."""

    DUE = auto()  # its backoff is over
    STARTED = auto()
    FAILED = auto()  # to start
    RETIRED = auto()  # it is not wanted any more
    STOPPED = auto()  # its end was ordered
    DIED = auto()  # its process is gone


# What may happen in each state, and which state that leads to. What is missing is a bug.
TABLE: Final[dict[State, dict[Event, State]]] = {
    State.WAITING: {Event.DUE: State.STARTING, Event.RETIRED: State.GONE},
    State.STARTING: {
        Event.STARTED: State.READY,
        Event.FAILED: State.GONE,
        Event.STOPPED: State.ENDING,
    },
    State.READY: {
        Event.RETIRED: State.DRAINING,
        Event.STOPPED: State.ENDING,
        Event.DIED: State.GONE,
    },
    State.DRAINING: {Event.STOPPED: State.ENDING, Event.DIED: State.GONE},
    # A start that was given up may still succeed or fail before it is stopped.
    State.ENDING: {
        Event.STARTED: State.ENDING,
        Event.FAILED: State.GONE,
        Event.DIED: State.GONE,
    },
    State.GONE: {},
}


@dataclass(slots=True, eq=False)
class Member:
    """One worker of a pool, from the wish for it to its end.

    ``number``: never given twice. ``generation``: of the code, one more with each reload.
    ``in_flight``, ``begun``: calls now, and ever; ``plain``: of plain functions, now. ``since``:
    when it was ready. ``last_used``: when it last finished a call, at first when it was ready.
    ``starts_at``: when its backoff is over.
    """

    number: int
    generation: int
    state: State
    in_flight: int = 0
    plain: int = 0
    leased: bool = False
    begun: int = 0
    since: float = 0.0
    last_used: float = 0.0
    starts_at: float = 0.0
    # Why it is to be replaced, "" for not at all; who comes in its place; in whose it came.
    due: str = ""
    successor: Member | None = None
    predecessor: Member | None = None
    # How many calls it may begin, and when it is too old.
    most_calls: float = math.inf
    old_at: float = math.inf
    # When it has been idle for so long that it may end.
    idle_at: float = math.inf
    # When it is to be pinged next; since when a ping is unanswered; whether it was killed for that.
    ping_at: float = math.inf
    pinged: float | None = None
    hung: bool = False

    @property
    def works(self) -> bool:
        return self.leased or self.in_flight > 0

    def __repr__(self) -> str:
        return f"<Member {self.number}: {self.state.name}, {self.in_flight} in flight>"


@dataclass(frozen=True, slots=True)
class Start:
    """Start it; say `started` or `failed`."""

    member: Member


@dataclass(frozen=True, slots=True)
class End:
    """Close it, or give up its start; say `died` or `failed`. No call of the pool is in flight.

    Unless the pool itself is closed: then those are stopped.
    """

    member: Member
    reason: str


@dataclass(frozen=True, slots=True)
class Kill:
    """Kill it, whatever it does; say `died`."""

    member: Member
    reason: str


@dataclass(frozen=True, slots=True)
class Ping:
    """Ping it; say `ponged` when it answers."""

    member: Member


@dataclass(frozen=True, slots=True)
class Warn:
    """Tell the user of it."""

    member: Member
    reason: str


@dataclass(frozen=True, slots=True)
class Break:
    """The pool is of no use any more: all calls that wait, and all new ones, raise ``error``."""

    error: BaseException


Action: TypeAlias = Start | End | Kill | Ping | Warn | Break

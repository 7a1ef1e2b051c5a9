"""The core of a pool under random calls, deaths, leases, reloads, sizes and ends, with a model."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)

from forkwire.pool.policy import Health, Recycle, Restart
from forkwire.pool.states import Action, Member, Need, Start, State
from forkwire.pool.supervisor import Phase

from .support_core import DEATH, Desk

restarts = st.builds(
    Restart,
    kind=st.sampled_from(["permanent", "permanent", "transient", "temporary"]),
    intensity=st.sampled_from([0, 3, 1000]),
    backoff=st.sampled_from([0.0, 0.1]),
)
recycles = st.builds(
    Recycle,
    calls=st.none() | st.integers(1, 4),
    age=st.none() | st.just(50.0),
    memory=st.none() | st.just(100),
)
healths = st.builds(
    Health,
    interval=st.none() | st.just(15.0),
    unresponsive=st.sampled_from(["replace", "warn"]),
)
sizes = st.tuples(st.integers(0, 3), st.integers(1, 4)).map(lambda s: (min(s), s[1]))
which = st.integers(0, 99)

# Rounds in which everything goes well until whatever waits must have been served.
ENOUGH: Final = 500


class ModelDesk(Desk):
    """One that watches what it is told."""

    largest = 0  # `most`, or what there was when it was lowered

    def apply(self, actions: Iterable[Action]) -> None:
        super().apply(actions)
        there = len(self.core.members)
        assert there <= self.largest + 1, "more processes than the pool has room for"
        self.largest = max(self.core.most, min(self.largest, there))

    def _start(self, action: Start) -> None:
        assert not self.core.is_over
        super()._start(action)


class Pool(RuleBasedStateMachine):
    """A driver with a queue of calls, and workers that do what the rules say."""

    @initialize(
        size=sizes,
        spares=st.integers(0, 2),
        capacity=st.integers(1, 3),
        lanes=st.integers(1, 3),
        answers=st.booleans(),
        restart=restarts,
        recycle=recycles,
        health=healths,
    )
    def open(
        self, size: tuple[int, int], capacity: int, lanes: int, answers: bool, **options: Any
    ) -> None:
        least, most = size
        lanes = min(capacity, lanes)
        self.desk = ModelDesk(least=least, most=most, idle=20.0, capacity=capacity, **options)
        self.desk.largest = most
        self.core = self.desk.core
        self.core.learn(capacity, lanes, answers=answers)
        self.waits = dict.fromkeys(Need, 0)
        self.flying: list[Member] = []  # one for each call: where it runs
        self.plain: list[Member] = []  # of these, the plain functions
        self.lent: list[Member] = []
        self.ever_lent: set[Member] = set()  # the calls of a lease are not limited
        self.desk.open()

    # -- the driver ---------------------------------------------------------------------------

    def hand_out(self) -> None:
        """Give those that wait whoever has what they need; one is kept for who needs all of it."""
        for need in (Need.ALL, Need.LANE, Need.LOOP):
            while self.waits[need]:
                kept = 1 if self.waits[Need.ALL] and need is not Need.ALL else 0
                member = self.core.pick(need, kept=kept)
                if member is None:
                    break
                self.check_pick(member, need)
                self.waits[need] -= 1
                self.give(member, need)
                self.tell_waiting()
        if self.core.is_over and any(self.waits.values()):
            self.waits = dict.fromkeys(Need, 0)
            self.tell_waiting()

    def give(self, member: Member, need: Need) -> None:
        if need is Need.ALL:
            self.lent.append(member)
            self.ever_lent.add(member)
            self.desk.apply(self.core.lease(member, self.desk.now))
            return
        self.flying.append(member)
        if need is Need.LANE:
            self.plain.append(member)
        self.desk.begin(member, plain=need is Need.LANE)

    def tell_waiting(self) -> None:
        loop, plain, alone = (self.waits[need] for need in (Need.LOOP, Need.LANE, Need.ALL))
        self.desk.wait(loop, plain=plain, alone=alone)

    def check_pick(self, member: Member, need: Need) -> None:
        """It has what is needed, and no more calls run than may, unless the pool was larger."""
        core = self.core
        assert member.state is State.READY
        assert not member.leased
        assert member.in_flight < (1 if need is Need.ALL else core.capacity)
        assert need is not Need.LANE or member.plain < core.lanes
        others = [each for each in core.members.values() if not each.leased]
        room = core.most - sum(each.leased for each in core.members.values())
        assert sum(min(core.capacity, m.in_flight) for m in others) < room * core.capacity
        if need is Need.LANE:
            assert sum(min(core.lanes, m.plain) for m in others) < room * core.lanes

    def lose_calls(self, member: Member) -> None:
        """They end with their worker."""
        for _ in range(self.flying.count(member)):
            self.end_call(member, answered=False)

    def end_call(self, member: Member, **how: Any) -> None:
        self.flying.remove(member)
        plain = member in self.plain
        if plain:
            self.plain.remove(member)
        self.desk.finish(member, plain=plain, **how)

    # -- calls --------------------------------------------------------------------------------

    @rule(count=st.integers(1, 4), need=st.sampled_from([Need.LOOP, Need.LANE, Need.ALL]))
    def call(self, count: int, need: Need) -> None:
        if not self.core.is_over:  # also while it drains: what runs may call
            self.waits[need] += 1 if need is Need.ALL else count
            self.tell_waiting()
            self.hand_out()

    @precondition(lambda self: any(self.waits.values()))
    @rule(index=which)
    def give_up_waiting(self, index: int) -> None:
        needs = [need for need, count in self.waits.items() if count]
        self.waits[needs[index % len(needs)]] -= 1
        self.tell_waiting()

    @precondition(lambda self: self.flying)
    @rule(index=which, memory=st.sampled_from([None, 1, 100]))
    def finish(self, index: int, memory: int | None = None) -> None:
        self.end_call(self.flying[index % len(self.flying)], memory=memory)
        self.hand_out()

    @precondition(lambda self: self.lent)
    @rule(index=which)
    def call_leased(self, index: int) -> None:
        member = self.lent[index % len(self.lent)]
        self.flying.append(member)
        self.desk.begin(member)

    @precondition(lambda self: self.lent)
    @rule(index=which, fresh=st.booleans())
    def release(self, index: int, fresh: bool) -> None:
        member = self.lent.pop(index % len(self.lent))
        self.lose_calls(member)  # the block that holds it has ended, and its calls with it
        self.desk.release(member, fresh=fresh)
        self.hand_out()

    # -- workers ------------------------------------------------------------------------------

    @precondition(lambda self: self.desk.starting)
    @rule(index=which)
    def start(self, index: int) -> None:
        self.desk.start(self.desk.starting[index % len(self.desk.starting)])
        self.hand_out()

    @precondition(lambda self: self.desk.starting)
    @rule(index=which)
    def fail(self, index: int) -> None:
        self.desk.fail(self.desk.starting[index % len(self.desk.starting)])
        self.hand_out()

    @precondition(lambda self: self.desk.running)
    @rule(
        index=which,
        error=st.sampled_from([None, DEATH, DEATH]),
        fault=st.booleans(),
        told_first=st.booleans(),
    )
    def die(self, index: int, error: BaseException | None, fault: bool, told_first: bool) -> None:
        """``told_first``: its calls end before the supervisor hears of its death."""
        member = self.desk.running[index % len(self.desk.running)]
        if told_first:
            self.lose_calls(member)
        self.desk.die(member, error, fault=fault)
        self.lose_calls(member)
        self.hand_out()

    @precondition(lambda self: self.desk.ending or self.desk.killed)
    @rule(index=which)
    def end(self, index: int) -> None:
        members = [*self.desk.ending, *self.desk.killed]
        member = members[index % len(members)]
        self.lose_calls(member)
        if member in self.desk.killed:
            self.desk.die(member)
        else:
            self.desk.end(member)
        self.hand_out()

    @precondition(lambda self: self.desk.pings)
    @rule(index=which)
    def pong(self, index: int) -> None:
        self.desk.pong(self.desk.pings[index % len(self.desk.pings)])

    @rule(seconds=st.sampled_from([0.05, 1.0, 12.0, 30.0]))
    def advance(self, seconds: float) -> None:
        self.desk.advance(seconds)
        self.hand_out()

    # -- what a user asks for -----------------------------------------------------------------

    @precondition(lambda self: self.core.phase is Phase.OPEN and not self.core.reloading)
    @rule()
    def reload(self) -> None:
        generation = self.core.generation
        self.desk.apply(self.core.reload(self.desk.now))
        assert self.core.generation == generation

    @rule(size=sizes)
    def resize(self, size: tuple[int, int]) -> None:
        self.desk.largest = max(self.desk.largest, size[1])
        self.desk.apply(self.core.resize(*size, self.desk.now))
        self.hand_out()

    @rule(chance=st.integers(0, 5))
    def drain(self, chance: int) -> None:
        if not chance:
            self.desk.apply(self.core.drain(self.desk.now))
            self.hand_out()

    @rule(chance=st.integers(0, 5))
    def close(self, chance: int) -> None:
        if not chance:
            self.desk.apply(self.core.close(self.desk.now))
            self.hand_out()

    @rule()
    def let_all_go_well(self) -> None:
        """Workers start, calls end, what is to end ends: then nothing waits any more."""
        for _ in range(ENOUGH):
            if not self.is_busy():
                break
            self.go_well()
        assert not any(self.waits.values())
        assert not self.flying
        if self.core.phase is Phase.OPEN:
            self.check_size()

    def is_busy(self) -> bool:
        desk = self.desk
        work = self.flying, self.lent, self.core.reloading
        return any((*self.waits.values(), *work, desk.starting, desk.ending, desk.killed))

    def go_well(self) -> None:
        self.desk.start_all()
        self.hand_out()
        while self.lent:
            self.release(0, fresh=False)
        while self.flying:
            self.finish(0)
        for member in [*self.desk.pings]:
            self.desk.pong(member)
        while self.desk.ending or self.desk.killed:
            self.end(0)
        self.advance(5.1)

    def check_size(self) -> None:
        """No place that may be filled is empty."""
        core = self.core
        assert not core.reloading
        ready = [m for m in core.members.values() if m.state is State.READY]
        coming = [m for m in core.members.values() if m.state in (State.WAITING, State.STARTING)]
        places = core.least - core._given_up
        assert places <= len(ready) + len(coming) <= core.most + 1

    # -- always -------------------------------------------------------------------------------

    @invariant()
    def members_and_calls_agree(self) -> None:
        there = {*self.desk.starting, *self.desk.running}
        for member in self.core.members.values():
            assert (member in there) != (member.state is State.WAITING)
            assert member.in_flight == self.flying.count(member)
            assert member.plain == self.plain.count(member)
            assert member.leased == (member in self.lent)
        assert there <= {*self.core.members.values()}
        assert self.core.idle == (
            not any(self.waits.values()) and not any(m.works for m in self.core.members.values())
        )

    @invariant()
    def only_who_rests_is_ended(self) -> None:
        for member in self.desk.ending:
            assert member.state is State.ENDING
            assert self.core.phase is Phase.CLOSED or not member.works
        for member in self.core.members.values():
            if member.state is State.DRAINING:
                assert member.works, "nobody will end it"
            assert member.begun <= member.most_calls or member in self.ever_lent

    @invariant()
    def who_is_over_has_said_so(self) -> None:
        assert (self.desk.broken is None) == (self.core.broken is None)
        if self.core.is_over:
            assert self.core.pick() is None
            assert not any(
                m.state in (State.WAITING, State.READY) for m in self.core.members.values()
            )
        if not self.core.members:
            assert self.core.settled
            assert self.core.next_tick() is None

    @invariant()
    def successors_are_paired(self) -> None:
        for member in self.core.members.values():
            if member.successor is not None:
                assert member.successor.predecessor is member
                assert member.state is State.READY
            if member.predecessor is not None:
                assert member.predecessor.successor is member
                assert member.state in (State.WAITING, State.STARTING)

    def teardown(self) -> None:
        """Whatever happened: after the close all is gone."""
        if hasattr(self, "desk"):
            self.let_all_go_well()
            self.desk.apply(self.core.close(self.desk.now))
            for _ in range(len(self.core.members)):
                self.end(0)
            assert self.core.settled


Pool.TestCase.settings = settings(
    max_examples=150, stateful_step_count=60, deadline=None, report_multiple_bugs=False
)
TestPool = pytest.mark.slow(Pool.TestCase)

"""What the core of a pool decides, rule by rule: with made-up workers and a clock by hand."""

from __future__ import annotations

from typing import Any, get_args

import pytest

from forkwire.errors import PoolBrokenError
from forkwire.pool.policy import Recycle, Restart
from forkwire.pool.states import TABLE, Action, Event, Need, State
from forkwire.pool.supervisor import Phase

from .support_core import DEATH, NO_PINGS, Desk, opened

AT_ONCE = Restart(backoff=0)


def test_the_tables_are_whole() -> None:
    """Each state is in the table and can be reached; each kind of action is known to the desk."""
    assert set(TABLE) == set(State)
    reached = {state for row in TABLE.values() for state in row.values()}
    assert reached | {State.WAITING} == set(State)
    assert {event for row in TABLE.values() for event in row} == set(Event)
    assert {kind.__name__ for kind in get_args(Action)} == {
        "Start", "End", "Kill", "Ping", "Warn", "Break",
    }  # fmt: skip


@pytest.mark.parametrize("tell", ["started", "failed", "died"])
def test_what_cannot_happen_is_a_bug(tell: str) -> None:
    """What the table does not allow is an assertion, not a guess."""
    desk = opened(least=1, most=1)
    (member,) = desk.running
    desk.apply(desk.core.close(desk.now))
    desk.end_all()
    arguments: dict[str, tuple[Any, ...]] = {"started": (), "failed": (DEATH,), "died": (DEATH,)}
    with pytest.raises(AssertionError):
        getattr(desk.core, tell)(member, *arguments[tell], desk.now)


# -- the start --------------------------------------------------------------------------------


def test_the_first_workers_start_together() -> None:
    """Opening starts the least number at once, and the pool is open when all are ready."""
    desk = Desk(least=3, most=5)
    desk.open()
    assert len(desk.starting) == 3
    desk.start()
    desk.start()
    assert desk.core.phase is Phase.OPENING
    desk.start()
    assert desk.core.phase.name == "OPEN"
    assert not desk.starting


def test_a_first_start_that_fails_breaks_the_pool_with_its_error() -> None:
    """Not restarted, and not wrapped: whoever opens the pool gets what the initializer raised."""
    desk = Desk(least=2, most=2)
    desk.open()
    desk.start()
    desk.fail()
    assert desk.broken is DEATH
    assert desk.core.broken is DEATH
    assert set(desk.ending) == set(desk.running)
    desk.end_all()
    assert desk.core.settled


def test_a_pool_may_begin_with_no_worker() -> None:
    """It is open at once; the first call starts a worker, and if that fails, all is over."""
    desk = opened(least=0, most=2)
    assert desk.core.phase is Phase.OPEN
    assert not desk.core.members
    desk.wait(1)
    assert len(desk.starting) == 1
    desk.fail()
    assert desk.broken is DEATH


# -- which worker -----------------------------------------------------------------------------


def test_the_least_busy_is_picked() -> None:
    """Calls spread over all workers before any has a second one; with no room there is nobody."""
    desk = opened(least=3, most=3, capacity=2)
    first = [desk.begin() for _ in range(3)]
    assert len(set(first)) == 3
    second = [desk.begin() for _ in range(3)]
    assert len(set(second)) == 3
    assert desk.core.pick() is None
    desk.finish(first[1])
    assert desk.core.pick() is first[1]


def test_of_equals_the_least_recently_used_is_picked() -> None:
    """In a pool of fixed size all workers have their turn."""
    desk = opened(least=3, most=3)
    turns = []
    for _ in range(6):
        desk.advance(1)
        turns.append(desk.begin())
        desk.finish(turns[-1])
    assert turns[:3] == turns[3:]
    assert len(set(turns)) == 3


def test_beyond_the_least_number_the_most_recently_used_is_picked() -> None:
    """So that the others become idle and can end."""
    desk = opened(least=1, most=3)
    busy = desk.begin()
    desk.wait(2)
    desk.start_all()
    desk.finish(busy)
    turns = set()
    for _ in range(4):
        desk.advance(1)
        member = desk.begin()
        desk.finish(member)
        turns.add(member)
    assert len(turns) == 1


def test_a_lent_worker_has_no_other_calls() -> None:
    """A lease takes a worker that does nothing, and nobody else gets it until it is given back."""
    desk = opened(least=2, most=2, capacity=8)
    busy = desk.begin()
    lent = desk.lease()
    assert lent is not busy
    assert desk.core.pick(Need.ALL) is None
    assert desk.begin() is busy
    desk.begin(lent)
    desk.finish(lent)
    assert desk.core.pick() is busy
    desk.release(lent)
    assert desk.core.pick() is lent


def test_a_lease_may_leave_a_worker_that_nobody_is_to_see() -> None:
    """Given back so, it is ended and another started in its place."""
    desk = opened(least=1, most=1)
    lent = desk.lease()
    desk.release(lent, fresh=True)
    assert desk.core.pick() is None
    assert lent in desk.ending
    assert len(desk.starting) == 1


def test_no_more_work_at_a_time_than_the_pool_is_large() -> None:
    """While a worker drains, its successor waits: with one worker no two calls run at once."""
    desk = opened(least=1, most=1, recycle=Recycle(calls=1))
    old = desk.begin()
    new = desk.start()
    assert desk.core.pick() is None
    desk.finish(old)
    assert desk.core.pick() is new


def test_what_drains_leaves_room_for_what_may_run_beside() -> None:
    """A call that never ends on a worker that is replaced holds up no more than it did there."""
    desk = opened(least=1, most=1, capacity=3)
    old = desk.begin()
    desk.apply(desk.core.reload(desk.now))
    new = desk.start()
    assert [desk.begin(), desk.begin()] == [new, new]
    assert desk.core.pick() is None
    desk.finish(old)
    assert desk.core.pick() is new


def mixed(size: int, lanes: int = 1) -> Desk:
    """Workers of a service with plain and with async functions."""
    desk = opened(least=size, most=size)
    desk.core.learn(8, lanes, answers=True)
    return desk


def test_a_plain_function_goes_where_the_fewest_of_its_kind_run() -> None:
    """However many async ones are there; those go where the fewest of all are."""
    desk = mixed(2)
    computing = desk.begin(plain=True)
    waiting = desk.begin()
    assert waiting is not computing
    desk.begin(waiting)
    desk.begin(waiting)
    assert desk.core.pick() is computing
    assert desk.begin(plain=True) is waiting
    assert desk.core.pick(Need.LANE) is None
    desk.finish(computing, plain=True)
    assert desk.core.pick(Need.LANE) is computing


def test_plain_functions_need_room_for_a_call_too() -> None:
    """A worker that has as many as it may gets no more, though a thread of it is free."""
    desk = mixed(1)
    for _ in range(8):
        desk.begin()
    assert desk.core.pick(Need.LANE) is None


def test_workers_are_kept_for_who_waits_for_all_of_one() -> None:
    """So many of the least busy get no calls."""
    desk = mixed(3)
    busy = [desk.begin() for _ in range(3)]
    desk.begin(busy[1])
    desk.begin(busy[2])
    desk.begin(busy[2])
    assert desk.core.pick() is busy[0]
    assert desk.core.pick(kept=1) is busy[1]
    assert desk.core.pick(kept=2) is busy[2]
    assert desk.core.pick(kept=3) is None
    assert desk.core.pick(Need.LANE, kept=2) is busy[2]


# -- how many ---------------------------------------------------------------------------------


def test_who_waits_for_all_of_a_worker_starts_one() -> None:
    """Though the others have room for more calls."""
    desk = opened(least=1, most=3, capacity=8)
    desk.wait(0, alone=1)
    assert not desk.starting
    desk.begin()
    desk.wait(0, alone=0)
    desk.wait(0, alone=1)
    assert len(desk.starting) == 1
    desk.wait(0, alone=2)
    assert len(desk.starting) == 2


def test_plain_functions_that_wait_start_workers() -> None:
    """Though the others have room for async ones."""
    desk = opened(least=1, most=4)
    desk.core.learn(8, 1, answers=True)
    desk.begin(plain=True)
    desk.wait(0, plain=2)
    assert len(desk.starting) == 2


def test_calls_that_wait_start_workers() -> None:
    """As many as have room for them, up to the most."""
    desk = opened(least=1, most=4, capacity=2)
    desk.begin()
    desk.begin()
    desk.wait(1)
    assert len(desk.starting) == 1
    desk.wait(2)
    assert len(desk.starting) == 1
    desk.wait(3)
    assert len(desk.starting) == 2
    desk.wait(99)
    assert len(desk.starting) == 3


def test_spares_are_kept_ready() -> None:
    """A busy worker has another started, so that the next call need not wait."""
    desk = opened(least=0, most=3, spares=1)
    assert len(desk.running) == 1
    first = desk.begin()
    assert len(desk.starting) == 1
    desk.start()
    desk.begin()
    desk.start()
    desk.begin()
    assert not desk.starting
    desk.finish(first)
    assert len(desk.running) == 3


def test_idle_workers_end() -> None:
    """One beyond the least number and the spares that does nothing for long enough is ended."""
    desk = opened(least=1, most=3, idle=10)
    desk.begin()
    desk.wait(2)
    desk.start_all()
    desk.wait(0)
    busy = desk.begin()
    desk.advance(9)
    assert not desk.ending
    desk.finish(busy)
    desk.advance(2)
    assert len(desk.ending) == 1
    assert "10 s" in next(iter(desk.ending.values()))
    desk.advance(10)
    assert len(desk.ending) == 2
    desk.end_all()
    desk.advance(100)
    assert len(desk.running) == 1
    assert not desk.ending


def test_a_pool_that_is_made_larger_grows() -> None:
    """At once, to its new least number."""
    desk = opened(least=1, most=1)
    desk.apply(desk.core.resize(3, 4, desk.now))
    assert len(desk.starting) == 2
    desk.start()
    assert not desk.core.is_filled
    desk.start()
    assert desk.core.is_filled


def test_places_that_stay_empty_are_not_waited_for() -> None:
    """A temporary worker that cannot start will never be ready, nor will any when all drains."""
    desk = opened(least=1, most=1, restart=Restart(kind="temporary"))
    desk.apply(desk.core.resize(2, 2, desk.now))
    desk.fail()
    assert desk.core.is_filled
    other = opened(least=1, most=1)
    other.apply(other.core.resize(2, 2, other.now))
    other.begin()
    other.apply(other.core.drain(other.now))
    assert other.core.is_filled


def test_a_pool_that_is_made_smaller_lets_the_idle_go_first() -> None:
    """What is busy drains only if there are not enough others; no call is lost."""
    desk = opened(least=3, most=3)
    busy = desk.begin()
    desk.apply(desk.core.resize(1, 1, desk.now))
    assert len(desk.ending) == 2
    assert busy not in desk.ending
    other = opened(least=2, most=2)
    both = [other.begin(), other.begin()]
    other.apply(other.core.resize(1, 1, other.now))
    (draining,) = [m for m in both if m.state is State.DRAINING]
    assert not other.ending
    other.finish(draining)
    assert set(other.ending) == {draining}


# -- deaths -----------------------------------------------------------------------------------


def test_a_dead_worker_is_replaced_after_a_backoff() -> None:
    """The wait is a random part of 0.1 s, then of 0.2 s, and so on, up to the longest."""
    desk = opened(least=1, most=1, restart=Restart(longest_backoff=0.4))
    for longest in (0.1, 0.2, 0.4, 0.4):
        desk.die(desk.running[0])
        when = desk.core.next_tick()
        assert when is not None
        assert desk.now < when <= desk.now + longest
        desk.advance(longest)
        desk.start()
    assert (desk.core.deaths, desk.core.restarts) == (4, 4)


def test_a_call_that_ends_well_makes_the_backoff_short_again() -> None:
    """Its worker answered, so workers can; a call that ended with its worker shows nothing."""
    desk = opened(least=1, most=1, restart=Restart(backoff=1, longest_backoff=1000))
    for answered in (False, False, True):
        for _ in range(8):
            member = desk.begin()
            desk.die(member)
            desk.finish(member, answered=False)
            desk.advance(1000)
            desk.start()
        in_a_row = desk.core._restarts.in_a_row
        desk.finish(desk.begin(), answered=answered)
        assert desk.core._restarts.in_a_row == (0 if answered else in_a_row)


def test_too_many_deaths_in_a_time_break_the_pool() -> None:
    """One more than the intensity within the period: it gives up, and says what the last was."""
    desk = opened(least=1, most=1, restart=Restart(intensity=3, period=60, backoff=0))
    for _ in range(3):
        desk.finish(desk.begin())
        desk.die(desk.running[0])
        desk.start()
    last = RuntimeError("the last")
    desk.die(desk.running[0], last)
    assert isinstance(desk.broken, PoolBrokenError)
    assert desk.broken.__cause__ is last
    assert "3 times in 60 s" in str(desk.broken)
    assert "the last" in str(desk.broken)
    assert not desk.starting
    assert desk.core.settled


def test_deaths_that_are_far_apart_are_borne() -> None:
    """The period slides: any number of deaths, if few at a time and calls end well between them."""
    desk = opened(least=1, most=1, restart=Restart(intensity=2, period=10, backoff=0))
    for _ in range(20):
        desk.finish(desk.begin())
        desk.die(desk.running[0])
        desk.start()
        desk.advance(5.1)
    assert desk.broken is None


def test_failures_in_a_row_break_the_pool_however_slow() -> None:
    """No call waits for ever for a worker that never starts, though the backoff is long."""
    desk = opened(least=1, most=1, restart=Restart(intensity=5, period=1, longest_backoff=100))
    desk.die(desk.running[0])
    for _ in range(5):
        desk.advance(100)
        desk.fail()
    assert isinstance(desk.broken, PoolBrokenError)


def test_a_worker_that_the_pool_killed_for_a_call_is_no_fault() -> None:
    """It is replaced at once, without a backoff, and not counted."""
    desk = opened(least=1, most=1, restart=Restart(intensity=0))
    for _ in range(5):
        desk.die(desk.running[0], fault=False)
        desk.start()
    assert desk.broken is None
    assert desk.core.deaths == 0


def test_permanent_workers_are_replaced_after_a_good_end() -> None:
    """Whatever the end, if nobody asked for it."""
    desk = opened(least=1, most=1, restart=AT_ONCE)
    desk.die(desk.running[0], None)
    assert len(desk.starting) == 1


def test_transient_workers_are_replaced_after_a_bad_end_only() -> None:
    """One that ends well leaves its place empty; when all have, the pool is of no use."""
    desk = opened(least=2, most=2, restart=Restart(kind="transient", backoff=0))
    desk.die(desk.running[0], None)
    assert not desk.starting
    desk.die(desk.running[0], DEATH)
    desk.start()
    desk.die(desk.running[0], None)
    assert isinstance(desk.broken, PoolBrokenError)
    assert "status 0" in str(desk.broken)


def test_temporary_workers_are_never_replaced() -> None:
    """The pool gets smaller with each death, does not grow again for calls, and breaks at last."""
    desk = opened(least=2, most=2, restart=Restart(kind="temporary"))
    desk.die(desk.running[0])
    desk.begin()
    desk.wait(5)
    assert not desk.starting
    desk.die(desk.running[0])
    assert isinstance(desk.broken, PoolBrokenError)
    assert desk.broken.__cause__ is DEATH


def test_temporary_workers_are_recycled_all_the_same() -> None:
    """An end that the pool asked for leaves no place empty."""
    desk = opened(least=1, most=1, restart=Restart(kind="temporary"), recycle=Recycle(calls=1))
    for _ in range(3):
        member = desk.begin()
        desk.finish(member)
        desk.end_all()
        desk.start()
    assert desk.broken is None


def test_a_broken_pool_lets_the_calls_in_flight_end() -> None:
    """Workers that still run some drain; nothing is started."""
    desk = opened(least=2, most=2, restart=Restart(intensity=0))
    busy = desk.begin()
    (other,) = [m for m in desk.running if m is not busy]
    desk.die(other)
    assert desk.broken is not None
    assert busy not in desk.ending
    assert desk.core.pick() is None
    desk.finish(busy)
    assert set(desk.ending) == {busy}
    desk.end_all()
    assert desk.core.settled


# -- recycling --------------------------------------------------------------------------------


def test_recycling_by_calls_is_exact() -> None:
    """No worker begins more calls than it may; its successor starts while the last one runs."""
    desk = opened(least=1, most=1, recycle=Recycle(calls=3))
    old = desk.running[0]
    for _ in range(2):
        desk.finish(desk.begin(old))
    desk.begin(old)
    assert old.state is State.DRAINING
    assert len(desk.starting) == 1
    desk.start()
    desk.finish(old)
    assert "3 calls" in desk.ending[old]
    assert desk.core.recycled == 1


def test_recycling_by_calls_is_spread() -> None:
    """Of many workers not all reach the limit at once, and none goes beyond it."""
    desk = opened(least=50, most=50, recycle=Recycle(calls=100))
    limits = {member.most_calls for member in desk.running}
    assert len(limits) > 5
    assert 90 <= min(limits) <= max(limits) <= 100


def test_recycling_by_age_starts_the_successor_first() -> None:
    """The old one takes calls until the new one is ready, then drains; one at a time."""
    desk = opened(least=2, most=2, recycle=Recycle(age=100))
    desk.advance(100)
    assert len(desk.starting) == 1
    assert not desk.ending
    assert desk.core.pick() is not None
    desk.start()
    assert len(desk.ending) == 1
    assert not desk.starting
    desk.end_all()
    assert len(desk.starting) == 1
    desk.start()
    desk.end_all()
    assert len(desk.running) == 2
    assert desk.core.recycled == 2


def test_recycling_by_memory() -> None:
    """A worker that is too large after a call is replaced."""
    desk = opened(least=1, most=1, recycle=Recycle(memory="1M"))
    desk.finish(desk.begin(), memory=2**20 - 1)
    assert not desk.starting
    desk.finish(desk.begin(), memory=2**20)
    new = desk.start()
    assert "1048576 bytes" in next(iter(desk.ending.values()))
    assert desk.core.pick() is new


def test_if_the_successor_cannot_start_the_old_one_goes_on() -> None:
    """It is tried again, after a backoff, as often as policy allows."""
    desk = opened(least=1, most=1, recycle=Recycle(age=100))
    old = desk.running[0]
    desk.advance(100)
    desk.fail()
    assert desk.core.pick() is old
    desk.advance(0.1)
    desk.start()
    assert set(desk.ending) == {old}


def test_if_the_old_one_dies_first_its_successor_takes_its_place() -> None:
    """No third one is started."""
    desk = opened(least=1, most=1, recycle=Recycle(age=100), restart=AT_ONCE)
    desk.advance(100)
    desk.die(desk.running[0])
    assert len(desk.starting) == 1
    desk.start()
    assert len(desk.core.members) == 1


# -- reload -----------------------------------------------------------------------------------


def test_a_reload_replaces_all_one_after_the_other() -> None:
    """The first new one proves the new code; there is never more than one worker too many."""
    desk = opened(least=3, most=3)
    old = list(desk.running)
    desk.apply(desk.core.reload(desk.now))
    while desk.core.reloading:
        assert len(desk.core.members) <= 4
        assert desk.core.pick() is not None
        if desk.starting:
            desk.start()
        desk.end_all()
    assert len(desk.running) == 3
    assert not set(old) & set(desk.running)
    assert {member.generation for member in desk.running} == {1}
    assert desk.core.reload_error is None
    assert desk.core.recycled == 0


def test_a_reload_whose_code_does_not_start_changes_nothing() -> None:
    """The old ones go on, none was ended, no failure is counted, and the error can be read."""
    desk = opened(least=2, most=2, restart=Restart(intensity=0))
    old = list(desk.running)
    desk.apply(desk.core.reload(desk.now))
    desk.fail()
    assert not desk.core.reloading
    assert desk.core.reload_error is DEATH
    assert desk.running == old
    assert not desk.ending
    assert desk.broken is None
    assert desk.core.generation == 0
    desk.apply(desk.core.reload(desk.now))
    assert desk.core.reload_error is None
    desk.start()
    assert desk.core.generation == 1


def test_calls_in_flight_at_a_reload_end() -> None:
    """Their worker drains; those that begin meanwhile run on new code."""
    desk = opened(least=1, most=1)
    old = desk.begin()
    desk.apply(desk.core.reload(desk.now))
    new = desk.start()
    assert not desk.core.reloading
    assert old.state is State.DRAINING
    desk.finish(old)
    assert desk.core.pick() is new


def test_workers_that_wait_or_start_at_a_reload_become_new_ones() -> None:
    """No worker of old code is ready after the new code was proved."""
    desk = opened(least=3, most=3, restart=Restart(backoff=100, longest_backoff=100))
    desk.die(desk.running[0])
    desk.apply(desk.core.reload(desk.now))
    probe = desk.starting[0]
    desk.start(probe)
    while desk.core.reloading or desk.starting or desk.ending:
        desk.end_all()
        desk.advance(100)
        desk.start_all()
    assert {member.generation for member in desk.running} == {1}
    assert len(desk.running) == 3


def test_a_reload_ends_though_workers_are_old_at_once() -> None:
    """The new ones are due again before the old ones were replaced: those have their turn first."""
    desk = opened(least=3, most=3, recycle=Recycle(age=1))
    desk.apply(desk.core.reload(desk.now))
    for _ in range(8):
        desk.advance(2)
        desk.start_all()
        desk.end_all()
    assert not desk.core.reloading


# -- the end ----------------------------------------------------------------------------------


def test_draining_ends_all_once_nothing_waits() -> None:
    """What is queued is still given to workers, which are replaced meanwhile if they die."""
    desk = opened(least=2, most=2, restart=AT_ONCE)
    members = [desk.begin(), desk.begin()]
    desk.wait(1)
    desk.apply(desk.core.drain(desk.now))
    assert not desk.ending
    desk.die(members[0])
    desk.finish(members[0], answered=False)
    desk.start()
    desk.begin()
    desk.wait(0)
    assert not desk.core.idle
    for member in [m for m in desk.running if m.in_flight]:
        desk.finish(member)
    assert desk.core.idle
    desk.end_all()
    assert desk.core.settled
    assert desk.core.is_over


def test_what_is_called_while_all_drains_is_served() -> None:
    """A call that a running one makes has a worker started if there is none any more."""
    desk = opened(least=1, most=1)
    busy = desk.begin()
    desk.apply(desk.core.drain(desk.now))
    desk.wait(1)
    new = desk.start()
    assert desk.core.pick() is None
    desk.finish(busy)
    assert desk.begin() is new
    desk.wait(0)
    desk.finish(new)
    desk.end_all()
    assert desk.core.is_over


def test_closing_ends_all_at_once() -> None:
    """Busy, lent, starting or waiting: each is told to end once, and none is started again."""
    desk = opened(least=3, most=4, restart=Restart(backoff=100, longest_backoff=100))
    desk.die(desk.running[0])
    desk.begin()
    desk.lease()
    desk.wait(9)
    desk.apply(desk.core.close(desk.now))
    assert set(desk.ending) == set(desk.running) | set(desk.starting)
    desk.apply(desk.core.close(desk.now))
    desk.end_all()
    assert desk.core.settled
    assert desk.core.next_tick() is None


def test_a_start_that_was_given_up_may_succeed_all_the_same() -> None:
    """It is ended then, and takes no call."""
    desk = Desk(least=1, most=1, health=NO_PINGS)
    desk.open()
    desk.apply(desk.core.close(desk.now))
    member = desk.start()
    assert desk.core.pick() is None
    desk.end(member)
    assert desk.core.settled

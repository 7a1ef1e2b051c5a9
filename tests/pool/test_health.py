"""Whom a pool pings, and whom it takes for hung: with made-up workers and a clock by hand."""

from __future__ import annotations

from typing import Any

from forkwire.pool.policy import Health

from .support_core import Desk, opened


def watched(*, answers: bool = False, **options: Any) -> Desk:
    options.setdefault("health", Health(interval=15, timeout=10))
    desk = opened(least=1, most=1, **options)
    desk.core.learn(1, 1, answers=answers)
    return desk


def test_idle_workers_are_pinged_each_interval() -> None:
    """Fifteen seconds after it was ready, and after each pong; one ping at a time."""
    desk = watched()
    (member,) = desk.running
    for _ in range(3):
        desk.advance(14.9)
        assert not desk.pings
        desk.advance(0.2)
        assert desk.pings == [member]
        desk.pong(member)


def test_no_answer_in_time_kills() -> None:
    """With the reason; it counts as a death, and the worker is replaced."""
    desk = watched()
    (member,) = desk.running
    desk.advance(24)
    assert not desk.killed
    desk.advance(2)
    assert desk.killed[member] == "did not answer a ping for 10 s"
    assert desk.core.pick() is None
    desk.die(member)
    assert desk.core.deaths == 1
    desk.advance(1)
    assert len(desk.starting) == 1


def test_it_may_only_be_warned_of() -> None:
    """Each timeout anew, and the worker goes on."""
    desk = watched(health=Health(interval=15, timeout=10, unresponsive="warn"))
    desk.advance(36)
    assert desk.warnings == ["did not answer a ping for 10 s"] * 2
    assert not desk.killed
    assert desk.core.pick() is desk.running[0]


def test_without_an_interval_nobody_is_pinged() -> None:
    """And nothing is ever due."""
    desk = watched(health=Health(interval=None))
    assert desk.core.next_tick() is None


def test_a_busy_plain_worker_is_not_judged() -> None:
    """It cannot answer while it runs a call, however long; once that ended, it has to."""
    desk = watched(answers=False)
    member = desk.begin()
    desk.advance(1000)
    assert not desk.killed
    desk.finish(member)
    desk.advance(9)
    assert not desk.killed
    desk.advance(16)
    assert member in desk.killed


def test_a_busy_worker_with_a_loop_is_judged() -> None:
    """It can answer while it runs calls."""
    desk = watched(answers=True)
    member = desk.begin()
    desk.advance(26)
    assert member in desk.killed


def test_a_call_that_ends_is_a_sign_of_life() -> None:
    """No ping is sent to a worker whose calls end within the interval."""
    desk = watched()
    for _ in range(10):
        desk.advance(14)
        desk.finish(desk.begin())
    assert not desk.pings

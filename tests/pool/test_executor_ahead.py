"""Calls that are sent ahead to busy workers: each runs once, and waits for no other."""

from __future__ import annotations

import os
import random
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import Future, wait
from pathlib import Path
from typing import Any

import pytest

import forkwire
from forkwire import ProcessExecutor
from forkwire.pool import executor_member
from forkwire.pool.executor_claims import Claiming, Claims

from . import support_executor as there


@pytest.fixture(scope="module")
def executor() -> Iterator[ProcessExecutor]:
    """Two workers, replaced where a test kills them."""
    with ProcessExecutor(2) as executor:
        yield executor


@pytest.fixture
def noted(tmp_path: Path) -> Path:
    """Where calls note that they ran."""
    path = tmp_path / "noted"
    path.touch()
    return path


def numbers(noted: Path) -> list[int]:
    return sorted(map(int, noted.read_text().split()))


def ends(futures: list[Future[Any]]) -> None:
    """All of them, in the end."""
    assert not wait(futures, there.LIMIT).not_done


# -- claims ---------------------------------------------------------------------------------------


@pytest.fixture
def claims() -> Iterator[Claims]:
    made = Claims()
    yield made
    made.close()


def test_a_number_is_claimed_or_taken_back(claims: Claims) -> None:
    """Never both; those that were offered later can be claimed all the same."""
    claiming = Claiming(claims.path)
    assert claiming.works
    for number in (1, 2, 3):
        claims.offer(number)
    assert claiming.claim(1)
    assert claims.take_back() == {2, 3}
    assert claims.take_back() == set()
    claims.offer(4)
    assert [claiming.claim(number) for number in (2, 3, 4)] == [False, False, True]
    os.close(claiming._fd)


def test_a_number_that_was_never_sent_is_in_nobodys_way(claims: Claims) -> None:
    """A call that could not be sent after all."""
    claiming = Claiming(claims.path)
    claims.offer(1)
    claims.offer(2)
    assert claiming.claim(2)
    os.close(claiming._fd)


def test_both_sides_at_once_share_all_numbers(claims: Claims) -> None:
    """Each is one's or the other's."""
    claiming = Claiming(claims.path)
    taken: set[int] = set()
    over = threading.Event()

    def take() -> None:
        while not over.is_set():
            taken.update(claims.take_back())

    thread = threading.Thread(target=take)
    thread.start()
    claimed = set()
    for number in range(1, 3001):
        claims.offer(number)
        if claiming.claim(number):
            claimed.add(number)
    over.set()
    thread.join()
    assert not claimed & taken
    assert claimed | taken == {*range(1, 3001)}
    os.close(claiming._fd)


def test_where_nothing_can_be_claimed_all_may_begin() -> None:
    """Calls are not sent ahead then."""
    claiming = Claiming("/nowhere")
    assert not claiming.works
    assert claiming.claim(7)


# -- calls ----------------------------------------------------------------------------------------


def test_short_calls_are_sent_ahead_and_run_once(executor: ProcessExecutor, noted: Path) -> None:
    """In the order in which they were submitted, where there is one worker."""
    futures = [executor.submit(there.note, str(noted), n) for n in range(2000)]
    most = 0
    while not futures[-1].done():
        members = list(executor._engine._members)
        most = max([most, *(member.in_flight for member in members)])
    ends(futures)
    assert [future.result() for future in futures] == list(range(2000))
    assert numbers(noted) == list(range(2000))
    assert most > 1


def test_no_call_waits_behind_a_long_one(executor: ProcessExecutor, tmp_path: Path) -> None:
    """What was sent ahead of knowing how long it takes is run by the other worker."""
    for turn in range(10):
        go = tmp_path / f"go {turn}"
        first = [executor.submit(there.square, n) for n in range(50)]
        held = executor.submit(there.hold, str(tmp_path / "begun"), str(go))
        then = [executor.submit(there.square, n) for n in range(100)]
        ends(first + then)
        assert [future.result() for future in then] == [n * n for n in range(100)]
        assert not held.done()
        go.touch()
        assert held.result() == "held"


def test_a_crash_fails_no_call_that_was_sent_ahead(executor: ProcessExecutor, noted: Path) -> None:
    """Only the one that ran; all others run once."""
    fatal = {*random.sample(range(1000), 7)}
    futures = [
        executor.submit(there.note_and_crash if n in fatal else there.note, str(noted), n)
        for n in range(1000)
    ]
    ends(futures)
    failed = {n for n, future in enumerate(futures) if future.exception() is not None}
    assert failed == fatal
    assert all(isinstance(futures[n].exception(), forkwire.WorkerDied) for n in failed)
    assert numbers(noted) == list(range(1000))


def test_killed_at_random_each_loses_one_call_at_most(
    executor: ProcessExecutor, noted: Path
) -> None:
    """And none runs twice."""
    futures = [executor.submit(there.note, str(noted), n) for n in range(3000)]
    killed = 0
    for n in range(0, 3000, 500):
        wait(futures[n : n + 1], there.LIMIT)
        for pid in executor.statistics().pids[:1]:
            os.kill(pid, signal.SIGKILL)
            killed += 1
    ends(futures)
    failed = {n for n, future in enumerate(futures) if future.exception() is not None}
    assert len(failed) <= killed
    ran = numbers(noted)
    assert len(ran) == len({*ran})
    assert {*range(3000)} - failed <= {*ran}


def test_a_call_for_a_worker_that_is_dead_is_not_lost(executor: ProcessExecutor) -> None:
    """Nobody had noticed; it did not begin, so it is run by another."""
    for _ in range(20):
        pid = executor.submit(os.getpid).result()
        os.kill(pid, signal.SIGKILL)
        assert executor.submit(os.getpid).result() != pid
    assert executor.statistics().retries == 0


def test_workers_that_die_before_they_begin_are_not_tried_for_ever() -> None:
    """A call that did not begin in any of them has the death of the last for its error."""
    with ProcessExecutor(1, initializer=there.die_soon) as executor:
        futures = [executor.submit(there.square, n) for n in range(30)]
        ends(futures)
    errors = [error for future in futures if (error := future.exception()) is not None]
    assert all(isinstance(error, forkwire.WorkerDied) for error in errors)


@pytest.mark.parametrize("all_at_once", [False, True])
def test_what_was_cancelled_does_not_run(all_at_once: bool, noted: Path) -> None:
    """One by one, or by the shutdown; and what could not be cancelled does."""
    with ProcessExecutor(2) as executor:
        futures = [executor.submit(there.note, str(noted), n) for n in range(2000)]
        wait(futures[:100], there.LIMIT)
        if all_at_once:
            executor.shutdown(cancel_futures=True)
        else:
            cancelled = [future for future in futures[::3] if future.cancel()]
            assert cancelled
    assert numbers(noted) == [n for n, future in enumerate(futures) if not future.cancelled()]
    assert len(numbers(noted)) < 2000


def test_without_claims_a_worker_has_one_call(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the pipe cannot be opened by its path; all else is the same."""

    class Unopened(Claims):
        def __init__(self) -> None:
            super().__init__()
            self.path = "/nowhere"  # type: ignore[misc]

    monkeypatch.setattr(executor_member, "Claims", Unopened)
    with ProcessExecutor(2) as executor:
        futures: list[Future[Any]] = [executor.submit(there.square, n) for n in range(300)]
        futures.append(executor.submit(there.crash))
        while not all(future.done() for future in futures):
            members = list(executor._engine._members)
            assert all(member.in_flight <= 1 for member in members)
        assert [future.result() for future in futures[:-1]] == [n * n for n in range(300)]
        assert isinstance(futures[-1].exception(), forkwire.WorkerDied)

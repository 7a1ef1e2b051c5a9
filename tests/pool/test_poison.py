"""A call that workers die of is known again, and refused."""

from __future__ import annotations

import pytest

from forkwire.errors import PoisonCallError
from forkwire.pool.poison import MOST_SUSPECTS, Suspects, digest_of

DEATH = RuntimeError("worker 7 was killed by SIGSEGV")


def test_a_call_is_its_method_and_arguments() -> None:
    """The same call has the same digest, however its bytes are cut; any other has another."""
    digest = digest_of("add", [b"12"])
    assert digest == digest_of("add", [b"1", memoryview(b"2")])
    others = [digest_of("add", [b"13"]), digest_of("ad", [b"d12"]), digest_of("add1", [b"2"])]
    assert len({digest, *others}) == 4


def test_it_is_refused_after_so_many_deaths() -> None:
    """Below the limit it runs; at it, it is refused, with the number and the last death."""
    suspects = Suspects(2)
    digest = digest_of("crash", [])
    assert suspects.died(digest, "crash", RuntimeError("the first"), alone=True) == 1
    suspects.check(digest, "crash")
    assert suspects.died(digest, "crash", DEATH, alone=True) == 2
    with pytest.raises(PoisonCallError, match=r"'crash' .* 2 workers died .*SIGSEGV") as caught:
        suspects.check(digest, "crash")
    assert caught.value.deaths == 2
    assert caught.value.__cause__ is DEATH
    suspects.check(digest_of("crash", [b"1"]), "crash")


def test_whoever_was_only_near_is_not_counted() -> None:
    """A death with others in flight makes a suspect, and shows nothing more, however often."""
    suspects = Suspects(1)
    digest = digest_of("add", [])
    for _ in range(9):
        assert suspects.died(digest, "add", DEATH, alone=False) == 0
    assert suspects.is_one(digest)
    suspects.check(digest, "add")
    suspects.succeeded(digest)
    assert not suspects.is_one(digest)


def test_success_clears_it() -> None:
    """A call that was answered once was no poison, only near one; nothing is left of it."""
    suspects = Suspects(2)
    digest = digest_of("add", [])
    suspects.died(digest, "add", DEATH, alone=True)
    assert suspects
    suspects.succeeded(digest)
    assert not suspects
    suspects.succeeded(digest)
    assert suspects.died(digest, "add", DEATH, alone=True) == 1


def test_what_is_remembered_is_bounded() -> None:
    """Of very many suspects the one of longest ago is forgotten."""
    suspects = Suspects(9)
    digests = [digest_of("f", [number.to_bytes(4)]) for number in range(MOST_SUSPECTS)]
    for digest in digests:
        suspects.died(digest, "f", DEATH, alone=True)
    suspects.died(digests[0], "f", DEATH, alone=True)
    suspects.died(digest_of("g", []), "g", DEATH, alone=True)
    assert len(suspects) == MOST_SUSPECTS
    assert suspects.deaths(digests[0]) == 2
    assert suspects.deaths(digests[1]) == 0


def test_methods_without_suspects_are_known() -> None:
    """Of these no call need be looked at closely."""
    suspects = Suspects(2)
    one, two = digest_of("f", [b"1"]), digest_of("f", [b"2"])
    assert not suspects.may_be("f")
    for digest in (one, two, one):
        suspects.died(digest, "f", DEATH, alone=True)
    assert not suspects.may_be("g")
    suspects.succeeded(one)
    assert suspects.may_be("f")
    suspects.succeeded(two)
    assert not suspects.may_be("f")

"""What a pool is told to do is checked when it is said."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import pytest

from forkwire.errors import UsageError
from forkwire.pool.policy import Health, Recycle, Restart, bytes_of, check_size


@pytest.mark.parametrize(
    ("make", "given"),
    [
        (Restart, {"kind": "always"}),
        (Restart, {"kind": ["permanent"]}),
        (Restart, {"intensity": -1}),
        (Restart, {"intensity": True}),
        (Restart, {"intensity": 1.5}),
        (Restart, {"period": 0}),
        (Restart, {"period": math.inf}),
        (Restart, {"backoff": -0.1}),
        (Restart, {"longest_backoff": math.nan}),
        (Recycle, {"calls": 0}),
        (Recycle, {"age": 0}),
        (Recycle, {"age": "1h"}),
        (Recycle, {"memory": "lots"}),
        (Recycle, {"memory": 0}),
        (Health, {"interval": 0}),
        (Health, {"timeout": None}),
        (Health, {"unresponsive": "ignore"}),
    ],
)
def test_what_cannot_work_is_refused(make: Callable[..., Any], given: dict[str, Any]) -> None:
    """Each value that makes no sense is a usage error that names what it was given for."""
    name = next(iter(given))
    with pytest.raises(UsageError, match=name):
        make(**given)


@pytest.mark.parametrize("policy", [Restart(), Recycle(), Health()])
def test_a_policy_is_data(policy: Any) -> None:
    """Policies are equal by what they say, cannot be changed, and take keywords only."""
    assert policy == type(policy)()
    assert hash(policy) == hash(type(policy)())
    field = dataclasses.fields(policy)[0].name
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(policy, field, None)
    with pytest.raises(TypeError):
        type(policy)("permanent")


@pytest.mark.parametrize(
    ("size", "number"),
    [(1, 1), ("7", 7), ("1K", 1024), ("512M", 2**29), ("1.5g", 3 * 2**29), ("2 GiB", 2**31),
     ("3TB", 3 * 2**40)],
)  # fmt: skip
def test_sizes_of_memory_may_have_units(size: int | str, number: int) -> None:
    """A size is a number of bytes, or one with a unit, which are powers of 1024."""
    assert bytes_of(size) == number


@pytest.mark.parametrize("size", ["", "M", "-1M", "0", "1e9", "5 Mega", True, 2.5, None])
def test_other_sizes_are_refused(size: Any) -> None:
    """Anything else is a usage error."""
    with pytest.raises(UsageError, match="memory"):
        bytes_of(size)


@pytest.mark.parametrize("size", [(0, 0), (-1, 2), (3, 2), (1, 2.0), (True, 2), (None, 1)])
def test_sizes_of_pools_are_checked(size: tuple[Any, Any]) -> None:
    """A pool may have no worker for a time, but has room for one, and not more than its most."""
    check_size(0, 1)
    check_size(4, 4)
    with pytest.raises(UsageError, match="number of workers"):
        check_size(*size)

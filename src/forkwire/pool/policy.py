"""What a pool does when: plain data, checked when it is made. It knows no worker and no clock."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Final, Literal, get_args

from ..errors import UsageError

__all__ = ["Health", "Kind", "Recycle", "Restart", "Unresponsive", "bytes_of", "check_size"]

Kind = Literal["permanent", "transient", "temporary"]
Unresponsive = Literal["replace", "warn"]

UNITS: Final = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
SIZE: Final = re.compile(r"(\d+(?:\.\d+)?) ?([KMGT]?)(?:i?B)?", re.IGNORECASE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Restart:
    """What follows the end of a worker that nobody asked to end; the terms are OTP's.

    ``kind``: a ``"permanent"`` worker is always replaced, a ``"transient"`` one after a bad end
    (a signal, a status other than 0, a start that failed), a ``"temporary"`` one never.
    ``intensity``: restarts within ``period`` seconds, or one after another, that are borne; with
    one more the pool is broken. ``backoff``: seconds before the first restart, twice as many before
    each one after it, up to ``longest_backoff``, until a worker has finished a call again. Each
    wait is a random part of that.
    """

    kind: Kind = "permanent"
    intensity: int = 32
    period: float = 60.0
    backoff: float = 0.1
    longest_backoff: float = 5.0

    def __post_init__(self) -> None:
        check_word("Restart: kind", self.kind, get_args(Kind))
        check_count("Restart: intensity", self.intensity, 0)
        check_seconds("Restart: period", self.period)
        check_seconds("Restart: backoff", self.backoff, zero=True)
        check_seconds("Restart: longest_backoff", self.longest_backoff, zero=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class Recycle:
    """When a worker that is well is replaced all the same; its successor is started first.

    ``calls``: it begins no more than these. ``age``: seconds since it was ready. Of both some
    workers take up to a tenth less, so that not all are replaced at once. ``memory``: bytes that
    are resident after a call, a number or as in ``"512M"``.
    """

    calls: int | None = None
    age: float | None = None
    memory: int | str | None = None

    def __post_init__(self) -> None:
        if self.calls is not None:
            check_count("Recycle: calls", self.calls, 1)
        if self.age is not None:
            check_seconds("Recycle: age", self.age)
        if self.memory is not None:
            bytes_of(self.memory)


@dataclass(frozen=True, slots=True, kw_only=True)
class Health:
    """How a worker that hangs is found.

    ``interval``: seconds between two pings, None for none. ``timeout``: seconds that an answer may
    take. ``unresponsive``: whether a worker that does not answer is killed and replaced, or only
    warned of. One that runs plain functions cannot answer meanwhile, and is not judged then.
    """

    interval: float | None = 15.0
    timeout: float = 10.0
    unresponsive: Unresponsive = "replace"

    def __post_init__(self) -> None:
        if self.interval is not None:
            check_seconds("Health: interval", self.interval)
        check_seconds("Health: timeout", self.timeout)
        check_word("Health: unresponsive", self.unresponsive, get_args(Unresponsive))


def bytes_of(size: int | str) -> int:
    """The number of bytes that ``"512M"`` means. Raises :exc:`UsageError`."""
    if isinstance(size, str) and (match := SIZE.fullmatch(size)):
        number = int(float(match[1]) * UNITS[match[2].upper()])
    elif isinstance(size, int) and not isinstance(size, bool):
        number = size
    else:
        number = 0
    if number < 1:
        raise UsageError(f'memory is a number of bytes above 0, or as in "512M", not {size!r}')
    return number


def check_size(least: object, most: object) -> None:
    """Of workers: raises :exc:`UsageError` unless 0 <= least <= most and 1 <= most."""
    numbers = all(isinstance(n, int) and not isinstance(n, bool) for n in (least, most))
    if not numbers or not 0 <= least <= most or most < 1:  # type: ignore[operator]
        raise UsageError(
            "a pool has a number of workers above 0, or (least, most) of them, "
            f"not {least if most is least else (least, most)!r}"
        )


def check_policy(name: str, value: object, kind: type) -> None:
    if not isinstance(value, kind):
        raise UsageError(f"{name} is a {kind.__name__}(...), not {value!r}")


def check_count(name: str, value: object, least: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise UsageError(f"{name} is a whole number, {least} or more, not {value!r}")


def check_seconds(name: str, value: object, *, zero: bool = False) -> None:
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not number or not math.isfinite(value) or value < 0 or (not zero and value == 0):  # type: ignore[arg-type, operator]
        raise UsageError(f"{name} is a number of seconds {'from' if zero else 'above'} 0, "
                         f"not {value!r}")  # fmt: skip


def check_word(name: str, value: object, words: tuple[str, ...]) -> None:
    if value not in words:
        raise UsageError(f"{name} is {', '.join(map(repr, words[:-1]))} or {words[-1]!r}, "
                         f"not {value!r}")  # fmt: skip

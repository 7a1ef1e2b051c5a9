"""What the soaked pool serves. What is given a token answers with it, or writes it."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator

_kept: dict[str, int] = {}


def same(token: int) -> int:
    return token


def mark(path: str, token: int) -> int:
    """Write that it ran: a line is short enough to be written whole."""
    with open(path, "ab", buffering=0) as file:
        file.write(b"%d\n" % token)
    return token


def spin(token: int, seconds: float) -> int:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        pass
    return token


def doze(token: int, seconds: float) -> int:
    time.sleep(seconds)
    return token


def fail(token: int) -> int:
    raise ValueError(f"{token} was to fail")


def large(token: int, block: bytes) -> tuple[int, bytes]:
    return token, block


def count(token: int, number: int) -> Iterator[int]:
    for index in range(number):
        yield token + index


def total(token: int, rows: Iterator[int]) -> int:
    return token + sum(rows)


def keep(key: str, value: int) -> int:
    _kept[key] = value
    return os.getpid()


def kept(key: str) -> int | None:
    return _kept.get(key)


def pid() -> int:
    return os.getpid()

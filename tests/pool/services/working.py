"""A service for the tests of pools: what it does to its worker, and what it knows of it."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any, NoReturn

import anyio

import forkwire.sync

_state = {"value": 0}
_kept: list[bytes] = []


def add(a: int, b: int = 10) -> int:
    return a + b


def echo(value: Any) -> Any:
    return value


def pid() -> int:
    return os.getpid()


def pid_for(number: int) -> int:
    return os.getpid()


def set_value(value: int) -> int:
    _state["value"] = value
    return os.getpid()


def value() -> int:
    return _state["value"]


def fail(message: str) -> NoReturn:
    raise ValueError(message)


def fail_at(number: int, bad: int) -> int:
    if number == bad:
        raise ValueError(f"{number} is bad")
    return number


def fail_where(pids: list[int]) -> int:
    if os.getpid() in pids:
        raise ValueError("not here")
    return os.getpid()


def die(how: int = signal.SIGKILL) -> None:
    os.kill(os.getpid(), how)
    time.sleep(60)


def die_once(path: str) -> str:
    """Dies in the first worker that runs it."""
    try:
        Path(path).touch(exist_ok=False)
    except FileExistsError:
        return "alive"
    die()
    return "unreachable"


def total(rows: Iterator[int]) -> int:
    return sum(rows)


def die_of(rows: Iterator[int]) -> int:
    for _ in rows:
        die()
    return 0


def leave(status: int) -> None:
    os._exit(status)


def wait_for(begun: str, path: str) -> int:
    """Runs from when ``begun`` is made until ``path`` is there."""
    Path(begun).touch()
    while not os.path.exists(path):
        time.sleep(0.002)
    return os.getpid()


def wait_for_once(begun: str, path: str) -> int:
    """The same; what ``begun`` holds says how often it ran."""
    with open(begun, "a") as file:
        file.write("x")
    return wait_for(begun, path)


def stuck(begun: str) -> None:
    """In C: it cannot be interrupted."""
    Path(begun).touch()
    sum(range(10**12))


def count(number: int) -> Iterator[int]:
    yield from range(number)


def pids(number: int) -> Iterator[int]:
    for _ in range(number):
        yield os.getpid()


def die_at(number: int) -> Iterator[int]:
    yield from range(number)
    die()


def endless(closed: str) -> Iterator[int]:
    try:
        number = 0
        while True:
            yield number
            number += 1
    finally:
        Path(closed).touch()


def progressing(steps: int) -> int:
    for step in range(steps):
        forkwire.sync.current_call().progress(step, steps)
    return steps


def ask(method: str, *args: Any) -> Any:
    """What the host answers."""
    return forkwire.sync.current_call().host.call(method, *args)


def note(path: str, number: int) -> int:
    with open(path, "a") as file:
        file.write(f"{number} ")
    return number


def seconds_left(number: int) -> float:
    return forkwire.sync.current_call().deadline - time.monotonic()


def grow(size: int) -> None:
    """Keeps so many bytes."""
    _kept.append(b"x" * size)


class Later:
    """Async functions."""

    async def add(self, a: int, b: int = 10) -> int:
        await anyio.lowlevel.checkpoint()
        return a + b

    async def pid(self) -> int:
        return os.getpid()

    async def wait_for(self, begun: str, path: str) -> int:
        Path(begun).touch()
        while not os.path.exists(path):
            await anyio.sleep(0.002)
        return os.getpid()

    async def count(self, number: int) -> AsyncIterator[int]:
        for each in range(number):
            yield each

    async def hold_the_loop(self, begun: str) -> None:
        """Answers no ping."""
        Path(begun).touch()
        time.sleep(60)

    async def die(self, how: int = signal.SIGKILL) -> None:
        die(how)


class Both(Later):
    """Async functions, and plain ones."""

    def hold(self, begun: str, path: str) -> int:
        return wait_for(begun, path)

    async def endless(self) -> AsyncIterator[int]:
        while True:
            yield os.getpid()

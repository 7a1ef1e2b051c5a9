"""A service: the functions of a module. Some of the examples call it."""

import logging
from collections.abc import Iterator

import anyio


def add(a: int, b: int) -> int:
    """The sum."""
    return a + b


def count(n: int) -> Iterator[int]:
    """The numbers below n, one by one."""
    yield from range(n)


async def nap(seconds: float) -> str:
    """Sleep, in the worker's loop."""
    await anyio.sleep(seconds)
    return "rested"


def spin() -> None:
    """Never ends by itself, and never waits."""
    while True:
        pass


def log(text: str) -> None:
    """Tell the host's log."""
    logging.getLogger("calc").warning(text)

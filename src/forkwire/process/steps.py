"""Waiting for descriptors written once, for a loop and for a thread that blocks.

A generator yields what it waits for. Where nobody waits any more it is closed, and cleans up.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import Final, TypeVar

from . import guard_main, ownership
from .backend import Backend

__all__ = ["Steps", "Wait", "run_blocking", "run_in_loop"]

T = TypeVar("T")

SLICE: Final = 0.05  # seconds between looks whether a thread's wait is to be given up


@dataclass(frozen=True, slots=True)
class Wait:
    """Until ``fd`` is readable, or that monotonic time; ``fd`` of -1: until then."""

    fd: int
    until: float


Steps = Generator[Wait, None, T]


async def run_in_loop(steps: Steps[T], backend: Backend) -> T:
    """What ``steps`` answers. Cancellation closes it."""
    import anyio

    try:
        wait = next(steps)
        while True:
            try:
                with anyio.move_on_after(max(0.0, wait.until - time.monotonic())):
                    await readable(wait.fd, backend)
            except OSError as error:  # there is no room to wait
                wait = steps.throw(error)
            else:
                wait = next(steps)
    except StopIteration as end:
        result: T = end.value
        return result
    finally:
        steps.close()


async def readable(fd: int, backend: Backend) -> None:
    if fd < 0:
        import anyio

        await anyio.sleep_forever()
    copy = os.dup(fd)  # other tasks may wait for the same
    ownership.own(copy)
    try:
        await backend.wait_readable(copy)
    finally:
        ownership.close(copy)


def run_blocking(steps: Steps[T], check: Callable[[], None]) -> T:
    """What ``steps`` answers; ``check`` is called now and then, and may raise."""
    try:
        wait = next(steps)
        while True:
            while not guard_main.readable(
                wait.fd, min(SLICE, max(0.0, wait.until - time.monotonic()))
            ):
                check()
                if time.monotonic() >= wait.until:
                    break
            wait = next(steps)
    except StopIteration as end:
        result: T = end.value
        return result
    finally:
        steps.close()

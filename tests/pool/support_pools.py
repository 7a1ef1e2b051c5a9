"""What the tests of pools share; it holds no test."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any, Final

import anyio

from forkwire import Pool, open_pool

from .services import working

# What takes longer hangs, also on a loaded machine.
LIMIT: Final = 20.0


@asynccontextmanager
async def pool_of(service: object = working, **options: Any) -> AsyncIterator[Pool]:
    """A pool, which must not be needed for longer than a test may take."""
    with anyio.fail_after(LIMIT):
        options.setdefault("size", 2)
        async with open_pool(service, **options) as pool:
            yield pool


async def until(condition: Callable[[], Any]) -> Any:
    """Wait for what nothing tells of."""
    end = time.monotonic() + LIMIT
    while not (value := condition()):
        assert time.monotonic() < end, "in vain"
        await anyio.sleep(0.002)
    return value


async def there(*paths: Any) -> None:
    """Wait until all of them are."""
    await until(lambda: all(os.path.exists(path) for path in paths))


def pids_of(pool: Pool) -> set[int]:
    return {each.pid for each in pool.statistics().workers.values()}


def kill(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)

"""A pool belongs to one event loop, of one process: what others are told that have it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import pytest

from forkwire import Pool, UsageError, open_pool

from ..rpc.support_pains import is_running, nothing_left_behind, outcome, script, until_true
from .services import working
from .support_pools import LIMIT, pids_of, pool_of

__all__ = ["nothing_left_behind"]

ASKED: list[Callable[[Pool], Awaitable[Any]]] = [
    lambda pool: pool.call("pid"),
    lambda pool: pool.notify("pid"),
    lambda pool: pool.broadcast("pid"),
    lambda pool: anext(pool.stream("count", 1)),
    lambda pool: pool.worker().__aenter__(),
    Pool.drain,
    Pool.reload,
    lambda pool: pool.resize(3),
    Pool.aclose,
]


async def refused_to_all(pool: Pool) -> int:
    for ask in ASKED:
        with pytest.raises(UsageError, match="belongs to the event loop"):
            await ask(pool)
    with pytest.raises(UsageError, match="belongs to the event loop"):
        pool.map("pid_for", [1])
    return len(ASKED)


@pytest.mark.anyio
@pytest.mark.usefixtures("nothing_left_behind")
@pytest.mark.parametrize("other", ["asyncio", "trio"])
async def test_another_threads_loop_is_refused(other: str) -> None:
    """Whatever it asks for, and the pool goes on."""
    async with pool_of(start="fork") as pool:

        def elsewhere() -> int:
            return anyio.run(refused_to_all, pool, backend=other)

        assert await anyio.to_thread.run_sync(elsewhere) == len(ASKED)
        assert await pool.call("add", 1) == 11


FORKED = """
import os, sys, warnings
import anyio, anyio.to_thread
import forkwire

warnings.simplefilter("ignore")  # of forks beside threads

def add(a, b):
    return a + b

async def inherited(pool):
    for ask in (lambda: pool.call("add", 1, 2), pool.drain, pool.aclose):
        try:
            await ask()
        except forkwire.UsageError as error:
            print(error)

def fork(pool):
    sys.stdout.flush()
    pid = os.fork()
    if not pid:
        anyio.run(inherited, pool)
        sys.stdout.flush()
        os._exit(0)
    os.waitpid(pid, 0)

async def main():
    async with forkwire.open_pool({"add": add}, size=1) as pool:
        await anyio.to_thread.run_sync(fork, pool)
        print(await pool.call("add", 1, 2))

anyio.run(main)
"""


def test_a_fork_of_the_host_is_refused(tmp_path: Path) -> None:
    """In a loop of its own it is told whose the pool is, also when it closes it."""
    done = outcome(script(tmp_path, FORKED))
    *refusals, last = done.stdout.splitlines()
    assert len(refusals) == 3
    assert all("belongs to the event loop" in line for line in refusals)
    assert last == "3", done.stderr


@pytest.mark.usefixtures("nothing_left_behind")
def test_a_loop_that_is_left_as_it_was() -> None:
    """One that stopped without cancelling its tasks: the pool is closed in the next."""
    pool = open_pool(working, size=2, start="fork")
    loop = asyncio.new_event_loop()
    try:
        loop.run_until_complete(pool.__aenter__())
        pids = pids_of(pool)
        assert all(map(is_running, pids))

        async def close() -> None:
            async with asyncio.timeout(LIMIT):
                await pool.aclose()

        asyncio.run(close())
        until_true(lambda: not any(map(is_running, pids)))
    finally:
        for task in asyncio.all_tasks(loop):
            task.cancel()
        loop.run_until_complete(asyncio.sleep(0))
        loop.close()

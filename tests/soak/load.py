"""The load of a soaked pool: who calls what, and what must come of it."""

from __future__ import annotations

import collections
import itertools
import os
import signal
import time
import traceback
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import suppress
from random import Random
from typing import Any, Final

import anyio
import soaked

import forkwire

# Seconds after which a call hangs, whatever was done to its worker. Deadlines here are of 2 s, and
# the grace that follows of 1 s.
HANGS: Final = 30.0
DEADLINE: Final = 2.0

# What may become of a call whose worker is killed, stopped or recycled at any moment.
BORNE: Final = (forkwire.WorkerDied, forkwire.DeadlineExceededError, TimeoutError)


class Load:
    """Operations on one pool, chosen at random, and the count of how they ended.

    ``wrong``: whatever should not have been. ``marks``: the file in which calls say that they ran.
    """

    def __init__(self, pool: forkwire.Pool, random: Random, marks: str) -> None:
        self.pool: Final = pool
        self.random: Final = random
        self.marks: Final = marks
        self.begun: Final[collections.Counter[str]] = collections.Counter()
        self.ended: Final[collections.Counter[str]] = collections.Counter()
        self.outcomes: Final[collections.Counter[str]] = collections.Counter()
        self.wrong: Final[list[str]] = []
        self.answered: Final[set[int]] = set()  # tokens of marks that were answered
        self.marked: Final[set[int]] = set()  # those that were asked for
        self.kills = 0
        self.stops = 0
        self._tokens: Final = itertools.count(1)

    def token(self) -> int:
        return next(self._tokens) * 1_000_000

    # -- clients ------------------------------------------------------------------------------

    async def client(self, until: float) -> None:
        while time.monotonic() < until and len(self.wrong) < 20:
            await self.one(self.random.choice(OPERATIONS))

    async def one(self, operation: Callable[[Load], Awaitable[None]]) -> None:
        name = operation.__name__
        self.begun[name] += 1
        outcome = "hung"
        with anyio.move_on_after(HANGS):
            outcome = await self.outcome(operation)
        self.ended[name] += 1
        self.outcomes[outcome] += 1
        if outcome == "hung":
            self.wrong.append(f"{name} hung for {HANGS} s")

    async def outcome(self, operation: Callable[[Load], Awaitable[None]]) -> str:
        try:
            await operation(self)
        except BORNE as error:
            return type(error).__name__
        except Exception as error:
            if isinstance(error, ExceptionGroup) and error.split(BORNE)[1] is None:
                return "group"
            text = "".join(traceback.format_exception(error))
            self.wrong.append(f"{operation.__name__}: {text}")
            return "wrong"
        return "ok"

    def check(self, found: object, wanted: object, what: str) -> None:
        if found != wanted:
            self.wrong.append(f"{what}: {found!r}, not {wanted!r}")

    # -- what is called -----------------------------------------------------------------------

    async def same(self) -> None:
        token = self.token()
        self.check(await self.pool.call(soaked.same, token), token, "same")

    async def mark(self) -> None:
        token = self.token()
        self.marked.add(token)
        self.check(await self.pool.call(soaked.mark, self.marks, token), token, "mark")
        self.answered.add(token)

    async def notify(self) -> None:
        token = self.token()
        self.marked.add(token)
        await self.pool.notify(soaked.mark, self.marks, token)

    async def spin_too_long(self) -> None:
        with anyio.move_on_after(self.random.uniform(0, 0.05)):
            await self.pool.call(soaked.spin, self.token(), 1.0)

    async def doze_too_long(self) -> None:
        with anyio.fail_after(self.random.uniform(0, 0.05)):
            await self.pool.call(soaked.doze, self.token(), 60.0)

    async def fail(self) -> None:
        token = self.token()
        try:
            await self.pool.call(soaked.fail, token)
        except forkwire.RemoteError as error:
            self.check(str(token) in str(error), True, "the text of an error")
        else:
            self.wrong.append("fail did not raise")

    async def large(self) -> None:
        token, block = self.token(), os.urandom(16) * self.random.choice([1, 4096, 2**17])
        self.check(await self.pool.call(soaked.large, token, block), (token, block), "large")

    async def stream(self) -> None:
        token, number = self.token(), self.random.choice([0, 10, 300])
        items = [item async for item in self.pool.stream(soaked.count, token, number)]
        self.check(items, [token + index for index in range(number)], "stream")

    async def leave_stream(self) -> None:
        token = self.token()
        async with self.pool.stream(soaked.count, token, 10**9) as items:
            index = 0
            async for item in items:
                self.check(item, token + index, "an item of a stream that is left")
                index += 1
                if index > 20:
                    break

    async def argument_stream(self) -> None:
        token = self.token()
        rows = iter(range(100))
        self.check(await self.pool.call(soaked.total, token, rows), token + 4950, "total")

    async def map(self) -> None:
        token = self.token()
        rows = range(token, token + 30)
        results = [result async for result in self.pool.map(soaked.same, rows)]
        self.check(results, list(rows), "map")

    async def map_unordered(self) -> None:
        token = self.token()
        rows = range(token, token + 30)
        source = trickle(rows)
        async with self.pool.map(soaked.same, source, ordered=False, window=4) as found:
            results = {result async for result in found}
        self.check(results, set(rows), "an unordered map")

    async def leave_map(self) -> None:
        async with self.pool.map(soaked.same, endless(self.token())) as results:
            async for _ in results:
                break

    async def lease(self) -> None:
        token = self.token()
        async with self.pool.worker(fresh=self.random.random() < 0.05) as worker:
            pid = await worker.call(soaked.keep, "key", token)
            self.check(pid, worker.pid, "the pid of a lease")
            await anyio.sleep(self.random.uniform(0, 0.01))
            self.check(await worker.call(soaked.kept, "key"), token, "what a lease kept")

    async def broadcast(self) -> None:
        pids = await self.pool.broadcast(soaked.pid)
        self.check(len(set(pids)), len(pids), "the pids of a broadcast")

    async def retry(self) -> None:
        token = self.token()
        calls = self.pool.options(retries=5)
        self.check(await calls.call(soaked.doze, token, 0.01), token, "retry")

    # -- what is done to it -------------------------------------------------------------------

    async def killer(self, until: float, most: float) -> None:
        """Kill workers, and stop some, which do not answer then until they are killed."""
        while time.monotonic() < until:
            await anyio.sleep(self.random.uniform(0, 2 * most))
            pids = [each.pid for each in self.pool.statistics().workers.values()]
            if not pids:
                continue
            stops = self.random.random() < 0.1
            self.stops += stops
            self.kills += not stops
            with suppress(ProcessLookupError):
                os.kill(self.random.choice(pids), signal.SIGSTOP if stops else signal.SIGKILL)

    async def changer(self, until: float, size: int, *, reloads: bool) -> None:
        """Make it larger, smaller and newer."""
        while time.monotonic() < until:
            await anyio.sleep(self.random.uniform(0, 2))
            least = self.random.randint(1, size)
            await self.pool.resize(least, self.random.randint(least, size))
            if reloads and self.random.random() < 0.5:
                with suppress(*BORNE):
                    await self.pool.reload()
        await self.pool.resize(size)


async def trickle(rows: range) -> AsyncIterator[int]:
    for row in rows:
        await anyio.lowlevel.checkpoint()
        yield row


def endless(first: int) -> Iterator[int]:
    return itertools.count(first)


def timely(operation: Callable[[Load], Awaitable[None]]) -> Callable[[Load], Awaitable[None]]:
    """With a deadline: its worker may have been stopped, and then nothing else ends the call."""

    async def run(load: Load) -> None:
        with anyio.fail_after(DEADLINE):
            await operation(load)

    run.__name__ = operation.__name__
    return run


OPERATIONS: Final[list[Any]] = [
    timely(operation)
    for operation in (
        Load.same, Load.same, Load.mark, Load.mark, Load.notify, Load.spin_too_long,
        Load.doze_too_long, Load.fail, Load.large, Load.stream, Load.leave_stream,
        Load.argument_stream, Load.map, Load.map_unordered, Load.leave_map, Load.lease,
        Load.broadcast, Load.retry,
    )
]  # fmt: skip

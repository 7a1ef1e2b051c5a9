"""What the third part of ``forkwire demo`` shows, scene by scene: pools."""

from __future__ import annotations

import time
from collections import Counter
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import anyio
import anyio.to_thread
from rich.console import Console

from .. import Pool, open_pool
from . import demo_service
from .demo_calls import find_texts
from .demo_pool import count, count_and_crash, execute, warnings_of
from .running import FAILURE, complain
from .terminal import counted, printable

__all__ = ["PoolDemo"]


class PoolDemo:
    """The scenes, and what they share. ``failed``: whether something was not as promised."""

    def __init__(self, console: Console, folder: Path | None) -> None:
        self.console = console
        self.place, self.paths = find_texts(folder)
        self.counts = Counter(
            word for path in self.paths for word in demo_service.words_of(demo_service.read(path))
        )
        self.failed = False

    async def play(self, workers: int) -> int:
        self.say(
            "A pool",
            f"{workers} workers of one service. Each call goes to the least busy; map takes the "
            "next text as there is room for it, and answers in order: here the words of each text "
            f"in {printable(self.place)}.",
        )
        before = time.monotonic()
        async with open_pool(demo_service, size=workers) as pool:
            took = 1000 * (time.monotonic() - before)
            self.console.print(f"Started in {took:.0f} ms, forked from a clean template process")
            await self.count(pool)
            await self.crash(pool)
        await self.execute(workers)
        return FAILURE if self.failed else 0

    async def count(self, pool: Pool) -> None:
        with counted(self.console, len(self.paths)) as advance:
            found = await count(pool, self.paths, advance)
        latency = pool.statistics().latency
        half, most = (1000 * latency.quantile(q) for q in (0.5, 0.9))
        self.check(
            found.words == self.counts,
            f"{found.words.total():,} words in {len(self.paths)} texts, counted by "
            f"{len(found.pids)} workers; half of the calls took up to {half:.1f} ms, nine in ten "
            f"up to {most:.1f} ms",
        )

    async def crash(self, pool: Pool) -> None:
        self.say(
            "A crash in a pool",
            "The same once more, and one call kills its worker. The others notice nothing, and a "
            "new worker takes its place. That call is repeated, since we say with "
            "options(retries=1) that it may be, and that is logged:",
        )
        logged: list[str] = []
        with warnings_of(logged):
            words = await count_and_crash(pool, self.paths)
        for text in logged:
            self.console.print(f"  {printable(text)}")
        found = pool.statistics()
        crashes = min(len(self.paths), 1)
        right = words == self.counts and found.deaths == found.retries == crashes
        self.check(right, f"All texts are counted, and {found.size} workers are there")

    async def execute(self, workers: int) -> None:
        self.say(
            "An executor",
            "ProcessExecutor is a concurrent.futures.Executor: submit, map, futures. One of its "
            "calls here is os._exit. That future fails, and the others are answered.",
        )
        words, error = await anyio.to_thread.run_sync(execute, self.paths, workers)
        right = words == self.counts and isinstance(error, BrokenProcessPool)
        self.console.print(f"  {type(error).__name__}: {printable(error)}")
        self.check(right, f"{words.total():,} words once more")

    def check(self, right: bool, text: str) -> None:
        """Say how a scene ended."""
        if right:
            self.console.print(text, style="green")
        else:
            self.failed = True
            complain(f"not as it should be: {text}")

    def say(self, heading: str, text: str) -> None:
        self.console.print(f"\n{heading}", style="bold")
        self.console.print(text)

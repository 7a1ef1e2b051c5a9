"""What ``forkwire demo`` shows, scene by scene: messages; then calls and pools, in modules
of their own.
"""

from __future__ import annotations

import resource
import sys
import sysconfig
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Final

from rich.console import Console
from rich.padding import Padding
from rich.table import Table

from .. import ProcessWorker
from ..process.backend import BackendName
from .demo import File, Round, find_files, open_workers
from .demo_calls_show import CallsDemo
from .demo_pool_show import PoolDemo
from .running import FAILURE, complain, run_async
from .terminal import megabytes, open_console, printable, progress

__all__ = ["show"]

LAST_SCENE_FILES: Final = 100
SHOWN: Final = 5  # file names in a list of faults
MAXRSS_UNIT: Final = 1 if sys.platform == "darwin" else 1024  # bytes; getrusage(2)


def show(count: int, backend: BackendName, folder: Path | None) -> int:
    """Play the demo with ``count`` workers; answer the exit status."""
    place = folder or Path(sysconfig.get_path("stdlib"))
    files = find_files(place)
    if not files:
        return complain(f"no files to read in {printable(place)}: try --folder")
    demo = Demo(open_console(), place, files)
    demo.console.print(f"Forkwire demo, on {backend}")
    calls = CallsDemo(demo.console, folder)
    pool = PoolDemo(demo.console, folder)

    async def play() -> int:
        return await demo.play(count) or await calls.play() or await pool.play(count)

    return run_async(play, backend)


class Demo:
    """The scenes, and what they share."""

    def __init__(self, console: Console, place: Path, files: Sequence[File]) -> None:
        self.console = console
        self.place = place
        self.files = files

    async def play(self, count: int) -> int:
        self.say(
            "Workers",
            f"This process forks {count} workers. A function and its argument are simply there "
            "in the child, nothing is serialised, and two pipes carry messages between us. "
            "When this process ends, however it does, so do its workers.",
        )
        before = time.monotonic()
        async with open_workers(count) as workers:
            pids = ", ".join(str(worker.pid) for worker in workers)
            self.console.print(f"Forked in {1000 * (time.monotonic() - before):.0f} ms: {pids}")
            succeeded = await self.digest_everything(workers) and await self.kill_one(workers)
        codes = ", ".join(f"{worker.pid} {worker.returncode}" for worker in workers)
        self.console.print(f"All are gone. Return codes: {codes}")
        return 0 if succeeded else FAILURE

    async def digest_everything(self, workers: Sequence[ProcessWorker]) -> bool:
        self.say(
            "Messages",
            f"The files in {printable(self.place)} go to the workers as messages of raw bytes, "
            "and SHA-256 digests come back. A write waits while a worker's pipe is full, so "
            "whoever has room takes the next file. hashlib here checks each digest.",
        )
        total = sum(file.size for file in self.files)
        before = time.monotonic()
        with progress(self.console, total) as advance:
            work = Round(self.files, on_done=lambda file: advance(file.size))
            await work.work(workers)
        right = self.judge(work, f"{time.monotonic() - before:.2f} seconds")
        self.files = [file for file in self.files if file not in work.unreadable]
        ended = self.describe_ended(workers, work)
        return right and not ended

    async def kill_one(self, workers: Sequence[ProcessWorker]) -> bool:
        self.say(
            "A death",
            "The largest files again; the first worker that has all of one but its end gets "
            "SIGKILL. Its channel ends, we learn how it died, and what it had in hand goes to the "
            "others, which notice nothing.",
        )
        killed: list[tuple[ProcessWorker, File]] = []

        def kill_first(worker: ProcessWorker, file: File) -> None:
            if not killed:
                killed.append((worker, file))
                worker.kill()

        largest = sorted(self.files, key=lambda file: -file.size)[:LAST_SCENE_FILES]
        work = Round(largest, on_given=kill_first)
        await work.work(workers)
        for worker, file in killed:
            await worker.wait()
            self.console.print(f"Killed at {self.name(file)}:")
        left = len(workers) - self.describe_ended(workers, work)
        return self.judge(work, f"by the {left} of {len(workers)} workers that are left")

    def judge(self, work: Round, remark: str) -> bool:
        """Say how it went; whether all files were digested, and right."""
        if work.left:
            complain(f"no worker is left, and {work.done} of {len(work.files)} files are done")
            return False
        if not work.done:
            complain(f"none of the {len(work.files)} files can be read")
            return False
        if work.unreadable:
            skipped = f"Skipped {len(work.unreadable)} that cannot be read"
            self.console.print(f"{skipped}: {self.names(work.unreadable)}")
        if work.different:
            differ = f"{len(work.different)} of {work.done} digests differ"
            complain(f"{differ}: {self.names(work.different)}")
            return False
        self.console.print(
            f"{work.done:,} files, {work.size:,} bytes, {remark}: all digests equal", style="green"
        )
        return True

    def describe_ended(self, workers: Sequence[ProcessWorker], work: Round) -> int:
        """Show what is known of the workers that have ended; answer how many."""
        ended = [worker for worker in workers if worker.returncode is not None]
        for worker in ended:
            table = Table.grid(padding=(0, 2))
            for name, fact in facts_of(worker):
                table.add_row(name, fact)
            if left := work.unfinished.get(worker, 0):
                table.add_row("unfinished", f"{left} of its files, which the others take over")
            self.console.print(Padding.indent(table, 2))
        return len(ended)

    def say(self, heading: str, text: str) -> None:
        self.console.print(f"\n{heading}", style="bold")
        self.console.print(text)

    def names(self, files: Iterable[File]) -> str:
        shown = [self.name(file) for file in sorted(files)]
        return ", ".join(shown[:SHOWN] + ["..."] * (len(shown) > SHOWN))

    def name(self, file: File) -> str:
        return printable(file.path.relative_to(self.place))


def facts_of(worker: ProcessWorker) -> Iterator[tuple[str, str]]:
    """What a host knows of a worker that has ended."""
    yield "returncode", str(worker.returncode)
    died = worker.died
    if died is None:  # exit status 0
        return
    yield "died", str(died)
    yield "signal_name", str(died.signal_name)
    yield "inside_message", str(died.inside_message)
    if isinstance(died.rusage, resource.struct_rusage):
        used = died.rusage
        times = f"{used.ru_utime:.2f} s user, {used.ru_stime:.2f} s system"
        yield "rusage", f"{times}, {megabytes(used.ru_maxrss * MAXRSS_UNIT)} at most"

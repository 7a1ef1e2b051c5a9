"""What the second part of ``forkwire demo`` shows, scene by scene: calls."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from signal import SIGKILL
from typing import Final

from rich.console import Console
from rich.padding import Padding
from rich.table import Table

from .. import RemoteError, Worker, WorkerDied, open_worker
from . import demo_service
from .demo_calls import (
    CommonWords,
    count_there,
    die,
    find_texts,
    interrupt,
    raise_,
    stream_phrases,
)
from .running import FAILURE, complain
from .terminal import printable, progress

__all__ = ["CallsDemo"]

SHOWN: Final = 5  # texts in the table
ASKED: Final = 12  # words that the worker asks about
TAIL: Final = 2  # lines of a remote traceback


class CallsDemo:
    """The scenes, and what they share. ``failed``: whether something was not as promised."""

    def __init__(self, console: Console, folder: Path | None) -> None:
        self.console = console
        self.place, self.paths = find_texts(folder)
        self.counts = dict(
            Counter(demo_service.words_of(" ".join(map(demo_service.read, self.paths))))
        )
        self.host = CommonWords(self.counts)
        self.failed = False

    async def play(self) -> int:
        self.say(
            "Calls",
            "On top of messages there are calls. A worker serves a module, here "
            "forkwire.cli.demo_service: plain functions, called by name or by themselves, with "
            "the types of their annotations on both sides.",
        )
        before = time.monotonic()
        async with open_worker(demo_service, host={"is_common": self.host.is_common}) as worker:
            took = 1000 * (time.monotonic() - before)
            names = ", ".join(f"{name} ({kind})" for name, kind in worker.methods.items())
            self.tell(f"Started in {took:.0f} ms: worker {worker.pid} offers {names}")
            await self.stream(worker)
            await self.send_stream(worker)
            await self.call_back(worker)
            await self.fail(worker)
            await self.cancel(worker)
            await self.kill(worker)
        return FAILURE if self.failed else 0

    async def stream(self, worker: Worker) -> None:
        self.say(
            "A stream, and progress",
            f"phrases(paths, length=3) yields a dataclass for each text in "
            f"{printable(self.place)}. It never runs far ahead of us, and it says how far it is.",
        )
        sizes = sum(len(demo_service.read(path)) for path in self.paths)
        with progress(self.console, sizes) as advance:
            texts = await stream_phrases(worker, self.paths, advance)
        self.show_texts(texts)
        words = sum(text.words for text in texts)
        self.check(words == sum(self.counts.values()), f"{words:,} words in {len(texts)} texts")

    def show_texts(self, texts: Sequence[demo_service.Text]) -> None:
        table = Table.grid(padding=(0, 2))
        for text in sorted(texts, key=lambda text: -text.words)[:SHOWN]:
            phrase = f'"{printable(text.phrase)}" {text.times} times' if text.times else ""
            table.add_row(printable(text.path.name), f"{text.words:,} words", phrase)
        self.console.print(Padding.indent(table, 2))

    async def send_stream(self, worker: Worker) -> None:
        self.say(
            "An argument that is a stream",
            "count_words(lines) gets an async generator of ours, and takes line after line as it "
            "has room for them; a dict comes back.",
        )
        counts, lines = await count_there(worker, self.paths)
        self.check(counts == self.counts, f"{len(counts):,} different words in {lines:,} lines")

    async def call_back(self, worker: Worker) -> None:
        self.say(
            "The worker calls us",
            "uncommon(words) asks its host, this process, about each word before it answers.",
        )
        longest = sorted(self.counts, key=lambda word: (-self.counts[word], word))
        asked = longest[20 : 20 + ASKED]
        answer = await worker.call(demo_service.uncommon, asked)
        right = answer == [word for word in asked if word not in self.host.words]
        shown = ", ".join(answer) or "none"
        self.check(right, f"Asked {self.host.asked} times, of {len(asked)} words: {shown}")

    async def fail(self, worker: Worker) -> None:
        self.say(
            "An exception",
            "first_words(path) opens a file that is not there. What it raises is raised here too: "
            "the builtin that it was, and a RemoteError that knows the traceback over there.",
        )
        error = await raise_(worker, self.place / "no such text")
        if isinstance(error, RemoteError):
            self.tell(f"except FileNotFoundError: {printable(error.message)}")
            lines = [line for line in error.traceback.splitlines() if line.strip(" ^~")]
            for line in lines[-TAIL:]:
                self.console.print(f"  {printable(line.strip())}")
        self.check(error is not None, "Caught; the worker goes on")

    async def cancel(self, worker: Worker) -> None:
        self.say(
            "A deadline",
            "ponder() is `while True: pass`. Our deadline travels with the call and interrupts "
            "the loop itself, and the worker is kept.",
        )
        pid = worker.pid
        found = await interrupt(worker)
        late = f"{1000 * found.late:.0f} ms after its deadline"
        again = await worker.call(demo_service.count_words, ["still here"])
        kept = found.stopped and again == {"still": 1, "here": 1}
        self.check(kept, f"Stopped {late}; worker {pid} answers the next call")

    async def kill(self, worker: Worker) -> None:
        self.say(
            "A death in the middle of a call",
            "ponder() again, and now the worker gets SIGKILL. Nothing hangs: the call raises "
            "WorkerDied, which tells the whole story.",
        )
        died = await die(worker)
        if died is not None:
            self.show_death(died)
        self.check(worker.returncode == -SIGKILL, "It is reaped, and nobody is left")

    def show_death(self, died: WorkerDied) -> None:
        table = Table.grid(padding=(0, 2))
        table.add_row("died", str(died))
        table.add_row("signal_name", str(died.signal_name))
        table.add_row("in_flight", ", ".join(died.in_flight))
        self.console.print(Padding.indent(table, 2))

    def check(self, right: bool, text: str) -> None:
        """Say how a scene ended."""
        if right:
            self.console.print(text, style="green")
        else:
            self.failed = True
            complain(f"not as it should be: {text}")

    def tell(self, text: str) -> None:
        self.console.print(text)

    def say(self, heading: str, text: str) -> None:
        self.console.print(f"\n{heading}", style="bold")
        self.console.print(text)

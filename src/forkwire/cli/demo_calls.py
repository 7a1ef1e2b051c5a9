"""What the second part of ``forkwire demo`` does: texts found, a service called in many ways."""

from __future__ import annotations

import stat
import sysconfig
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final, NamedTuple

import anyio

from .. import Worker, WorkerDied
from . import demo_service

__all__ = ["CommonWords", "Interrupted", "count_there", "die", "find_texts", "interrupt", "raise_",
           "stream_phrases"]  # fmt: skip

LICENCES: Final = Path("/usr/share/common-licenses")  # Debian's: real texts that everybody has
MOST_TEXTS: Final = 40
PHRASE: Final = 3  # words
PATIENCE: Final = 0.2  # seconds that the endless function is given
COMMON: Final = 25


class CommonWords:
    """What the worker may call in this process."""

    def __init__(self, counts: dict[str, int]) -> None:
        self.words = {word for word, _ in Counter(counts).most_common(COMMON)}
        self.asked = 0

    def is_common(self, word: str) -> bool:
        """Whether it is among the most frequent."""
        self.asked += 1
        return word in self.words


class Interrupted(NamedTuple):
    """How a function that never ends was stopped: ``late``, seconds after its deadline."""

    stopped: bool
    late: float


def find_texts(folder: Path | None) -> tuple[Path, list[Path]]:
    """Licences if they are here, else the standard library's modules; or what is in ``folder``."""
    if folder is not None:
        return folder, texts_in(folder, "*")
    if found := texts_in(LICENCES, "*"):
        return LICENCES, found
    library = Path(sysconfig.get_path("stdlib"))
    return library, texts_in(library, "*.py")


def texts_in(folder: Path, pattern: str) -> list[Path]:
    found = []
    for path in sorted(folder.glob(pattern)):
        # It went away, may not be looked at, or has a name that is no text.
        with suppress(OSError, UnicodeEncodeError):
            str(path).encode()
            if stat.S_ISREG(path.lstat().st_mode) and demo_service.read(path):
                found.append(path)
    return found[:MOST_TEXTS]


async def stream_phrases(
    worker: Worker, paths: Sequence[Path], advance: Callable[[int], None]
) -> list[demo_service.Text]:
    """What the worker finds in each text; ``advance`` is told how many characters are done."""
    before = 0

    def on_progress(done: float, total: float | None, text: str) -> None:
        nonlocal before
        advance(int(done) - before)
        before = int(done)

    calls = worker.options(on_progress=on_progress)
    return [text async for text in calls.stream(demo_service.phrases, paths, length=PHRASE)]


async def count_there(worker: Worker, paths: Sequence[Path]) -> tuple[dict[str, int], int]:
    """The words as the worker counts them, of lines that it gets one by one; how many lines."""
    sent = 0

    async def lines() -> AsyncIterator[str]:
        nonlocal sent
        for line in lines_of(paths):
            sent += 1
            yield line

    counts: dict[str, int] = await worker.call("count_words", lines())
    return counts, sent


def lines_of(paths: Sequence[Path]) -> Iterator[str]:
    for path in paths:
        yield from demo_service.read(path).splitlines()


async def raise_(worker: Worker, path: Path) -> FileNotFoundError | None:
    """Have the worker open a file that is not there; what that raises here."""
    try:
        await worker.call(demo_service.first_words, path)
    except FileNotFoundError as error:
        return error
    return None


async def interrupt(worker: Worker) -> Interrupted:
    """Give a function that never ends a deadline."""
    with anyio.move_on_after(PATIENCE) as scope:
        deadline = time.monotonic() + PATIENCE
        await worker.call("ponder")
    return Interrupted(scope.cancelled_caught, time.monotonic() - deadline)


async def die(worker: Worker) -> WorkerDied | None:
    """Kill the worker in the middle of a call; what that call raises."""

    def kill(done: float, total: float | None, text: str) -> None:
        worker.kill()

    try:
        await worker.options(on_progress=kill).call("ponder")
    except WorkerDied as died:
        return died
    return None

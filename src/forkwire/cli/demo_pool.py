"""What the third part of ``forkwire demo`` does: texts counted by a pool, one of them deadly."""

from __future__ import annotations

import logging
import os
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final, NamedTuple

from .. import Pool, ProcessExecutor
from . import demo_service

__all__ = ["Counted", "count", "count_and_crash", "execute", "warnings_of"]

LOGGER: Final = "forkwire"
STATUS: Final = 7  # of a process that a future ends


class Counted(NamedTuple):
    """Words of all texts, and the pids of the workers that counted them."""

    words: Counter[str]
    pids: set[int]


async def count(pool: Pool, paths: Sequence[Path], advance: Callable[[int], None]) -> Counted:
    """One call a text; ``advance`` is told of each that is done."""
    words: Counter[str] = Counter()
    pids: set[int] = set()
    async for pid, counts in pool.map(demo_service.count_file, paths):
        words.update(counts)
        pids.add(pid)
        advance(1)
    return Counted(words, pids)


async def count_and_crash(pool: Pool, paths: Sequence[Path]) -> Counter[str]:
    """The same; in the midst of it one call kills its worker, once, and is repeated."""
    words: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as folder:
        rows = [(path, Path(folder, "crashed") if n == len(paths) // 2 else None)
                for n, path in enumerate(paths)]  # fmt: skip
        calls = pool.options(retries=1)
        async for counts in calls.starmap(demo_service.count_or_crash, rows, ordered=False):
            words.update(counts)
    return words


def execute(paths: Sequence[Path], workers: int) -> tuple[Counter[str], BaseException | None]:
    """The same by an executor, and what became of a future that ended its worker. Blocks."""
    words: Counter[str] = Counter()
    with ProcessExecutor(max_workers=workers) as executor:
        ending = executor.submit(os._exit, STATUS)
        for _, counts in executor.map(demo_service.count_file, paths):
            words.update(counts)
        return words, ending.exception()


@contextmanager
def warnings_of(texts: list[str]) -> Iterator[None]:
    """What Forkwire logs meanwhile goes into ``texts``, and nowhere else."""
    logger = logging.getLogger(LOGGER)
    handler = Keeper(texts)
    propagated, logger.propagate = logger.propagate, False
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.propagate = propagated


class Keeper(logging.Handler):
    def __init__(self, texts: list[str]) -> None:
        super().__init__()
        self._texts: Final = texts

    def emit(self, record: logging.LogRecord) -> None:
        self._texts.append(record.getMessage())

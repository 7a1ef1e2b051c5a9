"""The service that ``forkwire demo`` calls: words of texts. A plain module of plain functions."""

from __future__ import annotations

import os
import re
import signal
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Final, NoReturn

from ..sync import current_call

__all__ = [
    "Text",
    "count_file",
    "count_or_crash",
    "count_words",
    "first_words",
    "phrases",
    "ponder",
    "uncommon",
]

WORD: Final = re.compile(r"[^\W\d_]+")
LONGEST: Final = 2**18  # bytes that are read of a text


@dataclass(frozen=True, slots=True)
class Text:
    """What is in one: how many words, and the phrase that stands there most often."""

    path: Path
    words: int
    phrase: str
    times: int


def phrases(paths: Sequence[Path], length: int) -> Iterator[Text]:
    """Of each text in turn, its most frequent run of ``length`` words."""
    done = 0
    for path in paths:
        content = read(path)
        words = words_of(content)
        runs = Counter(zip(*(islice(words, n, None) for n in range(length)), strict=False))
        phrase, times = max(runs.items(), key=lambda found: (found[1], found[0]), default=((), 0))
        done += len(content)
        current_call().progress(done, text=path.name)
        yield Text(path, len(words), " ".join(phrase), times)


def count_words(lines: Iterable[str]) -> dict[str, int]:
    """How often each word is in ``lines``, which may be a stream."""
    counts: Counter[str] = Counter()
    for line in lines:
        counts.update(words_of(line))
    return dict(counts)


def count_file(path: Path) -> tuple[int, dict[str, int]]:
    """How often each word is in a text, and the process that counted."""
    return os.getpid(), dict(Counter(words_of(read(path))))


def count_or_crash(path: Path, mark: Path | None) -> dict[str, int]:
    """The same; but if there is to be a ``mark`` and is none, leave it and kill this process."""
    if mark is not None and not mark.exists():
        mark.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return count_file(path)[1]


def uncommon(words: Sequence[str]) -> list[str]:
    """Those that the host does not call common: it is asked about each."""
    host = current_call().host
    return [word for word in words if not host.call("is_common", word)]


def first_words(path: Path) -> list[str]:
    """Of a text; raises what opening it raises."""
    return words_of(read(path))[:5]


def ponder() -> NoReturn:
    """Say once that it has begun, then compute for ever, and never wait."""
    current_call().progress(0)
    while True:
        pass


def read(path: Path) -> str:
    with open(path, "rb") as file:
        return file.read(LONGEST).decode(errors="replace")


def words_of(content: str) -> list[str]:
    return WORD.findall(content.lower())

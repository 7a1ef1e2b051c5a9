"""What a fork of this process would risk: other threads, event loops in them, locks they hold.

A child has one thread only, the one that forked. What another one had locked stays locked in it,
and what it was in the midst of stays half done. So we look before we fork, and say what was seen.
"""

from __future__ import annotations

import os
import re
import sys
import threading
import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import FrameType
from typing import Any, Final

from ..errors import ForkThreadsWarning
from .held_locks import (
    OURS,
    Frames,
    Names,
    held_locks,
    package_of,
    place_of,
    stack_of,
)

__all__ = ["ForkRisks", "examine_fork", "os_thread_count", "standing_still", "warn_of_threads"]

NAMED: Final = 8  # of each kind in the warning; the rest are counted
LOOKED_AT: Final = 64  # threads

LOOKS: Final = 5  # at threads that Python does not know of
OUR_THREADS: Final = "forkwire: "  # they share no lock with anybody

# Findings that are told one by one; a program that always has new ones is told no more.
MOST_TOLD: Final = 16
NUMBERS: Final = re.compile(r"[0-9]+")

# Forks that are looked at: what goes on for ever is not new any more.
MOST_EXAMINED: Final = 64

# Code that is not the user's.
LIBRARY: Final = os.path.join(os.path.dirname(os.__file__), "")
INSTALLED: Final = ("site-packages", "dist-packages")

LOOPS: Final = {
    ("asyncio.base_events", "run_forever"): "asyncio",
    ("asyncio.runners", "run"): "asyncio",  # uvloop's own has no frame
    ("trio._core._run", "run"): "trio",
}

# Threads that wait for a loop of ours to fork: as harmless as if they did it themselves.
standing_still: Final[set[int]] = set()

_told: set[str] = set()
_examined = 0


@dataclass(frozen=True, slots=True)
class ForkRisks:
    """What `examine_fork` has found. ``str()`` is the report.

    ``threads``: other threads of Python, each with the place where it is in code that is no
    library's. ``loops``: event loops that run in them. ``locks``: locks that were seen held;
    others may be. ``foreign``: how many threads Python does not know of.
    """

    threads: tuple[str, ...] = ()
    loops: tuple[str, ...] = ()
    locks: tuple[str, ...] = ()
    foreign: int = 0

    @property
    def safe(self) -> bool:
        """Whether no other thread runs: then nothing can be locked or half done by one."""
        return not self.threads and not self.foreign

    def __str__(self) -> str:
        if self.safe:
            return "safe to fork: no other thread runs"
        lines = [
            "not safe to fork: what other threads have locked now stays locked in the child",
            *(f"  thread {thread}" for thread in self.threads),
            *(f"  event loop: {loop}" for loop in self.loops),
            *(f"  locked: {lock}" for lock in self.locks),
        ]
        if self.foreign:
            lines.append(f"  threads that Python did not start: {self.foreign}")
        return "\n".join(lines)


def examine_fork() -> ForkRisks:
    """Look at what a fork of this process would risk now; `run` and ``start="fork"`` do so.

    Takes no lock, waits for nothing but the end of a thread that is ending, and runs no code of
    the program's. Forkwire's own threads, which share no lock with anybody, are left out.
    Never raises.
    """
    if os_thread_count() < 2:
        return ForkRisks()
    others, foreign = other_threads()
    for _ in range(LOOKS):
        if others or foreign <= 0:
            break
        time.sleep(0.001)  # one that has just ended is still listed
        others, foreign = other_threads()
    frames = frames_of(others)
    try:
        return ForkRisks(
            tuple(described(name, frames.get(number)) for number, name in others.items()),
            tuple(loops_in(frames, others)),
            held_locks(frames, others),
            max(foreign, 0),
        )
    finally:
        frames.clear()  # they hold all that the threads have


def os_thread_count() -> int:
    """The threads of this process, those of C libraries included where that can be known."""
    try:
        return len(os.listdir("/proc/self/task"))
    except OSError:
        return len(threading._active)  # type: ignore[attr-defined]


def other_threads() -> tuple[dict[int, str], int]:
    """The names of Python's threads but this one and ours, and how many Python does not know of.

    Not by :func:`threading.enumerate`, which takes a lock, nor by a property, which may be theirs.
    """
    active: Mapping[int, Any] = threading._active.copy()  # type: ignore[attr-defined]
    here = threading.get_ident()
    names = {
        number: str(vars(thread).get("_name"))
        for number, thread in active.items()
        if number != here
    }
    others = {
        number: repr(name)
        for number, name in names.items()
        if not (name.startswith(OUR_THREADS) or number in standing_still)
    }
    return others, os_thread_count() - 1 - len(names)


def frames_of(threads: Names) -> dict[int, FrameType]:
    """Where they are, as far as they run Python."""
    frames = sys._current_frames()
    try:
        return {number: frames[number] for number in list(threads)[:LOOKED_AT] if number in frames}
    finally:
        frames.clear()  # with our own among them: a circle


def described(name: str, frame: FrameType | None) -> str:
    """The thread of ``frame``, with the innermost place in it that is no library's."""
    if frame is None:
        return name
    users = next((each for each in stack_of(frame) if is_users(each)), frame)
    return f"{name} at {place_of(users)}"


def is_users(frame: FrameType) -> bool:
    name = frame.f_code.co_filename
    return not (
        name.startswith((LIBRARY, "<frozen "))
        or any(folder in name for folder in INSTALLED)
        or package_of(frame) == OURS
    )


def loops_in(frames: Frames, names: Names) -> list[str]:
    """``asyncio in 'name'``, for each that runs in one of them."""
    found: dict[int, str] = {}
    for number, frame in frames.items():
        for each in stack_of(frame):
            kind = LOOPS.get((str(each.f_globals.get("__name__")), each.f_code.co_name))
            if kind is not None:
                found.setdefault(number, f"{kind} in {names[number]}")
    return list(found.values())


# -- the warning --------------------------------------------------------------------------------


def warn_of_threads() -> None:
    """Tell what a fork risks, each finding once."""
    global _examined
    if len(_told) >= MOST_TOLD or _examined >= MOST_EXAMINED or os_thread_count() < 2:
        return
    _examined += 1
    risks = examine_fork()
    new = findings_of(risks) - _told
    if risks.safe or not new:
        return
    _told.update(new)
    warnings.warn(warning_of(risks), ForkThreadsWarning, stacklevel=users_level())


def findings_of(risks: ForkRisks) -> set[str]:
    """What makes the difference between two findings: not the number of a thread, nor its line."""
    threads = [thread.partition(" at ")[0] for thread in risks.threads]
    found = {NUMBERS.sub("", name) for name in (*threads, *risks.loops, *risks.locks)}
    return found | ({"foreign"} if risks.foreign else set())


def warning_of(risks: ForkRisks) -> str:
    names = few(risks.threads)
    if risks.foreign:
        names.append(f"{risks.foreign} not started by Python")
    text = (
        f"forking while other threads run ({'; '.join(names)}): a lock that one of them holds now "
        "stays locked in the worker, and what it is in the midst of stays half done. "
    )
    if risks.locks:
        text += f"Locked now: {'; '.join(few(risks.locks))}. "
    if risks.loops:
        text += f"Event loops run: {'; '.join(few(risks.loops))}. "
    return text + (
        'Use start="template" for a service that can be imported, or start workers before '
        "threads, or keep to code in the worker that shares no lock with them. "
        "forkwire.examine_fork() tells what there is"
    )


def few(names: Sequence[str]) -> list[str]:
    more = [f"{len(names) - NAMED} more"] if len(names) > NAMED else []
    return [*names[:NAMED], *more]


def users_level() -> int:
    """How far up the stack, for the function that asks, the first line is that is the user's."""
    level, frame = 1, sys._getframe(1)
    while frame.f_back is not None and package_of(frame) in (OURS, "contextlib"):
        level, frame = level + 1, frame.f_back
    return level

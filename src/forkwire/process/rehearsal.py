"""A worker's life, gone through before there is anything to do.

After a fork each page of memory that is written is copied first, and Python writes to whatever it
touches: most of the time of a start goes there. What a run of Python code makes and marks for the
first time is shared if it was run before the fork, in the template; and what it has touched is the
worker's own already, if it was run before the request, in a spare worker.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from typing import Any, Final

from . import child, descriptors, fork, ownership, signals, waiting
from .cancelling import Termination

__all__ = ["Play", "rehearse", "warm_up"]

# A function of a worker, and all that its host will ever say to it. It leaves things as they were.
Play = tuple[Callable[[Any, Any, Any], object], bytes]

# Python makes code quicker, and so changes it in memory, once it has run some eight times.
RUNS: Final = 10


def warm_up(play: Play) -> bool:
    """In the template, before its first fork: run the play, often enough. Answers True."""
    for _ in range(RUNS):
        perform(play, None)
    waiting.drop_waker()  # all workers would inherit it
    return True


def rehearse(play: Play, handled: list[int], parent: int) -> None:
    """In a spare worker: enter, as a worker does, and run the play.

    ``handled``: signals that have a handler.
    """
    perform(play, (handled, parent))


def perform(play: Play, entered: tuple[list[int], int] | None) -> None:
    """At its end signals do what they do in a process that has set none."""
    work, conversation = play
    hook = sys.unraisablehook
    opened = [*descriptors.make_pipe(), *descriptors.make_pipe()]
    os.write(opened[1], conversation)
    ends = fork.Ends(opened[0], opened[1], opened[2], opened[3], os.open(os.devnull, os.O_WRONLY))
    if entered is not None:
        ends.child_stderr, ends.child_stdout = os.dup(2), os.dup(1)
    options = fork.Options("asyncio", 0.0, 1 << 20, False, True, True, True)
    birth = fork.prepare(work, None, options, ends, 0, frozenset())
    birth.descriptors = ownership.Plan(ends.theirs(), [], [], [])
    signals.pthread_sigmask(signal.SIG_BLOCK, signals.ALL_SIGNALS)
    termination = Termination()
    if entered is None:
        birth.descriptors.carry_out()
        ownership.close(ends.table)
    else:
        birth.handled, birth.host = entered
        child.forget_exit_functions()
        child.enter(birth, termination)
    child.work(birth, termination)
    for fd in ends.ours():
        os.close(fd)
    waiting.forget_wakeup()
    sys.unraisablehook = hook
    signals.set_handler(signal.SIGTERM, signals.SIG_DFL)
    signals.pthread_sigmask(signal.SIG_SETMASK, ())

"""A worker's beginning, gone through once before there is anything to do.

After a fork each page of memory that is written is copied first, and Python writes the reference
count of whatever it touches: most of the time of a start goes there. A spare worker has it behind
it when its request comes.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from typing import Any

from . import child, descriptors, fork, ownership, signals, waiting
from .cancelling import Termination

__all__ = ["rehearse"]


Play = tuple[Callable[[Any, Any, Any], object], bytes]


def rehearse(play: Play, handled: list[int], parent: int) -> None:
    """Enter, and run ``work(input, output, None)`` on what ``conversation`` has it read.

    Both are ``play``. It has to leave things as they were; signals do, at the end of this, what
    they do in a process that has set none.
    """
    work, conversation = play
    hook = sys.unraisablehook
    opened = [*descriptors.make_pipe(), *descriptors.make_pipe()]
    os.write(opened[1], conversation)
    table = os.open(os.devnull, os.O_WRONLY)
    ends = fork.Ends(opened[0], opened[1], opened[2], opened[3], table)
    ends.child_stderr, ends.child_stdout = os.dup(2), os.dup(1)
    options = fork.Options("asyncio", 0.0, 1 << 20, False, True, True, True)
    birth = fork.prepare(work, None, options, ends, 0, frozenset())
    birth.handled, birth.host = handled, parent
    birth.descriptors = ownership.Plan(ends.theirs(), [], [], [])
    signals.pthread_sigmask(signal.SIG_BLOCK, signals.ALL_SIGNALS)
    termination = Termination()
    child.forget_exit_functions()
    child.enter(birth, termination)
    child.work(birth, termination)
    for fd in ends.ours():
        os.close(fd)
    waiting.forget_wakeup()
    sys.unraisablehook = hook
    signals.set_handler(signal.SIGTERM, signals.SIG_DFL)
    signals.pthread_sigmask(signal.SIG_SETMASK, ())

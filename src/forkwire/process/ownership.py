"""Descriptors that no forked child may keep, whoever forks it.

Close-on-exec does nothing for a fork without exec, so a pipe's end would live on in a sibling and
its end of file never come. In every child of this process, also one that ``multiprocessing`` or
``os.fork`` makes, each owned descriptor is overlaid with a placeholder. It is not closed: the
objects that own the numbers live on in the child, and when they are finalised they would close
whatever file got the number next.

There is no lock: a hook that waits for one at a fork, which holds others' locks by then, is a
deadlock. Instead forks are counted, and what was made while one was going on is made again.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

__all__ = ["Plan", "close", "disown", "end_fork", "make_owned", "overlay", "own", "plan_fork"]

# With its inode: the number may be another's by now. No two entries are the same object.
_owned: dict[int, tuple[int]] = {}
_planning: set[int] = set()  # threads whose fork goes by a `Plan`
_forking: set[int] = set()  # threads
_fork_numbers = itertools.count(1)
_last_fork = 0

# A thread may be long in other hooks at a fork, or, interrupted there, never come back.
PATIENCE: Final = 1.0  # seconds


def own(fd: int) -> None:
    """``fd`` belongs to this process alone."""
    _owned[fd] = (os.fstat(fd).st_ino,)


def disown(fd: int) -> None:
    """The owner of ``fd`` sees to it in every child by itself."""
    _owned.pop(fd, None)


def make_owned(make: Callable[[], tuple[int, ...]]) -> tuple[int, ...]:
    """Descriptors from ``make``, owned from the first moment."""
    deadline = time.monotonic() + PATIENCE
    while True:
        last, quiet = _last_fork, not _forking
        fds = make()
        for fd in fds:
            own(fd)
        if (quiet and last == _last_fork) or time.monotonic() > deadline:
            return fds
        for fd in fds:  # the child of another thread's fork may have them too
            close(fd)
        time.sleep(0)


def close(fd: int) -> None:
    """Close an owned ``fd``. Owned until it is closed, so that no child gets it in between."""
    entry = _owned.get(fd)
    try:
        os.close(fd)
    finally:
        if entry is not None and _owned.get(fd) is entry:  # else another thread has got it
            del _owned[fd]


@dataclass(slots=True)
class Plan:
    """What becomes of descriptors in a child, decided before the fork: it costs less there."""

    kept: Iterable[int]
    closed: Iterable[int]
    covered: list[int]
    silenced: Iterable[int]

    def carry_out(self) -> None:
        """In the child. Raises :exc:`OSError`."""
        _owned.clear()
        for fd in self.kept:
            own(fd)
        for fd in self.closed:
            os.close(fd)
        overlay(self.covered)
        overlay(self.silenced, os.O_RDWR)


def plan_fork(
    kept: Sequence[int], closed: Sequence[int] = (), silenced: Iterable[int] = ()
) -> Plan:
    """Begin a fork of this thread, whose child carries out what this answers; then `end_fork`.

    ``kept``: owned descriptors that the child owns then. ``closed``: those that no inherited
    object will ever touch. ``silenced``: others, that swallow what is written to them. All else
    that is owned is covered.
    """
    thread = threading.get_ident()
    _begin_fork(thread)
    _planning.add(thread)
    covered = [
        fd
        for fd, inode in owned_now()
        if fd not in kept and fd not in closed and is_still_owned(fd, inode)
    ]
    return Plan(kept, closed, covered, silenced)


def end_fork() -> None:
    """In the parent: the fork that `plan_fork` began is over."""
    thread = threading.get_ident()
    _planning.discard(thread)
    _forking.discard(thread)


# What refuses to be read and written, with EBADF.
DEAD: Final = os.O_PATH if sys.platform == "linux" else os.O_WRONLY


def overlay(fds: Iterable[int], how: int = DEAD) -> None:
    """Put a descriptor of /dev/null, opened as ``how`` says, over each of ``fds``.

    The file behind each is released, its number stays in use.
    """
    rest = list(fds)
    if not rest:
        return
    with contextlib.suppress(OSError):  # another thread has closed it since the fork was planned
        os.close(rest[0])  # so that there is room where the table is full
    placeholder = os.open(os.devnull, how)
    for fd in rest:
        if fd != placeholder:
            os.dup2(placeholder, fd, inheritable=False)
    if placeholder not in rest:
        os.close(placeholder)


def owned_now() -> Iterator[tuple[int, int]]:
    """The descriptors and their inodes, while a finaliser may let go of some."""
    for fd in list(_owned):  # the numbers alone: to make tuples may collect garbage half way
        entry = _owned.get(fd)
        if entry is not None:
            yield fd, entry[0]


def is_still_owned(fd: int, inode: int) -> bool:
    try:
        return os.fstat(fd).st_ino == inode
    except OSError:
        return False


def _begin_fork(thread: int) -> None:
    global _last_fork
    _forking.add(thread)
    _last_fork = next(_fork_numbers)


def _before_fork() -> None:
    thread = threading.get_ident()
    if thread not in _planning:
        _begin_fork(thread)


def _after_fork_in_parent() -> None:
    thread = threading.get_ident()
    if thread not in _planning:
        _forking.discard(thread)


def _after_fork_in_child() -> None:
    _forking.clear()  # no other thread is here
    if threading.get_ident() in _planning:
        _planning.clear()
        return
    _planning.clear()
    try:
        overlay(fd for fd, inode in owned_now() if is_still_owned(fd, inode))
    finally:
        _owned.clear()


os.register_at_fork(
    before=_before_fork,
    after_in_parent=_after_fork_in_parent,
    after_in_child=_after_fork_in_child,
)

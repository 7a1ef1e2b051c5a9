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
from collections.abc import Callable, Iterable, Iterator
from typing import Final

__all__ = ["close", "kept_in_child", "make_owned", "overlay", "own"]

_owned: set[tuple[int, int]] = set()  # with its inode: the number may be another's by now
_kept: dict[int, frozenset[int]] = {}  # a thread that forks: what its child keeps
_forking: set[int] = set()  # threads
_fork_numbers = itertools.count(1)
_last_fork = 0

# A thread may be long in other hooks at a fork, or, interrupted there, never come back.
PATIENCE: Final = 1.0  # seconds


def own(fd: int) -> None:
    """``fd`` belongs to this process alone."""
    _owned.add((fd, os.fstat(fd).st_ino))


def make_owned(make: Callable[[], tuple[int, int]]) -> tuple[int, int]:
    """Two descriptors from ``make``, owned from the first moment."""
    deadline = time.monotonic() + PATIENCE
    while True:
        last, quiet = _last_fork, not _forking
        ends = make()
        for fd in ends:
            own(fd)
        if (quiet and last == _last_fork) or time.monotonic() > deadline:
            return ends
        for fd in ends:  # the child of another thread's fork may have them too
            close(fd)
        time.sleep(0)


def close(fd: int) -> None:
    """Close an owned ``fd``. Owned until it is closed, so that no child gets it in between."""
    entry = (fd, os.fstat(fd).st_ino)
    try:
        os.close(fd)
    finally:
        _owned.discard(entry)


@contextlib.contextmanager
def kept_in_child(*fds: int) -> Iterator[None]:
    """A child that this thread forks now keeps ``fds``, though they are owned."""
    _kept[threading.get_ident()] = frozenset(fds)
    try:
        yield
    finally:
        _kept.pop(threading.get_ident(), None)


def overlay(fds: Iterable[int]) -> None:
    """Put a descriptor that refuses reading and writing (EBADF) over each of ``fds``.

    The file behind each is released, its number stays in use.
    """
    rest = list(fds)
    if not rest:
        return
    os.close(rest[0])  # so that there is room where the table is full
    placeholder = os.open(os.devnull, os.O_PATH if sys.platform == "linux" else os.O_WRONLY)
    for fd in rest:
        if fd != placeholder:
            os.dup2(placeholder, fd, inheritable=False)
    if placeholder not in rest:
        os.close(placeholder)


def is_still_owned(fd: int, inode: int) -> bool:
    try:
        return os.fstat(fd).st_ino == inode
    except OSError:
        return False


def _before_fork() -> None:
    global _last_fork
    _forking.add(threading.get_ident())
    _last_fork = next(_fork_numbers)


def _after_fork_in_parent() -> None:
    _forking.discard(threading.get_ident())


def _after_fork_in_child() -> None:
    _forking.clear()  # no other thread is here
    kept = _kept.get(threading.get_ident(), frozenset())
    try:
        overlay(fd for fd, inode in _owned if fd not in kept and is_still_owned(fd, inode))
    finally:
        _owned.clear()
        _kept.clear()


os.register_at_fork(
    before=_before_fork,
    after_in_parent=_after_fork_in_parent,
    after_in_child=_after_fork_in_child,
)

"""The host's templates: one for each kind of worker, made at its first use and shared by all.

No lock is held while anybody waits, and none of these waits but `close_templates`: a template that
is stopped, or imports for ever, is in nobody's way.
"""

from __future__ import annotations

import atexit
import contextlib
import logging
import os
import signal
import threading
import time
from collections.abc import Iterator
from typing import Final

from ..errors import WorkerStartError
from . import guard, signals
from .template import ENDING_SECONDS, Recipe, Template

__all__ = [
    "close_templates",
    "drop",
    "get",
    "is_ready",
    "let_go_of",
    "put_back",
    "set_aside",
    "without_preload",
]

# Idle ones beyond that are ended, the longest unused first: each has memory of its own.
MOST_IDLE: Final = 8

logger: Final = logging.getLogger("forkwire")

_lock = threading.Lock()
_current: dict[Recipe, Template] = {}
_retired: list[Template] = []
_aside: list[Template] = []  # whose place another one has, for now
_bare: set[Recipe] = set()  # for which nothing can be preloaded
_fell: set[Recipe] = set()  # whose last template ended before it was ready


def get(recipe: Recipe) -> Template:
    """The template to use now, made if need be; it may not be ready yet.

    Raises :exc:`WorkerStartError`.
    """
    if _retired:
        with _lock, unsignalled():
            sweep()
    found = _current.get(recipe)
    if found is None or found.is_gone:
        found = replacement(recipe)
    found.used = time.monotonic()
    return found


def replacement(recipe: Recipe) -> Template:
    with _lock, unsignalled():
        sweep()
        found = _current.get(recipe)
        if found is not None and not found.is_gone:  # another thread was quicker
            return found
        if found is not None:
            found.close()
        _current[recipe] = found = make(recipe)
        retire_some(found)
        return found


def make(recipe: Recipe) -> Template:
    guard.ensure_guard()
    try:
        return Template(recipe, bare=recipe in _bare)
    except OSError as error:
        raise WorkerStartError(
            error.errno, f"a template process could not be started: {error.strerror}"
        ) from error


@contextlib.contextmanager
def unsignalled() -> Iterator[None]:
    """Signals' handlers, which may raise, run after it."""
    mask = signals.pthread_sigmask(signal.SIG_BLOCK, signals.ALL_SIGNALS)
    try:
        yield
    finally:
        signals.pthread_sigmask(signal.SIG_SETMASK, mask)


def without_preload(template: Template, why: str) -> None:
    """It is of no use: the next for its recipe imports nothing but ours.

    One that has ended may have been killed; only the second in a row says something.
    """
    with _lock, unsignalled():
        recipe = template.recipe
        if template.retired:  # another thread was quicker
            return
        let_go(template)
        if not template.threads and recipe not in _fell:
            _fell.add(recipe)
            return
        _bare.add(recipe)
        logger.warning("%s", why)


def is_ready(template: Template) -> None:
    """It has imported what it had to."""
    _fell.discard(template.recipe)


def let_go(template: Template) -> None:
    """It gets no more requests, and is forgotten once it has ended."""
    if not template.retired:
        template.retire()
        _retired.append(template)
    if template in _aside:
        _aside.remove(template)
    if _current.get(template.recipe) is template:
        del _current[template.recipe]


def let_go_of(template: Template) -> None:
    """It does not answer: its workers may go on, but it gets no more."""
    with _lock, unsignalled():
        let_go(template)


def drop(template: Template) -> None:
    """It hangs: end it."""
    with _lock, unsignalled():
        template.kill()
        let_go(template)


def sweep() -> None:
    """Forget those that have ended."""
    for template in [each for each in _retired if each.is_gone]:
        template.close()
        _retired.remove(template)


def retire_some(new: Template) -> None:
    idle = [each for each in _current.values() if not each.workers and each is not new]
    idle.sort(key=lambda each: each.used)
    for template in idle[: max(0, len(idle) + 1 - MOST_IDLE)]:
        let_go(template)


def set_aside(recipe: Recipe) -> Template | None:
    """The next worker gets a new template, which imports everything anew.

    The present one waits: for `put_back`, or for `let_go_of`.
    """
    with _lock, unsignalled():
        _bare.discard(recipe)
        template = _current.pop(recipe, None)
        if template is not None:
            _aside.append(template)
        return template


def put_back(template: Template) -> None:
    """It has its place again; the one that has it now is of no use."""
    with _lock, unsignalled():
        if template not in _aside:
            return
        _aside.remove(template)
        if template.recipe in _current:
            let_go(_current[template.recipe])
        _current[template.recipe] = template
        if template.bare:
            _bare.add(template.recipe)


def close_templates() -> None:
    """End the templates that have no worker; those that have one end after it.

    Workers that are started later get new ones, which import their services anew. Blocks until the
    idle ones have ended, some milliseconds.
    """
    with _lock, unsignalled():
        _bare.clear()
        _fell.clear()
        idle = [each for each in all_of_them() if not each.workers]
        for template in (*_current.values(), *_aside):
            let_go(template)
    until = time.monotonic() + ENDING_SECONDS
    for template in idle:
        while not template.is_gone and time.monotonic() < until:
            time.sleep(0.001)
        template.kill()
    with _lock, unsignalled():
        sweep()


def all_of_them() -> list[Template]:
    return [*_current.values(), *_aside, *_retired]


@atexit.register
def _at_exit() -> None:
    """They see it, and end; not those that import, perhaps for ever."""
    for template in all_of_them():
        if template.threads is None:
            template.kill()
        template.close()


def _after_fork_in_child() -> None:
    """They are the parent's, and another thread of it may have held the lock."""
    global _lock
    _lock = threading.Lock()
    for template in all_of_them():
        template.forget()
    _current.clear()
    _aside.clear()
    _retired.clear()
    _bare.clear()
    _fell.clear()


os.register_at_fork(after_in_child=_after_fork_in_child)

"""The host's templates: one for each kind of worker, made at its first use and shared by all.

No lock is held while anybody waits, and none of these ever waits: a template that is stopped, or
imports for ever, is in nobody's way. What runs over there is in `template_main`.
"""

from __future__ import annotations

import atexit
import contextlib
import errno
import json
import logging
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

from ..errors import WorkerStartError
from . import descriptors, guard, guard_main, ownership, signals, template_wire
from .template_wire import Message

__all__ = ["Recipe", "Template", "close_templates", "get", "retire", "sys_path"]

# Idle ones beyond that are ended, the longest unused first: each has memory of its own.
MOST_IDLE: Final = 8

REPORT_SIZE: Final = 64 * 1024  # bytes, of what a template says once it is ready
STAGES_SIZE: Final = 64 * 1024  # bytes: a pipe's worth of names

# For one that was told to end. It runs exit functions of what it imported.
ENDING_SECONDS: Final = 2.0

# The shell's job is to be the template's parent and end at once, so that the template is nobody's
# child here, and to tell its pid.
DETACH: Final = '"$@" {0}>&- & echo $! >&{0}'
ONE_DIGIT: Final = range(3, 10)  # a shell knows no longer numbers of descriptors
PROGRAM: Final = (
    "import sys; sys.path[:] = sys.argv[3:]; "
    "from forkwire.process.template_main import main; main(sys.argv[1:3])"
)


# Whatever this process ignores: a template waits for its children, and ends when it is told.
USUAL: Final = (signal.SIGCHLD, signal.SIGINT, signal.SIGPIPE, signal.SIGTERM)

logger: Final = logging.getLogger("forkwire")


@dataclass(frozen=True, slots=True)
class Recipe:
    """What a template is made of; equal ones share it.

    ``label``: for people. ``work``: the ``"module:function"`` that each worker runs as
    ``work(input, output, (prepared, request, *fds))``. ``imports``: modules; ``prepare``: a
    function whose result is ``prepared``, called with ``argument``. Both are left out of a bare
    template, which imports ``base`` only. ``path``: :data:`sys.path`, with ``folder`` where
    something in it depends on that.
    """

    label: str
    work: str
    base: tuple[str, ...]
    imports: tuple[str, ...]
    prepare: str
    argument: tuple[object, ...]
    executable: str
    path: tuple[str, ...]
    folder: str


def sys_path() -> tuple[tuple[str, ...], str]:
    """``path`` and ``folder`` of a `Recipe`, as they are now."""
    entries: list[object] = [*sys.path]
    path = tuple(entry for entry in entries if isinstance(entry, str))
    return path, "" if all(map(os.path.isabs, path)) else current_folder()


def current_folder() -> str:
    try:
        return os.getcwd()
    except OSError:  # it was deleted
        return ""


class Template:
    """One template process. ``workers``: those that are not reaped yet."""

    grace: Final = 0.5  # seconds, for the guard: it has nothing to finish

    def __init__(self, recipe: Recipe, *, bare: bool) -> None:
        """Start it. Raises :exc:`OSError`."""
        self.recipe: Final = recipe
        self.bare: Final = bare
        self.workers = 0
        self.used = time.monotonic()
        self.retired = False
        self.pid = 0
        self._said: dict[str, Any] | None = None
        self._stage = ""
        self._environ: Final = dict(os.environ)
        self._folder: Final = current_folder()
        self._argv: Final = list(sys.argv)
        self._control, theirs = template_wire.pair()
        try:
            self._stages, stages = ownership.make_owned(descriptors.make_pipe)
        except BaseException:
            template_wire.close_socket(self._control)
            template_wire.close_socket(theirs)
            raise
        self._slot: Final = guard.reserve(self)
        try:
            self.pid = execute(recipe, theirs.fileno(), stages)
            guard.tell(self._slot)
            template_wire.send(self._control, self._setup(), [])
        except BaseException:
            self.kill()
            self.close()
            raise
        finally:
            template_wire.close_socket(theirs)
            ownership.close(stages)

    def _setup(self) -> Message:
        recipe, bare = self.recipe, self.bare
        return {
            "work": recipe.work,
            "imports": recipe.base if bare else (*recipe.base, *recipe.imports),
            "prepare": "" if bare else recipe.prepare,
            "argument": recipe.argument,
            "environ": self._environ,
            "argv": self._argv,
        }

    def fileno(self) -> int:
        """Readable once it is ready, or gone; -1 when it was closed."""
        return self._control.fileno()

    @property
    def threads(self) -> list[str] | None:
        """Those that it runs once it is ready: with one it is of no use. None: it is not ready.

        What it said is left where it is, for every thread and loop that waits for it.
        """
        if self._said is None:
            with contextlib.suppress(OSError, ValueError):
                said = self._control.recv(REPORT_SIZE, socket.MSG_PEEK | socket.MSG_DONTWAIT)
                self._said = json.loads(said) if said else None
        return None if self._said is None else self._said["threads"]

    @property
    def is_gone(self) -> bool:
        """Whether it has ended."""
        if self.fileno() < 0:
            return True
        poll = select.poll()
        poll.register(self.fileno(), 0)
        return bool(poll.poll(0))

    @property
    def stage(self) -> str:
        """What it imports now, or did at last."""
        with contextlib.suppress(OSError):
            names = os.read(self._stages, STAGES_SIZE).decode(errors="replace").splitlines()
            self._stage = names[-1] if names else self._stage
        return self._stage

    def request(self, message: Message, fds: Sequence[int]) -> None:
        """Ask for a worker. Raises :exc:`OSError`: EAGAIN when there is no room for that now."""
        self.used = time.monotonic()
        if os.environ != self._environ:
            message["environ"] = dict(os.environ)
        folder = current_folder()
        if folder != self._folder:
            message["folder"] = folder
        if sys.argv != self._argv:
            message["argv"] = sys.argv
        template_wire.send(self._control, message, fds)

    def retire(self) -> None:
        """No more requests: it ends when its last worker has."""
        self.retired = True
        with contextlib.suppress(OSError):
            self._control.shutdown(socket.SHUT_WR)

    def kill(self) -> None:
        """Its workers get SIGTERM for that."""
        if self.pid and not self.is_gone:  # a number that is still its own
            guard_main.signal_group(self.pid, signal.SIGKILL)

    def forget(self) -> None:
        """In a fork: it is the parent's, and our descriptor is only a placeholder."""
        self._control.detach()

    def close(self) -> None:
        """It has ended, or is no concern of ours. Idempotent."""
        if self.fileno() >= 0:
            template_wire.close_socket(self._control)
            ownership.close(self._stages)
            guard.forget(self._slot)


def execute(recipe: Recipe, control: int, stages: int) -> int:
    """Start a template; its pid. Raises :exc:`OSError`."""
    told, tell = ownership.make_owned(descriptors.make_pipe)
    try:
        # Other numbers than they have, so that dup2 clears close-on-exec.
        to = [number for number in ONE_DIGIT if number not in (control, stages, tell)]
        python = [recipe.executable, *interpreter_flags(), "-c", PROGRAM]
        shell = os.posix_spawn(
            "/bin/sh",
            ["sh", "-c", DETACH.format(to[2]), "sh", *python, *map(str, to[:2]), *recipe.path],
            os.environ,
            file_actions=[
                *(
                    (os.POSIX_SPAWN_DUP2, *pair)
                    for pair in zip((control, stages, tell), to[:3], strict=True)
                ),
                (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
            ],
            setpgroup=0,
            setsigmask=(),
            setsigdef=USUAL,
        )
        with contextlib.suppress(ChildProcessError):  # SIGCHLD is ignored
            os.waitpid(shell, 0)
        pid = os.read(told, 32) if guard_main.readable(told, ENDING_SECONDS) else b""
        if not pid.strip().isdigit():
            raise OSError(errno.ECHILD, "/bin/sh did not start the interpreter")
        return int(pid)
    finally:
        ownership.close(told)
        ownership.close(tell)


def interpreter_flags() -> list[str]:
    """Those that make another interpreter behave as this one."""
    flags: list[str] = subprocess._args_from_interpreter_flags()  # type: ignore[attr-defined]
    return flags


# -- all of them --------------------------------------------------------------------------------

_lock = threading.Lock()
_current: dict[Recipe, Template] = {}  # the longest unused first
_retired: list[Template] = []
_bare: set[Recipe] = set()  # for which nothing can be preloaded


def get(recipe: Recipe) -> Template:
    """The template to use now, made if need be; it may not be ready yet.

    Raises :exc:`WorkerStartError`.
    """
    with _lock, unsignalled():
        sweep()
        found = _current.pop(recipe, None)
        if found is None or found.is_gone:
            if found is not None:
                found.close()
            found = make(recipe)
        _current[recipe] = found  # the last one: just used
        retire_some()
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
    """It is of no use: the next for its recipe imports nothing but ours."""
    with _lock, unsignalled():
        if template.recipe not in _bare:
            _bare.add(template.recipe)
            logger.warning("%s", why)
        let_go(template)


def let_go(template: Template) -> None:
    """It gets no more requests, and is forgotten once it has ended."""
    if not template.retired:
        template.retire()
        _retired.append(template)
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


def retire_some() -> None:
    idle = [each for each in _current.values() if not each.workers]
    for template in idle[: max(0, len(idle) - MOST_IDLE)]:
        let_go(template)


def retire(recipe: Recipe) -> None:
    """The next worker gets a new template, which imports everything anew.

    The present one ends when its last worker has.
    """
    with _lock, unsignalled():
        _bare.discard(recipe)
        if recipe in _current:
            let_go(_current[recipe])


def close_templates() -> None:
    """End the templates that have no worker; those that have one end after it.

    Workers that are started later get new ones, which import their services anew. Blocks until the
    idle ones have ended, some milliseconds.
    """
    with _lock, unsignalled():
        _bare.clear()
        idle = [each for each in (*_current.values(), *_retired) if not each.workers]
        for template in list(_current.values()):
            let_go(template)
    until = time.monotonic() + ENDING_SECONDS
    for template in idle:
        while not template.is_gone and time.monotonic() < until:
            time.sleep(0.001)
        template.kill()
    with _lock, unsignalled():
        sweep()


@atexit.register
def _at_exit() -> None:
    """They see it, and end."""
    for template in (*_current.values(), *_retired):
        template.close()


def _after_fork_in_child() -> None:
    """They are the parent's, and another thread of it may have held the lock."""
    global _lock
    _lock = threading.Lock()
    for template in (*_current.values(), *_retired):
        template.forget()
    _current.clear()
    _retired.clear()
    _bare.clear()


os.register_at_fork(after_in_child=_after_fork_in_child)

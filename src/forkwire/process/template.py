"""One template, as its host sees it: how it is executed, what it has said, how to ask it.

None of this ever waits for it. What runs over there is in `template_main`.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from . import descriptors, guard, guard_main, ownership, template_wire
from .template_wire import Message

__all__ = ["ENDING_SECONDS", "Recipe", "Template", "sys_path"]

# A template without a worker or a request for so long ends: the next start makes a new one.
IDLE_SECONDS: Final = 60.0

GRACE: Final = 0.5  # seconds, for the guard: a template has nothing to finish

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


@dataclass(frozen=True, slots=True)
class Recipe:
    """What a template is made of; equal ones share it.

    ``label``: for people. ``work``: the ``"module:function"`` that each worker runs as
    ``work(input, output, (prepared, request, is_first, *fds))``. ``imports``: modules;
    ``prepare``: a function whose result is ``prepared``, called with ``argument`` and ``hint``,
    which makes no difference. All that is left out of a bare template, which imports ``base``
    only. ``path``: :data:`sys.path`, with ``folder`` where something in it depends on that.
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
    hint: object = field(default=None, compare=False)
    rehearse: str = ""


def sys_path() -> tuple[tuple[str, ...], str]:
    """``path`` and ``folder`` of a `Recipe`, as they are now."""
    entries: list[object] = [*sys.path]
    path = tuple(entry for entry in entries if isinstance(entry, str))
    return path, "" if all(map(os.path.isabs, path)) else current_folder()


def environment() -> Mapping[Any, Any]:
    """What compares in a moment."""
    return getattr(os.environ, "_data", os.environ)  # else each name and value is decoded


def current_folder() -> str:
    try:
        return os.getcwd()
    except OSError:  # it was deleted
        return ""


class Template:
    """One template process.

    ``workers``: those that were asked for, and are not reaped yet. ``used``: when it was wanted
    last, a monotonic time.
    """

    def __init__(self, recipe: Recipe, *, bare: bool) -> None:
        """Start it. Raises :exc:`OSError`."""
        self.recipe: Final = recipe
        self.bare: Final = bare
        self.workers: Final[set[object]] = set()
        self.used = time.monotonic()
        self.retired = False
        self.pid = 0
        self.grace = GRACE
        self._said: dict[str, Any] | None = None
        self._stage = ""
        self._environ: Final = dict(environment())
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
            "hint": recipe.hint,
            "rehearse": recipe.rehearse,
            "idle": IDLE_SECONDS,
            "environ": dict(os.environ),
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
                if said:
                    self._close_stages()
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
        with contextlib.suppress(OSError):  # none, or none any more
            names = os.read(self._stages, STAGES_SIZE).decode(errors="replace").splitlines()
            self._stage = names[-1] if names else self._stage
        return self._stage

    def request(self, message: Message, fds: Sequence[int]) -> None:
        """Ask for a worker. Raises :exc:`OSError`: EAGAIN when there is no room for that now."""
        if environment() != self._environ:
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
            self._close_stages()
            guard.forget(self._slot)

    def _close_stages(self) -> None:
        fd, self._stages = self._stages, -1
        if fd >= 0:
            ownership.close(fd)


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
            setsigmask=(signal.SIGINT,),  # a terminal's, until it is in a group of its own
            setsigdef=USUAL,
        )
        ownership.close(tell)
        tell = -1
        with contextlib.suppress(ChildProcessError):  # SIGCHLD is ignored
            os.waitpid(shell, 0)
        pid = os.read(told, 32) if guard_main.readable(told, ENDING_SECONDS) else b""
        if not pid.strip().isdigit():
            raise OSError(errno.ECHILD, "/bin/sh did not start the interpreter")
        return int(pid)
    finally:
        ownership.close(told)
        if tell >= 0:
            ownership.close(tell)


def interpreter_flags() -> list[str]:
    """Those that make another interpreter behave as this one."""
    flags: list[str] = subprocess._args_from_interpreter_flags()  # type: ignore[attr-defined]
    return flags

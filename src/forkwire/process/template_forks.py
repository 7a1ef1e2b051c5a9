"""How a template forks: at a request, or in advance of one.

The child of either becomes a worker as a fork of a host does, by way of `child`. A spare one has
gone through a worker's beginning when its request comes, so that little is left to do then. Knows
nothing of what becomes of workers.
"""

from __future__ import annotations

import contextlib
import gc
import os
import signal
import socket
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, NoReturn

from . import child, fork, guard_main, ownership, rehearsal, signals, template_wire
from .template_wire import Message

__all__ = ["Forks", "become"]


@dataclass(slots=True)
class Spare:
    """A child that is to be the next worker."""

    pid: int
    exit_fd: int
    requests: socket.socket


class Forks:
    """Makes children. ``open``: descriptors of the template, which none of them keeps.

    ``prepared``: what they have in common. ``handled``: signals that have a handler. ``play``: how
    a spare worker rehearses; None: there is to be none. ``made``: how many workers there were.
    """

    def __init__(self, work: Callable[..., object]) -> None:
        self.open: set[int] = set()
        self.prepared: Any = None
        self.handled: list[int] = []
        self.play: rehearsal.Play | None = None
        self.made = 0
        self._work: Final = work
        self._spare: Spare | None = None
        self._pid: Final = os.getpid()

    def make(
        self, data: bytes, fds: list[int], status: int, tell: Callable[[int, int], None]
    ) -> None:
        """Have a worker for a request, and ``tell(pid, exit_fd)`` at once. Raises :exc:`OSError`.

        ``status``: a descriptor that is not in ``fds``, and the worker does not keep.
        """
        spare = self._take_spare()
        if spare is None:
            pid = self._fork(data, fds, status)
            tell(pid, exit_fd_of(pid))
        else:
            tell(spare.pid, spare.exit_fd)  # first: the host has things to do meanwhile
            with contextlib.suppress(OSError):  # it died just now, as a worker may
                template_wire.pass_on(spare.requests, data, fds)
            spare.requests.close()
        self.made += 1

    def _fork(self, data: bytes, fds: list[int], status: int) -> int:
        """Be the worker in the child; its pid here. Raises :exc:`OSError`."""
        request = template_wire.content(data, fds)
        kept, birth = self._birth(request, fds)
        birth.descriptors = ownership.Plan(kept, [*self.open, status], [], [])
        mask = signals.pthread_sigmask(signal.SIG_BLOCK, signals.ALL_SIGNALS)
        try:
            pid = os.fork()
            if pid == 0:
                gc.freeze()
                gc.enable()
                become(request)
                child.live(birth)
        finally:
            signals.pthread_sigmask(signal.SIG_SETMASK, mask)
        return pid

    def _birth(self, request: Message, fds: list[int]) -> tuple[list[int], child.Birth]:
        """What the worker owns, and what it is born with."""
        ends, others = ends_of(request, fds)
        options = fork.Options(
            request["backend"],
            request["grace"],
            request["limit"],
            request["close_fds"],
            capture_stderr=ends.child_stderr >= 0,
            capture_stdout=ends.child_stdout >= 0,
            null_stdin=True,
        )
        arg = (self.prepared, request["arg"], not self.made, *others)
        birth = fork.prepare(self._work, arg, options, ends, request["slot"], frozenset())
        birth.handled, birth.host = self.handled, self._pid
        return [*ends.theirs(), *others], birth

    # -- a worker in advance ------------------------------------------------------------------

    @property
    def wants_spare(self) -> bool:
        """Whether there is none, and one would be of use: there is no template for one worker."""
        return bool(self.made) and self._spare is None and self.play is not None

    def make_spare(self) -> None:
        """Have a child that waits for its request, and has rehearsed meanwhile what comes then."""
        try:
            ours, theirs = socket.socketpair()
            pid = os.fork()
        except OSError:  # there is no room: so be it
            self.play = None
            return
        if pid == 0:
            ours.close()
            for fd in self.open:
                os.close(fd)
            self._be_spare(theirs)
        theirs.close()
        self._spare = Spare(pid, exit_fd_of(pid), ours)
        self.open |= {ours.fileno(), self._spare.exit_fd}

    def drop_spare(self) -> None:
        """End it."""
        spare, self._spare = self._spare, None
        if spare is None:
            return
        self.open -= {spare.requests.fileno(), spare.exit_fd}
        spare.requests.close()
        os.kill(spare.pid, signal.SIGKILL)  # it has nothing to lose
        os.waitpid(spare.pid, 0)
        if spare.exit_fd >= 0:
            os.close(spare.exit_fd)

    def _be_spare(self, requests: socket.socket) -> NoReturn:
        status = 1
        try:
            gc.freeze()
            gc.enable()
            assert self.play is not None
            rehearsal.rehearse(self.play, self.handled, self._pid)
            data, fds = template_wire.receive(requests)
            signals.pthread_sigmask(signal.SIG_BLOCK, signals.ALL_SIGNALS)
            if data:
                request = template_wire.content(data, fds)
                kept, birth = self._birth(request, fds)
                birth.descriptors = ownership.Plan(kept, [requests.detach()], [], [])
                birth.rehearsed = True
                become(request)
                child.live(birth)
            status = 0
        finally:
            os._exit(status)

    def _take_spare(self) -> Spare | None:
        """The spare worker, if it is alive."""
        spare = self._spare
        if spare is None:
            return None
        if spare.exit_fd < 0 or guard_main.readable(spare.exit_fd):  # so might the next be
            self.play = None
            self.drop_spare()
            return None
        self._spare = None
        self.open.discard(spare.requests.fileno())
        return spare


def exit_fd_of(pid: int) -> int:
    """A descriptor that is readable when that child has ended; -1 where there is none."""
    try:
        return guard_main.open_exit_fd(pid)
    except OSError:  # no descriptor is left
        return -1


def become(message: Message) -> None:
    """Have the environment, folder and arguments that the host has."""
    environ: dict[str, str] | None = message.get("environ")
    if environ is not None:
        for name in os.environ.keys() - environ.keys():
            del os.environ[name]
        for name, value in environ.items():
            if os.environ.get(name) != value:
                os.environ[name] = value
    folder = message.get("folder")
    if folder is not None:
        with contextlib.suppress(OSError):  # it is gone, or not for us: as for any child
            os.chdir(folder)
    if "argv" in message:
        sys.argv[:] = message["argv"]


def ends_of(request: Message, fds: list[int]) -> tuple[fork.Ends, list[int]]:
    """The worker's pipes, and what else came for it."""
    stdout, stderr = request["captures"]
    rest = iter(fds)
    ends = fork.Ends(next(rest), -1, -1, next(rest), next(rest))
    if stdout:
        ends.child_stdout = next(rest)
    if stderr:
        ends.child_stderr = next(rest)
    return ends, list(rest)

"""The template: a process that has imported what its workers need, and forks them on request.

Executed once for each kind of worker, single-threaded, and the only parent its workers have: it
reaps them, and tells the host how they ended. It imports whatever the host names, and knows
nothing of calls.

Runs as ``python -c ... CONTROL STAGES PATH...``: a socket that brings requests, a pipe that takes
the name of what is being imported, and ``sys.path``.
"""

from __future__ import annotations

import contextlib
import errno
import gc
import importlib
import json
import operator
import os
import select
import signal
import socket
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, NoReturn

from . import child, doctor, fork, guard_main, ownership, signals, template_wire
from .template_wire import Message

__all__ = ["main"]

# Without a worker and a request for so long it ends: the next start makes a new one.
IDLE_SECONDS: Final = 60.0

# A terminal's, whose background we are, and what a closed socket says by an error as well.
UNHEARD: Final = (signal.SIGINT, signal.SIGPIPE, signal.SIGTTIN, signal.SIGTTOU)


@dataclass(slots=True)
class Forked:
    """A worker, and what is known of it here."""

    pid: int
    exit_fd: int
    status: socket.socket


def main(arguments: list[str]) -> NoReturn:
    """Be a template until the host is gone, or has not needed it for long."""
    gc.disable()  # a collection would write to pages that are to be shared
    os.setpgid(0, 0)
    take_standard_streams()
    signals.set_handler(signal.SIGQUIT, signals.SIG_DFL)  # a shell's background job ignores it
    for number in UNHEARD:
        signals.set_handler(number, signals.SIG_IGN)
    control = socket.socket(fileno=int(arguments[0]))
    control.set_inheritable(False)
    stages = int(arguments[1])
    os.set_inheritable(stages, False)
    received = template_wire.receive(control)
    if received is None:
        os._exit(0)
    setup, _ = received
    become(setup)
    template = Template(control, setup["work"])
    template.get_ready(setup, stages)
    template.run()
    control.close()
    sys.exit(0)


def take_standard_streams() -> None:
    """What is printed by an import goes to stderr: stdout may be a pipe that somebody parses."""
    for fd in range(3):
        with contextlib.suppress(OSError):
            os.fstat(fd)
            continue
        os.open(os.devnull, os.O_RDWR)  # the lowest free number
    os.dup2(2, 1)


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


def named(name: str) -> Any:
    """What ``"module:function"`` names."""
    module, _, path = name.partition(":")
    return operator.attrgetter(path)(importlib.import_module(module))


class Template:
    """Its workers, and the loop that waits for requests and for their ends."""

    def __init__(self, control: socket.socket, work: str) -> None:
        self._control: Final = control
        self._work: Final[Callable[..., object]] = named(work)
        self._prepared: object = None
        self._handled: list[int] = []
        self._by_fd: dict[int, Forked] = {}  # both of each worker's
        self._poll: Final = select.poll()
        self._open: set[int] = {control.fileno()}

    # -- before the first worker --------------------------------------------------------------

    def get_ready(self, setup: Message, stages: int) -> None:
        """Import all that can be; then tell the host, or end if there can be no fork."""

        def tell(name: str) -> None:
            with contextlib.suppress(OSError):
                os.write(stages, name.encode("utf-8", "backslashreplace") + b"\n")

        for name in setup["imports"]:
            tell(name)
            quietly(importlib.import_module, name)
        if setup["prepare"]:
            self._prepared = quietly(named(setup["prepare"]), setup["argument"], tell)
        os.close(stages)
        for stream in (sys.stdout, sys.stderr):
            quietly(stream.flush)
        self._handled = signals.handled()
        gc.collect()
        gc.freeze()
        self._fork_once()
        threads = other_threads()
        with contextlib.suppress(OSError):
            self._control.sendall(json.dumps({"pid": os.getpid(), "threads": threads}).encode())
        if threads:
            sys.exit(0)

    def _fork_once(self) -> None:
        """Libraries that stop their threads at a fork (OpenBLAS) do it now."""
        pid = os.fork()
        if pid == 0:
            os._exit(0)
        os.waitpid(pid, 0)

    # -- the loop -----------------------------------------------------------------------------

    def run(self) -> None:
        """Until the host has closed its end, and the last worker has ended."""
        control = self._control.fileno()
        self._poll.register(control, select.POLLIN)
        listening = True
        while listening or self._by_fd:
            events = self._poll.poll(None if self._by_fd else IDLE_SECONDS * 1000)
            if not events:
                return
            for fd, _ in events:
                worker = self._by_fd.get(fd)
                if worker is not None:
                    self._look_at(worker, fd)
            if listening and any(fd == control for fd, _ in events):
                listening = self._serve_request()
                if not listening:
                    self._poll.unregister(control)

    def _serve_request(self) -> bool:
        """Whether there may be more."""
        try:
            received = template_wire.receive(self._control)
        except OSError:  # no room for its descriptors: the host sees the end of its own
            return True
        if received is None:
            return False
        request, fds = received
        status = socket.socket(fileno=fds.pop(0))
        try:
            pid = self._fork(request, fds, status)
        except OSError as error:
            answer(status, 0, error.errno or 0)
            status.close()
        else:
            self._introduce(pid, status)
        finally:
            for fd in fds:
                os.close(fd)
        return True

    def _fork(self, request: Message, fds: list[int], status: socket.socket) -> int:
        """Be the worker in the child; its pid here. Raises :exc:`OSError`."""
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
        arg = (self._prepared, request["arg"], *others)
        birth = fork.prepare(self._work, arg, options, ends, request["slot"], frozenset())
        birth.handled = self._handled
        mask = signals.pthread_sigmask(signal.SIG_BLOCK, signals.ALL_SIGNALS)
        try:
            kept = [*ends.theirs(), *others]
            birth.descriptors = ownership.plan_fork(kept, [*self._open, status.fileno()])
            pid = os.fork()
            if pid == 0:
                gc.freeze()
                gc.enable()
                become(request)
                child.live(birth)
        finally:
            ownership.end_fork()
            signals.pthread_sigmask(signal.SIG_SETMASK, mask)
        return pid

    def _introduce(self, pid: int, status: socket.socket) -> None:
        """Tell the host who was born, and watch it."""
        with contextlib.suppress(OSError):  # it did so itself, or has ended
            os.setpgid(pid, pid)
        try:
            exit_fd = guard_main.open_exit_fd(pid)
        except OSError:
            exit_fd = -1
        worker = Forked(pid, exit_fd, status)
        wanted = exit_fd >= 0 and answer(status, pid, 0, exit_fd)
        if not wanted:
            guard_main.signal_group(pid, signal.SIGKILL)
        if exit_fd < 0:  # an old kernel, or no descriptor is left
            os.waitpid(pid, 0)
            answer(status, 0, errno.EMFILE)
            status.close()
            return
        for fd in (exit_fd, status.fileno()):
            self._by_fd[fd] = worker
            self._open.add(fd)
            self._poll.register(fd, select.POLLIN)

    def _look_at(self, worker: Forked, fd: int) -> None:
        if fd == worker.exit_fd:
            self._bury(worker)
            return
        with contextlib.suppress(OSError):
            if worker.status.recv(1) == template_wire.GIVE_UP:
                guard_main.signal_group(worker.pid, signal.SIGKILL)
                return
        self._poll.unregister(fd)  # the host has what it wanted, or is gone: the guard sees to that
        del self._by_fd[fd]

    def _bury(self, worker: Forked) -> None:
        # Ended, and its number still its own: the last moment to reach the rest of the group.
        guard_main.signal_group(worker.pid, signal.SIGKILL)
        _, status, usage = os.wait4(worker.pid, 0)
        with contextlib.suppress(OSError):
            worker.status.send(template_wire.END.pack(status, *usage))
        for fd in (worker.exit_fd, worker.status.fileno()):
            if self._by_fd.pop(fd, None) is not None:
                self._poll.unregister(fd)
            self._open.discard(fd)
        os.close(worker.exit_fd)
        worker.status.close()


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


def answer(status: socket.socket, pid: int, number: int, exit_fd: int = -1) -> bool:
    """Whether the host still wants to know."""
    data = template_wire.ANSWER.pack(pid, number)
    try:
        if exit_fd < 0 or sys.platform != "linux":
            status.send(data)
        else:
            socket.send_fds(status, [data], [exit_fd])
    except OSError:
        return False
    return True


def quietly(function: Callable[..., Any], *arguments: Any) -> Any:
    """Call it. What it raises is raised again by the worker, which tells the host."""
    try:
        return function(*arguments)
    except BaseException:
        return None


def other_threads() -> list[str]:
    """The names of all but this one; those that Python does not know of are counted."""
    running = threading.enumerate()
    names = [thread.name for thread in running if thread is not threading.main_thread()]
    foreign = doctor.os_thread_count() - len(running)
    return [*names, f"{foreign} not started by Python"] if foreign > 0 else names

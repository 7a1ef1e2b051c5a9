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

from . import descriptors, doctor, guard_main, rehearsal, signals, template_wire
from .template_forks import Forks, become
from .template_wire import Message

__all__ = ["main"]

# A terminal's, whose background we are, and what a closed socket says by an error as well.
UNHEARD: Final = (signal.SIGINT, signal.SIGPIPE, signal.SIGTTIN, signal.SIGTTOU)

# For exit functions and threads of what was imported: there may be nobody left to end them.
LAST_SECONDS: Final = 2

# After a request; where more come at once, each is forked as it comes.
QUIET_SECONDS: Final = 0.003


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
    signals.pthread_sigmask(signal.SIG_SETMASK, ())
    control = socket.socket(fileno=int(arguments[0]))
    control.set_inheritable(False)
    stages = int(arguments[1])
    os.set_inheritable(stages, False)
    guard_main.close_all_but(control.fileno(), stages)  # whatever the host had inheritable
    received = template_wire.receive(control)
    if not received[0]:
        os._exit(0)
    setup = template_wire.content(*received)
    become(setup)
    template = Template(control, setup)
    template.get_ready(setup, stages)
    template.run()
    control.close()
    leave()


def leave() -> NoReturn:
    """Run exit functions, and wait for threads, but not for long."""
    signals.set_handler(signal.SIGALRM, signals.SIG_DFL)
    signal.alarm(LAST_SECONDS)
    sys.exit(0)


def take_standard_streams() -> None:
    """What is printed by an import goes to stderr: stdout may be a pipe that somebody parses."""
    for fd in range(3):
        with contextlib.suppress(OSError):
            os.fstat(fd)
            continue
        os.open(os.devnull, os.O_RDWR)  # the lowest free number
    os.dup2(2, 1)


def named(name: str) -> Any:
    """What ``"module:function"`` names."""
    module, _, path = name.partition(":")
    return operator.attrgetter(path)(importlib.import_module(module))


class Template:
    """Its workers, and the loop that waits for requests and for their ends."""

    def __init__(self, control: socket.socket, setup: Message) -> None:
        self._control: Final = control
        self._forks: Final = Forks(named(setup["work"]))
        self._by_fd: dict[int, Forked] = {}  # both of each worker's
        self._poll: Final = select.poll()
        self._forks.open.add(control.fileno())
        self._patience: Final[float] = setup["idle"]
        self._listening = True

    # -- before the first worker --------------------------------------------------------------

    def get_ready(self, setup: Message, stages: int) -> None:
        """Import all that can be; then tell the host, or end if there can be no fork."""

        def tell(name: str) -> None:
            with contextlib.suppress(OSError):
                os.write(stages, name.encode("utf-8", "backslashreplace") + b"\n")

        forks = self._forks
        for name in setup["imports"]:
            tell(name)
            quietly(importlib.import_module, name)
        if setup["prepare"]:
            forks.prepared = quietly(
                named(setup["prepare"]), setup["argument"], setup["hint"], tell
            )
        if forks.prepared is not None and setup["rehearse"]:
            forks.play = quietly(named(setup["rehearse"]))
        os.close(stages)
        forks.handled = signals.handled()
        if forks.play is not None and not quietly(rehearsal.warm_up, forks.play):
            forks.play = None  # something that was imported minds
        descriptors.flush_standard_streams()
        gc.collect()
        gc.freeze()
        self._fork_once()
        threads = other_threads()
        with contextlib.suppress(OSError):
            self._control.sendall(json.dumps({"pid": os.getpid(), "threads": threads}).encode())
        if threads:
            leave()

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
        while self._listening or self._by_fd:
            events = self._poll.poll(self._milliseconds())
            if not events and self._wants_spare:
                self._forks.make_spare()
            elif not events:
                break
            for fd, _ in events:
                worker = self._by_fd.get(fd)
                if worker is not None:
                    self._look_at(worker, fd)
            if any(fd == control for fd, _ in events) and not self._serve_request():
                self._listening = False
                self._poll.unregister(control)
                self._forks.drop_spare()
        self._forks.drop_spare()

    @property
    def _wants_spare(self) -> bool:
        return self._listening and self._forks.wants_spare

    def _milliseconds(self) -> float | None:
        """How long to wait for what comes next."""
        if self._wants_spare:
            return QUIET_SECONDS * 1000
        return None if self._by_fd else self._patience * 1000

    def _serve_request(self) -> bool:
        """Whether there may be more."""
        try:
            data, fds = template_wire.receive(self._control)
        except OSError:  # no room for its descriptors: the host sees the end of its own
            return True
        if not data:
            return False
        status = socket.socket(fileno=fds.pop())

        def tell(pid: int, exit_fd: int) -> None:
            self._introduce(pid, exit_fd, status)

        try:
            self._forks.make(data, fds, status.fileno(), tell)
        except OSError as error:
            answer(status, 0, error.errno or 0)
            status.close()
        finally:
            for fd in fds:
                os.close(fd)
        return True

    def _introduce(self, pid: int, exit_fd: int, status: socket.socket) -> None:
        """Tell the host who was born, and watch it."""
        with contextlib.suppress(OSError):  # it did so itself, or has ended
            os.setpgid(pid, pid)
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
            self._forks.open.add(fd)
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
            self._forks.open.discard(fd)
        os.close(worker.exit_fd)
        worker.status.close()


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

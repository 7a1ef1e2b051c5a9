"""What a worker of a service is to its host, with a loop or without one."""

from __future__ import annotations

import errno
import logging
import os
import signal
import sys
import time
import traceback
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from ..errors import ForkwireError, UsageError, WorkerClosedError, WorkerDied, WorkerStartError
from ..process.worker import ProcessWorker
from .caller.offers import Offers
from .exceptions import describing as failures
from .interrupts.control_pipe import ControlPipe
from .links.link import Link, OutCall
from .programs import Program
from .settings import Settings
from .telling import logs, replaying

__all__ = ["LAST_GRACE", "REPEAT", "Handle", "HasHandle", "WorkerStatistics", "open_control"]

# A cancel may come where it has to be put off, and is then repeated.
REPEAT: Final = 0.05  # seconds

# What does not stop on SIGTERM within this is killed: it had its grace already.
LAST_GRACE: Final = 0.5  # seconds

# Turns of reading what a worker wrote before its end: more than a pipe can hold. What it started
# may go on writing for ever.
LAST_TURNS: Final = 64

# Calls that are named in the report of a death.
NAMED: Final = 20


@dataclass(frozen=True, slots=True)
class WorkerStatistics:
    """What a worker has done. Times are seconds, sizes bytes.

    ``calls``: made so far; ``in_flight``: not ended yet; ``errors``: ended with one, on either
    side; ``host_calls``: that the worker made. ``bytes_waiting``: not taken by the system yet.
    """

    pid: int
    uptime: float
    calls: int
    in_flight: int
    errors: int
    host_calls: int
    bytes_sent: int
    bytes_waiting: int


class Handle:
    """The process, the link to it, and what is known of them. Made when the worker is started."""

    def __init__(
        self, settings: Settings, offers: Offers, control: ControlPipe, process: ProcessWorker
    ) -> None:
        self.settings: Final = settings
        self.offers: Final = offers
        self.killed_for = ""
        self.closing = False
        self._names: Final[set[str]] = set()
        self._started: Final = time.monotonic()
        self.control: Final = control
        self.process: Final = process
        self.link: Final = Link(
            process.input_channel,
            process.output_channel,
            name=f"worker {process.pid} ({settings.label})",
            limits=settings.limits,
        )
        if isinstance(settings.target, Program):
            settings.target.expect(self.link)
        if settings.logging:
            self.link.on_log = self._on_log

    def greet(self) -> None:
        """Say who we are, and what we offer."""
        about: dict[str, object] = {"pid": os.getpid()}
        if self.settings.logging:
            about["log_level"] = logs.host_level()
        host = self.settings.host
        if host is not None:
            about["service"] = {"name": host.name, "methods": dict(host.kinds)}
        self.link.hello(about)

    @property
    def greeted(self) -> bool:
        """Whether the worker has said that its service is there, or that it is not."""
        return self.link.greeted or self.link.over is not None or self.link.farewell is not None

    def check_greeting(self) -> None:
        """Raise why there is no service, if there is none."""
        link = self.link
        if link.farewell is not None:
            raise failures.rebuild(link.farewell, worker=link.name)
        if link.over is not None:
            if isinstance(self.settings.target, Program):
                self.settings.target.explain(link.over)
            raise link.over
        if not link.greeted:
            raise WorkerStartError(
                errno.ETIMEDOUT,
                f"{link.name} did not greet within {self.settings.start_timeout:g} seconds: its "
                "service takes long to load (give it more with start_timeout=), or the program "
                "does not speak protocol-spec/3-calls.md",
            )
        self.offers.learn(link)

    def statistics(self) -> WorkerStatistics:
        """What it has done so far."""
        link = self.link
        return WorkerStatistics(
            pid=self.process.pid,
            uptime=time.monotonic() - self._started,
            calls=link.statistics["calls"],
            in_flight=len(link.calls),
            errors=link.statistics["errors"],
            host_calls=link.statistics["answered"],
            bytes_sent=link.outbox.sent,
            bytes_waiting=link.outbox.waiting,
        )

    def _on_log(self, record: Mapping[str, Any]) -> None:
        try:
            replaying.replay(
                record,
                worker=self.settings.label,
                pid=self.process.pid,
                names=self._names,
                trusted=self.settings.limits.trusted,
            )
        except Exception:  # of this program's handlers and filters: the answers go on
            if logging.raiseExceptions and sys.stderr is not None:
                traceback.print_exc()

    def drain(self) -> bool:
        """The process has ended: take what it wrote before. Whether the end was found."""
        link = self.link
        for _ in range(LAST_TURNS):
            if not link.pump():
                break
        if link.ended:
            return True
        link.ended = True  # something that it started still holds its end of the pipe
        link.source.stop_listening()
        return False

    def fail(self, error: ForkwireError | None) -> None:
        """The process is reaped: tell every call what became of it. ``error``: a fault of its."""
        if error is not None:
            self.link.fail(error)
        elif self.closing:
            self.link.fail(WorkerClosedError(f"{self.link.name} was closed"))
        else:
            self.link.fail(self._death())

    def desert(self) -> None:
        """The loop ends, and sees to nothing any more: kill it, and tell who still waits."""
        self.process._child.signal_group(signal.SIGKILL)
        self.process._child.abandon()
        self.link.fail(WorkerClosedError(f"{self.link.name} was left alone by its event loop"))
        self.process.input_channel.close()
        self.process.output_channel.close()
        self.control.close()

    def _death(self) -> WorkerDied:
        """The whole story."""
        names = tuple(f"{call.method} (call {call.id})" for call in self.link.calls.values())
        more = (f"and {len(names) - NAMED} more",) if len(names) > NAMED else ()
        died = self.process.died
        if died is None:
            stderr = self.process._stderr
            died = WorkerDied(
                self.process.pid,
                0,
                "ended with exit status 0, as if it were done",
                rusage=self.process._child.rusage,
                stderr_tail=stderr.tail() if stderr else "",
            )
        if self.killed_for:
            died.reason = f"{self.killed_for} (it {died.reason})"
        elif not self.link.greeted and isinstance(self.settings.target, Program):
            died.reason += ", before it greeted: does it speak protocol-spec/3-calls.md?"
        died.in_flight = names[:NAMED] + more
        return died

    def kill_for(self, call: OutCall) -> None:
        """It is to be terminated, and killed, because of ``call``."""
        self.killed_for = (
            f"was killed by its host, since {call.method} (call {call.id}) was cancelled and did "
            f"not stop within {self.settings.grace:g} seconds"
        )
        self.process.terminate()

    def waits_for_another(self, call: OutCall) -> bool:
        """Whether ``call`` cannot have begun, and never will: an earlier one has the only lane."""
        kinds = self.offers.kinds
        if self.settings.threads > 1 or kinds.get(call.method) not in ("plain", "generator"):
            return False
        return any(
            other.id < call.id
            and not other.ended
            and kinds.get(other.method) == "plain"
            and not (call.tree and other.tree == call.tree)
            for other in list(self.link.calls.values())
        )

    def say_goodbye(self) -> list[OutCall]:
        """No new calls; those that somebody waits for are stopped. What is still in flight."""
        self.closing = True
        self.link.goodbye()
        calls = list(self.link.calls.values())
        for call in calls:
            if call.expected:
                self.link.cancel(call)
        return calls

    def interrupt(self, calls: Iterable[OutCall]) -> None:
        """Stop what plain functions do; again after a while, for it may come at a bad moment."""
        for call in calls:
            if call.expected and not call.ended:
                self.control.cancel(call.id)


def open_control() -> ControlPipe:
    try:
        return ControlPipe()
    except OSError as error:
        raise WorkerStartError(
            error.errno, f"a worker could not be started: {error.strerror}"
        ) from error


class HasHandle:
    """What both kinds of workers say of themselves."""

    _handle: Handle | None = None
    _entered = False  # it is being started, or was
    _offers: Offers

    @property
    def pid(self) -> int:
        """The process id. Raises :exc:`UsageError` before the worker is started."""
        return self._started_handle().process.pid

    @property
    def returncode(self) -> int | None:
        """As in :mod:`subprocess`; None while it runs."""
        return self._started_handle().process.returncode

    @property
    def died(self) -> WorkerDied | None:
        """All that is known of a bad end; None while it runs, and when it was closed and did end.

        What the calls raised that were in flight.
        """
        handle = self._started_handle()
        over = handle.link.over
        return over if isinstance(over, WorkerDied) else handle.process.died

    @property
    def name(self) -> str:
        """Of the service."""
        return self._offers.name

    @property
    def methods(self) -> Mapping[str, str]:
        """The kind of each method that it offers, by its name; empty where it has not said.

        A kind is ``"plain"``, ``"async"``, ``"generator"`` or ``"async_generator"``.
        """
        return dict(self._offers.kinds)

    def statistics(self) -> WorkerStatistics:
        """What it has done so far."""
        return self._started_handle().statistics()

    def terminate(self) -> None:
        """Send SIGTERM: the worker ends, and calls in flight raise :exc:`WorkerDied`."""
        self._started_handle().process.terminate()

    def kill(self) -> None:
        """Send SIGKILL."""
        self._started_handle().process.kill()

    def _started_handle(self) -> Handle:
        if self._handle is None:
            raise UsageError(NOT_STARTED)
        self._handle.process._check_process()
        return self._handle

    def _enter_once(self) -> None:
        if self._entered:
            raise UsageError("a worker is started once: call open_worker() again for another")
        self._entered = True

    def __repr__(self) -> str:
        if self._handle is None:
            return f"<Worker {self._offers.name} not started>"
        child = self._handle.process._child
        state = "running" if child.returncode is None else f"ended {child.returncode}"
        return f"<Worker {self._offers.name} pid={child.pid} {state}>"


NOT_STARTED: Final = (
    "the worker is not started: use it inside `async with open_worker(...) as worker:` (with "
    "forkwire.sync: inside `with`)"
)

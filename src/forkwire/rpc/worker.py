"""``open_worker``: a service in a process of its own, and what a host calls it with."""

from __future__ import annotations

import errno
import functools
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Final, Literal, Self

import anyio
import anyio.lowlevel

from ..errors import (
    ForkwireError,
    ProcessWorkerIPCError,
    UsageError,
    WorkerClosedError,
    WorkerDied,
    WorkerStartError,
)
from ..process.backend import Backend, BackendName, current_backend
from ..process.worker import DEFAULT_GRACE, ProcessWorker, check_options, start_worker
from ..wire.framing import MAX_PAYLOAD_SIZE
from . import failures, logs, output, replaying
from .aio import Caller
from .calls import Calls
from .control_pipe import ControlPipe
from .drivers import LoopDriver
from .hosting import Hosting
from .link import Limits, Link, OutCall
from .offers import Offers
from .programs import Program, execute
from .service import Service
from .serving import Start, serve

__all__ = ["Worker", "WorkerStatistics", "open_worker"]

# A service that takes longer to import is hung, or had better say so with start_timeout=.
START_TIMEOUT: Final = 60.0

# A cancel may come where it has to be put off, and is then repeated.
REPEAT: Final = 0.05  # seconds

# What does not stop on SIGTERM within this is killed: it had its grace already.
LAST_GRACE: Final = 0.5  # seconds

# Calls that are named in the report of a death.
NAMED: Final = 20

StartMethod = Literal["fork", "exec"]


def open_worker(
    service: object = None,
    *,
    command: list[str] | None = None,
    host: object = None,
    start: StartMethod | None = None,
    threads: int = 1,
    name: str | None = None,
    grace: float = DEFAULT_GRACE,
    start_timeout: float = START_TIMEOUT,
    backend: BackendName | None = None,
    max_message_size: int = MAX_PAYLOAD_SIZE,
    close_fds: bool = False,
    logging: bool = True,
) -> Worker:
    """A worker that serves ``service``; enter it with ``async with`` to start it.

    ``service``: a module or its name, a class (made there, without arguments), an instance or a
    mapping of functions (inherited with their state). What it offers is in
    :mod:`forkwire.rpc.service`. ``command``: a program that speaks protocol-spec/3-calls.md
    instead, in any language.

    ``host``: what the worker may call here, offered in the same way. ``start``: ``"fork"`` inherits
    this process, the default; ``"exec"`` is a fresh interpreter, for services given by name.
    ``threads``: how many plain functions may run at a time; those in the first can be interrupted,
    the others end with the worker. ``name``: in logs and errors. ``grace``: seconds that a
    cancelled call has to stop, and the worker to end, before it is killed. ``start_timeout``:
    seconds until it has to be there. ``backend``: the loop of async functions, the one that runs
    here unless given. ``max_message_size``: bytes, in both directions. ``logging``: whether the
    worker's log records are handled here.

    Raises :exc:`UsageError` for what can never work.
    """
    if (service is None) == (command is None):
        raise UsageError(
            'open_worker() takes a service, open_worker("calc"), or a program to run, '
            'open_worker(command=["node", "plugin.mjs"])'
        )
    if start not in (None, "fork", "exec"):
        raise UsageError(f'start is "fork" or "exec", not {start!r}')
    if threads < 1:
        raise UsageError(f"threads is how many functions may run at a time, not {threads!r}")
    if not start_timeout > 0:
        raise UsageError(f"start_timeout is a number of seconds, not {start_timeout!r}")
    check_options(grace, backend, max_message_size)
    local = None if service is None or isinstance(service, str) else Service.of(service)
    offered = Service.of(host) if host is not None else None
    target: object
    if command is not None:
        target = Program.of(command)
    elif start == "exec":
        target = Program.serving(service, local, threads)
    else:
        target = service
    label = name or name_of(service, local, command)
    settings = Settings(target, label, threads, grace, start_timeout, backend, close_fds, logging,
                        Limits(max_message_size))  # fmt: skip
    return Worker(settings, Offers(label, local), offered)


def name_of(service: object, local: Service | None, command: list[str] | None) -> str:
    if command is not None:
        return os.path.basename(command[0])
    return local.name if local is not None else str(service)


@dataclass(frozen=True, slots=True)
class Settings:
    """How to start a worker; `open_worker` says what each means."""

    target: object
    label: str
    threads: int
    grace: float
    start_timeout: float
    backend: BackendName | None
    close_fds: bool
    logging: bool
    limits: Limits


@dataclass(frozen=True, slots=True)
class WorkerStatistics:
    """What a worker has done. Times are seconds, sizes bytes.

    ``calls``: made so far; ``in_flight``: not ended yet; ``errors``: ended with one.
    """

    pid: int
    uptime: float
    calls: int
    in_flight: int
    errors: int
    host_calls: int
    bytes_sent: int
    bytes_waiting: int


class Worker(Calls):
    """A worker process that serves calls: made by :func:`open_worker`.

    An async context manager: entering it starts the worker and waits until its service is there,
    leaving it ends it as :meth:`aclose` does.
    """

    def __init__(self, settings: Settings, offers: Offers, host: Service | None) -> None:
        self._settings: Final = settings
        self._offers = offers
        self._host: Final = host
        self._process: ProcessWorker | None = None
        self._link: Link | None = None
        self._control: ControlPipe | None = None
        self._backend: Backend | None = None
        self._names: set[str] = set()
        self._killed_for = ""
        self._burying = False
        self._started = 0.0
        self._closing = False

    # -- what it is ---------------------------------------------------------------------------

    @property
    def pid(self) -> int:
        """The process id. Raises :exc:`UsageError` before it is started."""
        return self._running_process().pid

    @property
    def returncode(self) -> int | None:
        """As in :mod:`subprocess`; None while it runs."""
        return self._running_process().returncode

    @property
    def name(self) -> str:
        """Of the service."""
        return self._offers.name

    @property
    def methods(self) -> Mapping[str, str]:
        """What it offers: the kind of each method (``"plain"``, ``"async"``, ``"generator"``,
        ``"async_generator"``) by its name. Empty where it has not said.
        """
        return dict(self._offers.kinds)

    def statistics(self) -> WorkerStatistics:
        """What it has done so far."""
        process, link = self._running_process(), self._link
        assert link is not None
        return WorkerStatistics(
            pid=process.pid,
            uptime=time.monotonic() - self._started,
            calls=link.statistics["calls"],
            in_flight=len(link.calls),
            errors=link.statistics["errors"],
            host_calls=link.statistics["answered"],
            bytes_sent=link.outbox.sent,
            bytes_waiting=link.outbox.waiting,
        )

    def terminate(self) -> None:
        """Send SIGTERM: the worker ends, and calls in flight raise :exc:`WorkerDied`."""
        self._running_process().terminate()

    def kill(self) -> None:
        """Send SIGKILL."""
        self._running_process().kill()

    async def ping(self) -> float:
        """Wait for a sign of life from the worker; the seconds it took.

        A worker that runs nothing but plain functions answers between two of them. Raises
        :exc:`WorkerDied` and :exc:`WorkerClosedError`.
        """
        caller = self._ready_caller()
        link = caller.link
        link.check_open()
        before = time.monotonic()
        answered = anyio.Event()
        link.ping(answered.set)
        await answered.wait()
        link.check_open()
        return time.monotonic() - before

    def _running_process(self) -> ProcessWorker:
        if self._process is None:
            self._ready_caller()
            raise UsageError("the worker is not started")
        return self._process

    # -- start --------------------------------------------------------------------------------

    async def __aenter__(self) -> Self:
        if self._process is not None:
            raise UsageError("a worker is started once: call open_worker() again for another")
        await anyio.lowlevel.checkpoint()
        self._backend = backend = current_backend()
        self._fork(backend)
        try:
            await self._greet()
        except BaseException:
            await backend.uninterrupted(self._abort)
            raise
        return self

    def _fork(self, backend: Backend) -> None:
        settings = self._settings
        name = settings.backend or backend.name
        control = None
        try:
            control = ControlPipe()
            start = Start(
                settings.target,
                settings.label,
                name,
                settings.threads,
                control,
                logs.host_level() if settings.logging else None,
                settings.limits,
            )
            control.lend()
            self._process = process = start_worker(
                execute if isinstance(settings.target, Program) else serve,
                start,
                output.capturing(
                    name,
                    settings.grace,
                    settings.limits.message,
                    close_fds=settings.close_fds,
                ),
                label=output.label(settings.label),
                sinks=output.sinks(trusted=settings.limits.trusted),
            )
        except BaseException as error:
            if control is not None:
                control.close()
            if isinstance(error, OSError) and not isinstance(error, ForkwireError):
                raise WorkerStartError(
                    error.errno, f"a worker could not be started: {error.strerror}"
                ) from error
            raise
        control.started(process.pid)
        self._control = control
        self._connect(process, backend)

    def _connect(self, process: ProcessWorker, backend: Backend) -> None:
        self._started = time.monotonic()
        self._link = link = Link(
            process.input_channel,
            process.output_channel,
            name=f"worker {process.pid} ({self._settings.label})",
            limits=self._settings.limits,
        )
        driver = LoopDriver(link, backend)
        link.front = self
        link.on_end = self._on_end
        link.on_log = self._on_log
        if self._host is not None:
            link.accept = Hosting(driver, self._host).take_call
        self._caller = WorkerCaller(driver, self)
        link.hello(self._about())
        driver.start()
        process._child.when_ended(lambda: backend.run_soon(self._on_exit))

    def _about(self) -> dict[str, object]:
        about: dict[str, object] = {"pid": os.getpid(), "log_level": logs.host_level()}
        if self._host is not None:
            about["service"] = {"name": self._host.name, "methods": dict(self._host.kinds)}
        return about

    async def _greet(self) -> None:
        """Wait until the worker says that its service is there, or why it is not."""
        link = self._link
        assert link is not None
        changed = anyio.Event()
        link.on_hello = link.on_goodbye = changed.set
        link.on_idle = changed.set
        with anyio.move_on_after(self._settings.start_timeout) as scope:
            while not (link.greeted or link.over or link.farewell is not None):
                await changed.wait()
                changed = anyio.Event()
                link.on_hello = link.on_goodbye = link.on_idle = changed.set
        if link.farewell is not None:
            raise failures.rebuild(link.farewell, worker=link.name)
        if link.over is not None:
            raise link.over
        if scope.cancelled_caught:
            raise WorkerStartError(
                errno.ETIMEDOUT,
                f"{link.name} did not greet within {self._settings.start_timeout} seconds: its "
                "service takes long to load (give it more with start_timeout=), or the program "
                "does not speak protocol-spec/3-calls.md",
            )
        self._offers.learn(link)

    async def _abort(self) -> None:
        process = self._process
        assert process is not None and self._link is not None
        self._closing = True
        if self._link.farewell is None:
            process.kill()
        await self._finish(process)

    # -- death --------------------------------------------------------------------------------

    def _on_log(self, record: Mapping[str, Any]) -> None:
        assert self._process is not None
        replaying.replay(
            record,
            worker=self._settings.label,
            pid=self._process.pid,
            names=self._names,
            trusted=self._settings.limits.trusted,
        )

    def _on_exit(self) -> None:
        """The process has ended. What it wrote before is taken first."""
        link = self._link
        assert link is not None
        while link.pump():
            pass
        if not link.ended:  # something that it started still holds its end of the pipe
            link.ended = True
            link.source.stop_listening()
            self._on_end(None)

    def _on_end(self, error: ProcessWorkerIPCError | None) -> None:
        """Nothing more comes from it: find out why."""
        if not self._burying:
            self._burying = True
            assert self._backend is not None
            self._backend.spawn(functools.partial(self._bury, error), "forkwire: death of a worker")

    async def _bury(self, error: ProcessWorkerIPCError | None) -> None:
        process, link = self._process, self._link
        assert process is not None and link is not None
        if error is not None:  # it broke the protocol, and is not heard any more
            process.kill()
        with anyio.move_on_after(self._settings.grace):
            await process.wait()
        if process.returncode is None:
            self._killed_for = "closed its connection and went on, so it was killed"
            process.kill()
            await process.wait()
        if error is not None:
            link.fail(error)
        elif self._closing:
            link.fail(WorkerClosedError(f"{link.name} was closed"))
        else:
            link.fail(self._death(process))

    def _death(self, process: ProcessWorker) -> WorkerDied:
        """The whole story."""
        link = self._link
        assert link is not None
        names = tuple(f"{call.method} (call {call.id})" for call in link.calls.values())
        more = (f"and {len(names) - NAMED} more",) if len(names) > NAMED else ()
        died = process.died
        if died is None:
            died = WorkerDied(process.pid, 0, "ended with exit status 0, as if it were done")
        if self._killed_for:
            died.reason = f"{self._killed_for} (it {died.reason})"
        died.in_flight = names[:NAMED] + more
        return died

    # -- stopping a call ----------------------------------------------------------------------

    async def _stop(self, call: OutCall) -> None:
        """Have ``call`` stopped: asked, interrupted, and after the grace killed."""
        link, control, grace = self._link, self._control, self._settings.grace
        assert link is not None and control is not None and self._caller is not None
        link.cancel(call)
        deadline = anyio.current_time() + grace
        while not call.ended and anyio.current_time() < deadline:
            control.cancel(call.id)
            with anyio.move_on_after(min(REPEAT, grace)):
                await self._caller.wait_ended(call)
        control.forget(call.id)
        if call.ended or self._waits_for_another(call):
            return
        await self._kill_for(call)

    def _waits_for_another(self, call: OutCall) -> bool:
        """Whether it cannot have begun, and never will: an earlier one has the only lane."""
        link, kinds = self._link, self._offers.kinds
        assert link is not None
        if self._settings.threads > 1 or kinds.get(call.method) not in ("plain", "generator"):
            return False
        return any(
            other.id < call.id
            and not other.ended
            and kinds.get(other.method) == "plain"
            and not (call.tree and other.tree == call.tree)
            for other in list(link.calls.values())
        )

    async def _kill_for(self, call: OutCall) -> None:
        process = self._process
        assert process is not None and self._caller is not None
        self._killed_for = (
            f"was killed by its host, since {call.method} (call {call.id}) was cancelled and did "
            f"not stop within {self._settings.grace:g} seconds"
        )
        process.terminate()
        with anyio.move_on_after(LAST_GRACE):
            await self._caller.wait_ended(call)
        if not call.ended:
            process.kill()
            await self._caller.wait_ended(call)

    # -- the end ------------------------------------------------------------------------------

    async def aclose(self) -> None:
        """End the worker: no new calls; those in flight are stopped, notifications still run.

        What does not end within the grace is terminated, then killed. Not interrupted by
        cancellation. The worker is reaped in any case. Idempotent.
        """
        if self._process is None or self._backend is None:
            return
        await current_backend().uninterrupted(self._close)

    async def _close(self) -> None:
        process, link = self._process, self._link
        assert process is not None and link is not None
        if not self._closing:
            self._closing = True
            try:
                await self._wind_up(link)
            except BaseException:
                process.kill()
                raise
        await self._finish(process)

    async def _wind_up(self, link: Link) -> None:
        """Let what was sent be done, and stop what somebody waits for."""
        grace = self._settings.grace
        link.goodbye()
        for call in list(link.calls.values()):
            if call.expected:
                link.cancel(call)
                if self._control is not None:
                    self._control.cancel(call.id)
        with anyio.move_on_after(grace):
            for call in list(link.calls.values()):
                assert self._caller is not None
                await self._caller.wait_ended(call)
            while link.outbox.waiting and not link.outbox.gone:
                await anyio.sleep(REPEAT)  # nothing tells when the last byte is out

    async def _finish(self, process: ProcessWorker) -> None:
        link = self._link
        assert link is not None
        process.output_channel.close()
        try:
            with anyio.move_on_after(self._settings.grace):
                await process.wait()
                await self._drained(link)
            await process.aclose()
        finally:
            link.fail(WorkerClosedError(f"{link.name} was closed"))
            if self._control is not None:
                self._control.close()

    async def _drained(self, link: Link) -> None:
        """Until the last that it said was taken."""
        while not link.ended:
            await anyio.lowlevel.checkpoint()

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.aclose()

    def __repr__(self) -> str:
        if self._process is None:
            return f"<Worker {self._offers.name} not started>"
        code = self._process.returncode
        state = "running" if code is None else f"ended {code}"
        return f"<Worker {self._offers.name} pid={self._process.pid} {state}>"


class WorkerCaller(Caller):
    """Calls to a worker, which can be killed."""

    def __init__(self, driver: LoopDriver, worker: Worker) -> None:
        super().__init__(driver)
        self._worker: Final = worker

    async def stop(self, call: OutCall) -> None:
        await self._worker._stop(call)

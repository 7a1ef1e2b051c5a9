"""``open_worker``: a service in a process of its own, and what a host calls it with."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Final, Self

import anyio
import anyio.lowlevel

from ..errors import ProcessWorkerIPCError
from ..process.backend import Backend, BackendName, current_backend
from ..process.steps import run_in_loop
from ..process.worker import DEFAULT_GRACE
from ..wire.framing import MAX_PAYLOAD_SIZE
from .caller.aio import Caller
from .caller.calls import Calls
from .caller.offers import Offers
from .handle import LAST_GRACE, REPEAT, Handle, HasHandle, WorkerStatistics
from .handlers.hosting import Hosting
from .links.drivers import LoopDriver
from .links.link import OutCall
from .settings import START_TIMEOUT, Settings, StartMethod, settings_of
from .starting import start

__all__ = ["Worker", "WorkerStatistics", "open_worker"]


def open_worker(
    service: object = None,
    *,
    command: list[str] | None = None,
    stdio: bool = False,
    host: object = None,
    start: StartMethod | None = None,
    threads: int = 1,
    preload: Sequence[str] = (),
    initializer: str | Callable[..., object] | None = None,
    initargs: Sequence[object] = (),
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
    :mod:`forkwire.rpc.handlers.service`. ``command``: a program that speaks
    protocol-spec/3-calls.md instead, in any language.

    ``host``: what the worker may call here, offered in the same way. ``start``: ``"template"``, the
    default for what can be imported, forks from a clean process that has imported the service and
    ``preload``, modules by name; ``"fork"`` inherits this process, as do instances, closures and
    what is in ``__main__``; ``"exec"`` is a fresh interpreter.
    ``threads``: how many plain functions may run at a time; those in the first can be interrupted,
    the others end with the worker. ``initializer``: what the worker calls with ``initargs`` before
    it greets, a function or ``"module:name"``; what it raises is raised here. ``name``: in logs and
    errors. ``grace``: seconds that a cancelled call has to stop, and the worker to end, before it
    is killed. ``start_timeout``: seconds until it has to be there. ``backend``: the loop of async
    functions, the one that runs here unless given. ``max_message_size``: bytes, in both directions.
    ``logging``: whether the worker's log records are handled here.

    Raises :exc:`UsageError` for what can never work.
    """
    settings = settings_of(
        service,
        command=command,
        stdio=stdio,
        host=host,
        start=start,
        threads=threads,
        preload=preload,
        initializer=initializer,
        initargs=initargs,
        name=name,
        grace=grace,
        start_timeout=start_timeout,
        backend=backend,
        max_message_size=max_message_size,
        close_fds=close_fds,
        logging=logging,
    )
    return Worker(settings)


class Worker(HasHandle, Calls):
    """A worker process that serves calls: made by :func:`open_worker`.

    An async context manager: entering it starts the worker and waits until its service is there,
    leaving it ends it as :meth:`aclose` does.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings: Final = settings
        self._offers = Offers(settings.label, settings.service)
        self._backend: Backend | None = None
        self._own: WorkerCaller | None = None
        self._burying = False
        self._end: anyio.Event | None = None  # its closing, once that has begun

    async def ping(self) -> float:
        """Wait for a sign of life from the worker; the seconds it took.

        A worker that runs nothing but plain functions answers between two of them. Raises
        :exc:`WorkerDied` and :exc:`WorkerClosedError`.
        """
        link = self._started_handle().link
        self._own_caller().check_here()
        link.check_open()
        before = time.monotonic()
        answered = anyio.Event()
        link.ping(answered.set)
        await answered.wait()
        link.check_open()
        return time.monotonic() - before

    # -- start --------------------------------------------------------------------------------

    async def __aenter__(self) -> Self:
        await anyio.lowlevel.checkpoint()
        self._enter_once()
        self._backend = backend = current_backend()
        starting = start(self._settings, self._offers, backend)
        self._handle = handle = await run_in_loop(starting, backend)
        self._connect(handle, backend)
        try:
            await self._greet(handle)
        except BaseException:
            await backend.uninterrupted(functools.partial(self._abort, handle))
            raise
        return self

    def _connect(self, handle: Handle, backend: Backend) -> None:
        link = handle.link
        driver = LoopDriver(link, backend)
        link.front = self
        link.on_end = self._on_end
        if self._settings.host is not None:
            link.accept = Hosting(driver, self._settings.host).take_call
        self._caller = self._own = WorkerCaller(driver, handle)
        handle.greet()
        driver.start()
        handle.process._child.when_ended(lambda: backend.run_soon(self._on_exit))

    async def _greet(self, handle: Handle) -> None:
        """Wait until the worker says that its service is there, or why it is not."""
        link = handle.link
        with anyio.move_on_after(self._settings.start_timeout):
            while not handle.greeted:
                changed = anyio.Event()
                link.on_hello = link.on_goodbye = link.on_idle = changed.set
                await changed.wait()
        handle.check_greeting()

    async def _abort(self, handle: Handle) -> None:
        handle.closing = True
        if handle.link.farewell is None:
            handle.process.kill()
        await self._finish(handle)

    # -- death --------------------------------------------------------------------------------

    def _on_exit(self) -> None:
        """The process has ended."""
        if not self._started_handle().drain():
            self._on_end(None)

    def _on_end(self, error: ProcessWorkerIPCError | None) -> None:
        """Nothing more comes from it: find out why."""
        assert self._backend is not None
        if self._burying:
            return
        self._burying = True
        if self._backend.is_running():
            self._backend.spawn(functools.partial(self._bury, error), "forkwire: death of a worker")
        else:  # it is closed in another loop
            self._started_handle().fail(error)

    async def _bury(self, error: ProcessWorkerIPCError | None) -> None:
        handle = self._started_handle()
        try:
            await self._await_death(handle, error)
        except BaseException:  # asyncio.run cancels every task at its end, also this one
            handle.desert()
            raise
        if error is None:  # it may have answered before it stopped reading
            handle.drain()
        handle.fail(error)

    async def _await_death(self, handle: Handle, error: ProcessWorkerIPCError | None) -> None:
        process = handle.process
        if error is not None:  # it broke the protocol, and is not heard any more
            process.kill()
        with anyio.move_on_after(self._settings.grace):
            await process.wait()
        if process.returncode is None:
            handle.killed_for = "closed its connection and went on, so it was killed"
            process.kill()
            await process.wait()

    # -- the end ------------------------------------------------------------------------------

    async def aclose(self) -> None:
        """End the worker: no new calls; those in flight are stopped, notifications still run.

        What does not end within the grace is terminated, then killed. Not interrupted by
        cancellation. The worker is reaped in any case. Idempotent.
        """
        if self._handle is not None:
            handle = self._started_handle()
            await current_backend().uninterrupted(functools.partial(self._close, handle))

    async def _close(self, handle: Handle) -> None:
        if self._end is not None:  # another task closes it
            await self._end.wait()
            return
        self._end = anyio.Event()
        try:
            await self._close_once(handle)
        finally:
            self._end.set()

    async def _close_once(self, handle: Handle) -> None:
        late = False
        if not handle.closing:
            try:
                with anyio.move_on_after(self._settings.grace) as scope:
                    await self._wind_up(handle)
                late = scope.cancelled_caught
            except BaseException:  # asyncio.run cancels every task at its end, also this one
                handle.desert()
                raise
        await self._finish(handle, late=late)

    async def _wind_up(self, handle: Handle) -> None:
        """Let what was sent be done, and stop what somebody waits for."""
        caller = self._own_caller()
        calls = handle.say_goodbye()
        for call in calls:
            while not call.ended:
                handle.interrupt(calls)
                with anyio.move_on_after(REPEAT):
                    await caller.wait_ended(call)
        await caller.wait_written()

    def _own_caller(self) -> WorkerCaller:
        assert self._own is not None
        return self._own

    async def _finish(self, handle: Handle, *, late: bool = False) -> None:
        """Reap it. ``late``: it had its grace already."""
        process, grace = handle.process, self._settings.grace
        process.output_channel.close()
        try:
            for seconds, end in ((0 if late else grace, process.terminate), (grace, process.kill)):
                with anyio.move_on_after(seconds):
                    await process.wait()
                if process.returncode is None:
                    end()
            await process.aclose()
        finally:
            handle.fail(None)
            handle.control.close()

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.aclose()


class WorkerCaller(Caller):
    """Calls to a worker, which can be killed."""

    def __init__(self, driver: LoopDriver, handle: Handle) -> None:
        super().__init__(driver)
        self._handle: Final = handle

    async def stop(self, call: OutCall) -> None:
        """Ask for it, interrupt, and kill after the grace."""
        handle, grace = self._handle, self._handle.settings.grace
        self.link.cancel(call)
        deadline = anyio.current_time() + grace
        while not call.ended and anyio.current_time() < deadline:
            handle.control.cancel(call.id)
            with anyio.move_on_after(min(REPEAT, grace)):
                await self.wait_ended(call)
        handle.control.forget(call.id)
        if call.ended or handle.waits_for_another(call):
            return
        handle.kill_for(call)
        with anyio.move_on_after(LAST_GRACE):
            await self.wait_ended(call)
        if not call.ended:
            handle.process.kill()
            await self.wait_ended(call)

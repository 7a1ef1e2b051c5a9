"""``forkwire.sync.open_worker``: a worker whose calls block. A thread beside them drives it."""

from __future__ import annotations

import atexit
import math
import os
import threading
import time
import weakref
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Final, Self, TypeVar

from ..errors import ProcessWorkerIPCError, UsageError
from ..process.backend import BackendName
from ..process.steps import run_blocking
from ..process.worker import DEFAULT_GRACE
from ..wire.framing import MAX_PAYLOAD_SIZE
from .caller.offers import Offers
from .caller.sync_calls import SyncCalls
from .handle import REPEAT, Handle, HasHandle, WorkerStatistics
from .handlers.thread_hosting import ThreadHosting
from .links.drivers import Bell
from .links.poll_thread import PollDriver, PollThread
from .links.uninterrupted import Uninterrupted
from .settings import START_TIMEOUT, Settings, StartMethod, settings_of
from .starting import start
from .sync_caller import SyncCaller

__all__ = ["SyncWorker", "WorkerStatistics", "open_worker"]

T = TypeVar("T")


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
) -> SyncWorker:
    """A worker that serves ``service``; enter it with ``with`` to start it.

    As :func:`forkwire.open_worker`, without an event loop here: calls block, several threads may
    make them, and Ctrl-C stops the one that it interrupts. ``host`` offers plain functions, run in
    threads of their own. ``backend``: of the service's async functions, asyncio unless given.

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
    if settings.host is not None and settings.host.has_async:
        raise UsageError(
            f"{settings.host.name} offers async functions, and there is no event loop here: offer "
            "plain ones, or use forkwire.open_worker"
        )
    return SyncWorker(settings)


class SyncWorker(HasHandle, SyncCalls):
    """A worker process that serves calls: made by :func:`forkwire.sync.open_worker`.

    A context manager: entering it starts the worker and waits until its service is there, leaving
    it ends it as :meth:`close` does. Threads may share it.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings: Final = settings
        self._offers = Offers(settings.label, settings.service)
        self._thread: PollThread | None = None
        self._driver: PollDriver | None = None
        self._buried = False
        self._pid = os.getpid()

    def ping(self) -> float:
        """Wait for a sign of life from the worker; the seconds it took.

        A worker that runs nothing but plain functions answers between two of them. Raises
        :exc:`WorkerDied` and :exc:`WorkerClosedError`.
        """
        link = self._started_handle().link
        self._ready_caller().check_here()
        link.check_open()
        before = time.monotonic()
        answered: list[bool] = []
        bell = Bell()

        def answer() -> None:
            answered.append(True)
            bell.ring()

        self._send(lambda: link.ping(answer))
        bell.wait(lambda: bool(answered))
        link.check_open()
        return time.monotonic() - before

    # -- start --------------------------------------------------------------------------------

    def __enter__(self) -> Self:
        self._enter_once()
        with Uninterrupted(self._hurry) as block:
            self._start(block)
        return self

    def _start(self, block: Uninterrupted) -> None:
        self._thread = thread = PollThread("worker")
        thread.start()
        try:
            starting = start(self._settings, self._offers, thread.backend)
            self._handle = handle = run_blocking(starting, block.check)
        except BaseException:
            thread.stop()
            raise
        open_workers.add(self)
        try:
            self._connect(handle, thread)
            self._greet(handle)
            block.check()
        except BaseException:
            handle.closing = True
            if handle.link.farewell is None:
                handle.process.kill()
            self._finish(handle)
            block.check()
            raise

    def _hurry(self) -> None:
        """A signal's handler has raised: no more patience. In the handler."""
        handle, thread = self._handle, self._thread
        if handle is not None and thread is not None:
            thread.run_soon(handle.process.kill)

    def _send(self, function: Callable[[], T]) -> T:
        assert self._thread is not None
        return self._thread.do(function)

    def _connect(self, handle: Handle, thread: PollThread) -> None:
        link = handle.link
        self._driver = driver = PollDriver(link, thread)
        link.front = self
        link.on_end = self._on_end
        link.on_hello = link.on_goodbye = link.on_idle = driver.wake
        if self._settings.host is not None:
            link.accept = ThreadHosting(driver, self._settings.host).take_call
        self._caller = SyncCaller(driver, handle)
        thread.do(handle.greet)
        driver.start()
        handle.process._child.when_ended(lambda: thread.run_soon(self._on_exit))

    def _greet(self, handle: Handle) -> None:
        assert self._driver is not None
        until = time.monotonic() + self._settings.start_timeout
        self._driver.wait_until(lambda: handle.greeted, until)
        handle.check_greeting()

    # -- death --------------------------------------------------------------------------------

    def _on_exit(self) -> None:
        """The process has ended, and is reaped. In the thread."""
        handle = self._started_handle()
        if not handle.drain() or handle.link.over is None:
            self._bury(None)

    def _on_end(self, error: ProcessWorkerIPCError | None) -> None:
        """Nothing more comes from it: it has ended, or is made to. In the thread."""
        handle = self._started_handle()
        if error is not None:
            handle.process.kill()
            handle.link.fail(error)
        if handle.process.returncode is not None:
            if error is None:  # it may have said something before it stopped reading
                handle.drain()
            self._bury(error)
            return

        def kill() -> None:
            if handle.process.returncode is None and not handle.closing:
                handle.killed_for = "closed its connection and went on, so it was killed"
                handle.process.kill()

        assert self._thread is not None
        self._thread.after(self._settings.grace, kill)

    def _bury(self, error: ProcessWorkerIPCError | None) -> None:
        if not self._buried:
            self._buried = True
            self._started_handle().fail(error)

    # -- the end ------------------------------------------------------------------------------

    def close(self) -> None:
        """End the worker: no new calls; those in flight are stopped, notifications still run.

        What does not end within the grace is terminated, then killed. The worker is reaped in any
        case, also when a signal's handler raises meanwhile. Idempotent.
        """
        handle = self._handle
        if handle is None or self._pid != os.getpid():
            return
        if self._caller is not None:
            self._caller.check_here()
        with Uninterrupted(self._hurry):
            late = False
            try:
                late = not (handle.closing or self._wind_up(handle))
            finally:
                self._finish(handle, late=late)

    def _wind_up(self, handle: Handle) -> bool:
        """Let what was sent be done, and stop what somebody waits for; whether all has ended."""
        assert self._driver is not None
        assert self._thread is not None
        until = time.monotonic() + self._settings.grace
        calls = self._thread.do(handle.say_goodbye)
        outbox = handle.link.outbox
        in_time = False
        while not in_time and time.monotonic() < until:
            handle.interrupt(calls)
            in_time = self._driver.wait_until(
                lambda: all(call.ended for call in calls) or handle.link.over is not None,
                min(until, time.monotonic() + REPEAT),
            )
        while outbox.waiting and not outbox.gone and time.monotonic() < until:
            time.sleep(REPEAT)  # nothing tells when the last byte is out
        return in_time

    def _finish(self, handle: Handle, *, late: bool = False) -> None:
        """Reap it, and end the thread. ``late``: it had its grace already."""
        thread = self._thread
        assert thread is not None
        thread.do(handle.process.output_channel.close)
        self._end_process(handle, 0 if late else self._settings.grace)
        thread.do(handle.process.input_channel.close)
        handle.control.close()
        thread.stop()
        handle.fail(None)
        open_workers.discard(self)

    def _end_process(self, handle: Handle, patience: float) -> None:
        process, grace = handle.process, self._settings.grace
        for seconds, end in ((patience, process.terminate), (grace, process.kill)):
            if self._await_end(handle, seconds):
                return
            end()
        self._await_end(handle, math.inf)

    def _await_end(self, handle: Handle, seconds: float) -> bool:
        ended = threading.Event()
        handle.process._child.when_ended(ended.set)
        return ended.wait(None if seconds == math.inf else seconds)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


# Those that nobody has closed at the end of the program.
open_workers: Final[weakref.WeakSet[SyncWorker]] = weakref.WeakSet()


@atexit.register
def close_open_workers() -> None:
    for worker in list(open_workers):
        worker.close()

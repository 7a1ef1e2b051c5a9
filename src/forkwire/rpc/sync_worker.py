"""``forkwire.sync.open_worker``: a worker whose calls block. A thread beside them drives it."""

from __future__ import annotations

import _thread
import atexit
import math
import os
import threading
import time
import weakref
from collections.abc import Callable
from contextlib import AbstractContextManager
from types import TracebackType
from typing import Final, Self, TypeVar

from ..errors import ProcessWorkerIPCError, UsageError
from ..process.backend import BackendName
from ..process.worker import DEFAULT_GRACE
from ..wire.framing import MAX_PAYLOAD_SIZE
from .blocking import BlockingCaller
from .handle import LAST_GRACE, REPEAT, Handle, HasHandle, WorkerStatistics
from .handling import find
from .lanes import Job, Lane, Lanes
from .link import InCall, OutCall
from .offers import Offers
from .poll_thread import Bell, PollDriver, PollThread
from .service import Service
from .settings import START_TIMEOUT, Settings, StartMethod, settings_of
from .sync_calls import NOTHING, SyncCalls
from .uninterrupted import Postponed, Uninterrupted

__all__ = ["SyncWorker", "WorkerStatistics", "open_worker"]

T = TypeVar("T")


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
        host=host,
        start=start,
        threads=threads,
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
        self._check_not_started()
        with Uninterrupted(self._hurry) as block:
            self._start(block)
        return self

    def _start(self, block: Uninterrupted) -> None:
        self._thread = thread = PollThread("worker")
        thread.start()
        try:
            self._handle = handle = Handle(self._settings, self._offers, thread.backend)
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
        with Uninterrupted(self._hurry):
            try:
                if not handle.closing:
                    self._wind_up(handle)
            finally:
                self._finish(handle)

    def _wind_up(self, handle: Handle) -> None:
        assert self._driver is not None
        assert self._thread is not None
        until = time.monotonic() + self._settings.grace
        calls = self._thread.do(handle.say_goodbye)
        outbox = handle.link.outbox
        self._driver.wait_until(
            lambda: all(call.ended for call in calls) or handle.link.over is not None, until
        )
        while outbox.waiting and not outbox.gone and time.monotonic() < until:
            time.sleep(REPEAT)  # nothing tells when the last byte is out

    def _finish(self, handle: Handle) -> None:
        """Reap it, and end the thread."""
        thread = self._thread
        assert thread is not None
        thread.do(handle.process.output_channel.close)
        self._end_process(handle)
        thread.do(handle.process.input_channel.close)
        handle.control.close()
        thread.stop()
        handle.fail(None)
        open_workers.discard(self)

    def _end_process(self, handle: Handle) -> None:
        grace = self._settings.grace
        for seconds, end in ((grace, handle.process.terminate), (grace, handle.process.kill)):
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


class RingingCall(OutCall):
    """One whose caller sleeps until something comes for it."""

    __slots__ = ("bell",)

    def __init__(self, method: str, tree: str) -> None:
        super().__init__(0, method, tree)
        self.bell: Final = Bell()
        self.wake = self.bell.ring


class SyncCaller(BlockingCaller):
    """Calls to a worker, which can be killed. It is its own `Waiter`."""

    def __init__(self, driver: PollDriver, handle: Handle) -> None:
        super().__init__(handle.link, self)
        self._driver: Final = driver
        self._thread: Final = driver.thread
        self._handle: Final = handle
        self._pid: Final = os.getpid()

    def wait(self, ready: Callable[[], bool], until: float = math.inf) -> None:
        link = self.link
        self._driver.wait_until(lambda: ready() or link.over is not None, until)

    def send(self, function: Callable[[], T]) -> T:
        if not in_main_thread():
            return function()
        with Postponed():
            return function()

    def ours(self) -> AbstractContextManager[None]:
        return NOTHING

    def theirs(self, function: Callable[[], T]) -> T:
        return function()

    def wake(self) -> None:
        self._driver.wake()

    def new_call(self, method: str, tree: str) -> RingingCall:
        if self._pid != os.getpid():
            raise UsageError(
                f"{self.link.name} belongs to process {self._pid}, which started it, not to this "
                f"one ({os.getpid()}), which inherited the handle"
            )
        return RingingCall(method, tree)

    def sleep(self, call: OutCall, ready: Callable[[], bool], until: float) -> None:
        assert isinstance(call, RingingCall)
        call.bell.wait(ready, until)

    def drop(self, call: OutCall) -> None:
        self._thread.run_soon(Stopping(self._handle, self._thread, call).begin)

    def stop(self, call: OutCall) -> None:
        stopping = Stopping(self._handle, self._thread, call)
        self._thread.run_soon(stopping.begin)
        with Uninterrupted(call.wake):
            self.sleep(call, lambda: stopping.over, math.inf)


def in_main_thread() -> bool:
    return _thread.get_ident() == threading.main_thread().ident


class Stopping:
    """Has a call stopped: asks for it, interrupts, and kills after the grace.

    In the driver's thread, whatever becomes of who waits.
    """

    def __init__(self, handle: Handle, thread: PollThread, call: OutCall) -> None:
        self._handle: Final = handle
        self._thread: Final = thread
        self._call: Final = call
        self._deadline = math.inf
        self._left = False

    @property
    def over(self) -> bool:
        """Whether the call has ended, or it need not be waited for."""
        return self._call.ended or self._left

    def begin(self) -> None:
        """Ask for it."""
        call = self._call
        if not (call.ended or call.id):
            call.end()  # it was never sent
        if not call.ended:
            self._handle.link.cancel(call)
            self._deadline = time.monotonic() + self._handle.settings.grace
            self._insist()

    def _insist(self) -> None:
        call, handle = self._call, self._handle
        left = self._deadline - time.monotonic()
        if call.ended:
            handle.control.forget(call.id)
        elif left > 0:
            handle.control.cancel(call.id)
            self._thread.after(min(REPEAT, left), self._insist)
        else:
            handle.control.forget(call.id)
            self._give_up()

    def _give_up(self) -> None:
        call = self._call
        if self._handle.waits_for_another(call):
            self._left = True
            call.wake()
        else:
            self._handle.kill_for(call)
            self._thread.after(LAST_GRACE, self._kill)

    def _kill(self) -> None:
        if not self._call.ended:
            self._handle.process.kill()


class ThreadHosting(Lanes):
    """Runs what the worker calls: plain functions, each call in a thread, one at a time.

    One that is called while its caller's call to the worker is handled here (the same tree) does
    not wait for its turn.
    """

    def __init__(self, driver: PollDriver, service: Service) -> None:
        super().__init__(driver, service.name)
        service.load()
        self._service: Final = service
        self._turn: Final = threading.Lock()
        self._trees: Final[list[str]] = []

    def take_call(self, call: InCall) -> None:
        """Have ``call`` run, or answer why not."""
        try:
            method = find(self._service, call)
        except Exception as error:
            call.link.reply_error(call, error)
        else:
            self.accept(call, method)

    def enqueue(self, job: Job) -> None:
        """A thread for ``job``, or for its next part."""
        threading.Thread(
            target=self._run, args=(job,), name=f"forkwire: {self.name}", daemon=True
        ).start()

    def _run(self, job: Job) -> None:
        if job.call.tree and job.call.tree in self._trees:
            self._advance(job)
            return
        with self._turn:
            self._advance(job)

    def _advance(self, job: Job) -> None:
        self._trees.append(job.call.tree)
        try:
            Lane(self, None).advance(job)
        finally:
            self._trees.remove(job.call.tree)

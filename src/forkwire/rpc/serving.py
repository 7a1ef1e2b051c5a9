"""A worker that serves calls: what runs in the child, from its greeting to its end.

Plain functions run in the main thread, where they can be interrupted. A service that has nothing
else needs no loop and no thread: reading, running and answering take turns. One with async
functions has a loop in a thread of its own, which drives the link, so that a plain function never
holds up an async one.
"""

from __future__ import annotations

import contextlib
import contextvars
import importlib
import logging
import operator
import os
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from ..errors import ForkwireError, PeerError, ProcessWorkerIPCError, WorkerClosedError
from ..process.backend import BackendName, current_backend
from ..process.cancelling import Terminated
from ..process.channels import InputChannel, OutputChannel
from .caller.current import handling as current
from .exceptions import describing as failures
from .handlers.handling import find
from .handlers.lane import Lane
from .handlers.lanes import Lanes
from .handlers.mailing import Mail
from .handlers.service import Service
from .interrupts.control_pipe import ControlPipe
from .interrupts.interrupting import Interrupter
from .interrupts.orders import Orders
from .links.drivers import Driver, LoopDriver, OwnDriver
from .links.link import InCall, Limits, Link, nothing
from .links.poll_thread import PollDriver, PollThread
from .telling import logs
from .telling.log_records import Data

__all__ = ["Start", "serve"]

HIGHEST_LEVEL: Final = 1000

# The exit status after a host that broke the protocol.
FAULT: Final = 1

ASYNC: Final = ("async", "async_generator")


@dataclass(slots=True)
class Start:
    """What a worker is started with."""

    target: object
    name: str
    backend: BackendName
    threads: int = 1
    control: ControlPipe | None = None
    log_level: int | None = None  # None: logging is left alone
    ask_log_level: bool = False  # the host's greeting says it
    limits: Limits = field(default_factory=Limits)
    initializer: str | Callable[..., object] | None = None  # or "module:name"
    initargs: Sequence[object] = ()
    given: bytes = b""  # for a fresh interpreter: the same as JSON
    said: Sequence[Data] = ()  # log records of what was imported for it

    def fileno(self) -> int:
        """What the worker keeps with ``close_fds`` beside its own ends: the control pipe."""
        return -1 if self.control is None else self.control.fileno()


def serve(input_: InputChannel, output: OutputChannel, start: Start) -> None:
    """Serve until the host is gone, or SIGTERM. In the main thread of a process of its own.

    In a context of its own too: calls see what travelled with them, and nothing of the fork's.
    """
    contextvars.Context().run(_serve, input_, output, start)


def _serve(input_: InputChannel, output: OutputChannel, start: Start) -> None:
    link = Link(input_, output, name="the host", limits=start.limits)
    link.on_end = lambda error: link.fail(gone(error))
    if start.ask_log_level:
        link.pump()  # the host greets at once: what it says may be there
    log_level = hosts_log_level(link) if start.ask_log_level else start.log_level
    mail = Mail(link)
    bridge = None if log_level is None else logs.install(mail, log_level, running_call)
    if bridge is not None and start.ask_log_level and not link.greeted:
        link.on_hello = lambda: bridge.set_level(hosts_log_level(link))
    link.on_idle = nothing if bridge is None else bridge.flush
    if log_level is not None:
        for record in start.said:
            level = record["level"]
            if isinstance(level, int) and level >= log_level:
                mail(record)
    try:
        load_and_serve(link, start, mail)
        if isinstance(link.over, PeerError):
            raise SystemExit(FAULT)  # C-46; the host was told why
    finally:
        link.on_idle()
        link.outbox.close()  # SIGTERM may leave a thread that writes, while the channel is closed
        mail.close()


def load_and_serve(link: Link, start: Start, mail: Mail) -> None:
    """The service, or why there is none."""
    control = start.control
    interrupter = None if control is None else Interrupter(control.child_fd)
    orders = Orders(control) if control is not None and control.is_ours else None
    try:
        service = Service.of(start.target)
        service.load()
        initialize(start)
        kinds = service.kinds
    except Terminated:
        raise
    except BaseException as error:
        decline(link, error, mail)
        return
    about = {"service": {"name": service.name, "methods": dict(kinds)}, "pid": os.getpid()}
    server = Server(link, service, interrupter, about, mail, orders)
    if service.has_async:
        serve_with_loop(server, start)
    elif start.threads > 1 or orders is not None:
        serve_with_threads(server, start)
    else:
        serve_alone(server)


def initialize(start: Start) -> None:
    """Run the initializer; what it raises is why there is no service."""
    initializer = start.initializer
    if isinstance(initializer, str):
        module, _, path = initializer.partition(":")
        initializer = operator.attrgetter(path)(importlib.import_module(module))
    if initializer is not None:
        initializer(*start.initargs)


def hosts_log_level(link: Link) -> int | None:
    """What the host's greeting says, None: no records are wanted. Python's default before it."""
    if not link.greeted:
        return logging.WARNING
    level = link.session.peer_about.get("log_level")
    return level if type(level) is int and 0 <= level <= HIGHEST_LEVEL else None


def gone(error: ProcessWorkerIPCError | None) -> ForkwireError:
    return WorkerClosedError("the host has closed the connection") if error is None else error


def decline(link: Link, error: BaseException, mail: Mail) -> None:
    """There is no service: say why, and end."""
    link.goodbye(failures.describe(error))
    mail.release()
    driver = OwnDriver(link)
    driver.wait(lambda: not link.outbox.waiting)


def running_call() -> tuple[int, str] | None:
    """For log records: the call that runs here."""
    call = current.get()
    return (call.id, call.method) if isinstance(call, InCall) else None


class Server:
    """What the ways to serve have in common."""

    def __init__(
        self,
        link: Link,
        service: Service,
        interrupter: Interrupter | None,
        about: dict[str, Any],
        mail: Mail,
        orders: Orders | None = None,
    ) -> None:
        self.link: Final = link
        self.service: Final = service
        self.interrupter: Final = interrupter
        self.about: Final = about
        self.mail: Final = mail
        self.orders: Final = orders

    def greet(self) -> None:
        """The service is there."""
        self.link.hello(self.about)
        self.mail.release()

    def over(self) -> bool:
        """Whether the host is gone, or both sides have said goodbye and all is done."""
        return self.link.over is not None or self.link.is_done

    def lanes(self, driver: Driver) -> Lanes:
        """Where plain functions queue."""
        if self.interrupter is not None:
            self.interrupter.on_others = driver.look
        lanes = Lanes(driver, self.service.name)
        orders = self.orders
        if orders is not None:
            lanes.on_stop = lambda job: orders.stop(job.call.id, lambda: job.over)
        return lanes

    def accept_into(self, accept: Callable[[InCall, Any], None]) -> Callable[[InCall], None]:
        """Take calls that can be run; answer the others."""

        def take(call: InCall) -> None:
            try:
                method = find(self.service, call)
            except Exception as error:
                self.link.reply_error(call, error)
            else:
                accept(call, method)

        return take


def serve_alone(server: Server) -> None:
    """One thread does everything."""
    driver = OwnDriver(server.link)
    lanes = server.lanes(driver)
    server.link.accept = server.accept_into(lanes.accept)
    server.greet()
    Lane(lanes, server.interrupter).run(server.over)


def serve_with_threads(server: Server, start: Start) -> None:
    """A thread for the link, and as many lanes as were asked for."""
    thread = PollThread("link")
    driver = PollDriver(server.link, thread)
    lanes = server.lanes(driver)
    server.link.accept = server.accept_into(lanes.accept)
    server.greet()
    thread.start()
    try:
        driver.start()
        run_lanes(lanes, server, start.threads)
    finally:
        thread.stop()


def run_lanes(lanes: Lanes, server: Server, count: int) -> None:
    """Run them in this thread, and ``count`` - 1 others, until the host is gone."""
    others = [
        threading.Thread(
            target=Lane(lanes, None).run, args=(server.over,), name=f"lane {number}", daemon=True
        )
        for number in range(2, count + 1)
    ]
    for thread in others:
        thread.start()
    Lane(lanes, server.interrupter).run(server.over)
    for thread in others:
        thread.join()


def serve_with_loop(server: Server, start: Start) -> None:
    """A loop in a thread of its own, and lanes."""
    loop = LoopThread(server, start.backend)
    try:
        run_lanes(loop.start(), server, start.threads)
    finally:  # SIGTERM ends the lane here, or the start
        loop.stop()
    if loop.failure is not None:
        raise loop.failure


class LoopThread:
    """Runs the loop of a service with async functions."""

    def __init__(self, server: Server, backend: BackendName) -> None:
        self.failure: BaseException | None = None
        self._server: Final = server
        self._backend: Final = backend
        self._lanes: Lanes | None = None
        self._ready: Final = threading.Event()
        self._thread: Final = threading.Thread(target=self._run, name="loop", daemon=True)
        self._driver: LoopDriver | None = None

    def start(self) -> Lanes:
        """Begin, and answer where plain functions queue."""
        self._thread.start()
        self._ready.wait()
        if self._lanes is None:
            self._thread.join()
            raise self.failure or AssertionError("the loop ended at once")
        return self._lanes

    def stop(self) -> None:
        """Cancel what runs, and wait until it has ended."""
        if self._driver is not None:
            self._driver.backend.run_soon(self._give_up)
        else:
            self._give_up()  # it is seen once the loop is there
        with contextlib.suppress(RuntimeError):  # not even started
            self._thread.join()

    def _give_up(self) -> None:
        self._server.link.fail(WorkerClosedError("the worker is ending"))

    def _run(self) -> None:
        try:
            import anyio  # not before: a service of plain functions does without it

            if self._backend == "trio":
                anyio.run(self._main, backend="trio")
            else:
                options = {"use_uvloop": self._backend == "uvloop"}
                anyio.run(self._main, backend="asyncio", backend_options=options)
        except BaseException as error:
            self.failure = error
        finally:
            self._server.link.fail(WorkerClosedError("the worker's loop has ended"))
            self._ready.set()

    async def _main(self) -> None:
        import anyio

        from .caller.aio import Caller
        from .caller.calls import Calls
        from .caller.offers import Offers
        from .handlers.tasks import Tasks

        server = self._server
        link = server.link
        self._driver = driver = LoopDriver(link, current_backend())
        calls = Calls()
        calls._caller, calls._offers = Caller(driver), Offers("the host")
        link.front = calls
        tasks = Tasks(driver, server.service.name)
        self._lanes = lanes = server.lanes(driver)
        over = anyio.Event()
        flush_logs = link.on_idle

        def accept(call: InCall, method: Any) -> None:
            if method.kind in ASYNC:
                tasks.run(call, method)
            else:
                lanes.accept(call, method)

        def look_for_end() -> None:
            flush_logs()
            if server.over() and tasks.idle:
                driver.backend.call(over.set)

        link.accept = server.accept_into(accept)
        heard = link.on_hello

        def greeted() -> None:
            heard()
            calls._offers.learn(link)

        if link.greeted:
            greeted()
        link.on_hello = greeted
        link.on_idle = tasks.on_idle = look_for_end
        server.greet()
        driver.start()
        self._ready.set()
        look_for_end()
        await over.wait()

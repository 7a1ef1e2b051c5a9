"""``run``: a function in a forked process, and the handle that the host has of it."""

from __future__ import annotations

import importlib.util
import inspect
import os
import signal
import warnings
from collections.abc import Awaitable, Callable
from types import FunctionType, TracebackType
from typing import Final, Self, TypeVar, get_args

from ..errors import ForkUnavailableError, UsageError, WorkerDied, WorkerStartError
from ..wire.framing import MAX_PAYLOAD_SIZE, checked_limit
from . import guard_main, signals
from .backend import Backend, BackendName, current_backend
from .channels import InputChannel, OutputChannel
from .fork import Options, fork_worker, get_ready, open_ends, prepare
from .reaping import Child
from .stderr import Relay, Sink, to_stderr, to_stdout

__all__ = ["DEFAULT_GRACE", "ProcessWorker", "run", "start_worker"]

T = TypeVar("T")

YIELDS: Final = inspect.CO_GENERATOR | inspect.CO_ASYNC_GENERATOR

# Long enough for a cleanup that writes something, short enough to wait for at a prompt.
DEFAULT_GRACE: Final = 2.0
LONGEST_GRACE: Final = 1e9  # some thirty years


async def run(
    f: Callable[[InputChannel, OutputChannel, T], Awaitable[object] | object],
    arg: T,
    *,
    grace: float = DEFAULT_GRACE,
    close_fds: bool = False,
    backend: BackendName | None = None,
    capture_stderr: bool = False,
    max_message_size: int = MAX_PAYLOAD_SIZE,
) -> ProcessWorker:
    """Fork this process, and run ``f(input, output, arg)`` in the child.

    ``f``: a plain or an async function; in the child, ``input`` brings what is written to the
    worker's ``output_channel``, and what it writes to ``output`` arrives at ``input_channel``.
    A plain one reads and writes with :mod:`forkwire.sync`. ``arg``: anything; it is inherited
    as it is, and never serialised.

    ``grace``: seconds between SIGTERM and SIGKILL. ``close_fds``: keep only descriptors 0 to 2,
    the worker's own, and those in ``arg`` (an int, an object with ``fileno()``, or a flat list of
    them); placeholders that refuse everything keep the other numbers. ``backend``: the event loop
    of an async ``f``, ``"asyncio"``, ``"uvloop"`` or ``"trio"``; None for the one that runs here.
    ``capture_stderr``: pass on the child's stderr line by line, and keep its end for
    :exc:`WorkerDied`. ``max_message_size``: of both input
    channels, in bytes.

    The child exits with status 0 when ``f`` returns, with 1 and a traceback on stderr when it
    raises, and as ``sys.exit`` says. SIGTERM cancels ``f``. It leads a process group, ignores
    SIGINT, and is ended with its group when this process ends, however it does
    (protocol-spec/2-process.md).

    Raises :exc:`UsageError` for arguments that cannot work, :exc:`ForkUnavailableError` where
    there is no fork, and :exc:`WorkerStartError` when the system refuses. Warns with
    :exc:`ForkThreadsWarning` of other threads that run, each finding once.
    """
    check_function(f)
    check_options(grace, backend, max_message_size)
    if not hasattr(os, "fork"):
        raise ForkUnavailableError(
            "run() forks, and this platform has no fork: use Linux or macOS (on Windows, WSL)"
        )
    here = current_backend()
    await here.checkpoint()
    name = backend or here.name
    options = Options(name, grace, max_message_size, close_fds, capture_stderr)
    return start_worker(f, arg, options)


def start_worker(
    f: Callable[[InputChannel, OutputChannel, T], Awaitable[object] | object],
    arg: T,
    options: Options,
    *,
    label: str = "",
    sinks: tuple[Sink, Sink] = (to_stdout, to_stderr),
    backend: Backend | None = None,
) -> ProcessWorker:
    """What `run` does after its checks, for the layers above. In the loop's thread.

    ``label``: begins each captured line, as ``[label pid]``. ``sinks``: where what is captured of
    stdout and of stderr goes. ``backend``: what watches the worker, where it is not the loop that
    runs here.
    """
    here = backend or current_backend()
    get_ready(options)
    worker = None
    mask = signals.pthread_sigmask(signal.SIG_BLOCK, ())
    try:
        try:
            signals.pthread_sigmask(signal.SIG_BLOCK, signals.ALL_SIGNALS)
            worker = ProcessWorker(options, here, sinks)
            worker._start(f, arg, options, here, mask, label)
        finally:
            signals.pthread_sigmask(signal.SIG_SETMASK, mask)  # a handler may raise here
        return worker
    except BaseException:
        if worker is not None:
            worker._discard()
        raise


class ProcessWorker:
    """A worker process, as its host sees it: made by :func:`run`.

    An async context manager: leaving it closes the worker as :meth:`aclose` does.
    """

    def __init__(
        self,
        options: Options,
        backend: Backend,
        sinks: tuple[Sink, Sink] = (to_stdout, to_stderr),
        make_child: Callable[[float], Child] = Child,
    ) -> None:
        self._pid = os.getpid()
        self._ends = ends = open_ends(options.capture_stderr, options.capture_stdout)
        try:
            self._child = make_child(options.grace)
        except BaseException:
            ends.close()
            raise
        if options.capture_stderr:  # else a start costs nothing more than it must
            self._child.count_victims()
        self._input = InputChannel._of_pipe(ends.input, options.max_message_size, backend)
        self._output = OutputChannel._of_pipe(ends.output, backend)
        self._stdout = Relay(ends.stdout, sinks[0]) if ends.stdout >= 0 else None
        self._stderr = Relay(ends.stderr, sinks[1]) if ends.stderr >= 0 else None

    def _start(
        self,
        f: Callable[[InputChannel, OutputChannel, T], Awaitable[object] | object],
        arg: T,
        options: Options,
        backend: Backend,
        mask: frozenset[int],
        label: str,
    ) -> None:
        """Fork, and have ``backend`` watch. Raises :exc:`WorkerStartError`; then `_discard` it."""
        try:
            birth = prepare(f, arg, options, self._ends, self._child.slot, mask)
            self._child.born(fork_worker(birth, self._ends))
            self._child.leftovers = birth.input, birth.output
            self._launch(label, backend)
        except OSError as error:
            raise WorkerStartError(
                error.errno, f"a worker could not be started: {error.strerror}"
            ) from error

    def _launch(self, label: str, backend: Backend) -> None:
        """It is born: have ``backend`` watch. Raises :exc:`OSError`."""
        self._ends.close_theirs()
        for relay in (self._stdout, self._stderr):
            if relay is not None:
                relay.label = f"[{label} {self.pid}] " if label else ""
                self._child.when_ended(relay.finish)
                relay.watch(backend)
        backend.run_later(self._child.watch_somehow)

    @property
    def pid(self) -> int:
        """The process id, which is the group's too."""
        return self._child.pid

    @property
    def input_channel(self) -> InputChannel:
        """What the worker writes."""
        return self._input

    @property
    def output_channel(self) -> OutputChannel:
        """What the worker reads."""
        return self._output

    @property
    def returncode(self) -> int | None:
        """The exit status, a negative signal number, or None while it runs.

        255 if the status was lost: another part of the program waited for the process, or SIGCHLD
        is ignored. Raises :exc:`UsageError` in a process that did not start the worker.
        """
        self._check_process()
        self._child.reap()
        return self._child.returncode

    @property
    def died(self) -> WorkerDied | None:
        """All that is known of a bad end; None while it runs, and when it ended with status 0.

        Its ``inside_message`` is None unless ``input_channel`` was read to its end.
        """
        returncode = self.returncode
        if not returncode:
            return None
        end = self._input.end
        return WorkerDied(
            self.pid,
            returncode,
            self._child.reason(),
            rusage=self._child.rusage,
            inside_message=end.truncated if end else None,
            stderr_tail=self._stderr.tail() if self._stderr else "",
            native_stack=self._stderr.native_stack() if self._stderr else "",
        )

    def check_returncode(self) -> None:
        """Raise :exc:`WorkerDied` if the worker ended with a signal or a non-zero status."""
        died = self.died
        if died is not None:
            raise died

    def terminate(self) -> None:
        """Send SIGTERM to the worker's process group: ``f`` is cancelled. Nothing if it ended.

        Raises :exc:`UsageError` in a process that did not start the worker.
        """
        self._check_process()
        self._child.signal_group(signal.SIGTERM)

    def kill(self) -> None:
        """Send SIGKILL to the worker's process group. Nothing if it ended.

        Raises :exc:`UsageError` in a process that did not start the worker.
        """
        self._check_process()
        self._child.signal_group(signal.SIGKILL)

    async def wait(self) -> int:
        """Wait until the process has ended and is reaped; its ``returncode``.

        Raises :exc:`UsageError` in a process that did not start the worker.
        """
        self._check_process()
        import anyio

        backend = current_backend()
        await backend.checkpoint()
        ended = anyio.Event()

        def wake() -> None:
            backend.run_soon(ended.set)

        self._child.when_ended(wake)
        try:
            with self._child.watched(backend):
                if self.returncode is None:
                    await ended.wait()
        finally:
            self._child.forget(wake)
        assert self._child.returncode is not None
        return self._child.returncode

    async def aclose(self) -> None:
        """Close the channels, let the worker end, after the grace terminate, then kill it.

        A message being written is finished first, within the grace. Not interrupted by
        cancellation: it takes at most three times the grace. The worker is reaped in any case.

        Raises :exc:`UsageError` in a process that did not start the worker.
        """
        self._check_process()
        await current_backend().uninterrupted(self._close)

    async def _close(self) -> None:
        import anyio

        try:
            self._input.close()
            with anyio.move_on_after(self._child.grace):
                await self._output.aclose()
            grace = self._child.grace
            again = min(guard_main.AGAIN, grace / 2)
            for seconds, end in (
                (grace, self.terminate),
                (again, self.terminate),
                (grace - again, self.kill),
            ):
                with anyio.move_on_after(seconds):
                    await self.wait()
                    return
                end()
            await self.wait()
        except BaseException:  # asyncio.run cancels every task at its end, also this one
            if self.returncode is None:
                self._child.abandon()
            raise

    def _check_process(self) -> None:
        if self._pid != os.getpid():
            raise UsageError(
                f"worker {self.pid} belongs to process {self._pid}, which started it, "
                f"not to this one ({os.getpid()}), which inherited the handle"
            )

    def _discard(self) -> None:
        """End it at once: nobody has seen it yet."""
        self._ends.close_theirs()
        self._input.close()
        self._output.close()
        self.kill()
        self._child.reap_now()
        for relay in (self._stdout, self._stderr):
            if relay is not None:
                relay.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.aclose()

    def __repr__(self) -> str:
        code = self._child.returncode
        return f"<ProcessWorker pid={self.pid} {'running' if code is None else f'ended {code}'}>"

    def __del__(self) -> None:
        if "_child" not in self.__dict__ or self._pid != os.getpid():
            return
        running = self.returncode is None and not self._child.abandoned  # by its closing
        try:
            if running:  # where warnings are errors this one is raised
                warnings.warn(f"unclosed {self!r}", ResourceWarning, stacklevel=2, source=self)
        finally:
            for name in ("_input", "_output"):
                if name in self.__dict__:
                    getattr(self, name).close()
            if running:
                self._child.abandon()


def check_function(f: object) -> None:
    """Refuse what can never be run, before anything is forked."""
    if isinstance(f, FunctionType) and is_plainly_right(f):
        return
    if inspect.iscoroutine(f):
        name = f.__qualname__
        f.close()
        raise UsageError(
            f"run() takes the function itself, not the coroutine {name}(...) that calling it "
            f"made: write run({name}, arg)"
        )
    if not callable(f):
        raise UsageError(f"run() takes a function f(input, output, arg), not {type(f).__name__}")
    if any(
        inspect.isgeneratorfunction(part) or inspect.isasyncgenfunction(part)
        for part in (f, type(f).__call__)
    ):
        raise UsageError(
            f"{name_of(f)} has a yield, so calling it would run nothing: write messages "
            "with write_message instead"
        )
    try:
        signature = inspect.signature(f)
    except (TypeError, ValueError):  # a builtin that does not say
        return
    try:
        signature.bind(None, None, None)
    except TypeError as error:
        raise UsageError(
            f"{name_of(f)}{signature} cannot be called as f(input, output, arg): {error}"
        ) from None


def is_plainly_right(f: FunctionType) -> bool:
    """A function of three arguments without a yield, which spares a closer look."""
    code = f.__code__
    return (
        code.co_argcount == 3
        and code.co_kwonlyargcount == 0
        and not code.co_flags & YIELDS
        and "__wrapped__" not in f.__dict__
    )


def name_of(f: object) -> str:
    return str(getattr(f, "__qualname__", repr(f)))


def check_options(grace: object, backend: object, max_message_size: object) -> None:
    if not (isinstance(grace, (int, float)) and 0 <= grace <= LONGEST_GRACE):
        try:
            what = repr(grace)
        except ValueError:  # an int of thousands of digits
            what = "that many"
        raise UsageError(f"grace is a number of seconds, 0 or more, not {what}")
    checked_limit(max_message_size)
    if backend is None:
        return
    if backend not in get_args(BackendName):
        raise UsageError(f"backend must be one of {get_args(BackendName)}, not {backend!r}")
    if backend != "asyncio" and importlib.util.find_spec(str(backend)) is None:
        raise UsageError(f"backend {backend!r} is not installed: pip install forkwire[{backend}]")

"""``ProcessExecutor``: a :class:`concurrent.futures.Executor` over workers of ours.

What concurrent.futures promises holds, in its words where it has some. Knows the interface; the
workers are the engine's.
"""

from __future__ import annotations

import operator
import os
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor, Future
from itertools import islice
from time import monotonic
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, ParamSpec, TypeVar

from ..errors import UsageError
from ..process.worker import DEFAULT_GRACE, check_options
from ..rpc.references import no_template
from ..rpc.settings import START_TIMEOUT, StartMethod, check_others
from ..rpc.telling import context
from .executor_engine import Engine, ExecutorStatistics
from .executor_member import Plan
from .executor_service import run_chunk
from .executor_work import StoppableFuture, Work

if TYPE_CHECKING:
    from multiprocessing.context import BaseContext

__all__ = ["ExecutorStatistics", "ProcessExecutor"]

P = ParamSpec("P")
T = TypeVar("T")

# multiprocessing's start methods in our words.
START_OF: Final[dict[str, StartMethod]] = {
    "fork": "fork",
    "spawn": "exec",
    "forkserver": "template",
}


class ProcessExecutor(Executor):
    """Runs functions in worker processes, as :class:`concurrent.futures.ProcessPoolExecutor` does.

    ``max_workers``: as many as there are processors for this process, unless given; each is
    started when there is a call and no other is idle. ``mp_context``: of multiprocessing, of which
    only the start method is looked at; ``start``: ours, ``"template"`` where the system can,
    ``"exec"`` or ``"fork"``, as for :func:`forkwire.open_worker`. ``initializer``: is called with
    ``initargs`` in each worker first. ``max_tasks_per_child``: calls after which a worker is
    replaced. ``preload``: modules that a template imports once for all workers.

    A worker that dies fails the call that it ran, and no other: the future raises
    :exc:`forkwire.WorkerDied`, which is a ``BrokenProcessPool`` too. With ``retries`` such a call
    is run again, so often at most: for functions that may run twice. Where workers cannot be
    started, since the initializer raises for instance, futures and :meth:`submit` raise a
    ``BrokenProcessPool`` with the reason as its cause.

    ``cancel_running``: ``future.cancel()`` also stops a call that runs: the function is
    interrupted; what does not stop within ``grace`` seconds is killed with its worker, which is
    replaced. Otherwise, as in concurrent.futures, it answers False.

    Functions and arguments are pickled. What workers cannot import, such as lambdas and all that is
    defined in ``__main__``, goes by value where cloudpickle is installed. It is for code you trust:
    there is no ``sandbox``.

    Raises ValueError, TypeError and :exc:`UsageError` for what can never work.
    """

    def __init__(
        self,
        max_workers: int | None = None,
        mp_context: BaseContext | None = None,
        initializer: Callable[..., object] | None = None,
        initargs: Sequence[object] = (),
        *,
        max_tasks_per_child: int | None = None,
        start: StartMethod | None = None,
        preload: Sequence[str] = (),
        retries: int = 0,
        cancel_running: bool = False,
        name: str | None = None,
        grace: float = DEFAULT_GRACE,
        start_timeout: float = START_TIMEOUT,
        logging: bool = True,
        sandbox: None = None,
    ) -> None:
        workers = processors() if max_workers is None else operator.index(max_workers)
        if workers <= 0:
            raise ValueError("max_workers must be greater than 0")
        if initializer is not None and not callable(initializer):
            raise TypeError("initializer must be a callable")
        check_tasks(max_tasks_per_child, mp_context)
        if isinstance(preload, str):
            raise UsageError(f"preload is a list of modules: [{preload!r}]")
        if sandbox is not None:
            raise UsageError(
                "an executor takes no sandbox: it unpickles what its workers answer, so they can "
                "run code here. Use open_worker or open_pool for code that you do not trust"
            )
        if type(retries) is not int or retries < 0:
            raise UsageError(f"retries is how often a call is run again, not {retries!r}")
        check_options(grace, None, 2**31 - 1)
        check_others({"start": start, "threads": 1, "start_timeout": start_timeout, "name": name})
        self._max_workers: Final = workers
        self._mp_context: Final = mp_context
        self._retries: Final = retries
        self._engine: Final = Engine(
            Plan(
                workers=workers,
                start=start or start_of(mp_context),
                preload=tuple(preload),
                initializer=initializer,
                initargs=tuple(initargs),
                tasks_per_worker=max_tasks_per_child,
                cancel_running=cancel_running,
                name=name or "executor",
                grace=grace,
                start_timeout=start_timeout,
                logging=logging,
            )
        )
        self._collected: Final = weakref.finalize(self, self._engine.abandon)
        self._collected.atexit = False

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """Have ``fn(*args, **kwargs)`` called in a worker; a future of its result.

        The future raises what the function raised, with the remote traceback as its cause, or
        :exc:`forkwire.WorkerDied`. Raises RuntimeError after :meth:`shutdown`, and
        ``BrokenProcessPool`` where workers cannot be started.
        """
        engine = self._engine
        future: Future[Any] = StoppableFuture() if engine.plan.cancel_running else Future()
        work = Work(future, fn, args, kwargs, self._retries, context.capture())
        engine.submit(work)
        return future

    def map(
        self,
        fn: Callable[..., T],
        *iterables: Iterable[Any],
        timeout: float | None = None,
        chunksize: int = 1,
        buffersize: int | None = None,
    ) -> Iterator[T]:
        """The results of ``fn`` for what the iterables hold, in order, as they are asked for.

        ``timeout``: seconds from now, after which TimeoutError is raised. ``chunksize``: calls
        that travel together; many short ones are quicker so. ``buffersize``: how many may be on
        their way (chunks of them); the iterables are read as results are taken. Without it they
        are read at once, to the end. Leaving the iteration cancels what has not begun.

        Raises as :meth:`submit` does, and ValueError and TypeError for sizes that are none.
        """
        if chunksize < 1:
            raise ValueError("chunksize must be >= 1.")
        check_buffersize(buffersize)
        until = None if timeout is None else timeout + monotonic()
        rows = zip(*iterables, strict=False)
        if chunksize == 1:
            return results(self, fn, rows, until, buffersize)
        chunks = ((fn, chunk) for chunk in batched(rows, chunksize))
        return flat(results(self, run_chunk, chunks, until, buffersize))

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """No new calls; the workers end once those that were submitted are done.

        ``wait``: until they have. ``cancel_futures``: of those that have not begun, none is run.
        """
        engine = self._engine
        if engine.pid != os.getpid():
            return  # inherited
        engine.close(cancel_pending=cancel_futures)
        if wait:
            engine.join()

    def terminate_workers(self) -> None:
        """Terminate the workers now, and cancel what waits; those killed after the grace.

        Calls that run raise :exc:`forkwire.WorkerDied`. The executor takes no more calls.
        """
        self.shutdown(wait=False, cancel_futures=True)
        self._engine.end_workers(kill=False)

    def kill_workers(self) -> None:
        """Kill the workers now, and cancel what waits. As :meth:`terminate_workers`."""
        self.shutdown(wait=False, cancel_futures=True)
        self._engine.end_workers(kill=True)

    def statistics(self) -> ExecutorStatistics:
        """What it has done, and the process ids of its workers."""
        return self._engine.statistics()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is not None and issubclass(kind, KeyboardInterrupt):
            self.terminate_workers()  # they did not hear of it: Ctrl-C is for this process alone
        self.shutdown(wait=True)

    @property
    def _broken(self) -> BaseException | None:
        """Programs look here, though they should not."""
        return self._engine.broken

    def __repr__(self) -> str:
        found = self.statistics()
        state = "shut down" if self._engine.closing else "broken" if self._broken else "open"
        return (
            f"<ProcessExecutor {state}: {len(found.pids)} of {self._max_workers} workers, "
            f"{found.running} calls run, {found.pending} wait>"
        )


def processors() -> int:
    """That this process may use."""
    count = getattr(os, "process_cpu_count", None)
    if count is not None:
        return count() or 1
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def start_of(mp_context: BaseContext | None) -> StartMethod:
    """The cleanest that this system can: a template, unless another is asked for."""
    asked = "forkserver" if mp_context is None else mp_context.get_start_method()
    method = START_OF.get(asked, "template")
    return "exec" if method == "template" and no_template() else method


def check_tasks(count: int | None, mp_context: BaseContext | None) -> None:
    """As concurrent.futures does."""
    if count is None:
        return
    if not isinstance(count, int):
        raise TypeError("max_tasks_per_child must be an integer")
    if count <= 0:
        raise ValueError("max_tasks_per_child must be >= 1")
    if mp_context is not None and mp_context.get_start_method() == "fork":
        raise ValueError(
            "max_tasks_per_child is incompatible with the 'fork' multiprocessing start method; "
            "supply a different mp_context."
        )


def check_buffersize(size: int | None) -> None:
    """As concurrent.futures does."""
    if size is not None and not isinstance(size, int):
        raise TypeError("buffersize must be an integer or None")
    if size is not None and size < 1:
        raise ValueError("buffersize must be None or > 0")


def results(
    executor: ProcessExecutor,
    fn: Callable[..., Any],
    rows: Iterator[tuple[Any, ...]],
    until: float | None,
    size: int | None,
) -> Iterator[Any]:
    """Submit at once what may be, and answer the iterator over the results."""
    futures = deque(executor.submit(fn, *row) for row in islice(rows, size))
    # The iterator does not keep the executor: it may be collected, and ends when all is done.
    return in_order(futures, weakref.ref(executor), fn, rows if size else iter(()), until)


def in_order(
    futures: deque[Future[Any]],
    executor: weakref.ref[ProcessExecutor],
    fn: Callable[..., Any],
    rows: Iterator[tuple[Any, ...]],
    until: float | None,
) -> Iterator[Any]:
    try:
        while futures:
            if (owner := executor()) is not None and (row := next(rows, None)) is not None:
                futures.append(owner.submit(fn, *row))
                del row
            owner = None
            yield result_of(futures.popleft(), until)
    finally:
        for future in futures:
            future.cancel()


def result_of(future: Future[Any], until: float | None) -> Any:
    """Its result; cancelled if it does not come. Nothing here keeps the future, or its error."""
    try:
        try:
            return future.result(None if until is None else until - monotonic())
        finally:
            future.cancel()
    finally:
        del future


def batched(rows: Iterator[T], size: int) -> Iterator[tuple[T, ...]]:
    while chunk := tuple(islice(rows, size)):
        yield chunk


def flat(chunks: Iterator[list[Any]]) -> Iterator[Any]:
    """What the lists hold, none of it kept."""
    for chunk in chunks:
        chunk.reverse()
        while chunk:
            yield chunk.pop()

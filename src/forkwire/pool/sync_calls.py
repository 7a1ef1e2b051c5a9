"""What threads without an event loop call a pool with: as :mod:`.calls`, but each waits."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import math
import time
from collections.abc import (
    AsyncIterable,
    AsyncIterator,
    Awaitable,
    Callable,
    Iterable,
    Iterator,
    Mapping,
    Sequence,
)
from contextlib import AbstractContextManager
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Generic, ParamSpec, Self, TypeVar, overload

import anyio

from ..errors import UsageError
from ..rpc.caller.current import handling
from ..rpc.caller.feeding import is_streamed
from ..rpc.caller.requests import CallOptions, Makes, OnProgress, Request
from ..rpc.caller.sync_calls import SyncCalls
from ..rpc.caller.sync_streams import SyncStream
from ..rpc.caller.typed import StreamedNotCalled, Untyped
from .loop_thread import Errands, LoopThread
from .options import PoolOptions

if TYPE_CHECKING:
    from ..errors import WorkerDied
    from ..rpc.caller.streams import Stream
    from ..rpc.handle import WorkerStatistics
    from .calls import PoolCalls
    from .lease import Lease, LentWorker
    from .mapping import Results

__all__ = ["LoopCaller", "SyncLentWorker", "SyncPoolCalls", "SyncResults"]

P = ParamSpec("P")
A = TypeVar("A")
B = TypeVar("B")
C = TypeVar("C")
R = TypeVar("R")
T = TypeVar("T")

UNSET: Final[Any] = object()
END: Final = object()
NOTHING: Final[AbstractContextManager[None]] = contextlib.nullcontext()

NOT_OPEN: Final = "the pool is not open: use it inside `with open_pool(...) as pool:`"


class LoopCaller:
    """Makes calls in the loop's thread. ``makes``: does it there."""

    def __init__(self, thread: LoopThread, makes: Makes) -> None:
        self.thread: Final = thread
        self._makes: Final = makes

    def run(self, function: Callable[[], Awaitable[T]], errands: Errands | None = None) -> T:
        """What ``function()`` answers in the loop."""
        return self.thread.run(function, errands)

    def errands(self) -> Errands:
        """For one call, or one iterator."""
        return Errands(self.thread.loop)

    def check_here(self) -> None:
        self.thread.check_here()

    def ours(self) -> AbstractContextManager[object]:
        return NOTHING

    def call(self, request: Request) -> Any:
        errands = self.errands()
        request, iterators = carried(request, errands)
        try:
            return self.run(functools.partial(self._call, request), errands)
        finally:
            for iterator in iterators:
                close(iterator)

    async def _call(self, request: Request) -> Any:
        with until(request.deadline):
            return await self._makes.call(request)
        raise late(request)

    def notify(self, request: Request) -> None:
        if any(is_streamed(value) for value in (*request.args, *request.kwargs.values())):
            raise UsageError(
                "notify() without an event loop streams no arguments, since nobody would be there "
                "to send them: use call(), or pass a list"
            )
        self.run(functools.partial(self._makes.notify, request))

    def stream(self, request: Request) -> SyncStream[Any]:
        self.check_here()
        errands = self.errands()
        request, iterators = carried(request, errands)
        return LoopStream(self, self._makes.stream(request), request, errands, iterators)


class LoopStream(SyncStream[T]):
    """A stream that the loop's thread reads."""

    def __init__(
        self,
        caller: LoopCaller,
        stream: Stream[T],
        request: Request,
        errands: Errands,
        iterators: Sequence[Iterator[Any]],
    ) -> None:
        self._loop_caller: Final = caller
        self._stream: Final = stream
        self._asked: Final = request
        self._errands: Final = errands
        self._iterators: Final = iterators
        self._over = False

    def __next__(self) -> T:
        if self._over:
            raise StopIteration
        try:
            item = self._loop_caller.run(self._next_item, self._errands)
        except BaseException:
            self._end()
            raise
        if item is END:
            self._end()
            raise StopIteration
        value: T = item
        return value

    async def _next_item(self) -> Any:
        with until(self._asked.deadline):
            return await anext(self._stream, END)
        await self._stream.aclose()
        raise late(self._asked)

    def _end(self) -> None:
        self._over = True
        for iterator in self._iterators:
            close(iterator)

    def close(self) -> None:
        """Stop the generator on the other side, and wait until it has. Idempotent.

        Raises what it raised at its end.
        """
        if not self._over:
            try:
                self._loop_caller.run(self._stream.aclose, self._errands)
            finally:
                self._end()


class SyncPoolCalls(SyncCalls):
    """Calls to whichever worker of a pool is the least busy, which block."""

    _options: CallOptions = PoolOptions()
    _async: PoolCalls | None = None  # the same in the loop

    def _connect(self, caller: LoopCaller, calls: PoolCalls) -> None:
        self._caller = self._in_loop = caller
        self._async = calls

    def options(
        self,
        *,
        on_progress: OnProgress | None = UNSET,
        window: int = UNSET,
        timeout: float | None = UNSET,
        retries: int = UNSET,
    ) -> SyncPoolCalls:
        """The same with other options, which hold for the calls made with what this answers.

        As :meth:`forkwire.sync.SyncCalls.options`; ``timeout`` counts while a call waits for its
        worker too. ``retries`` as :meth:`forkwire.PoolCalls.options` has it.
        """
        changes: dict[str, Any] = {
            "on_progress": on_progress,
            "window": window,
            "timeout": timeout,
            "retries": retries,
        }
        given = {name: value for name, value in changes.items() if value is not UNSET}
        other = SyncPoolCalls()
        other._offers = self._offers
        other._connect(self._ready_caller(), self._ready_async())
        other._options = dataclasses.replace(self._options, **given)
        return other

    # -- many calls ---------------------------------------------------------------------------

    @overload
    def map(
        self,
        function: str | Callable[..., Untyped],
        /,
        *iterables: Iterable[Any],
        ordered: bool = ...,
        window: int | None = ...,
    ) -> SyncResults[Any]: ...
    @overload
    def map(  # type: ignore[overload-overlap]
        self,
        function: Callable[..., AsyncIterable[Any] | Iterator[Any]],
        /,
        *iterables: Iterable[Any],
        ordered: bool = ...,
        window: int | None = ...,
    ) -> StreamedNotCalled: ...
    @overload
    def map(
        self,
        function: Callable[[A], Awaitable[R]],
        first: Iterable[A],
        /,
        *,
        ordered: bool = ...,
        window: int | None = ...,
    ) -> SyncResults[R]: ...
    @overload
    def map(
        self,
        function: Callable[[A, B], Awaitable[R]],
        first: Iterable[A],
        second: Iterable[B],
        /,
        *,
        ordered: bool = ...,
        window: int | None = ...,
    ) -> SyncResults[R]: ...
    @overload
    def map(
        self,
        function: Callable[[A], R],
        first: Iterable[A],
        /,
        *,
        ordered: bool = ...,
        window: int | None = ...,
    ) -> SyncResults[R]: ...
    @overload
    def map(
        self,
        function: Callable[[A, B], R],
        first: Iterable[A],
        second: Iterable[B],
        /,
        *,
        ordered: bool = ...,
        window: int | None = ...,
    ) -> SyncResults[R]: ...
    @overload
    def map(
        self,
        function: Callable[..., Awaitable[R]],
        first: Iterable[Any],
        second: Iterable[Any],
        third: Iterable[Any],
        /,
        *more: Iterable[Any],
        ordered: bool = ...,
        window: int | None = ...,
    ) -> SyncResults[R]: ...
    @overload
    def map(
        self,
        function: Callable[..., R],
        first: Iterable[Any],
        second: Iterable[Any],
        third: Iterable[Any],
        /,
        *more: Iterable[Any],
        ordered: bool = ...,
        window: int | None = ...,
    ) -> SyncResults[R]: ...
    def map(  # pyright: ignore[reportInconsistentOverload]
        self,
        function: Any,
        /,
        *iterables: Iterable[Any],
        ordered: bool = True,
        window: int | None = None,
    ) -> Any:
        """Call ``function`` with one item of each of ``iterables``, as many times as all have one.

        As :meth:`forkwire.PoolCalls.map`. The iterables are read in the thread that takes the
        results, while it waits for one. ``options(timeout=)`` holds for all of it together.
        """
        if not iterables:
            raise UsageError("map() takes at least one iterable")
        rows = zip(*iterables, strict=False)
        return self._results(function, rows, ordered=ordered, window=window)

    @overload
    def starmap(
        self,
        function: str | Callable[..., Untyped],
        rows: Iterable[Iterable[Any]],
        /,
        *,
        ordered: bool = ...,
        window: int | None = ...,
    ) -> SyncResults[Any]: ...
    @overload
    def starmap(  # type: ignore[overload-overlap]
        self,
        function: Callable[..., AsyncIterable[Any] | Iterator[Any]],
        rows: Iterable[Iterable[Any]],
        /,
        *,
        ordered: bool = ...,
        window: int | None = ...,
    ) -> StreamedNotCalled: ...
    @overload
    def starmap(
        self,
        function: Callable[..., Awaitable[R]],
        rows: Iterable[Iterable[Any]],
        /,
        *,
        ordered: bool = ...,
        window: int | None = ...,
    ) -> SyncResults[R]: ...
    @overload
    def starmap(
        self,
        function: Callable[..., R],
        rows: Iterable[Iterable[Any]],
        /,
        *,
        ordered: bool = ...,
        window: int | None = ...,
    ) -> SyncResults[R]: ...
    def starmap(  # pyright: ignore[reportInconsistentOverload]
        self,
        function: Any,
        rows: Iterable[Iterable[Any]],
        /,
        *,
        ordered: bool = True,
        window: int | None = None,
    ) -> Any:
        """As :meth:`map`, with the arguments of each call from one row of ``rows``."""
        return self._results(function, iter(rows), ordered=ordered, window=window)

    def _results(
        self, function: Any, rows: Iterator[Any], *, ordered: bool, window: int | None
    ) -> SyncResults[Any]:
        caller = self._ready_caller()
        caller.check_here()
        errands = caller.errands()
        calls = self._ready_async()._with(untimed(self._options))

        async def begin() -> Results[Any]:
            each = pulled(rows, errands)
            results: Results[Any] = calls.starmap(function, each, ordered=ordered, window=window)
            return results

        results = caller.run(begin)
        timeout = self._options.timeout
        deadline = math.inf if timeout is None else time.monotonic() + timeout
        return SyncResults(caller, results, errands, deadline)

    @overload
    def broadcast(self, function: str, /, *args: Any, **kwargs: Any) -> list[Any]: ...
    @overload
    def broadcast(
        self, function: Callable[P, Untyped], /, *args: P.args, **kwargs: P.kwargs
    ) -> list[Any]: ...
    @overload
    def broadcast(  # type: ignore[overload-overlap]
        self,
        function: Callable[P, AsyncIterable[Any] | Iterator[Any]],
        /,
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> StreamedNotCalled: ...
    @overload
    def broadcast(
        self, function: Callable[P, Awaitable[R]], /, *args: P.args, **kwargs: P.kwargs
    ) -> list[R]: ...
    @overload
    def broadcast(
        self, function: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs
    ) -> list[R]: ...
    def broadcast(  # pyright: ignore[reportInconsistentOverload]
        self, function: Any, /, *args: Any, **kwargs: Any
    ) -> Any:
        """Call ``function`` in every worker that is ready; the results, in the order of their age.

        Raises as :meth:`forkwire.PoolCalls.broadcast` does.
        """
        request, _ = self._request(function, args, kwargs, streamed=False)
        caller, calls = self._ready_caller(), self._ready_async()

        async def everywhere() -> list[Any]:
            with until(request.deadline):
                return await calls._ready_dispatcher().everywhere(request)
            raise late(request)

        return caller.run(everywhere)

    def worker(self, *, fresh: bool = False) -> SyncLease:
        """One worker for a block alone: ``with pool.worker() as worker:``.

        As :meth:`forkwire.PoolCalls.worker`.
        """
        lease = self._ready_async().worker(fresh=fresh)
        return SyncLease(self._ready_caller(), lease, self._options)

    # -- what it is made of -------------------------------------------------------------------

    def _ready_caller(self) -> LoopCaller:
        if self._caller is None:
            raise UsageError(NOT_OPEN)
        return self._in_loop

    def _ready_async(self) -> PoolCalls:
        if self._async is None:
            raise UsageError(NOT_OPEN)
        return self._async


class SyncResults(Generic[T]):
    """What ``map`` answers: an iterator, and a context manager.

    Leaving the block stops the calls in flight, and waits until they have ended; leaving a ``for``
    early stops them too, without waiting.
    """

    def __init__(
        self, caller: LoopCaller, results: Results[T], errands: Errands, deadline: float
    ) -> None:
        self._caller: Final = caller
        self._results: Final = results
        self._errands: Final = errands
        self._deadline: Final = deadline

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> T:
        item = self._caller.run(self._take, self._errands)
        if item is END:
            raise StopIteration
        value: T = item
        return value

    async def _take(self) -> Any:
        with until(self._deadline):
            return await anext(self._results, END)
        await self._results.aclose()
        raise TimeoutError("not all calls of the map ended within the time that options() gave it")

    def close(self) -> None:
        """Stop the calls in flight, and wait until they have ended. Idempotent."""
        self._caller.run(self._results.aclose, self._errands)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


class SyncLease:
    """What ``pool.worker()`` answers: enter it with ``with``."""

    def __init__(self, caller: LoopCaller, lease: Lease, options: CallOptions) -> None:
        self._caller: Final = caller
        self._lease: Final = lease
        self._options: Final = options

    def __enter__(self) -> SyncLentWorker:
        lent = self._caller.run(self._lease.__aenter__)
        return SyncLentWorker(self._caller.thread, lent, self._options)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._caller.run(functools.partial(self._lease.__aexit__, kind, error, trace))


class SyncLentWorker(SyncCalls):
    """A worker of a pool that runs nothing but what its block calls.

    Once the block is left, calls raise :exc:`UsageError`.
    """

    def __init__(self, thread: LoopThread, lent: LentWorker, options: CallOptions) -> None:
        self._lent: Final = lent
        self._thread: Final = thread
        self._caller = LoopCaller(thread, lent._lease)
        self._offers = lent._offers
        self._options = options

    @property
    def pid(self) -> int:
        """The process id."""
        return self._lent.pid

    @property
    def died(self) -> WorkerDied | None:
        """All that is known of a bad end; None while it runs."""
        return self._lent.died

    def statistics(self) -> WorkerStatistics:
        """What it has done so far, also before it was lent."""
        return self._lent.statistics()

    def kill(self) -> None:
        """Send SIGKILL: calls in flight raise :exc:`WorkerDied`, and the pool replaces it."""

        async def kill() -> None:
            self._lent.kill()

        self._thread.run(kill)

    def __repr__(self) -> str:
        return f"<Sync{repr(self._lent)[1:]}"


# -- between the threads ----------------------------------------------------------------------


def carried(request: Request, errands: Errands) -> tuple[Request, list[Iterator[Any]]]:
    """The same, whose callbacks and iterators run in the thread that waits; and those."""
    iterators: list[Iterator[Any]] = []

    def replaced(value: object) -> object:
        if not is_streamed(value):
            return value
        if any(value is other for other in iterators):
            raise UsageError(
                f"a {type(value).__name__} is an argument of {request.method} twice: each of its "
                "items could go to one of them only. Pass two, or a list"
            )
        assert isinstance(value, Iterator)
        iterators.append(value)
        return pulled(value, errands)

    args = [replaced(value) for value in request.args]
    kwargs: Mapping[str, object] = {k: replaced(value) for k, value in request.kwargs.items()}
    options, told = request.options, request.options.on_progress
    if told is not None:

        def post(done: float, total: float | None, text: str) -> None:
            errands.post(functools.partial(told, done, total, text))

        options = dataclasses.replace(options, on_progress=post)
    other = Request(request.method, args, kwargs, options, request.convert)
    other.deadline = request.deadline
    return other, iterators


async def pulled(iterator: Iterator[T], errands: Errands) -> AsyncIterator[T]:
    """Its items, each taken in the thread that waits, and inside of the call that takes it here."""
    inside = handling.get()

    def take() -> T | object:
        token = handling.set(inside)
        try:
            return next(iterator, END)
        finally:
            handling.reset(token)

    while (item := await errands.do(take)) is not END:
        yield item  # type: ignore[misc]


def close(iterator: Any) -> None:
    if hasattr(iterator, "close"):
        iterator.close()


def untimed(options: CallOptions) -> CallOptions:
    """``timeout`` is for all of a map, and not for each call."""
    return dataclasses.replace(options, timeout=None)


def until(deadline: float) -> anyio.CancelScope:
    """A block of a loop that ends then, in the monotonic clock's terms."""
    left = max(0.0, deadline - time.monotonic())
    return anyio.CancelScope(deadline=anyio.current_time() + left)


def late(request: Request) -> TimeoutError:
    return TimeoutError(f"{request.method} did not end within {request.options.timeout} seconds")

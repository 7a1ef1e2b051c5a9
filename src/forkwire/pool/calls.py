"""Calls to a pool: those of a worker, and those that concern several workers at once."""

from __future__ import annotations

import dataclasses
from collections.abc import (
    AsyncGenerator,
    AsyncIterable,
    Awaitable,
    Callable,
    Iterable,
    Iterator,
    Sequence,
)
from typing import Any, Final, ParamSpec, TypeVar, overload

import anyio

from ..errors import UsageError
from ..rpc.caller.calls import Calls
from ..rpc.caller.requests import CallOptions, OnProgress, Request
from ..rpc.caller.typed import StreamedNotCalled, Untyped
from ..rpc.telling import context
from .crew import Crew
from .dispatch import Dispatcher
from .lease import Lease
from .mapping import Feed, Results, Rows, rows_of, starred
from .options import PoolOptions
from .policy import check_count

__all__ = ["PoolCalls"]

P = ParamSpec("P")
A = TypeVar("A")
B = TypeVar("B")
C = TypeVar("C")
R = TypeVar("R")

UNSET: Final[Any] = object()

# Rows of a map that are given out, for each that a worker can run: the next is there when one ends.
AHEAD: Final = 2


class PoolCalls(Calls):
    """Calls to whichever worker of a pool is the least busy."""

    _dispatcher: Dispatcher | None = None
    _crew: Crew | None = None
    _options: CallOptions = PoolOptions()

    def options(
        self,
        *,
        on_progress: OnProgress | None = UNSET,
        window: int = UNSET,
        retries: int = UNSET,
    ) -> PoolCalls:
        """The same with other options, which hold for the calls made with what this answers.

        As :meth:`forkwire.Calls.options`, and ``retries``: how often a call is made again, with
        another worker, when its worker died: only for functions that may as well run twice. Not
        for streams, nor for calls with streamed arguments, which are used up.
        """
        changes: dict[str, Any] = {
            "on_progress": on_progress,
            "window": window,
            "retries": retries,
        }
        given = {name: value for name, value in changes.items() if value is not UNSET}
        return self._with(dataclasses.replace(self._options, **given))

    def _with(self, options: CallOptions) -> PoolCalls:
        other = PoolCalls()
        other._caller, other._offers = self._ready_caller(), self._offers
        other._dispatcher, other._crew = self._dispatcher, self._crew
        other._options = options
        return other

    # -- many calls ---------------------------------------------------------------------------

    @overload
    def map(
        self,
        function: str,
        /,
        *iterables: Rows[Any],
        ordered: bool = ...,
        window: int | None = ...,
    ) -> Results[Any]: ...
    @overload
    def map(
        self,
        function: Callable[..., Untyped],
        /,
        *iterables: Rows[Any],
        ordered: bool = ...,
        window: int | None = ...,
    ) -> Results[Any]: ...
    @overload
    def map(  # type: ignore[overload-overlap]
        self,
        function: Callable[..., AsyncIterable[Any] | Iterator[Any]],
        /,
        *iterables: Rows[Any],
        ordered: bool = ...,
        window: int | None = ...,
    ) -> StreamedNotCalled: ...
    @overload
    def map(
        self,
        function: Callable[[A], Awaitable[R]],
        first: Rows[A],
        /,
        *,
        ordered: bool = ...,
        window: int | None = ...,
    ) -> Results[R]: ...
    @overload
    def map(
        self,
        function: Callable[[A, B], Awaitable[R]],
        first: Rows[A],
        second: Rows[B],
        /,
        *,
        ordered: bool = ...,
        window: int | None = ...,
    ) -> Results[R]: ...
    @overload
    def map(
        self,
        function: Callable[[A, B, C], Awaitable[R]],
        first: Rows[A],
        second: Rows[B],
        third: Rows[C],
        /,
        *,
        ordered: bool = ...,
        window: int | None = ...,
    ) -> Results[R]: ...
    @overload
    def map(
        self,
        function: Callable[..., Awaitable[R]],
        first: Rows[Any],
        second: Rows[Any],
        third: Rows[Any],
        fourth: Rows[Any],
        /,
        *more: Rows[Any],
        ordered: bool = ...,
        window: int | None = ...,
    ) -> Results[R]: ...
    @overload
    def map(
        self,
        function: Callable[[A], R],
        first: Rows[A],
        /,
        *,
        ordered: bool = ...,
        window: int | None = ...,
    ) -> Results[R]: ...
    @overload
    def map(
        self,
        function: Callable[[A, B], R],
        first: Rows[A],
        second: Rows[B],
        /,
        *,
        ordered: bool = ...,
        window: int | None = ...,
    ) -> Results[R]: ...
    @overload
    def map(
        self,
        function: Callable[[A, B, C], R],
        first: Rows[A],
        second: Rows[B],
        third: Rows[C],
        /,
        *,
        ordered: bool = ...,
        window: int | None = ...,
    ) -> Results[R]: ...
    @overload
    def map(
        self,
        function: Callable[..., R],
        first: Rows[Any],
        second: Rows[Any],
        third: Rows[Any],
        fourth: Rows[Any],
        /,
        *more: Rows[Any],
        ordered: bool = ...,
        window: int | None = ...,
    ) -> Results[R]: ...
    def map(  # pyright: ignore[reportInconsistentOverload]
        self,
        function: Any,
        /,
        *iterables: Rows[Any],
        ordered: bool = True,
        window: int | None = None,
    ) -> Any:
        """Call ``function`` with one item of each of ``iterables``, as many times as all have one.

        The iterables, plain or async, are read as results are taken: no more than ``window`` calls
        are made beyond those whose results were, twice what the workers run at a time unless given.
        Results come in the order of the items, or as they are there (``ordered=False``). What a
        call raises is raised in its place, and ends all. These calls wait for a worker however many
        others do. An async iterator, and an async context manager.
        """
        if not iterables:
            raise UsageError("map() takes at least one iterable")
        return self._results(function, rows_of(iterables), ordered=ordered, window=window)

    @overload
    def starmap(
        self,
        function: str,
        rows: Rows[Iterable[Any]],
        /,
        *,
        ordered: bool = ...,
        window: int | None = ...,
    ) -> Results[Any]: ...
    @overload
    def starmap(
        self,
        function: Callable[..., Untyped],
        rows: Rows[Iterable[Any]],
        /,
        *,
        ordered: bool = ...,
        window: int | None = ...,
    ) -> Results[Any]: ...
    @overload
    def starmap(  # type: ignore[overload-overlap]
        self,
        function: Callable[..., AsyncIterable[Any] | Iterator[Any]],
        rows: Rows[Iterable[Any]],
        /,
        *,
        ordered: bool = ...,
        window: int | None = ...,
    ) -> StreamedNotCalled: ...
    @overload
    def starmap(
        self,
        function: Callable[..., Awaitable[R]],
        rows: Rows[Iterable[Any]],
        /,
        *,
        ordered: bool = ...,
        window: int | None = ...,
    ) -> Results[R]: ...
    @overload
    def starmap(
        self,
        function: Callable[..., R],
        rows: Rows[Iterable[Any]],
        /,
        *,
        ordered: bool = ...,
        window: int | None = ...,
    ) -> Results[R]: ...
    def starmap(  # pyright: ignore[reportInconsistentOverload]
        self,
        function: Any,
        rows: Rows[Iterable[Any]],
        /,
        *,
        ordered: bool = True,
        window: int | None = None,
    ) -> Any:
        """As :meth:`map`, with the arguments of each call from one row of ``rows``."""
        return self._results(function, starred(rows), ordered=ordered, window=window)

    def _results(
        self,
        function: Any,
        rows: AsyncGenerator[Sequence[Any], None],
        *,
        ordered: bool,
        window: int | None,
    ) -> Results[Any]:
        if window is not None:
            check_count("window", window, 1)
        dispatcher, supervisor = self._ready_dispatcher(), self._opened().supervisor
        dispatcher.check_here()
        name, convert = self._offers.look_up(function, streamed=False)
        options = self._options

        async def call(row: Sequence[Any]) -> Any:
            request = Request(name, row, {}, options, convert)
            with context.client_span(self._offers.name, name):
                return await dispatcher.run(request, patient=True)

        feed = Feed(
            self._opened().backend,
            call,
            rows,
            ordered=ordered,
            window=lambda: window or AHEAD * supervisor.most * supervisor.capacity,
            deadline=anyio.current_effective_deadline(),
            check_here=dispatcher.check_here,
        )
        return Results(feed)

    @overload
    async def broadcast(self, function: str, /, *args: Any, **kwargs: Any) -> list[Any]: ...
    @overload
    async def broadcast(
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
    async def broadcast(
        self, function: Callable[P, Awaitable[R]], /, *args: P.args, **kwargs: P.kwargs
    ) -> list[R]: ...
    @overload
    async def broadcast(
        self, function: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs
    ) -> list[R]: ...
    async def broadcast(  # pyright: ignore[reportInconsistentOverload]
        self, function: Any, /, *args: Any, **kwargs: Any
    ) -> Any:
        """Call ``function`` in every worker that is ready; the results, in the order of their age.

        It waits for no place: in a busy worker it runs beside or after what is in flight, also in
        one that is lent. A worker that starts later is not told: what all are to have is for an
        ``initializer``. Raises an :exc:`ExceptionGroup` of all that failed, once all have ended.
        """
        request, name = self._request(function, args, kwargs, streamed=False)
        with context.client_span(self._offers.name, name):
            return await self._ready_dispatcher().everywhere(request)

    def worker(self, *, fresh: bool = False) -> Lease:
        """One worker for a block alone: ``async with pool.worker() as worker:``.

        Waits for one that does nothing, in turn with the calls that wait. What the block calls
        goes to that worker, and nothing else does; what is in flight when the block is left is
        stopped. ``fresh``: it is replaced afterwards, so that nobody sees what was left in it.
        """
        return Lease(self._ready_dispatcher(), self._offers, self._options, fresh=fresh)

    # -- what it is made of -------------------------------------------------------------------

    def _ready_caller(self) -> Dispatcher:
        return self._ready_dispatcher()

    def _ready_dispatcher(self) -> Dispatcher:
        if self._dispatcher is None:
            raise UsageError(NOT_OPEN)
        return self._dispatcher

    def _opened(self) -> Crew:
        if self._crew is None:
            raise UsageError(NOT_OPEN)
        return self._crew


NOT_OPEN: Final = "the pool is not open: use it inside `async with open_pool(...) as pool:`"

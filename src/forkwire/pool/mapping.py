"""One call for each row of some iterables: fed as there is room, at most a window of it at a time.

Knows nothing of workers, only a function that makes a call.
"""

from __future__ import annotations

import functools
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterable, Awaitable, Callable, Iterable, Sequence
from contextlib import aclosing
from typing import TYPE_CHECKING, Any, Final, Generic, Self, TypeAlias, TypeVar

import anyio
import anyio.lowlevel

from ..errors import DeadlineExceededError, UsageError
from ..rpc.caller.pumps import iterate

if TYPE_CHECKING:
    from ..process.backend import Backend

__all__ = ["Results", "Rows", "rows_of", "starred"]

T = TypeVar("T")

Rows: TypeAlias = Iterable[T] | AsyncIterable[T]
Row: TypeAlias = Sequence[Any]
Call: TypeAlias = Callable[[Row], Awaitable[Any]]


class Results(Generic[T]):
    """The results of a call for each row: what ``pool.map`` answers, an async iterator.

    Also an async context manager. Leaving the block stops the calls in flight, and waits until they
    have ended; leaving an ``async for`` early stops them too, without waiting. What a call raises
    is raised in its place, and ends the iteration. Nothing is begun before the first is asked for.
    """

    def __init__(self, source: Feed) -> None:
        self._feed: Final = source
        self._busy = False
        self._over = False

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> T:
        if self._busy:
            raise UsageError("another task is waiting for the next of these results")
        if self._over:
            raise StopAsyncIteration
        self._feed.check_here()
        self._busy = True
        try:
            await anyio.lowlevel.checkpoint_if_cancelled()
            slot = await self._feed.next()
            if slot is not None:
                value: T = slot.result()
                return value
            self._over = True
            await self._feed.end()
        except BaseException:
            self._over = True
            await self._feed.stop()
            raise
        finally:
            self._busy = False
        raise StopAsyncIteration

    async def aclose(self) -> None:
        """Stop the calls in flight, and wait until they have ended. Idempotent."""
        self._feed.check_here()
        self._over = True
        await self._feed.stop()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *error: object) -> None:
        await self.aclose()

    def __del__(self) -> None:
        feed = self.__dict__.get("_feed")
        if feed is not None:
            feed.abandon()


class Slot:
    """One call, and how it ended."""

    __slots__ = ("_value", "begun", "done", "error", "scope")

    def __init__(self, deadline: float) -> None:
        self.scope: Final = anyio.CancelScope(deadline=deadline)
        self.begun = False  # its task runs
        self.done = False
        self.error: BaseException | None = None
        self._value: Any = None

    async def run(self, call: Call, row: Row) -> None:
        with self.scope:
            self._value = await call(row)
        if self.scope.cancelled_caught:
            self.error = DeadlineExceededError("the time of the block that made it was over")

    def result(self) -> Any:
        error, self.error = self.error, None
        try:
            if error is not None:
                raise error
        finally:
            del error  # its traceback has this frame
        return self._value


class Feed:
    """Takes rows and makes their calls, in tasks of its own. In one event loop.

    ``window``: at most so many at a time, results that nobody took yet among them. ``deadline``: of
    the scopes that all of it is in.
    """

    def __init__(
        self,
        backend: Backend,
        call: Call,
        rows: AsyncGenerator[Row, None],
        *,
        ordered: bool,
        window: Callable[[], int],
        deadline: float,
        check_here: Callable[[], None],
    ) -> None:
        self.check_here: Final = check_here
        self._backend: Final = backend
        self._call: Final = call
        self._rows: Final = rows
        self._ordered: Final = ordered
        self._window: Final = window
        self._scope: Final = anyio.CancelScope()
        self._slots: Final[deque[Slot]] = deque()  # in the order in which they are taken
        self._running: Final[set[Slot]] = set()
        self._deadline = deadline
        self._wanted = self._begun = self._fed = False
        self._failure: BaseException | None = None
        self._news = anyio.Event()
        self._taken = anyio.Event()

    # -- whoever takes the results ------------------------------------------------------------

    async def next(self) -> Slot | None:
        """The next call that has ended; None: there is none any more."""
        # Later than it was: a scope was left that all of it was in. Sooner: one for this result.
        self._deadline = max(self._deadline, anyio.current_effective_deadline())
        if not self._wanted:
            self._wanted = True
            self._backend.spawn(self._run, "forkwire: rows of a map")
        while not (self._slots and self._slots[0].done):
            if self._fed and not (self._slots or self._running):
                return None
            self._news = anyio.Event()
            await self._news.wait()
        slot = self._slots.popleft()
        self._taken.set()
        return slot

    async def end(self) -> None:
        """All was taken. Raises what the rows' iterable did."""
        failure, self._failure = self._failure, None
        try:
            if failure is not None:
                raise failure
        finally:
            del failure

    async def stop(self) -> None:
        """Nobody wants any more: stop what runs, and wait until it has ended."""
        self._cancel()
        await self._backend.uninterrupted(self._until_ended)

    async def _until_ended(self) -> None:
        while self._goes_on:
            self._news = anyio.Event()
            await self._news.wait()

    def abandon(self) -> None:
        """The same without waiting; also from a finaliser, in any thread."""
        if self._goes_on:
            self._backend.run_soon(self._cancel)

    @property
    def _goes_on(self) -> bool:
        return self._wanted and not (self._fed and not self._running)

    def _cancel(self) -> None:
        """A loop that ends begins no task any more: do not wait for those that did not begin."""
        self._slots.clear()
        self._scope.cancel()
        if not self._begun:
            self._fed = True
        for slot in [*self._running]:
            slot.scope.cancel()
            if not slot.begun:
                self._running.discard(slot)

    # -- in the background --------------------------------------------------------------------

    async def _run(self) -> None:
        if self._fed:
            return
        self._begun = True
        try:
            with self._scope:
                async with aclosing(self._rows):
                    await self._take_rows()
        except BaseException as error:  # of the user's iterable
            if isinstance(error, anyio.get_cancelled_exc_class()):  # the loop ends
                raise
            self._failure = error
        finally:
            self._fed = True
            self._news.set()

    async def _take_rows(self) -> None:
        window = self._window()
        while True:
            while len(self._slots) + self._unlisted() >= window:
                self._taken = anyio.Event()
                await self._taken.wait()
            try:
                row = await anext(self._rows)
            except StopAsyncIteration:
                return
            await anyio.lowlevel.checkpoint_if_cancelled()
            self._begin(row)
            await anyio.lowlevel.checkpoint()  # it has asked for a worker by then: in rows' order

    def _unlisted(self) -> int:
        """Those that run and have no place in the order yet."""
        return 0 if self._ordered else len(self._running)

    def _begin(self, row: Row) -> None:
        slot = Slot(self._deadline)
        self._running.add(slot)
        if self._ordered:
            self._slots.append(slot)
        self._backend.spawn(functools.partial(self._make, slot, row), "forkwire: call of a map")

    async def _make(self, slot: Slot, row: Row) -> None:
        if slot not in self._running:
            return
        slot.begun = True
        try:
            await slot.run(self._call, row)
        except BaseException as error:  # for whoever takes it
            slot.error = error
            if isinstance(error, anyio.get_cancelled_exc_class()):  # the loop ends
                raise
        finally:
            slot.done = True
            self._running.discard(slot)
            if not self._ordered:
                self._slots.append(slot)
            self._news.set()


async def rows_of(iterables: Sequence[Rows[Any]]) -> AsyncGenerator[Row, None]:
    """As :func:`zip`: one of each, until the first of them ends."""
    if not any(isinstance(each, AsyncIterable) for each in iterables):
        for row in zip(*iterables, strict=False):
            yield row
        return
    columns = [items_of(each) for each in iterables]
    try:
        while True:
            try:
                row = [await anext(column) for column in columns]
            except StopAsyncIteration:
                return
            yield row
    finally:
        for column in columns:
            await column.aclose()


async def starred(rows: Rows[Iterable[Any]]) -> AsyncGenerator[Row, None]:
    """Each row is the arguments of one call."""
    async with aclosing(items_of(rows)) as items:
        async for item in items:
            yield tuple(item)


async def items_of(rows: Rows[Any]) -> AsyncGenerator[Any, None]:
    """Closes what is async at its end, as a stream that is an argument; the rest is its owner's."""
    if not isinstance(rows, AsyncIterable):
        for row in rows:
            yield row
        return
    async with aclosing(iterate(rows)) as items:
        async for item in items:
            yield item

"""What a program calls the other side with, in an event loop: names, functions, stubs."""

from __future__ import annotations

import dataclasses
from collections.abc import AsyncIterable, Awaitable, Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any, Final, ParamSpec, TypeVar, overload

import anyio.lowlevel

from ...errors import UsageError
from ..data.kinds import Kind
from ..data.shape import Shape
from ..handlers.handling import progress
from ..links.link import InCall
from ..telling import context
from .aio import Caller
from .current import handling
from .offers import Offers
from .proxy import proxy
from .requests import CallOptions, Makes, OnProgress, Request
from .streams import Stream
from .typed import StreamedNotCalled, Untyped

__all__ = ["Calls", "CurrentCall", "current_call"]

P = ParamSpec("P")
T = TypeVar("T")
R = TypeVar("R")

UNSET: Final[Any] = object()


class Calls:
    """Calls to what the other side offers."""

    _caller: Makes | None = None
    _offers: Offers
    _options: CallOptions = CallOptions()

    @overload
    async def call(self, function: str, /, *args: Any, **kwargs: Any) -> Any: ...
    @overload
    async def call(
        self, function: Callable[P, Untyped], /, *args: P.args, **kwargs: P.kwargs
    ) -> Any: ...
    @overload
    def call(  # type: ignore[overload-overlap]
        self,
        function: Callable[P, AsyncIterable[Any] | Iterator[Any]],
        /,
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> StreamedNotCalled: ...
    @overload
    async def call(
        self, function: Callable[P, Awaitable[R]], /, *args: P.args, **kwargs: P.kwargs
    ) -> R: ...
    @overload
    async def call(self, function: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs) -> R: ...
    async def call(  # pyright: ignore[reportInconsistentOverload]
        self, function: Any, /, *args: Any, **kwargs: Any
    ) -> Any:
        """Call ``function``, by its name or by itself, and wait for its result.

        By itself its annotations say what the arguments and the result are, for type checkers and
        at runtime. Async iterables and plain iterators among the arguments are streamed.

        Cancelled, or when a deadline is over, it returns when the work has stopped: an async
        handler's scope is cancelled, a plain one interrupted; what does not stop within the
        worker's grace is killed with it.

        Raises :exc:`RemoteError` where the handler raised, which is also the builtin exception that
        it was; :exc:`MethodNotFoundError`, :exc:`InvalidArgumentsError`, :exc:`WrongKindError`,
        :exc:`ValueEncodeError`, :exc:`ValueDecodeError`; :exc:`WorkerDied` and
        :exc:`WorkerClosedError` when the other side is gone.
        """
        request, _ = self._request(function, args, kwargs, streamed=False)
        return await self._traced(request)

    async def _traced(self, request: Request) -> Any:
        with context.client_span(self._offers.name, request.method):
            return await self._ready_caller().call(request)

    @overload
    def stream(self, function: str, /, *args: Any, **kwargs: Any) -> Stream[Any]: ...
    @overload
    def stream(
        self,
        function: Callable[P, AsyncIterable[R] | Iterator[R]],
        /,
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> Stream[R]: ...
    def stream(self, function: Any, /, *args: Any, **kwargs: Any) -> Stream[Any]:
        """The items that a generator function on the other side yields.

        An async iterator, and an async context manager. No more items are on their way than
        ``options(window=)`` allows. Raises as :meth:`call` does, once iterated.
        """
        request, _ = self._request(function, args, kwargs, streamed=True)
        return self._ready_caller().stream(request)

    @overload
    async def notify(self, function: str, /, *args: Any, **kwargs: Any) -> None: ...
    @overload
    async def notify(
        self, function: Callable[P, Untyped], /, *args: P.args, **kwargs: P.kwargs
    ) -> None: ...
    @overload
    def notify(
        self,
        function: Callable[P, AsyncIterable[Any] | Iterator[Any]],
        /,
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> StreamedNotCalled: ...
    @overload
    async def notify(
        self, function: Callable[P, Any], /, *args: P.args, **kwargs: P.kwargs
    ) -> None: ...
    async def notify(  # pyright: ignore[reportInconsistentOverload]
        self, function: Any, /, *args: Any, **kwargs: Any
    ) -> None:
        """Call ``function``, and do not wait for it. What it raises is logged, as a warning.

        Waits only while the other side has no room for one more. Raises :exc:`ValueEncodeError`,
        :exc:`WorkerDied` and :exc:`WorkerClosedError`.
        """
        request, _ = self._request(function, args, kwargs, streamed=False)
        await self._ready_caller().notify(request)

    def proxy(self, protocol: Callable[..., T]) -> T:
        """A stub with the methods of ``protocol``, a class or :class:`typing.Protocol`.

        Its async methods are awaited, those that answer an async iterator are streamed. Raises
        :exc:`UsageError` where the other side does not offer what the protocol has.
        """

        def invoke(
            name: str, shape: Shape, kind: Kind, args: tuple[Any, ...], kwargs: dict[str, Any]
        ) -> Any:
            caller = self._ready_caller()
            if kind in ("generator", "async_generator"):
                return caller.stream(Request(name, args, kwargs, self._options, shape.item))
            return self._traced(Request(name, args, kwargs, self._options, shape.result))

        return proxy(protocol, invoke, service=self._offers.name, offered=self._offers.kinds)

    def options(
        self,
        *,
        on_progress: OnProgress | None = UNSET,
        window: int = UNSET,
    ) -> Calls:
        """The same with other options, which hold for the calls made with what this answers.

        ``on_progress(done, total, text)``: is called, in the caller's task, with what the handler
        reports; what it raises ends the call. ``window``: items of a stream that may be on their
        way, 32 unless set. Raises :exc:`UsageError`.
        """
        changes: dict[str, Any] = {"on_progress": on_progress, "window": window}
        given = {name: value for name, value in changes.items() if value is not UNSET}
        other = Calls()
        other._caller, other._offers = self._ready_caller(), self._offers
        other._options = dataclasses.replace(self._options, **given)
        return other

    def _ready_caller(self) -> Makes:
        if self._caller is None:
            raise UsageError(
                "the worker is not started: use it inside `async with open_worker(...) as worker:`"
            )
        return self._caller

    def _request(
        self, function: Any, args: tuple[Any, ...], kwargs: dict[str, Any], *, streamed: bool
    ) -> tuple[Request, str]:
        self._ready_caller()
        name, convert = self._offers.look_up(function, streamed=streamed)
        return Request(name, args, kwargs, self._options, convert), name


class CurrentCall:
    """The call that an async handler is handling: what :func:`current_call` answers."""

    def __init__(self, call: InCall) -> None:
        self._call: Final = call

    @property
    def method(self) -> str:
        """The name that was called."""
        return self._call.method

    @property
    def deadline(self) -> float:
        """When its time is over, in :func:`time.monotonic`'s terms; ``math.inf`` for never."""
        return self._call.deadline

    @property
    def cancelled(self) -> bool:
        """Whether its caller does not want it any more."""
        return self._call.cancelled

    @property
    def host(self) -> Calls:
        """Calls to the other side: for a worker's handler what the host offers (``host=``)."""
        front = self._call.link.front
        if not isinstance(front, Calls):
            raise UsageError(NO_LOOP)
        return front

    async def progress(self, done: float, total: float | None = None, text: str = "") -> None:
        """Tell the caller how far it is; nothing where the caller does not want to know.

        ``done`` of ``total``, in whatever unit; ``text``: at most 4096 characters of it are sent.
        """
        await anyio.lowlevel.checkpoint()
        caller = self.host._ready_caller()
        assert isinstance(caller, Caller)  # a handler's host is at the other end of its link
        await caller.driver.roomy()
        progress(self._call, done, total, text)

    def shield(self) -> AbstractContextManager[object]:
        """A block that cancellation does not interrupt; it comes after it."""
        return anyio.CancelScope(shield=True)

    def __repr__(self) -> str:
        return f"<CurrentCall {self._call.method} id={self._call.id}>"


NO_LOOP: Final = (
    "this handler is a plain function: use forkwire.sync.current_call(), whose methods block"
)


def current_call() -> CurrentCall:
    """The call that is being handled here, in an async handler or what it awaits.

    Raises :exc:`UsageError` outside of a handler, and in a plain one, which uses
    :func:`forkwire.sync.current_call`.
    """
    call = handling.get()
    if not isinstance(call, InCall):
        raise UsageError(
            "current_call() is for code that runs inside a handler, in the handler's own context: "
            "no call is being handled here"
        )
    if call.lane is not None:
        raise UsageError(NO_LOOP)
    return CurrentCall(call)

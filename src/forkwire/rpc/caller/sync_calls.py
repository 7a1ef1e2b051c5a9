"""What a program calls the other side with where there is no event loop."""

from __future__ import annotations

import dataclasses
from collections.abc import AsyncIterable, Awaitable, Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Final, ParamSpec, TypeVar, overload

from ...errors import UsageError
from ..data.kinds import Kind
from ..data.shape import Shape
from ..handlers.handling import progress
from ..handlers.lane import LaneCaller, lane_of
from ..links.link import InCall
from ..telling import context
from .current import handling
from .offers import Offers
from .proxy import proxy
from .requests import CallOptions, MakesBlocking, OnProgress, Request
from .sync_streams import SyncStream
from .typed import StreamedNotCalled, Untyped

__all__ = ["SyncCalls", "SyncCurrentCall", "current_call"]

P = ParamSpec("P")
T = TypeVar("T")
R = TypeVar("R")

UNSET: Final[Any] = object()


class SyncCalls:
    """Calls to what the other side offers, which block."""

    _caller: MakesBlocking | None = None
    _offers: Offers
    _options: CallOptions = CallOptions()

    @overload
    def call(self, function: str, /, *args: Any, **kwargs: Any) -> Any: ...
    @overload
    def call(self, function: Callable[P, Untyped], /, *args: P.args, **kwargs: P.kwargs) -> Any: ...
    @overload
    def call(
        self,
        function: Callable[P, AsyncIterable[Any] | Iterator[Any]],
        /,
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> StreamedNotCalled: ...
    @overload
    def call(
        self, function: Callable[P, Awaitable[R]], /, *args: P.args, **kwargs: P.kwargs
    ) -> R: ...
    @overload
    def call(self, function: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs) -> R: ...
    def call(self, function: Any, /, *args: Any, **kwargs: Any) -> Any:
        """Call ``function``, by its name or by itself, and wait for its result.

        Plain iterators and generators among the arguments are streamed. With
        ``options(timeout=)``, and when a signal's handler raises (Ctrl-C), it returns when the
        work has stopped. Raises as :meth:`forkwire.Calls.call` does, and :exc:`TimeoutError`.
        """
        request, _ = self._request(function, args, kwargs, streamed=False)
        return self._traced(request)

    def _traced(self, request: Request) -> Any:
        with self._ours(), context.client_span(self._offers.name, request.method):
            return self._ready_caller().call(request)

    @overload
    def stream(self, function: str, /, *args: Any, **kwargs: Any) -> SyncStream[Any]: ...
    @overload
    def stream(
        self,
        function: Callable[P, AsyncIterable[R] | Iterator[R]],
        /,
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> SyncStream[R]: ...
    def stream(self, function: Any, /, *args: Any, **kwargs: Any) -> SyncStream[Any]:
        """The items that a generator function on the other side yields.

        An iterator, and a context manager. Raises as :meth:`call` does, once iterated.
        """
        request, _ = self._request(function, args, kwargs, streamed=True)
        return self._ready_caller().stream(request)

    @overload
    def notify(self, function: str, /, *args: Any, **kwargs: Any) -> None: ...
    @overload
    def notify(
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
    def notify(self, function: Callable[P, Any], /, *args: P.args, **kwargs: P.kwargs) -> None: ...
    def notify(  # pyright: ignore[reportInconsistentOverload]
        self, function: Any, /, *args: Any, **kwargs: Any
    ) -> None:
        """Call ``function``, and do not wait for it. What it raises is logged, as a warning.

        Waits only while the other side has no room for one more. Raises :exc:`ValueEncodeError`,
        :exc:`WorkerDied` and :exc:`WorkerClosedError`.
        """
        request, _ = self._request(function, args, kwargs, streamed=False)
        with self._ours():
            self._ready_caller().notify(request)

    def proxy(self, protocol: Callable[..., T]) -> T:
        """A stub with the methods of ``protocol``, a class or :class:`typing.Protocol`.

        Its methods are plain ones, and block; those that answer an iterator are streamed. Raises
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
        timeout: float | None = UNSET,
    ) -> SyncCalls:
        """The same with other options, which hold for the calls made with what this answers.

        ``on_progress(done, total, text)``: is called, in the caller's thread, with what the
        handler reports; what it raises ends the call. ``window``: items of a stream that may be
        on their way, 32 unless set. ``timeout``: seconds that a call, or a whole stream, may take;
        then it is stopped, and raises :exc:`TimeoutError`. Raises :exc:`UsageError`.
        """
        changes: dict[str, Any] = {
            "on_progress": on_progress,
            "window": window,
            "timeout": timeout,
        }
        given = {name: value for name, value in changes.items() if value is not UNSET}
        other = SyncCalls()
        other._caller, other._offers = self._ready_caller(), self._offers
        other._options = dataclasses.replace(self._options, **given)
        return other

    def _ours(self) -> AbstractContextManager[object]:
        """Inside, nothing but what waits is interrupted."""
        return self._ready_caller().ours()

    def _ready_caller(self) -> MakesBlocking:
        if self._caller is None:
            raise UsageError(
                "the worker is not started: use it inside `with open_worker(...) as worker:`"
            )
        return self._caller

    def _request(
        self, function: Any, args: tuple[Any, ...], kwargs: dict[str, Any], *, streamed: bool
    ) -> tuple[Request, str]:
        self._ready_caller()
        name, convert = self._offers.look_up(function, streamed=streamed)
        return Request(name, args, kwargs, self._options, convert), name


NOTHING: Final[AbstractContextManager[None]] = nullcontext()


class SyncCurrentCall:
    """The call that a plain handler is handling: what :func:`current_call` answers."""

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
        """Whether its caller does not want it any more.

        A function in the worker's first thread is interrupted then. One in another thread
        (``threads=``) had better ask now and then.
        """
        return self._call.cancelled

    @property
    def host(self) -> SyncCalls:
        """Calls to the other side, which block: for a worker's handler what the host offers."""
        calls = SyncCalls()
        calls._caller = LaneCaller(self._call)
        calls._offers = Offers("the host")
        calls._offers.learn(self._call.link)
        return calls

    def progress(self, done: float, total: float | None = None, text: str = "") -> None:
        """Tell the caller how far it is; nothing where the caller does not want to know.

        ``done`` of ``total``, in whatever unit; ``text``: at most 4096 characters of it are sent.
        """
        with lane_of(self._call).ours():
            progress(self._call, done, total, text)

    def shield(self) -> AbstractContextManager[object]:
        """A block that cancellation does not interrupt; it comes after it."""
        interrupter = lane_of(self._call).interrupter
        return NOTHING if interrupter is None else interrupter.shield()

    def __repr__(self) -> str:
        return f"<SyncCurrentCall {self._call.method} id={self._call.id}>"


def current_call() -> SyncCurrentCall:
    """The call that is being handled here, in a plain handler or what it calls.

    Raises :exc:`UsageError` outside of a handler, in an async one, which uses
    :func:`forkwire.current_call`, and in threads that a handler has started.
    """
    call = handling.get()
    if not isinstance(call, InCall):
        raise UsageError(
            "current_call() is for code that runs inside a handler, in the handler's own thread: "
            "no call is being handled here"
        )
    if call.lane is None:
        raise UsageError(
            "this handler is an async function: use forkwire.current_call(), whose methods are "
            "awaited"
        )
    return SyncCurrentCall(call)

"""Async handlers: each call is a task of the loop that drives the link."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import AsyncIterator, Callable
from typing import Any, Final

import anyio
import anyio.lowlevel

from ..caller.current import handling as current
from ..data.kinds import is_a
from ..links.drivers import LoopDriver
from ..links.link import InCall, nothing
from ..telling import context
from .handling import Argument, bound, gave_up, why_stopped
from .service import Method

__all__ = ["AsyncArgument", "Tasks"]


class Tasks:
    """Runs async functions and async generators, as many at a time as the link takes."""

    def __init__(self, driver: LoopDriver, name: str, *, in_host: bool = False) -> None:
        # Ctrl-C, which a worker never hears. A coroutine that is closed need not say so.
        self._raised: Final = (KeyboardInterrupt,) if in_host else ()
        self._driver: Final = driver
        self._name: Final = name
        self._running = 0
        self.on_idle: Callable[[], None] = nothing

    @property
    def idle(self) -> bool:
        """Whether no handler runs."""
        return not self._running

    def run(self, call: InCall, method: Method) -> None:
        """Begin ``call``. In the loop."""
        self._running += 1
        self._driver.backend.spawn(
            lambda: self._run(call, method), f"forkwire: {self._name}.{method.name}"
        )

    async def _run(self, call: InCall, method: Method) -> None:
        current.set(call)
        try:
            await self._handle(call, method)
        finally:
            self._running -= 1
            if not self._running:
                self.on_idle()

    async def _handle(self, call: InCall, method: Method) -> None:
        link = call.link
        if call.cancelled:
            link.reply_error(call, why_stopped(call))
            return
        cancelled = anyio.get_cancelled_exc_class()
        value = None
        try:
            with anyio.CancelScope() as scope:
                if call.deadline != math.inf:
                    scope.deadline = anyio.current_time() + call.deadline - time.monotonic()
                call.on_cancel = scope.cancel
                with self._surroundings(call):
                    value = await self._invoke(call, method)
            if scope.cancelled_caught:
                link.reply_error(call, why_stopped(call))
                return
        except cancelled:
            link.reply_error(call, why_stopped(call))
            raise
        except BaseException as error:  # sys.exit in a handler is an ordinary error
            link.reply_error(call, why_stopped(call) if gave_up(call, error) else error)
            if is_a(error, *self._raised):
                raise
            return
        await self._driver.roomy()
        link.reply(call, value)

    @contextlib.contextmanager
    def _surroundings(self, call: InCall) -> Any:
        data = call.meta.get("context") if call.meta else None
        trusted = call.link.limits.trusted
        with context.applied(data, variables=trusted), context.server_span(self._name, call.method):
            yield

    async def _invoke(self, call: InCall, method: Method) -> Any:
        arguments: list[AsyncArgument] = []

        def iterate(argument: Argument) -> AsyncArgument:
            arguments.append(AsyncArgument(argument))
            return arguments[-1]

        args, kwargs = bound(method, call, iterate)
        try:
            result = method.function(*args, **kwargs)
            if call.credit is None:
                return await result
            await self._stream(call, result)
            return None
        finally:
            for argument in arguments:
                argument.stop()

    async def _stream(self, call: InCall, generator: Any) -> None:
        async with contextlib.AsyncExitStack() as stack:
            if hasattr(generator, "aclose"):
                stack.push_async_callback(shielded, generator.aclose)
            items = aiter(generator)
            while True:
                await self._credited(call)
                try:
                    value = await anext(items)
                except StopAsyncIteration:
                    return
                call.link.item(call, value)

    async def _credited(self, call: InCall) -> None:
        """Until one more item may be sent."""
        await self._driver.roomy()
        while not call.credit:
            event = anyio.Event()
            call.on_credit = event.set
            try:
                await event.wait()
            finally:
                call.on_credit = nothing


async def shielded(function: Callable[[], Any]) -> None:
    """Await ``function()`` also when cancelled: it has to end, and the grace bounds it."""
    with anyio.CancelScope(shield=True):
        await function()


class AsyncArgument:
    """A streamed argument as an async iterator."""

    def __init__(self, argument: Argument) -> None:
        self._argument: Final = argument

    def __aiter__(self) -> AsyncIterator[Any]:
        return self

    async def __anext__(self) -> Any:
        arrivals = self._argument.arrivals
        self._argument.grant()
        while not arrivals.ready:
            event = anyio.Event()
            arrivals.wake = event.set
            await event.wait()
            await anyio.lowlevel.checkpoint_if_cancelled()  # that the call was is no item
        try:
            return self._argument.take()
        except StopIteration:
            raise StopAsyncIteration from None

    async def aclose(self) -> None:
        """No more items are wanted."""
        self.stop()

    def stop(self) -> None:
        self._argument.stop()

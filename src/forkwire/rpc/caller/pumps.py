"""Arguments that are streamed from an event loop: each is a task of its own."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterable, Callable, Iterator
from contextlib import aclosing
from typing import Any, Final

import anyio
import anyio.lowlevel

from ...wire.messages import Send, Sent
from ..exceptions import describing as failures
from ..links.drivers import LoopDriver
from ..links.link import OutCall, nothing
from .current import Inside, handling

__all__ = ["ArgumentPump", "is_streamed"]


def is_streamed(value: object) -> bool:
    """Whether an argument is sent item by item: async iterables and plain iterators are."""
    return isinstance(value, (AsyncIterable, Iterator))


class ArgumentPump:
    """Sends the items of one argument, as many as are wanted."""

    def __init__(self, driver: LoopDriver, call: OutCall, number: int, iterable: Any) -> None:
        # What the producer calls runs inside the call that waits for its items.
        self._context: Final = Inside(call.tree)
        self._driver: Final = driver
        self._call: Final = call
        self._number: Final = number
        self._iterable: Final = iterable
        self._credit = 0
        self._begun = False
        self._scope: Final = anyio.CancelScope()
        self._wake: Callable[[], None] = nothing
        self.ended: Final = anyio.Event()
        self.failure: BaseException | None = None

    def start(self) -> None:
        """Begin, in the background."""
        self._driver.backend.spawn(self._run, f"forkwire: argument of {self._call.method}")

    def grant(self, count: int) -> None:
        """The other side wants ``count`` more; 0: none any more."""
        if not count:
            self.stop()
        self._credit += count
        self._wake()

    def stop(self) -> None:
        """No more are wanted."""
        self._scope.cancel()
        if not self._begun:  # a loop that ends begins no task any more
            self.ended.set()

    async def _run(self) -> None:
        """What the iterable raises is the call's to raise."""
        self._begun = True
        token = handling.set(self._context)
        try:
            with self._scope:
                if not self._scope.cancel_called:
                    await self._send_all()
            self._finish(None)
        except (Exception, SystemExit, KeyboardInterrupt) as error:
            self.failure = error
            self._finish(error)
        except BaseException as error:  # the loop ends, and this is not all
            self._finish(error)
            raise
        finally:
            handling.reset(token)
            self.ended.set()

    async def _send_all(self) -> None:
        iterator = iterate(self._iterable)
        async with aclosing(iterator):
            while True:
                await self._credited()
                try:
                    value = await anext(iterator)
                except StopAsyncIteration:
                    return
                self._credit -= 1
                self._driver.link.send(Send(self._call.id, self._number, value))

    async def _credited(self) -> None:
        await self._driver.roomy()
        while not self._credit:
            event = anyio.Event()
            self._wake = event.set
            await event.wait()

    def _finish(self, error: BaseException | None) -> None:
        call = self._call
        if not (call.ended or call.cancelled):
            data = None if error is None else failures.describe(error)
            self._driver.link.send(Sent(call.id, self._number, data))


async def iterate(iterable: Any) -> AsyncGenerator[Any, None]:
    """The items of ``iterable``, which may be a plain iterator, in a loop."""
    if isinstance(iterable, AsyncIterable):
        close = getattr(iterable, "aclose", None)
        try:
            async for item in iterable:
                yield item
        finally:
            if close is not None:
                with anyio.CancelScope(shield=True):
                    await close()
        return
    try:
        for item in iterable:
            yield item
            await anyio.lowlevel.checkpoint()
    finally:
        if hasattr(iterable, "close"):
            iterable.close()

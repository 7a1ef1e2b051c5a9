"""Arguments that are streamed by a thread without an event loop.

Nobody sends in the background: the caller does, whenever it waits.
"""

from __future__ import annotations

from collections.abc import AsyncIterable, Generator, Iterator
from typing import TYPE_CHECKING, Any, Final

from ...errors import UsageError
from ...wire.messages import Send, Sent
from ..exceptions import describing as failures
from ..interrupts.interrupting import Interrupted
from ..links.link import OutCall
from .current import Inside, handling
from .sync_streams import SyncStream

if TYPE_CHECKING:
    from .blocking import BlockingCaller

__all__ = ["Feeder", "is_streamed"]


def is_streamed(value: object) -> bool:
    """Whether an argument is sent item by item: iterators are. Raises :exc:`UsageError`."""
    if isinstance(value, AsyncIterable):
        raise UsageError(
            "an async iterable cannot be an argument here, where there is no event loop: "
            "pass a plain iterator or generator"
        )
    return isinstance(value, Iterator)


class Feeder:
    """Sends the items of one argument, as many as are wanted, whenever its caller waits."""

    def __init__(
        self, caller: BlockingCaller, call: OutCall, number: int, iterator: Iterator[Any]
    ) -> None:
        self._caller: Final = caller
        self._call: Final = call
        self.number: Final = number
        self._iterator: Final = iterator
        self._inside: Final = Inside(call.tree)
        self._credit = 0
        self._over = False
        self._stopped = False
        self.failure: BaseException | None = None

    def grant(self, count: int) -> None:
        """The other side wants ``count`` more; 0: none any more."""
        self._credit += count
        self._stopped = self._stopped or not count
        self._call.wake()

    @property
    def wanted(self) -> bool:
        """Whether `feed` has something to do."""
        return not self._over and (self._stopped or self._credit > 0)

    def feed(self) -> None:
        """Send the next item, or the end, if it is wanted."""
        if not self.wanted or self._call.ended:
            return
        token = handling.set(self._inside)
        try:
            value = self._caller.waiter.theirs(lambda: next(self._iterator, self))
            if self._stopped or value is self:
                self._end()
                return
            self._credit -= 1
            self._send(Send(self._call.id, self.number, value))
        except Interrupted:
            raise
        except (Exception, SystemExit) as error:
            self.failure = error
            self._end()
        finally:
            handling.reset(token)

    def _send(self, message: Send | Sent) -> None:
        self._caller.waiter.send(lambda: self._caller.link.send(message))

    def _end(self) -> None:
        self._over = True
        data = None if self.failure is None else failures.describe(self.failure)
        if not (self._call.ended or self._call.cancelled):
            self._send(Sent(self._call.id, self.number, data))

    def close(self) -> None:
        """Nobody takes it any more."""
        self._over = True
        if isinstance(self._iterator, (Generator, SyncStream)):
            self._iterator.close()

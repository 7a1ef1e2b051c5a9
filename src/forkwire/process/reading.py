"""The reading half of a channel: one descriptor, one decoder, one reader at a time.

On an asyncio loop the descriptor stays registered from the first wait on, and the callback only
moves bytes into the decoder: what is complete is taken by the task that asked for it, so that a
cancelled read loses nothing. trio's loop is asked for each wait.
"""

from __future__ import annotations

import functools
import os
import select
from collections.abc import Callable
from typing import TYPE_CHECKING, Final, TypeVar

from ..errors import ChannelBusyError
from ..wire.framing import BUFFER_SIZE, END_AT_EDGE, Decoder, EndOfFile
from . import descriptors
from .backend import Backend, Stop, current_backend
from .waiting import FAIR_TURNS, LARGE_TURNS, Patience, Use

if TYPE_CHECKING:
    import asyncio

__all__ = ["Source"]

T = TypeVar("T", bytes, int)

READ_SIZE: Final = (BUFFER_SIZE,)


class Source:
    """A descriptor that is read. The public handle is ``InputChannel``, which owns this.

    A loop holds this object, never the handle, so that a dropped handle is noticed.
    """

    def __init__(
        self, fd: int, max_message_size: int, *, pollable: bool, backend: Backend | None = None
    ) -> None:
        self.fd = fd
        self.decoder: Final = Decoder(max_message_size)
        self.pollable: Final = pollable
        self.closed = False
        self.grown = False
        self._patience: Final = Patience()
        self._use: Final = Use()
        # A plain flag: between a test and an assignment with no call CPython neither switches
        # threads nor runs signal handlers, so that none leaves it set.
        self._reading = False
        self._fds: Final = (fd,)
        self._came: bytes | int | None = None  # what the decoder does not know of yet
        self._more = False  # the last read took all that it could: there may be more
        self._unsuspended = 0
        self._backend = backend
        self._stop_watching: Stop | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._ready: Callable[[], bool] = self.decoder.message_ready
        self._failure: BaseException | None = None

    # -- with an event loop -------------------------------------------------------------------

    async def take(
        self, parse: Callable[[], T | EndOfFile | None], ready: Callable[[], bool]
    ) -> T | EndOfFile:
        """Wait for what ``parse`` answers; ``ready`` is its question without taking it."""
        if self._reading:
            raise self._busy()
        self._reading = True
        try:
            backend = self._backend
            if backend is None or not backend.is_current():
                backend = self._bind()
            if self._unsuspended < FAIR_TURNS:
                self._unsuspended += 1
                await backend.checkpoint_if_cancelled()
            else:
                self._unsuspended = 0
                await backend.checkpoint()
            if self._came is not None:
                self._account()
            turns = 0
            while not self.closed:
                if self._failure is not None:
                    failure, self._failure = self._failure, None
                    raise failure
                if (item := parse()) is not None:
                    return item
                turns += 1
                if not self.pollable:
                    await self._fill_in_thread(backend)
                elif turns % LARGE_TURNS == 0:
                    await backend.checkpoint()
                elif self._more:
                    self.fill()
                elif not self._patience.pays_off(self.fill):
                    self._unsuspended = 0
                    await self._wait(backend, ready)
            return END_AT_EDGE
        finally:
            self._reading = False

    async def _fill_in_thread(self, backend: Backend) -> None:
        self._use.begin()
        try:
            await backend.in_thread(self.fill)
        finally:
            self._use.end()

    def _bind(self) -> Backend:
        """Belong to the running loop; an earlier one is left."""
        self._backend = current_backend()
        if self._stop_watching is not None:
            stop, self._stop_watching = self._stop_watching, None
            stop(lambda: None)
        return self._backend

    async def _wait(self, backend: Backend, ready: Callable[[], bool]) -> None:
        if backend.loop is not None:
            await self._wait_registered(backend, backend.loop, ready)
            return
        try:
            await backend.wait_readable(self.fd)
        except Exception:
            if not self.closed:  # else that is what woke us
                raise

    async def _wait_registered(
        self, backend: Backend, loop: asyncio.AbstractEventLoop, ready: Callable[[], bool]
    ) -> None:
        self._ready = ready
        self._waiter = loop.create_future()
        if self._stop_watching is None:
            self._stop_watching = backend.watch(
                self.fd, functools.partial(self._on_readable, backend)
            )
        try:
            await self._waiter
        finally:
            self._waiter = None

    def _on_readable(self, backend: Backend) -> None:
        """The loop's callback. With nobody waiting it unregisters, to be heard no more."""
        if backend is not self._backend:  # we moved to another loop, which this one hears late
            return
        waiter = self._waiter
        if waiter is None or waiter.done():
            self._unwatch()
            return
        try:
            if not self.fill() or not self._ready():
                return
            if self.decoder.at_end:
                self._unwatch()
        except BaseException as error:  # raised to the reader, in take
            self._failure = error
        waiter.set_result(None)

    def _unwatch(self) -> None:
        if self._stop_watching is not None:
            stop, self._stop_watching = self._stop_watching, None
            stop(lambda: None)

    def listen(self, backend: Backend, callback: Callable[[], None]) -> None:
        """Call ``callback`` in the loop whenever there is something to `fill`; nobody else reads.

        The callback unregisters with `stop_listening`, at the end of the file at the latest.
        """
        self._backend, self._reading = backend, True
        self._stop_watching = backend.watch(self.fd, callback)

    def stop_listening(self) -> None:
        """No more of that. In the loop's thread."""
        self._unwatch()

    # -- without one --------------------------------------------------------------------------

    def take_blocking(self, parse: Callable[[], T | EndOfFile | None]) -> T | EndOfFile:
        """`take` for a thread with no event loop."""
        if self._reading:
            raise self._busy()
        use = self._use
        try:
            self._reading = use.active = True
            return self._take_blocking(parse)
        finally:  # with no call: what one raised would take the message with it
            self._reading = use.active = False
            if use.then:
                use.end()

    def _take_blocking(self, parse: Callable[[], T | EndOfFile | None]) -> T | EndOfFile:
        # Apart: from 3.13 on "try" does not cover what is raised at the end of a loop's body.
        if self._came is not None:
            self._account()
        while not self.closed:
            if (item := parse()) is not None:
                return item
            if self._more:
                self.fill()
            elif not self._patience.pays_off(self.fill):
                self._use.wait(self.fd, select.POLLIN, self._is_closed)
        return END_AT_EDGE

    def _is_closed(self) -> bool:
        return self.closed

    @property
    def more(self) -> bool:
        """Whether the last `fill` took all that it could: there may be more."""
        return self._more

    # -- both ---------------------------------------------------------------------------------

    def fill(self) -> bool:
        """Move what is there into the decoder; False if that would block."""
        large = self.decoder.missing
        try:
            # Called from C, so that no signal handler can raise before what came is noted.
            if large:
                (self._came,) = map(os.readv, self._fds, (self.decoder.buffers(),))
            else:
                (self._came,) = map(os.read, self._fds, READ_SIZE)
        except BlockingIOError:
            self._more = False
            return False
        except OSError as error:
            if self.closed:
                return True
            if not descriptors.is_gone(error, self.fd):
                raise descriptors.as_os_error(error, f"reading descriptor {self.fd}") from error
            self._came = b""
        self._account()
        if large and not self.grown:
            self.grown = descriptors.grow_pipe(self.fd)
        return True

    def _account(self) -> None:
        came = self._came
        if isinstance(came, bytes):
            self._more = len(came) == BUFFER_SIZE
            self.decoder.feed(came)
        elif came is not None:
            self._more = False
            self.decoder.received(came)
        self._came = None

    def close(self, then: Callable[[], None]) -> None:
        """Wake the reader with the end of the file, leave the loop, call ``then``."""
        self.closed = True
        self._use.when_over(functools.partial(self._leave, then))

    def _leave(self, then: Callable[[], None]) -> None:
        stop, self._stop_watching = self._stop_watching, None

        def wake() -> None:
            try:
                if self._waiter is not None and not self._waiter.done():
                    self._waiter.set_result(None)
                if self._backend is not None:
                    self._backend.stop_waiting(self.fd)
            finally:
                then()

        if stop is not None:
            stop(wake)
        elif self._reading and self._backend is not None:
            self._backend.call(wake)
        else:
            then()

    def _busy(self) -> ChannelBusyError:
        return ChannelBusyError(
            f"another task or thread is already reading descriptor {self.fd}: a channel has one "
            "reader at a time; read in one place and hand the messages on"
        )

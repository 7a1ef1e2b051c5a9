"""The writing half of a channel: messages go out whole, one after the other.

A message is handed to the system at once where it fits. Where it does not, its writer keeps the
turn and waits; others queue behind it. A writer that is cancelled before its first byte withdraws;
after it, a copy of the rest is written in the background, which keeps the turn until it is done.
"""

from __future__ import annotations

import functools
import os
import select
import threading
from collections import deque
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Final

from ..errors import ChannelBusyError, ProcessWorkerIPCError
from ..wire.framing import BUFFER_SIZE, END_AT_EDGE, WRITE_OK, EndOfFile, WriteOk
from . import descriptors
from .backend import Backend, current_backend
from .waiting import FAIR_TURNS, LARGE_TURNS, Patience, Use

if TYPE_CHECKING:
    import anyio

__all__ = ["Parts", "Sink"]

# What one system call is given: it goes on for as long as the peer makes room, and the loop waits.
# (It takes less than 2 GiB, write(2); macOS refuses more with EINVAL.)
MAX_WRITE: Final = 2**22

MAX_PARTS: Final = 512  # IOV_MAX is 1024

THREADS_TURN: Final = 0.005  # seconds between looks whether a thread is still writing

Parts = Sequence[bytes | memoryview]


class Sink:
    """A descriptor that is written. The public handle is ``OutputChannel``, which owns this."""

    def __init__(self, fd: int, *, pollable: bool, backend: Backend | None = None) -> None:
        self.fd = fd
        self.pollable: Final = pollable
        self.closing = self.closed = False
        self.grown = False
        self._taken = False  # a writer, or the background, has the turn
        self._queue: deque[anyio.Event] = deque()
        self._rest: Parts = ()  # of the message begun: it goes out before anything else
        self._fds: Final = (fd,)
        self._count: int | None = None  # what was written and is still part of the rest
        self._failure: ProcessWorkerIPCError | None = None
        self._thread_turn: Final = threading.Lock()
        self._thread = 0  # whose turn that is
        self._patience: Final = Patience()
        self._use: Final = Use()
        self._unsuspended = 0
        self._paused = False  # to let others have a turn, not since the rest would block
        self._backend = backend

    # -- with an event loop -------------------------------------------------------------------

    async def put(self, parts: Parts) -> WriteOk | EndOfFile:
        """Write ``parts`` as one."""
        backend = self._backend
        if backend is None or not backend.is_current():
            backend = self._bind()
        await backend.checkpoint_if_cancelled()
        if self._taken or self._thread_turn.locked():
            await self._wait_for_turn()
        self._taken = True
        in_background = False
        try:
            self._unsuspended += 1
            if self._unsuspended > FAIR_TURNS:
                self._unsuspended = 0
                await backend.checkpoint()  # with the turn, so that nobody overtakes
            if self._rest or self._failure is not None:
                await self._finish()
                self._raise_failure()
            if self.closing:
                return END_AT_EDGE
            self._rest = parts
            done = self._advance() if self.pollable else None
            if done is None:
                done = await self._finish()
        except BaseException:
            in_background = self._interrupt(parts)
            if in_background:
                backend.spawn(self._finish_in_background, f"forkwire: write {self.fd}")
            raise
        finally:
            if not in_background:
                if self._queue:
                    self._pass_turn()
                else:  # no call, at which a signal handler could raise and the turn stay taken
                    self._taken = False
        return WRITE_OK if done else END_AT_EDGE

    async def wait_idle(self) -> None:
        """Refuse new messages, and wait until those begun are out."""
        import anyio

        self.closing = True
        while self._thread_turn.locked():  # noqa: ASYNC110  nothing tells when a thread is done
            await anyio.sleep(THREADS_TURN)
        if self._backend is None or not self._backend.is_current():
            self._bind()
        if self._taken:
            await self._wait_for_turn()
        self._taken = True
        try:
            if self._rest:
                await self._finish()
        finally:
            self._pass_turn()

    def _bind(self) -> Backend:
        """Belong to the running loop; to move away from one that is still writing is refused."""
        self._leave_loop()
        self._backend = current_backend()
        return self._backend

    def _leave_loop(self) -> None:
        if self._taken and self._backend is not None and self._backend.is_running():
            raise self._busy()
        self._backend, self._taken = None, False
        self._queue.clear()

    async def _wait_for_turn(self) -> None:
        if self._thread_turn.locked():
            raise self._busy()
        import anyio

        event = anyio.Event()
        self._queue.append(event)
        try:
            await event.wait()
        except BaseException:
            if event.is_set():
                self._pass_turn()
            else:
                self._queue.remove(event)
            raise

    def _pass_turn(self) -> None:
        if self._queue:
            self._queue.popleft().set()
        else:
            self._taken = False

    async def _finish(self) -> bool:
        """Write the rest; False if the peer, or we, closed the channel."""
        if not self.pollable:  # a file: a thread, which is waited for also when cancelled
            assert self._backend is not None
            self._use.begin()
            try:
                while (done := await self._backend.in_thread(self._advance)) is None:
                    pass
                return done
            finally:
                self._use.end()
        turns = 0
        while (done := self._advance()) is None:
            turns += 1
            if self._paused or turns % LARGE_TURNS == 0:
                assert self._backend is not None
                await self._backend.checkpoint()
            elif not self._patience.pays_off(self._writable):
                self._unsuspended = 0
                try:
                    assert self._backend is not None
                    await self._backend.wait_writable(self.fd)
                except Exception:
                    if not self.closed:  # else that is what woke us, and _advance answers False
                        raise
        return done

    async def _finish_in_background(self) -> None:
        try:
            await self._finish()
        except ProcessWorkerIPCError as error:
            self._failure = error  # the next writer raises it
        finally:
            self._pass_turn()

    # -- without one --------------------------------------------------------------------------

    def put_blocking(self, parts: Parts) -> WriteOk | EndOfFile:
        """`put` for a thread with no event loop; several threads may."""
        if self._taken:
            self._leave_loop()
        me = threading.get_ident()
        if self._thread == me:  # we are a signal handler in the midst of it
            raise self._busy()
        turn, use = False, self._use
        try:
            # Called from C: in "with lock" (3.14) a signal handler can raise before the block.
            # With no call in between: a handler that writes must see whose turn it is.
            (turn,) = map(self._thread_turn.acquire, (True,))
            self._thread = me
            use.active = True
            if self._rest or self._failure is not None:
                self._finish_blocking()
                self._raise_failure()
            if self.closing:
                return END_AT_EDGE
            self._rest = parts
            done = self._finish_blocking()
            return WRITE_OK if done else END_AT_EDGE
        except BaseException:
            if turn:
                self._interrupt(parts)
            raise
        finally:
            if turn:
                try:
                    use.active = False
                    if use.then:
                        use.end()
                finally:  # with no call in between, as above
                    self._thread = 0
                    self._thread_turn.release()

    def finish_blocking(self) -> None:
        """Refuse new messages, and block until those begun are out."""
        self.closing = True
        with self._thread_turn:
            self._use.begin()
            try:
                self._finish_blocking()
            finally:
                self._use.end()

    def _finish_blocking(self) -> bool:
        """Write the rest of a message begun; False if the channel is closed."""
        while (done := self._advance()) is None:
            if not self._patience.pays_off(self._writable):
                self._use.wait(self.fd, select.POLLOUT, self._is_closed)
        return done

    def _is_closed(self) -> bool:
        return self.closed

    # -- for whoever keeps a queue of its own ---------------------------------------------------

    def push(self, parts: Parts = ()) -> bool | None:
        """Begin ``parts``, or go on with those begun, without waiting. Under the caller's lock.

        True when all is out, None if the rest would block, False: the channel is closed.
        """
        self._use.begin()
        try:
            if parts:
                self._rest = parts
            return self._advance()
        finally:
            self._use.end()

    async def wait_writable(self, backend: Backend) -> None:
        """Until `push` may go on, or the channel is closed. In ``backend``'s loop."""
        self._taken, self._backend = True, backend
        try:
            await backend.wait_writable(self.fd)
        except Exception:
            if not self.closed:
                raise
        finally:
            self._pass_turn()

    def own_rest(self) -> None:
        """Copy what is left of `push`: its maker may write to that memory from now on."""
        self._rest = [bytes(part) for part in self._rest]

    # -- both ---------------------------------------------------------------------------------

    def _advance(self) -> bool | None:
        """Write what the system takes: True when all is out, None if the rest would block.

        Or if it took much without blocking, which is a pause. False: the channel is closed, here
        or there.
        """
        if self._count is not None:
            self._account()
        self._paused = False
        calls = 0
        while rest := self._rest:
            calls += 1
            if calls > LARGE_TURNS:
                self._paused = True
                return None
            if self.closed:
                self._rest = ()
                return False
            whole = len(rest[0]) if len(rest) == 1 else -1
            try:
                # Called from C, so that no signal handler can raise before the count is noted.
                if 0 <= whole <= MAX_WRITE:
                    (self._count,) = map(os.write, self._fds, rest)
                else:
                    (self._count,) = map(os.writev, self._fds, (limited(rest),))
            except BlockingIOError:
                self._grow()
                return None
            except OSError as error:
                self._rest = ()
                if descriptors.is_gone(error, self.fd):
                    return False
                raise descriptors.as_os_error(error, f"writing descriptor {self.fd}") from error
            count = self._count
            if count == whole:
                self._rest = ()
                self._count = None
                return True
            self._account()
            if self._rest:
                self._grow(count)
        return True

    def _account(self) -> None:
        rest = unsent(self._rest, self._count or 0)
        self._rest, self._count = rest, None

    def _writable(self) -> bool:
        poll = select.poll()
        poll.register(self.fd, select.POLLOUT)
        return bool(poll.poll(0))

    def _grow(self, written: int = 0) -> None:
        """The first large message that does not fit gets a larger pipe."""
        if not self.grown and written + sum(map(len, self._rest)) > BUFFER_SIZE // 2:
            self.grown = descriptors.grow_pipe(self.fd)

    def _interrupt(self, parts: Parts) -> bool:
        """The writer of ``parts`` gives up: withdraw them, or answer that a rest must go out."""
        if self._count is not None:
            self._account()
        if self._rest is parts:
            self._rest = ()
        elif self._rest:
            self._rest = [bytes(part) for part in self._rest]
        return bool(self._rest) and not self.closed

    def _raise_failure(self) -> None:
        if self._failure is not None:
            failure, self._failure = self._failure, None
            raise failure

    def close(self, then: Callable[[], None]) -> None:
        """Wake whoever writes with the end of the file, leave the loop, call ``then``."""
        self.closing = self.closed = True
        self._use.when_over(functools.partial(self._leave, then))

    def _leave(self, then: Callable[[], None]) -> None:
        backend = self._backend
        if not self._taken or backend is None or not backend.is_running():
            then()
            return

        def wake() -> None:
            try:
                backend.stop_waiting(self.fd)
            finally:
                then()

        backend.call(wake)

    def _busy(self) -> ChannelBusyError:
        return ChannelBusyError(
            f"descriptor {self.fd} is being written by another event loop or thread: use a "
            "channel from one loop, or from threads through forkwire.sync, not from both at once"
        )


def limited(parts: Parts) -> Parts:
    """The start of ``parts``, as much as one system call takes."""
    parts = parts[:MAX_PARTS]
    if sum(map(len, parts)) <= MAX_WRITE:
        return parts
    first = memoryview(parts[0])[:MAX_WRITE]
    return [first, memoryview(parts[1])[: MAX_WRITE - len(first)]] if len(parts) > 1 else [first]


def unsent(parts: Parts, count: int) -> Parts:
    """What is left of ``parts`` after the first ``count`` bytes."""
    rest = list(parts)
    while rest and count >= len(rest[0]):
        count -= len(rest.pop(0))
    if count:
        rest[0] = memoryview(rest[0])[count:]
    return rest

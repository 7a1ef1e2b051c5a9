"""What is to be written: a queue of whole messages, that never waits.

Messages go out at once as far as the system takes them; what is left waits for whoever drives the
connection to call :meth:`Outbox.flush` when it can go on. Those who make messages ask
:attr:`Outbox.crowded` first, so that a peer that reads slowly slows them down.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable
from typing import Final

from ...process.writing import Parts, Sink

__all__ = ["Outbox", "Unread"]

# Bytes waiting, from which on makers of messages wait too: a few turns of a grown pipe.
CROWDED: Final = 2**20

# What one system call is given: small messages are joined up to a pipe's default size, and there
# are at most so many parts (IOV_MAX is 1024).
BATCH: Final = 65536
BATCH_PARTS: Final = 256


class Outbox:
    """Thread-safe. ``on_blocked`` is called when a flush could not write everything.

    ``on_gone``: once, when it is found that nobody reads any more. ``later``: has a function called
    when those that were woken have had their turn, where that can be; else all are woken at once.

    ``lock``: the link's. A finaliser may come in between, and send: it would need both.
    """

    def __init__(self, sink: Sink, lock: threading.RLock | None = None) -> None:
        self._sink: Final = sink
        self.lock: Final = threading.RLock() if lock is None else lock
        self._queue: deque[Parts] = deque()
        self._owned = 0  # messages at its start whose memory is our own
        self._batch = 0  # bytes in what the sink has begun
        self._flushing = False
        self._to_own = False  # a finaliser put something while a flush was going on
        self.waiting = 0  # bytes not written yet
        self.gone = False  # nobody reads any more
        self.silent = False  # not even the last may be said
        self.sent = 0  # bytes
        self.on_blocked: Callable[[], None] = lambda: None
        self.on_gone: Callable[[], None] = lambda: None
        self.later: Callable[[Callable[[], None]], None] | None = None
        self._when_roomy: dict[Callable[[], None], None] = {}  # in order
        self._typical = 0  # bytes of a message
        self._promised = 0  # bytes that those who were woken may put
        self._settling = False

    @property
    def crowded(self) -> bool:
        """Whether makers of messages should wait, with `when_roomy`."""
        return self.waiting > CROWDED

    @property
    def position(self) -> int:
        """Where what is put next begins, in all that is ever sent."""
        with self.lock:
            return self.sent + self.waiting

    def when_roomy(self, wake: Callable[[], None]) -> None:
        """Call ``wake`` once there is room again, or nobody reads any more. Once, however often."""
        with self.lock:
            if self.crowded and not self.gone:
                self._when_roomy[wake] = None
                return
        wake()

    def forget(self, wake: Callable[[], None]) -> None:
        """Whoever passed it to `when_roomy` has given up."""
        with self.lock:
            self._when_roomy.pop(wake, None)

    def put(self, parts: Parts) -> None:
        """Queue a message. Then `flush`."""
        with self.lock:
            if not self.gone:
                size = sum(map(len, parts))
                self._queue.append(parts)
                self.waiting += size
                self._typical += (size - self._typical) // 8
                self._promised = max(0, self._promised - size)

    def flush(self, *, borrowed: bool = True) -> bool:
        """Write what the system takes; whether all is out.

        ``borrowed``: the memory of what is left stays as it is until it is out; else it is copied.
        Raises :exc:`ProcessWorkerIPCError` when the system refuses.
        """
        with self.lock:
            if self._flushing:  # we are a finaliser, in the midst of it
                self._to_own = self._to_own or not borrowed
                return False
            was_gone = self.gone
            done = self._flush_all(borrowed=borrowed)
            wakes = self._roomy_now()
        self._wake(wakes)
        if self.gone and not was_gone:
            self.on_gone()
        if not done:
            self.on_blocked()
        return done

    def _flush_all(self, *, borrowed: bool) -> bool:
        done = True
        while done and (self._queue or self._batch):  # again: a finaliser may have put more
            self._flushing = True
            try:
                done = self._flush()
                if not done and (self._to_own or not borrowed):
                    self._own()
            finally:
                self._flushing = self._to_own = False
        return done

    def _roomy_now(self) -> list[Callable[[], None]]:
        """Who is to be woken, and waits no more: as many as there is room for."""
        room = CROWDED - self.waiting - self._promised
        if not self._when_roomy or (room < 0 and not self.gone):
            return []
        wakes = list(self._when_roomy)
        if self.later is not None and not self.gone:
            del wakes[1 + room // max(1, self._typical) :]
            self._promised += len(wakes) * self._typical
        for wake in wakes:
            del self._when_roomy[wake]
        return wakes

    def _wake(self, wakes: Iterable[Callable[[], None]]) -> None:
        for wake in wakes:
            wake()
        if self._promised and not self._settling and self.later is not None:
            self._settling = True
            self.later(self._settle)

    def _settle(self) -> None:
        """Those that were woken have put what they had, or have nothing: others may."""
        with self.lock:
            self._settling = False
            self._promised = 0
            wakes = self._roomy_now()
        self._wake(wakes)

    def own(self) -> None:
        """Copy what waits: its makers may write to that memory from now on."""
        with self.lock:
            if self.waiting:
                self._own()

    def put_last(self, parts: Parts) -> bool:
        """Write ``parts`` after `close`; what is left of it goes out when the channel finishes.

        False: the channel is closed, nothing may be said any more, or what was begun before is
        still in the way.
        """
        with self.lock:
            if self._flushing or self.silent or self._sink.push() is not True:
                return False
            done = self._sink.push(parts)
            self._sink.own_rest()
            return done is not False

    def close(self) -> None:
        """Nothing goes out any more; a message that has begun is cut short."""
        with self.lock:
            self._give_up()
            wakes = self._roomy_now()
        self._wake(wakes)

    def _give_up(self) -> None:
        self.gone = True
        self._queue.clear()
        self.waiting = self._batch = self._owned = 0

    def _flush(self) -> bool:
        while True:
            batch = () if self._batch else self._next_batch()
            if not batch and not self._batch:
                return True
            done = self._sink.push(batch)
            if done is None:
                return False
            if not done:
                self._give_up()
                return True
            self.waiting -= self._batch
            self.sent += self._batch
            self._batch = 0

    def _next_batch(self) -> Parts:
        parts: list[bytes | memoryview] = []
        size = 0
        while self._queue and size < BATCH and len(parts) < BATCH_PARTS:
            message = self._queue.popleft()
            self._owned = max(0, self._owned - 1)
            parts += message
            size += sum(map(len, message))
        self._batch = size
        return parts if size > BATCH or len(parts) < 2 else [b"".join(parts)]

    def _own(self) -> None:
        self._sink.own_rest()
        queue = self._queue
        lent = [queue.pop() for _ in range(len(queue) - self._owned)]
        queue.extend(tuple(bytes(part) for part in parts) for parts in reversed(lent))
        self._owned = len(queue)


class Unread:
    """Counts messages that wait in the outbox: a peer that reads has none for long."""

    def __init__(self, outbox: Outbox) -> None:
        self._outbox: Final = outbox
        self._ends: Final[deque[int]] = deque()  # of each message, in all that is ever sent

    def note(self) -> None:
        """One was put and flushed; others may have been since, so that it counts for a while."""
        if self._outbox.waiting or self._ends:
            with self._outbox.lock:
                self._ends.append(self._outbox.position)
                self.count()

    def count(self) -> int:
        """How many are not out yet."""
        if not self._ends:
            return 0
        with self._outbox.lock:
            sent = self._outbox.sent
            while self._ends and (self._ends[0] <= sent or self._outbox.gone):
                self._ends.popleft()
            return len(self._ends)

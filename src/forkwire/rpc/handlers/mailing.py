"""How a worker's log records get onto its connection: before, during and after its time.

Never blocks. Nothing may be said before the greeting, which comes when the service is loaded: what
is logged meanwhile is held. When the host has closed its end it still listens until the worker has
ended: what is logged then is written at once, or else said on stderr, which is relayed too.
"""

from __future__ import annotations

import threading
from collections import deque
from typing import Final

from ...errors import ForkwireError
from ...wire.framing import frame
from ...wire.messages import Log, array_of
from ...wire.session import SideState
from ..data import codec
from ..links.link import Link
from ..telling.log_records import Data
from ..telling.logs import complain

__all__ = ["Mail"]

# Characters held while a service is loaded: what the pipe then takes in a few turns. Records that
# come later are refused.
HELD: Final = 2**20


class Mail:
    """Called with each record. Any thread."""

    def __init__(self, link: Link) -> None:
        self._link: Final = link
        self._held: Final[deque[Data]] = deque()
        self._size = 0
        self._lock: Final = threading.RLock()  # a finaliser may come in between
        self._closed = False

    def __call__(self, record: Data) -> bool:
        """Send ``record``; False if there is no room for it."""
        with self._lock:
            if self._too_early:
                return self._hold(record)
        if self._link.over is None and self._link.outbox.crowded:
            return False
        self._send(record)
        return True

    @property
    def _too_early(self) -> bool:
        return not self._closed and self._link.session.state is SideState.NEW

    def _hold(self, record: Data) -> bool:
        size = sum(len(value) for value in record.values() if isinstance(value, str))
        if self._size + size > HELD:
            return False
        self._size += size
        self._held.append(record)
        return True

    def release(self) -> None:
        """The greeting is sent: send what was held."""
        while self._held:
            with self._lock:
                record = self._held.popleft()
            self._send(record)

    def close(self) -> None:
        """The connection is over, perhaps without a greeting."""
        self._closed = True
        self.release()

    def _send(self, record: Data) -> None:
        try:
            sent = self._link.send(Log(record)) if self._may_speak else False
        except ForkwireError:  # the system refuses, which ends the connection
            sent = False
        if not (sent or self._send_last(record)):
            complain(record)

    @property
    def _may_speak(self) -> bool:
        return self._link.session.state is not SideState.NEW

    def _send_last(self, record: Data) -> bool:
        body, _ = codec.encode(array_of(Log(record)))
        return self._may_speak and self._link.outbox.put_last(frame(body))

"""The connection of a link: what goes out, what comes in, and how it ends. Knows no call.

Knows of no loop and no thread either. A driver calls :meth:`Connection.pump` when there is
something to read, and flushes the outbox when it was blocked. Any thread may send.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Mapping
from typing import Any, Final, TypeAlias

from ...errors import ForkwireError, PeerError, ProcessWorkerIPCError, ValueEncodeError
from ...process.channels import InputChannel, OutputChannel
from ...process.writing import Parts
from ...wire.framing import MAX_PAYLOAD_SIZE, EndOfFile, frame
from ...wire.messages import MAX_ATTACHMENTS, Attach, Goodbye, Hello, Message, array_of
from ...wire.session import DEFAULT_CALLS, Session, SideState
from ..data import codec
from ..exceptions import describing as failures
from .incoming import Assembler
from .inflight import nothing
from .outbox import Outbox

__all__ = ["VERSION", "Connection", "Data", "Limits"]

VERSION: Final = 1  # of the protocol

# Turns of reading before others get theirs.
TURNS: Final = 16

PROTOCOL_BROKEN: Final = -32600

Data: TypeAlias = Mapping[str, Any]


class Limits:
    """What this side takes. ``message``: bytes of a frame. ``calls``: in flight."""

    __slots__ = ("calls", "message", "trusted")

    def __init__(
        self, message: int = MAX_PAYLOAD_SIZE, calls: int = DEFAULT_CALLS, *, trusted: bool = True
    ) -> None:
        self.message = message
        self.calls = calls
        self.trusted = trusted


class Connection:
    """``name``: of the peer, for messages. `Link` says what the hooks are for."""

    def __init__(
        self, input_: InputChannel, output: OutputChannel, *, name: str, limits: Limits
    ) -> None:
        self.name = name
        self.limits: Final = limits
        self.session: Final = Session()
        self.source: Final = input_._half
        self.sink: Final = output._half
        self._lock: Final = threading.RLock()  # a finaliser may come in between
        self.outbox: Final = Outbox(self.sink, self._lock)
        self.outbox.on_gone = self._on_gone
        self.over: ForkwireError | None = None
        self.leaving = False
        self.ended = False
        self.greeted = False
        self.on_end: Callable[[ProcessWorkerIPCError | None], None] = lambda error: None
        self.on_dispatched: Callable[[], None] = nothing
        self.on_idle: Callable[[], None] = nothing
        self.in_driver: Callable[[Callable[[], None]], None] = lambda function: function()
        self._assembler: Final = Assembler(limits.message, trusted=limits.trusted)

    def _dispatch(self, message: Message) -> None:
        """A message came that is to be acted on. Raises :exc:`ProtocolError`."""
        raise NotImplementedError

    @property
    def is_done(self) -> bool:
        """Whether the session is over by goodbyes, and all of it is out (C-45)."""
        return self.session.is_over and not self.outbox.waiting

    # -- sending ------------------------------------------------------------------------------

    def send(self, message: Any, *, borrowed: bool = False) -> bool:
        """Send ``message``; False if it is too late for it, or the link is over.

        ``borrowed``: the memory of its values stays as it is until it is out.
        Raises :exc:`ValueEncodeError`; nothing was sent then.
        """
        with self._lock:
            put = self._put(message)
        if put:
            self._flush(borrowed=borrowed)
        return put

    def _put(self, message: Any) -> bool:
        """Queue it. Under the lock."""
        if self._is_mute():
            return False
        parts = self._parts(message)
        # Encoding may have run anything: a finaliser, a property.
        if self._is_mute() or not self.session.sent(message):
            return False
        self.outbox.put(parts)
        return True

    def _flush(self, *, borrowed: bool = False) -> None:
        try:
            self.outbox.flush(borrowed=borrowed)
        except ProcessWorkerIPCError as error:
            failure = error
            self.in_driver(lambda: self.break_off(failure))

    def _is_mute(self) -> bool:
        return self.over is not None or self.outbox.gone

    def _parts(self, message: Any) -> Parts:
        body, attachments = codec.encode(array_of(message))
        if not attachments:
            self._check_size(len(body))
            return frame(body)
        sizes = [len(part) for part in attachments]
        self._check_size(max(len(body), sum(sizes)))
        if len(sizes) > MAX_ATTACHMENTS:
            raise ValueEncodeError(
                f"a message holds at most {MAX_ATTACHMENTS} large byte strings or arrays, not "
                f"{len(sizes)}: join them, or send them in parts, as a stream"
            )
        parts = [*frame(codec.encode(array_of(Attach(sizes)))[0])]
        for part in (*attachments, body):
            parts += frame(part)
        return parts

    def _check_size(self, size: int) -> None:
        limit = self.session.peer_size
        if size > limit:
            raise ValueEncodeError(
                f"a message of {size} bytes is above the {limit} that the other side takes: "
                "send it in parts, as a stream"
            )

    @property
    def greeting_sent(self) -> bool:
        """Whether we may say more than that."""
        return self.session.state is SideState.OPEN

    def hello(self, about: Data) -> None:
        """Greet the peer."""
        limits = {"message": self.limits.message, "calls": self.limits.calls}
        self.send(Hello({"protocol": [VERSION], "limits": limits, **about}))
        if self.session.peer_state is SideState.LEFT:
            self.goodbye()
        self.in_driver(self._take_held)

    def goodbye(self, error: Data | None = None) -> None:
        """No calls any more, either way; those in flight still end. Idempotent."""
        with self._lock:
            self.leaving = True
            if self.session.state is not SideState.LEFT:
                self._put(Goodbye(error))
        self._flush()

    # -- receiving ----------------------------------------------------------------------------

    def pump(self) -> bool:
        """Take what came, some of it if there is much; whether anything did. Does not wait.

        By one thread at a time, the driver's.
        """
        if self.ended or self.source.closed:
            return False
        came = self._guarded(self._read)
        if came:
            self.on_dispatched()
        return came

    def _read(self) -> bool:
        came = False
        for _ in range(TURNS):
            if not self.source.fill():
                break
            came = True
            if not self._take_frames() or not self.source.more:
                break
        return came

    def _guarded(self, read: Callable[[], bool]) -> bool:
        """``read()``, or the end if that fails."""
        try:
            return read()
        except ProcessWorkerIPCError as error:
            self.break_off(error)
        except Exception as error:  # of ours; but nobody is to wait for what was lost with it
            failure = ProcessWorkerIPCError(
                f"a message of {self.name} could not be handled: {type(error).__name__}: {error}"
            )
            failure.__cause__ = error
            self.break_off(failure)
        return True

    def _take_frames(self) -> bool:
        next_message = self.source.decoder.next_message
        while not (self.ended or self._is_early) and (message := next_message()) is not None:
            if isinstance(message, EndOfFile):
                self._finish(None)
                return False
            self.receive(message)
        return not self.ended

    @property
    def _is_early(self) -> bool:
        """The peer has greeted and may ask, and we have not and may not answer."""
        return self.greeted and self.session.state is SideState.NEW

    def _take_held(self) -> None:
        """What came before our greeting."""
        if not (self.ended or self.source.closed) and self._guarded(self._take_frames):
            self.on_dispatched()

    def receive(self, frame: bytes) -> None:
        """One frame came. Raises :exc:`ProtocolError`."""
        message = self._assembler.take(frame)
        if message is None:
            return
        with self._lock:
            wanted = self.over is None and self.session.received(message)
        if wanted:
            self._dispatch(message)

    def flushed(self) -> None:
        """The driver has written what was blocked."""
        self.on_dispatched()
        if self.is_done:
            self.on_idle()

    def break_off(self, error: ProcessWorkerIPCError) -> None:
        """The peer broke the protocol, or the system failed: nothing is read or sent any more."""
        if not self.ended:
            self.ended = True
            if isinstance(error, PeerError):  # it may like to know
                with contextlib.suppress(ForkwireError):
                    self.goodbye(failures.describe(error, code=PROTOCOL_BROKEN))
                self.outbox.silent = True  # C-46
            self.outbox.close()
            self.on_end(error)
        self.on_dispatched()

    def _finish(self, error: ProcessWorkerIPCError | None) -> None:
        if not self.ended:
            self.ended = True
            self.on_end(error)

    def _on_gone(self) -> None:
        """Nothing that we send arrives. What the peer said before is still taken."""

        def tell() -> None:
            if not (self.ended or self.sink.closed):
                self.on_end(None)

        self.in_driver(tell)

"""One connection: session, codec, what goes out, and the calls in flight on both sides.

Knows of no loop and no thread. A driver calls :meth:`Link.pump` when there is something to read,
and flushes the outbox when it was blocked; what comes is told to whoever waits by plain callbacks,
which never block. Any thread may send.
"""

from __future__ import annotations

import copy
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from ..errors import (
    ForkwireError,
    ProcessWorkerIPCError,
    ProtocolError,
    TooManyCallsError,
    ValueEncodeError,
    WorkerClosedError,
)
from ..process.channels import InputChannel, OutputChannel
from ..process.writing import Parts
from ..wire.framing import MAX_PAYLOAD_SIZE, EndOfFile, frame
from ..wire.messages import (
    CARRIERS,
    Attach,
    Call,
    Cancel,
    Credit,
    Error,
    Goodbye,
    Grant,
    Hello,
    Item,
    Log,
    Message,
    Notify,
    Ping,
    Pong,
    Progress,
    Result,
    Send,
    Sent,
    StreamRef,
    Unknown,
    array_of,
    parse,
)
from ..wire.session import DEFAULT_CALLS, Session, SideState
from . import codec, failures

__all__ = ["VERSION", "Arrivals", "InCall", "Limits", "Link", "OutCall", "nothing"]

VERSION: Final = 1  # of the protocol

# Reports of progress that nobody took yet; older ones are superseded.
KEPT_PROGRESS: Final = 64

# Turns of reading before others get theirs.
TURNS: Final = 16

# Answers that a peer makes us queue without reading any; then it is at fault.
UNREAD_ANSWERS: Final = 10_000

# Bytes of attachments of one message, and how many.
MAX_ATTACHMENTS: Final = 4096


def nothing() -> None:
    """What is called when nobody wants to know."""


class Limits:
    """What this side takes. ``message``: bytes of a frame. ``calls``: in flight."""

    __slots__ = ("calls", "message", "trusted")

    def __init__(
        self, message: int = MAX_PAYLOAD_SIZE, calls: int = DEFAULT_CALLS, *, trusted: bool = True
    ) -> None:
        self.message = message
        self.calls = calls
        self.trusted = trusted


class Arrivals:
    """Items of a stream in the order they came, then its end. ``wake`` is called for each."""

    __slots__ = ("ended", "error", "items", "wake")

    def __init__(self) -> None:
        self.items: deque[Any] = deque()
        self.ended = False
        self.error: BaseException | None = None
        self.wake: Callable[[], None] = nothing

    def put(self, value: object) -> None:
        self.items.append(value)
        self.wake()

    def end(self, error: BaseException | None = None) -> None:
        """Nothing comes any more. The first end counts."""
        if not self.ended:
            self.error = error
            self.ended = True
            self.wake()

    @property
    def ready(self) -> bool:
        """Whether there is an item, or the end."""
        return bool(self.items) or self.ended


class OutCall(Arrivals):
    """A call that we made, as long as it is in flight, and how it ended."""

    __slots__ = (
        "cancelled",
        "expected",
        "id",
        "method",
        "on_grant",
        "progress",
        "since",
        "tree",
        "value",
    )

    def __init__(self, number: int, method: str, tree: str = "") -> None:
        super().__init__()
        self.id = number
        self.method = method
        self.tree = tree
        self.value: Any = None
        self.cancelled = False
        self.expected = True  # somebody waits for it
        self.progress: deque[Progress] = deque(maxlen=KEPT_PROGRESS)
        self.on_grant: dict[int, Callable[[int], None]] = {}
        self.since = time.monotonic()

    def result(self) -> Any:
        """What it ended with. Raises its error."""
        if self.error is not None:
            raise self.error
        return self.value


class InCall:
    """A call that the peer made; a notification has the id 0.

    ``cancelled``: the peer wants it stopped, or is gone. ``credit``: items that may be sent; None
    where no stream is wanted. ``deadline``: in :func:`time.monotonic`'s terms.
    """

    __slots__ = (
        "arguments",
        "begun",
        "cancelled",
        "credit",
        "deadline",
        "failed",
        "id",
        "kwargs",
        "lane",
        "link",
        "meta",
        "method",
        "on_cancel",
        "on_credit",
        "tree",
        "values",
    )  # fmt: skip

    def __init__(self, link: Link, message: Call | Notify) -> None:
        self.link = link
        self.id = message.id if isinstance(message, Call) else 0
        self.method = message.method
        self.meta = meta = message.meta
        self.cancelled = False
        self.credit: int | None = meta.get("credit") if meta else None
        timeout = meta.get("timeout") if meta else None
        self.deadline = float("inf")
        if isinstance(timeout, (int, float)):
            self.deadline = time.monotonic() + max(0.0, timeout)
        tree = meta.get("tree") if meta else None
        self.tree = tree if isinstance(tree, str) else ""
        self.begun = False  # its handler runs
        self.failed: Mapping[str, Any] | None = None  # what it ends with, whatever is raised
        self.lane: Any = None  # the one that runs it, if one does
        self.on_cancel: Callable[[], None] = nothing
        self.on_credit: Callable[[], None] = nothing
        self.arguments: dict[int, Arrivals] = {}
        self.values: Sequence[Any] = message.args
        self.kwargs: Mapping[str, Any] = message.kwargs
        for value in (*message.args, *message.kwargs.values()):
            if type(value) is StreamRef:
                self.arguments[value.number] = Arrivals()

    def cancel(self) -> None:
        """It is not wanted any more."""
        if not self.cancelled:
            self.cancelled = True
            for arrivals in self.arguments.values():
                arrivals.end(WorkerClosedError("the call was cancelled"))
            self.on_cancel()

    def add_credit(self, count: int) -> None:
        if self.credit is not None:
            self.credit += count
            self.on_credit()


class Link:
    """The connection. ``name``: of the peer, for messages.

    ``accept``: is given each call that came. ``on_hello``, ``on_goodbye``, ``on_log``: what came.
    ``on_end``: the input has ended, or broke the protocol (the error), and nothing more comes; it
    is then for whoever owns the link to say what became of the calls in flight, with `fail`.
    """

    def __init__(
        self, input_: InputChannel, output: OutputChannel, *, name: str, limits: Limits
    ) -> None:
        from .outbox import Outbox

        self.name = name
        self.front: object = None  # what a handler of ours calls the other side with
        self.limits: Final = limits
        self.session: Final = Session()
        self.source: Final = input_._half
        self.sink: Final = output._half
        self.outbox: Final = Outbox(self.sink)
        self.calls: Final[dict[int, OutCall]] = {}
        self.peers: Final[dict[int, InCall]] = {}
        self.over: ForkwireError | None = None
        self.leaving = False
        self.ended = False
        self.greeted = False
        self.farewell: Mapping[str, Any] | None = None
        self.statistics = {"calls": 0, "errors": 0, "received": 0, "answered": 0}
        self.accept: Callable[[InCall], None] = self.refuse
        self.on_hello: Callable[[], None] = nothing
        self.on_goodbye: Callable[[], None] = nothing
        self.on_log: Callable[[Mapping[str, Any]], None] = lambda record: None
        self.on_end: Callable[[ProcessWorkerIPCError | None], None] = lambda error: None
        self.on_dispatched: Callable[[], None] = nothing
        self.on_idle: Callable[[], None] = nothing
        self._lock: Final = threading.RLock()
        self._waiting_for_slot: deque[Callable[[], None]] = deque()
        self._pongs: dict[int, Callable[[], None]] = {}
        self._pings = 0
        self._answers = 0
        self._sizes: list[int] = []
        self._attached: list[bytes] = []
        self._announced = False

    # -- sending ------------------------------------------------------------------------------

    def send(self, message: Any, *, borrowed: bool = False) -> bool:
        """Send ``message``; False if it is too late for it, or the link is over.

        Raises :exc:`ValueEncodeError`; nothing was sent then.
        """
        with self._lock:
            if self.over is not None:
                return False
            parts = self._parts(message)
            if not self.session.sent(message):
                return False
            self.outbox.put(parts)
        self.outbox.flush(borrowed=borrowed)
        return True

    def _parts(self, message: Any) -> Parts:
        body, attachments = codec.encode(array_of(message))
        limit = self.peer_message_limit
        if len(body) > limit or any(len(part) > limit for part in attachments):
            size = max(len(body), *map(len, attachments), 0)
            raise ValueEncodeError(
                f"a message of {size} bytes is above the {limit} that the other side takes: "
                "send it in parts, as a stream"
            )
        if not attachments:
            return frame(body)
        announcement = codec.encode(array_of(Attach([len(part) for part in attachments])))[0]
        parts = [*frame(announcement)]
        for part in (*attachments, body):
            parts += frame(part)
        return parts

    @property
    def peer_message_limit(self) -> int:
        limits = self.session.peer_about.get("limits")
        limit = limits.get("message") if isinstance(limits, dict) else None
        return limit if isinstance(limit, int) else MAX_PAYLOAD_SIZE

    @property
    def greeting_sent(self) -> bool:
        """Whether we may say more than that."""
        return self.session.state is SideState.OPEN

    def hello(self, about: Mapping[str, Any]) -> None:
        """Greet the peer."""
        limits = {"message": self.limits.message, "calls": self.limits.calls}
        self.send(Hello({"protocol": [VERSION], "limits": limits, **about}))

    def goodbye(self, error: Mapping[str, Any] | None = None) -> None:
        """No calls any more, either way; those in flight still end. Idempotent."""
        with self._lock:
            self.leaving = True
            if self.session.state is not SideState.LEFT:
                self.send(Goodbye(error))

    def start(
        self,
        method: str,
        args: Sequence[object],
        kwargs: Mapping[str, object],
        meta: Mapping[str, object],
        prepare: Callable[[OutCall], None] | None = None,
    ) -> OutCall:
        """Call ``method``. Ask `has_room` first.

        Raises :exc:`ValueEncodeError`, and what the link is over with.
        """
        with self._lock:
            self.check_open()
            number = self.session.next_id()
            call = OutCall(number, method, str(meta.get("tree", "")))
            if prepare is not None:
                prepare(call)
            self.calls[number] = call
            try:
                self.send(Call(number, method, args, kwargs, meta), borrowed=True)
            except BaseException:
                self.calls.pop(number, None)
                raise
            self.statistics["calls"] += 1
        return call

    def check_open(self) -> None:
        """Raise what the link is over with, or that it is being closed."""
        if self.over is not None:
            raise copy.copy(self.over)
        if self.leaving or self.session.peer_state is SideState.LEFT:
            raise WorkerClosedError(f"{self.name} is closing: no new calls are made")

    @property
    def has_room(self) -> bool:
        """Whether the peer takes one more call now."""
        return self.over is not None or (
            len(self.calls) < self.session.peer_calls and not self.outbox.crowded
        )

    def when_room(self, wake: Callable[[], None]) -> None:
        """Call ``wake`` once a call has ended; ask `has_room` then."""
        with self._lock:
            if not self.has_room and len(self.calls) >= self.session.peer_calls:
                self._waiting_for_slot.append(wake)
                return
        self.outbox.when_roomy(wake)

    def cancel(self, call: OutCall) -> None:
        """Ask the peer to stop it."""
        with self._lock:
            if not (call.ended or call.cancelled):
                call.cancelled = True
                self.send(Cancel(call.id))

    def reply(self, call: InCall, value: object) -> None:
        """``call`` ended with ``value``, or with the error that it cannot be sent."""
        self._end(call, lambda: Result(call.id, value))

    def reply_error(self, call: InCall, error: BaseException | Mapping[str, Any]) -> None:
        """``call`` ended with ``error``: what its handler raised, once that has begun."""
        data = call.failed if call.failed is not None else error
        if not isinstance(data, Mapping):
            data = failures.describe(data, code=failures.HANDLER_RAISED if call.begun else None)
        self.statistics["errors"] += 1
        self._end(call, lambda: Error(call.id, data))

    def _end(self, call: InCall, make: Callable[[], Result | Error]) -> None:
        with self._lock:
            if not call.id or self.peers.pop(call.id, None) is None:
                return
            self.statistics["answered"] += 1
            try:
                self.send(make())
            except ValueEncodeError as error:
                self.statistics["errors"] += 1
                self.send(Error(call.id, failures.describe(error)))
            except ProcessWorkerIPCError as error:
                self.break_off(error)
            idle = not self.peers
        if idle:
            self.on_idle()

    def item(self, call: InCall, value: object) -> None:
        """Send the next item of a stream. Raises :exc:`ValueEncodeError`."""
        with self._lock:
            if call.id not in self.peers:
                return
            try:
                self.send(Item(call.id, value))
            except ValueEncodeError as error:
                call.failed = failures.describe(error)
                raise
            assert call.credit is not None
            call.credit -= 1

    def ping(self, wake: Callable[[], None]) -> None:
        """Ask for a sign of life; ``wake`` is called when it comes, or the link is over."""
        with self._lock:
            self._pings += 1
            self._pongs[self._pings] = wake
            if not self.send(Ping(self._pings)):
                self._pongs.pop(self._pings)()

    # -- receiving ----------------------------------------------------------------------------

    def pump(self) -> bool:
        """Take what came, some of it if there is much; whether anything did. Does not wait.

        By one thread at a time, the driver's.
        """
        if self.ended:
            return False
        came = False
        try:
            for _ in range(TURNS):
                if not self.source.fill():
                    break
                came = True
                if not self._take_frames() or not self.source.more:
                    break
        except ProcessWorkerIPCError as error:
            self.break_off(error)
        if came:
            self.on_dispatched()
        return came

    def _take_frames(self) -> bool:
        next_message = self.source.decoder.next_message
        while not self.ended and (message := next_message()) is not None:
            if isinstance(message, EndOfFile):
                self._finish(None)
                return False
            self.receive(message)
        return not self.ended

    def break_off(self, error: ProcessWorkerIPCError) -> None:
        """The peer broke the protocol, or the system failed: nothing is read any more."""
        self._finish(error)
        self.on_dispatched()

    def _finish(self, error: ProcessWorkerIPCError | None) -> None:
        if not self.ended:
            self.ended = True
            self.on_end(error)

    def fail(self, error: ForkwireError) -> None:
        """The link is over: every call in flight ends with ``error``, in both directions."""
        with self._lock:
            if self.over is not None:
                return
            self.over = error
            self.ended = True
            calls = list(self.calls.values())
            self.calls.clear()
            peers = list(self.peers.values())
            self.peers.clear()
            wakes = [*self._waiting_for_slot, *self._pongs.values()]
            self._waiting_for_slot.clear()
            self._pongs.clear()
        self.outbox.close()
        for call in calls:
            call.end(copy.copy(error))
        for peer in peers:
            peer.cancel()
        for wake in wakes:
            wake()
        self.on_dispatched()
        self.on_idle()

    def receive(self, frame: bytes) -> None:
        """One frame came. Raises :exc:`ProtocolError`."""
        if len(self._attached) < len(self._sizes):
            self._attach(frame)
            return
        attached, self._attached, self._sizes = self._attached, [], []
        announced, self._announced = self._announced, False
        array = codec.decode(frame, attached, trusted=self.limits.trusted)
        message = parse(array)
        if announced and getattr(message, "TYPE", None) not in CARRIERS:
            raise ProtocolError(
                f"the peer announced attachments of a {type(message).__name__} message, "
                "which has none"
            )
        with self._lock:
            wanted = self.over is None and self.session.received(message)
        if wanted:
            self.statistics["received"] += 1
            DISPATCH[type(message)](self, message)

    def _attach(self, frame: bytes) -> None:
        size = self._sizes[len(self._attached)]
        if len(frame) != size:
            raise ProtocolError(f"the peer announced an attachment of {size} bytes, and sent one "
                                f"of {len(frame)}")  # fmt: skip
        self._attached.append(frame)

    def _on_attach(self, message: Attach) -> None:
        total = sum(message.sizes)
        if total > self.limits.message or len(message.sizes) > MAX_ATTACHMENTS:
            raise ProtocolError(
                f"the peer announced {len(message.sizes)} attachments of {total} bytes, above the "
                f"limit of {MAX_ATTACHMENTS} and {self.limits.message} bytes"
            )
        self._sizes, self._announced = list(message.sizes), True

    def _on_hello(self, message: Hello) -> None:
        versions = message.about.get("protocol")
        if not (isinstance(versions, list) and VERSION in versions):
            raise ProtocolError(
                f"the peer speaks the versions {str(versions)[:100]} of the protocol of calls, and "
                f"we speak {VERSION}: update the older of the two"
            )
        self.greeted = True
        self.on_hello()

    def _on_call(self, message: Call | Notify) -> None:
        call = InCall(self, message)
        if call.id:
            with self._lock:
                self.peers[call.id] = call
            if self.leaving:
                self._answer(call, WorkerClosedError("this side is closing"))
                return
            if len(self.peers) > self.limits.calls:
                self._answer(call, TooManyCallsError(
                    f"more than the {self.limits.calls} calls in flight that this side takes"
                ))  # fmt: skip
                return
        self.accept(call)

    def _on_unknown(self, message: Unknown) -> None:
        call = InCall(self, Call(message.id, "?", ()))
        self.peers[call.id] = call
        self._answer(call, {"code": -32601, "message": f"unknown request type {message.type}"})

    def _answer(self, call: InCall, error: BaseException | Mapping[str, Any]) -> None:
        self._count_answer()
        self.reply_error(call, error)

    def _count_answer(self) -> None:
        """A peer that makes us answer without reading the answers is at fault."""
        self._answers = self._answers + 1 if self.outbox.waiting else 0
        if self._answers > UNREAD_ANSWERS:
            raise ProtocolError(
                f"the peer asked for {UNREAD_ANSWERS} answers and reads none of them"
            )

    def _on_end_of_call(self, message: Result | Error) -> None:
        with self._lock:
            call = self.calls.pop(message.id, None)
            wake = self._waiting_for_slot.popleft() if self._waiting_for_slot else nothing
        if call is not None:
            if isinstance(message, Result):
                call.value = message.value
                call.end()
            else:
                self.statistics["errors"] += 1
                call.end(failures.rebuild(message.error, worker=self.name, method=call.method))
        wake()

    def _on_item(self, message: Item) -> None:
        call = self.calls.get(message.id)
        if call is not None:
            call.put(message.value)

    def _on_progress(self, message: Progress) -> None:
        call = self.calls.get(message.id)
        if call is not None:
            call.progress.append(message)
            call.wake()

    def _on_grant(self, message: Grant) -> None:
        call = self.calls.get(message.id)
        if call is not None and message.stream in call.on_grant:
            call.on_grant[message.stream](message.count)

    def _on_cancel(self, message: Cancel) -> None:
        call = self.peers.get(message.id)
        if call is not None:
            call.cancel()

    def _on_credit(self, message: Credit) -> None:
        call = self.peers.get(message.id)
        if call is not None:
            call.add_credit(message.count)

    def _on_send(self, message: Send) -> None:
        call = self.peers.get(message.id)
        if call is not None:
            call.arguments[message.stream].put(message.value)

    def _on_sent(self, message: Sent) -> None:
        call = self.peers.get(message.id)
        if call is not None:
            error = message.error
            call.arguments[message.stream].end(
                None if error is None else failures.rebuild(error, worker=self.name)
            )

    def _on_log(self, message: Log) -> None:
        self.on_log(message.record)

    def _on_ping(self, message: Ping) -> None:
        self._count_answer()
        self.send(Pong(message.number))

    def _on_pong(self, message: Pong) -> None:
        wake = self._pongs.pop(message.number, None)
        if wake is None:
            raise ProtocolError("the peer sent a pong that answers no ping")
        wake()

    def _on_goodbye(self, message: Goodbye) -> None:
        self.farewell = message.error
        self.on_goodbye()

    def refuse(self, call: InCall) -> None:
        """What a side without a service answers."""
        self._answer(call, {"code": -32601, "message": f"{call.method!r} was called, and this side "
                            "offers nothing: pass host= to offer something"})  # fmt: skip


DISPATCH: Final[dict[type[Message], Callable[[Link, Any], None]]] = {
    Hello: Link._on_hello,
    Call: Link._on_call,
    Notify: Link._on_call,
    Result: Link._on_end_of_call,
    Error: Link._on_end_of_call,
    Cancel: Link._on_cancel,
    Item: Link._on_item,
    Credit: Link._on_credit,
    Progress: Link._on_progress,
    Log: Link._on_log,
    Ping: Link._on_ping,
    Pong: Link._on_pong,
    Goodbye: Link._on_goodbye,
    Attach: Link._on_attach,
    Send: Link._on_send,
    Sent: Link._on_sent,
    Grant: Link._on_grant,
    Unknown: Link._on_unknown,
}

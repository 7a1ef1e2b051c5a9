"""One connection with the calls in flight on both sides.

Knows of no loop and no thread. What comes is told to whoever waits by plain callbacks, which never
block; what goes out, and how it ends, is for `connection`.
"""

from __future__ import annotations

import contextlib
import copy
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from ...errors import (
    CallCancelledError,
    CallError,
    ForkwireError,
    ProtocolError,
    TooManyCallsError,
    ValueEncodeError,
    WorkerClosedError,
)
from ...process.channels import InputChannel, OutputChannel
from ...wire.messages import (
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
    Unknown,
)
from ...wire.session import SideState
from ..exceptions import describing as failures
from .connection import VERSION, Connection, Data, Limits
from .inflight import Arrivals, InCall, OutCall, nothing
from .outbox import Unread
from .room import Room

__all__ = ["VERSION", "Arrivals", "InCall", "Limits", "Link", "OutCall", "nothing"]

# Answers that a peer makes us queue without reading any; then it is at fault.
UNREAD_ANSWERS: Final = 10_000

METHOD_NOT_FOUND: Final = -32601
TOO_MANY: Final = -32003
CLOSING: Final = -32005


class Link(Connection):
    """The connection. ``name``: of the peer, for messages.

    ``accept``: is given each call that came. ``on_hello``, ``on_goodbye``, ``on_log``: what came.
    ``on_end``: the input has ended, or broke the protocol (the error), and nothing more comes, or
    (None, while more may come) nothing that is sent arrives; it is then for whoever owns the link
    to say what became of the calls in flight, with `fail`. ``on_idle``: the last call that the
    peer made has ended, or the link has. ``on_over``: the link is over, and the calls in flight are
    about to be told. ``in_driver``: has a function called where the driver
    is; set by the driver.
    """

    def __init__(
        self, input_: InputChannel, output: OutputChannel, *, name: str, limits: Limits
    ) -> None:
        super().__init__(input_, output, name=name, limits=limits)
        self.front: object = None  # what a handler of ours calls the other side with
        self.calls: Final[dict[int, OutCall]] = {}
        self.peers: Final[dict[int, InCall]] = {}
        self.farewell: Data | None = None
        self.statistics = {"calls": 0, "errors": 0, "received": 0, "answered": 0}
        self.accept: Callable[[InCall], None] = self.refuse
        self.on_hello: Callable[[], None] = nothing
        self.on_goodbye: Callable[[], None] = nothing
        self.on_log: Callable[[Data], None] = lambda record: None
        self.on_over: Callable[[], None] = nothing
        self._room: Final = Room()
        self._pongs: dict[int, Callable[[], None]] = {}
        self._pings = 0
        self._notified: set[InCall] = set()
        self._dropped = False
        # What the peer made us say and has not read: of calls that it may not count as ended yet,
        # and of what it asks for without limit.
        self._results: Final = Unread(self.outbox)
        self._refusals: Final = Unread(self.outbox)

    def goodbye(self, error: Data | None = None) -> None:
        super().goodbye(error)
        with self._lock:
            wakes = self._room.everybody()
        call_each(wakes)

    @property
    def is_done(self) -> bool:
        return super().is_done and not self._notified

    def fail(self, error: ForkwireError) -> None:
        """The link is over: every call in flight ends with ``error``, in both directions."""
        with self._lock:
            if self.over is not None:
                return
            self.over = error
            self.ended = True
            calls = list(self.calls.values())
            self.calls.clear()
            peers = [*self.peers.values(), *self._notified]
            self.peers.clear()
            self._notified.clear()
            wakes = [*self._room.everybody(), *self._pongs.values()]
            self._pongs.clear()
        self.outbox.close()
        self.on_over()
        for call in calls:
            call.end(copy.copy(error))
        for peer in peers:
            peer.cancel()
        call_each(wakes)
        self.on_dispatched()
        self.on_idle()

    # -- calls that we make -------------------------------------------------------------------

    def start(
        self,
        method: str,
        args: Sequence[object],
        kwargs: Mapping[str, object],
        meta: Mapping[str, object],
        prepare: Callable[[OutCall], None] | None = None,
        call: OutCall | None = None,
    ) -> OutCall:
        """Call ``method``. Ask `has_room` first. ``call``: made before, it gets its id here.

        Raises :exc:`ValueEncodeError`, and what the link is over with.
        """
        wakes: list[Callable[[], None]] = []
        try:
            with self._lock:
                try:
                    call = self._start(Call(0, method, args, kwargs, meta), prepare, call)
                except BaseException:
                    wakes = self._room.next()  # the room is another's
                    raise
        finally:
            call_each(wakes)
        self._flush(borrowed=True)
        return call

    def _start(
        self,
        message: Call,
        prepare: Callable[[OutCall], None] | None,
        call: OutCall | None,
    ) -> OutCall:
        while message.id != self.session.next_id():  # a finaliser took it while we encoded
            self.check_open()
            message.id = self.session.next_id()
            parts = self._parts(message)
        self.check_open()
        call = call or OutCall(0, message.method, str(message.meta.get("tree", "")))
        call.id = message.id
        if prepare is not None:
            prepare(call)
        self.session.sent(message)
        self.calls[call.id] = call
        self.outbox.put(parts)
        self.statistics["calls"] += 1
        return call

    def check_open(self) -> None:
        """Raise what the link is over with, or that it is being closed."""
        if self.over is not None:
            raise copy.copy(self.over)
        if self.leaving or self.session.peer_state is SideState.LEFT:
            raise WorkerClosedError(f"{self.name} is closing: no new calls are made")
        if not self.session.peer_calls:
            raise TooManyCallsError(f"{self.name} takes no calls at all, by its greeting")

    @property
    def is_open(self) -> bool:
        """Whether calls may still be made."""
        left = self.session.peer_state is SideState.LEFT
        return self.over is None and not self.leaving and not left

    @property
    def has_room(self) -> bool:
        """Whether the peer takes one more call now, or `start` says why it never will."""
        return not self.outbox.crowded if self._has_slot else self._takes_no_calls

    @property
    def _has_slot(self) -> bool:
        return len(self.calls) < self.session.peer_calls

    @property
    def _takes_no_calls(self) -> bool:
        return self.over is not None or self.leaving or not self.session.peer_calls

    def when_room(self, wake: Callable[[], None]) -> None:
        """Call ``wake`` once there may be room; ask `has_room` then.

        Whoever does not wait for that any more, or does not use it, says so with `leave_queue`.
        """
        with self._lock:
            if not (self._has_slot or self._takes_no_calls):
                self._room.wait(wake)
                return
        self.outbox.when_roomy(wake)

    def leave_queue(self, wake: Callable[[], None]) -> None:
        """Whoever waited with `when_room` has given up: what it was woken for is another's."""
        wakes: list[Callable[[], None]] = []
        with self._lock:
            self.outbox.forget(wake)
            if not self._room.leave(wake) and self._has_slot:
                wakes = self._room.next()
        call_each(wakes)

    def cancel(self, call: OutCall) -> None:
        """Ask the peer to stop it."""
        with self._lock:
            if call.ended or call.cancelled:
                return
            call.cancelled = True
            self._put(Cancel(call.id))
        self._flush()

    def ping(self, wake: Callable[[], None]) -> None:
        """Ask for a sign of life; ``wake`` is called when it comes, or the link is over."""
        with self._lock:
            self._pings += 1
            number = self._pings
            over = self.over is not None
            if not over:  # what nobody reads any more is over soon
                self._pongs[number] = wake
                self._put(Ping(number))
        if over:
            wake()
        else:
            self._flush()

    # -- calls that the peer makes ------------------------------------------------------------

    def reply(self, call: InCall, value: object) -> None:
        """``call`` ended with ``value``, or with the error that it cannot be sent."""
        self._end(call, Result(call.id, value))

    def reply_error(self, call: InCall, error: BaseException | Data) -> None:
        """``call`` ended with ``error``: what its handler raised, once that has begun."""
        data: BaseException | Data = error if call.failed is None else call.failed
        if not call.id:  # nobody hears of it, and there may be many
            data = {}
        elif isinstance(data, BaseException):  # this asks nothing of the exception itself
            data = failures.describe(data, code=failures.HANDLER_RAISED if call.begun else None)
        self._end(call, Error(call.id, data))

    def _end(self, call: InCall, answer: Result | Error) -> None:
        with self._lock:
            if not call.id:
                if call not in self._notified:
                    return
                self._notified.discard(call)
            elif self.peers.pop(call.id, None) is None:
                return
            else:
                self._say(answer)
            self.statistics["answered"] += 1
            idle = not self.peers
        self._flush()
        self._results.note()
        if idle:
            self.on_idle()

    def _say(self, answer: Result | Error) -> None:
        """Queue it, or the error that it cannot be sent, or at least that there is one."""
        try:
            self._put(answer)
            self.statistics["errors"] += isinstance(answer, Error)
            return
        except ValueEncodeError as error:
            self.statistics["errors"] += 1
            data = failures.describe(error)
        try:
            self._put(Error(answer.id, data))
        except ValueEncodeError:  # it takes very small messages only
            with contextlib.suppress(ValueEncodeError):
                self._put(Error(answer.id, {"code": data["code"], "message": ""}))

    def item(self, call: InCall, value: object) -> None:
        """Send the next item of a stream. Raises :exc:`ValueEncodeError`."""
        with self._lock:
            if call.id not in self.peers:
                return
            try:
                put = self._put(Item(call.id, value))
            except ValueEncodeError as error:
                call.failed = failures.describe(error)
                raise
            if put and call.credit:
                call.credit -= 1
        self._flush()

    def refuse(self, call: InCall) -> None:
        """What a side without a service answers."""
        self.reply_error(call, {
            "code": METHOD_NOT_FOUND,
            "message": f"{call.method!r} was called, and this side offers nothing: pass host= to "
            "offer something",
        })  # fmt: skip

    # -- what came ----------------------------------------------------------------------------

    def _dispatch(self, message: Message) -> None:
        self.statistics["received"] += 1
        DISPATCH[type(message)](self, message)

    def _on_hello(self, message: Hello) -> None:
        versions = message.about["protocol"]
        if VERSION not in versions:
            raise ProtocolError(
                f"the peer speaks the versions {str(versions)[:100]} of the protocol of calls, and "
                f"we speak {VERSION}: update the older of the two"
            )
        self.greeted = True
        self.source.decoder.lift()
        with self._lock:
            wakes = self._room.everybody()  # it may take more than we could know
        call_each(wakes)
        self.on_hello()

    def _on_call(self, message: Call) -> None:
        call = InCall(self, message)
        with self._lock:
            if self.over is not None:
                return
            code = self._why_not()
            if code is None:
                self.peers[call.id] = call
        if code is None:
            self.accept(call)
        else:
            self._refuse(Error(call.id, {"code": code, "message": self._reason(code)}))

    def _on_notify(self, message: Notify) -> None:
        call = InCall(self, message)
        with self._lock:
            if self.over is not None:
                return
            code = self._why_not()
            if code is None:
                self._notified.add(call)
        if code is None:
            self.accept(call)
        elif not self._dropped:
            self._dropped = True
            logging.getLogger("forkwire").warning(
                "a notification of %s is dropped, and perhaps others: %s",
                self.name,
                self._reason(code),
            )

    def _why_not(self) -> int | None:
        """The code with which a new call is refused."""
        if self.leaving:
            return CLOSING
        in_flight = len(self.peers) + len(self._notified) + self._results.count()
        return TOO_MANY if in_flight >= self.limits.calls else None

    def _reason(self, code: int) -> str:
        if code == CLOSING:
            return "this side is closing, and takes no new calls"
        return f"more than the {self.limits.calls} calls in flight that this side takes"

    def _on_unknown(self, message: Unknown) -> None:
        text = f"unknown request type {message.type}"
        self._refuse(Error(message.id, {"code": METHOD_NOT_FOUND, "message": text}))

    def _refuse(self, answer: Error | Pong) -> None:
        """Answer at once. A peer that makes us do so and does not read it is at fault."""
        if self._refusals.count() >= UNREAD_ANSWERS:
            raise ProtocolError(
                f"the peer asked for {UNREAD_ANSWERS} answers and reads none of them"
            )
        self.statistics["errors"] += isinstance(answer, Error)
        self.send(answer)
        self._refusals.note()

    def _on_end_of_call(self, message: Result | Error) -> None:
        with self._lock:
            call = self.calls.pop(message.id, None)
            wakes = self._room.next()
        if call is not None:
            if isinstance(message, Result):
                call.value = message.value
                call.end()
            else:
                self.statistics["errors"] += 1
                call.end(self._error_of(call, message.error))
        call_each(wakes)
        if self.session.is_over:
            self.on_idle()

    def _error_of(self, call: OutCall, data: Mapping[str, Any]) -> CallError:
        error = failures.rebuild(data, worker=self.name, method=call.method)
        if self.leaving and isinstance(error, CallCancelledError):
            return WorkerClosedError(f"{self.name} was closed while {call.method} was in flight")
        return error

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
        grant = None if call is None else call.on_grant.get(message.stream)
        if grant is not None:
            grant(message.count)

    def _on_cancel(self, message: Cancel) -> None:
        call = self.peers.get(message.id)
        if call is not None:
            call.cancel()

    def _on_credit(self, message: Credit) -> None:
        call = self.peers.get(message.id)
        if call is not None and call.credit is not None:
            with self._lock:  # a lane may take some at the same time
                call.credit += message.count
            call.on_credit()

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
        self._refuse(Pong(message.number))

    def _on_pong(self, message: Pong) -> None:
        with self._lock:
            wake = self._pongs.pop(message.number, None)
        if wake is None:
            raise ProtocolError("the peer sent a pong that answers no ping")
        wake()

    def _on_goodbye(self, message: Goodbye) -> None:
        self.farewell = message.error
        if self.greeting_sent:
            self.goodbye()
        self.on_goodbye()
        if self.session.is_over:
            self.on_idle()


def call_each(functions: Sequence[Callable[[], None]]) -> None:
    for function in functions:
        function()


DISPATCH: Final[dict[type[Message], Callable[[Link, Any], None]]] = {
    Hello: Link._on_hello,
    Call: Link._on_call,
    Notify: Link._on_notify,
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
    Send: Link._on_send,
    Sent: Link._on_sent,
    Grant: Link._on_grant,
    Unknown: Link._on_unknown,
}

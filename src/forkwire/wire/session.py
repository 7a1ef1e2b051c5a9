"""Who may say what when: the state tables of protocol-spec/3-calls.md, and the credit.

Sans-I/O: a front tells what it sends (:meth:`Session.sent`) and what came
(:meth:`Session.received`). What the tables do not allow is a fault: of the peer's, a
:exc:`ProtocolError`; of our own, an :exc:`AssertionError` (raised by hand, so that ``python -O``
has it too). One table serves both roles, since a message's type says whether the caller or the
callee sends it.
"""

from __future__ import annotations

from enum import Enum, auto
from typing import Any, Final, TypeAlias

from ..errors import ProtocolError
from .messages import (
    LARGEST_CREDIT,
    LARGEST_ID,
    LARGEST_SIZE,
    Attach,
    Call,
    Cancel,
    Credit,
    Error,
    Goodbye,
    Grant,
    Hello,
    Ignored,
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
)

__all__ = [
    "CALL_TABLE",
    "DEFAULT_CALLS",
    "SIDE_TABLE",
    "UNGREETED_CALLS",
    "UNGREETED_SIZE",
    "CallState",
    "Session",
    "SideState",
]

# Calls in flight that a side takes, if it does not say so itself. Each costs a task or a place in
# a queue, and its arguments.
DEFAULT_CALLS: Final = 1024

# Calls that may be sent before the other side has said how many it takes (C-11).
UNGREETED_CALLS: Final = 64

# Bytes of the largest frame that may be sent before then (C-8).
UNGREETED_SIZE: Final = 2**20


class SideState(Enum):
    """What one side has said of itself."""

    NEW = auto()
    OPEN = auto()
    LEFT = auto()


class CallState(Enum):
    """A call between its first message and its last."""

    CALLED = auto()
    STREAMED = auto()
    STOPPING = auto()  # a call that was cancelled
    DRAINING = auto()  # a stream that was: items may be on their way
    OVER = auto()


Kind: TypeAlias = type[Any]

ABOUT_CALLS: Final[frozenset[Kind]] = frozenset(
    {Result, Error, Cancel, Item, Credit, Progress, Send, Sent, Grant}
)
ANY_TIME: Final[frozenset[Kind]] = ABOUT_CALLS | {Log, Ping, Pong, Attach, Ignored, Unknown}

# What a side may send in each state, and which state it is in then. What is missing is a fault.
SIDE_TABLE: Final[dict[SideState, dict[Kind, SideState]]] = {
    SideState.NEW: {Hello: SideState.OPEN, Goodbye: SideState.LEFT},
    SideState.OPEN: {
        **dict.fromkeys(ANY_TIME | {Call, Notify}, SideState.OPEN),
        Goodbye: SideState.LEFT,
    },
    SideState.LEFT: dict.fromkeys(ANY_TIME, SideState.LEFT),
}

ENDS: Final[dict[Kind, CallState]] = {Result: CallState.OVER, Error: CallState.OVER}

# The same of a call. Cancel, Credit, Send and Sent are its caller's, the others its callee's.
CALL_TABLE: Final[dict[CallState, dict[Kind, CallState]]] = {
    CallState.CALLED: {
        **ENDS,
        **dict.fromkeys((Progress, Grant, Send, Sent), CallState.CALLED),
        Cancel: CallState.STOPPING,
    },
    CallState.STREAMED: {
        **ENDS,
        **dict.fromkeys((Item, Credit, Progress, Grant, Send, Sent), CallState.STREAMED),
        Cancel: CallState.DRAINING,
    },
    CallState.STOPPING: {**ENDS, **dict.fromkeys((Progress, Grant), CallState.STOPPING)},
    CallState.DRAINING: {**ENDS, **dict.fromkeys((Item, Progress, Grant), CallState.DRAINING)},
}

# Of the caller's, and a grant: they may cross the end of the call on their way (C-15).
MAY_BE_LATE: Final = (Cancel, Credit, Send, Sent, Grant)
OF_THE_CALLER: Final[frozenset[Kind]] = frozenset({Cancel, Credit, Send, Sent})

# What we need not say any more once the call is over, if somebody here has not heard of its end.
TOO_LATE: Final = (*MAY_BE_LATE, Progress)
CANCELLED: Final = (CallState.STOPPING, CallState.DRAINING)


class Fault(Exception):
    """What the tables do not allow; whose fault it is, the caller of `step` knows."""


class OneCall:
    """The state of a call, and of the streams in it."""

    __slots__ = ("credit", "state", "streams")

    def __init__(self, call: Call) -> None:
        streamed = "credit" in call.meta
        self.state = CallState.STREAMED if streamed else CallState.CALLED
        self.credit = checked_credit(call.meta["credit"]) if streamed else 0
        # Of each argument that is streamed, the items that may still be sent; None: it ended.
        self.streams: dict[int, int | None] = {}
        for value in (*call.args, *call.kwargs.values()):
            if type(value) is StreamRef:
                if value.number in self.streams:
                    raise Fault(f"argument stream {value.number} is there twice")
                self.streams[value.number] = 0

    def step(self, message: Any) -> bool:
        """Go on with ``message``; False if it is too late, which is no fault. Raises `Fault`."""
        kind = type(message)
        after = CALL_TABLE[self.state].get(kind)
        if after is None:
            raise Fault(f"a {kind.__name__} message while the call is {self.state.name}")
        take = TAKERS.get(kind)
        if take is not None and not take(self, message):
            return False
        self.state = after
        return True

    def take_result(self, message: Result) -> bool:
        if self.state in (CallState.STREAMED, CallState.DRAINING) and message.value is not None:
            raise Fault("the end of a stream with a value, which is null (C-30)")
        return True

    def take_item(self, message: Item) -> bool:
        if not self.credit:
            raise Fault("an item beyond the credit")
        self.credit -= 1
        return True

    def take_credit(self, message: Credit) -> bool:
        self.credit = checked_credit(self.credit + message.count)
        return True

    def take_send(self, message: Send) -> bool:
        credit = self.stream_credit(message.stream)
        if not credit:
            raise Fault(f"an item of argument stream {message.stream} beyond its credit")
        self.streams[message.stream] = credit - 1
        return True

    def take_sent(self, message: Sent) -> bool:
        self.stream_credit(message.stream)
        self.streams[message.stream] = None
        return True

    def take_grant(self, message: Grant) -> bool:
        if message.stream not in self.streams:
            raise Fault(f"argument stream {message.stream}, which the call does not have")
        credit = self.streams[message.stream]
        if credit is None:  # it crossed the end of the stream
            return False
        self.streams[message.stream] = checked_credit(credit + message.count)
        return True

    def stream_credit(self, number: int) -> int:
        credit = self.streams.get(number)
        if credit is None:
            what = "has ended" if number in self.streams else "the call does not have"
            raise Fault(f"an item, or the end, of argument stream {number}, which {what}")
        return credit


TAKERS: Final[dict[Kind, Any]] = {
    Result: OneCall.take_result,
    Item: OneCall.take_item,
    Credit: OneCall.take_credit,
    Send: OneCall.take_send,
    Sent: OneCall.take_sent,
    Grant: OneCall.take_grant,
}


def checked_credit(credit: object) -> int:
    if type(credit) is not int or not 0 <= credit <= LARGEST_CREDIT:
        raise Fault(f"a credit that is not an integer of 0 to {LARGEST_CREDIT}")
    return credit


class Session:
    """One conversation, seen from one side.

    ``peer_calls``: how many calls in flight the peer takes. ``peer_size``: bytes of the largest
    frame that it takes. ``calls`` and ``peers``: those in flight that we made, and that the peer
    made.
    """

    def __init__(self) -> None:
        self.state = SideState.NEW
        self.peer_state = SideState.NEW
        self.peer_calls = UNGREETED_CALLS
        self.peer_size = UNGREETED_SIZE
        self.peer_about: dict[str, Any] = {}
        self.calls: dict[int, OneCall] = {}
        self.peers: dict[int, OneCall] = {}
        self.last = 0
        self.peers_last = 0

    def next_id(self) -> int:
        """The id of our next call."""
        return self.last + 1

    @property
    def is_over(self) -> bool:
        """Both have said goodbye, and no call is in flight."""
        both_left = self.state is self.peer_state is SideState.LEFT
        return both_left and not (self.calls or self.peers)

    def sent(self, message: Any) -> bool:
        """We are about to send ``message``; False if it need not be sent any more.

        Raises :exc:`AssertionError` for what we may not send now; nothing has changed then.
        """
        kind = type(message)
        state = SIDE_TABLE[self.state].get(kind)
        if state is None:
            raise our_fault(f"a {kind.__name__} message when we are {self.state.name}")
        try:
            if kind is Call:
                self.last = open_call(self.calls, message, self.last)
            elif kind is Notify:
                check_notification(message)
            elif kind in ABOUT_CALLS and not self._say(message):
                return False
        except Fault as fault:
            raise our_fault(str(fault)) from None
        self.state = state
        return True

    def received(self, message: Message) -> bool:
        """The peer sent ``message``; False if it is to be ignored. Raises :exc:`ProtocolError`."""
        kind = type(message)
        state = SIDE_TABLE[self.peer_state].get(kind)
        if state is None:
            raise at_fault(f"a {kind.__name__} message when it is {self.peer_state.name}")
        try:
            if kind in ABOUT_CALLS:
                return self._hear(message)
            if isinstance(message, Call):
                self.peers_last = open_call(self.peers, message, self.peers_last)
            elif isinstance(message, Unknown):  # a call that we refuse
                self.peers_last = open_call(self.peers, Call(message.id, "?", ()), self.peers_last)
            elif isinstance(message, Notify):
                check_notification(message)
            elif isinstance(message, Hello):
                self._greet(message)
        except Fault as fault:
            raise at_fault(str(fault)) from None
        self.peer_state = state
        return not isinstance(message, Ignored)

    def _say(self, message: Any) -> bool:
        """Ours, about a call: whether it is still of use."""
        ours = type(message) in OF_THE_CALLER
        calls, last = (self.calls, self.last) if ours else (self.peers, self.peers_last)
        call = calls.get(message.id)
        if call is None:
            return unless_late(message, last, TOO_LATE)
        if ours and call.state in CANCELLED:  # a cancel is the last word (C-26)
            return False
        return step(calls, call, message)

    def _hear(self, message: Any) -> bool:
        """The peer's, about a call: whether it is not to be ignored."""
        theirs = type(message) in OF_THE_CALLER
        calls, last = (self.peers, self.peers_last) if theirs else (self.calls, self.last)
        call = calls.get(message.id)
        if call is None:
            return unless_late(message, last, MAY_BE_LATE)
        return step(calls, call, message)

    def _greet(self, hello: Hello) -> None:
        about = dict(hello.about)
        limits = about.get("limits") or {}
        self.peer_calls = limits.get("calls", DEFAULT_CALLS)
        self.peer_size = limits.get("message", LARGEST_SIZE)
        self.peer_about = about


def open_call(calls: dict[int, OneCall], message: Call, last: int) -> int:
    """A call begins; the new last id."""
    if not last < message.id <= LARGEST_ID:
        raise Fault(f"a call of id {message.id} after {last}: ids grow")
    calls[message.id] = OneCall(message)
    return message.id


def step(calls: dict[int, OneCall], call: OneCall, message: Any) -> bool:
    took = call.step(message)
    if call.state is CallState.OVER:
        del calls[message.id]
    return took


def unless_late(message: Any, last: int, may_be: tuple[Kind, ...]) -> bool:
    """False for what crossed the end of its call. Raises `Fault` for all else."""
    if type(message) in may_be and message.id <= last:
        return False
    raise Fault(f"a {type(message).__name__} message of call {message.id}, unknown or over")


def check_notification(message: Notify) -> None:
    if any(type(value) is StreamRef for value in (*message.args, *message.kwargs.values())):
        raise Fault("an argument stream of a notification, which has none (C-33)")


def our_fault(what: str) -> AssertionError:
    return AssertionError(f"we may not send {what}")


def at_fault(what: str) -> ProtocolError:
    return ProtocolError(f"the peer sent {what}: it breaks the protocol of calls; its worker or "
                         "program is at fault, and the connection is closed")  # fmt: skip

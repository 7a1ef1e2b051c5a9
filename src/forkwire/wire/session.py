"""Who may say what when: the state tables of protocol-spec/3-calls.md, and the credit.

Sans-I/O: a front tells what it sends (:meth:`Session.sent`) and what came
(:meth:`Session.received`). What the tables do not allow is a fault: of the peer's, a
:exc:`ProtocolError`; of our own, an :exc:`AssertionError`. One table serves both roles, since a
message's type says whether the caller or the callee sends it.
"""

from __future__ import annotations

from enum import Enum, auto
from typing import Any, Final, TypeAlias

from ..errors import ProtocolError
from .messages import (
    LARGEST_ID,
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
    "CallState",
    "Session",
    "SideState",
]

# Calls in flight that a side takes, if it does not say so itself. Each costs a task or a place in
# a queue, and its arguments.
DEFAULT_CALLS: Final = 1024

# Calls that may be sent before the other side has said how many it takes (C-11).
UNGREETED_CALLS: Final = 64

# What a stream's credit may add up to (C-31): more than anybody reads ahead.
LARGEST_CREDIT: Final = 2**31 - 1


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


class Fault(Exception):
    """What the tables do not allow; whose fault it is, the caller of `step` knows."""


class OneCall:
    """The state of a call, and of the streams in it."""

    __slots__ = ("credit", "state", "streams")

    def __init__(self, call: Call) -> None:
        credit = call.meta.get("credit") if call.meta else None
        self.state = CallState.CALLED if credit is None else CallState.STREAMED
        self.credit = 0 if credit is None else checked_credit(credit)
        # Of each argument that is streamed, the items that may still be sent; None: it ended.
        self.streams: dict[int, int | None] = {}
        for value in (*call.args, *call.kwargs.values()) if call.args or call.kwargs else ():
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

    ``peer_calls``: how many calls in flight the peer takes. ``calls`` and ``peers``: those in
    flight that we made, and that the peer made.
    """

    def __init__(self) -> None:
        self.state = SideState.NEW
        self.peer_state = SideState.NEW
        self.peer_calls = UNGREETED_CALLS
        self.peer_about: dict[str, Any] = {}
        self.calls: dict[int, OneCall] = {}
        self.peers: dict[int, OneCall] = {}
        self.last = 0
        self.peers_last = 0

    def next_id(self) -> int:
        """The id of our next call."""
        return self.last + 1

    def sent(self, message: Any) -> bool:
        """We are about to send ``message``; False if it need not be sent any more.

        Raises :exc:`AssertionError` for what we may not send now.
        """
        kind = type(message)
        state = SIDE_TABLE[self.state].get(kind)
        assert state is not None, f"we may not send {kind.__name__} when {self.state.name}"
        self.state = state
        try:
            if kind is Call:
                self.calls[message.id] = OneCall(message)
                assert message.id > self.last, "ids grow"
                self.last = message.id
            elif kind in ABOUT_CALLS:
                ours = kind in OF_THE_CALLER
                return self._step(self.calls if ours else self.peers, message)
        except Fault as fault:
            raise AssertionError(f"we may not send {fault}") from None
        return True

    def received(self, message: Message) -> bool:
        """The peer sent ``message``; False if it is to be ignored. Raises :exc:`ProtocolError`."""
        kind = type(message)
        state = SIDE_TABLE[self.peer_state].get(kind)
        if state is None:
            raise at_fault(f"a {kind.__name__} message when it is {self.peer_state.name}")
        self.peer_state = state
        try:
            if kind in ABOUT_CALLS:
                theirs = kind in OF_THE_CALLER
                return self._step(self.peers if theirs else self.calls, message)
            if isinstance(message, (Call, Unknown)):
                self._open(message)
            elif isinstance(message, Hello):
                self._greet(message)
        except Fault as fault:
            raise at_fault(str(fault)) from None
        return not isinstance(message, Ignored)

    def _step(self, calls: dict[int, OneCall], message: Any) -> bool:
        call = calls.get(message.id)
        if call is None:
            last = self.last if calls is self.calls else self.peers_last
            if isinstance(message, MAY_BE_LATE) and message.id <= last:
                return False
            raise Fault(f"a {type(message).__name__} message of call {message.id}, unknown or over")
        took = call.step(message)
        if call.state is CallState.OVER:
            del calls[message.id]
        return took

    def _open(self, message: Call | Unknown) -> None:
        """A request begins. One of a type that we do not know is a call that we refuse."""
        if not self.peers_last < message.id <= LARGEST_ID:
            raise Fault(f"a call of id {message.id} after {self.peers_last}: ids grow")
        call = message if isinstance(message, Call) else Call(message.id, "?", ())
        self.peers[message.id] = OneCall(call)
        self.peers_last = message.id

    def _greet(self, hello: Hello) -> None:
        about = dict(hello.about)
        limits = about.get("limits")
        calls = limits.get("calls") if type(limits) is dict else None
        self.peer_calls = (
            calls if type(calls) is int and 0 <= calls <= LARGEST_ID else DEFAULT_CALLS
        )
        self.peer_about = about


def at_fault(what: str) -> ProtocolError:
    return ProtocolError(f"the peer sent {what}: it breaks the protocol of calls; its worker or "
                         "program is at fault, and the connection is closed")  # fmt: skip

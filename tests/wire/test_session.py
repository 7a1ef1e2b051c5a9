"""Who may say what when: the tables of sessions, their ids, their credit, and what comes late."""

from __future__ import annotations

import subprocess
import sys
from typing import Any, Final, get_args

import pytest

from forkwire.errors import ProtocolError
from forkwire.wire.messages import (
    CALLEE_MESSAGES,
    CALLER_MESSAGES,
    LARGEST_CREDIT,
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
from forkwire.wire.session import (
    CALL_TABLE,
    DEFAULT_CALLS,
    SIDE_TABLE,
    UNGREETED_CALLS,
    UNGREETED_SIZE,
    CallState,
    Session,
    SideState,
)

HELLO: Final = Hello({"protocol": [1]})
NO: Final = {"code": -32000, "message": "no"}


def about_call(number: int = 1, stream: int = 0) -> dict[type[Any], Any]:
    """One of each message about a call."""
    return {
        Result: Result(number, None),
        Error: Error(number, NO),
        Cancel: Cancel(number),
        Item: Item(number, "item"),
        Credit: Credit(number, 1),
        Progress: Progress(number, 1, 2, ""),
        Send: Send(number, stream, "item"),
        Sent: Sent(number, stream, None),
        Grant: Grant(number, stream, 1),
    }


def at_any_time() -> dict[type[Any], Any]:
    """One of each other message but the greeting, which asks for nothing."""
    return {
        Log: Log({}),
        Ping: Ping(1),
        Pong: Pong(1),
        Attach: Attach([1]),
        Goodbye: Goodbye(None),
        Notify: Notify("f", []),
        Call: Call(1, "f", []),
    }


class Pair:
    """Two sessions that hear each other at once."""

    def __init__(self, *, greeted: bool = True) -> None:
        self.caller, self.callee = Session(), Session()
        if greeted:
            self.say(self.caller, HELLO)
            self.say(self.callee, HELLO)

    def other(self, side: Session) -> Session:
        return self.callee if side is self.caller else self.caller

    def say(self, side: Session, message: Message) -> bool:
        """Send ``message`` from ``side``; whether the other one has to act on it."""
        return side.sent(message) and self.other(side).received(message)

    def call(self, meta: dict[str, Any] | None = None, *args: object) -> None:
        self.say(self.caller, Call(1, "f", list(args), {}, meta or {}))

    def speaker(self, kind: type[Any]) -> Session:
        """Whose message about a call of the caller's this is."""
        return self.caller if kind in CALLER_MESSAGES else self.callee

    def states(self) -> tuple[CallState, CallState]:
        """Of call 1, as each side has it."""
        ours, theirs = self.caller.calls.get(1), self.callee.peers.get(1)
        over = CallState.OVER
        return ours.state if ours else over, theirs.state if theirs else over


def in_state(state: CallState) -> Pair:
    """A pair with call 1 in ``state``, which has an argument stream with credit."""
    pair = Pair()
    streamed = state in (CallState.STREAMED, CallState.DRAINING)
    pair.call({"credit": 5} if streamed else {}, StreamRef(0))
    pair.say(pair.callee, Grant(1, 0, 5))
    if state in (CallState.STOPPING, CallState.DRAINING):
        pair.say(pair.caller, Cancel(1))
    if state is CallState.OVER:
        pair.say(pair.callee, Result(1, None))
    return pair


# -- the tables -----------------------------------------------------------------------------------


def test_the_tables_are_complete() -> None:
    """Each state has a row, and each message that is there is a message."""
    known = set(get_args(Message))
    assert set(SIDE_TABLE) == set(SideState)
    assert set(CALL_TABLE) == set(CallState) - {CallState.OVER}
    for side_row in SIDE_TABLE.values():
        assert set(side_row) <= known
    for row in CALL_TABLE.values():
        assert set(row) <= {*CALLER_MESSAGES, *CALLEE_MESSAGES}
    assert known == {
        *(kind for row in SIDE_TABLE.values() for kind in row),
    }


@pytest.mark.parametrize("kind", about_call())
@pytest.mark.parametrize("state", CALL_TABLE)
def test_every_message_in_every_state_of_a_call(state: CallState, kind: type[Any]) -> None:
    """What the table has is taken and changes both copies alike; all else is the sender's fault."""
    pair = in_state(state)
    speaker = pair.speaker(kind)
    after = CALL_TABLE[state].get(kind)
    message = about_call()[kind]
    if after is not None:
        assert pair.say(speaker, message)
        assert pair.states() == (after, after)
        return
    with pytest.raises(ProtocolError, match=state.name):
        pair.other(speaker).received(message)
    assert pair.states() == (state, state)
    if kind in CALLER_MESSAGES and state in (CallState.STOPPING, CallState.DRAINING):
        assert not speaker.sent(message), "a cancel is the last word (C-26)"
    else:
        with pytest.raises(AssertionError, match="we may not send"):
            speaker.sent(message)


@pytest.mark.parametrize("kind", about_call())
def test_every_message_about_a_call_that_is_over(kind: type[Any]) -> None:
    """What may have crossed the end is ignored; all else is a fault (C-15)."""
    pair = in_state(CallState.OVER)
    speaker = pair.speaker(kind)
    message = about_call()[kind]
    if kind in (Cancel, Credit, Send, Sent, Grant):
        assert not pair.other(speaker).received(message)
        assert not speaker.sent(message), "it need not be said any more"
        return
    with pytest.raises(ProtocolError, match="unknown or over"):
        pair.other(speaker).received(message)
    if kind is Progress:
        assert not speaker.sent(message), "a thread may not know yet that its call is over"
    else:
        with pytest.raises(AssertionError):
            speaker.sent(message)


@pytest.mark.parametrize("kind", about_call())
def test_every_message_about_a_call_that_never_was(kind: type[Any]) -> None:
    """It is a fault, whatever it is (C-15)."""
    pair = Pair()
    speaker = pair.speaker(kind)
    message = about_call(7)[kind]
    with pytest.raises(ProtocolError, match="call 7, unknown"):
        pair.other(speaker).received(message)
    with pytest.raises(AssertionError, match="call 7, unknown"):
        speaker.sent(message)


@pytest.mark.parametrize("kind", [*about_call(), *at_any_time()])
def test_before_the_greeting(kind: type[Any]) -> None:
    """Nothing may be said but the greeting, and a goodbye (C-5)."""
    pair = Pair(greeted=False)
    message = {**about_call(), **at_any_time()}[kind]
    if kind is Goodbye:
        assert pair.say(pair.caller, message)
        assert pair.caller.state is pair.callee.peer_state is SideState.LEFT
        return
    with pytest.raises(AssertionError, match="NEW"):
        pair.caller.sent(message)
    with pytest.raises(ProtocolError, match="NEW"):
        pair.callee.received(message)


@pytest.mark.parametrize("kind", at_any_time())
def test_after_the_goodbye(kind: type[Any]) -> None:
    """No new calls, no second goodbye; all else goes on (C-44)."""
    pair = Pair()
    pair.say(pair.caller, Goodbye(None))
    message = at_any_time()[kind]
    if kind in (Call, Notify, Goodbye):
        with pytest.raises(AssertionError, match="LEFT"):
            pair.caller.sent(message)
        with pytest.raises(ProtocolError, match="LEFT"):
            pair.callee.received(message)
    else:
        assert pair.say(pair.caller, message)
        assert pair.callee.peer_state is SideState.LEFT


def test_the_other_side_may_call_until_it_left_too() -> None:
    """A goodbye is each side's own: a call that crosses it is no fault, and is answered."""
    pair = Pair()
    pair.say(pair.caller, Goodbye(None))
    pair.say(pair.callee, Call(1, "f", []))
    pair.say(pair.callee, Goodbye(None))
    assert not pair.caller.is_over
    pair.say(pair.caller, Error(1, NO))
    assert pair.caller.is_over
    assert pair.callee.is_over


def test_calls_in_flight_end_after_goodbyes() -> None:
    """When both have left, the session is over with the last call (C-45)."""
    pair = Pair()
    pair.call({"credit": 1})
    pair.say(pair.caller, Goodbye(None))
    pair.say(pair.callee, Goodbye(None))
    pair.say(pair.callee, Item(1, 0))
    pair.say(pair.caller, Credit(1, 1))
    assert not pair.callee.is_over
    pair.say(pair.callee, Result(1, None))
    assert pair.callee.is_over
    assert pair.caller.is_over


def test_a_second_greeting() -> None:
    """It is a fault (C-5)."""
    pair = Pair()
    with pytest.raises(ProtocolError, match="Hello"):
        pair.callee.received(HELLO)
    with pytest.raises(AssertionError):
        pair.caller.sent(HELLO)


# -- limits ---------------------------------------------------------------------------------------


def test_what_a_peer_takes() -> None:
    """Little before its greeting, the defaults after it, or what it says (C-8 to C-11)."""
    session = Session()
    assert (session.peer_calls, session.peer_size) == (UNGREETED_CALLS, UNGREETED_SIZE)
    session.received(HELLO)
    assert (session.peer_calls, session.peer_size) == (DEFAULT_CALLS, 2**31 - 1)
    session = Session()
    session.received(Hello({"protocol": [1], "limits": {"message": 0, "calls": 0}}))
    assert (session.peer_calls, session.peer_size) == (0, 0)
    assert session.peer_about["protocol"] == [1]


# -- ids ------------------------------------------------------------------------------------------


def test_ids_grow() -> None:
    """Each side has its own count, with gaps if it likes; an id is never used again (C-12)."""
    pair = Pair()
    for number in (1, 2, 100, LARGEST_ID):
        pair.say(pair.caller, Call(number, "f", []))
        assert pair.caller.next_id() == number + 1
    pair.say(pair.callee, Call(1, "f", []))
    assert pair.callee.next_id() == 2
    for number in (1, 99, 100, LARGEST_ID, LARGEST_ID + 1):
        with pytest.raises(ProtocolError, match="ids grow"):
            pair.callee.received(Call(number, "f", []))
        with pytest.raises(AssertionError, match="ids grow"):
            pair.caller.sent(Call(number, "f", []))


def test_a_request_of_a_later_version_is_a_call_that_is_refused() -> None:
    """Its id is of the count of calls, and it is answered as one (C-41)."""
    pair = Pair()
    assert pair.callee.received(Unknown(25, 1))
    with pytest.raises(ProtocolError, match="ids grow"):
        pair.callee.received(Call(1, "f", []))
    assert pair.callee.sent(Error(1, NO))
    with pytest.raises(ProtocolError, match="ids grow"):
        pair.callee.received(Unknown(25, 1))


def test_one_way_messages_of_later_versions() -> None:
    """They ask for nothing."""
    pair = Pair()
    assert not pair.callee.received(Ignored(17))
    with pytest.raises(ProtocolError):
        Pair(greeted=False).callee.received(Ignored(17))


# -- credit ---------------------------------------------------------------------------------------


def test_items_need_credit() -> None:
    """Each takes one; beyond that it is a fault (C-29)."""
    pair = Pair()
    pair.call({"credit": 0})
    for _ in range(2):
        with pytest.raises(AssertionError, match="credit"):
            pair.callee.sent(Item(1, 0))
        with pytest.raises(ProtocolError, match="credit"):
            pair.caller.received(Item(1, 0))
        pair.say(pair.caller, Credit(1, 1))
        assert pair.say(pair.callee, Item(1, 0))


def test_credit_does_not_add_up_without_end() -> None:
    """Beyond 2**31 - 1 unused it is a fault (C-31)."""
    pair = Pair()
    pair.call({"credit": LARGEST_CREDIT})
    with pytest.raises(ProtocolError, match="credit"):
        pair.callee.received(Credit(1, 1))
    pair.say(pair.callee, Item(1, 0))
    assert pair.say(pair.caller, Credit(1, 1))


@pytest.mark.parametrize("credit", [-1, 2**31, "1", None, True, 1.0])
def test_wrong_credit_of_a_call(credit: object) -> None:
    """A call with it is a fault, and does not begin."""
    pair = Pair()
    call = Call(1, "f", [], {}, {"credit": credit})
    with pytest.raises(ProtocolError, match="credit"):
        pair.callee.received(call)
    with pytest.raises(AssertionError, match="credit"):
        pair.caller.sent(call)
    assert not pair.caller.calls
    assert not pair.callee.peers


def test_the_end_of_a_stream_has_no_value() -> None:
    """A result with one is a fault (C-30), also after a cancel; of a plain call it is anything."""
    for cancelled in (False, True):
        pair = Pair()
        pair.call({"credit": 1})
        if cancelled:
            pair.say(pair.caller, Cancel(1))
        with pytest.raises(ProtocolError, match="value"):
            pair.caller.received(Result(1, 0))
        assert pair.say(pair.callee, Result(1, None))
    pair = Pair()
    pair.call()
    assert pair.say(pair.callee, Result(1, 0))


# -- argument streams -----------------------------------------------------------------------------


def test_argument_streams_need_credit() -> None:
    """They have none at first; each is counted by itself (C-34)."""
    pair = Pair()
    pair.say(pair.caller, Call(1, "f", [StreamRef(5)], {"x": StreamRef(9)}))
    pair.say(pair.callee, Grant(1, 5, 1))
    assert pair.say(pair.caller, Send(1, 5, 0))
    for stream in (5, 9):
        with pytest.raises(ProtocolError, match="credit"):
            pair.callee.received(Send(1, stream, 0))
        with pytest.raises(AssertionError, match="credit"):
            pair.caller.sent(Send(1, stream, 0))
    pair.say(pair.callee, Grant(1, 9, LARGEST_CREDIT))
    with pytest.raises(ProtocolError, match="credit"):
        pair.caller.received(Grant(1, 9, 1))


def test_the_end_of_an_argument_stream() -> None:
    """Nothing comes after it; a grant that crossed it is ignored (C-35)."""
    pair = Pair()
    pair.call({}, StreamRef(0))
    pair.say(pair.callee, Grant(1, 0, 5))
    assert pair.say(pair.caller, Sent(1, 0, None))
    for message in (Send(1, 0, 0), Sent(1, 0, None)):
        with pytest.raises(ProtocolError, match="has ended"):
            pair.callee.received(message)
        with pytest.raises(AssertionError, match="has ended"):
            pair.caller.sent(message)
    assert not pair.caller.received(Grant(1, 0, 1))
    assert not pair.callee.sent(Grant(1, 0, 1)), "it need not be said"


def test_a_grant_of_nothing() -> None:
    """Zero is told to the caller, and changes no credit (C-36)."""
    pair = Pair()
    pair.call({}, StreamRef(0))
    pair.say(pair.callee, Grant(1, 0, 1))
    assert pair.say(pair.callee, Grant(1, 0, 0))
    assert pair.say(pair.caller, Send(1, 0, "was under way"))


@pytest.mark.parametrize("message", [Send(1, 3, 0), Sent(1, 3, None), Grant(1, 3, 1)])
def test_an_argument_stream_that_is_not_there(message: Any) -> None:
    """Whatever is said about it is a fault (C-34)."""
    pair = Pair()
    pair.call({}, StreamRef(0))
    speaker = pair.speaker(type(message))
    with pytest.raises(ProtocolError, match="does not have"):
        pair.other(speaker).received(message)


def test_an_argument_stream_twice() -> None:
    """Two of a call have different numbers (C-33)."""
    call = Call(1, "f", [StreamRef(0)], {"x": StreamRef(0)})
    with pytest.raises(ProtocolError, match="twice"):
        Pair().callee.received(call)


def test_argument_streams_of_a_notification() -> None:
    """There are none, since nothing can be granted (C-33)."""
    message = Notify("f", [], {"x": StreamRef(0)})
    pair = Pair()
    with pytest.raises(ProtocolError, match="notification"):
        pair.callee.received(message)
    with pytest.raises(AssertionError, match="notification"):
        pair.caller.sent(message)


# -- faults of our own ----------------------------------------------------------------------------


def test_a_fault_of_ours_changes_nothing() -> None:
    """What may not be sent was not sent: the session goes on."""
    pair = Pair()
    for message in (Call(0, "f", []), Call(1, "f", [StreamRef(0), StreamRef(0)]), Result(1, 0)):
        with pytest.raises(AssertionError):
            pair.caller.sent(message)
    assert pair.caller.next_id() == 1
    assert not pair.caller.calls
    pair.call()


def test_faults_of_ours_are_raised_without_assertions_too() -> None:
    """With ``python -O`` as well."""
    program = (
        "from forkwire.wire.session import Session\n"
        "from forkwire.wire.messages import Ping\n"
        "try: Session().sent(Ping(1))\n"
        "except AssertionError: print('raised')"
    )
    done = subprocess.run([sys.executable, "-O", "-c", program], capture_output=True, check=True)
    assert done.stdout == b"raised\n"

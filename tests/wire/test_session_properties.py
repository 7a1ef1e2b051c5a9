"""Two sessions talk, with messages under way between them, in any order that is allowed."""

from __future__ import annotations

import copy
from collections import deque
from typing import Any, Final

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)

from forkwire.errors import ProtocolError
from forkwire.wire.messages import (
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
)
from forkwire.wire.session import OneCall, Session, SideState

NO: Final = {"code": -32000, "message": "no"}

ids = st.integers(1, 6)
streams = st.integers(0, 2)
values = st.sampled_from([None, 1])
credits_ = st.sampled_from([1, 2, 2**31 - 1])
arguments = st.lists(streams.map(StreamRef) | values, max_size=3)
metas: st.SearchStrategy[dict[str, Any]] = st.just({}) | st.builds(
    lambda n: {"credit": n}, st.sampled_from([0, 1, 3, 2**31 - 1])
)

about_calls = (
    st.builds(Result, ids, values)
    | st.builds(Error, ids, st.just(NO))
    | st.builds(Cancel, ids)
    | st.builds(Item, ids, values)
    | st.builds(Credit, ids, credits_)
    | st.builds(Progress, ids, st.just(1), st.none(), st.just(""))
    | st.builds(Send, ids, streams, values)
    | st.builds(Sent, ids, streams, st.none())
    | st.builds(Grant, ids, streams, st.just(0) | credits_)
)
calls = st.builds(Call, ids, st.just("f"), arguments, st.just({}), metas)
others = st.one_of(
    st.builds(Notify, st.just("f"), arguments),
    st.just(Hello({"protocol": [1]})),
    st.just(Goodbye(None)),
    st.just(Log({})),
    st.just(Ping(1)),
    st.just(Pong(1)),
    st.just(Attach([1])),
)
everything = about_calls | about_calls | about_calls | calls | others


class Talk(RuleBasedStateMachine):
    """What may be said is no fault when it arrives; what may not be said is one."""

    def __init__(self) -> None:
        super().__init__()
        self.sides = (Session(), Session())
        self.wires: tuple[deque[Message], deque[Message]] = (deque(), deque())  # by the sender

    @initialize(side=st.integers(0, 1))
    def greet(self, side: int) -> None:
        """Most talks begin like this; the other side may greet later, or never."""
        self.say(side, Hello({"protocol": [1]}))

    def say(self, side: int, message: Any) -> None:
        if self.sides[side].sent(message):
            self.wires[side].append(message)

    @rule(side=st.integers(0, 1), message=everything)
    def anything(self, side: int, message: Any) -> None:
        """A message that may or may not be allowed."""
        before = copy.deepcopy(vars(self.sides[side]))
        try:
            self.say(side, message)
        except AssertionError:
            assert_same(before, vars(self.sides[side]))
            if self.quiet:
                listener = copy.deepcopy(self.sides[1 - side])
                with pytest.raises(ProtocolError):
                    listener.received(message)

    @rule(side=st.integers(0, 1), args=arguments, meta=metas)
    def call(self, side: int, args: list[object], meta: dict[str, Any]) -> None:
        """The next call, which the state of the side may forbid."""
        if len({repr(value) for value in args if isinstance(value, StreamRef)}) == len(args):
            message = Call(self.sides[side].next_id(), "f", args, {}, meta)
            if self.sides[side].state is SideState.OPEN:
                self.say(side, message)

    @precondition(lambda self: any(side.calls for side in self.sides))
    @rule(data=st.data())
    def something_about_a_call(self, data: st.DataObject) -> None:
        """Of a call that is in flight, from either side; refused by our own session or not."""
        caller = data.draw(st.sampled_from([n for n in (0, 1) if self.sides[n].calls]))
        number = data.draw(st.sampled_from(sorted(self.sides[caller].calls)))
        message = data.draw(about_calls)
        message.id = number
        ours = isinstance(message, Cancel | Credit | Send | Sent)
        self.anything(caller if ours else 1 - caller, message)

    @rule(side=st.integers(0, 1), number=st.integers(1, 6))
    def request_of_a_later_version(self, side: int, number: int) -> None:
        """It takes an id, is refused, and is over."""
        listener = copy.deepcopy(self.sides[1 - side])
        if self.quiet and listener.peer_state is not SideState.NEW:
            if number > listener.peers_last:
                assert listener.received(Unknown(25, number))
                assert number in listener.peers
            else:
                with pytest.raises(ProtocolError):
                    listener.received(Unknown(25, number))

    @rule(side=st.integers(0, 1), count=st.integers(1, 10))
    def arrive(self, side: int, count: int) -> None:
        """Some of what is under way; it is never a fault."""
        for _ in range(min(count, len(self.wires[side]))):
            self.sides[1 - side].received(self.wires[side].popleft())

    @property
    def quiet(self) -> bool:
        """Whether nothing is under way."""
        return not any(self.wires)

    @invariant()
    def both_know_the_same(self) -> None:
        """As soon as nothing is under way."""
        if self.quiet:
            for one, other in (self.sides, self.sides[::-1]):
                assert one.state is other.peer_state
                assert one.last == other.peers_last
                assert of(one.calls) == of(other.peers)

    @invariant()
    def nothing_is_kept_of_what_is_over(self) -> None:
        """Whatever was said, only calls in flight take memory."""
        for side in self.sides:
            assert max(side.calls, default=0) <= side.last
            assert max(side.peers, default=0) <= side.peers_last

    def teardown(self) -> None:
        """All that is under way arrives, and is no fault."""
        while not self.quiet:
            for side in (0, 1):
                self.arrive(side, 1)
        self.both_know_the_same()


def of(table: dict[int, OneCall]) -> dict[int, Any]:
    return {number: (call.state, call.credit, call.streams) for number, call in table.items()}


def assert_same(before: dict[str, Any], after: dict[str, Any]) -> None:
    """A message that was refused changed nothing."""
    for name, value in before.items():
        if name in ("calls", "peers"):
            assert of(value) == of(after[name])
        else:
            assert value == after[name]


TestTalk = Talk.TestCase
TestTalk.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)

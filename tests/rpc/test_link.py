"""Links: what one says and the other hears, limits, floods, and how it ends."""

from __future__ import annotations

import gc
import logging
import math
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, Final

import pytest

from forkwire.errors import (
    CallCancelledError,
    MethodNotFoundError,
    ProcessWorkerIPCError,
    ProtocolError,
    RemoteError,
    TooManyCallsError,
    ValueEncodeError,
    WorkerClosedError,
)
from forkwire.rpc.data import codec
from forkwire.rpc.links.link import InCall, Limits, Link
from forkwire.wire.messages import Credit, Grant, Item, Log, Progress, Send, Sent, StreamRef

from .support_links import HELLO, Pair, Scripted, memory_below, resident, until

MIB: Final = 2**20
LARGE: Final = 2**21  # more than a pipe takes


@pytest.fixture
def pair() -> Iterator[Pair]:
    pair = Pair()
    yield pair
    pair.close()


@pytest.fixture
def peer() -> Iterator[Scripted]:
    peer = Scripted()
    yield peer
    peer.close()


def fault_of(peer: Scripted) -> ProcessWorkerIPCError:
    """How the link ended; it has to be by a fault."""
    assert len(peer.side.ends) == 1
    error = peer.side.ends[0]
    assert error is not None
    return error


# -- calls ----------------------------------------------------------------------------------------


def test_a_call_and_its_result(pair: Pair) -> None:
    """The arguments arrive, then the result."""
    call = pair.one.call("add", 1, [2], tree="t")
    assert not call.ended
    pair.pump()
    (came,) = pair.other.came
    assert (came.method, came.values, came.tree, came.deadline) == ("add", [1, [2]], "t", math.inf)
    pair.other.link.reply(came, 3)
    pair.pump()
    assert call.result() == 3
    assert not pair.one.link.calls
    assert not pair.other.link.peers
    assert pair.one.link.session.peer_about["name"] == "other"


def test_a_call_and_its_error(pair: Pair) -> None:
    """What a handler raised is raised here."""
    call = pair.one.call("f")
    pair.pump()
    pair.other.came[0].begun = True
    pair.other.link.reply_error(pair.other.came[0], ValueError("no"))
    pair.pump()
    with pytest.raises(ValueError, match="no") as caught:
        call.result()
    assert isinstance(caught.value, RemoteError)


def test_both_directions_at_once(pair: Pair) -> None:
    """Each side's ids are its own, and answers come in any order."""
    ours = [pair.one.call("f", n) for n in range(50)]
    theirs = [pair.other.call("g", n) for n in range(50)]
    pair.pump()
    for side in (pair.one, pair.other):
        for call in reversed(side.came):
            side.link.reply(call, call.values[0])
    pair.pump()
    assert [call.result() for call in ours] == [call.result() for call in theirs] == [*range(50)]


def test_only_the_first_answer_counts(pair: Pair) -> None:
    """A second one is not sent."""
    call = pair.one.call("f")
    pair.pump()
    for value in (1, 2):
        pair.other.link.reply(pair.other.came[0], value)
    pair.other.link.reply_error(pair.other.came[0], ValueError())
    pair.pump()
    assert call.result() == 1
    assert pair.one.ends == []


def test_a_side_that_offers_nothing(pair: Pair) -> None:
    """It says so."""
    pair.other.link.accept = pair.other.link.refuse
    call = pair.one.call("f")
    pair.pump()
    with pytest.raises(MethodNotFoundError, match="offers nothing"):
        call.result()


def test_a_value_that_cannot_be_sent(pair: Pair) -> None:
    """A call with it is not made; a result is an error; the session goes on (C-19)."""
    with pytest.raises(ValueEncodeError):
        pair.one.call("f", object())
    assert not pair.one.link.calls
    call = pair.one.call("f")
    pair.pump()
    pair.other.link.reply(pair.other.came[0], object())
    pair.pump()
    with pytest.raises(ValueEncodeError):
        call.result()
    call = pair.one.call("f")
    assert call.id == 2


def test_an_item_that_cannot_be_sent(pair: Pair) -> None:
    """It is raised where it was yielded, and is what the stream ends with, whatever follows."""
    call = pair.one.call("f", credit=3)
    pair.pump()
    came = pair.other.came[0]
    pair.other.link.item(came, 0)
    with pytest.raises(ValueEncodeError):
        pair.other.link.item(came, object())
    pair.other.link.reply_error(came, RuntimeError("of the clean-up"))
    pair.pump()
    assert list(call.items) == [0]
    with pytest.raises(ValueEncodeError):
        call.result()


@pytest.mark.parametrize(
    ("timeout", "left"),
    [(1e300, math.inf), (10**400, math.inf), (-(10**400), 0), (-1, 0), (math.nan, 0), (5, 5)],
)
def test_deadlines(peer: Scripted, timeout: float, left: float) -> None:
    """Any number is one (C-28)."""
    peer.say([1, 1, "f", [], {}, {"timeout": timeout}])
    came = peer.side.came[0].deadline - time.monotonic()
    assert came == left or abs(came - left) < 1 or (left == math.inf and came > 1e299)


# -- streams --------------------------------------------------------------------------------------


def test_a_stream(pair: Pair) -> None:
    """Items come by credit, then the end."""
    call = pair.one.call("count", credit=2)
    pair.pump()
    came = pair.other.came[0]
    credits_: list[int | None] = []
    came.on_credit = lambda: credits_.append(came.credit)
    for n in range(2):
        pair.other.link.item(came, n)
    assert came.credit == 0
    pair.one.link.send(Credit(1, 3))
    pair.pump()
    assert credits_ == [3]
    pair.other.link.item(came, 2)
    pair.other.link.reply(came, None)
    pair.pump()
    assert list(call.items) == [0, 1, 2]
    assert call.ended
    assert call.ready


def test_an_argument_stream(pair: Pair) -> None:
    """Items come as they are granted, then the end; what crosses the call's end is dropped."""
    call = pair.one.call("total", StreamRef(0))
    granted: list[int] = []
    call.on_grant[0] = granted.append
    pair.pump()
    came = pair.other.came[0]
    pair.other.link.send(Grant(1, 0, 2))
    pair.pump()
    assert granted == [2]
    pair.one.link.send(Send(1, 0, "a"))
    pair.one.link.send(Sent(1, 0, None))
    pair.pump()
    assert list(came.arguments[0].items) == ["a"]
    assert came.arguments[0].ended
    assert not pair.other.link.send(Grant(1, 0, 2))
    pair.other.link.reply(came, 1)
    assert not pair.other.link.send(Progress(1, 1, None, "")), "it is over: nobody wants to know"
    pair.pump()
    assert not pair.one.link.send(Send(1, 0, "b"))
    assert call.result() == 1


def test_a_cancel_ends_what_comes(pair: Pair) -> None:
    """The callee hears of it once; its arguments end; items after it are let go of."""
    call = pair.one.call("f", StreamRef(0))
    pair.pump()
    came = pair.other.came[0]
    heard: list[int] = []
    came.on_cancel = lambda: heard.append(1)
    pair.other.link.send(Grant(1, 0, 5))
    pair.pump()
    pair.one.link.send(Send(1, 0, "a"))
    pair.one.link.cancel(call)
    pair.one.link.cancel(call)
    assert not pair.one.link.send(Send(1, 0, "b")), "a cancel is the last word"
    assert not pair.one.link.send(Sent(1, 0, None))
    pair.pump()
    assert heard == [1]
    assert came.cancelled
    assert came.arguments[0].ended
    pair.other.link.reply_error(came, CallCancelledError("stopped"))
    pair.pump()
    with pytest.raises(CallCancelledError):
        call.result()
    assert pair.one.ends == pair.other.ends == []


def test_progress_is_kept_within_bounds(pair: Pair) -> None:
    """Of reports that nobody takes the last ones are kept."""
    call = pair.one.call("f", progress=True)
    pair.pump()
    for n in range(1000):
        pair.other.link.send(Progress(1, n, 1000, ""))
    pair.pump()
    assert [report.done for report in call.progress][-1] == 999
    assert len(call.progress) == 64


def test_credit_and_items_in_two_threads(pair: Pair) -> None:
    """None is lost or made: a thread sends as long as there is credit, another one adds it."""
    call = pair.one.call("count", credit=20)
    pair.pump()
    came = pair.other.came[0]
    total = 300
    over = threading.Event()

    def yield_items() -> None:
        sent = 0
        while sent < total and not over.is_set():
            if came.credit:
                pair.other.link.item(came, sent)
                sent += 1

    thread = threading.Thread(target=yield_items)
    thread.start()
    taken = 0
    try:
        while taken < total:
            pair.pump()
            while call.items:
                assert call.items.popleft() == taken
                taken += 1
                pair.one.link.send(Credit(1, 1))
    finally:
        over.set()
        thread.join()
    assert pair.one.ends == pair.other.ends == []


# -- attachments ----------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [16384, LARGE])
def test_large_bytes(pair: Pair, size: int) -> None:
    """They travel as attachments in all that carries values, and arrive as they were."""
    data = [os.urandom(size), b"", bytearray(os.urandom(size)), memoryview(os.urandom(size))]
    call = pair.one.call("f", *data, credit=5)
    pair.pump()
    (came,) = pair.other.came
    assert came.values == data
    pair.other.link.item(came, {"x": data[0]})
    pair.other.link.item(came, data)
    pair.pump()
    assert list(call.items) == [{"x": data[0]}, data]


def test_many_attachments(pair: Pair) -> None:
    """4096 are the most that a message can have."""
    part = bytes(16384)
    call = pair.one.call("f", [part] * 4096)
    pair.pump()
    assert len(pair.other.came[0].values[0]) == 4096
    with pytest.raises(ValueEncodeError, match="4096"):
        pair.one.call("f", [part] * 4097)
    assert not call.ended


@pytest.mark.parametrize(
    ("arrays", "what"),
    [
        ([[13, [3]], b"ab"], "3 bytes"),
        ([[13, [3]], b"abcd"], "3 bytes"),
        ([[13, [0]], b"", [10, 1]], "attachments"),
        ([[13, [0]], b"", [13, [0]]], "attachments"),
        ([[13, [0]], b"", [17]], "attachments"),
        ([[13, [0]], b"", [25, 1]], "attachments"),
        ([[13, [0]], b"", [5, 1]], "attachments"),
        ([[13, [2**40]]], "above the limit"),
        ([[13, [MIB, 1]]], "above the limit"),
        ([[13, []]], "sizes"),
        ([[13, [0] * 5000]], "sizes"),
        ([[13, [1]], b"x", [1, 1, "f", []]], "attachment"),
    ],
)
def test_misuse_of_attachments(arrays: list[Any], what: str) -> None:
    """Each is a fault that is named (C-20 to C-23)."""
    peer = Scripted(Limits(MIB))
    for array in arrays:
        if isinstance(array, bytes):
            peer.frame(array)
        else:
            peer.say(array)
    assert what in str(fault_of(peer))
    peer.close()


def test_attachments_are_not_allocated_before_they_come() -> None:
    """Announcing a gigabyte in every way costs no memory, but addresses."""
    peer = Scripted()
    before = resident()
    peer.say([13, [2**30]])
    peer.write((2**30).to_bytes(4, sys.byteorder) + b"begun")
    assert resident() < before + 16 * MIB
    assert not peer.link.ended
    peer.close()


@pytest.mark.parametrize(
    "array",
    [
        [1, 1, "f", [[StreamRef(0)]]],
        [1, 1, "f", [], {"x": {"y": StreamRef(0)}}],
        [1, 1, "f", [StreamRef(0)], {}, {"context": {"x": StreamRef(0)}}],
        [2, "f", [StreamRef(0)]],
        [9, {"x": [StreamRef(0)]}],
        [12, {"code": 0, "message": "", "data": {"x": StreamRef(0)}}],
    ],
)
def test_argument_streams_where_there_are_none(array: list[Any], peer: Scripted) -> None:
    """An argument stream is an argument of a call, and nothing else (C-33)."""
    peer.say(array)
    assert "argument stream" in str(fault_of(peer))


def test_bytes_that_look_like_an_argument_stream(peer: Scripted) -> None:
    """They are bytes."""
    peer.say([1, 1, "f", [b"FK\0\2", "FK\0\2", {"x": [b"FK\0\2"]}]])
    assert len(peer.side.came) == 1


# -- limits ---------------------------------------------------------------------------------------


def test_messages_above_the_peers_limit() -> None:
    """They are not sent: a call, an item; of a result an error is (C-8, C-19)."""
    pair = Pair(one=Limits(10_000), other=Limits(10_000))
    for large in ("x" * 10_000, b"x" * 20_000, [b"x" * 9_000] * 2):
        with pytest.raises(ValueEncodeError, match="10000"):
            pair.one.call("f", large)
        call = pair.one.call("f", credit=1)
        pair.pump()
        with pytest.raises(ValueEncodeError, match="10000"):
            pair.other.link.item(pair.other.came[-1], large)
        pair.other.link.reply(pair.other.came[-1], None)
        call = pair.one.call("f")
        pair.pump()
        pair.other.link.reply(pair.other.came[-1], large)
        pair.pump()
        with pytest.raises(ValueEncodeError, match="10000"):
            call.result()
    pair.close()


def test_attachments_together_above_the_peers_limit() -> None:
    """Together they count (C-22)."""
    pair = Pair(other=Limits(50_000))
    with pytest.raises(ValueEncodeError, match="60000"):
        pair.one.call("f", [b"x" * 20_000] * 3)
    call = pair.one.call("f", [b"x" * 20_000] * 2)
    pair.pump()
    assert len(pair.other.came) == 1
    assert not call.ended
    pair.close()


def test_nothing_large_before_the_greeting_came() -> None:
    """1 MiB is what every peer takes (C-8)."""
    pair = Pair(greet=False)
    pair.one.link.hello({})
    with pytest.raises(ValueEncodeError, match=str(MIB)):
        pair.one.call("f", "x" * MIB)
    pair.one.call("f", "x" * (MIB - 100))
    pair.other.link.hello({})
    until(lambda: bool(pair.other.came), pair.pump)
    pair.one.call("f", "x" * MIB)
    pair.close()


@pytest.mark.parametrize("limit", [0, 10, 40])
def test_a_peer_that_takes_tiny_messages_only(limit: int) -> None:
    """Errors are made as small as they can be; the session goes on if there is no way."""
    peer = Scripted(greet=False)
    peer.link.hello({})
    peer.say([0, {"protocol": [1], "limits": {"message": limit}}], [1, 1, "f", []])
    peer.heard()
    peer.link.reply(peer.side.came[0], "x" * 100)
    assert peer.heard() == ([[4, 1, {"code": -32603, "message": ""}]] if limit == 40 else [])
    assert not peer.link.peers
    peer.say([9, {}])
    assert peer.side.logged == [{}]
    peer.close()


def test_calls_above_our_limit() -> None:
    """They are refused and nothing is run; when there is room again they are taken (C-9)."""
    peer = Scripted(Limits(calls=2))
    peer.say(*[[1, number, "f", []] for number in range(1, 6)])
    assert [(answer[1], answer[2]["code"]) for answer in peer.heard()] == [
        (3, -32003),
        (4, -32003),
        (5, -32003),
    ]
    assert [call.id for call in peer.side.came] == [1, 2]
    peer.link.reply(peer.side.came[0], None)
    peer.say([1, 6, "f", []])
    assert [call.id for call in peer.side.came] == [1, 2, 6]
    peer.close()


def test_notifications_above_our_limit(caplog: pytest.LogCaptureFixture) -> None:
    """They count like calls; what is beyond is dropped, which is logged once (C-38)."""
    peer = Scripted(Limits(calls=2))
    with caplog.at_level(logging.WARNING, "forkwire"):
        peer.say(*[[2, "f", [number]] for number in range(1000)])
    assert [call.values for call in peer.side.came] == [[0], [1]]
    assert len(caplog.records) == 1
    assert "dropped" in caplog.text
    peer.link.reply(peer.side.came[0], "nobody hears of it")
    peer.say([2, "f", ["new"]])
    assert peer.side.came[-1].values == ["new"]
    assert peer.heard() == []
    peer.close()


def test_too_many_calls_of_ours() -> None:
    """There is no room; if one is made nevertheless, the other side refuses it."""
    pair = Pair(other=Limits(calls=1))
    pair.one.call("f")
    assert not pair.one.link.has_room
    call = pair.one.call("f")
    pair.pump()
    with pytest.raises(TooManyCallsError):
        call.result()
    pair.close()


def test_a_peer_that_takes_no_calls() -> None:
    """A call says so, instead of waiting for ever."""
    pair = Pair(other=Limits(calls=0))
    assert pair.one.link.has_room
    with pytest.raises(TooManyCallsError, match="no calls"):
        pair.one.call("f")
    pair.close()


# -- who waits for room ---------------------------------------------------------------------------


class Queue:
    """Callers that wait for room, by number."""

    def __init__(self, link: Link) -> None:
        self.link = link
        self.woken: list[int] = []
        self.wakes: dict[int, Callable[[], None]] = {}

    def wait(self, number: int) -> None:
        def wake() -> None:
            self.woken.append(number)

        self.wakes[number] = wake
        self.link.when_room(wake)

    def leave(self, number: int) -> None:
        self.link.leave_queue(self.wakes[number])


@pytest.fixture
def crowd() -> Iterator[tuple[Pair, Queue]]:
    """A peer that takes one call and has it, and three callers that wait."""
    pair = Pair(other=Limits(calls=1))
    pair.one.call("f")
    pair.pump()
    queue = Queue(pair.one.link)
    for number in (1, 2, 3):
        queue.wait(number)
    yield pair, queue
    pair.close()


def end_call(pair: Pair) -> None:
    pair.other.link.reply(pair.other.came[-1], None)
    pair.pump()


def test_one_is_woken_for_each_call_that_ends(crowd: tuple[Pair, Queue]) -> None:
    """In order."""
    pair, queue = crowd
    for number in (1, 2, 3):
        end_call(pair)
        assert queue.woken == [*range(1, number + 1)]
        pair.one.call("f")
        pair.pump()


def test_who_gives_up_while_it_waits(crowd: tuple[Pair, Queue]) -> None:
    """Its turn is the next one's."""
    pair, queue = crowd
    queue.leave(1)
    end_call(pair)
    assert queue.woken == [2]


def test_who_gives_up_when_it_was_woken(crowd: tuple[Pair, Queue]) -> None:
    """It hands the room on, and nobody waits for ever beside an idle peer."""
    pair, queue = crowd
    end_call(pair)
    queue.leave(1)
    assert queue.woken == [1, 2]
    with pytest.raises(ValueEncodeError):
        pair.one.call("f", object())
    assert queue.woken == [1, 2, 3]


def test_all_are_woken_at_the_end(crowd: tuple[Pair, Queue]) -> None:
    """By a goodbye of either side, and when the link fails: `start` then says why."""
    pair, queue = crowd
    pair.other.link.goodbye()
    pair.pump()
    assert queue.woken == [1, 2, 3]
    assert pair.one.link.has_room
    with pytest.raises(WorkerClosedError):
        pair.one.call("f")
    queue.wait(4)
    pair.one.link.fail(WorkerClosedError("over"))
    assert queue.woken == [1, 2, 3, 4]


def test_a_greeting_that_makes_room() -> None:
    """64 calls before it came; then all who waited look again (C-11)."""
    pair = Pair(greet=False)
    pair.one.link.hello({})
    for _ in range(64):
        assert pair.one.link.has_room
        pair.one.call("f")
    assert not pair.one.link.has_room
    queue = Queue(pair.one.link)
    queue.wait(1)
    queue.wait(2)
    pair.other.link.hello({})
    pair.pump()
    assert queue.woken == [1, 2]
    assert pair.one.link.has_room
    pair.close()


def test_a_crowded_outbox_is_no_room(pair: Pair) -> None:
    """A peer that reads slowly slows its callers down."""
    while not pair.one.link.outbox.crowded:
        pair.one.call("f", bytes(MIB))
    assert not pair.one.link.has_room
    queue = Queue(pair.one.link)
    queue.wait(1)
    queue.wait(2)
    queue.leave(2)
    pair.pump()
    assert queue.woken == [1]
    assert pair.one.link.has_room


# -- floods ---------------------------------------------------------------------------------------


@pytest.fixture
def few_answers(monkeypatch: pytest.MonkeyPatch) -> int:
    """Answers that may be unread: fewer, to be quicker."""
    monkeypatch.setattr("forkwire.rpc.links.link.UNREAD_ANSWERS", 1000)
    return 1000


FLOODS: Final[dict[str, Callable[[int], list[Any]]]] = {
    "pings": lambda n: [10, n],
    "unknown requests": lambda n: [25, n],
    "calls above the limit": lambda n: [1, n + 2, "f", []],
}


@pytest.mark.parametrize("what", FLOODS)
def test_floods_by_a_peer_that_never_reads(what: str, few_answers: int) -> None:
    """They are a fault, in bounded memory."""
    peer = Scripted(Limits(calls=1))
    if what == "calls above the limit":
        peer.say([1, 1, "f", []])
    with memory_below(20 * MIB):
        number = 0
        while not peer.link.ended:
            peer.say(*[FLOODS[what](number + n) for n in range(1, 1001)])
            number += 1000
            assert number < 200_000
    assert str(few_answers) in str(fault_of(peer))
    assert peer.link.outbox.waiting == 0
    peer.close()


@pytest.mark.parametrize("what", FLOODS)
def test_floods_by_a_peer_that_reads(what: str, few_answers: int) -> None:
    """Are answered, however many."""
    peer = Scripted(Limits(calls=1))
    if what == "calls above the limit":
        peer.say([1, 1, "f", []])
    answers = 0
    for number in range(0, 5 * few_answers, 1000):
        peer.say(*[FLOODS[what](number + n) for n in range(1, 1001)])
        answers += len(peer.heard())
    assert answers == 5 * few_answers
    assert not peer.link.ended
    peer.close()


def test_results_that_are_not_read_count_as_calls_in_flight(few_answers: int) -> None:
    """A peer that calls and never reads is refused further calls, before memory is used up."""
    peer = Scripted(Limits(calls=4))
    peer.link.accept = lambda call: peer.link.reply(call, bytes(MIB))
    with memory_below(12 * MIB):
        number = 0
        while not peer.link.ended:
            peer.say(*[[1, number + n, "f", []] for n in range(1, 101)])
            number += 100
    assert str(few_answers) in str(fault_of(peer))
    peer.close()


def test_results_that_are_read_slowly(peer: Scripted) -> None:
    """Are no fault: once they are out, they do not count any more."""
    peer.link.limits.calls = 2
    peer.link.accept = lambda call: peer.link.reply(call, bytes(LARGE))
    number = 0
    for _ in range(10):
        peer.say([1, number + 1, "f", []], [1, number + 2, "f", []])
        number += 2
        answers: list[int] = []
        while len(answers) < 2:
            peer.link.outbox.flush()
            peer.held += os.read(peer.reader, MIB)
            count = peer.held.count(b"\x83\x03")
            answers = [1] * count
        while peer.link.outbox.waiting:
            peer.link.outbox.flush()
            peer.held += os.read(peer.reader, MIB)
        peer.held = b""
        assert peer.link.statistics["errors"] == 0


# -- later versions, faults, the end --------------------------------------------------------------


def test_one_way_messages_of_later_versions_are_ignored(peer: Scripted) -> None:
    """Grease: whatever they hold."""
    for number in (*range(17, 25), 26, 2**40):
        peer.say([number], [number, {"x": [None]}, b"\0"], [number, StreamRef(0)])
    peer.say([10, 7])
    assert peer.heard() == [[11, 7]]


def test_requests_of_later_versions_are_refused(peer: Scripted) -> None:
    """They are answered, and take an id."""
    peer.say([25, 1, "x"], [27, 5], [1, 6, "f", []])
    assert [(message[0], message[1], message[2]["code"]) for message in peer.heard()] == [
        (4, 1, -32601),
        (4, 5, -32601),
    ]
    assert [call.id for call in peer.side.came] == [6]


def test_pings(pair: Pair) -> None:
    """Are answered in any number; an end wakes who waits for one; an answer unasked is a fault."""
    answered: list[int] = []
    for number in range(3):
        pair.one.link.ping(lambda number=number: answered.append(number))  # type: ignore[misc]
    pair.pump()
    assert answered == [0, 1, 2]
    pair.one.link.ping(lambda: answered.append(3))
    pair.one.link.fail(WorkerClosedError("over"))
    pair.one.link.ping(lambda: answered.append(4))
    assert answered == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("number", [0, 1, 2])
def test_a_pong_that_answers_no_ping(peer: Scripted, number: int) -> None:
    """It is a fault, also when it comes twice (C-39)."""
    peer.link.ping(lambda: None)
    peer.say([11, 1], [11, number])
    assert "pong" in str(fault_of(peer))


@pytest.mark.parametrize("versions", [[2], [0], [2, 3, 2**60]])
def test_no_version_in_common(versions: list[int]) -> None:
    """It is a fault, which says what both speak (C-7)."""
    peer = Scripted(greet=False)
    peer.link.hello({})
    peer.say([0, {"protocol": versions}])
    assert str(versions) in str(fault_of(peer))
    assert [message[0] for message in peer.heard()] == [0, 12]
    peer.close()


def test_after_a_fault_nothing_is_read_or_sent(peer: Scripted) -> None:
    """But a goodbye that says why (C-46)."""
    peer.say([1, 1, "f", []], [3, 1, None], [1, 2, "f", []])
    assert isinstance(fault_of(peer), ProtocolError)
    (goodbye,) = peer.heard()
    assert goodbye[0] == 12
    assert goodbye[1]["code"] == -32600
    assert "Result" in goodbye[1]["message"]
    assert [call.id for call in peer.side.came] == [1]
    peer.link.reply(peer.side.came[0], 1)
    peer.link.send(Log({}))
    assert peer.heard() == []
    assert not peer.link.pump()
    assert not peer.link.outbox.put_last((b"not even this",))


def test_what_we_cannot_handle(peer: Scripted) -> None:
    """An exception of our own, too, ends the link: nobody waits for what was lost."""

    def fail(call: InCall) -> None:
        raise RuntimeError("oops")

    peer.link.accept = fail
    peer.say([1, 1, "f", []])
    error = fault_of(peer)
    assert not isinstance(error, ProtocolError)
    assert "RuntimeError: oops" in str(error)
    assert isinstance(error.__cause__, RuntimeError)


def test_the_end_of_the_input(peer: Scripted) -> None:
    """It is told once; calls wait for what the owner says of it."""
    call = peer.side.call("f")
    peer.say([3, 1, "before the end"])
    late = peer.side.call("f")
    peer.hang_up()
    peer.link.pump()
    assert peer.side.ends == [None]
    assert call.result() == "before the end"
    assert not late.ended


def test_a_failed_link(pair: Pair) -> None:
    """Every call in both directions ends, with an error of its own; nothing works any more."""
    calls = [pair.one.call("f") for _ in range(3)]
    pair.other.call("g")
    pair.pump()
    cancelled: list[int] = []
    pair.one.came[0].on_cancel = lambda: cancelled.append(1)
    idle: list[int] = []
    pair.one.link.on_idle = lambda: idle.append(1)
    pair.one.link.fail(WorkerClosedError("it is over"))
    pair.one.link.fail(WorkerClosedError("once only"))
    assert len({id(call.error) for call in calls}) == 3
    for call in calls:
        with pytest.raises(WorkerClosedError, match="it is over"):
            call.result()
    assert cancelled == idle == [1]
    with pytest.raises(WorkerClosedError, match="it is over"):
        pair.one.call("f")
    pair.one.link.reply(pair.one.came[0], 1)
    pair.one.link.goodbye()
    assert not pair.one.link.send(Log({}))
    assert pair.one.link.has_room
    assert not pair.one.turn()


def test_a_peer_that_only_stops_to_read(peer: Scripted) -> None:
    """The owner is told once, and what the peer still says is heard."""
    call = peer.side.call("f")
    peer.heard()
    os.close(peer.reader)
    peer.reader = os.dup(0)
    peer.link.send(Log({}))
    peer.link.send(Log({}))
    assert peer.side.ends == [None]
    peer.say([3, 1, "still said"])
    assert call.result() == "still said"


# -- goodbye --------------------------------------------------------------------------------------


def test_goodbye_is_answered(pair: Pair) -> None:
    """At once, and calls in flight still end; when the last has, the session is done (C-45)."""
    call = pair.one.call("f")
    pair.pump()
    pair.one.link.goodbye({"code": -32000, "message": "tired"})
    pair.one.link.goodbye()
    pair.pump()
    assert pair.other.link.farewell == {"code": -32000, "message": "tired"}
    assert pair.one.link.farewell is None
    assert pair.other.link.leaving
    for side in (pair.one, pair.other):
        with pytest.raises(WorkerClosedError, match="closing"):
            side.call("f")
    assert not pair.other.link.is_done
    idle: list[int] = []
    pair.one.link.on_idle = pair.other.link.on_idle = lambda: idle.append(1)
    pair.other.link.reply(pair.other.came[0], 1)
    pair.pump()
    assert call.result() == 1
    assert idle == [1, 1]
    assert pair.one.link.is_done
    assert pair.other.link.is_done
    assert pair.one.ends == pair.other.ends == []


def test_calls_that_cross_a_goodbye(pair: Pair) -> None:
    """They are answered; notifications are dropped (C-44)."""
    peer = Scripted()
    peer.link.goodbye()
    peer.say([1, 1, "f", []], [2, "f", []], [12, None])
    assert [message[:2] for message in peer.heard()] == [[12, None], [4, 1]]
    assert peer.side.came == []
    assert peer.link.is_done
    peer.close()


def test_a_goodbye_is_done_when_it_is_out() -> None:
    """And when notifications have been run."""
    peer = Scripted()
    peer.say([2, "f", []])
    peer.link.send(Log({"message": "x" * 3 * MIB}))
    peer.say([12, None])
    assert not peer.link.is_done
    peer.link.reply(peer.side.came[0], None)
    assert not peer.link.is_done
    peer.heard()
    assert peer.link.is_done
    peer.close()


def test_what_comes_before_our_greeting() -> None:
    """It is held, since nothing may be answered yet, and taken afterwards (C-5)."""
    peer = Scripted(greet=False)
    peer.say(HELLO, [10, 5], [1, 1, "f", []], [25, 2])
    assert peer.heard() == []
    assert peer.link.greeted
    peer.link.hello({})
    assert [message[:2] for message in peer.heard()][1:] == [[11, 5], [4, 2]]
    assert [call.id for call in peer.side.came] == [1]
    peer.close()


def test_a_goodbye_before_our_greeting() -> None:
    """It is answered behind it."""
    peer = Scripted(greet=False)
    peer.say([12, None])
    peer.link.hello({})
    assert [message[0] for message in peer.heard()] == [0, 12]
    peer.close()


# -- finalisers and threads -----------------------------------------------------------------------


class Finaliser:
    """Is collected in the midst of something."""

    def __init__(self, function: Callable[[], object]) -> None:
        self.function: Final = function
        self.me = self

    def __del__(self) -> None:
        self.function()


@pytest.fixture
def collecting(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Garbage is collected whenever something is encoded, and else not."""
    encode = codec.encode

    def collect_and_encode(value: object) -> Any:
        gc.collect()
        return encode(value)

    gc.collect()
    gc.disable()
    monkeypatch.setattr(codec, "encode", collect_and_encode)
    yield
    gc.enable()


@pytest.mark.usefixtures("collecting")
def test_a_finaliser_calls_while_a_call_is_encoded(pair: Pair) -> None:
    """Both go out, with ids that grow."""
    calls = []
    Finaliser(lambda: calls.append(pair.one.call("inner")))
    calls.append(pair.one.call("outer"))
    pair.pump()
    assert [(call.id, call.method) for call in calls] == [(1, "inner"), (2, "outer")]
    assert [call.method for call in pair.other.came] == ["inner", "outer"]
    assert pair.other.ends == []


@pytest.mark.usefixtures("collecting")
def test_a_finaliser_ends_the_link_while_something_is_encoded(pair: Pair) -> None:
    """A call is not made, a message not sent."""
    Finaliser(lambda: pair.one.link.fail(WorkerClosedError("over")))
    with pytest.raises(WorkerClosedError):
        pair.one.call("outer")
    assert not pair.one.link.calls
    Finaliser(lambda: pair.other.link.fail(WorkerClosedError("over")))
    assert not pair.other.link.send(Log({}))


def test_many_threads_call_at_once(pair: Pair) -> None:
    """Ids grow on the wire, each call gets its own result, nothing is lost."""
    per_thread = 100
    results: list[list[Any]] = [[] for _ in range(4)]

    def run(number: int) -> None:
        for index in range(per_thread):
            results[number].append((index, pair.one.call("f", (number, index))))

    threads = [threading.Thread(target=run, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    answered = 0
    while answered < 4 * per_thread:
        pair.pump()
        for call in pair.other.came[answered:]:
            pair.other.link.reply(call, call.values[0])
            answered += 1
    for thread in threads:
        thread.join()
    pair.pump()
    for number, made in enumerate(results):
        assert [call.result() for _, call in made] == [[number, index] for index, _ in made]
    assert pair.other.ends == []


def test_a_call_that_comes_while_the_link_fails(pair: Pair) -> None:
    """It is not accepted: nobody would stop it."""
    pair.one.call("f")
    pair.other.link.over = WorkerClosedError("over")
    pair.pump()
    assert pair.other.came == []
    assert not pair.other.link.peers


def test_items_reach_nobody_after_the_end(pair: Pair) -> None:
    """An item of a call that has ended here is not sent."""
    pair.one.call("f", credit=5)
    pair.pump()
    came = pair.other.came[0]
    pair.other.link.reply(came, None)
    pair.other.link.item(came, 1)
    with pytest.raises(AssertionError):
        pair.other.link.send(Item(1, 1))
    pair.pump()
    assert pair.one.ends == []

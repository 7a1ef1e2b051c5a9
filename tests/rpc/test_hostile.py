"""Workers that break the protocol in every way: the fault is named, in bounded time and memory."""

from __future__ import annotations

import copy
import os
import signal
import struct
import time
from typing import Any, Final

import anyio
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

import forkwire
from forkwire.errors import (
    ForkwireError,
    NegativeSizeError,
    PeerError,
    ProtocolError,
    SizeLimitError,
    WorkerDied,
)
from forkwire.rpc.links.link import Limits

from .support_links import Scripted, framed, memory_below, resident
from .support_scripts import HELLO, Child, blocking_scripted, nothing_left, scripted

pytestmark = pytest.mark.anyio

MIB: Final = 2**20

# -- in processes ---------------------------------------------------------------------------------

# What a worker says when it was called, and what the fault is then called.
FAULTS: Final[dict[str, tuple[list[Any], str]]] = {
    "a result of an unknown id": ([[3, 7, None]], "call 7, unknown"),
    "an error of an unknown id": ([[4, 7, {"code": 0, "message": ""}]], "call 7, unknown"),
    "two results": ([[3, 1, None], [3, 1, None]], "call 1, unknown or over"),
    "a result and an error": ([[3, 1, None], [4, 1, {"code": 0, "message": ""}]], "or over"),
    "an item of a plain call": ([[6, 1, None]], "Item message while the call is CALLED"),
    "a pong unasked": ([[11, 1]], "pong"),
    "a second greeting": ([HELLO], "Hello"),
    "a cancel of a call that was never made": ([[5, 1]], "call 1, unknown"),
    "a call of an id twice": ([[1, 1, "f", []], [1, 1, "f", []]], "ids grow"),
    "a call after a goodbye": ([[12, None], [1, 1, "f", []]], "LEFT"),
    "a grant of no stream": ([[16, 1, 0, 1]], "argument stream 0"),
    "text": (["hello"], "array"),
    "nothing": ([b""], "cannot be decoded"),
    "print": ([b"hello world"], "cannot be decoded"),
    "a bomb of arrays": ([b"\x81" * 100_000 + b"\0"], "decoded"),
    "a bomb of tags": ([b"\xc1" * 100_000 + b"\0"], "decoded"),
    "an array of 2**62 items": ([b"\x9b" + b"\x3f" + b"\xff" * 7], "decoded"),
    "an array that never ends": ([b"\x9f\x03\x01\x00"], "decoded"),
    "two messages in a frame": ([b"\x82\x0a\x01\x82\x0a\x01"], "decoded"),
    "attachments that are too large": ([[13, [2**31 - 1] * 2]], "above the limit"),
    "an attachment of another size": ([[13, [3]], b"four"], "3 bytes"),
}


def say(what: list[Any]) -> Any:
    def script(child: Child) -> None:
        child.say(HELLO)
        child.hear_of(1)
        child.say(*what)
        child.wait()

    return script


@pytest.mark.parametrize("what", FAULTS)
async def test_faults(what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every call ends with the error that names it; the worker is killed and reaped."""
    messages, named = FAULTS[what]
    errors: list[ForkwireError] = []
    with nothing_left():
        async with scripted(say(messages), monkeypatch) as worker:

            async def call() -> None:
                try:
                    await worker.call("f")
                except ForkwireError as error:
                    errors.append(error)

            async with anyio.create_task_group() as group:
                for _ in range(3):
                    group.start_soon(call)
            assert worker.returncode == -9
            with pytest.raises(ForkwireError):
                await worker.call("f")
    assert errors, "at most the first call had a result before the fault"
    for error in errors:
        assert isinstance(error, ProtocolError)
        assert named in str(error)


@pytest.mark.parametrize(
    ("size", "error"), [(-1, NegativeSizeError), (10_001, SizeLimitError), (2**31 - 1, PeerError)]
)
async def test_frames_of_wrong_sizes(
    size: int, error: type[BaseException], monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are faults of the frame, before anything is allocated."""

    def script(child: Child) -> None:
        child.say(HELLO)
        child.hear_of(1)
        child.write(struct.pack("=i", size))
        child.wait()

    async with scripted(script, monkeypatch, max_message_size=10_000) as worker:
        with pytest.raises(error):
            await worker.call("f")
        assert worker.returncode == -9


async def test_items_beyond_credit(monkeypatch: pytest.MonkeyPatch) -> None:
    """The fault is raised, behind the items that were allowed."""

    def script(child: Child) -> None:
        child.say(HELLO)
        _, number, _, _, _, meta = child.hear_of(1)
        child.say(*[[6, number, n] for n in range(meta["credit"] + 1)])
        child.wait()

    async with scripted(script, monkeypatch) as worker:
        items: list[int] = []
        with pytest.raises(ProtocolError, match="beyond the credit"):  # noqa: PT012
            async for item in worker.options(window=4).stream("count"):
                items.append(item)
                await anyio.sleep(0.005)
        assert items in ([0, 1, 2, 3], [0, 1, 2, 3][: len(items)])


async def test_an_answer_that_never_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker that says it byte by byte is killed after the deadline of a call and the grace."""

    def script(child: Child) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        child.say(HELLO)
        number = child.hear_of(1)[1]
        for byte in framed([3, number, "y" * 10**6]):
            child.write(bytes([byte]))
            time.sleep(0.001)

    errors: list[BaseException] = []

    async def call_beside() -> None:
        try:
            await worker.call("f")
        except forkwire.WorkerDied as error:
            errors.append(error)

    before = resident()
    async with scripted(script, monkeypatch, grace=0.1) as worker:
        async with anyio.create_task_group() as tasks:
            with anyio.move_on_after(0.1) as scope:
                tasks.start_soon(call_beside)
                await worker.call("f")
            assert scope.cancelled_caught
        assert "did not stop" in str(errors[0])
        with pytest.raises(forkwire.WorkerDied):
            await worker.call("f")
    assert resident() - before < 20_000_000


async def test_a_fault_before_the_greeting(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is raised where the worker is started."""
    for first in ([10, 1], [3, 1, None], ["?"], [0, {}], [0, {"protocol": [2]}], b"GET / HTTP/1.1"):

        def script(child: Child, first: object = first) -> None:
            child.say(first)
            child.wait()

        with nothing_left(), pytest.raises(ProtocolError):
            async with scripted(script, monkeypatch):
                pytest.fail("it has started")


async def test_a_program_that_prints_where_it_should_speak(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its text is taken for a size that is far too large, and that is said."""

    def script(child: Child) -> None:
        child.write(b"Hello, world!\n")
        child.wait()

    with nothing_left(), pytest.raises(SizeLimitError, match="print"):
        async with scripted(script, monkeypatch, max_message_size=2**20):
            pytest.fail("it has started")


async def test_floods_that_are_allowed(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Logs, progress and messages of later versions: the loop goes on, memory is bounded."""
    flood = framed_many(
        *[[9, {"message": "x" * 1000, "level": 10}]] * 30,
        *[[8, 1, 1, 2, "y" * 4000]] * 500,
        *[[17, "z" * 1000]] * 500,
    )

    def script(child: Child) -> None:
        child.say(HELLO)
        child.hear_of(1)
        for _ in range(10):
            child.write(flood)
        child.say([3, 1, "done"])
        child.until_end()

    before = resident()
    async with scripted(script, monkeypatch) as worker:
        turns = 0

        async def others() -> None:
            nonlocal turns
            while True:
                turns += 1
                await anyio.sleep(0)

        async with anyio.create_task_group() as group:
            group.start_soon(others)
            assert await worker.call("f") == "done"
            group.cancel_scope.cancel()
    assert turns > 5
    assert resident() - before < 64 * MIB


async def test_logs_of_garbage(monkeypatch: pytest.MonkeyPatch) -> None:
    """A record that makes no sense is no reason to end, or to fail here (C-43)."""
    junk: list[Any] = [None, True, -1, 2**70, 1.5, float("nan"), b"\xff", "x" * 100_000, [], {}]
    keys = ["message", "level", "levelname", "name", "created", "pathname", "lineno", "funcName",
            "thread", "threadName", "taskName", "exc_text", "call", "method"]  # fmt: skip
    records: list[dict[str, Any]] = [{}] + [
        {"message": "%s %d", "level": 10, key: value} for key in keys for value in junk
    ]

    def script(child: Child) -> None:
        child.say(HELLO)
        child.hear_of(1)
        for record in records:
            child.say([9, record])
        child.say([3, 1, "done"])
        child.until_end()

    async with scripted(script, monkeypatch) as worker:
        assert await worker.call("f") == "done"


async def test_a_worker_that_makes_its_host_answer_and_never_reads(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It is a fault, in bounded memory."""

    def script(child: Child) -> None:
        child.say(HELLO)
        child.hear_of(1)
        ping = framed_many(*[[10, 1]] * 1000)
        while True:
            child.write(ping)

    monkeypatch.setattr("forkwire.rpc.links.link.UNREAD_ANSWERS", 1000)
    before = resident()
    async with scripted(script, monkeypatch) as worker:
        with pytest.raises((ProtocolError, WorkerDied), match="reads none"):
            await worker.call("f")
    assert resident() - before < 64 * MIB


async def test_a_half_said_frame_at_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """Closing a worker that is in the midst of a message does not take longer than its grace."""

    def script(child: Child) -> None:
        child.say(HELLO)
        child.write(struct.pack("=i", 1000) + b"half")
        child.wait()

    with nothing_left():
        before = time.monotonic()
        async with scripted(script, monkeypatch, grace=0.05):
            pass
        assert time.monotonic() - before < 2


# -- workers that call their host -----------------------------------------------------------------


async def answer(n: int) -> bytes:
    """A host's function, whose answers are large."""
    return bytes(100_000)


def plain_answer(n: int) -> int:
    return n


@pytest.mark.parametrize("method", ["answer", "plain_answer", "missing"])
@pytest.mark.parametrize("kind", ["calls", "notifications"])
async def test_floods_of_calls_by_a_worker_that_never_reads(
    method: str, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Memory is bounded: what is not read counts, and then it is a fault, or waits."""
    over = 8_000 if kind == "calls" else 2_000  # answers that no pipe takes

    def script(child: Child) -> None:
        child.say(HELLO)
        child.hear_of(1)
        for number in range(1, over, 500):
            numbers = range(number, number + 500)
            if kind == "calls":
                child.say(*[[1, n, method, [n]] for n in numbers])
            else:
                child.say(*[[2, method, [n]] for n in numbers])
        if kind == "notifications":
            child.say([3, 1, "done"])
        child.wait()

    monkeypatch.setattr("forkwire.rpc.links.link.UNREAD_ANSWERS", 500)
    host = {"answer": answer, "plain_answer": plain_answer}
    before = resident()
    async with scripted(script, monkeypatch, host=host) as worker:
        if kind == "notifications":
            assert await worker.call("f") == "done"
        else:
            with pytest.raises((ProtocolError, WorkerDied), match="reads none"):
                await worker.call("f")
    assert resident() - before < 128 * MIB


async def test_a_host_that_goes_on_while_its_worker_breaks_off(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What the host runs for the worker is stopped when the worker broke the protocol."""
    stopped = anyio.Event()
    begun = anyio.Event()

    async def run() -> None:
        begun.set()
        try:
            await anyio.sleep_forever()
        finally:
            stopped.set()

    def script(child: Child) -> None:
        child.say(HELLO)
        child.hear_of(1)
        child.say([1, 1, "run", []])
        child.say([8, 1, 1, 1, ""])
        child.hear_of(5)
        child.say([11, 1])
        child.wait()

    async with scripted(script, monkeypatch, host={"run": run}) as worker:
        with anyio.CancelScope() as scope:
            async with anyio.create_task_group() as group:

                async def call() -> None:
                    with pytest.raises(ProtocolError):
                        await worker.call("f")

                group.start_soon(call)
                await begun.wait()
                scope.cancel()
        await stopped.wait()


# -- without a loop -------------------------------------------------------------------------------


@pytest.mark.parametrize("what", FAULTS)
def test_faults_without_a_loop(what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same for blocking calls."""
    messages, named = FAULTS[what]
    with nothing_left():
        returncode = provoke(messages, named, monkeypatch)
    assert returncode == -9


def provoke(messages: list[Any], named: str, patch: pytest.MonkeyPatch) -> int | None:
    """Apart, so that the traceback keeps nothing."""
    with blocking_scripted(say(messages), patch) as worker:
        if messages[0][:2] == [3, 1]:
            worker.call("f")
        else:
            with pytest.raises(ProtocolError) as caught:
                worker.call("f")
            assert named in str(caught.value)
        with pytest.raises(ForkwireError):
            worker.call("f")
    return worker.returncode


def framed_many(*arrays: Any) -> bytes:
    return b"".join(map(framed, arrays))


# -- conversations --------------------------------------------------------------------------------

OPENING: Final = framed_many(HELLO)
# After our calls 1 (plain), 2 (a stream with credit 3) and 3 (with an argument stream).
TALK: Final[list[Any]] = [
    [8, 1, 1, 2, "half"],
    [9, {"message": "hi", "level": 10}],
    [6, 2, "item"],
    [16, 3, 0, 2],
    [1, 1, "host_function", [1, "x"], {"y": 2.5}, {"timeout": 5, "tree": "t"}],
    [10, 3],
    [3, 1, {"a": [1, 2, {"b": None}]}],
    [6, 2, [1] * 10],
    [3, 2, None],
    [25, 2],
    [17, "later"],
    [4, 3, {"code": -32000, "message": "no", "type": "builtins.ValueError", "args": [1]}],
    [12, None],
]


def listen(data: bytes) -> Scripted:
    """A link with three calls in flight hears ``data``, and then the end."""
    peer = Scripted(Limits(MIB), greet=False)
    peer.link.accept = peer.link.refuse
    peer.link.hello({})
    peer.write(OPENING)
    peer.side.call("f")
    peer.side.call("count", credit=3)
    call = peer.side.call("total")
    peer.link.session.calls[call.id].streams[0] = 0
    peer.heard()
    peer.write(data)
    peer.hang_up()
    peer.link.pump()
    return peer


def check(data: bytes) -> None:
    """Whatever comes, the link ends once: with its input, or with a fault that names the peer."""
    before = time.monotonic()
    peer = listen(data)
    try:
        (end,) = peer.side.ends
        assert end is None or isinstance(end, PeerError), repr(end)
        assert end is None or len(str(end)) < 2000
        assert time.monotonic() - before < 2
        peer.link.fail(end or WorkerDied(1, 1, "ended"))
        assert not peer.link.calls
        assert peer.link.outbox.waiting == 0
    finally:
        peer.close()


FEW: Final = settings(max_examples=100, deadline=None)


def test_the_conversation_is_a_valid_one() -> None:
    """Else what follows proves little."""
    peer = listen(framed_many(*TALK))
    assert peer.side.ends == [None]
    assert not peer.link.calls
    assert peer.link.is_done
    peer.close()


@FEW
@given(st.binary(max_size=200))
@example(b"\0\0\0\0")
@example(b"\xff" * 100)
def test_garbage(data: bytes) -> None:
    """Bytes of any kind."""
    check(data)


@FEW
@given(st.lists(st.binary(max_size=60), max_size=6))
def test_frames_of_garbage(bodies: list[bytes]) -> None:
    """Frames that hold bytes of any kind."""
    check(b"".join(struct.pack("=i", len(body)) + body for body in bodies))


@FEW
@given(
    st.lists(
        st.tuples(st.integers(0, 10_000), st.integers(0, 255), st.sampled_from("xid")), max_size=4
    )
)
def test_a_conversation_with_bytes_changed(changes: list[tuple[int, int, str]]) -> None:
    """Changed, inserted, left out."""
    data = bytearray(framed_many(*TALK))
    for position, byte, how in changes:
        at = position % len(data)
        if how == "x":
            data[at] = byte
        elif how == "i":
            data.insert(at, byte)
        else:
            del data[at]
    check(bytes(data))


LEAVES: Final[st.SearchStrategy[Any]] = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**64), 2**64 - 1),
    st.floats(),
    st.text(max_size=5),
    st.binary(max_size=5),
)
JUNK: Final = st.recursive(
    LEAVES,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=5,
)
MESSAGES: Final = st.tuples(st.integers(0, 30), st.lists(JUNK | st.integers(0, 5), max_size=6))


@FEW
@given(st.data())
def test_a_conversation_with_messages_changed(data: st.DataObject) -> None:
    """In another order, twice, left out, and with other fields."""
    talk = copy.deepcopy(TALK)
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(talk) - 1))
        how = data.draw(st.sampled_from(["move", "twice", "drop", "field", "type"]))
        if how == "move":
            talk.insert(data.draw(st.integers(0, len(talk) - 1)), talk.pop(at))
        elif how == "twice":
            talk.insert(at, talk[at])
        elif how == "drop" and len(talk) > 1:
            del talk[at]
        elif how == "type":
            talk[at] = [data.draw(st.integers(0, 30)), *talk[at][1:]]
        elif len(talk[at]) > 1:
            changed = list(talk[at])
            changed[data.draw(st.integers(1, len(changed) - 1))] = data.draw(JUNK)
            talk[at] = changed
    check(framed_many(*talk))


@FEW
@given(st.lists(MESSAGES, max_size=8))
def test_messages_of_junk(messages: list[tuple[int, list[Any]]]) -> None:
    """Arrays with a type, and anything behind it."""
    check(framed_many(*[[number, *rest] for number, rest in messages]))


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(b"\x83\x03\x01" + b"\x81" * 500_000 + b"\0", id="nested arrays"),
        pytest.param(b"\x83\x03\x01" + b"\xa1\0" * 250_000 + b"\0", id="nested maps"),
        pytest.param(b"\x83\x03\x01\x9a" + b"\xff" * 4, id="an array of 2**32 items"),
        pytest.param(b"\x83\x03\x01\xba" + b"\xff" * 4, id="a map of 2**32 items"),
        pytest.param(b"\x83\x03\x01\x5a" + b"\xff" * 4, id="bytes of 4 GiB"),
        pytest.param(b"\x83\x03\x01\xc2\x5a" + struct.pack(">I", 400_000) + b"\xff" * 400_000,
                     id="a large bignum"),
        pytest.param(b"\x83\x03\x01\xc4\x82\x1b" + b"\x7f" + b"\xff" * 7 + b"\x01",
                     id="a decimal of a huge exponent"),
        pytest.param(
            b"\x83\x03\x01\xba" + struct.pack(">I", 40_000)
            + b"".join(b"\x1b" + struct.pack(">Q", n << 44) + b"\0" for n in range(40_000)),
            id="a map of colliding integers",
        ),
    ],
)  # fmt: skip
def test_bombs(body: bytes) -> None:
    """Small messages that want much memory, stack or time get neither."""
    before = time.monotonic()
    with memory_below(64 * MIB):
        check_body(body)
    assert time.monotonic() - before < 3


def check_body(body: bytes) -> None:
    peer = listen(struct.pack("=i", len(body)) + body)
    peer.close()
    assert len(peer.side.ends) == 1
    assert os.getpid()

"""The vectors of calls against our link and session, and against the worker in Node."""

from __future__ import annotations

import importlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import pytest

from forkwire import InputChannel, OutputChannel
from forkwire.errors import ProtocolError
from forkwire.rpc.data import codec
from forkwire.rpc.links.link import Limits, Link
from forkwire.wire.messages import (
    Attach,
    Call,
    Error,
    Goodbye,
    Grant,
    Hello,
    Message,
    Pong,
    Send,
    Sent,
    parse,
)
from forkwire.wire.session import Session, SideState

if TYPE_CHECKING:
    from collections.abc import Iterator

HERE: Final = Path(__file__).resolve().parent
ROOT: Final = Path(__file__).resolve().parents[2]
SPEC: Final = ROOT / "protocol-spec"
sys.path.insert(0, str(SPEC / "conformance"))
calls: Final[Any] = importlib.import_module("calls")
cbor: Final[Any] = calls.cbor

FILES: Final = [
    json.loads(path.read_text("utf-8")) for path in sorted((SPEC / "vectors-calls").glob("*.json"))
]
VECTORS: Final[list[dict[str, Any]]] = [vector for file in FILES for vector in file["vectors"]]
FOR_WORKERS: Final = calls.load()
# A host may send these, but a session of version 1 cannot.
OF_LATER_VERSIONS: Final = {"later-request", "later-one-way", "reserved-one-way"}
PEACEFUL: Final = [
    vector
    for vector in VECTORS
    if vector["outcome"] != "fault" and vector["name"] not in OF_LATER_VERSIONS
]
HELLO: Final = [0, {"protocol": [1]}]
CLOSING: Final = -32005
FAILURE: Final = {"code": -32000, "message": ""}
# Of each type whose last field is a map, what that must hold.
REQUIRED: Final[dict[int, dict[str, Any]]] = {
    Hello.TYPE: {"protocol": [1]},
    Error.TYPE: FAILURE,
    Goodbye.TYPE: FAILURE,
    Sent.TYPE: FAILURE,
}
NODE: Final = shutil.which("node")
WORKER: Final = ROOT / "examples" / "node" / "worker.mjs"


@pytest.fixture
def link() -> Iterator[Link]:
    """A link whose input is ours to give, and whose output goes nowhere."""
    reader, writer = os.pipe()
    output = OutputChannel.from_fd(os.open(os.devnull, os.O_WRONLY))
    with InputChannel.from_fd(reader) as input_, output:
        link = Link(input_, output, name="the peer", limits=Limits(2**26, trusted=False))
        link.accept = lambda call: None
        yield link
    os.close(writer)


def filled(pattern: Any, key: str = "") -> Any:
    """A value that the pattern matches."""
    if pattern is cbor.ELISION:
        return "" if key == "message" else None
    if isinstance(pattern, cbor.Tag):
        return (
            None if pattern.value is cbor.ELISION else cbor.Tag(pattern.tag, filled(pattern.value))
        )
    if isinstance(pattern, dict):
        return {k: filled(v, k) for k, v in pattern.items() if k is not cbor.ELISION}
    if isinstance(pattern, list):
        return [filled(part) for part in pattern]
    return pattern


def message_of(notation: str) -> Message | None:
    """A message that the pattern ``notation`` matches; None where any would do."""
    pattern = cbor.parse(notation)
    if pattern == [cbor.ELISION]:
        return None
    if pattern[0] == Call.TYPE and pattern[-1] is cbor.ELISION:
        del pattern[-1]
    return parsed(with_required(filled(pattern)))


def with_required(array: list[Any]) -> list[Any]:
    """With the keys that a pattern leaves to the testee, and a message must have."""
    required = REQUIRED.get(array[0])
    if required and isinstance(array[-1], dict):
        given = {key: value for key, value in array[-1].items() if value not in (None, [1, None])}
        array[-1] = {**required, **given}
    return array


def parsed(array: list[Any]) -> Message:
    """The message of an array, its tags as our codec gives them."""
    return parse(codec.decode(cbor.encode(array)))


class Played:
    """A link that plays the testee: it gets what is sent, and sends what is expected."""

    def __init__(self, link: Link, *, grants: bool) -> None:
        self.link = link
        self.grants = grants  # by itself, before an item of an argument stream comes
        self.refused: set[int] = set()  # requests of later versions, answered by the link

    def play(self, vector: dict[str, Any]) -> None:
        """Take every step. Raises :exc:`ProtocolError` for a fault of ours."""
        if vector.get("greeting", True):
            self.link.hello({})
            self.link.receive(cbor.encode(HELLO))
        for step in vector["steps"]:
            if "send" in step or "frame" in step:
                self.receive(step)
            for notation in said_in(step):
                self.send(message_of(notation))

    def receive(self, step: dict[str, Any]) -> None:
        """A frame for the testee."""
        frame = frame_of(step)
        if "send" in step:
            array = cbor.decode(frame)
            if array[0] == Send.TYPE and self.grants:
                self.link.send(Grant(array[1], array[2], 1))
            elif array[0] >= calls.FIRST_REQUEST and array[0] % 2:
                self.refused.add(array[1])
        self.link.receive(frame)

    def send(self, message: Message | None) -> None:
        """What the testee says, unless the link has said it by itself."""
        if isinstance(message, Hello):
            self.link.hello({})
        elif isinstance(message, Goodbye):
            self.link.goodbye()
        elif message is not None and not self.said(message):
            assert self.link.send(message)

    def said(self, message: Message) -> bool:
        """Has the link answered this by itself?"""
        if isinstance(message, Error):
            return message.id in self.refused or message.error.get("code") == CLOSING
        return isinstance(message, Pong)


@pytest.mark.parametrize("vector", VECTORS, ids=lambda vector: vector["name"])
def test_link(vector: dict[str, Any], link: Link) -> None:
    """Our link takes what a vector sends, may say what it expects, and refuses each fault."""
    played = Played(link, grants=vector in FOR_WORKERS)
    if vector["outcome"] == "fault":
        with pytest.raises(ProtocolError):
            played.play(vector)
        return
    played.play(vector)
    if vector["outcome"] == "open":
        link.receive(cbor.encode([calls.PING, calls.PROBE]))
    if vector["outcome"] == "left":
        assert link.session.state is link.session.peer_state is SideState.LEFT
        assert not link.session.calls
        assert not link.session.peers


@pytest.mark.parametrize("vector", PEACEFUL, ids=lambda vector: vector["name"])
def test_session_of_the_other_side(vector: dict[str, Any]) -> None:
    """Where there is no fault, our session may also be the side that plays the vector."""
    session = Session()
    if vector.get("greeting", True):
        session.sent(parse(HELLO))
        session.received(parse(HELLO))
    expected = 0
    attachments: list[bytes] = []
    for step in vector["steps"]:
        if expected > len(attachments):
            attachments.append(frame_of(step))
        elif "send" in step or "frame" in step:
            message = parse(codec.decode(frame_of(step), attachments))
            expected, attachments = (len(message.sizes) if isinstance(message, Attach) else 0), []
            if isinstance(message, Send) and vector in FOR_WORKERS:
                session.received(Grant(message.id, message.stream, 1))
            session.sent(message)
        for notation in said_in(step):
            answer = message_of(notation)
            if answer is not None:
                session.received(answer)


def frame_of(step: dict[str, Any]) -> bytes:
    """What is sent in a step."""
    octets: bytes = calls.octets(step.get("send", step.get("frame")))
    return octets


def said_in(step: dict[str, Any]) -> list[str]:
    """What the testee says in a step: patterns."""
    return step.get("unordered") or [step[key] for key in ("expect", "do") if key in step]


# Workers


def play(*command: str | Path, only: tuple[str, ...] = ()) -> None:
    """The runner finds that the worker passes every vector, or each of ``only``."""
    options = ["--timeout=20", *(f"--only={name}" for name in only)]
    result = subprocess.run(
        [sys.executable, SPEC / "conformance" / "calls.py", *options, "--", *command],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    assert f"{len(only or FOR_WORKERS)} vectors: {len(only or FOR_WORKERS)} passed" in result.stdout


ONE_OF_EACH: Final = (
    "hello-of-a-later-version",
    "bytes-after-the-message",
    "late-messages",
    "callback",
    "plain-values",
    "cancel",
    "stream-by-credit",
    "argument-stream-many",
    "attachments",
    "large-bytes",
    "end-of-file-while-a-call-runs",
)


@pytest.mark.skipif(NODE is None, reason="node is not installed")
def test_node_worker() -> None:
    """The worker in Node passes a vector of each kind."""
    assert NODE
    play(NODE, WORKER, only=(*ONE_OF_EACH, "goodbye-while-a-call-runs"))


@pytest.mark.long
@pytest.mark.timeout(300)
@pytest.mark.skipif(NODE is None, reason="node is not installed")
def test_node_worker_in_full() -> None:
    """The worker in Node passes every vector."""
    assert NODE
    play(NODE, WORKER)


@pytest.mark.parametrize("backend", ["asyncio", "uvloop", "trio"])
def test_our_worker(backend: str) -> None:
    """Our worker passes a vector of each kind."""
    play(sys.executable, HERE / "calls_worker.py", backend, only=ONE_OF_EACH)


@pytest.mark.long
@pytest.mark.timeout(300)
@pytest.mark.parametrize("backend", ["asyncio", "uvloop", "trio"])
def test_our_worker_in_full(backend: str) -> None:
    """Our worker passes every vector."""
    names = tuple(vector["name"] for vector in FOR_WORKERS)
    play(sys.executable, HERE / "calls_worker.py", backend, only=names)

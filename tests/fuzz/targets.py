"""What is fuzzed: whatever bytes a peer sends, the fault is found, named, and costs little.

Each target takes bytes and raises nothing. What a peer can do wrong is a `ProtocolError`; any other
exception is a finding, and so is an input that takes seconds or much memory (libFuzzer's limits).
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import datetime
import decimal
import enum
import json
import os
import pathlib
import struct
import uuid
from collections.abc import Callable, Iterator
from typing import Any, Final

import forkwire
from forkwire.errors import InvalidArgumentsError, ProtocolError, ValueDecodeError, ValueEncodeError
from forkwire.process.channels import InputChannel, OutputChannel
from forkwire.rpc.data import codec
from forkwire.rpc.data.shape import Shape
from forkwire.rpc.exceptions import describing as failures
from forkwire.rpc.links.link import InCall, Limits, Link
from forkwire.rpc.telling import replaying
from forkwire.wire.framing import Decoder
from forkwire.wire.messages import parse

VECTORS: Final = pathlib.Path(__file__).parents[2] / "protocol-spec" / "vectors-calls"
MOST_WAITING: Final = 2**26  # bytes that a peer may make us queue


def framing(data: bytes) -> None:
    """Any split of any bytes gives messages, the end, or the peer's fault."""
    decoder = Decoder(2**20)
    cut = data[0] + 1 if data else 1
    with contextlib.suppress(forkwire.PeerError):
        for start in range(1, len(data), cut):
            decoder.feed(data[start : start + cut])
            while isinstance(decoder.next_message(), bytes):
                pass


def decoding(data: bytes) -> None:
    """CBOR of a peer that is not trusted, and of one that is, with attachments."""
    for trusted in (False, True):
        attached = [b"a" * 8] * (data[0] % 3 if data else 0)
        with contextlib.suppress(ProtocolError, ValueEncodeError):  # unknown tags have no way back
            codec.encode(codec.decode(data[1:], attached, trusted=trusted))


def conversation(data: bytes) -> None:
    """Frames of any content, cut by the first bytes of each: a whole session."""
    with linked() as link, contextlib.suppress(ProtocolError):
        for frame in frames_of(data):
            link.receive(frame)
            assert link.outbox.waiting < MOST_WAITING, "it grows without bound"


def values(data: bytes) -> None:
    """What was decoded, converted to each of many annotations."""
    try:
        value = codec.decode(data, trusted=False)
        message: Any = parse([1, 1, "m", [value]])
    except ProtocolError:
        return
    for shape in SHAPES:
        with contextlib.suppress(ValueDecodeError):
            shape.result(value)
        with contextlib.suppress(InvalidArgumentsError):
            shape.bind(message.args, value if isinstance(value, dict) else {})
    if isinstance(value, dict):
        assert isinstance(failures.rebuild(value), forkwire.CallError)
    replaying.replay(value, worker="fuzzed", pid=1, names=set(), trusted=False)


TARGETS: Final[dict[str, Callable[[bytes], None]]] = {
    "framing": framing,
    "decoding": decoding,
    "conversation": conversation,
    "values": values,
}


# -- a link that talks to nobody ------------------------------------------------------------------


@contextlib.contextmanager
def linked() -> Iterator[Link]:
    """Both sides of what a link does: calls that wait for answers, and a service."""
    read_end, write_end = os.pipe()
    with InputChannel.from_fd(read_end) as input_, OutputChannel.from_fd(write_end) as output:
        link = Link(input_, output, name="fuzzed", limits=Limits(2**20, 64, trusted=False))
        link.accept = answer
        link.hello({})
        for _ in range(3):
            link.start("f", [1], {}, {}, None)
            link.start("g", [2], {}, {"credit": 4}, None)
        try:
            yield link
        finally:
            link.fail(forkwire.WorkerClosedError("over"))


def answer(call: InCall) -> None:
    """Streams get an item and go on, calls get their arguments back, some nothing yet."""
    if call.credit:
        link_item(call)
    elif call.method != "wait":
        call.link.reply(call, call.values)


def link_item(call: InCall) -> None:
    call.link.item(call, list(call.values))


def frames_of(data: bytes) -> Iterator[bytes]:
    """Two bytes of size, then so many."""
    at = 0
    while at + 2 <= len(data):
        (size,) = struct.unpack_from(">H", data, at)
        yield data[at + 2 : at + 2 + size]
        at += 2 + size


def seeds() -> Iterator[bytes]:
    """The valid frames of the test vectors, and all of each scenario."""
    for path in sorted(VECTORS.glob("*.json")):
        found = list(hex_in(json.loads(path.read_text())))
        yield from found
        yield b"".join(struct.pack(">H", len(frame)) + frame for frame in found)


def hex_in(node: object) -> Iterator[bytes]:
    if isinstance(node, dict):
        for value in node.values():
            yield from hex_in(value)
    elif isinstance(node, list):
        for value in node:
            yield from hex_in(value)
    elif isinstance(node, str):
        with contextlib.suppress(ValueError):
            if node:
                yield bytes.fromhex(node)


# -- annotations ----------------------------------------------------------------------------------


class Colour(enum.Enum):
    RED = "red"
    GREEN = 2


@dataclasses.dataclass
class Point:
    x: int
    y: float
    label: str | None = None
    inner: list[Point] = dataclasses.field(default_factory=list)


def shape_of(annotation: Any) -> Shape:
    def function(a: Any, **more: Any) -> Any: ...

    function.__annotations__ = {"a": annotation, "more": annotation, "return": annotation}
    return Shape.of(function)


SHAPES: Final = [
    shape_of(annotation)
    for annotation in (
        int,
        float,
        str,
        bytes,
        bool,
        complex,
        Colour,
        Point,
        list[int],
        dict[str, Point],
        dict[int, list[bytes]],
        set[int],
        frozenset[str],
        tuple[int, ...],
        tuple[int, str, Point],
        datetime.datetime,
        datetime.date,
        datetime.time,
        datetime.timedelta,
        decimal.Decimal,
        uuid.UUID,
        pathlib.Path,
        collections.deque[int],
        int | str | None,
        list[dict[str, set[tuple[int, float]]]],
    )
]

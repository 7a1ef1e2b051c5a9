"""Two links over two pipes, pumped by hand; and one whose other side is the test itself."""

from __future__ import annotations

import contextlib
import gc
import os
import struct
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

from forkwire import InputChannel, OutputChannel
from forkwire.errors import ProcessWorkerIPCError
from forkwire.rpc.data import codec
from forkwire.rpc.links.link import InCall, Limits, Link, OutCall

HELLO: Final = [0, {"protocol": [1]}]


class Side:
    """A link, what came to it, and how it ended."""

    def __init__(self, reader: int, writer: int, name: str, limits: Limits | None) -> None:
        self.input = InputChannel.from_fd(reader)
        self.output = OutputChannel.from_fd(writer)
        self.link = Link(self.input, self.output, name=name, limits=limits or Limits())
        self.came: list[InCall] = []
        self.logged: list[Any] = []
        self.ends: list[ProcessWorkerIPCError | None] = []
        self.link.accept = self.came.append
        self.link.on_log = self.logged.append
        self.link.on_end = self.ends.append

    def call(self, method: str, *args: object, **meta: object) -> OutCall:
        return self.link.start(method, args, {}, meta)

    def turn(self) -> bool:
        """Read and write; whether anything came."""
        self.link.outbox.flush()
        return self.link.pump()

    def close(self) -> None:
        self.output.close()
        self.input.close()


class Pair:
    """``one`` and ``other``, greeted."""

    def __init__(
        self, one: Limits | None = None, other: Limits | None = None, *, greet: bool = True
    ) -> None:
        to_other, to_one = os.pipe(), os.pipe()
        self.one = Side(to_one[0], to_other[1], "other", one)
        self.other = Side(to_other[0], to_one[1], "one", other)
        if greet:
            self.one.link.hello({"name": "one"})
            self.other.link.hello({"name": "other"})
            self.pump()

    def pump(self) -> None:
        """Until nothing comes any more, on either side."""
        while self.one.turn() | self.other.turn():
            pass

    def close(self) -> None:
        self.one.close()
        self.other.close()


class Scripted:
    """A link whose other side is the test, which sends what it likes and reads if it likes."""

    def __init__(self, limits: Limits | None = None, *, greet: bool = True) -> None:
        to_link, from_link = os.pipe(), os.pipe()
        self.side = Side(to_link[0], from_link[1], "the peer", limits)
        self.link = self.side.link
        self.writer, self.reader = to_link[1], from_link[0]
        os.set_blocking(self.reader, False)
        os.set_blocking(self.writer, False)
        self.held = b""
        if greet:
            self.link.hello({})
            self.say(HELLO)
            self.heard()

    def say(self, *arrays: Any) -> None:
        """Messages, and have the link take them."""
        self.write(b"".join(map(framed, arrays)))

    def frame(self, payload: bytes) -> None:
        """A frame of any kind."""
        self.write(struct.pack("=i", len(payload)) + payload)

    def write(self, data: bytes) -> None:
        """Bytes, which the link takes as they come."""
        view = memoryview(data)
        while view:
            with contextlib.suppress(BlockingIOError):
                view = view[os.write(self.writer, view) :]
            self.link.pump()
            if self.link.ended:
                return

    def heard(self) -> list[Any]:
        """The messages that the link has sent."""
        while True:
            done = self.link.outbox.flush()
            try:
                part = os.read(self.reader, 2**20)
            except BlockingIOError:
                part = b""
            self.held += part
            if done and not part:
                break
        found = []
        while len(self.held) >= 4:
            (size,) = struct.unpack_from("=i", self.held)
            found.append(codec.decode(self.held[4 : 4 + size]))
            self.held = self.held[4 + size :]
        return found

    def hang_up(self) -> None:
        """The other side writes nothing more."""
        if self.writer >= 0:
            os.close(self.writer)
            self.writer = -1
            self.link.pump()

    def close(self) -> None:
        self.side.close()
        os.close(self.reader)
        if self.writer >= 0:
            os.close(self.writer)


def framed(array: Any) -> bytes:
    """A message with its size in front."""
    body = codec.encode(array)[0]
    return struct.pack("=i", len(body)) + body


@contextlib.contextmanager
def memory_below(limit: int) -> Iterator[None]:
    """What is allocated in the block, and at any time within it, is less than ``limit`` bytes."""
    tracemalloc.start()
    try:
        yield
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < limit, f"{peak} bytes"


def resident() -> int:
    """Bytes of memory that this process really uses."""
    gc.collect()
    pages = int(Path("/proc/self/statm").read_text("ascii").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def until(ready: Callable[[], bool], turn: Callable[[], object], turns: int = 100_000) -> None:
    """Have ``turn`` called until it is ``ready``."""
    for _ in range(turns):
        if ready():
            return
        turn()
    raise AssertionError("it never came")

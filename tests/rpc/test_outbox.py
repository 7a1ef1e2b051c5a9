"""What waits to be written: order, what is copied, who is told, and the end."""

from __future__ import annotations

import functools
import gc
import os
import threading
from collections.abc import Callable, Iterator
from typing import Final

import pytest

from forkwire import OutputChannel
from forkwire.errors import ChannelOSError
from forkwire.process.writing import Parts, Sink
from forkwire.rpc.links import outbox as module
from forkwire.rpc.links.outbox import CROWDED, Outbox, Unread

LARGE: Final = 2**21  # more than a pipe takes, also when it has grown


class Pipe:
    """A pipe that is written by an outbox, and read by hand."""

    def __init__(self) -> None:
        self.reader, writer = os.pipe()
        os.set_blocking(self.reader, False)
        self.channel = OutputChannel.from_fd(writer)
        self.outbox = Outbox(self.channel._half)
        self.blocked = 0
        self.gone = 0
        self.outbox.on_blocked = self.count_blocked
        self.outbox.on_gone = self.count_gone

    def count_blocked(self) -> None:
        self.blocked += 1

    def count_gone(self) -> None:
        self.gone += 1

    def put(self, *parts: bytes | memoryview, borrowed: bool = True) -> bool:
        self.outbox.put(parts)
        return self.outbox.flush(borrowed=borrowed)

    def read(self, size: int = 2**22) -> bytes:
        """What is there."""
        try:
            return os.read(self.reader, size)
        except BlockingIOError:
            return b""

    def read_all(self) -> bytes:
        """All that waits, while the outbox is flushed."""
        found = []
        while True:
            done = self.outbox.flush()
            part = self.read()
            found.append(part)
            if done and not part:
                return b"".join(found)

    def close_reader(self) -> None:
        if self.reader >= 0:
            os.close(self.reader)
            self.reader = -1


@pytest.fixture
def pipe() -> Iterator[Pipe]:
    pipe = Pipe()
    yield pipe
    pipe.channel.close()
    pipe.close_reader()


def test_what_fits_goes_out_at_once(pipe: Pipe) -> None:
    """Nothing waits, nobody is told."""
    assert pipe.put(b"a", memoryview(b"bc"))
    assert pipe.put(b"d")
    assert pipe.read() == b"abcd"
    assert (pipe.outbox.waiting, pipe.outbox.sent, pipe.blocked) == (0, 4, 0)


def test_order(pipe: Pipe) -> None:
    """Messages go out whole, in the order they were put, however large or small."""
    sizes = [1, LARGE // 8, 3, 70_000, 0, 9] * 50
    parts = [bytes([n % 256]) * size for n, size in enumerate(sizes)]
    for part in parts:
        pipe.outbox.put((part, part))
    pipe.outbox.flush()
    assert pipe.blocked == 1
    assert pipe.read_all() == b"".join(part * 2 for part in parts)
    assert pipe.outbox.waiting == 0
    assert pipe.outbox.sent == pipe.outbox.position == 2 * sum(map(len, parts))


def test_messages_of_many_parts(pipe: Pipe) -> None:
    """More parts than one system call takes, empty ones among them."""
    parts = [b"x" * (n % 3) for n in range(5000)]
    pipe.outbox.put(parts)
    assert pipe.read_all() == b"".join(parts)


def test_what_waits_is_counted(pipe: Pipe) -> None:
    """Bytes that wait and bytes that are out are together what was put."""
    assert not pipe.put(b"x" * LARGE)
    assert not pipe.put(b"y" * LARGE)
    assert pipe.outbox.sent + pipe.outbox.waiting == pipe.outbox.position == 2 * LARGE
    pipe.read_all()
    assert (pipe.outbox.sent, pipe.outbox.waiting) == (2 * LARGE, 0)


def test_memory_that_is_not_lent_is_copied(pipe: Pipe) -> None:
    """Its maker may write to it as soon as flush has returned."""
    memory, behind = bytearray(b"a" * 2 * LARGE), bytearray(b"b" * LARGE)
    pipe.outbox.put((memoryview(memory),))
    pipe.put(memoryview(behind), borrowed=False)
    memory[:] = b"!" * len(memory)
    behind[:] = b"!" * len(behind)
    assert pipe.read_all() == b"a" * 2 * LARGE + b"b" * LARGE


def test_memory_that_is_lent_is_not_copied(pipe: Pipe) -> None:
    """Until it is said that it has to be, with `own`."""
    memory = bytearray(b"a" * 2 * LARGE)
    pipe.put(memoryview(memory))
    memory[-1:] = b"b"
    pipe.outbox.own()
    memory[-1:] = b"c"
    assert pipe.read_all().endswith(b"aab")


def test_crowded(pipe: Pipe) -> None:
    """Makers of messages are woken, once each, when there is room; at once if there is."""
    woken: list[int] = []
    pipe.outbox.when_roomy(lambda: woken.append(0))
    assert woken == [0]
    pipe.put(b"x" * (CROWDED + LARGE))
    pipe.put(b"x" * CROWDED)
    assert pipe.outbox.crowded
    for n in (1, 2):
        pipe.outbox.when_roomy(lambda n=n: woken.append(n))  # type: ignore[misc]
    pipe.outbox.flush()
    assert woken == [0]
    pipe.read_all()
    assert woken == [0, 1, 2]
    assert not pipe.outbox.crowded


def test_no_more_are_woken_than_there_is_room_for(pipe: Pipe) -> None:
    """Those that are have their turn, and then others: also where they put nothing."""
    size, turns = 20_000, list[Callable[[], None]]()
    pipe.outbox.later = turns.append
    while pipe.outbox.waiting <= CROWDED + LARGE:
        pipe.put(b"x" * size)
    woken: list[int] = []
    for n in range(1000):
        pipe.outbox.when_roomy(functools.partial(woken.append, n))
    while not woken:
        pipe.read()
        pipe.outbox.flush()
    assert len(woken) <= CROWDED / size + 2
    for _ in woken:
        pipe.put(b"x" * size)
    first = len(woken)
    assert first <= CROWDED / size + 2
    rounds = 0
    while len(woken) < 1000:
        rounds += 1
        pipe.read_all()
        turns.pop(0)()
    assert woken == [*range(1000)]
    assert rounds > 10


def test_a_wake_is_kept_once(pipe: Pipe) -> None:
    """However often it is asked for."""
    woken: list[int] = []
    wake = functools.partial(woken.append, 1)
    pipe.put(b"x" * 3 * CROWDED)
    for _ in range(3):
        pipe.outbox.when_roomy(wake)
    pipe.read_all()
    assert woken == [1]


def test_whoever_gives_up_is_not_woken(pipe: Pipe) -> None:
    """And is not kept."""
    woken: list[int] = []
    pipe.put(b"x" * 3 * CROWDED)

    def wake() -> None:
        woken.append(1)

    pipe.outbox.when_roomy(wake)
    pipe.outbox.forget(wake)
    pipe.outbox.forget(wake)
    pipe.read_all()
    assert woken == []


def test_nobody_reads_any_more(pipe: Pipe) -> None:
    """What waits is let go of, waiters are woken, it is told once, and puts are for nothing."""
    woken: list[int] = []
    pipe.put(b"x" * 3 * CROWDED)
    pipe.outbox.when_roomy(lambda: woken.append(1))
    pipe.close_reader()
    assert pipe.outbox.flush()
    assert (pipe.gone, woken, pipe.outbox.gone) == (1, [1], True)
    assert pipe.put(b"more")
    assert (pipe.gone, pipe.outbox.waiting) == (1, 0)
    pipe.outbox.when_roomy(lambda: woken.append(2))
    assert woken == [1, 2]


def test_close(pipe: Pipe) -> None:
    """Nothing goes out any more, and nothing is counted as waiting, also later."""
    woken: list[int] = []
    pipe.put(b"x" * 3 * CROWDED)
    pipe.outbox.when_roomy(lambda: woken.append(1))
    pipe.outbox.close()
    assert woken == [1]
    while pipe.read():
        pass
    assert pipe.put(b"more")
    assert pipe.outbox.flush()
    assert (pipe.outbox.waiting, pipe.read(), pipe.gone) == (0, b"", 0)
    pipe.outbox.close()


def test_the_channel_is_closed_here(pipe: Pipe) -> None:
    """That is the end as well."""
    pipe.put(b"x" * 3 * CROWDED)
    pipe.channel.close()
    assert pipe.outbox.flush()
    assert pipe.outbox.gone


class RefusingSink(Sink):
    """The system refuses to write."""

    def push(self, parts: Parts = ()) -> bool | None:
        raise ChannelOSError(5, "input/output error")


def test_the_system_refuses() -> None:
    """It is raised, and the outbox can be used from the next flush on."""
    outbox = Outbox(RefusingSink(-1, pollable=True))
    outbox.put((b"x",))
    for _ in range(2):
        with pytest.raises(ChannelOSError):
            outbox.flush()
    outbox.close()
    assert outbox.flush()


class Finaliser:
    """Is collected in the midst of something."""

    def __init__(self, function: Callable[[], object]) -> None:
        self.function: Final = function
        self.me = self

    def __del__(self) -> None:
        self.function()


class CollectingSink(Sink):
    """Has a finaliser run in the midst of a write."""

    def push(self, parts: Parts = ()) -> bool | None:
        gc.collect(0)
        return super().push(parts)


def test_a_finaliser_sends_in_the_midst_of_a_flush(pipe: Pipe) -> None:
    """It comes behind what is being written; its memory is copied if it is not lent."""
    outbox = Outbox(CollectingSink(pipe.channel.fileno(), pollable=True))
    memory = bytearray(b"late" * LARGE)
    flushed: list[bool] = []

    def send() -> None:
        outbox.put((memoryview(memory),))
        flushed.append(outbox.flush(borrowed=False))
        outbox.put((b"end",))

    Finaliser(send)
    outbox.put((b"first" * LARGE,))
    assert not outbox.flush(borrowed=True)
    assert flushed == [False]
    memory[:] = b"!" * len(memory)
    pipe.outbox = outbox
    assert pipe.read_all() == b"first" * LARGE + b"late" * LARGE + b"end"


def test_many_threads(pipe: Pipe) -> None:
    """What several threads put and flush at once arrives whole, each thread's in its order."""
    size, count = 1000, 200

    def write(number: int) -> None:
        for index in range(count):
            pipe.put(bytes([number, index]), bytes([number]) * size)

    threads = [threading.Thread(target=write, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    found = b""
    while len(found) < 4 * count * (size + 2):
        found += pipe.read()
        pipe.outbox.flush()
    for thread in threads:
        thread.join()
    seen: list[list[int]] = [[] for _ in threads]
    for start in range(0, len(found), size + 2):
        number, index = found[start : start + 2]
        assert found[start + 2 : start + 2 + size] == bytes([number]) * size
        seen[number].append(index)
    assert seen == [list(range(count))] * 4


def test_unread(pipe: Pipe) -> None:
    """A message counts from when it was put until it is out."""
    unread = Unread(pipe.outbox)
    pipe.put(b"x")
    unread.note()
    assert unread.count() == 0
    for expected in (1, 2, 3):
        pipe.put(b"x" * LARGE)
        unread.note()
        assert unread.count() == expected
    counts = set()
    while unread.count():
        pipe.read(LARGE)
        pipe.outbox.flush()
        counts.add(unread.count())
    assert counts == {3, 2, 1, 0}
    pipe.read_all()


def test_unread_at_the_end(pipe: Pipe) -> None:
    """Nothing is unread where nothing goes out any more."""
    unread = Unread(pipe.outbox)
    pipe.put(b"x" * 2 * LARGE)
    unread.note()
    pipe.outbox.close()
    assert unread.count() == 0
    assert module.__all__ == ["Outbox", "Unread"]

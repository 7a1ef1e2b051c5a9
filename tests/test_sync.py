"""Channels without an event loop: threads, and signal handlers that come in between.

What both fronts promise alike is tested in process/test_channels.py.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import random
import signal
import struct
import sys
import threading
import time
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

import pytest

from forkwire import (
    ChannelBusyError,
    InputChannel,
    OutputChannel,
    WriteOk,
    sync,
)

from .process.test_channels_support import (
    EDGE,
    LARGER_THAN_PIPE,
    drain,
    joined,
    message,
    parsed,
    push,
    reading,
    size_of,
    write_all,
    writing,
)
from .process.test_channels_support import nothing_left as nothing_left

pytestmark = pytest.mark.usefixtures("nothing_left")


class Alarm(Exception):
    """What the signal handler raises."""


@contextlib.contextmanager
def beside(function: Callable[..., Any], *args: Any) -> Iterator[list[Any]]:
    """Run ``function`` in a thread; its answer is there when the block is left."""
    answers: list[Any] = []
    thread = threading.Thread(target=lambda: answers.append(function(*args)))
    thread.start()
    try:
        yield answers
    finally:
        thread.join(30)
        assert not thread.is_alive()


@contextlib.contextmanager
def signals(handler: Callable[[], None], number: int = signal.SIGUSR1) -> Iterator[None]:
    """Send the main thread a signal every few milliseconds; each calls ``handler``."""
    main = threading.main_thread().ident or 0
    over = threading.Event()
    live = False  # not yet while the thread starts: it would be left running

    def send() -> None:
        while not over.wait(0.003):
            signal.pthread_kill(main, number)

    before = signal.signal(number, lambda *_: handler() if live else None)
    try:
        with beside(send):
            try:
                live = True
                yield
            finally:
                live = False
                over.set()
    finally:
        signal.signal(number, before)


class Once:
    """A handler that raises once, when ``when`` is true."""

    def __init__(self, when: Callable[[], object], error: type[BaseException] = Alarm) -> None:
        self.when, self.error = when, error
        self.calls = 0
        self.raised = False

    def __call__(self) -> None:
        self.calls += 1
        if not self.raised and self.when():
            self.raised = True
            raise self.error


# -- messages ---------------------------------------------------------------------------------


def test_messages_of_a_channel() -> None:
    """An iterator up to the end; what follows a ``break`` is still there."""
    with reading() as (inp, fd):
        write_all(fd, message(b"a") + message(b"b") + message(b"c"))
        for item in sync.messages(inp):
            assert item == b"a"
            break
        os.close(fd)
        assert list(sync.messages(inp)) == [b"b", b"c"]
        assert list(sync.messages(inp)) == []
        assert inp.end == EDGE


def test_many_threads_write() -> None:
    """Messages go out whole, and each thread's in its order."""
    threads, each, size = 6, 20, 30_000
    with writing() as (out, fd):

        def write(number: int) -> None:
            for turn in range(each):
                assert sync.write_message(out, bytes([number, turn]) * (size // 2)) == WriteOk()

        with contextlib.ExitStack() as stack:
            for number in range(threads):
                stack.enter_context(beside(write, number))
            messages, rest = parsed(drain(fd, threads * each * (size + 4)))
    assert rest == b""
    assert all(item == item[:2] * (size // 2) for item in messages)
    for number in range(threads):
        assert [item[1] for item in messages if item[0] == number] == list(range(each))


def test_a_conversation_of_two_threads() -> None:
    """Question and answer, a thousand times."""
    with joined() as (inp1, out1), joined() as (inp2, out2):

        def answer() -> None:
            for item in sync.messages(inp1):
                sync.write_message(out2, item + b"!")

        with beside(answer):
            for number in range(1000):
                assert sync.write_message(out1, size_of(number)) == WriteOk()
                assert sync.read_message(inp2) == size_of(number) + b"!"
            out1.close()


def test_a_loop_is_not_needed() -> None:
    """Nothing of it is loaded by using a channel, and no descriptor made."""
    with joined() as (inp, out):
        before = os.listdir("/proc/self/fd")
        sync.write_int(out, 7)
        assert sync.read_int(inp) == 7
        assert os.listdir("/proc/self/fd") == before


# -- signals ----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["pipe", "socketpair"])
@pytest.mark.parametrize("error", [Alarm, KeyboardInterrupt, SystemExit])
def test_an_exception_in_the_middle_of_a_write(kind: str, error: type[BaseException]) -> None:
    """What had begun goes out before the next message."""
    payload = os.urandom(LARGER_THAN_PIPE)
    with writing(kind) as (out, fd):
        handler = Once(lambda: out._half._rest, error)
        content = bytearray(payload)
        with pytest.raises(error), signals(handler):
            sync.write_message(out, content)
        content[:] = b"changed"
        with beside(drain, fd, LARGER_THAN_PIPE + 4 + 8) as answers:
            assert sync.write_message(out, b"next") == WriteOk()
        assert answers == [message(payload) + message(b"next")]


def test_a_ctrl_c_in_the_middle_of_a_write() -> None:
    """Python's own handler for SIGINT, not one of ours."""
    with writing() as (out, fd):
        over = threading.Event()

        def interrupt() -> None:
            while not out._half._rest and not over.wait(0.001):
                pass
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)

        before = signal.signal(signal.SIGINT, signal.default_int_handler)
        try:
            with pytest.raises(KeyboardInterrupt), beside(interrupt):
                sync.write_message(out, bytes(LARGER_THAN_PIPE))
        finally:
            signal.signal(signal.SIGINT, before)
        with beside(drain, fd) as answers:
            out.finish()
        assert answers == [message(bytes(LARGER_THAN_PIPE))]


def test_finishing_several_interrupted_writes() -> None:
    """``finish`` may itself be interrupted, and called again."""
    with writing() as (out, fd):
        for _ in range(3):
            with pytest.raises(Alarm), signals(Once(lambda: True)):
                sync.write_message(out, bytes(LARGER_THAN_PIPE))
        assert not out.closed
        with beside(drain, fd) as answers:
            out.finish()
        messages, rest = parsed(answers[0])
        assert rest == b""
        assert messages == [bytes(LARGER_THAN_PIPE)] * len(messages)


def test_an_exception_before_the_first_byte() -> None:
    """A message of which nothing went out is withdrawn."""
    with writing() as (out, fd):
        junk = 0
        while pushed := push(out.fileno(), bytes(4)):
            junk += pushed
        with pytest.raises(Alarm), signals(Once(lambda: out._half._rest)):
            sync.write_message(out, b"never")
        drain(fd, junk)
        assert sync.write_message(out, b"next") == WriteOk()
        assert drain(fd, 8) == message(b"next")


@pytest.mark.parametrize("held", [0, 1, 3, 4, 5, 60_000])
@pytest.mark.parametrize("item", [b"hello", bytes(100_000), -7], ids=["small", "large", "integer"])
def test_an_exception_in_the_middle_of_a_read(item: bytes | int, held: int) -> None:
    """The part that had come is kept, and the next read goes on."""
    ask: Callable[[InputChannel], object]
    if isinstance(item, int):
        ask, stream = sync.read_int, size_of(item)
    else:
        ask, stream = sync.read_message, message(item)
    held = min(held, len(stream) - 1)
    with reading() as (inp, fd):
        for part in (stream[:held], b""):
            with beside(write_all, fd, part), pytest.raises(Alarm), signals(Once(lambda: True)):
                ask(inp)
        with beside(write_all, fd, stream[held:] + message(b"next")):
            assert ask(inp) == item
            assert sync.read_message(inp) == b"next"


def test_a_handler_that_returns_is_not_noticed() -> None:
    """EINTR: reading and writing go on; the handler runs while they wait."""
    handler = Once(lambda: False)
    with joined() as (inp, out), signals(handler):

        def write_late() -> None:
            while handler.calls < 10:
                time.sleep(0.001)
            sync.write_message(out, bytes(LARGER_THAN_PIPE))

        with beside(write_late):
            assert sync.read_message(inp) == bytes(LARGER_THAN_PIPE)

        def read_late() -> object:
            while handler.calls < 20:
                time.sleep(0.001)
            return sync.read_message(inp)

        with beside(read_late) as answers:
            assert sync.write_message(out, bytes(LARGER_THAN_PIPE)) == WriteOk()
        assert answers == [bytes(LARGER_THAN_PIPE)]


class Refused:
    """A handler that makes ``attempt`` while the channel is in use, and must not be let in."""

    def __init__(self, attempt: Callable[[], object], when: Callable[[], object]) -> None:
        self.attempt, self.when = attempt, when
        self.times = 0

    def __call__(self) -> None:
        if self.when():
            with pytest.raises(ChannelBusyError):
                self.attempt()
            self.times += 1


def test_a_handler_that_writes_in_the_middle_of_a_write() -> None:
    """It is refused: to wait for the message it came into would be to wait for ever."""
    with writing() as (out, fd):
        handler = Refused(lambda: sync.write_message(out, b"x"), lambda: out._half._rest)
        late = threading.Timer(0.05, drain, (fd, LARGER_THAN_PIPE + 4))
        with signals(handler):
            late.start()
            assert sync.write_message(out, bytes(LARGER_THAN_PIPE)) == WriteOk()
        late.join()
        assert handler.times
        assert sync.write_message(out, b"next") == WriteOk()
        assert drain(fd, 8) == message(b"next")


def test_a_handler_that_reads_in_the_middle_of_a_read() -> None:
    """It is refused, as any second reader is."""
    with reading() as (inp, fd):
        handler = Refused(lambda: sync.read_message(inp), lambda: inp._half._reading)
        late = threading.Timer(0.05, os.write, (fd, message(b"x")))
        with signals(handler):
            late.start()
            assert sync.read_message(inp) == b"x"
        late.join()
        assert handler.times


class Storm:
    """Signals at random moments, that raise in the main thread where it is armed."""

    def __init__(self, wanted: int) -> None:
        self.armed = False
        self.raised, self.wanted = 0, wanted
        self._main = threading.main_thread().ident or 0
        self._over = threading.Event()
        self._random = random.Random(7)
        self._deadline = time.monotonic() + 15

    @property
    def goes_on(self) -> bool:
        return self.raised < self.wanted and time.monotonic() < self._deadline

    def _handler(self, number: int, frame: object) -> None:
        if self.armed:
            self.armed = False
            self.raised += 1
            raise Alarm

    def _send(self) -> None:
        while not self._over.wait(self._random.uniform(0, 0.002)):
            signal.pthread_kill(self._main, signal.SIGUSR1)

    @contextlib.contextmanager
    def blowing(self) -> Iterator[None]:
        before = signal.signal(signal.SIGUSR1, self._handler)
        try:
            with beside(self._send):
                try:
                    yield
                finally:
                    self.armed = False
                    self._over.set()
        finally:
            signal.signal(signal.SIGUSR1, before)


def raising_at(number: int) -> Callable[..., None]:
    """A profiler that raises at the nth moment at which Python would run a signal's handler.

    These are the start of a function and the return from C, as far as this can see.
    """
    moments = itertools.count(1)

    def profile(frame: FrameType, event: str, arg: object) -> None:
        ours = "forkwire" in frame.f_code.co_filename
        if ours and event in ("call", "c_return") and next(moments) == number:
            sys.setprofile(None)
            raise Alarm

    return profile


def test_an_exception_at_any_call_of_a_read_loses_nothing() -> None:
    """Wherever it strikes, the next read has the message, and the channel can be closed."""
    for number in range(1, 100):
        with reading() as (inp, fd):
            write_all(fd, message(b"a") + message(b"b"))
            raised = False
            sys.setprofile(raising_at(number))
            try:
                assert sync.read_message(inp) == b"a"
            except Alarm:
                raised = True
            finally:
                sys.setprofile(None)
            assert sync.read_message(inp) == (b"a" if raised else b"b")
            inp.close()
        if not raised:
            break
    assert 5 < number < 99


@pytest.mark.parametrize("size", [100, 200_000])
def test_reading_in_a_storm_loses_nothing(size: int) -> None:
    """Exceptions at any moment of a read: every message arrives, once, in order."""
    storm, got = Storm(300), []
    with joined() as (inp, out):

        def write() -> None:
            number = 0
            while sync.write_message(out, struct.pack("=q", number) * (size // 8)) == WriteOk():
                number += 1

        with beside(write):
            with storm.blowing():
                while storm.goes_on:
                    item = None
                    try:
                        storm.armed = True
                        item = sync.read_message(inp)
                        storm.armed = False
                    except Alarm:
                        pass
                    if item is not None:
                        got.append(item)
            inp.close()
    assert storm.raised > 30
    assert got == [struct.pack("=q", number) * (size // 8) for number in range(len(got))]


@pytest.mark.parametrize("size", [100, 200_000])
def test_writing_in_a_storm_tears_nothing(size: int) -> None:
    """Exceptions at any moment of a write: messages are whole or absent, the acknowledged there."""
    storm, acknowledged = Storm(300), []
    with joined() as (inp, out):
        with beside(lambda: list(sync.messages(inp))) as answers:
            number = 0
            with storm.blowing():
                while storm.goes_on:
                    answer = None
                    try:
                        storm.armed = True
                        answer = sync.write_message(out, struct.pack("=q", number) * (size // 8))
                        storm.armed = False
                    except Alarm:
                        pass
                    if answer is not None:
                        acknowledged.append(number)
                    number += 1
            out.finish()
        assert inp.end == EDGE
    arrived = [struct.unpack("=q", item[:8])[0] for item in answers[0]]
    assert storm.raised > 30
    assert answers[0] == [struct.pack("=q", number) * (size // 8) for number in arrived]
    assert arrived == sorted(set(arrived))
    assert set(acknowledged) <= set(arrived)


# -- closing ----------------------------------------------------------------------------------


def test_finish_waits_and_close_does_not() -> None:
    """After an exception: ``close`` cuts the message, ``finish`` completes it."""
    for finish in (True, False):
        with writing() as (out, fd):
            with pytest.raises(Alarm), signals(Once(lambda: out._half._rest)):
                sync.write_message(out, bytes(LARGER_THAN_PIPE))
            with beside(drain, fd) as answers:
                if finish:
                    out.finish()
                else:
                    out.close()
            assert (answers == [message(bytes(LARGER_THAN_PIPE))]) == finish


def test_finish_at_a_peer_that_has_gone() -> None:
    """There is nobody to wait for."""
    with writing() as (out, fd):
        with pytest.raises(Alarm), signals(Once(lambda: out._half._rest)):
            sync.write_message(out, bytes(LARGER_THAN_PIPE))
        os.close(fd)
        out.finish()
        assert out.closed


def test_the_peer_closes_while_a_thread_waits() -> None:
    """A blocked reader, and a blocked writer, are woken by the end."""
    with reading() as (inp, fd), beside(sync.read_message, inp) as answers:
        os.close(fd)
    assert answers == [EDGE]
    with (
        writing() as (out, fd),
        beside(sync.write_message, out, bytes(LARGER_THAN_PIPE)) as answers,
    ):
        drain(fd, 100)
        os.close(fd)
    assert answers == [EDGE]


def test_a_channel_handed_to_another_thread() -> None:
    """Made here, used there, closed here."""

    def talk(inp: InputChannel, out: OutputChannel) -> object:
        sync.write_message(out, b"x")
        return sync.read_message(inp)

    with joined() as (inp, out):
        for _ in range(3):
            with beside(talk, inp, out) as answers:
                pass
            assert answers == [b"x"]

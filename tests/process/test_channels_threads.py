"""Closing a channel while another thread is at work on it: never a stranger's descriptor."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import anyio
import pytest

from forkwire import (
    ChannelBusyError,
    EndOfFile,
    InputChannel,
    OutputChannel,
    UsageError,
    WriteOk,
    read_message,
    sync,
    write_message,
)

from .test_channels_support import LARGER_THAN_PIPE, drain, message, parsed, reading, until, writing
from .test_channels_support import nothing_left as nothing_left
from .test_run_support import HOSTS

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("nothing_left")]

PATIENCE = 20.0


class Background(threading.Thread):
    """A function in a thread, and what became of it."""

    def __init__(self, function: Callable[[], Any]) -> None:
        super().__init__(daemon=True)
        self.function = function
        self.answer: Any = None
        self.start()

    def run(self) -> None:
        try:
            self.answer = self.function()
        except BaseException as error:
            self.answer = error

    def over(self) -> Any:
        self.join(PATIENCE)
        assert not self.is_alive()
        return self.answer


@contextlib.contextmanager
def switching_often() -> Iterator[None]:
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        yield
    finally:
        sys.setswitchinterval(before)


@pytest.mark.parametrize("loop", [None, *HOSTS])
def test_closing_ends_a_read_in_another_thread(loop: Any) -> None:
    """It answers the end of the file; also where a loop, that is over, had the channel before."""
    with reading() as (inp, fd):
        if loop is not None:
            os.write(fd, message(b"x"))
            assert anyio.run(read_message, inp, **HOSTS[loop]) == b"x"
        thread = Background(lambda: sync.read_message(inp))
        while inp._half._use._waker is None:
            time.sleep(0)
        inp.close()
        assert thread.over() == EndOfFile()


@pytest.mark.parametrize("loop", [None, *HOSTS])
def test_closing_ends_a_write_in_another_thread(loop: Any) -> None:
    """The same, where the pipe is full."""
    with writing() as (out, fd):
        if loop is not None:
            assert anyio.run(write_message, out, b"x", **HOSTS[loop]) == WriteOk()
        thread = Background(lambda: sync.write_message(out, bytes(2 * 2**20)))
        while out._half._use._waker is None:
            time.sleep(0)
        out.close()
        assert thread.over() == EndOfFile()
        assert fd >= 0


def test_a_writing_thread_never_writes_to_another_file() -> None:
    """The number is free only once the thread is out of the system call."""
    with switching_often():
        for _ in range(300):
            read_fd, write_fd = os.pipe()
            out = OutputChannel.from_fd(write_fd)
            started = threading.Event()

            def write(out: OutputChannel = out, started: threading.Event = started) -> None:
                while isinstance(sync.write_message(out, b"mine"), WriteOk):
                    started.set()

            thread = Background(write)
            started.wait(PATIENCE)
            out.close()
            other = os.pipe()
            assert thread.over() is None
            os.close(other[1])
            assert os.read(other[0], 100) == b""
            os.close(other[0])
            os.close(read_fd)


def test_a_reading_thread_never_reads_another_file() -> None:
    """The same for what another file has to say."""
    with switching_often():
        for _ in range(300):
            read_fd, write_fd = os.pipe()
            inp = InputChannel.from_fd(read_fd)
            os.write(write_fd, message(b"first"))
            started = threading.Event()

            def read(inp: InputChannel = inp, started: threading.Event = started) -> None:
                while not isinstance(sync.read_message(inp), EndOfFile):
                    started.set()

            thread = Background(read)
            started.wait(PATIENCE)
            inp.close()
            other = os.pipe()
            os.write(other[1], b"secret")
            assert thread.over() is None
            assert os.read(other[0], 100) == b"secret"
            for fd in (*other, write_fd):
                os.close(fd)


async def test_closing_while_a_thread_reads_a_file_for_the_loop() -> None:
    """The helper thread does not read what got the number."""
    for _ in range(20):
        with tempfile.TemporaryFile() as file:
            inp = InputChannel.from_fd(os.dup(file.fileno()))
            async with anyio.create_task_group() as group:
                group.start_soon(read_message, inp)
                await anyio.lowlevel.checkpoint()
                inp.close()
                read_end, write_end = os.pipe()
                os.write(write_end, b"secret")
            os.set_blocking(read_end, False)
            assert os.read(read_end, 100) == b"secret"
            os.close(read_end)
            os.close(write_end)


async def test_aclose_waits_for_a_thread_that_writes() -> None:
    """Its message goes out whole, and once."""
    payload = os.urandom(3 * 2**20)
    for _ in range(5):
        with writing() as (out, fd):
            thread = Background(lambda out=out: sync.write_message(out, payload))  # type: ignore[misc]
            await until(lambda out=out: out._half._rest)  # type: ignore[misc]
            async with anyio.create_task_group() as group:
                group.start_soon(out.aclose)
                stream = await anyio.to_thread.run_sync(drain, fd)
            assert parsed(stream) == ([payload], b"")
            assert thread.over() == WriteOk()


def test_a_signal_handler_that_writes_to_the_channel_being_written() -> None:
    """It is told that the channel is busy, wherever it interrupts; nothing hangs."""
    answers: list[object] = []
    with writing() as (out, fd):

        def handler(number: int, frame: object) -> None:
            try:
                answers.append(sync.write_message(out, b"handler"))
            except ChannelBusyError as error:
                answers.append(error)
            handled.set()

        main, over, handled = threading.get_ident(), threading.Event(), threading.Event()

        def interrupt() -> None:
            while not over.is_set():
                signal.pthread_kill(main, signal.SIGUSR1)
                handled.wait(PATIENCE)
                handled.clear()

        before = signal.signal(signal.SIGUSR1, handler)
        reader, interrupter = Background(lambda: drain(fd)), Background(interrupt)
        try:
            while len(answers) < 1000:
                assert sync.write_message(out, b"main") == WriteOk()
        finally:
            over.set()
            interrupter.over()
            signal.signal(signal.SIGUSR1, before)
        out.close()
        messages, rest = parsed(reader.over())
    assert rest == b""
    assert messages.count(b"handler") == answers.count(WriteOk())


def test_two_loops_that_take_turns() -> None:
    """Neither's late callback takes, or wakes for, what the other one reads."""
    turn, total = threading.Lock(), 600
    got: list[bytes] = []

    async def read(inp: InputChannel) -> None:
        while True:
            await anyio.to_thread.run_sync(turn.acquire)
            try:
                if len(got) == total:
                    return
                answer = await read_message(inp)
                assert not isinstance(answer, EndOfFile)
                got.append(answer)
            finally:
                turn.release()

    for backend in HOSTS:
        got.clear()
        with reading() as (inp, fd):
            threads = [
                Background(lambda inp=inp, b=backend: anyio.run(read, inp, **HOSTS[b]))  # type: ignore[misc]
                for _ in range(2)
            ]
            for number in range(total):
                os.write(fd, message(b"%d" % number))
            assert [thread.over() for thread in threads] == [None, None]
        assert got == [b"%d" % number for number in range(total)]


async def test_a_large_message_leaves_turns_to_others() -> None:
    """While the peer keeps up with the writer, the loop turns all the same."""
    payload = bytes(128 * 2**20)
    beats = 0

    async def beat() -> None:
        nonlocal beats
        while True:
            await anyio.lowlevel.checkpoint()
            beats += 1

    with writing() as (out, fd):
        async with anyio.create_task_group() as group:
            group.start_soon(beat)
            reader = Background(lambda: len(drain(fd, len(payload) + 4)))
            await write_message(out, payload)
            group.cancel_scope.cancel()
        assert reader.over() == len(payload) + 4
    assert beats >= 3


@pytest.mark.parametrize("kind", [socket.SOCK_DGRAM, socket.SOCK_SEQPACKET])
def test_sockets_that_cut_messages_are_refused(kind: socket.SocketKind) -> None:
    """A datagram that is too long would be lost without a word."""
    one, other = socket.socketpair(socket.AF_UNIX, kind)
    with one, other:
        for make in (InputChannel.from_fd, OutputChannel.from_fd):
            with pytest.raises(UsageError, match="SOCK_STREAM"):
                make(one.fileno())


@pytest.mark.skipif(not hasattr(os, "O_PATH"), reason="there is no O_PATH")
def test_a_descriptor_that_can_do_nothing_is_refused() -> None:
    """One that O_PATH opened."""
    fd = os.open(os.devnull, os.O_PATH)
    for make in (InputChannel.from_fd, OutputChannel.from_fd):
        with pytest.raises(UsageError, match="O_PATH"):
            make(fd)
    os.close(fd)


async def test_a_rest_is_finished_by_a_worker_thread() -> None:
    """What a cancelled writer began goes out before a thread's own message."""
    with writing() as (out, fd):
        with anyio.move_on_after(0.01):
            await write_message(out, bytes(LARGER_THAN_PIPE))
        stream = await anyio.to_thread.run_sync(drain, fd, LARGER_THAN_PIPE + 4)
        assert parsed(stream) == ([bytes(LARGER_THAN_PIPE)], b"")

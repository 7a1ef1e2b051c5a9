"""What a channel may be made of, what that leaves behind, and what it refuses."""

from __future__ import annotations

import contextlib
import errno
import os
import pty
import signal
import socket
import subprocess
import sys
import textwrap
import tty
from pathlib import Path
from typing import Any, Final

import anyio
import anyio.lowlevel
import pytest

from forkwire import (
    ChannelOSError,
    ForkwireError,
    InputChannel,
    OutputChannel,
    UsageError,
    WriteOk,
    read_message,
    sync,
    write_message,
)

from .test_channels_support import (
    EDGE,
    INSIDE,
    closing_fd,
    drain,
    joined,
    message,
    reading,
    size_of,
    writing,
)
from .test_channels_support import nothing_left as nothing_left

pytestmark = [pytest.mark.usefixtures("nothing_left")]

Handle = type[InputChannel] | type[OutputChannel]
each_handle = pytest.mark.parametrize("handle", [InputChannel, OutputChannel])


# -- what is refused --------------------------------------------------------------------------


@each_handle
def test_a_closed_descriptor(handle: Handle) -> None:
    """The system's error, as one of ours, with the number."""
    fd, other = os.pipe()
    os.close(fd)
    os.close(other)
    with pytest.raises(ChannelOSError, match=f"descriptor {fd}: ") as caught:
        handle.from_fd(fd)
    assert caught.value.errno == errno.EBADF


@each_handle
@pytest.mark.parametrize("fd", [-1, -(2**31), 2**31, 10**12])
def test_a_number_that_is_no_descriptor(handle: Handle, fd: int) -> None:
    """The error says the number."""
    with pytest.raises(UsageError, match=f"^{fd} is not a file descriptor"):
        handle.from_fd(fd)


@each_handle
@pytest.mark.parametrize("fd", ["0", None, 1.0, sys.__stdin__, Path("/")], ids=type)
def test_what_is_not_a_number(handle: Handle, fd: Any) -> None:
    """A file is not taken over, since it would close its descriptor a second time."""
    with pytest.raises(UsageError, match=rf"not {type(fd).__name__}.*os\.dup") as caught:
        handle.from_fd(fd)
    assert isinstance(caught.value, TypeError)
    assert isinstance(caught.value, ForkwireError)


def test_the_wrong_end_of_a_pipe() -> None:
    """The error says which direction is missing; the descriptor is left alone."""
    read_fd, write_fd = os.pipe()
    with closing_fd(read_fd, write_fd):
        with pytest.raises(UsageError, match=f"{write_fd} is not open for reading"):
            InputChannel.from_fd(write_fd)
        with pytest.raises(UsageError, match=f"{read_fd} is not open for writing"):
            OutputChannel.from_fd(read_fd)
        assert os.get_blocking(read_fd)
        assert os.get_blocking(write_fd)


def test_a_folder_cannot_be_written() -> None:
    """It can only be opened for reading, and says so."""
    fd = os.open("/", os.O_RDONLY)
    with closing_fd(fd), pytest.raises(UsageError, match="not open for writing"):
        OutputChannel.from_fd(fd)


@pytest.mark.parametrize("limit", [-1, 2**31])
def test_a_limit_without_meaning(limit: int) -> None:
    """The descriptor still belongs to the caller, unchanged."""
    read_fd, write_fd = os.pipe()
    with closing_fd(read_fd, write_fd):
        with pytest.raises(UsageError, match="max_message_size"):
            InputChannel.from_fd(read_fd, max_message_size=limit)
        assert os.get_blocking(read_fd)


# -- the handle -------------------------------------------------------------------------------


def test_a_channel_shows_its_descriptor() -> None:
    """``fileno`` and ``repr`` say the number, then that it is closed."""
    with joined() as (inp, out):
        assert repr(inp) == f"<InputChannel fd={inp.fileno()}>"
        assert repr(out) == f"<OutputChannel fd={out.fileno()}>"
        assert not inp.closed
        inp.close()
        out.close()
        assert (repr(inp), repr(out)) == ("<InputChannel closed>", "<OutputChannel closed>")
        assert (inp.fileno(), out.fileno()) == (-1, -1)
        assert inp.closed
        assert out.closed


def test_closing_twice_closes_once() -> None:
    """A number that was given to another file meanwhile is not closed."""
    with joined() as (inp, out):
        number = inp.fileno()
        inp.close()
        other = os.dup2(out.fileno(), number)
        with closing_fd(other):
            inp.close()
            assert os.fstat(other)


@pytest.mark.parametrize("end", [0, 1])
def test_a_dropped_channel_warns_and_closes(end: int) -> None:
    """``ResourceWarning`` names it; the descriptor is closed and blocking again."""
    with joined() as pair:
        fd = os.dup(pair[end].fileno())
        spare = os.dup(fd)
        channel: Any = type(pair[end]).from_fd(fd)
        with closing_fd(spare):
            with pytest.warns(ResourceWarning, match=f"unclosed <.*Channel fd={fd}>"):
                del channel
            with pytest.raises(OSError, match="Bad file descriptor"):
                os.fstat(fd)


@pytest.mark.anyio
async def test_a_loop_does_not_keep_a_dropped_channel() -> None:
    """Also one that a loop watches: it is only waited for as long as somebody reads."""
    with reading() as (inp, fd):
        os.set_blocking(fd, True)
        channel = InputChannel.from_fd(os.dup(inp.fileno()))
        number = channel.fileno()
        with anyio.move_on_after(0.01):
            await read_message(channel)
        await anyio.lowlevel.checkpoint()  # the exception, and its frames, are gone
        with pytest.warns(ResourceWarning, match=f"fd={number}"):
            del channel
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(number)


# -- O_NONBLOCK -------------------------------------------------------------------------------


@pytest.mark.parametrize("end", [0, 1])
@pytest.mark.parametrize("before", [True, False])
def test_the_mode_is_restored_on_closing(end: int, before: bool) -> None:
    """A channel's descriptor never blocks; afterwards it is as it was."""
    pair = os.pipe()
    spare = os.dup(pair[end])
    with closing_fd(spare, pair[1 - end]):
        os.set_blocking(spare, before)
        handle: Handle = (InputChannel, OutputChannel)[end]
        channel = handle.from_fd(pair[end])
        assert not os.get_blocking(spare)
        channel.close()
        assert os.get_blocking(spare) == before


ENDINGS: Final = {
    "return": "",
    "exit": "sys.exit(3)",
    "exception": "raise SystemExit('text')",
    "closed behind its back": "os.close(0)",
    "number used again": "os.close(0); os.dup2(1, 0)",
}


@pytest.mark.parametrize("ending", ENDINGS)
def test_the_mode_is_restored_at_exit(ending: str) -> None:
    """A program that never closes its channel leaves its shell's stdin as it was."""
    ours, theirs = socket.socketpair()
    source = f"""
        import os, sys
        from forkwire import InputChannel
        channel = InputChannel.from_fd(0)
        assert not os.get_blocking(0)
        sys.kept = channel
        {ENDINGS[ending]}
    """
    with ours, theirs:
        script("asyncio", source, stdin=theirs.fileno(), check=False)
        assert os.get_blocking(theirs.fileno()) == ("behind" not in ending and "used" not in ending)


@pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning")
def test_a_child_does_not_restore_what_its_parent_changed() -> None:
    """The parent still uses the channel when a fork of it ends."""
    with joined() as (inp, out):
        pid = os.fork()
        if pid == 0:
            with contextlib.suppress(BaseException):
                inp.close()
            os._exit(0)
        os.waitpid(pid, 0)
        assert not os.get_blocking(inp.fileno())
        assert not os.get_blocking(out.fileno())


# -- files and devices ------------------------------------------------------------------------


def memory_file(content: bytes) -> int:
    fd = os.memfd_create("forkwire-test")
    os.write(fd, content)
    os.lseek(fd, 0, os.SEEK_SET)
    return fd


@pytest.mark.anyio
async def test_reading_a_file(tmp_path: Path) -> None:
    """Messages, the end, and an end inside; no loop can wait for a file, a thread reads it."""
    path = tmp_path / "stream"
    path.write_bytes(message(b"a") + message(bytes(200_000)) + size_of(-7) + b"\x01\x00")
    with contextlib.closing(InputChannel.from_fd(os.open(path, os.O_RDONLY))) as inp:
        assert await read_message(inp) == b"a"
        assert await read_message(inp) == bytes(200_000)
        assert await inp.read_int() == -7
        assert await read_message(inp) == INSIDE


@pytest.mark.anyio
async def test_writing_a_file(tmp_path: Path) -> None:
    """Several writers, whole messages; the mode is left alone. (trio starts tasks in any order.)"""
    path = tmp_path / "stream"
    with contextlib.closing(OutputChannel.from_fd(os.open(path, os.O_WRONLY | os.O_CREAT))) as out:
        assert os.get_blocking(out.fileno())
        async with anyio.create_task_group() as group:
            for number in range(100):
                group.start_soon(write_message, out, bytes([number]) * 1000)
        await out.aclose()
    content = path.read_bytes()
    written = [content[start : start + 1004] for start in range(0, len(content), 1004)]
    assert sorted(written) == sorted(message(bytes([n]) * 1000) for n in range(100))


@pytest.mark.anyio
async def test_memory_as_a_file() -> None:
    """What was written to a memfd can be read back."""
    fd = memory_file(b"")
    with (
        contextlib.closing(OutputChannel.from_fd(os.dup(fd))) as out,
        contextlib.closing(InputChannel.from_fd(fd)) as inp,
    ):
        assert await write_message(out, b"kept") == WriteOk()
        os.lseek(fd, 0, os.SEEK_SET)
        assert await read_message(inp) == b"kept"
        assert await read_message(inp) == EDGE


@pytest.mark.anyio
async def test_the_null_device() -> None:
    """It is at its end, and takes everything."""
    with contextlib.closing(InputChannel.from_fd(os.open("/dev/null", os.O_RDWR))) as inp:
        assert await read_message(inp) == EDGE
        assert sync.read_message(inp) == EDGE
    with contextlib.closing(OutputChannel.from_fd(os.open("/dev/null", os.O_RDWR))) as out:
        assert await write_message(out, bytes(2**31 - 1)) == WriteOk()
        assert sync.write_message(out, bytes(2**31 - 1)) == WriteOk()


@pytest.mark.anyio
async def test_the_zero_device() -> None:
    """A stream of empty messages, or of zeros."""
    with contextlib.closing(InputChannel.from_fd(os.open("/dev/zero", os.O_RDONLY))) as inp:
        for _ in range(20_000):
            assert await read_message(inp) == b""
        assert await inp.read_int() == 0
        assert sync.read_int(inp) == 0


@pytest.mark.anyio
async def test_a_fifo_and_a_network_socket(tmp_path: Path) -> None:
    """Any descriptor that a loop can wait for works alike."""
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    both = os.open(fifo, os.O_RDWR)
    with socket.create_server(("127.0.0.1", 0)) as server:
        near = socket.create_connection(server.getsockname())
        far, _ = server.accept()
    pairs = [(os.open(fifo, os.O_RDONLY), both), (far.detach(), near.detach())]
    for read_fd, write_fd in pairs:
        with (
            contextlib.closing(InputChannel.from_fd(read_fd)) as inp,
            contextlib.closing(OutputChannel.from_fd(write_fd)) as out,
        ):
            payload = bytes(500_000)
            async with anyio.create_task_group() as group:
                group.start_soon(write_message, out, payload)
                assert await read_message(inp) == payload
            await out.aclose()
            assert await read_message(inp) == EDGE


# -- standard input and output ----------------------------------------------------------------

LOOPS: Final = {
    "asyncio": "backend='asyncio'",
    "uvloop": "backend='asyncio', backend_options={'use_uvloop': True}",
    "trio": "backend='trio'",
}

ECHO: Final = """
    import anyio
    from forkwire import InputChannel, OutputChannel, write_message

    async def main():
        inp, out = InputChannel.from_fd(0), OutputChannel.from_fd(1)
        async for message in inp:
            await write_message(out, message.upper())
        await out.write_int(int(inp.end.truncated))
        await out.aclose()
        await inp.aclose()

    anyio.run(main, LOOP)
"""

ECHO_BLOCKING: Final = """
    from forkwire import InputChannel, OutputChannel, sync

    inp, out = InputChannel.from_fd(0), OutputChannel.from_fd(1)
    for message in sync.messages(inp):
        sync.write_message(out, message.upper())
    sync.write_int(out, int(inp.end.truncated))
    out.close()
    inp.close()
"""


def script(loop: str, source: str, check: bool = True, **options: Any) -> Any:
    source = textwrap.dedent(source).replace("LOOP", LOOPS.get(loop, ""))
    command = [sys.executable, "-W", "error", "-c", source]
    return subprocess.run(command, check=check, timeout=30, **options)


each_program = pytest.mark.parametrize("loop", [*LOOPS, "blocking"])


def echo(loop: str) -> str:
    return ECHO if loop in LOOPS else ECHO_BLOCKING


@each_program
def test_standard_input_and_output_as_pipes(loop: str) -> None:
    """A program that speaks over its stdio, larger than a pipe holds, both ways at once."""
    payload = b"abc" * 100_000
    sent = message(b"hello") + message(payload) + message(b"")
    done = script(loop, echo(loop), input=sent, capture_output=True)
    expected = message(b"HELLO") + message(payload.upper()) + message(b"") + size_of(0)
    assert done.stderr == b""
    assert done.stdout == expected


@each_program
def test_standard_input_and_output_as_files(loop: str, tmp_path: Path) -> None:
    """The same with redirections, as a shell makes them."""
    (tmp_path / "in").write_bytes(message(b"hello") + message(b"cut")[:-1])
    with (tmp_path / "in").open("rb") as stdin, (tmp_path / "out").open("wb") as stdout:
        script(loop, echo(loop), stdin=stdin, stdout=stdout)
    assert (tmp_path / "out").read_bytes() == message(b"HELLO") + size_of(1)


@each_program
def test_standard_input_and_output_on_a_terminal(loop: str) -> None:
    """0, 1 and 2 are one description there: it is left blocking, as the shell needs it."""
    master, slave = pty.openpty()
    tty.setraw(slave)
    with closing_fd(master, slave):
        os.write(master, message(b"hello") + size_of(-1))
        done = script(
            loop,
            echo(loop),
            stdin=slave,
            stdout=slave,
            stderr=subprocess.PIPE,
            check=False,
            process_group=0,
        )
        assert b"NegativeSizeError" in done.stderr
        assert drain(master, 9) == message(b"HELLO")
        assert os.get_blocking(slave)


def test_a_reader_that_goes_away_does_not_kill_the_writer() -> None:
    """A program whose stdout is closed gets an end, also where SIGPIPE would kill it."""
    source = """
        import sys
        from forkwire import OutputChannel, sync

        out = OutputChannel.from_fd(1)
        while sync.write_message(out, bytes(1000)) != sync.EndOfFile():
            pass
        out.close()
        sys.exit(7)
    """
    process = subprocess.Popen(
        [sys.executable, "-W", "error", "-c", textwrap.dedent(source)], stdout=subprocess.PIPE
    )
    assert process.stdout is not None
    process.stdout.read(10_000)
    process.stdout.close()
    assert process.wait(30) == 7
    assert signal.getsignal(signal.SIGPIPE) == signal.SIG_IGN


@pytest.mark.anyio
async def test_a_full_descriptor_table() -> None:
    """Reading and writing need no further descriptor."""
    with writing() as (out, fd):
        assert await write_message(out, b"x") == WriteOk()
        hoard: list[int] = []
        try:
            with contextlib.suppress(OSError):
                while len(hoard) < 100_000:
                    hoard.append(os.dup(fd))
            assert await write_message(out, b"y") == WriteOk()
            assert sync.write_message(out, b"z") == WriteOk()
        finally:
            for spare in hoard:
                os.close(spare)
        assert drain(fd, 15) == message(b"x") + message(b"y") + message(b"z")

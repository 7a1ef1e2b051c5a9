"""What every channel does: one contract for asyncio, uvloop, trio and threads without a loop."""

from __future__ import annotations

import errno
import os
from typing import Any

import anyio
import numpy
import pytest

from forkwire import (
    ChannelBusyError,
    ChannelOSError,
    InputChannel,
    NegativeSizeError,
    OutputChannel,
    PayloadTooLargeError,
    PayloadTypeError,
    ProcessWorkerIPCError,
    SizeLimitError,
    UsageError,
    WriteOk,
)

from .test_channels_support import (
    EDGE,
    FRONTS,
    INSIDE,
    Front,
    closing_fd,
    drain,
    ends,
    joined,
    message,
    parsed,
    reading,
    size_of,
    until,
    writing,
)
from .test_channels_support import nothing_left as nothing_left

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("nothing_left")]

each_kind = pytest.mark.parametrize("kind", ["pipe", "socketpair", "pty"])


@pytest.fixture(params=FRONTS)
def front_name(request: pytest.FixtureRequest) -> str:
    """Each test runs on the three loops, and in threads."""
    name: str = request.param
    return name


@pytest.fixture
def front(front_name: str) -> Front:
    return FRONTS[front_name][0]


@pytest.fixture
def anyio_backend(front_name: str) -> tuple[str, dict[str, Any]]:
    return FRONTS[front_name][1]


@each_kind
async def test_messages_and_integers_arrive_in_order(front: Front, kind: str) -> None:
    """Both kinds of item share a channel; the empty message is one too."""
    with joined(kind) as (inp, out):
        assert await front.write(out, b"0 Ready") == WriteOk()
        assert await front.write_int(out, -1) == WriteOk()
        assert await front.write(out, b"") == WriteOk()
        assert await front.write_int(out, 2**31 - 1) == WriteOk()
        assert await front.write(out, bytearray(b"last")) == WriteOk()
        assert await front.read(inp) == b"0 Ready"
        assert await front.read_int(inp) == -1
        assert await front.read(inp) == b""
        assert await front.read_int(inp) == 2**31 - 1
        assert await front.read(inp) == b"last"


@each_kind
async def test_what_goes_out_is_the_specified_encoding(front: Front, kind: str) -> None:
    """Size, payload, and nothing else; an integer is four bytes."""
    with writing(kind) as (out, fd):
        await front.write(out, memoryview(b"hello"))
        await front.write_int(out, 7)
        await front.write(out, numpy.arange(3, dtype="u1"))
        expected = message(b"hello") + size_of(7) + message(b"\x00\x01\x02")
        assert drain(fd, len(expected)) == expected


@each_kind
async def test_a_message_larger_than_the_pipe(front: Front, kind: str) -> None:
    """It goes out and comes in by parts, and is the same."""
    payload = os.urandom(100_000) * (2 if kind == "pty" else 30)
    with joined(kind) as (inp, out):
        async with anyio.create_task_group() as group:
            group.start_soon(front.write, out, payload)
            assert await front.read(inp) == payload
            group.start_soon(front.write, out, b"next")
            assert await front.read(inp) == b"next"


@each_kind
async def test_a_message_is_there_with_its_last_byte(front: Front, kind: str) -> None:
    """A reader does not wait for more: the peer may be waiting for the answer."""
    with reading(kind) as (inp, fd):
        for payload in (b"", b"x", bytes(3000)):
            os.write(fd, message(payload))
            assert await front.read(inp) == payload
            os.write(fd, size_of(5))
            assert await front.read_int(inp) == 5


@each_kind
async def test_iterating_ends_with_the_stream(front: Front, kind: str) -> None:
    """All messages up to the end of the file; ``end`` then says how that came."""
    with reading(kind) as (inp, fd):
        assert inp.end is None
        os.write(fd, message(b"a") + message(b"") + message(b"c"))
        os.close(fd)
        assert await front.messages(inp) == [b"a", b"", b"c"]
        assert inp.end == EDGE
        assert await front.messages(inp) == []


async def test_iterating_tells_a_stream_cut_short(front: Front) -> None:
    """A truncated stream yields what is whole; ``end`` says that there was more."""
    with reading() as (inp, fd):
        os.write(fd, message(b"a") + message(b"bcd")[:-1])
        os.close(fd)
        assert await front.messages(inp) == [b"a"]
        assert inp.end == INSIDE


@each_kind
@pytest.mark.parametrize("held", range(10))
async def test_the_end_after_any_byte(front: Front, kind: str, held: int) -> None:
    """A peer that dies after any byte: what is whole is read, then an end that says if it cut."""
    with reading(kind) as (inp, fd):
        os.write(fd, message(b"first") + message(b"other")[:held])
        os.close(fd)
        assert await front.read(inp) == b"first"
        if held == 9:
            assert await front.read(inp) == b"other"
        end = INSIDE if 0 < held < 9 else EDGE
        assert await front.read(inp) == end
        assert await front.read(inp) == end
        assert await front.read_int(inp) == end
        assert inp.end == end


@pytest.mark.parametrize("held", range(5))
async def test_the_end_around_an_integer(front: Front, held: int) -> None:
    """In the middle of an integer an end cuts, before and after it does not."""
    with reading() as (inp, fd):
        os.write(fd, size_of(-9)[:held])
        os.close(fd)
        if held == 4:
            assert await front.read_int(inp) == -9
        assert await front.read_int(inp) == (INSIDE if 0 < held < 4 else EDGE)


async def test_the_end_inside_a_large_message(front: Front) -> None:
    """Also where the payload is read into memory of its own."""
    with reading() as (inp, fd):
        os.write(fd, size_of(10**8) + b"some")
        os.close(fd)
        assert await front.read(inp) == INSIDE
        assert inp.end == INSIDE


@each_kind
async def test_a_peer_that_closed_is_the_end_for_a_writer(front: Front, kind: str) -> None:
    """Neither SIGPIPE nor an exception: each later write answers the same."""
    if kind == "pty":
        fd, write_fd = ends("pty")
        out = OutputChannel.from_fd(write_fd)
        os.close(fd)
    else:
        read_fd, write_fd = ends(kind)
        out = OutputChannel.from_fd(write_fd)
        os.close(read_fd)
    try:
        assert await front.write(out, b"hello") == EDGE
        assert await front.write_int(out, 7) == EDGE
        assert await front.write(out, b"hello") == EDGE
    finally:
        out.close()


@each_kind
async def test_a_peer_that_closes_inside_a_message_ends_its_writer(front: Front, kind: str) -> None:
    """Whoever waits for room is told when there will be none."""
    with writing(kind) as (out, fd):
        async with anyio.create_task_group() as group:
            answers: list[object] = []

            async def write() -> None:
                answers.append(await front.write(out, bytes(3_000_000)))

            group.start_soon(write)
            await until(lambda: out._half._rest)
            drain(fd, 1000)
            os.close(fd)
        assert answers == [EDGE]
        assert await front.write(out, b"more") == EDGE


async def test_unread_data_does_not_hide_the_end_of_a_socket(front: Front) -> None:
    """A peer that closes without having read all is at its end, not an error (ECONNRESET)."""
    read_fd, peer = ends("socketpair")
    inp = InputChannel.from_fd(read_fd)
    try:
        os.write(peer, message(b"bye"))
        os.write(read_fd, b"never read")
        os.close(peer)
        assert await front.read(inp) == b"bye"
        assert await front.read(inp) == EDGE
    finally:
        inp.close()


@each_kind
@pytest.mark.parametrize("size", [-1, -(2**31)])
async def test_a_negative_size(front: Front, kind: str, size: int) -> None:
    """It is the peer's fault, at the size alone, and the channel's end."""
    with reading(kind) as (inp, fd):
        os.write(fd, message(b"ok") + size_of(size) + message(b"never"))
        assert await front.read(inp) == b"ok"
        for ask in (front.read, front.read, front.read_int):
            with pytest.raises(NegativeSizeError) as caught:
                await ask(inp)
            assert caught.value.size == size


@pytest.mark.parametrize("limit", [0, 10, 100_000])
async def test_a_size_above_the_limit(front: Front, limit: int) -> None:
    """As large as the limit is read; a byte more is refused before it comes."""
    with reading(max_message_size=limit) as (inp, fd):
        async with anyio.create_task_group() as group:
            group.start_soon(anyio.to_thread.run_sync, os.write, fd, message(bytes(limit)))
            assert await front.read(inp) == bytes(limit)
        os.write(fd, size_of(limit + 1))
        for ask in (front.read, front.read, front.read_int):
            with pytest.raises(SizeLimitError) as caught:
                await ask(inp)
            assert (caught.value.size, caught.value.limit) == (limit + 1, limit)


async def test_the_limit_does_not_concern_integers(front: Front) -> None:
    """A bare integer is no size."""
    with reading(max_message_size=0) as (inp, fd):
        os.write(fd, size_of(2**31 - 1) + size_of(-1))
        assert await front.read_int(inp) == 2**31 - 1
        assert await front.read_int(inp) == -1


@each_kind
async def test_what_cannot_be_sent_leaves_the_channel_usable(front: Front, kind: str) -> None:
    """A wrong payload is refused before a byte of it goes out."""
    with writing(kind) as (out, fd):
        for payload in ("text", 7, None, memoryview(b"abcd")[::2]):
            with pytest.raises(PayloadTypeError):
                await front.write(out, payload)
        with pytest.raises(PayloadTooLargeError):
            await front.write(out, numpy.zeros(2**31, "u1"))
        for number in (2**31, -(2**31) - 1):
            with pytest.raises(PayloadTooLargeError):
                await front.write_int(out, number)
        for no_number in ("7", 7.0, None):
            with pytest.raises(PayloadTypeError):
                await front.write_int(out, no_number)
        assert await front.write(out, b"fine") == WriteOk()
        assert drain(fd, 8) == message(b"fine")
        assert not os.get_blocking(out.fileno())


async def test_a_payload_may_be_changed_once_it_is_written(front: Front) -> None:
    """What was acknowledged does not refer to the caller's memory any more."""
    with joined() as (inp, out):
        payload = bytearray(b"first")
        await front.write(out, payload)
        payload[:] = b"other"
        payload.append(1)
        assert await front.read(inp) == b"first"


async def test_the_channel_of_the_other_direction(front: Front) -> None:
    """It, or what is no channel, is refused with a word on which one was meant."""
    with reading() as (inp, _), writing() as (out, _):
        not_inputs: list[Any] = [out, None, 7]
        for channel in not_inputs:
            with pytest.raises(UsageError, match=r"InputChannel.*input_channel"):
                await front.read(channel)
        not_outputs: list[Any] = [inp, None, 7]
        for channel in not_outputs:
            with pytest.raises(UsageError, match=r"OutputChannel.*output_channel"):
                await front.write(channel, b"x")


async def test_reading_a_channel_that_this_side_closed(front: Front) -> None:
    """It answers the end, whatever was still in it."""
    with reading() as (inp, fd):
        os.write(fd, message(b"a") + message(b"b"))
        assert await front.read(inp) == b"a"
        inp.close()
        assert await front.read(inp) == EDGE
        assert await front.read_int(inp) == EDGE
        assert await front.messages(inp) == []


async def test_writing_a_channel_that_this_side_closed(front: Front) -> None:
    """It answers the end; a wrong payload is still an error."""
    with writing() as (out, _):
        out.close()
        assert await front.write(out, b"x") == EDGE
        assert await front.write_int(out, 1) == EDGE
        with pytest.raises(PayloadTypeError):
            await front.write(out, None)


@each_kind
async def test_a_second_reader_is_refused(front: Front, kind: str) -> None:
    """Two readers would tear messages apart; the first is not disturbed."""
    with reading(kind) as (inp, fd):
        async with anyio.create_task_group() as group:
            got: list[object] = []

            async def read() -> None:
                got.append(await front.read(inp))

            group.start_soon(read)
            await until(lambda: inp._half._reading)
            for ask in (front.read, front.read_int, front.messages):
                with pytest.raises(ChannelBusyError, match="one reader at a time"):
                    await ask(inp)
            assert got == []
            os.write(fd, message(b"for the first"))
        assert got == [b"for the first"]
        os.write(fd, message(b"again"))
        assert await front.read(inp) == b"again"


@each_kind
async def test_writers_never_interleave(front: Front, kind: str) -> None:
    """Many writers, messages larger than what the descriptor takes: each arrives in one piece."""
    size = 20_000 if kind == "pty" else 200_000
    writers, each = 8, 4
    with writing(kind) as (out, fd):

        async def write(number: int) -> None:
            for turn in range(each):
                assert await front.write(out, bytes([number, turn]) * (size // 2)) == WriteOk()

        async with anyio.create_task_group() as group:
            for number in range(writers):
                group.start_soon(write, number)
            total = writers * each * (size + 4)
            stream: bytes = await anyio.to_thread.run_sync(drain, fd, total)
    messages, rest = parsed(stream)
    assert rest == b""
    assert all(item == item[:2] * (size // 2) for item in messages)
    for number in range(writers):
        assert [item[1] for item in messages if item[0] == number] == list(range(each))


async def test_a_writer_waits_for_its_reader(front: Front) -> None:
    """With a full pipe nothing is buffered on our side; the writer waits."""
    with writing() as (out, fd):
        async with anyio.create_task_group() as group:
            answers: list[object] = []

            async def write() -> None:
                for _ in range(4):
                    answer = await front.write(out, bytes(999_996))
                    answers.append(answer)

            group.start_soon(write)
            await until(lambda: out._half._rest)
            assert len(answers) <= 1  # what one large pipe holds
            stream: bytes = await anyio.to_thread.run_sync(drain, fd, 4_000_000)
        assert answers == [WriteOk()] * 4
    assert len(stream) == 4_000_000


@pytest.mark.parametrize(
    ("path", "flags", "number"),
    [("/", os.O_RDONLY, errno.EISDIR), ("/proc/self/mem", os.O_RDONLY, errno.EIO)],
)
async def test_what_the_system_refuses_to_read(
    front: Front, path: str, flags: int, number: int
) -> None:
    """The error has the errno, names the descriptor, and is an OSError as well."""
    inp = InputChannel.from_fd(fd := os.open(path, flags))
    try:
        for _ in range(2):
            with pytest.raises(ChannelOSError, match=f"reading descriptor {fd}: ") as caught:
                await front.read(inp)
            assert caught.value.errno == number
            assert isinstance(caught.value, OSError)
            assert isinstance(caught.value, ProcessWorkerIPCError)
    finally:
        inp.close()


async def test_what_the_system_refuses_to_write(front: Front) -> None:
    """A full disk is an error, and no message is left over from it."""
    out = OutputChannel.from_fd(fd := os.open("/dev/full", os.O_WRONLY))
    try:
        for _ in range(2):
            with pytest.raises(ChannelOSError, match=f"writing descriptor {fd}: ") as caught:
                await front.write(out, b"x")
            assert caught.value.errno == errno.ENOSPC
    finally:
        out.close()


async def test_two_channels_over_one_socket(front: Front) -> None:
    """Both directions of a socket: a duplicate each. Closing one leaves the other as it was."""
    near, far = ends("socketpair")
    with closing_fd(far):
        out = OutputChannel.from_fd(os.dup(near))
        inp = InputChannel.from_fd(near)
        os.write(far, message(b"a"))
        assert await front.read(inp) == b"a"
        out.close()
        assert not os.get_blocking(inp.fileno())
        os.write(far, message(b"b"))
        assert await front.read(inp) == b"b"
        inp.close()


async def test_the_last_of_two_duplicates_restores_the_mode(front: Front) -> None:
    """O_NONBLOCK belongs to both; it is taken back when neither channel needs it any more."""
    near, far = ends("socketpair")
    spare = os.dup(near)
    with closing_fd(far, spare):
        inp = InputChannel.from_fd(os.dup(near))
        out = OutputChannel.from_fd(near)
        inp.close()
        assert await front.write(out, b"x") == WriteOk()
        assert not os.get_blocking(spare)
        out.close()
        assert os.get_blocking(spare)

"""Framing, value by value: what is sent for a payload, and the five outcomes of a read."""

from __future__ import annotations

import array
import ctypes
import gc
import mmap
import struct
import sys
import tracemalloc
from dataclasses import FrozenInstanceError
from pathlib import Path
from typing import Any

import numpy
import pytest

from forkwire import (
    MAX_PAYLOAD_SIZE,
    ForkwireError,
    NegativeSizeError,
    PayloadTooLargeError,
    PayloadTypeError,
    SizeLimitError,
    UsageError,
)
from forkwire.wire.framing import BUFFER_SIZE, SMALL, Decoder, EndOfFile, WriteOk, encode_int, frame

from ..naming import named

EDGE = EndOfFile(truncated=False)
INSIDE = EndOfFile(truncated=True)
MEBIBYTE = 2**20


def size_of(number: int) -> bytes:
    return struct.pack("=i", number)


def message(payload: bytes) -> bytes:
    return size_of(len(payload)) + payload


def framed(payload: Any) -> bytes:
    return b"".join(frame(payload))


def fed(*chunks: bytes, limit: int = MAX_PAYLOAD_SIZE) -> Decoder:
    decoder = Decoder(limit)
    for chunk in chunks:
        decoder.feed(chunk)
    return decoder


def resident() -> int:
    """The memory that this process occupies, in bytes."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * mmap.PAGESIZE


# -- sending ----------------------------------------------------------------------------------


def mapped(content: bytes) -> mmap.mmap:
    memory = mmap.mmap(-1, len(content))
    memory[:] = content
    return memory


PAYLOADS = {
    "bytes": b"\x01\x02\x03\x04",
    "bytearray": bytearray(b"\x01\x02\x03\x04"),
    "memoryview": memoryview(b"\x01\x02\x03\x04"),
    "slice": memoryview(b"\x00\x01\x02\x03\x04\x05")[1:5],
    "two dimensions": memoryview(b"\x01\x02\x03\x04").cast("B", (2, 2)),
    "array": array.array("B", [1, 2, 3, 4]),
    "array of shorts": array.array("H", b"\x01\x02\x03\x04"),
    "ctypes": (ctypes.c_uint8 * 4)(1, 2, 3, 4),
    "ctypes shorts": (ctypes.c_uint16 * 2).from_buffer_copy(b"\x01\x02\x03\x04"),
    "numpy": numpy.array([[1, 2], [3, 4]], dtype="u1"),
    "numpy big-endian": numpy.frombuffer(b"\x01\x02\x03\x04", dtype=">u2"),
    "numpy scalar array": numpy.frombuffer(b"\x01\x02\x03\x04", dtype="<u4").reshape(()),
    "numpy structure": numpy.frombuffer(b"\x01\x02\x03\x04", dtype="u1,u1,<u2"),
    "numpy part": numpy.arange(12, dtype="u1").reshape(3, 4)[0:1] + numpy.uint8(1),
    "mmap": mapped(b"\x01\x02\x03\x04"),
}


@pytest.mark.parametrize("kind", PAYLOADS)
def test_any_contiguous_bytes_like_is_a_payload(kind: str) -> None:
    """The size counts bytes, whatever the payload's items and dimensions are."""
    assert framed(PAYLOADS[kind]) == message(b"\x01\x02\x03\x04")


EMPTY = [
    b"",
    bytearray(),
    memoryview(b"abc")[2:2],
    memoryview(b"abcd")[3:1:2],
    array.array("d"),
    (ctypes.c_int * 0)(),
    numpy.zeros(0),
    numpy.zeros((3, 0, 2)),
    numpy.zeros((4, 4))[:0, ::2],
]


@pytest.mark.parametrize("payload", EMPTY, ids=named)
def test_nothing_at_all_is_a_payload(payload: Any) -> None:
    """An empty payload of any type is a message of size 0."""
    assert framed(payload) == size_of(0)


def test_a_payload_is_not_copied() -> None:
    """The second buffer is the caller's memory itself."""
    payload = bytearray(b"before")
    _, view = frame(payload)
    payload[:] = b"AFTER!"
    assert bytes(view) == b"AFTER!"


@pytest.mark.parametrize("payload", ["text", 7, 3.5, None, [1, 2], ("a",), {}, object()], ids=named)
def test_what_is_not_bytes_like_is_refused(payload: Any) -> None:
    """The error names the type that was passed."""
    with pytest.raises(PayloadTypeError, match=f"not {type(payload).__name__}: ") as caught:
        frame(payload)
    assert isinstance(caught.value, TypeError)
    assert caught.value.__cause__ is None


def test_text_must_be_encoded() -> None:
    """For a str the error says what to do."""
    with pytest.raises(PayloadTypeError, match="encode it first"):
        frame("text")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "payload",
    [
        memoryview(b"abcd")[::2],
        memoryview(b"abcd")[::-1],
        numpy.zeros((4, 4))[:, 1],
        numpy.zeros((4, 4)).T[:, :2],
        numpy.zeros((4, 4), order="F"),
    ],
    ids=["every second", "reversed", "column", "part of transposed", "Fortran"],
)
def test_scattered_memory_is_refused(payload: Any) -> None:
    """Gaps, or another order than C's, would have to be copied: the caller is told how."""
    with pytest.raises(PayloadTypeError, match=r"not contiguous: copy it first"):
        frame(payload)


def test_the_largest_payload_has_a_size() -> None:
    """2**31 - 1 bytes are a message."""
    header, view = frame(bytes(MAX_PAYLOAD_SIZE))
    assert MAX_PAYLOAD_SIZE == 2**31 - 1
    assert header == size_of(2**31 - 1)
    assert len(view) == 2**31 - 1


@pytest.mark.parametrize(
    "make",
    [
        bytes,
        lambda size: mmap.mmap(-1, size),
        lambda size: numpy.zeros(size, "u1"),
        lambda size: numpy.zeros((2, size // 16), "f8"),
    ],
    ids=["bytes", "mmap", "numpy", "numpy doubles"],
)
def test_one_byte_more_is_refused(make: Any) -> None:
    """2**31 bytes cannot be announced; counted in bytes, not in items; nothing is copied."""
    payload = make(2**31)
    before = resident()
    with pytest.raises(PayloadTooLargeError, match=r"at most 2147483647 bytes, not 2147483648"):
        frame(payload)
    assert resident() - before < 16 * MEBIBYTE


@pytest.mark.parametrize("number", [0, 1, -1, 2**31 - 1, -(2**31), True, numpy.int64(-5)])
def test_a_bare_integer_has_four_bytes(number: int) -> None:
    """Any signed 32-bit value, of any type that is an integer."""
    assert encode_int(number) == size_of(int(number))


@pytest.mark.parametrize(
    "number", [2**31, -(2**31) - 1, 2**63, -(2**64), 10**5000], ids=lambda n: str(n.bit_length())
)
def test_an_integer_out_of_range_is_refused(number: int) -> None:
    """Not cut to 32 bits."""
    with pytest.raises(PayloadTooLargeError, match="32 bits") as caught:
        encode_int(number)
    assert isinstance(caught.value, ValueError)


@pytest.mark.parametrize("number", [1.0, "1", b"1", None, numpy.float32(1)], ids=repr)
def test_what_is_not_an_integer_is_refused(number: Any) -> None:
    """A float is not rounded, a string not read."""
    with pytest.raises(PayloadTypeError, match=f"not {type(number).__name__}"):
        encode_int(number)


# -- reading ----------------------------------------------------------------------------------


def test_the_five_outcomes_are_told_apart() -> None:
    """A message, an end at an edge, an end inside, a negative size, a size above the limit."""
    assert fed(message(b"hello")).next_message() == b"hello"
    assert fed(b"").next_message() == EDGE
    assert fed(message(b"hello")[:-1], b"").next_message() == INSIDE
    with pytest.raises(NegativeSizeError) as negative:
        fed(size_of(-2)).next_message()
    assert negative.value.size == -2
    with pytest.raises(SizeLimitError) as large:
        fed(size_of(11), limit=10).next_message()
    assert (large.value.size, large.value.limit) == (11, 10)


@pytest.mark.parametrize("held", range(1, 9))
def test_an_end_after_any_byte_of_a_message_is_inside(held: int) -> None:
    """Inside the size and inside the payload alike."""
    assert fed(message(b"hello")[:held], b"").next_message() == INSIDE


@pytest.mark.parametrize("held", range(5))
def test_an_end_around_an_integer(held: int) -> None:
    """Before it the end is at an edge, after it too; in the middle it is inside."""
    decoder = fed(size_of(-7)[:held], b"")
    if held == 4:
        assert decoder.next_int() == -7
    assert decoder.next_int() == (INSIDE if 0 < held < 4 else EDGE)


def test_what_is_complete_comes_before_the_end() -> None:
    """All messages before the end of the file are delivered first."""
    decoder = fed(message(b"a") + message(b"") + message(b"c") + b"x", b"")
    assert [decoder.next_message() for _ in range(4)] == [b"a", b"", b"c", INSIDE]


def test_an_end_is_final() -> None:
    """Whatever is asked afterwards, the answer is the same."""
    decoder = fed(message(b"a" * 10)[:8], b"")
    answers = [decoder.next_message(), decoder.next_int(), decoder.next_message()]
    assert answers == [INSIDE] * 3


@pytest.mark.parametrize("size", [-1, -(2**31), 11, 2**31 - 1])
def test_a_refusal_is_final(size: int) -> None:
    """After a bad size nothing is delivered any more, not even as integers."""
    decoder = fed(size_of(size), message(b"a"), limit=10)
    for ask in (decoder.next_message, decoder.next_int, decoder.next_message):
        with pytest.raises((NegativeSizeError, SizeLimitError)) as caught:
            ask()
        assert caught.value.args[0] == size
    assert decoder.message_ready()


@pytest.mark.parametrize("limit", [0, 1, 10, BUFFER_SIZE, 200_000])
def test_the_limit_itself_is_accepted(limit: int) -> None:
    """A message may be as large as the limit, and not a byte larger."""
    assert fed(message(bytes(limit)), limit=limit).next_message() == bytes(limit)
    with pytest.raises(SizeLimitError):
        fed(size_of(limit + 1), limit=limit).next_message()


def test_the_limit_does_not_concern_integers() -> None:
    """Nor does the sign: an integer that nobody took for a size is any integer."""
    decoder = fed(size_of(2**31 - 1) + size_of(-1), limit=0)
    assert decoder.next_int() == 2**31 - 1
    assert decoder.next_int() == -1


def test_bytes_are_not_judged_before_they_are_asked_for() -> None:
    """Behind a message there may be an integer that would be no size."""
    decoder = fed(message(b"query") + size_of(-1) + message(b"x"))
    assert decoder.next_message() == b"query"
    assert decoder.next_int() == -1
    assert decoder.next_message() == b"x"


@pytest.mark.parametrize("limit", [-1, 2**31, 2**40])
def test_a_limit_without_meaning_is_refused(limit: int) -> None:
    """A limit is 0 to 2**31 - 1 bytes."""
    with pytest.raises(UsageError, match="0 to 2147483647"):
        Decoder(limit)


BOUNDARY = sorted(
    {0, 1, 3, 4, 5, 200_000}
    | {
        edge + off
        for edge in (SMALL, BUFFER_SIZE - 4, BUFFER_SIZE, 2 * BUFFER_SIZE)
        for off in (-1, 0, 1)
    }
)


@pytest.mark.parametrize("size", BOUNDARY)
@pytest.mark.parametrize("chunk", [997, 4096, BUFFER_SIZE, 10**6])
def test_messages_around_the_sizes_of_the_buffer(size: int, chunk: int) -> None:
    """Three messages in a row arrive whole, and each as soon as its last byte is there."""
    payload = (b"0123456789" * (size // 10 + 1))[:size]
    assert cut_up(message(payload) * 3, chunk, size + 4) == [payload] * 3


@pytest.mark.parametrize("size", [0, 1, 3, 4, 5, 100])
def test_messages_byte_by_byte(size: int) -> None:
    """So they do when each byte comes alone."""
    assert cut_up(message(bytes(size)) * 3, 1, size + 4) == [bytes(size)] * 3


def cut_up(stream: bytes, chunk: int, length: int) -> list[bytes | EndOfFile]:
    """The messages of ``stream``, each ``length`` bytes long with its size."""
    decoder, got = Decoder(), []
    for start in range(0, len(stream), chunk):
        decoder.feed(stream[start : start + chunk])
        while (item := decoder.next_message()) is not None:
            got.append(item)
        assert len(got) == min(start + chunk, len(stream)) // length
    return got


def test_messages_do_not_change_afterwards() -> None:
    """What was delivered is a copy of its own, not a view of the buffer."""
    decoder = fed(message(b"first"))
    first = decoder.next_message()
    decoder.feed(message(b"other"))
    assert (first, type(first)) == (b"first", bytes)
    assert decoder.next_message() == b"other"


def test_an_integer_asked_where_a_large_message_was_begun() -> None:
    """The question may change: what was taken for a size is handed out as the integer."""
    body = bytes(range(256)) * 500
    decoder = fed(message(body)[:100_000])
    assert decoder.next_message() is None
    decoder.feed(message(body)[100_000:] + message(b"next"))
    assert decoder.next_int() == len(body)
    assert [decoder.next_int() for _ in range(len(body) // 4)] == list(
        struct.unpack(f"={len(body) // 4}i", body)
    )
    assert decoder.next_message() == b"next"


# -- memory -----------------------------------------------------------------------------------


def test_an_announced_size_commits_no_memory() -> None:
    """2 GiB that are only announced cost address space and nothing else."""
    before = resident()
    decoder = fed(size_of(MAX_PAYLOAD_SIZE) + b"abc")
    assert decoder.next_message() is None
    assert decoder.pending == 7
    assert resident() - before < 16 * MEBIBYTE
    decoder.feed(b"")
    assert decoder.next_message() == INSIDE


def test_a_large_payload_is_read_into_its_own_memory() -> None:
    """The first buffer is what is missing of the payload, the second takes what follows."""
    size = 10 * MEBIBYTE
    decoder = fed(size_of(size) + b"abc")
    assert not decoder.message_ready()
    body, rest = decoder.buffers()
    assert (len(body), len(rest)) == (size - 3, BUFFER_SIZE)
    body[-3:] = b"xyz"
    rest[:5] = message(b"n")
    decoder.received(size - 3 + 5)
    payload = decoder.next_message()
    assert isinstance(payload, bytes)
    assert (len(payload), payload[:3], payload[-3:]) == (size, b"abc", b"xyz")
    assert decoder.next_message() == b"n"


def test_a_large_payload_exists_once() -> None:
    """From its first byte to its delivery there is no second copy."""
    size = 32 * MEBIBYTE
    decoder = fed(size_of(size))
    assert decoder.next_message() is None
    tracemalloc.start()
    try:
        decoder = fed(size_of(size))
        while (payload := decoder.next_message()) is None:
            decoder.received(len(decoder.buffers()[0]))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(payload) == size  # type: ignore[arg-type]
    assert peak < 1.1 * size


def test_small_payloads_get_no_memory_of_their_own() -> None:
    """A part of a small one waits for the rest; only of a large one is a body begun."""
    for size, missing in ((SMALL, 0), (SMALL + 1, SMALL + 1 - 3)):
        decoder = fed(size_of(size) + b"abc")
        assert decoder.next_message() is None
        assert decoder.missing == missing


# -- values -----------------------------------------------------------------------------------


def test_ends_and_acknowledgements_are_values() -> None:
    """They compare, hash and print as what they say, and cannot be changed."""
    assert EndOfFile() == EDGE != INSIDE
    assert WriteOk() == WriteOk()
    assert len({EndOfFile(), EDGE, INSIDE, WriteOk(), WriteOk()}) == 3
    assert repr(INSIDE) == "EndOfFile(truncated=True)"
    assert repr(WriteOk()) == "WriteOk()"
    with pytest.raises(FrozenInstanceError):
        INSIDE.truncated = False  # type: ignore[misc]


def test_every_refusal_is_an_error_of_ours() -> None:
    """One except clause catches them all."""
    for refused in (lambda: frame(None), lambda: encode_int(2**31)):  # type: ignore[arg-type]
        with pytest.raises(ForkwireError):
            refused()


def test_a_decoder_that_is_collected_inside_a_message(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is printed, also where it is part of a cycle, as it is in a connection that died."""
    printed: list[object] = []
    monkeypatch.setattr(sys, "unraisablehook", printed.append)
    decoder = Decoder()
    decoder.feed(struct.pack("=i", 100_000) + b"begun")
    assert decoder.next_message() is None
    assert decoder.buffers()
    cycle: list[object] = [decoder]
    cycle.append(cycle)
    del decoder, cycle
    gc.collect()
    assert printed == []


def test_a_decoder_is_restricted_for_a_while() -> None:
    """Below its own limit, never above; what waits in it is read by the limit of the moment."""
    decoder = Decoder(10)
    decoder.restrict(4)
    for size in (4, 8):
        decoder.feed(b"".join(frame(b"x" * size)))
    assert decoder.next_message() == b"xxxx"
    decoder.lift()
    assert decoder.next_message() == b"x" * 8
    decoder.restrict(100)
    decoder.feed(b"".join(frame(b"x" * 11)))
    with pytest.raises(SizeLimitError) as caught:
        decoder.next_message()
    assert caught.value.limit == 10

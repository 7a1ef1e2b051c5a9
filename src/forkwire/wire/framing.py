"""Bytes to messages and back: the framing of protocol-spec/1-framing.md.

Sans-I/O: bytes come in through :meth:`Decoder.feed` (or straight into the decoder's own memory,
:meth:`Decoder.buffers` and :meth:`Decoder.received`), messages and bare integers go out when they
are asked for. Nothing is parsed before it is asked for, since only the reader knows whether the
next four bytes are a size or an integer. This module must not know of files, loops or clocks.
"""

from __future__ import annotations

import io
import re
import struct
import sys
from dataclasses import dataclass
from typing import Final

from ..errors import (
    NegativeSizeError,
    PayloadTooLargeError,
    PayloadTypeError,
    ProcessWorkerIPCError,
    SizeLimitError,
    UsageError,
)

if sys.version_info >= (3, 12):
    from collections.abc import Buffer
else:
    from typing_extensions import Buffer

__all__ = [
    "BUFFER_SIZE",
    "MAX_PAYLOAD_SIZE",
    "Buffer",
    "Decoder",
    "EndOfFile",
    "WriteOk",
    "encode_int",
    "frame",
]

HEADER: Final = struct.Struct("=i")  # F-1: signed, 32 bits, host byte order
HEADER_SIZE: Final = HEADER.size
pack: Final = HEADER.pack
unpack_from: Final = HEADER.unpack_from

# The largest size that a signed 32-bit header can say.
MAX_PAYLOAD_SIZE: Final = 2**31 - 1

# One read takes what a pipe holds by default, and many small messages at once.
BUFFER_SIZE: Final = 65536

# Up to here, to copy a payload costs less than to handle a second buffer for it. A larger one
# that comes in parts is read into memory of its own.
SMALL: Final = 4096


@dataclass(frozen=True, slots=True)
class EndOfFile:
    """The peer closed the channel: nothing more can be read, or written.

    ``truncated``: true if the end fell inside a message or an integer, which is then lost.
    """

    truncated: bool = False


@dataclass(frozen=True, slots=True)
class WriteOk:
    """The operating system took the whole message."""


END_AT_EDGE: Final = EndOfFile()
END_INSIDE: Final = EndOfFile(truncated=True)
WRITE_OK: Final = WriteOk()
NOTHING: Final = memoryview(b"")
FIELD_NAME: Final = re.compile(":[^:]*:")  # in the format of a buffer (PEP 3118)


def frame(payload: Buffer) -> tuple[bytes | memoryview, ...]:
    """The buffers of a message: its header, and ``payload`` as flat bytes, not copied.

    Small ``bytes`` are one buffer with their header.

    Raises :exc:`PayloadTypeError` for what is not bytes-like and contiguous, and
    :exc:`PayloadTooLargeError` above ``MAX_PAYLOAD_SIZE`` bytes.
    """
    if type(payload) is bytes:
        size = len(payload)
        if size <= SMALL:
            return (pack(size) + payload,)
        view: bytes | memoryview = payload
    else:
        view = flat_view(payload)
        size = view.nbytes
    if size > MAX_PAYLOAD_SIZE:
        raise PayloadTooLargeError(
            f"a message holds at most {MAX_PAYLOAD_SIZE} bytes, not {size}: send it in parts"
        )
    return pack(size), view


def flat_view(payload: Buffer) -> memoryview:
    """``payload`` as a one-dimensional view of bytes, or :exc:`PayloadTypeError`."""
    try:
        view = memoryview(payload)
    except (TypeError, ValueError, BufferError) as error:  # no buffer, or one that is closed
        hint = "encode it first" if isinstance(payload, str) else "pass bytes or any bytes-like"
        why = "" if isinstance(error, TypeError) else f" ({error})"
        raise PayloadTypeError(
            f"a payload must be bytes-like, not {type(payload).__name__}{why}: {hint}"
        ) from None
    if "O" in FIELD_NAME.sub("", view.format):
        raise PayloadTypeError(
            f"the payload ({type(payload).__name__}) holds Python objects, whose addresses mean "
            "nothing to another process: encode it first"
        )
    if view.nbytes == 0:
        return memoryview(b"")
    if not view.c_contiguous:
        raise PayloadTypeError(
            f"the payload's memory ({type(payload).__name__}) is not contiguous: copy it first, "
            "for example with bytes(...) or numpy.ascontiguousarray(...)"
        )
    return view.cast("B")


def encode_int(number: int) -> bytes:
    """One bare integer (F-5), 4 bytes.

    Raises :exc:`PayloadTypeError` for what is not an int, and :exc:`PayloadTooLargeError` outside
    ``-2**31 .. 2**31 - 1``.
    """
    try:
        return pack(number)
    except struct.error:
        if not hasattr(number, "__index__"):
            raise PayloadTypeError(f"an int is needed, not {type(number).__name__}") from None
        raise PayloadTooLargeError(
            f"a bare integer has 32 bits (-2**31 to 2**31 - 1), {number:#x} does not fit: "
            "send it as a message"
        ) from None


def checked_limit(size: object) -> int:
    """``size`` if it can be a channel's limit. Raises :exc:`UsageError`."""
    if isinstance(size, int) and 0 <= size <= MAX_PAYLOAD_SIZE:
        return size
    raise UsageError(
        f"max_message_size is a number of bytes, 0 to {MAX_PAYLOAD_SIZE}, not {size!r}"
    )


class Decoder:
    """An incremental decoder of one stream.

    ``max_message_size``: the largest payload accepted, in bytes.

    ``missing``: how many bytes are still to come of a large payload that was begun; they are best
    read into `buffers`.

    After :exc:`NegativeSizeError` or :exc:`SizeLimitError` the stream has no next message: asking
    again raises the same error. After the end every question is answered by the same `EndOfFile`.
    """

    __slots__ = ("_body", "_end", "_eof", "_filled", "_full_limit", "_held", "_limit", "_over",
                 "_refusal", "_room", "_start", "missing")  # fmt: skip

    def __init__(self, max_message_size: int = MAX_PAYLOAD_SIZE) -> None:
        self._limit = self._full_limit = checked_limit(max_message_size)
        # Unparsed bytes are _held[_start:_end], and _end is the length of _held.
        self._held = b""
        self._start = self._end = 0
        # A payload of which a part has come: its own memory, and how much of it is filled. No view
        # of it is kept: getvalue() would copy then, and its collection complain.
        self._body: io.BytesIO | None = None
        self._filled = self.missing = 0
        self._room = NOTHING  # lent out by `buffers`; allocated at the first large message
        self._eof = False
        self._over: EndOfFile | None = None  # the end that was answered
        self._refusal: NegativeSizeError | SizeLimitError | None = None

    def restrict(self, size: int) -> None:
        """Accept no payload above ``size`` bytes, until `lift`."""
        self._limit = min(size, self._full_limit)

    def lift(self) -> None:
        """Take back `restrict`."""
        self._limit = self._full_limit

    @property
    def pending(self) -> int:
        """Bytes received and not yet handed out."""
        header_and_body = HEADER_SIZE + self._filled if self._body is not None else 0
        return header_and_body + self._end - self._start

    @property
    def at_end(self) -> bool:
        """Whether the end of the file was reported."""
        return self._eof

    def next_message(self) -> bytes | EndOfFile | None:
        """The next message, the end, or None if more bytes are needed.

        Raises :exc:`NegativeSizeError`, :exc:`SizeLimitError`, and :exc:`ProcessWorkerIPCError`
        when there is no memory for the announced size.
        """
        start = self._start
        begin = start + HEADER_SIZE
        if begin > self._end:
            if self._body is None and not self._eof:
                return None
        elif self._body is None:
            size: int = unpack_from(self._held, start)[0]
            end = begin + size
            if 0 <= size <= self._limit and end <= self._end:
                message = self._held[begin:end]
                self._start = end
                return message
        return self._finish() if self.message_ready() else None

    def message_ready(self) -> bool:
        """Whether `next_message` has an answer, or an error."""
        if self._body is not None:
            return not self.missing or self._eof
        available = self._end - self._start
        if available < HEADER_SIZE or self._eof:
            return self._eof
        size: int = unpack_from(self._held, self._start)[0]
        if not 0 <= size <= self._limit or size <= available - HEADER_SIZE:
            return True
        if size > SMALL:
            self._begin_body(size)
        return False

    def int_ready(self) -> bool:
        """Whether `next_int` has an answer."""
        return self.pending >= HEADER_SIZE or self._eof

    def next_int(self) -> int | EndOfFile | None:
        """The next bare integer, the end, or None if more bytes are needed."""
        if self._refusal is not None:
            raise self._refusal
        if self._over is not None:
            return self._over
        if self._body is not None:
            self._put_back_body()
        start = self._start
        if self._end - start < HEADER_SIZE:
            return self._the_end() if self._eof else None
        self._start = start + HEADER_SIZE
        number: int = unpack_from(self._held, start)[0]
        return number

    def feed(self, data: Buffer) -> None:
        """Take ``data`` in; any split of a stream gives the same answers. Empty is the end."""
        if type(data) is not bytes:
            data = bytes(data)
        if self.missing and data:
            self._feed_body(data)
        elif data:
            held = data if self._start == self._end else self._held[self._start :] + data
            end = len(held)
            # No call from here on, so that no signal handler can raise half way through.
            self._held = held
            self._start = 0
            self._end = end
        else:
            self._eof = True

    def buffers(self) -> list[memoryview]:
        """Where the next bytes belong, in order, for ``os.readv``; then call `received`."""
        if not self._room:
            self._room = memoryview(bytearray(BUFFER_SIZE))
        if self._body is not None and self.missing:
            return [self._body.getbuffer()[self._filled :], self._room]
        return [self._room]

    def received(self, count: int) -> None:
        """``count`` bytes were put into `buffers`; 0 is the end of the file."""
        wants = self.missing
        if not count:
            self._eof = True
        elif count <= wants:
            self._filled += count
            self.missing = wants - count
        else:
            held = self._held[self._start :] + bytes(self._room[: count - wants])
            end = len(held)
            # No call from here on, so that no signal handler can raise half way through.
            self._filled += wants
            self.missing = 0
            self._held, self._start, self._end = held, 0, end

    def _feed_body(self, data: bytes) -> None:
        assert self._body is not None
        filled, wants = self._filled, self.missing
        count = min(len(data), wants)
        self._body.getbuffer()[filled : filled + count] = data[:count]
        held = data[count:]
        end = len(held)
        # No call from here on, so that no signal handler can raise half way through.
        self._filled, self.missing = filled + count, wants - count
        self._held, self._start, self._end = held, 0, end

    def _the_end(self) -> EndOfFile:
        self._over = self._over or (END_INSIDE if self.pending else END_AT_EDGE)
        return self._over

    def _finish(self) -> bytes | EndOfFile:
        """What `message_ready` found: a large message, a bad size, or the end."""
        if self._body is not None and not self.missing:
            message = self._body.getvalue()
            self._body, self._filled = None, 0
            return message
        if self._body is None and self._end - self._start >= HEADER_SIZE:
            size: int = unpack_from(self._held, self._start)[0]
            if size < 0:
                self._refusal = NegativeSizeError(size)  # F-11
            elif size > self._limit:
                self._refusal = SizeLimitError(size, self._limit)  # F-10
            if self._refusal is not None:
                raise self._refusal
        return self._the_end()

    def _begin_body(self, size: int) -> None:
        # bytes(size) is zeroed lazily by the system and BytesIO takes it over without a copy, so
        # an announced size costs address space only, and getvalue() returns these very bytes.
        try:
            body = io.BytesIO(bytes(size))
        except MemoryError:
            raise ProcessWorkerIPCError(
                f"no memory for a message of {size} bytes: lower max_message_size"
            ) from None
        begin = self._start + HEADER_SIZE
        filled = self._end - begin
        body.getbuffer()[:filled] = memoryview(self._held)[begin:]
        # No call from here on, so that no signal handler can raise half way through.
        self._body = body
        self._filled, self.missing = filled, size - filled
        self._held, self._start, self._end = b"", 0, 0

    def _put_back_body(self) -> None:
        """The reader wants an integer where a message was begun: its size is that integer."""
        assert self._body is not None
        body = self._body.getbuffer()
        rest = self._held[self._start :]
        held = b"".join((pack(len(body)), body[: self._filled], rest))
        end = len(held)
        # No call from here on, so that no signal handler can raise half way through.
        self._held, self._start, self._end = held, 0, end
        self._body = None
        self._filled = self.missing = 0

"""The base layer without an event loop: for plain functions in a worker, threads and scripts.

The channels are those of :mod:`forkwire`; these functions block instead of awaiting. Signal
handlers run while they wait.
"""

from __future__ import annotations

from collections.abc import Iterator

from .process.channels import InputChannel, OutputChannel, wrong_end
from .wire.framing import Buffer, EndOfFile, WriteOk, encode_int, frame

__all__ = ["messages", "read_int", "read_message", "write_int", "write_message"]


def read_message(channel: InputChannel) -> bytes | EndOfFile:
    """Block until the next message of ``channel``, or its end.

    Raises as :func:`forkwire.read_message` does.
    """
    try:
        half = channel._half
        parse = half.decoder.next_message
    except AttributeError:
        raise wrong_end(channel, InputChannel) from None
    return half.take_blocking(parse)


def read_int(channel: InputChannel) -> int | EndOfFile:
    """Block until the next bare integer. Raises as :meth:`forkwire.InputChannel.read_int` does."""
    try:
        half = channel._half
        parse = half.decoder.next_int
    except AttributeError:
        raise wrong_end(channel, InputChannel) from None
    return half.take_blocking(parse)


def write_message(channel: OutputChannel, payload: Buffer) -> WriteOk | EndOfFile:
    """Write ``payload`` as one message; block while the pipe is full.

    Several threads may write: messages go out whole. If a signal handler raises in the middle,
    the rest goes out before the next message. Raises as :func:`forkwire.write_message` does.
    """
    try:
        put = channel._half.put_blocking
    except AttributeError:
        raise wrong_end(channel, OutputChannel) from None
    return put(frame(payload))


def write_int(channel: OutputChannel, number: int) -> WriteOk | EndOfFile:
    """Write one bare integer. Raises as :meth:`forkwire.OutputChannel.write_int` does."""
    try:
        put = channel._half.put_blocking
    except AttributeError:
        raise wrong_end(channel, OutputChannel) from None
    return put((encode_int(number),))


def messages(channel: InputChannel) -> Iterator[bytes]:
    """The messages of ``channel`` up to its end. Raises as :func:`read_message` does."""
    while not isinstance(message := read_message(channel), EndOfFile):
        yield message

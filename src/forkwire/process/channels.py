"""Channels: one direction of a conversation, over any descriptor.

The same handle serves an event loop (these functions and methods) and a thread without one
(:mod:`forkwire.sync`). What moves the bytes is in ``reading`` and ``writing``.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import AsyncIterator
from typing import Final, Generic, Self, TypeVar

from ..errors import UsageError
from ..wire.framing import (
    MAX_PAYLOAD_SIZE,
    Buffer,
    EndOfFile,
    WriteOk,
    checked_limit,
    encode_int,
    frame,
)
from . import descriptors, ownership
from .backend import Backend
from .reading import Source
from .writing import Sink

__all__ = ["InputChannel", "OutputChannel", "read_message", "write_message"]

Half = TypeVar("Half", Source, Sink)


class Channel(Generic[Half]):
    """What both directions share: they own a descriptor."""

    def __init__(self, half: Half, *, owned: bool = False) -> None:
        self._half: Final[Half] = half
        self._owned: Final = owned
        self._pid = os.getpid()
        if not owned and half.pollable:
            descriptors.set_nonblocking(half.fd)

    def _of_process(self, pid: int) -> Self:
        """Made by this process for another, which it is about to fork, or in that one."""
        self._pid = pid
        return self

    def fileno(self) -> int:
        """The descriptor; -1 once the channel is closed."""
        return -1 if self._half.closed else self._half.fd

    @property
    def closed(self) -> bool:
        """Whether this side closed the channel."""
        return self._half.closed

    def close(self) -> None:
        """Close at once, without an event loop; see ``aclose``.

        A message that another task is still writing is cut short. Idempotent.
        """
        half, owned, pid = self._half, self._owned, self._pid
        if half.closed:
            return

        def release() -> None:
            if half.grown:
                descriptors.shrink_count()
            if owned:
                if pid == os.getpid():  # else it was let go of when this process was forked
                    ownership.close(half.fd)
            else:
                descriptors.restore_blocking(half.fd)
                os.close(half.fd)

        half.close(release)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *error: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Close the channel; a pending read, and every later one, answers ``EndOfFile``."""
        self.close()

    def __repr__(self) -> str:
        state = "closed" if self.closed else f"fd={self._half.fd}"
        return f"<{type(self).__name__} {state}>"

    def __del__(self) -> None:
        if "_pid" in self.__dict__ and not self.closed and self._pid == os.getpid():
            try:  # where warnings are errors this one is raised
                warnings.warn(f"unclosed {self!r}", ResourceWarning, stacklevel=2, source=self)
            finally:
                self.close()


class InputChannel(Channel[Source]):
    """A stream of messages, or bare integers, to read. Made by :meth:`from_fd` and by ``run``."""

    @classmethod
    def from_fd(cls, fd: int, *, max_message_size: int = MAX_PAYLOAD_SIZE) -> Self:
        """Read from ``fd``: a pipe, socket, terminal or file, which the channel takes over.

        ``max_message_size``: the largest payload accepted, in bytes. The descriptor is made
        non-blocking where a loop can wait for it, and set back when the channel is closed or the
        program ends. Workers that are started later inherit it.

        Raises :exc:`UsageError` when ``fd`` is not a descriptor of a stream open for reading,
        or for a limit that is not 0 to ``2**31 - 1``, and :exc:`ChannelOSError` when it is not
        open. Give each channel a descriptor of its own: for the second of a socket, ``os.dup(fd)``.
        """
        checked_limit(max_message_size)
        pollable = descriptors.check(fd, os.O_WRONLY)
        return cls(Source(fd, max_message_size, pollable=pollable))

    @classmethod
    def _of_pipe(cls, fd: int, max_message_size: int, backend: Backend | None = None) -> Self:
        """Read from an owned, non-blocking pipe, in the loop of ``backend`` to begin with."""
        return cls(Source(fd, max_message_size, pollable=True, backend=backend), owned=True)

    async def read_int(self) -> int | EndOfFile:
        """The next bare integer, 4 bytes (protocol-spec/1-framing.md, F-5).

        Raises as :func:`read_message` does, but for what concerns sizes.
        """
        decoder = self._half.decoder
        return await self._half.take(decoder.next_int, decoder.int_ready)

    @property
    def end(self) -> EndOfFile | None:
        """How the peer ended the stream, once that was read: an ``async for`` cannot say it."""
        decoder = self._half.decoder
        return EndOfFile(truncated=decoder.pending > 0) if decoder.at_end else None

    def __aiter__(self) -> AsyncIterator[bytes]:
        """The messages up to the end of the file; ``end`` then says whether one was cut short."""
        return self

    async def __anext__(self) -> bytes:
        message = await read_message(self)
        if isinstance(message, EndOfFile):
            raise StopAsyncIteration
        return message


class OutputChannel(Channel[Sink]):
    """Where messages, or bare integers, are written. Made by :meth:`from_fd` and by ``run``."""

    @classmethod
    def from_fd(cls, fd: int) -> Self:
        """Write to ``fd``: a pipe, socket, terminal or file, which the channel takes over.

        The descriptor is made non-blocking where a loop can wait for it, and set back when the
        channel is closed or the program ends. Workers that are started later inherit it: whoever
        reads the other end sees its end only when they have ended too, or with ``close_fds=True``.

        Raises :exc:`UsageError` when ``fd`` is not a descriptor of a stream open for writing, and
        :exc:`ChannelOSError` when it is not open. Give each channel a descriptor of its own.
        """
        return cls(Sink(fd, pollable=descriptors.check(fd, os.O_RDONLY)))

    @classmethod
    def _of_pipe(cls, fd: int, backend: Backend | None = None) -> Self:
        """Write to an owned, non-blocking pipe, in the loop of ``backend`` to begin with."""
        return cls(Sink(fd, pollable=True, backend=backend), owned=True)

    async def write_int(self, number: int) -> WriteOk | EndOfFile:
        """Write one bare integer, 4 bytes (protocol-spec/1-framing.md, F-5).

        Raises :exc:`PayloadTypeError` for what is not an int, :exc:`PayloadTooLargeError` outside
        32 bits, and else as :func:`write_message` does.
        """
        return await self._half.put((encode_int(number),))

    def finish(self) -> None:
        """Block until a message whose writer was cancelled is out, and close."""
        try:
            self._half.finish_blocking()
        finally:
            self.close()

    async def aclose(self) -> None:
        """Let the message that is being written finish, then close.

        Writers that wait for their turn get ``EndOfFile``. If the peer does not read this waits;
        when cancelled, the channel is closed at once.
        """
        try:
            await self._half.wait_idle()
        finally:
            self.close()


async def read_message(channel: InputChannel) -> bytes | EndOfFile:
    """Wait for the next message of ``channel``, or its end.

    A cancelled read loses nothing: the next one goes on where it stood. A channel that this side
    closed answers ``EndOfFile``. Tell them apart with ``isinstance``: an empty message is falsy,
    an end is not.

    Raises :exc:`NegativeSizeError` and :exc:`SizeLimitError` when the peer breaks the protocol,
    :exc:`ChannelBusyError` when another task or thread is reading the channel, and
    :exc:`ChannelOSError` when the system refuses to read; all are :exc:`ProcessWorkerIPCError`.
    Raises :exc:`UsageError` for what is not an `InputChannel`.
    """
    try:
        half = channel._half
        decoder = half.decoder
    except AttributeError:
        raise wrong_end(channel, InputChannel) from None
    return await half.take(decoder.next_message, decoder.message_ready)


async def write_message(channel: OutputChannel, payload: Buffer) -> WriteOk | EndOfFile:
    """Write ``payload``, any contiguous bytes-like object, as one message.

    Waits while the peer's pipe is full. Several tasks may write: messages go out whole, in the
    order they were given. Cancelled before its first byte went out, a message is withdrawn;
    after it, the rest is written in the background. ``EndOfFile``: the peer, or this side, has
    closed the channel.

    Raises :exc:`PayloadTypeError` when it is not bytes-like, :exc:`PayloadTooLargeError` above
    ``2**31 - 1`` bytes, :exc:`ChannelBusyError` when another loop is writing to the channel, and
    :exc:`ChannelOSError` when the system refuses; all are :exc:`ProcessWorkerIPCError`.
    Raises :exc:`UsageError` for what is not an `OutputChannel`.
    """
    try:
        put = channel._half.put
    except AttributeError:
        raise wrong_end(channel, OutputChannel) from None
    return await put(frame(payload))


def wrong_end(channel: object, wanted: type[InputChannel | OutputChannel]) -> UsageError:
    """What to say where a channel of the other direction, or no channel at all, was passed."""
    verb = "read from" if wanted is InputChannel else "write to"
    what = repr(channel) if isinstance(channel, Channel) else type(channel).__name__
    return UsageError(
        f"{verb} an {wanted.__name__}, not {what}: a worker is written to at its output_channel "
        "and read from at its input_channel"
    )

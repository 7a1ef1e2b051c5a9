"""Everything without an event loop: for plain functions in a worker, threads and scripts.

The channels are those of :mod:`forkwire`, and so are the workers; these functions block instead of
awaiting. Signal handlers run while they wait.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from .process.channels import InputChannel, OutputChannel, wrong_end
from .wire.framing import Buffer, EndOfFile, WriteOk, encode_int, frame

if TYPE_CHECKING:
    from .pool.sync_calls import SyncLentWorker, SyncPoolCalls, SyncResults
    from .pool.sync_pool import SyncPool, open_pool
    from .rpc.caller.sync_calls import SyncCalls, SyncCurrentCall, current_call
    from .rpc.caller.sync_streams import SyncStream
    from .rpc.sync_worker import SyncWorker, open_worker

# Imported when first used: the base layer works without what they need.
UPPER = {
    "SyncCalls": "rpc.caller.sync_calls",
    "SyncCurrentCall": "rpc.caller.sync_calls",
    "SyncLentWorker": "pool.sync_calls",
    "SyncPool": "pool.sync_pool",
    "SyncPoolCalls": "pool.sync_calls",
    "SyncResults": "pool.sync_calls",
    "SyncStream": "rpc.caller.sync_streams",
    "SyncWorker": "rpc.sync_worker",
    "current_call": "rpc.caller.sync_calls",
    "open_pool": "pool.sync_pool",
    "open_worker": "rpc.sync_worker",
}

__all__ = [
    "SyncCalls",
    "SyncCurrentCall",
    "SyncLentWorker",
    "SyncPool",
    "SyncPoolCalls",
    "SyncResults",
    "SyncStream",
    "SyncWorker",
    "current_call",
    "messages",
    "open_pool",
    "open_worker",
    "read_int",
    "read_message",
    "write_int",
    "write_message",
]


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


def __getattr__(name: str) -> Any:
    module = UPPER.get(name)
    if module is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"forkwire.{module}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *UPPER})

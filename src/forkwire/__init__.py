"""Worker processes you can await: run a function in a forked process, talk over two pipes."""

from __future__ import annotations

from .errors import (
    ChannelBusyError,
    ChannelOSError,
    ForkThreadsWarning,
    ForkUnavailableError,
    ForkwireError,
    NegativeSizeError,
    PayloadTooLargeError,
    PayloadTypeError,
    PeerError,
    ProcessWorkerIPCError,
    SizeLimitError,
    UsageError,
    WorkerDied,
    WorkerError,
    WorkerStartError,
)
from .process.channels import InputChannel, OutputChannel, read_message, write_message
from .process.worker import ProcessWorker, run
from .wire.framing import MAX_PAYLOAD_SIZE, EndOfFile, WriteOk

__all__ = [
    "MAX_PAYLOAD_SIZE",
    "ChannelBusyError",
    "ChannelOSError",
    "EndOfFile",
    "ForkThreadsWarning",
    "ForkUnavailableError",
    "ForkwireError",
    "InputChannel",
    "NegativeSizeError",
    "OutputChannel",
    "PayloadTooLargeError",
    "PayloadTypeError",
    "PeerError",
    "ProcessWorker",
    "ProcessWorkerIPCError",
    "SizeLimitError",
    "UsageError",
    "WorkerDied",
    "WorkerError",
    "WorkerStartError",
    "WriteOk",
    "read_message",
    "run",
    "write_message",
]

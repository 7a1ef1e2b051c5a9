"""Worker processes you can await: run a function in a forked process, talk over two pipes."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from .errors import (
    CallCancelledError,
    CallError,
    ChannelBusyError,
    ChannelOSError,
    DeadlineExceededError,
    ForkThreadsWarning,
    ForkUnavailableError,
    ForkwireError,
    InvalidArgumentsError,
    MethodNotFoundError,
    NegativeSizeError,
    PayloadTooLargeError,
    PayloadTypeError,
    PeerError,
    PoisonCallError,
    PoolBrokenError,
    ProcessWorkerIPCError,
    ProtocolError,
    RemoteError,
    SizeLimitError,
    TooManyCallsError,
    UsageError,
    ValueDecodeError,
    ValueEncodeError,
    WorkerClosedError,
    WorkerDied,
    WorkerError,
    WorkerStartError,
    WrongKindError,
)
from .process.channels import InputChannel, OutputChannel, read_message, write_message
from .process.doctor import ForkRisks, examine_fork
from .process.worker import ProcessWorker, run
from .wire.framing import MAX_PAYLOAD_SIZE, EndOfFile, WriteOk

if TYPE_CHECKING:
    from . import sync as sync
    from .pool.calls import PoolCalls
    from .pool.executor import ProcessExecutor
    from .pool.executor_engine import ExecutorStatistics
    from .pool.histogram import Histogram
    from .pool.lease import LentWorker
    from .pool.policy import Health, Recycle, Restart
    from .pool.pool import Pool, open_pool
    from .pool.registering import register_joblib
    from .pool.statistics import MethodStatistics, PoolStatistics
    from .process.templates import close_templates
    from .rpc.caller.calls import Calls, CurrentCall, current_call
    from .rpc.caller.streams import Stream
    from .rpc.exceptions.describing import register
    from .rpc.telling.context import propagate
    from .rpc.worker import Worker, WorkerStatistics, open_worker

# Imported when it is first used: the base layer works without the packages of the upper one.
UPPER = {
    "Calls": "rpc.caller.calls",
    "CurrentCall": "rpc.caller.calls",
    "ExecutorStatistics": "pool.executor_engine",
    "Health": "pool.policy",
    "Histogram": "pool.histogram",
    "LentWorker": "pool.lease",
    "MethodStatistics": "pool.statistics",
    "Pool": "pool.pool",
    "PoolCalls": "pool.calls",
    "PoolStatistics": "pool.statistics",
    "ProcessExecutor": "pool.executor",
    "Recycle": "pool.policy",
    "Restart": "pool.policy",
    "Stream": "rpc.caller.streams",
    "Worker": "rpc.worker",
    "WorkerStatistics": "rpc.worker",
    "close_templates": "process.templates",
    "current_call": "rpc.caller.calls",
    "open_pool": "pool.pool",
    "open_worker": "rpc.worker",
    "propagate": "rpc.telling.context",
    "register": "rpc.exceptions.describing",
    "register_joblib": "pool.registering",
}

__all__ = [
    "MAX_PAYLOAD_SIZE",
    "CallCancelledError",
    "CallError",
    "Calls",
    "ChannelBusyError",
    "ChannelOSError",
    "CurrentCall",
    "DeadlineExceededError",
    "EndOfFile",
    "ExecutorStatistics",
    "ForkRisks",
    "ForkThreadsWarning",
    "ForkUnavailableError",
    "ForkwireError",
    "Health",
    "Histogram",
    "InputChannel",
    "InvalidArgumentsError",
    "LentWorker",
    "MethodNotFoundError",
    "MethodStatistics",
    "NegativeSizeError",
    "OutputChannel",
    "PayloadTooLargeError",
    "PayloadTypeError",
    "PeerError",
    "PoisonCallError",
    "Pool",
    "PoolBrokenError",
    "PoolCalls",
    "PoolStatistics",
    "ProcessExecutor",
    "ProcessWorker",
    "ProcessWorkerIPCError",
    "ProtocolError",
    "Recycle",
    "RemoteError",
    "Restart",
    "SizeLimitError",
    "Stream",
    "TooManyCallsError",
    "UsageError",
    "ValueDecodeError",
    "ValueEncodeError",
    "Worker",
    "WorkerClosedError",
    "WorkerDied",
    "WorkerError",
    "WorkerStartError",
    "WorkerStatistics",
    "WriteOk",
    "WrongKindError",
    "close_templates",
    "current_call",
    "examine_fork",
    "open_pool",
    "open_worker",
    "propagate",
    "read_message",
    "register",
    "register_joblib",
    "run",
    "write_message",
]


def __getattr__(name: str) -> Any:
    if name == "sync":
        return importlib.import_module(".sync", __name__)
    module = UPPER.get(name)
    if module is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f".{module}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *UPPER})

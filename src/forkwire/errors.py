"""The one tree of errors. Each says who is to blame and what to do; it knows no I/O.

::

    ForkwireError
    ├── UsageError (TypeError)                    the caller passed what cannot work
    ├── ProcessWorkerIPCError                     reading or writing a channel failed
    │   ├── PeerError                             the other side broke the protocol
    │   │   ├── NegativeSizeError                 it announced a message of negative size
    │   │   ├── SizeLimitError                    it announced more than this channel's limit
    │   │   └── ProtocolError                     it broke the protocol of calls
    │   ├── ChannelOSError (OSError)              the operating system refused
    │   ├── ChannelBusyError (RuntimeError)       a second reader at the same time
    │   ├── PayloadTypeError (TypeError)          the payload is not bytes-like
    │   └── PayloadTooLargeError (ValueError)     the payload or integer has no encoding
    ├── CallError                                 a call ended with no result
    │   ├── RemoteError                           the handler raised; also the builtin that it was
    │   ├── MethodNotFoundError (AttributeError)  the service offers nothing of that name
    │   ├── InvalidArgumentsError (TypeError)     they do not fit the signature
    │   ├── WrongKindError (TypeError)            what yields is streamed, all else is called
    │   ├── ValueEncodeError (TypeError)          a value has no encoding
    │   ├── ValueDecodeError (ValueError)         a value is not what the annotation says
    │   ├── CallCancelledError                    the other side gave it up
    │   ├── DeadlineExceededError (TimeoutError)  its time was over
    │   ├── TooManyCallsError                     more in flight than the other side takes
    │   ├── PoisonCallError                       workers died of it again and again: refused
    │   └── WorkerClosedError                     the worker was closed, or is closing
    └── WorkerError                               a worker could not start, or ended badly
        ├── WorkerStartError (OSError)            fork or one of its preparations failed
        ├── ForkUnavailableError                  this platform has no fork
        ├── PoolBrokenError                       a pool's workers ended too often: it gave up
        └── WorkerDied                            it ended with a signal or a non-zero status

    ForkThreadsWarning (RuntimeWarning)           forking while other threads run
"""

from __future__ import annotations

import signal
from collections.abc import Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import resource

__all__ = [
    "CallCancelledError",
    "CallError",
    "ChannelBusyError",
    "ChannelOSError",
    "DeadlineExceededError",
    "ForkThreadsWarning",
    "ForkUnavailableError",
    "ForkwireError",
    "InvalidArgumentsError",
    "MethodNotFoundError",
    "NegativeSizeError",
    "PayloadTooLargeError",
    "PayloadTypeError",
    "PeerError",
    "PoisonCallError",
    "PoolBrokenError",
    "ProcessWorkerIPCError",
    "ProtocolError",
    "RemoteError",
    "SizeLimitError",
    "TooManyCallsError",
    "UsageError",
    "ValueDecodeError",
    "ValueEncodeError",
    "WorkerClosedError",
    "WorkerDied",
    "WorkerError",
    "WorkerStartError",
    "WrongKindError",
    "signal_name",
]


class ForkwireError(Exception):
    """Base of every error that this library raises."""


class UsageError(ForkwireError, TypeError):
    """The caller passed something that can never work; nothing was started or sent."""


class ProcessWorkerIPCError(ForkwireError):
    """A channel failed: anything but a message, an acknowledgement or the end of the file."""


class PeerError(ProcessWorkerIPCError):
    """The process at the other end broke the protocol. The channel cannot be read further."""


class NegativeSizeError(PeerError):
    """The peer announced a message of negative size (protocol-spec/1-framing.md, F-11).

    ``size``: the number read, in bytes.
    """

    def __init__(self, size: int) -> None:
        super().__init__(size)
        self.size = size

    def __str__(self) -> str:
        return (
            f"the peer announced a message of {self.size} bytes: a size is never negative. "
            "It may write sizes in another byte order or width, print to the channel, or expect "
            "a bare integer to be read here; close the channel"
        )


class SizeLimitError(PeerError):
    """The peer announced a message above the channel's limit (protocol-spec/1-framing.md, F-10).

    Nothing was allocated for it. ``size`` and ``limit``: bytes.
    """

    def __init__(self, size: int, limit: int) -> None:
        super().__init__(size, limit)
        self.size = size
        self.limit = limit

    def __str__(self) -> str:
        return (
            f"the peer announced a message of {self.size} bytes, above this channel's limit of "
            f"{self.limit}: raise max_message_size if that is expected; if not, close the channel "
            "(the peer may write sizes in another byte order, or print to the channel)"
        )


class ChannelOSError(ProcessWorkerIPCError, OSError):
    """A system call on the channel failed; ``errno`` and ``strerror`` as in :class:`OSError`."""


class ChannelBusyError(ProcessWorkerIPCError, RuntimeError):
    """Another task or thread is already reading this channel, or it belongs to another loop."""


class PayloadTypeError(ProcessWorkerIPCError, TypeError):
    """The payload is not bytes-like (or the integer not an int); nothing was sent."""


class PayloadTooLargeError(ProcessWorkerIPCError, ValueError):
    """The payload is above 2**31 - 1 bytes, or the integer needs more than 32 bits.

    Nothing was sent (protocol-spec/1-framing.md, F-22 and F-23).
    """


class ProtocolError(PeerError):
    """The peer broke the protocol of calls (protocol-spec/3-calls.md). The session is over."""


class CallError(ForkwireError):
    """A call ended with no result.

    ``worker`` and ``method``: whose and which, "" where that is not known. A note says it too.
    """

    worker: str = ""
    method: str = ""


class RemoteError(CallError):
    """The handler raised. Where it raised a builtin exception, this is one too.

    A ``ValueError`` of the handler is caught by ``except ValueError`` and by
    ``except RemoteError``. Its text is the message, then the remote traceback.

    ``message``: the text of the exception as it was over there. ``type_name``: of its class, as
    in ``"builtins.ValueError"`` or ``"calc.OutOfRange"``. ``traceback``: remote frames as text.
    ``remote_args``: its ``args``, where they were plain data. ``data``: further fields of it.
    ``code``: of the error on the wire.
    """

    # On the class, so that they hide what a builtin beside this one has under the same names.
    message: str = ""
    type_name: str = ""
    traceback: str = ""
    remote_args: tuple[object, ...] = ()
    data: Mapping[str, object] = MappingProxyType({})
    code: int = -32000

    def __init__(self, message: str = "", *, type_name: str = "", traceback: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.type_name = type_name
        self.traceback = traceback

    def __str__(self) -> str:
        return "\n\n".join(filter(None, [f"{self.message}{self._count()}", self.remote_text()]))

    def _count(self) -> str:
        if not isinstance(self, BaseExceptionGroup):
            return ""
        count = len(self.exceptions)
        return f" ({count} sub-exception{'s' * (count > 1)})"

    def remote_text(self) -> str:
        """The remote traceback, with the type at its end; without one the type, if it is news."""
        name = self.type_name.removeprefix("builtins.")
        if not self.traceback:
            known = {found.__name__ for found in type(self).__mro__}
            return f"Remote type: {name}" if name and name not in known else ""
        intro = "Remote " if self.traceback.startswith("Traceback") else "Remote traceback:\n"
        return f"{intro}{self.traceback.rstrip()}\n{name}".rstrip()


class MethodNotFoundError(CallError, AttributeError):
    """The service offers nothing of that name. Nothing was run."""


class InvalidArgumentsError(CallError, TypeError):
    """The arguments do not fit the handler's signature or annotations. Nothing was run."""


class WrongKindError(CallError, TypeError):
    """A function that yields was called, or one that does not was streamed. Nothing was run."""


class ValueEncodeError(CallError, TypeError):
    """A value has no encoding. The message names its path, its type and what to do."""


class ValueDecodeError(CallError, ValueError):
    """A value that arrived is not what the annotation says. The message names its path."""


class CallCancelledError(CallError):
    """The other side gave the call up, though nobody here asked for that."""


class DeadlineExceededError(CallError, TimeoutError):
    """The call's time was over before it ended; the handler was stopped."""


class TooManyCallsError(CallError):
    """More calls were in flight than the other side takes. Nothing was run."""


class PoisonCallError(CallError):
    """Workers died of this very call again and again, so a pool does not run it any more.

    ``deaths``: how many. ``__cause__``: the last of them, a :exc:`WorkerDied`.
    """

    def __init__(self, message: str, deaths: int = 0) -> None:
        super().__init__(message)
        self.deaths = deaths


class WorkerClosedError(CallError):
    """The worker was closed on this side, or is closing. Nothing was run."""


class WorkerError(ForkwireError):
    """A worker could not be started, or ended badly."""


class WorkerStartError(WorkerError, OSError):
    """The operating system refused a pipe, a process or the guard; nothing was left behind."""


class ForkUnavailableError(WorkerError):
    """The platform has no ``os.fork``."""


class PoolBrokenError(WorkerError):
    """A pool's workers failed or died more often than its policy allows, so it gave up.

    ``__cause__``: the last failure, such as what the initializer raised.
    """


class WorkerDied(WorkerError):
    """A worker ended with a signal or a non-zero exit status, and all that is known of it.

    ``pid``: of the process, already reaped. ``returncode``: as in :mod:`subprocess`, negative for
    a signal. ``reason``: a sentence. ``signal_name``: ``"SIGKILL"``, else None. ``exit_code``:
    None for a signal. ``rusage``: a :class:`resource.struct_rusage`, None where it was lost.
    ``inside_message``: whether what it wrote ended inside a message; None as long as the end was
    not read. ``stderr_tail`` and ``native_stack`` (faulthandler's, after a crash in C): text, ""
    where stderr was not captured. ``in_flight``: the calls that it took with it, each as
    ``"method (call 7)"``.
    """

    def __init__(
        self,
        pid: int,
        returncode: int,
        reason: str,
        *,
        rusage: resource.struct_rusage | None = None,
        inside_message: bool | None = None,
        stderr_tail: str = "",
        native_stack: str = "",
        in_flight: tuple[str, ...] = (),
    ) -> None:
        super().__init__(pid, returncode, reason)
        self.pid = pid
        self.returncode = returncode
        self.reason = reason
        self.signal_name = signal_name(-returncode) if returncode < 0 else None
        self.exit_code = returncode if returncode >= 0 else None
        # In the interpreter's last collection CPython complains of each struct_rusage that is left.
        self._usage = None if rusage is None else tuple(rusage)
        self.inside_message = inside_message
        self.stderr_tail = stderr_tail
        self.native_stack = native_stack
        self.in_flight = in_flight

    @property
    def rusage(self) -> resource.struct_rusage | None:
        """What it has used, as of getrusage(2)."""
        if self._usage is None:
            return None
        import resource

        return resource.struct_rusage(self._usage)

    def __str__(self) -> str:
        inside = ", inside a message" if self.inside_message else ""
        if self.in_flight:
            inside += f", with {', '.join(self.in_flight)} in flight"
        tail = f"; its stderr ended with:\n{self.stderr_tail}" if self.stderr_tail else ""
        return f"worker {self.pid} {self.reason}{inside}{tail}"


class ForkThreadsWarning(RuntimeWarning):
    """A worker is forked while other threads run: a lock that one of them holds stays locked.

    Says which, where they are, and which locks are held now, as :func:`forkwire.examine_fork` does.
    """


def signal_name(number: int) -> str:
    """The name of signal ``number``: ``"SIGKILL"``; for one that has none, ``"signal 40"``."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"

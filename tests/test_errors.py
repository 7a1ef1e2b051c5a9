"""The tree of errors: as drawn, caught in one clause, and each a value that survives travel."""

from __future__ import annotations

import copy
import importlib
import pickle
import pkgutil
import re
import resource
import signal
from typing import Any, Final

import pytest

import forkwire
from forkwire import (
    ChannelBusyError,
    ChannelOSError,
    ForkThreadsWarning,
    ForkwireError,
    NegativeSizeError,
    PayloadTooLargeError,
    ProcessWorkerIPCError,
    RemoteError,
    SizeLimitError,
    WorkerDied,
    WorkerStartError,
    errors,
)

USAGE: Final = resource.getrusage(resource.RUSAGE_SELF)

EXAMPLES: Final[list[Exception]] = [
    forkwire.ForkwireError("text"),
    forkwire.UsageError("text"),
    ProcessWorkerIPCError("text"),
    forkwire.PeerError("text"),
    NegativeSizeError(-5),
    SizeLimitError(100, 10),
    ChannelOSError(5, "reading descriptor 7: Input/output error"),
    ChannelBusyError("text"),
    forkwire.PayloadTypeError("text"),
    PayloadTooLargeError("text"),
    forkwire.ProtocolError("text"),
    forkwire.CallError("text"),
    forkwire.RemoteError("text", type_name="calc.OutOfRange", traceback="Traceback: frames"),
    forkwire.MethodNotFoundError("text"),
    forkwire.InvalidArgumentsError("text"),
    forkwire.WrongKindError("text"),
    forkwire.ValueEncodeError("text"),
    forkwire.ValueDecodeError("text"),
    forkwire.CallCancelledError("text"),
    forkwire.DeadlineExceededError("text"),
    forkwire.TooManyCallsError("text"),
    forkwire.PoisonCallError("text", deaths=3),
    forkwire.WorkerClosedError("text"),
    forkwire.WorkerError("text"),
    WorkerStartError(24, "Too many open files"),
    forkwire.ForkUnavailableError("text"),
    forkwire.PoolBrokenError("text"),
    WorkerDied(7, -9, "was killed", rusage=USAGE, inside_message=True, stderr_tail="last\nwords"),
    WorkerDied(8, 3, "exited with status 3", native_stack="Fatal Python error"),
    ForkThreadsWarning("text"),
]

each_error = pytest.mark.parametrize("error", EXAMPLES, ids=lambda error: type(error).__name__)


def drawn() -> list[tuple[str, str, str | None]]:
    """Name, parent and further base of each class in the docstring's drawing."""
    found: list[tuple[str, str, str | None]] = []
    parents: list[str] = []
    for line in (errors.__doc__ or "").splitlines():
        if not (match := re.match(r"    ([│├└─ ]*)(\w+)(?: \((\w+)\))?(?:  |$)", line)):
            continue
        depth, name, base = len(match[1]) // 4, match[2], match[3]
        del parents[depth:]
        found.append((name, parents[-1] if parents else "", base))
        parents.append(name)
    return found


def defined() -> dict[str, type]:
    return {
        name: value
        for name, value in vars(errors).items()
        if isinstance(value, type) and value.__module__ == errors.__name__
    }


def test_the_drawing_shows_every_class() -> None:
    """Nothing is missing from it, nothing is invented."""
    assert sorted(name for name, _, _ in drawn()) == sorted(defined())


@pytest.mark.parametrize(("name", "parent", "base"), drawn())
def test_the_drawing_is_true(name: str, parent: str, base: str | None) -> None:
    """Each class has the parent it is drawn under, and the builtin beside it."""
    bases = {found.__name__ for found in defined()[name].__bases__}
    roots = {base or "Exception"} if not parent else {parent, base} - {None}
    assert bases == roots


def test_each_class_says_who_is_to_blame() -> None:
    """Each has a docstring, is exported, and is found in the package."""
    for name, value in defined().items():
        assert value.__doc__, name
        assert name in errors.__all__
        assert getattr(forkwire, name) is value


def test_one_clause_catches_all() -> None:
    """All but the warning are :class:`ForkwireError`; every class has an example below."""
    assert {type(error).__name__ for error in EXAMPLES} == set(defined())
    for error in EXAMPLES:
        assert isinstance(error, ForkwireError) != isinstance(error, ForkThreadsWarning)


def fields(error: Any) -> dict[str, Any]:
    found = dict(vars(error))
    for name in ("errno", "strerror", "filename"):
        if isinstance(error, OSError):
            found[name] = getattr(error, name)
    return found


@each_error
@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_errors_can_be_pickled(error: Exception, protocol: int) -> None:
    """Type, arguments, fields and text survive: executors send errors between processes."""
    other = pickle.loads(pickle.dumps(error, protocol))
    assert type(other) is type(error)
    assert other.args == error.args
    assert fields(other) == fields(error)
    assert str(other) == str(error)
    assert repr(other) == repr(error)


@each_error
def test_errors_can_be_copied(error: Exception) -> None:
    """As :mod:`concurrent.futures` and test tools do."""
    assert fields(copy.copy(error)) == fields(error)
    assert str(copy.deepcopy(error)) == str(error)


@each_error
def test_errors_name_themselves(error: Exception) -> None:
    """The ``repr`` begins with the class; the text is one a person can read."""
    assert repr(error).startswith(f"{type(error).__name__}(")
    assert str(error)


def test_a_negative_size_says_what_was_read() -> None:
    """The number is in the text and in a field."""
    error = NegativeSizeError(-5)
    assert error.size == -5
    assert "-5 bytes" in str(error)
    assert "close the channel" in str(error)


def test_a_size_above_the_limit_says_both() -> None:
    """What was announced, what was allowed, and what to do."""
    error = SizeLimitError(100, 10)
    assert (error.size, error.limit) == (100, 10)
    assert "100 bytes" in str(error)
    assert "limit of 10" in str(error)
    assert "max_message_size" in str(error)


def test_errors_of_the_system_are_caught_as_such() -> None:
    """``except OSError`` and ``error.errno`` work."""
    assert ChannelOSError(5, "text").errno == 5
    assert WorkerStartError(24, "text").strerror == "text"
    assert isinstance(ChannelOSError(32, "text"), OSError)
    assert not isinstance(ChannelOSError(32, "text"), BrokenPipeError)


def test_a_death_by_signal() -> None:
    """The code is negative, the signal has a name, and there is no exit code."""
    died = WorkerDied(7, -9, "was killed", inside_message=True, stderr_tail="last words")
    assert (died.pid, died.returncode, died.reason) == (7, -9, "was killed")
    assert (died.signal_name, died.exit_code) == ("SIGKILL", None)
    assert str(died) == (
        "worker 7 was killed, inside a message; its stderr ended with:\nlast words"
    )


def test_a_death_by_exit_code() -> None:
    """The code is the exit status, and there is no signal."""
    died = WorkerDied(7, 3, "exited with status 3")
    assert (died.signal_name, died.exit_code) == (None, 3)
    assert (died.inside_message, died.stderr_tail, died.rusage) == (None, "", None)
    assert str(died) == "worker 7 exited with status 3"


def test_a_remote_error_says_what_it_was() -> None:
    """Its text is the message; then, where they are known, the remote traceback and type."""
    assert str(RemoteError()) == ""
    assert str(RemoteError("text")) == "text"
    assert str(RemoteError("text", type_name="calc.Odd")) == "text\n\nRemote type: calc.Odd"
    error = RemoteError("text", type_name="calc.Odd", traceback="Traceback (latest last):\n  x\n")
    assert str(error) == "text\n\nRemote Traceback (latest last):\n  x\ncalc.Odd"
    assert (error.message, error.args, error.remote_args, error.code) == (
        "text", ("text",), (), -32000,
    )  # fmt: skip
    assert dict(error.data) == {}
    foreign = RemoteError("text", traceback="Error: text\n    at plugin.mjs:3")
    assert str(foreign) == "text\n\nRemote traceback:\nError: text\n    at plugin.mjs:3"


def test_an_error_of_a_call_knows_whose_it_is() -> None:
    """Worker and method are fields, empty where nobody has set them."""
    error = forkwire.WorkerClosedError("text")
    assert (error.worker, error.method) == ("", "")


def test_signals_have_names() -> None:
    """Also those of real time, by number."""
    assert errors.signal_name(signal.SIGTERM) == "SIGTERM"
    assert errors.signal_name(signal.SIGRTMIN + 3) == f"signal {signal.SIGRTMIN + 3}"
    assert errors.signal_name(0) == "signal 0"


MODULES: Final = [
    found.name
    for found in pkgutil.walk_packages(forkwire.__path__, "forkwire.")
    if not re.search(r"__main__|\.cli|guard_main", found.name)
]


@pytest.mark.parametrize("name", ["forkwire", *MODULES])
def test_a_module_says_what_it_offers(name: str) -> None:
    """``__all__`` names what is there, once, and nothing private."""
    module = importlib.import_module(name)
    if not module.__file__ or (module.__file__.endswith("__init__.py") and name != "forkwire"):
        return
    offered = list(module.__all__)
    assert len(set(offered)) == len(offered)
    assert all(hasattr(module, item) for item in offered)
    private = [item for item in offered if item.startswith("_")]
    assert private == []

"""Exceptions as data, and back: what a caller catches, reads and passes on."""

from __future__ import annotations

import asyncio
import copy
import json
import logging
import pathlib
import pickle
import queue
import sqlite3
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterator
from typing import Any

import cbor2
import pytest
import trio

import forkwire
from forkwire import CallError, RemoteError, UsageError
from forkwire.rpc.exceptions import remote
from forkwire.rpc.exceptions.describing import (
    CODE_OF,
    CODES,
    code_of,
    describe,
    rebuild,
    register,
    suggestions,
)


class OutOfRangeError(ValueError):
    """Of a user, and unknown to the other side."""


class RefusedError(Exception):
    """Of a user; its constructor has arguments of its own."""

    def __init__(self, who: str, amount: int) -> None:
        super().__init__(who, amount)
        self.who = who
        self.amount = amount

    def __str__(self) -> str:
        return f"{self.who} was refused {self.amount}"


@pytest.fixture(autouse=True)
def _registry() -> Iterator[None]:
    before = dict(remote.registered), dict(remote.names)
    yield
    remote.registered.clear()
    remote.registered.update(before[0])
    remote.names.clear()
    remote.names.update(before[1])


def raised(function: Callable[[], object]) -> BaseException:
    """What ``function`` raises, with its traceback."""
    try:
        function()
    except BaseException as error:
        return error
    raise AssertionError("nothing was raised")


def raise_it(error: BaseException) -> BaseException:
    def handler() -> None:
        raise error

    return raised(handler)


def carried(error: BaseException, **options: Any) -> Any:
    """``error`` as it arrives, through CBOR."""
    return rebuild(cbor2.loads(cbor2.dumps(describe(error))), **options)


def shown(error: BaseException) -> str:
    return "".join(traceback.format_exception(error))


BUILTINS = sorted(remote.registered)

SPECIAL: dict[str, BaseException] = {
    "builtins.UnicodeDecodeError": UnicodeDecodeError("utf-8", b"a\xff", 1, 2, "invalid start"),
    "builtins.UnicodeEncodeError": UnicodeEncodeError("ascii", "aé", 1, 2, "not in range"),
    "builtins.UnicodeTranslateError": UnicodeTranslateError("aé", 1, 2, "no"),
}


@pytest.mark.parametrize("name", BUILTINS)
def test_a_builtin_comes_back_as_itself(name: str) -> None:
    """Both clauses catch it; arguments, message and ``repr`` are the original's."""
    cls = remote.registered[name]
    original = SPECIAL.get(name) or cls("text")
    error = carried(original)
    assert isinstance(error, cls)
    assert isinstance(error, RemoteError)
    assert error.args == original.args
    assert error.remote_args == original.args
    assert error.message == str(original)
    assert error.type_name == name
    assert repr(error) == f"RemoteError[{cls.__name__}]{repr(original)[len(cls.__name__) :]}"
    assert str(error) == str(original)


@pytest.mark.parametrize("name", BUILTINS)
def test_a_rebuilt_error_travels_on(name: str) -> None:
    """Pickled and copied it keeps its class, arguments, fields and text; described again, too."""
    original = SPECIAL.get(name) or remote.registered[name]("text")
    error = carried(original, worker="calc-1", method="add")
    for other in (pickle.loads(pickle.dumps(error)), copy.copy(error), copy.deepcopy(error)):
        assert type(other) is type(error)
        assert (other.args, vars(other), str(other)) == (error.args, vars(error), str(error))
    again = carried(error)
    assert type(again) is type(error)
    assert again.args == error.args


def test_the_allow_list_is_what_makes_sense() -> None:
    """Nothing that a generator or an interpreter gives a meaning to; no group without parts."""
    assert {"builtins.ValueError", "builtins.FileNotFoundError", "builtins.MemoryError",
            "builtins.UserWarning", "builtins.RecursionError"} <= set(BUILTINS)  # fmt: skip
    for cls in (StopIteration, StopAsyncIteration, SystemExit, KeyboardInterrupt, GeneratorExit):
        error = carried(cls("text"))
        assert type(error) is RemoteError
        assert error.type_name == f"builtins.{cls.__name__}"
        assert "text" in str(error)
        assert cls.__name__ in str(error)


def test_there_is_one_class_of_each() -> None:
    """Two errors of one kind have one class, whose name a traceback shows."""
    first, second = carried(ValueError("x")), carried(ValueError("y"))
    assert type(first) is type(second)
    assert shown(first).startswith("forkwire.RemoteError[ValueError]: x")


def test_the_text_is_the_message_then_the_remote_traceback() -> None:
    """So it is in a traceback, in a log and for pytest, and the frames are there once."""
    error = carried(raise_it(ValueError("boom")), worker="calc-1", method="add")
    lines = str(error).splitlines()
    assert lines[:3] == ["boom", "", "Remote Traceback (most recent call last):"]
    assert lines[-1] == "ValueError"
    assert "in handler" in str(error)
    assert shown(error).count("in handler") == 1
    assert shown(error).rstrip().endswith("in method 'add' of worker calc-1")
    record = logging.makeLogRecord({"msg": "%s", "args": (error,)})
    assert "in handler" in record.getMessage()
    with pytest.raises(ValueError, match=r"^boom"):
        raise error


def test_whose_it_is_stands_in_a_note() -> None:
    """And in fields; without either there is no note."""
    error = carried(ValueError("x"), worker="calc-1", method="add")
    assert (error.worker, error.method) == ("calc-1", "add")
    assert error.__notes__ == ["in method 'add' of worker calc-1"]
    assert carried(ValueError("x"), worker="w").__notes__ == ["in worker w"]
    assert not hasattr(carried(ValueError("x")), "__notes__")


def test_a_key_error_reads_as_it_did() -> None:
    """Its message is the ``repr`` of the key, its argument the key."""
    error = carried(raised(lambda: dict[str, int]()["key"]))
    assert isinstance(error, KeyError)
    assert error.args == ("key",)
    assert str(error).startswith("'key'")


def test_errors_of_the_system() -> None:
    """Number, text and both file names; paths are text."""
    error = carried(raised(lambda: open("/nowhere/at all")))  # noqa: SIM115
    assert isinstance(error, FileNotFoundError)
    assert (error.errno, error.filename) == (2, "/nowhere/at all")
    assert error.strerror == "No such file or directory"
    renamed = carried(OSError(13, "Permission denied", "a", None, pathlib.Path("b")))
    assert isinstance(renamed, PermissionError)
    assert (renamed.filename, renamed.filename2) == ("a", "b")
    assert (pickle.loads(pickle.dumps(renamed)).filename2) == "b"


def test_a_number_of_the_system_finds_its_class() -> None:
    """A program in another language need not know Python's names for them."""
    error = rebuild(
        {"code": -32000, "message": "no", "type": "builtins.OSError", "args": [32, "no"]}
    )
    assert isinstance(error, BrokenPipeError)
    odd = rebuild({"message": "no", "type": "builtins.OSError", "args": [10**30, "no"]})
    assert isinstance(odd, OSError)


def test_names_and_paths_come_along() -> None:
    """Of attributes, variables and modules."""
    error = carried(raised(lambda: None.missing))  # type: ignore[attr-defined]
    assert (isinstance(error, AttributeError), error.name) == (True, "missing")
    error = carried(raised(lambda: unknown))  # type: ignore[name-defined]  # noqa: F821
    assert isinstance(error, NameError)
    assert error.name == "unknown"
    error = carried(ImportError("text", name="there", path="/there.py"))
    assert (error.name, error.path) == ("there", "/there.py")
    assert copy.copy(error).path == "/there.py"
    assert isinstance(carried(ModuleNotFoundError("x", name="y")), ModuleNotFoundError)


def test_a_syntax_error_is_drawn() -> None:
    """Line and column as Python draws them, and the remote traceback under it."""
    error = carried(raised(lambda: compile("x = = 1", "plugin.py", "exec")))
    assert isinstance(error, SyntaxError)
    assert (error.filename, error.lineno, error.offset, error.text) == (
        "plugin.py", 1, 5, "x = = 1\n",
    )  # fmt: skip
    assert "    x = = 1\n        ^" in shown(error)
    assert shown(error).count("Remote Traceback") == 1
    assert "in raised" in shown(error)


def test_a_syntax_error_of_a_foe_is_drawn_in_bounds() -> None:
    """A traceback draws as many carets as it says, prints its line, and compares its numbers."""
    place = ["f\x1b[2J", 1, 1, "x\x1b[2J", 1, 10**9]
    args: list[object] = ["m\x1b[2J", place]
    error = rebuild({"type": "builtins.SyntaxError", "message": "m", "args": args})
    assert len(shown(error)) < 2000
    assert "\x1b" not in shown(error)
    others: list[Any] = [["m", ["f", "1", "2", 3, None, b""]], ["m\x1b"], [], [1, 2], ["m", []]]
    for other in others:
        error = rebuild({"type": "builtins.SyntaxError", "message": "m", "args": other})
        assert isinstance(error, SyntaxError)
        assert "\x1b" not in shown(error)


def test_a_class_of_the_user_arrives_by_name_and_as_its_builtin() -> None:
    """The nearest builtin above it catches it; its own name is in the text."""
    error = carried(raise_it(OutOfRangeError(3, "of two")))
    assert isinstance(error, ValueError)
    assert isinstance(error, RemoteError)
    assert not isinstance(error, OutOfRangeError)
    assert error.type_name == f"{__name__}.OutOfRangeError"
    assert error.args == error.remote_args == (3, "of two")
    assert str(error).startswith("(3, 'of two')\n")
    assert str(error).endswith(error.type_name)


def test_a_class_without_a_builtin_is_a_remote_error() -> None:
    """Its arguments are a field, since ``args`` are those of the class."""
    error = carried(RefusedError("Ann", 3))
    assert type(error) is RemoteError
    assert error.args == ("Ann was refused 3",)
    assert error.remote_args == ("Ann", 3)
    assert str(error) == f"Ann was refused 3\n\nRemote type: {__name__}.RefusedError"


def test_a_registered_class_comes_back_as_itself() -> None:
    """It has its own fields, is a `RemoteError` too, and travels on."""
    assert register(RefusedError) is RefusedError
    error = carried(RefusedError("Ann", 3))
    assert isinstance(error, RefusedError)
    assert isinstance(error, RemoteError)
    assert (error.who, error.amount, error.message) == ("Ann", 3, "Ann was refused 3")
    assert pickle.loads(pickle.dumps(error)).who == "Ann"
    assert type(error).__qualname__ == f"RemoteError[{__name__}.RefusedError]"
    assert repr(error) == "RemoteError[RefusedError]('Ann', 3)"


@pytest.mark.parametrize("args", [["Ann"], [], ["Ann", 3, 4], None, "Ann", {"who": "Ann"}])
def test_a_registered_class_whose_constructor_takes_something_else(args: object) -> None:
    """It is made without it, and has the attributes that came."""
    register(RefusedError)
    name = f"{__name__}.RefusedError"
    error: Any = rebuild({"type": name, "message": "no", "args": args, "data": {"who": "Bo"}})
    assert error.type_name == name
    assert isinstance(error, RefusedError)
    assert error.who == "Bo"
    assert not hasattr(error, "amount")
    assert str(error).startswith("no")


class LackingError(KeyError):
    """Its constructor makes the text, as those of most people do."""

    def __init__(self, account: str, missing: int, *, hint: object = None) -> None:
        super().__init__(f"{account} lacks {missing}")
        self.account = account
        self.missing = missing
        self.hint = hint
        self.lines = [1, "two"]
        self.code = "E7"
        self._secret = "of nobody's business"
        self.handle = object()


def test_a_class_that_makes_its_text_comes_back_as_itself() -> None:
    """What was set on it is there, where that is plain; its constructor is not called."""
    original = LackingError("Ann", 3)
    data = {"account": "Ann", "missing": 3, "hint": None, "lines": (1, "two"), "code": "E7"}
    unregistered = carried(original)
    assert unregistered.data == {**data, "lines": [1, "two"]}
    assert isinstance(unregistered, KeyError)
    register(LackingError)
    error = carried(original)
    for found in (error, pickle.loads(pickle.dumps(error)), copy.copy(error), carried(error)):
        assert isinstance(found, LackingError)
        assert isinstance(found, RemoteError)
        assert (found.account, found.missing, found.hint) == ("Ann", 3, None)
        assert found.lines == (1, "two")
        assert found.args == ("Ann lacks 3",)
        assert found.message == str(original)
        assert not hasattr(found, "_secret")
        assert not hasattr(found, "handle")


def test_the_attributes_are_those_that_were_set() -> None:
    """Also where the constructor takes the text for something else."""

    @register
    class OrderError(Exception):
        def __init__(self, number: object) -> None:
            super().__init__(f"order {number}")
            self.number = number

    error = carried(OrderError(7))
    assert (error.number, error.message, error.args) == (7, "order 7", ("order 7",))
    assert isinstance(error, OrderError)


def test_attributes_of_a_peer_replace_nothing_of_ours() -> None:
    """Data may have any keys."""
    register(LackingError)
    names = [
        "args",
        "type_name",
        "traceback",
        "data",
        "worker",
        "__class__",
        "__dict__",
        "add_note",
    ]
    name = f"{__name__}.LackingError"
    data: dict[object, object] = {**dict.fromkeys(names, 1), 3: 4}
    error: Any = rebuild({"type": name, "message": "no", "data": data})
    assert error.type_name == name
    assert error.args == ("no",)
    assert error.worker == error.traceback == ""
    error.add_note("x")
    assert isinstance(error, LackingError)


@pytest.mark.parametrize(
    "cls",
    [
        int,
        "ValueError",
        Exception,
        StopIteration,
        KeyboardInterrupt,
        ExceptionGroup,
        RemoteError,
        forkwire.MethodNotFoundError,
    ],
)
def test_registering_what_cannot_be_mixed(cls: Any) -> None:
    """It is refused at once."""
    with pytest.raises(UsageError):
        register(cls)


def test_registering_an_impossible_mix() -> None:
    """A class that refuses to have a child is refused at once, too."""

    class FinalError(Exception):
        def __init_subclass__(cls) -> None:
            raise TypeError("no children")

    with pytest.raises(UsageError, match="no children"):
        register(FinalError)


@pytest.mark.parametrize(
    ("original", "cls"),
    [
        (queue.Empty(), queue.Empty),
        (sqlite3.IntegrityError("UNIQUE"), sqlite3.IntegrityError),
        (subprocess.CalledProcessError(3, "cmd"), subprocess.CalledProcessError),
        (json.JSONDecodeError("no", "doc", 1), ValueError),
    ],
)
def test_some_of_the_standard_library(original: Exception, cls: type[Exception]) -> None:
    """Those that can be made from their arguments; others as the builtin that they are."""
    error = carried(original)
    assert isinstance(error, cls)
    assert isinstance(error, RemoteError)
    assert error.message == str(original)
    assert getattr(error, "returncode", 3) == 3


def test_no_module_is_imported_for_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is not there already stays away."""
    monkeypatch.delitem(sys.modules, "zipfile", raising=False)
    error = rebuild({"type": "zipfile.BadZipFile", "message": "no"})
    assert type(error) is RemoteError
    assert "zipfile" not in sys.modules


def chain() -> None:
    try:
        raise KeyError("inner")
    except KeyError as inner:
        try:
            raise ValueError("middle") from inner
        except ValueError:
            error = TypeError("outer")
            error.add_note("a note")
            raise error  # noqa: B904


def test_causes_contexts_and_notes_are_restored() -> None:
    """A traceback shows the whole story in Python's own way."""
    error = carried(raised(chain))
    assert isinstance(error, TypeError)
    assert error.__notes__ == ["a note"]
    middle = error.__context__
    assert isinstance(middle, ValueError)
    assert not error.__suppress_context__
    assert isinstance(middle.__cause__, KeyError)
    assert middle.__suppress_context__
    assert isinstance(middle.__cause__, RemoteError)
    text = shown(error)
    assert "direct cause" in text
    assert "During handling" in text


def test_a_suppressed_context_stays_so() -> None:
    """``raise ... from None``."""

    def hide() -> None:
        try:
            raise KeyError("secret")
        except KeyError:
            raise ValueError("shown") from None

    error = carried(raised(hide))
    assert error.__suppress_context__
    assert "secret" not in shown(error)


def group() -> BaseException:
    inner = ExceptionGroup("inner", [OSError(2, "gone"), OutOfRangeError("far")])
    return raise_it(ExceptionGroup("outer", [ValueError("v"), KeyError("k"), inner]))


def test_a_group_is_a_group() -> None:
    """Each part is remote as well, however deep, and each clause takes its own."""
    error = carried(group())
    assert isinstance(error, RemoteError)
    assert isinstance(error, ExceptionGroup)
    assert str(error).startswith("outer (3 sub-exceptions)\n\nRemote Traceback")
    caught: list[ExceptionGroup[Exception]] = []
    try:
        raise error
    except* KeyError as part:
        caught.append(part)
    except* OSError as part:
        caught.append(part)
    except* ValueError as part:
        caught.append(part)
    assert [len(part.exceptions) for part in caught] == [1, 1, 2]
    assert all(isinstance(part, RemoteError) for part in caught)
    assert "Remote Traceback" in str(caught[0])
    assert pickle.loads(pickle.dumps(error)).exceptions[2].message == "inner"
    assert copy.deepcopy(error).message == "outer"


def test_a_group_with_an_exit_in_it() -> None:
    """It is a group of ordinary errors here: nobody's exit but the handler's."""
    error = carried(BaseExceptionGroup("outer", [SystemExit(3), ValueError("v")]))
    assert isinstance(error, ExceptionGroup)
    assert type(error.exceptions[0]) is RemoteError


@pytest.mark.parametrize("code", sorted(set(CODES) - {-32000, -32600}))
def test_a_code_has_its_class(code: int) -> None:
    """Both ways, with the message; worker and method are in fields and in a note."""
    cls = CODES[code]
    assert CODE_OF[cls] == code == describe(cls("text"))["code"]
    error = carried(raise_it(cls("text")), worker="calc-1", method="add")
    assert type(error) is cls
    assert str(error) == "text"
    assert error.args == ("text",)
    assert (error.worker, error.method) == ("calc-1", "add")


def test_further_codes() -> None:
    """A broken protocol, a value that does not fit, and what no table has."""
    assert describe(forkwire.ProtocolError("x"))["code"] == -32600
    assert type(rebuild({"code": -32600, "message": "x"})) is CallError
    assert describe(forkwire.ValueDecodeError("x"))["code"] == -32602
    own = rebuild({"code": 7, "message": "x", "data": {"n": 1}})
    assert isinstance(own, RemoteError)
    assert (own.code, own.data) == (7, {"n": 1})


def test_what_a_handler_lets_through_is_an_error_of_the_handler() -> None:
    """The outer caller is not told that its own method is missing, or its own time over."""
    inner = rebuild({"code": -32601, "message": "no method 'x'"}, worker="w", method="x")
    error = carried(inner, method="outer")
    assert isinstance(error, RemoteError)
    assert isinstance(error, AttributeError)
    late = forkwire.DeadlineExceededError("late")
    again = rebuild(describe(late, code=-32000))
    assert isinstance(again, RemoteError)
    assert isinstance(again, TimeoutError)


def test_a_remote_error_passes_through() -> None:
    """Through a worker in the middle: type and message stay, both tracebacks are there."""
    first = carried(raise_it(OutOfRangeError("far")), worker="inner", method="get")
    second = carried(raise_it(first), worker="outer", method="ask")
    assert isinstance(second, ValueError)
    assert isinstance(second, RemoteError)
    assert (second.type_name, second.message) == (f"{__name__}.OutOfRangeError", "far")
    assert str(second).count("Remote Traceback") == 2
    assert second.__notes__ == [
        "in method 'get' of worker inner",
        "in method 'ask' of worker outer",
    ]


def test_a_cancellation_of_the_loop_is_a_cancelled_call() -> None:
    """Of asyncio and of trio; it has a text here."""

    async def cancelled() -> BaseException:
        with trio.CancelScope() as scope:
            scope.cancel()
            try:
                await trio.sleep(1)
            except trio.Cancelled as error:
                caught = error
                raise
        return caught

    for original in (asyncio.CancelledError(), trio.run(cancelled)):
        assert code_of(original) == -32001
        error = carried(original)
        assert type(error) is forkwire.CallCancelledError
        assert str(error)


def test_frames_of_the_library_are_left_out() -> None:
    """Those before the handler's; where there are no others, an error of ours has none."""
    plugin: dict[str, Any] = {"__name__": "plugin"}
    exec("def handler(): raise ValueError", plugin)
    error = raised(plugin["handler"])
    assert "in raised" in str(describe(error)["traceback"])
    text = str(describe(error, skip=(__name__,))["traceback"])
    assert "in raised" not in text
    assert "in handler" in text
    ours = raise_it(forkwire.MethodNotFoundError("x"))
    assert "traceback" not in describe(ours, skip=(__name__,))
    bug = raise_it(ValueError("x"))
    assert "in raised" in str(describe(bug, skip=(__name__,))["traceback"])
    assert "traceback" not in describe(ValueError("never raised"))


def test_suggestions() -> None:
    """The nearest few names, quoted; nothing where nothing is near."""
    names = ["add", "added", "adder", "multiply"]
    assert suggestions("ad", ["add"]) == "; did you mean 'add'?"
    assert suggestions("adde", names) == "; did you mean 'adder', 'added' or 'add'?"
    assert suggestions("divide", ["add"]) == ""
    assert suggestions("x", []) == ""
    assert suggestions("multiplyy", names) == "; did you mean 'multiply'?"


def test_suggestions_are_bounded() -> None:
    """A name of a million letters, and a million names."""
    assert suggestions("a" * 1_000_000, ["a"]) == ""
    assert suggestions("b", ["a" * 1_000_000]) == ""
    assert suggestions("name", (f"name{n}" for n in range(1_000_000)))

"""Whatever is raised is described, and whatever comes is rebuilt: bounded, and nothing raised."""

from __future__ import annotations

import asyncio
import pickle
import sys
import time
import traceback
from collections.abc import Callable
from typing import Any, NoReturn, cast

import cbor2
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from forkwire import CallError, RemoteError
from forkwire.rpc.exceptions import remote
from forkwire.rpc.exceptions.describing import CODES, describe, rebuild

# Above all that one error map takes; below every limit of a frame.
MOST = 300_000

# Generous: a loaded machine; each takes some milliseconds.
SECONDS = 5


def refuse(*_: object, **__: object) -> NoReturn:
    raise KeyboardInterrupt("from inside")


def child(base: type, *names: str, by: Any = type) -> Any:
    """A class whose attributes of these ``names`` raise: calls where Python looks for a call."""
    odd = {"__class__", "__dict__", "__module__", "__mro__", "__name__", "__notes__", "__cause__",
           "__context__", "__traceback__", "__suppress_context__"}  # fmt: skip
    asked = {name: name in odd or not name.startswith("__") for name in names}
    found = {name: property(refuse) if ask else refuse for name, ask in asked.items()}
    return by("Hostile", (base,), found)


def hostile_text() -> str:
    text: str = child(
        str, "__len__", "__bool__", "__getitem__", "__iter__", "__eq__", "__format__", "__hash__",
        "__str__", "__repr__", "__add__", "__contains__", "encode",
    )("text")  # fmt: skip
    return text


def hostile() -> Exception:
    """An error whose every question raises, and its class's as well.

    Made here only: no test tool survives the sight of such a class in a module.
    """
    meta = child(
        type, "__name__", "__module__", "__mro__", "__hash__", "__eq__", "__instancecheck__",
        "__subclasscheck__", "__repr__", "__getattribute__",
    )  # fmt: skip
    cls = child(
        Exception, "args", "__notes__", "__cause__", "__context__", "__traceback__", "__class__",
        "__dict__", "__suppress_context__", "__str__", "__repr__", "__getattribute__", "__hash__",
        "__eq__", by=meta,
    )  # fmt: skip
    error: Exception = cls()
    return error


def hostile_remote() -> Exception:
    """One of ours, made by somebody else."""
    fields = ("message", "type_name", "traceback", "remote_args", "data", "worker", "method")
    cls = child(RemoteError, *fields)
    error: Exception = cls.__new__(cls)
    return error


def lying() -> Exception:
    """One that says that it is another."""
    cls: Any = type("Lying", (Exception,), {"__class__": RemoteError})
    error: Exception = cls()
    return error


class SayingError(Exception):
    """One whose text is ``answer()``."""

    def __init__(self, answer: Callable[[], object]) -> None:
        super().__init__()
        self.answer = answer

    def __str__(self) -> str:
        return cast("str", self.answer())


class Hook:
    """A value whose every conversion raises."""

    __repr__ = __str__ = __fspath__ = __int__ = __iter__ = __len__ = __bool__ = refuse


def with_notes(notes: object) -> Exception:
    error = ValueError("x")
    setattr(error, "__notes__", notes)  # noqa: B010
    return error


def with_itself() -> Exception:
    error = ValueError()
    error.args = (error,)
    return error


def cyclic() -> Exception:
    one, two = ValueError("one"), KeyError("two")
    one.__cause__, two.__context__ = two, one
    return one


def long_chain(link: str) -> Exception:
    last = first = ValueError(0)
    for number in range(20_000):
        following = ValueError(number)
        setattr(last, link, following)
        last = following
    return first


def deep_group() -> Exception:
    group: ExceptionGroup[Exception] = ExceptionGroup("g", [ValueError("x")])
    for _ in range(5_000):
        group = ExceptionGroup("g", [group])
    return group


def binary_tree(depth: int = 40) -> Exception:
    """Of few objects, and of a million million paths."""
    error: Exception = ValueError("leaf")
    for _ in range(depth):
        above = ExceptionGroup("g", [error, error])
        above.__cause__ = above.__context__ = error
        error = above
    return error


def deep_recursion() -> Exception:
    def left() -> None:
        right()

    def right() -> None:
        left()

    try:
        left()
    except RecursionError as error:
        return error
    raise AssertionError


def long_line() -> BaseException:
    try:
        exec(compile("x = [" + "0," * 200_000 + "1/0]", "long.py", "exec"))
    except ZeroDivisionError as error:
        return error
    raise AssertionError


def nested(depth: int) -> tuple[Any, ...]:
    value: tuple[Any, ...] = ()
    for _ in range(depth):
        value = (value,)
    return value


def huge_remote() -> Exception:
    error = RemoteError("m" * 10_000_000, type_name="t" * 10_000_000, traceback="b" * 10_000_000)
    error.data = {"k" * 10_000_000: "v", "n": 10**10_000, "w": Hook()}
    return error


HOSTILE: dict[str, Callable[[], BaseException]] = {
    "every question": hostile,
    "remote": hostile_remote,
    "system": lambda: child(OSError, "filename", "filename2", "errno")(2, "x", "y"),
    "group": lambda: child(ExceptionGroup, "exceptions", "message")("g", [ValueError("x")]),
    "lying": lying,
    "text raises": lambda: SayingError(refuse),
    "text is no text": lambda: SayingError(lambda: 3),
    "text is hostile": lambda: SayingError(hostile_text),
    "text is huge": lambda: SayingError(lambda: "é" * 10_000_000),
    "text has no encoding": lambda: ValueError("\ud800" * 20_000),
    "text recurses": lambda: SayingError(deep_recursion),
    "text exits": lambda: SayingError(sys.exit),
    "argument raises": lambda: ValueError(Hook()),
    "argument is huge": lambda: ValueError(b"x" * 10_000_000),
    "argument is a huge number": lambda: ValueError(1 << 10_000_000),
    "argument is itself": with_itself,
    "argument is deep": lambda: ValueError(nested(100_000)),
    "argument is a hostile text": lambda: ValueError(hostile_text()),
    "many arguments": lambda: ValueError(*range(1_000_000)),
    "file name raises": lambda: OSError(2, "x", Hook()),
    "notes are no list": lambda: with_notes(3),
    "notes are a hook": lambda: with_notes(Hook()),
    "notes are hooks": lambda: with_notes([Hook(), 3, hostile_text()]),
    "many notes": lambda: with_notes(["n" * 10_000] * 100_000),
    "cycle": cyclic,
    "long causes": lambda: long_chain("__cause__"),
    "long contexts": lambda: long_chain("__context__"),
    "deep group": deep_group,
    "wide group": lambda: ExceptionGroup("g", [ValueError("x" * 10_000)] * 100_000),
    "tree": binary_tree,
    "deep stack": deep_recursion,
    "long line": long_line,
    "huge remote": huge_remote,
    "exit": lambda: SystemExit(Hook()),
    "interrupt": KeyboardInterrupt,
    "generator exit": GeneratorExit,
    "stop": lambda: StopIteration(Hook()),
    "async stop": StopAsyncIteration,
    "cancelled": lambda: asyncio.CancelledError("x"),
    "long name": lambda: type("N" * 1_000_000, (ValueError,), {"__module__": "\ud800"})("x"),
    "no module": lambda: type("Name", (ValueError,), {"__module__": Hook()})("x"),
    "unicode": lambda: UnicodeDecodeError("utf-8", b"\xff" * 10_000_000, 0, 1, "x"),
}


def check_plain(value: object, depth: int = 0) -> None:
    assert depth < 60
    assert type(value) in (dict, list, str, int, bool, float, bytes, type(None))
    parts = [*value, *value.values()] if isinstance(value, dict) else value
    for part in parts if isinstance(parts, list) else ():
        check_plain(part, depth + 1)


@pytest.mark.parametrize("name", HOSTILE)
def test_whatever_is_raised_is_described(name: str) -> None:
    """As bounded plain data, in bounded time, and what is rebuilt from it can be shown."""
    error = HOSTILE[name]()
    begin = time.monotonic()
    data = describe(error)
    del error
    assert time.monotonic() - begin < SECONDS
    check_plain(data)
    assert len(cbor2.dumps(data)) < MOST
    assert type(data["message"]) is str
    assert data["message"] != "(an exception that cannot be described)"
    rebuilt = rebuild(data)
    assert "".join(traceback.format_exception(rebuilt))


def test_what_cannot_be_described_is_said_to_be_so(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where there is no memory left, say."""
    monkeypatch.setattr("forkwire.rpc.exceptions.describing.message_of", refuse)
    data = describe(ValueError("x"))
    assert data["code"] == -32000
    assert "cannot be described" in str(data["message"])


def test_what_is_left_out_is_said() -> None:
    """Of a message and a stack the middle; of notes and of a group the rest, counted."""
    data: Any = describe(ValueError("a" * 5_000 + "b" * 5_000))
    assert data["message"].startswith("a")
    assert data["message"].endswith("b")
    assert "characters left out] ..." in data["message"]
    data = describe(deep_recursion())
    assert "frames left out] ..." in data["traceback"]
    data = describe(with_notes(["n"] * 100))
    assert data["notes"][-1] == "(84 more notes)"
    data = describe(ExceptionGroup("g", [ValueError("x")] * 100))
    assert len(data["errors"]) == 32
    assert data["notes"] == ["(68 more errors in this group)"]


scalars = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(st.characters(exclude_categories=()))
    | st.binary()
    | st.dates()
)
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner) | st.tuples(inner, inner) | st.dictionaries(scalars, inner),
    max_leaves=10,
)
names = st.sampled_from(
    [*remote.registered, "builtins.ExceptionGroup", "builtins.StopIteration", "builtins.object",
     "builtins.print", "os.system", "struct.error", "subprocess.CalledProcessError"]
)  # fmt: skip


def maps(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """Error maps with the right keys and, often, the wrong values."""
    return st.fixed_dictionaries(
        {},
        optional={
            "code": st.sampled_from(sorted(CODES)) | values,
            "type": names | values,
            "base": names | values,
            "message": st.text() | values,
            "args": st.lists(scalars, max_size=6) | values,
            "traceback": st.text() | values,
            "notes": st.lists(st.text()) | values,
            "cause": inner,
            "context": inner,
            "suppress": st.booleans() | values,
            "errors": st.lists(inner, max_size=3) | values,
            "data": st.dictionaries(
                st.sampled_from(["name", "path", "filename", "filename2"]) | scalars, values
            )
            | values,
        },
    )


@settings(max_examples=300, deadline=None)
@given(data=st.recursive(values, maps, max_leaves=8), worker=st.text(), method=st.text())
def test_whatever_comes_is_rebuilt(data: Any, worker: str, method: str) -> None:
    """To an error that can be raised, shown, printed, described again, and put in a pickle."""
    error = rebuild(data, worker=worker, method=method)
    assert isinstance(error, CallError)
    assert (error.worker, error.method) == (worker, method)
    text = "".join(traceback.format_exception(error))
    text.encode()
    assert not any(letter in text for letter in "\x00\x1b\r\u202e\u2028")
    assert type(str(error)) is str
    assert repr(error)
    assert type(pickle.loads(pickle.dumps(error))) is type(error)
    again = describe(error)
    assert len(cbor2.dumps(again)) < MOST
    assert isinstance(rebuild(again), CallError)


@pytest.mark.parametrize("data", [None, [], 3, "text", b"", {}, {1: 2}, {"code": True}])
def test_what_is_no_error_map_is_an_error_nevertheless(data: object) -> None:
    """Of the handler, with nothing in it."""
    assert type(rebuild(data)) is RemoteError


def test_a_map_in_itself_has_an_end() -> None:
    """CBOR can say that, with shared references; so does a very deep, and a very wide one."""
    data: dict[str, Any] = {"message": "x"}
    data["cause"] = data["context"] = data
    data["errors"] = [data] * 1_000
    assert isinstance(rebuild(data), ExceptionGroup)
    deep: dict[str, Any] = {"message": "x"}
    for _ in range(50_000):
        deep = {"message": "x", "cause": deep}
    error: BaseException | None = rebuild(deep)
    count = 0
    while error is not None:
        error, count = error.__cause__, count + 1
    assert 1 < count < 100


@pytest.mark.parametrize("key", ["message", "type", "traceback"])
def test_long_text_is_cut(key: str) -> None:
    """Of what the peer sent, a person sees so much."""
    error = rebuild({"message": "", key: "\x1b[31m" * 1_000_000})
    assert len(str(error)) < 70_000
    assert "more]" in str(error)

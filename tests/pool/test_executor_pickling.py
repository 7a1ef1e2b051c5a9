"""What an executor's workers can be given: by name, by value, and what cannot be pickled at all."""

from __future__ import annotations

import contextvars
import dataclasses
import functools
import importlib
import importlib.util
import multiprocessing
import pickle
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import forkwire
from forkwire import ProcessExecutor
from forkwire.pool import pickling

from . import support_executor as there


@pytest.fixture(scope="module")
def executor() -> Iterator[ProcessExecutor]:
    """One worker, for tests that leave it as it was."""
    with ProcessExecutor(1) as executor:
        yield executor


@dataclasses.dataclass
class Point:
    x: int
    y: int


def move(point: Point, by: int) -> Point:
    return Point(point.x + by, point.y + by)


# -- by value ---------------------------------------------------------------------------------


def test_lambdas_and_nested_functions_go_by_value(executor: ProcessExecutor) -> None:
    """With what they close over."""
    ten = 10

    def add(number: int) -> int:
        return number + ten

    assert executor.submit(lambda: ten).result() == 10
    assert executor.submit(add, 1).result() == 11
    assert executor.submit(functools.partial(add, 2)).result() == 12
    assert list(executor.map(lambda n: n + ten, range(4), chunksize=3)) == [10, 11, 12, 13]


def test_nested_classes_go_by_value_and_come_back(executor: ProcessExecutor) -> None:
    """A result of theirs is an instance of the very class that is here."""

    class Box:
        def __init__(self, value: int) -> None:
            self.value = value

        def doubled(self) -> Box:
            return Box(self.value * 2)

    result = executor.submit(Box(4).doubled).result()
    assert type(result) is Box
    assert result.value == 8


def test_a_lambda_may_come_back(executor: ProcessExecutor) -> None:
    """Results go by the same rules."""
    assert executor.submit(there.make_lambda).result()() == 1


def test_functions_of_test_modules_work(executor: ProcessExecutor) -> None:
    """Whatever pytest calls their module; classes stay themselves, also after others of it."""
    executor.submit(lambda: Point(1, 2)).result()
    result = executor.submit(move, Point(1, 2), 3).result()
    assert type(result) is Point
    assert result == Point(4, 5)


def test_a_module_that_only_this_process_has_goes_by_value(
    executor: ProcessExecutor, tmp_path: Path
) -> None:
    """As pytest imports tests: from a folder that is on nobody's path."""
    path = tmp_path / "only_here.py"
    path.write_text(
        "class Kept(int): ...\n"
        "def helper(n): return n + 1\n"
        "def use(n): return Kept(helper(n))\n"
        "def fail(): raise Trouble('x')\n"
        "class Trouble(Exception): ...\n"
    )
    spec = importlib.util.spec_from_file_location("only_here", path)
    assert spec is not None
    assert spec.loader is not None
    module: Any = importlib.util.module_from_spec(spec)
    sys.modules["only_here"] = module
    try:
        spec.loader.exec_module(module)
        result = executor.submit(module.use, 1).result()
        assert result == 2
        assert type(result) is module.Kept
        assert type(executor.submit(module.fail).exception()) is module.Trouble
        import cloudpickle

        assert "only_here" not in cloudpickle.list_registry_pickle_by_value()
    finally:
        del sys.modules["only_here"]


def test_a_module_of_the_path_goes_by_name() -> None:
    """What a fresh interpreter finds is not sent."""
    for function in (there.square, json_dumps(), np.linalg.norm, Path.exists):
        assert pickling.pack(function) == pickle.dumps(function, 5)


@pytest.mark.parametrize("start", ["template", "fork"])
def test_a_module_of_a_path_that_came_later_is_found(
    start: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a worker that is older, at either end of the path; what that has of its own it keeps."""
    with ProcessExecutor(1, start=start) as executor:
        executor.submit(eval, "__import__('sys').path.append('/of/its/own')").result()
        for name, at in ((f"before_all_{start}", 0), (f"after_all_{start}", len(sys.path) + 1)):
            (tmp_path / name).mkdir()
            (tmp_path / name / f"{name}.py").write_text("def here(): return __file__")
            monkeypatch.setattr(sys, "path", [*sys.path])
            sys.path.insert(at, str(tmp_path / name))
            here = importlib.import_module(name).here
            assert executor.submit(here).result() == str(tmp_path / name / f"{name}.py")
        there_ = executor.submit(eval, "__import__('sys').path").result()
        assert there_[0] == sys.path[0]
        assert there_[-2:] == ["/of/its/own", sys.path[-1]]


def json_dumps() -> Any:
    import json

    return json.dumps


def test_another_module_of_the_same_name_is_not_taken_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A name that would lead elsewhere over there is no name."""
    path = tmp_path / "colorsys.py"
    path.write_text("def one(): return 1\n")
    spec = importlib.util.spec_from_file_location("colorsys", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "colorsys", module)
    spec.loader.exec_module(module)
    assert not pickling.has_name(module.one)


def test_main_is_sent_and_never_run_again(tmp_path: Path) -> None:
    """Functions, classes and errors of a script, without the guard that others need."""
    script = tmp_path / "script.py"
    script.write_text(
        "from forkwire import ProcessExecutor\n"
        "print('once')\n"
        "class Thing:\n"
        "    def __init__(self, n): self.n = n\n"
        "class Oops(Exception): ...\n"
        "def twice(thing):\n"
        "    if thing.n < 0: raise Oops('negative')\n"
        "    return Thing(2 * thing.n)\n"
        "with ProcessExecutor(2) as executor:\n"
        "    result = executor.submit(twice, Thing(4)).result()\n"
        "    print(type(result) is Thing, result.n)\n"
        "    try: executor.submit(twice, Thing(-1)).result()\n"
        "    except Oops as error: print(error, 'if thing.n < 0' in str(error.__cause__))\n"
    )
    done = subprocess.run(
        [sys.executable, "-W", "error", script],
        capture_output=True, text=True, timeout=50, check=False,
    )  # fmt: skip
    assert done.stderr == ""
    assert done.stdout == "once\nTrue 8\nnegative True\n"


# -- without cloudpickle ----------------------------------------------------------------------


@pytest.fixture
def no_cloudpickle(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if it were not installed."""
    monkeypatch.setitem(sys.modules, "cloudpickle", None)


@pytest.mark.usefixtures("no_cloudpickle")
def test_without_cloudpickle_the_error_says_what_to_do(executor: ProcessExecutor) -> None:
    """It names the function, and the two ways out; the executor goes on."""
    error = executor.submit(lambda: 1).exception()
    assert isinstance(error, pickle.PicklingError)
    assert isinstance(error, forkwire.ValueEncodeError)
    assert "<lambda>" in str(error)
    assert "Move it to a module" in str(error)
    assert "pip install 'forkwire[executor]'" in str(error)
    assert executor.submit(there.square, 2).result() == 4


@pytest.mark.usefixtures("no_cloudpickle")
def test_main_is_inherited_by_a_fork(tmp_path: Path) -> None:
    """What is defined in `__main__` goes by name then."""
    script = tmp_path / "script.py"
    script.write_text(
        "import sys; sys.modules['cloudpickle'] = None\n"
        "from forkwire import ProcessExecutor\n"
        "def twice(n): return 2 * n\n"
        "with ProcessExecutor(1, start='fork') as executor:\n"
        "    print(executor.submit(twice, 2).result())\n"
        "with ProcessExecutor(1, start='exec') as executor:\n"
        "    print(executor.submit(twice, 2).exception())\n"
    )
    done = subprocess.run(
        [sys.executable, "-W", "ignore", script],
        capture_output=True, text=True, timeout=50, check=False,
    )  # fmt: skip
    assert done.stdout.startswith("4\n__main__.twice cannot be sent to a worker by its name")


# -- what cannot be ---------------------------------------------------------------------------


def test_a_call_that_cannot_be_pickled_is_its_own_error(executor: ProcessExecutor) -> None:
    """Named in a note; nothing else fails."""
    error = executor.submit(there.square, sys.stdout).exception()  # type: ignore[arg-type]
    assert isinstance(error, TypeError)
    assert f"the call of {there.__name__}.square cannot be pickled" in error.__notes__[0]
    assert executor.submit(there.square, 2).result() == 4


def test_a_result_that_cannot_be_pickled_is_its_own_error(executor: ProcessExecutor) -> None:
    """It says that the function did return, and what."""
    error = executor.submit(there.make_generator).exception()
    assert isinstance(error, TypeError)
    note = next(note for note in error.__notes__ if note.startswith("forkwire"))
    assert "make_generator did return" in note
    assert "of type generator" in note
    assert executor.submit(there.square, 2).result() == 4


def test_a_call_that_cannot_be_unpickled_is_its_own_error(executor: ProcessExecutor) -> None:
    """It names the call; its cause is what was raised over there."""
    error = executor.submit(there.square, there.Unreadable()).exception()  # type: ignore[arg-type]
    assert isinstance(error, BrokenProcessPool)
    assert isinstance(error, forkwire.ValueDecodeError)
    assert isinstance(error.__cause__, LookupError)
    assert "the call of" in str(error)
    assert "not here" in str(error)
    assert executor.submit(there.square, 2).result() == 4


def test_a_result_that_cannot_be_unpickled_is_its_own_error(executor: ProcessExecutor) -> None:
    """The same on the way back."""
    error = executor.submit(there.make_unreadable).exception()
    assert isinstance(error, forkwire.ValueDecodeError)
    assert isinstance(error.__cause__, LookupError)
    assert executor.submit(there.square, 2).result() == 4


@pytest.mark.parametrize(
    ("kind", "args", "text"),
    [
        (there.NeedsTwo, ("one", "two"), "one and two"),
        (there.NoPickle, ("this",), "this"),
    ],
)
def test_an_error_that_cannot_be_rebuilt_is_told_as_data(
    executor: ProcessExecutor, kind: type[Exception], args: Any, text: str
) -> None:
    """A `RemoteError` with its type, message and traceback; the executor goes on."""
    error = executor.submit(there.fail_with, kind, *args).exception()
    assert isinstance(error, forkwire.RemoteError)
    assert error.message == text
    assert error.type_name.endswith(kind.__name__)
    assert "in fail_with" in error.traceback
    assert any("this is no" in note for note in error.__notes__)
    assert executor.submit(there.square, 2).result() == 4


# -- values -----------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [10, 200_000])
def test_arrays_arrive_as_writable_as_they_were(executor: ProcessExecutor, size: int) -> None:
    """Large ones go beside the pickle, and are nobody else's."""
    array = np.arange(size)
    result = executor.submit(there.fill, array).result()
    assert result[0] == 42
    assert array[0] == 0
    result[1] = 7
    frozen = np.arange(size)
    frozen.flags.writeable = False
    assert isinstance(executor.submit(there.fill, frozen).exception(), ValueError)


def test_large_arrays_are_not_copied_into_the_pickle() -> None:
    """They are its attachments, whatever their order; what is strided is copied."""
    array = np.zeros((500, 500))
    for whole in (array, np.asfortranarray(array)):
        packed = pickling.pack([whole, whole])
        assert isinstance(packed, list)
        assert len(packed) == 3
        assert len(packed[0]) < 1000
        assert (pickling.unpack([packed[0], packed[1], bytes(packed[2])])[0] == whole).all()
    assert isinstance(pickling.pack(array[::2, ::2]), bytes)


def test_there_may_be_many_arrays(executor: ProcessExecutor) -> None:
    """More than a message has room for beside it."""
    arrays = [np.full(pickling.LEAST_BUFFER, n % 251, "u1") for n in range(4200)]
    found = executor.submit(list, arrays).result()
    assert len(found) == 4200
    assert all(np.array_equal(there, here) for there, here in zip(found, arrays, strict=True))


def test_large_bytes_go_there_and_back(executor: ProcessExecutor) -> None:
    """More than a pipe holds, in both directions."""
    data = b"x" * 5_000_000
    assert executor.submit(bytes.upper, data).result() == data.upper()


def test_what_is_too_large_is_its_own_error() -> None:
    """It says what the call can be given instead. The limit is lower here, or it took gigabytes."""
    with ProcessExecutor(1) as executor:
        executor.submit(int).result()
        (member,) = executor._engine._members
        assert member._link is not None
        member._link.session.peer_size = 1000
        error = executor.submit(bytes.upper, b"x" * 2000).exception()
        assert isinstance(error, forkwire.ValueEncodeError)
        assert "bytes.upper" in error.__notes__[-1]
        assert "the path of a file" in error.__notes__[-1]
        assert executor.submit(abs, -1).result() == 1


def test_what_multiprocessing_can_send_can_be_sent(executor: ProcessExecutor) -> None:
    """A manager's queue reaches the worker, whose key is the same."""
    with multiprocessing.get_context("spawn").Manager() as manager:
        queue = manager.Queue()
        executor.submit(queue.put, 7).result()
        assert queue.get(timeout=there.LIMIT) == 7


variable: contextvars.ContextVar[str] = contextvars.ContextVar("executor_tests", default="unset")


def read_variable() -> str:
    from forkwire.rpc.telling import context

    found = context._variables.get("executor_tests")
    return found.get() if found is not None else "unknown"


def test_context_travels_from_where_it_was_submitted() -> None:
    """Of variables that are propagated: the submitter's value, not that of the thread."""
    forkwire.propagate(variable)
    token = variable.set("ours")
    try:
        with ProcessExecutor(1, start="fork") as executor:
            future = executor.submit(read_variable)
            variable.set("changed")
            assert future.result() == "ours"
    finally:
        variable.reset(token)
        from forkwire.rpc.telling import context

        del context._variables["executor_tests"]

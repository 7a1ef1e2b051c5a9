"""Calls by name and by function, to every kind of handler, and how they fail."""

from __future__ import annotations

import contextlib
import datetime
import decimal
import gc
import math
import os
import uuid
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import anyio
import numpy as np
import pytest

import forkwire
from forkwire import (
    InvalidArgumentsError,
    MethodNotFoundError,
    RemoteError,
    UsageError,
    ValueDecodeError,
    ValueEncodeError,
    Worker,
    WorkerClosedError,
    WorkerDied,
    WrongKindError,
    open_worker,
)

from .services import calling
from .services.calling import Colour, Level, Point
from .support_calls import LIMIT, SERVICES, worker_of

pytestmark = pytest.mark.anyio


# -- how to call ------------------------------------------------------------------------------


async def test_by_name_and_by_function() -> None:
    """A function is called by its name, or by itself, plain or async alike."""
    async with worker_of() as worker:
        assert await worker.call("add", 1, 2) == 3
        assert await worker.call(calling.add, 1, 2) == 3
        assert await worker.call("add_later", 1, 2) == 3
        assert await worker.call(calling.add_later, 1, 2) == 3
        assert await worker.call("pid") == worker.pid != os.getpid()


async def test_positional_and_keyword() -> None:
    """Arguments go as they are given: defaults, keywords, the rest."""
    async with worker_of() as worker:
        assert await worker.call("add", 1) == 11
        assert await worker.call("add", b=1, a=2) == 3
        assert await worker.call(calling.keyword_only, name="you") == "hello you"
        assert await worker.call("keyword_only", name="you", greeting="bye") == "bye you"
        assert await worker.call("several", 1, 2, 3, four=4) == [1, [2, 3], {"four": 4}]
        assert await worker.call("several", 1, function=2) == [1, [], {"function": 2}]


class Counter:
    """Has a state."""

    def __init__(self, start: int = 100) -> None:
        self.value = start

    def up(self, by: int = 1) -> int:
        self.value += by
        return self.value

    async def up_later(self) -> int:
        return self.up()

    @staticmethod
    def static(a: int) -> int:
        return a + 1

    @classmethod
    def named(cls) -> str:
        return cls.__name__


def lone(a: int) -> int:
    return -a


@pytest.mark.parametrize(
    ("service", "method", "expected"),
    [
        (calling, "add", 8),
        (Counter, "up", 107),
        (Counter(5), "up", 12),
        ({"add7": lambda a: a + 7}, "add7", 14),
        (lone, "lone", -7),
        (Counter, "static", 8),
    ],
    ids=["module", "class", "instance", "mapping", "function", "static"],
)
async def test_every_kind_of_service(service: object, method: str, expected: int) -> None:
    """A module, a class, an instance with its state, a mapping and a function can be served."""
    async with worker_of(service) as worker:
        arguments = (7, 1) if service is calling else (7,)
        assert await worker.call(method, *arguments) == expected


async def test_state_is_kept_between_calls() -> None:
    """An instance lives as long as its worker, and the one here stays as it was."""
    counter = Counter(1)
    async with worker_of(counter) as worker:
        assert await worker.call(counter.up) == 2
        assert await worker.call("up", by=5) == 7
        assert await worker.call("up_later") == 8
        assert await worker.call("named") == "Counter"
    assert counter.value == 1


async def test_module_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """A service given by name is imported by the worker alone."""
    monkeypatch.syspath_prepend(str(SERVICES))
    async with worker_of("calling") as worker:
        assert worker.methods["count"] == "generator"
        assert await worker.call("add", 1, 2) == 3
        with pytest.raises(MethodNotFoundError, match="did you mean"):
            await worker.call("ad", 1, 2)
        with pytest.raises(WrongKindError):
            await worker.call("count", 1)


NOT_OFFERED = ["_private", "_state", "os", "anyio", "Any", "add.__class__", "__init__",
               "calling.add", "", "Path", "ADD"]  # fmt: skip


async def test_what_is_not_offered() -> None:
    """Nothing private, imported, dotted or dunder can be called, with the code here or not."""
    async with worker_of() as worker:
        for name in NOT_OFFERED:
            with pytest.raises(MethodNotFoundError):
                await worker.call(name)
            with pytest.raises(MethodNotFoundError):  # past what is known here
                await unchecked(worker).call(name or "?")
        assert await worker.call("add", 1, 2) == 3


def unchecked(worker: Worker) -> forkwire.Calls:
    """Calls that the other side alone judges."""
    from forkwire.rpc.caller.offers import Offers

    calls = worker.options()
    calls._offers = Offers("a stranger")
    return calls


async def test_suggestions() -> None:
    """Whoever misspells a name is told the near one."""
    async with worker_of() as worker:
        with pytest.raises(MethodNotFoundError, match="did you mean 'add_later'"):
            await worker.call("add_latr")
        with pytest.raises(MethodNotFoundError, match="did you mean 'add_later'"):
            await unchecked(worker).call("add_latr")


async def test_functions_that_are_not_the_services() -> None:
    """A function that the worker does not offer is refused here, whatever its name is."""

    def add(a: int, b: int) -> int:
        return a * b

    async with worker_of() as worker:
        with pytest.raises(UsageError, match="is not what"):
            await worker.call(add, 1, 2)
        with pytest.raises(MethodNotFoundError):
            await worker.call(calling._private)
        not_callable: Any = 7
        with pytest.raises(UsageError):
            await worker.call(not_callable)


# -- bad calls --------------------------------------------------------------------------------


@pytest.mark.parametrize("function", ["add", "add_later"])
async def test_bad_arguments(function: str) -> None:
    """Too many, too few, of other names or types: nothing runs, and the signature is named."""
    async with worker_of() as worker:
        for args, kwargs in (((), {}), ((1, 2, 3), {}), ((1,), {"c": 1}), (("one", 2), {})):
            with pytest.raises(InvalidArgumentsError, match=function) as caught:
                await worker.call(function, *args, **kwargs)
            assert isinstance(caught.value, TypeError)
            assert not isinstance(caught.value, RemoteError)
        assert await worker.call(function, 1) == 11


async def test_type_error_inside_a_handler_is_the_handlers() -> None:
    """Only arguments that do not fit are invalid; a TypeError of the handler is a remote one."""

    def handler(a: Any) -> Any:
        return a + "x"

    async with worker_of(handler) as worker:
        with pytest.raises(RemoteError) as caught:
            await worker.call(handler, 1)
        assert isinstance(caught.value, TypeError)


async def test_wrong_kind() -> None:
    """What yields is streamed, all else called: known here or only over there."""
    async with worker_of() as worker:
        for calls in (worker, unchecked(worker)):
            for name in ("count", "count_later"):
                with pytest.raises(WrongKindError, match="stream"):
                    await calls.call(name, 1)
            for name in ("add", "add_later"):
                with pytest.raises(WrongKindError, match="call"):
                    [item async for item in calls.stream(name, 1)]
        assert await worker.call("add", 1) == 11


@pytest.mark.parametrize("function", ["unsendable", "unsendable_later"])
async def test_results_that_cannot_be_encoded(function: str) -> None:
    """The call ends with the path of the value, the worker goes on."""
    async with worker_of() as worker:
        with pytest.raises(ValueEncodeError, match="Odd") as caught:
            await worker.call(function)
        if function == "unsendable":
            assert "deep" in str(caught.value)
        assert await worker.call("add", 1) == 11


async def test_arguments_that_cannot_be_encoded() -> None:
    """Nothing is sent, and neighbours are unharmed."""
    async with worker_of() as worker:
        results: list[str] = []

        async def neighbour() -> None:
            results.append(await worker.call("nap_later", 0.02))

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(neighbour)
            await anyio.lowlevel.checkpoint()
            before = worker.statistics().calls
            for _ in range(3):
                with pytest.raises(ValueEncodeError, match="Odd"):
                    await worker.call("echo", [calling.Odd()])
                with pytest.raises(ValueEncodeError):
                    await worker.call("echo", value=object())
            assert worker.statistics().calls <= before + 1
            assert await worker.call("echo", [1]) == [1]
        assert results == ["slept"]
        assert worker.statistics().in_flight == 0


async def test_results_that_do_not_fit_the_annotation() -> None:
    """They are checked where the code is known here; a service given by name has none."""
    async with worker_of() as worker:
        for function in (calling.wrong_result, "wrong_result"):
            with pytest.raises(ValueDecodeError, match="wrong_result"):
                await worker.call(function)
        assert await unchecked(worker).call("wrong_result") == "seven"


# -- errors -----------------------------------------------------------------------------------


@pytest.mark.parametrize("function", ["fail", "fail_later"])
async def test_errors_of_handlers(function: str) -> None:
    """A ValueError is caught as one and as a RemoteError, and shows where it was raised."""
    async with worker_of() as worker:
        with pytest.raises(ValueError, match="boo") as caught:
            await worker.call(function, "boo")
        error: Any = caught.value
        assert isinstance(error, RemoteError)
        assert error.message == "boo"
        assert error.method == function
        assert "calling.py" in error.traceback
        assert "forkwire/rpc" not in error.traceback
        assert error.args == ("boo",)


@pytest.mark.parametrize("function", ["fail", "total"])
async def test_errors_keep_nothing_alive(function: str) -> None:
    """Once an error was handled, what its frames held is gone without the garbage collector."""

    class Large:
        pass

    def numbers() -> Iterator[int]:
        yield 1
        raise ValueError("boo")

    async with worker_of() as worker:

        async def call() -> weakref.ref[Large]:
            large = Large()
            found = weakref.ref(large)
            with contextlib.suppress(ValueError):
                await worker.call(function, numbers() if function == "total" else "boo")
            return found

        gc.collect()
        gc.disable()
        try:
            assert (await call())() is None
        finally:
            gc.enable()


ENDS: list[tuple[str, type[Exception]]] = [
    ("exit", RemoteError),
    ("interrupt", RemoteError),
    ("stop", RemoteError),
    ("generator_exit", RemoteError),
    ("own", ValueError),
    ("memory", MemoryError),
    ("group", ExceptionGroup),
    ("os", FileNotFoundError),
]


@pytest.mark.parametrize("function", ["fail_with", "fail_later_with"])
async def test_whatever_is_raised_is_an_error_of_its_call(function: str) -> None:
    """Exits, interrupts, groups: the call raises, and the worker serves the next one."""
    async with worker_of() as worker:
        pid = worker.pid
        for name, kind in ENDS:
            with pytest.raises(RemoteError) as caught:
                await worker.call(function, name)
            assert isinstance(caught.value, kind), name
            assert await worker.call("add", 1) == 11
            assert await worker.call("add_later", 1) == 11
        assert await worker.call("pid") == pid


@pytest.mark.parametrize("threads", [1, 2])
async def test_functions_in_c_have_no_frames(threads: int) -> None:
    """Nor are ours shown in their place."""
    async with worker_of({"sqrt": math.sqrt}, threads=threads) as worker:
        with pytest.raises(ValueError, match="domain") as caught:
            await worker.call("sqrt", -1)
        assert isinstance(caught.value, RemoteError)
        assert caught.value.traceback == ""


async def test_fields_of_errors() -> None:
    """Groups have their parts, system errors their numbers, classes of others their names."""
    async with worker_of() as worker:
        with pytest.raises(ExceptionGroup) as group:
            await worker.call("fail_with", "group")
        one, two = group.value.exceptions
        assert isinstance(one, ValueError)
        assert isinstance(two, KeyError)
        assert isinstance(two, RemoteError)
        with pytest.raises(FileNotFoundError) as missing:
            await worker.call("fail_with", "os")
        assert (missing.value.errno, missing.value.filename) == (2, "/nowhere")
        with pytest.raises(RemoteError) as own:
            await worker.call("fail_with", "own")
        assert own.value.type_name.endswith("calling.OutOfRange")
        with pytest.raises(RemoteError) as out:
            await worker.call("exit_softly")
        assert out.value.type_name == "builtins.SystemExit"
        assert not isinstance(out.value, SystemExit)


@pytest.mark.parametrize(
    "function", ["fail_monstrously", "fail_monstrously_later", "fail_at_length", "recurse"]
)
async def test_monstrous_errors(function: str) -> None:
    """Exceptions without text, of megabytes, or for want of a stack arrive, cut if need be."""
    async with worker_of() as worker:
        with pytest.raises(RemoteError) as caught:
            await worker.call(function)
        assert len(str(caught.value)) < 100_000
        assert await worker.call("add", 1) == 11


@pytest.mark.parametrize("function", ["exit_hard", "exit_hard_later"])
async def test_a_worker_that_exits_takes_its_calls_with_it(function: str) -> None:
    """``os._exit`` in a handler: its call, its neighbours and later ones raise WorkerDied."""
    async with worker_of() as worker:
        errors: list[WorkerDied] = []

        async def neighbour() -> None:
            with pytest.raises(WorkerDied) as caught:
                await worker.call("nap_later", 60)
            errors.append(caught.value)

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(neighbour)
            await worker.call("add_later", 1)
            with pytest.raises(WorkerDied) as caught:
                await worker.call(function)
        errors.append(caught.value)
        for error in errors:
            assert error.returncode == 7
            assert any(function in call for call in error.in_flight)
            assert any("nap_later" in call for call in error.in_flight)
        with pytest.raises(WorkerDied):
            await worker.call("add", 1)
        with pytest.raises(WorkerDied):
            [item async for item in worker.stream("count", 1)]


# -- values -----------------------------------------------------------------------------------


async def test_values_as_annotated() -> None:
    """Classes go there and come back as what the annotations say."""
    async with worker_of() as worker:
        call: Callable[..., Any] = worker.call
        point = Point(1, 2.5, Colour.BLUE, ("a", "b"))
        moved = await worker.call(calling.move, point, 5)
        assert moved == Point(6, 2.5, Colour.BLUE, ("a", "b"))
        assert type(moved.colour) is Colour
        assert await worker.call("move", point, 1) == Point(2, 2.5, Colour.BLUE, ("a", "b"))
        assert await unchecked(worker).call("move", point, 1) == {
            "x": 2, "y": 2.5, "colour": "blue", "tags": ["a", "b"],
        }  # fmt: skip
        assert await worker.call(calling.level_up, Level.LOW) is Level.HIGH
        assert await worker.call(calling.paint, Colour.RED) is Colour.BLUE
        when = datetime.datetime(2026, 2, 28, 12, tzinfo=datetime.UTC)
        assert await worker.call(calling.a_day_later, when) == when + datetime.timedelta(days=1)
        assert await call(calling.twice_as_long, datetime.timedelta(1.5)) == datetime.timedelta(3)
        one = uuid.uuid4()
        assert await worker.call(calling.same_uuid, one) == one
        assert await worker.call(calling.half, decimal.Decimal("1.5")) == decimal.Decimal("0.75")
        assert await worker.call(calling.parent, Path("/a/b")) == Path("/a")
        assert await worker.call(calling.as_set, {1, 2}) == frozenset({1, 2})
        assert type(await worker.call(calling.as_set, {1})) is frozenset
        assert await worker.call(calling.as_tuple, (1, "a")) == ("a", 1)
        assert [p async for p in worker.stream(calling.points, 2)] == [Point(0), Point(1)]


@pytest.mark.parametrize("function", ["echo", "echo_later"])
async def test_natural_values(function: str) -> None:
    """What has an encoding of its own comes back the same without annotations."""
    values = [None, True, 1, -(2**70), 1.5, "ä\n", b"\0", [1, [2]], {"a": {"b": 1}}, {1: 2}, {1, 2},
              uuid.uuid4(), decimal.Decimal("1e-9"), datetime.date(2026, 1, 1), ""]  # fmt: skip
    async with worker_of() as worker:
        for value in values:
            assert await worker.call(function, value) == value
        assert await worker.call(function, values) == values


@pytest.mark.parametrize("function", ["echo", "echo_later"])
async def test_large_values_both_ways(function: str) -> None:
    """Five megabytes of bytes, text and numbers go there and come back."""
    data = os.urandom(5_000_000)
    array = np.arange(600_000, dtype=np.float64).reshape(600, 1000)
    async with worker_of() as worker:
        assert await worker.call(function, data) == data
        back = await worker.call(function, array)
        assert back.shape == (600, 1000)
        assert (back == array).all()
        text = "äb" * 1_000_000
        assert await worker.call(function, text) == text
        both = await worker.call(function, {"a": data, "b": [array, data]})
        assert both["a"] == both["b"][1] == data
        assert (both["b"][0] == array).all()


async def test_messages_above_the_limit() -> None:
    """Too large an argument, or result, ends that call alone."""
    async with worker_of(max_message_size=100_000) as worker:
        with pytest.raises(ValueEncodeError, match="above the 100000"):
            await worker.call("echo", b"x" * 200_000)
        for function in ("repeat", "repeat_later"):
            with pytest.raises(ValueEncodeError, match="above the 100000"):
                await worker.call(function, "x", 200_000)
        assert await worker.call("echo", b"x" * 50_000) == b"x" * 50_000


# -- the worker's life ------------------------------------------------------------------------


async def test_an_exception_in_the_body_leaves_as_it_is() -> None:
    """Not wrapped in a group, calls in flight or not."""
    worker = open_worker(calling)
    try:
        async with worker:
            await worker.call("add", 1)
            raise KeyError("mine")
    except BaseException as error:
        caught = error
    assert type(caught) is KeyError
    assert worker.returncode == 0


async def test_outside_of_its_block() -> None:
    """Before it is entered nothing can be called; afterwards it says that it was closed."""
    worker = open_worker(calling)
    with pytest.raises(UsageError, match="not started"):
        await worker.call("add", 1)
    with pytest.raises(UsageError, match="not started"):
        worker.stream("count", 1)
    with pytest.raises(UsageError, match="not started"):
        await worker.notify("add", 1)
    with pytest.raises(UsageError):
        worker.options(window=3)
    async with worker:
        stream = worker.stream("count", 3)
        with pytest.raises(UsageError, match="once"):
            await worker.__aenter__()
        assert await worker.call("add", 1) == 11
    for _ in range(2):
        with pytest.raises(WorkerClosedError):
            await worker.call("add", 1)
        with pytest.raises(WorkerClosedError):
            await worker.notify("add", 1)
        with pytest.raises((WorkerClosedError, StopAsyncIteration)):
            await anext(stream)
    with pytest.raises(UsageError, match="once"):
        await worker.__aenter__()


async def test_leaving_stops_the_calls_of_other_tasks() -> None:
    """Calls in flight of other tasks end with an error, at once and not after the grace."""
    errors: list[BaseException] = []

    async def call(worker: Worker, function: str, *args: Any) -> None:
        try:
            await worker.call(function, *args)
        except forkwire.CallError as error:
            errors.append(error)

    with anyio.fail_after(LIMIT):
        async with anyio.create_task_group() as tasks:
            async with open_worker(calling, grace=10) as worker:
                tasks.start_soon(call, worker, "nap_later", 60)
                tasks.start_soon(call, worker, "spin")
                await worker.call("add_later", 1)
                started = anyio.current_time()
            assert anyio.current_time() - started < 5
    assert len(errors) == 2
    assert worker.returncode == 0

"""Handlers that call back: ``host=``, nested calls, progress, and what a handler knows."""

from __future__ import annotations

import functools
import math
import threading
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any

import anyio
import anyio.to_thread
import pytest

import forkwire
import forkwire.sync
from forkwire import (
    InvalidArgumentsError,
    MethodNotFoundError,
    RemoteError,
    UsageError,
    ValueEncodeError,
    WorkerDied,
    WrongKindError,
    current_call,
)

from .support_calls import cancel_once, until, worker_of

pytestmark = pytest.mark.anyio


# -- what the worker offers -------------------------------------------------------------------


async def ask(name: str, *args: Any, **kwargs: Any) -> Any:
    """Calls the host."""
    return await current_call().host.call(name, *args, **kwargs)


def ask_plain(name: str, *args: Any, **kwargs: Any) -> Any:
    return forkwire.sync.current_call().host.call(name, *args, **kwargs)


async def collect(name: str, *args: Any) -> list[Any]:
    """Streams from the host."""
    return [item async for item in current_call().host.stream(name, *args)]


def collect_plain(name: str, *args: Any) -> list[Any]:
    return list(forkwire.sync.current_call().host.stream(name, *args))


async def take(name: str, n: int) -> list[Any]:
    async with current_call().host.stream(name) as stream:
        return [await anext(stream) for _ in range(n)]


def take_plain(name: str, n: int) -> list[Any]:
    with forkwire.sync.current_call().host.stream(name) as stream:
        return [next(stream) for _ in range(n)]


async def forget(name: str) -> None:
    """Leaves a stream as it is."""
    stream = current_call().host.stream(name)
    await anext(stream)
    await anyio.sleep(60)


def forget_plain(name: str) -> None:
    stream = forkwire.sync.current_call().host.stream(name)
    next(stream)
    while True:
        pass


async def give(name: str, n: int) -> Any:
    """Streams to the host."""

    async def numbers() -> AsyncIterator[int]:
        for i in range(n):
            yield i

    return await current_call().host.call(name, numbers())


def give_plain(name: str, n: int) -> Any:
    return forkwire.sync.current_call().host.call(name, iter(range(n)))


async def fan_out(name: str, n: int) -> int:
    """Calls the host many times at once."""
    host = current_call().host
    results: list[int] = []

    async def one(i: int) -> None:
        results.append(await host.call(name, i))

    async with anyio.create_task_group() as tasks:
        for i in range(n):
            tasks.start_soon(one, i)
    return sum(results)


async def limit_calls(n: int) -> None:
    """As if the host had said that it takes no more than so many calls."""
    current_call()._call.link.session.peer_calls = n


async def hop(n: int, there: str, back: str) -> int:
    """Host and worker call each other, ``n`` deep."""
    return 0 if not n else 1 + int(await current_call().host.call(there, n - 1, back, there))


def hop_plain(n: int, there: str, back: str) -> int:
    host = forkwire.sync.current_call().host
    return 0 if not n else 1 + int(host.call(there, n - 1, back, there))


async def report(n: int) -> int:
    for done in range(1, n + 1):
        await current_call().progress(done, n, f"step {done}")
    return n


def report_plain(n: int) -> int:
    for done in range(1, n + 1):
        forkwire.sync.current_call().progress(done, n, f"step {done}")
    return n


async def report_items(n: int) -> AsyncIterator[int]:
    for done in range(n):
        await current_call().progress(done)
        yield done


async def report_forever() -> None:
    while True:
        await current_call().progress(1)


def report_forever_plain() -> None:
    while True:
        forkwire.sync.current_call().progress(1)


async def report_this(done: Any, total: Any = None, text: Any = "") -> None:
    await current_call().progress(done, total, text)


async def who() -> list[Any]:
    call = current_call()
    return [call.method, call.cancelled, call.deadline == math.inf, repr(call)]


def who_plain() -> list[Any]:
    call = forkwire.sync.current_call()
    return [call.method, call.cancelled, call.deadline == math.inf, repr(call)]


def who_async_in_plain() -> None:
    current_call()


async def who_elsewhere() -> list[str]:
    """In a task, a thread and a context of its own."""
    methods: list[str] = []

    async def task() -> None:
        methods.append(current_call().method)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(task)
    methods.append(await anyio.to_thread.run_sync(lambda: current_call().method))
    return methods


async def shielded(path: str) -> None:
    call = current_call()
    with call.shield():
        open(f"{path}.begun", "w").close()
        while not call.cancelled:
            await anyio.sleep(0.001)
        await anyio.sleep(0.02)
        with open(path, "w") as file:
            file.write(f"cancelled {call.cancelled}")
    await anyio.sleep(60)


def shielded_plain(path: str) -> None:
    call = forkwire.sync.current_call()
    with call.shield():
        open(f"{path}.begun", "w").close()
        while not call.cancelled:
            time.sleep(0.001)
        time.sleep(0.02)
        with open(path, "w") as file:
            file.write(f"cancelled {call.cancelled}")
    time.sleep(60)


async def add(a: int, b: int) -> int:
    return a + b


def add_plain(a: int, b: int) -> int:
    return a + b


SERVICE = {
    function.__name__: function
    for function in (
        ask, ask_plain, collect, collect_plain, take, take_plain, forget,
        forget_plain, give, give_plain, fan_out, hop,
        hop_plain, limit_calls, report, report_plain, report_items, report_forever,
        report_forever_plain, report_this, who, who_plain, who_async_in_plain, who_elsewhere,
        shielded, shielded_plain, add, add_plain,
    )
}  # fmt: skip

ONE_THREAD = {
    function.__name__: function
    for function in (ask_plain, collect_plain, take_plain, forget_plain, give_plain, hop_plain,
                     report_plain, report_forever_plain, who_plain, shielded_plain, add_plain)
}  # fmt: skip


def kinds(name: str) -> pytest.MarkDecorator:
    """An async handler, a plain one beside async ones, and one in a worker of one thread."""
    return pytest.mark.parametrize(
        ("service", "function"),
        [(SERVICE, name), (SERVICE, f"{name}_plain"), (ONE_THREAD, f"{name}_plain")],
        ids=["async", "plain", "one-thread"],
    )


# -- what the host offers ---------------------------------------------------------------------


class Api:
    """With state, and every kind of function."""

    def __init__(self, start: int = 0) -> None:
        self.seen: list[Any] = []
        self.closed = 0
        self.given = 0
        self.start = start

    async def square(self, n: int) -> int:
        self.seen.append(threading.current_thread())
        return n * n + self.start

    def square_plain(self, n: int) -> int:
        self.seen.append(threading.current_thread())
        return n * n + self.start

    def fail(self, message: str) -> None:
        raise ValueError(message)

    async def fail_later(self, message: str) -> None:
        raise ValueError(message)

    def count(self, n: int) -> Iterator[int]:
        yield from range(n)

    async def count_later(self, n: int) -> AsyncIterator[int]:
        for i in range(n):
            yield i

    def endless(self) -> Iterator[int]:
        i = 0
        try:
            while True:
                self.given += 1
                yield i
                i += 1
        finally:
            self.closed += 1

    async def endless_later(self) -> AsyncIterator[int]:
        i = 0
        try:
            while True:
                yield i
                i += 1
        finally:
            self.closed += 1

    def total(self, numbers: Iterator[int]) -> int:
        return sum(numbers)

    async def total_later(self, numbers: AsyncIterator[int]) -> int:
        return sum([n async for n in numbers])

    async def nap(self, seconds: float) -> None:
        self.given += 1
        try:
            await anyio.sleep(seconds)
        finally:
            self.closed += 1

    async def nap_and_add(self, n: int) -> int:
        await anyio.sleep(0.001)
        return int(await current_call().host.call("add_plain", n, 1))

    def unsendable(self) -> object:
        return object()

    async def hop(self, n: int, there: str, back: str) -> int:
        return await hop(n, there, back)

    def hop_plain(self, n: int, there: str, back: str) -> int:
        return hop_plain(n, there, back)


@pytest.fixture
def api() -> Api:
    return Api()


# -- calling the host -------------------------------------------------------------------------


@kinds("ask")
async def test_a_handler_calls_its_host(service: Any, function: str, api: Api) -> None:
    """Async functions run in the host's loop, plain ones in a thread beside it."""
    async with worker_of(service, host=api) as worker:
        assert await worker.call(function, "square", 7) == 49
        assert await worker.call(function, "square_plain", 7) == 49
        assert await worker.call(function, "square_plain", n=3) == 9
        assert await worker.call("add_plain", 1, 2) == 3
    loop, thread, _ = api.seen
    assert loop is threading.current_thread()
    assert thread is not loop


@pytest.mark.parametrize(
    "host",
    [Api, Api(0), {"square": lambda n: n * n}, {"square": Api().square}],
    ids=["class", "instance", "mapping", "async"],
)
async def test_what_can_be_a_host(host: object) -> None:
    """Whatever can be a service."""
    async with worker_of(SERVICE, host=host) as worker:
        assert await worker.call("ask", "square", 7) == 49


@kinds("ask")
async def test_host_functions_that_fail(service: Any, function: str, api: Api) -> None:
    """Errors go through the handler and back, as what they were."""
    async with worker_of(service, host=api) as worker:
        for name in ("fail", "fail_later"):
            with pytest.raises(ValueError, match="boo") as caught:
                await worker.call(function, name, "boo")
            assert isinstance(caught.value, RemoteError)
            assert f"in {name}" in caught.value.traceback
        for name, expected in (
            ("nothing", MethodNotFoundError),
            ("__init__", MethodNotFoundError),
            ("count", WrongKindError),
            ("unsendable", ValueEncodeError),
        ):
            with pytest.raises(RemoteError) as raised:
                await worker.call(function, name)
            assert raised.value.type_name == f"forkwire.errors.{expected.__name__}"
        with pytest.raises(RemoteError) as raised:
            await worker.call(function, "square", "seven")
        assert raised.value.type_name.endswith(InvalidArgumentsError.__name__)
        assert await worker.call(function, "square", 2) == 4


@kinds("ask")
async def test_without_a_host(service: Any, function: str) -> None:
    """The error says what to do."""
    async with worker_of(service) as worker:
        with pytest.raises(RemoteError, match="host="):
            await worker.call(function, "square", 7)


@kinds("collect")
async def test_streams_of_the_host(service: Any, function: str, api: Api) -> None:
    """Generators of the host, of both kinds, and arguments that are streamed to it."""
    take_it, give_it = function.replace("collect", "take"), function.replace("collect", "give")
    async with worker_of(service, host=api) as worker:
        for name in ("count", "count_later"):
            assert await worker.call(function, name, 200) == list(range(200))
        for name in ("endless", "endless_later"):
            assert await worker.call(take_it, name, 40) == list(range(40))
        assert api.closed == 2
        for name in ("total", "total_later"):
            assert await worker.call(give_it, name, 200) == 19900


async def test_many_calls_to_the_host_at_once(api: Api) -> None:
    """Of one handler, to functions of both kinds."""
    async with worker_of(SERVICE, host=api) as worker:
        for name in ("square", "square_plain"):
            assert await worker.call("fan_out", name, 100) == sum(n * n for n in range(100))


async def test_more_calls_to_the_host_than_it_takes(api: Api) -> None:
    """A handler's calls wait for the limit too, nested ones included."""
    async with worker_of(SERVICE, host=api) as worker:
        worker._own_caller().link.session.peer_calls = 5
        assert await worker.call("limit_calls", 5) is None
        assert await worker.call("fan_out", "square", 100) == sum(n * n for n in range(100))
        assert await worker.call("fan_out", "nap_and_add", 40) == sum(range(1, 41))


async def test_plain_host_functions_run_one_at_a_time() -> None:
    """So that they need not be thread-safe, whichever handler calls them."""
    running = most = 0

    def busy(n: int) -> int:
        nonlocal running, most
        running += 1
        most = max(most, running)
        time.sleep(0.002)
        running -= 1
        return n

    host = {"busy": busy}
    async with worker_of(SERVICE, host=host) as worker, anyio.create_task_group() as tasks:
        for _ in range(10):
            tasks.start_soon(worker.call, "ask", "busy", 1)
    assert most == 1


@kinds("hop")
@pytest.mark.parametrize("there", ["hop", "hop_plain"])
async def test_calls_nest_a_hundred_deep(service: Any, function: str, there: str, api: Api) -> None:
    """Host and worker call each other without waiting for themselves, in all mixtures."""
    async with worker_of(service, host=api) as worker:
        assert await worker.call(function, 100, there, function) == 100
        assert await worker.call("add_plain", 1, 2) == 3


async def test_trees_of_calls_do_not_wait_for_each_other(api: Api) -> None:
    """Nested calls of many callers at once, of plain functions on both sides."""
    async with worker_of(SERVICE, host=api) as worker:
        results: list[int] = []

        async def call(one: str, other: str) -> None:
            results.append(await worker.call(one, 10, other, one))

        async with anyio.create_task_group() as tasks:
            for one in ("hop", "hop_plain") * 2:
                for other in ("hop", "hop_plain"):
                    tasks.start_soon(call, one, other)
        assert results == [10] * 8


@kinds("ask")
async def test_cancelling_goes_through(service: Any, function: str, api: Api) -> None:
    """What a handler waits for at the host is cancelled with it, and has ended."""
    async with worker_of(service, host=api) as worker:
        begun = functools.partial(until, lambda: api.given)
        await cancel_once(begun, worker.call, function, "nap", 60)
        assert api.closed == 1
        assert await worker.call("add_plain", 1, 2) == 3


@kinds("forget")
async def test_streams_that_a_cancelled_handler_had_open(
    service: Any, function: str, api: Api
) -> None:
    """Are stopped with it, though nobody closed them."""
    async with worker_of(service, host=api) as worker:
        begun = functools.partial(until, lambda: api.given > 1)
        await cancel_once(begun, worker.call, function, "endless")
        await until(lambda: api.closed == 1)


@kinds("ask")
async def test_a_worker_that_dies_cancels_what_it_asked_for(
    service: Any, function: str, api: Api
) -> None:
    """The host's function is cancelled."""
    async with worker_of(service, host=api) as worker:

        async def call() -> None:
            with pytest.raises(WorkerDied):
                await worker.call(function, "nap", 60)

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(call)
            await until(lambda: worker._own_caller().link.peers)
            worker.kill()
        await until(lambda: api.closed == 1)


async def test_host_functions_know_their_call() -> None:
    """``current_call()`` works on the host's side too, and its ``host`` is the worker."""
    methods: list[str] = []

    async def asked() -> int:
        call = current_call()
        methods.append(call.method)
        return int(await call.host.call("add", 1, 2))

    def asked_plain() -> int:
        call = forkwire.sync.current_call()
        methods.append(call.method)
        return int(call.host.call("add_plain", 1, 2))

    async with worker_of(SERVICE, host={"asked": asked, "asked_plain": asked_plain}) as worker:
        assert await worker.call("ask", "asked") == 3
        assert await worker.call("ask_plain", "asked_plain") == 3
    assert methods == ["asked", "asked_plain"]


# -- what a handler knows ---------------------------------------------------------------------


@kinds("who")
async def test_what_a_handler_knows(service: Any, function: str) -> None:
    """Its name, its deadline, whether it is still wanted."""
    async with worker_of(service) as worker:
        with anyio.CancelScope(shield=True):
            method, cancelled, endless, text = await worker.call(function)
        assert (method, cancelled, endless) == (function, False, True)
        assert function in text


async def test_where_there_is_no_call() -> None:
    """Outside of a handler, and with the wrong function inside: the error says what to use."""
    with pytest.raises(UsageError, match="inside a handler"):
        current_call()
    with pytest.raises(UsageError):
        forkwire.sync.current_call()
    async with worker_of(SERVICE) as worker:
        with pytest.raises(RemoteError, match=r"forkwire\.sync\.current_call"):
            await worker.call("who_async_in_plain")
        assert await worker.call("who_elsewhere") == ["who_elsewhere"] * 2


@kinds("shielded")
async def test_shields(service: Any, function: str, tmp_path: Any) -> None:
    """A shielded block is done first, and sees that it was cancelled."""
    path = tmp_path / "done"
    async with worker_of(service) as worker:
        begun = functools.partial(until, (tmp_path / "done.begun").exists)
        await cancel_once(begun, worker.call, function, str(path))
        assert path.read_text() == "cancelled True"
        assert await worker.call("add_plain", 1, 2) == 3


# -- progress ---------------------------------------------------------------------------------


@kinds("report")
async def test_progress_in_order(service: Any, function: str) -> None:
    """Each report, in the caller's task, before the call returns."""
    seen: list[Any] = []
    task = anyio.get_current_task()

    def show(done: float, total: float | None, text: str) -> None:
        assert anyio.get_current_task() == task
        seen.append((done, total, text))

    async with worker_of(service) as worker:
        assert await worker.options(on_progress=show).call(function, 20) == 20
    assert seen == [(n, 20, f"step {n}") for n in range(1, 21)]


@kinds("report")
async def test_progress_that_nobody_wants_is_not_sent(service: Any, function: str) -> None:
    """Only who asks for it gets it."""
    async with worker_of(service) as worker:
        before = worker._own_caller().link.statistics["received"]
        assert await worker.call(function, 20) == 20
        assert worker._own_caller().link.statistics["received"] == before + 1


@kinds("report_forever")
async def test_a_callback_that_raises(service: Any, function: str) -> None:
    """Ends the call, with just that exception, once the handler has stopped."""
    failure = KeyError("mine")

    def show(*report: object) -> None:
        raise failure

    async with worker_of(service) as worker:
        with pytest.raises(KeyError) as caught:
            await worker.options(on_progress=show).call(function)
        assert caught.value is failure
        assert worker.statistics().in_flight == 0
        assert await worker.call("add_plain", 1, 2) == 3


@kinds("report_forever")
async def test_a_flood_of_progress(service: Any, function: str) -> None:
    """Does not keep the caller from being cancelled, nor the worker from stopping."""
    async with worker_of(service) as worker:
        seen: list[object] = []
        with anyio.move_on_after(0.1) as scope:
            await worker.options(on_progress=lambda *report: seen.append(report)).call(function)
        assert scope.cancelled_caught
        assert seen
        assert await worker.call("add_plain", 1, 2) == 3


async def test_progress_of_streams() -> None:
    """Comes beside the items."""
    seen: list[float] = []
    async with worker_of(SERVICE) as worker:
        calls = worker.options(on_progress=lambda done, total, text: seen.append(done))
        assert [item async for item in calls.stream("report_items", 30)] == list(range(30))
    assert seen == list(range(30))


async def test_progress_that_makes_no_sense() -> None:
    """Is an error in the handler, wanted or not; the connection is unharmed. Text is cut."""
    seen: list[tuple[Any, ...]] = []
    async with worker_of(SERVICE) as worker:
        calls = worker.options(on_progress=lambda *report: seen.append(report))
        for either in (calls, worker):
            for bad in ([-1], [None], ["1"], [1, "2"], [1, -2], [1, 2, 3], [math.nan]):
                with pytest.raises(RemoteError) as caught:
                    await either.call("report_this", *bad)
                assert caught.value.type_name.endswith("UsageError")
        await calls.call("report_this", 0.5, None, "x" * 10_000)
        await calls.call("report_this", 1, 2.5)
    assert seen == [(0.5, None, "x" * 4096), (1, 2.5, "")]


@pytest.mark.parametrize("on_progress", [3, "show"])
async def test_callbacks_that_cannot_be_called(on_progress: Any) -> None:
    """Are refused at once."""
    async with worker_of(SERVICE) as worker:
        with pytest.raises(UsageError, match="on_progress"):
            worker.options(on_progress=on_progress)

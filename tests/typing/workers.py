"""What a type checker makes of workers, in a loop and without one: checked, never run.

The ignored lines are errors; both checkers are told to mind an ignore that is not needed.
"""

# pyright: reportUnnecessaryTypeIgnoreComment=true
# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

import functools
import math
from collections.abc import AsyncIterator, Iterator, Mapping
from typing import Any, assert_type

from forkwire import (
    Calls,
    CurrentCall,
    Worker,
    WorkerStatistics,
    current_call,
    open_worker,
    sync,
)
from forkwire.rpc.caller.typed import StreamedNotCalled
from forkwire.sync import SyncCalls, SyncCurrentCall, SyncWorker


class Calculator:
    def add(self, a: int, b: int) -> int:
        return a + b

    async def nap(self, seconds: float) -> str:
        return ""

    def count(self, n: int) -> Iterator[int]:
        yield n

    async def tick(self) -> AsyncIterator[int]:
        yield 1


def add(a: int, b: int = 1) -> int:
    return a + b


async def fail() -> None:
    raise ValueError


def unannotated(a):
    return a


def show(done: float, total: float | None, text: str) -> None: ...


def show_anything(*progress: object) -> bool:
    return True


def show_less(done: float, total: float | None) -> None: ...


def show_whole(done: int, total: float | None, text: str) -> None: ...


def show_total(done: float, total: float, text: str) -> None: ...


def show_keyword(done: float, total: float | None, *, text: str) -> None: ...


async def opening() -> None:
    calculator = Calculator()
    assert_type(open_worker("calc"), Worker)
    assert_type(open_worker(math), Worker)
    assert_type(open_worker(Calculator), Worker)
    assert_type(open_worker(add), Worker)
    assert_type(open_worker({"add": add, "later": fail}), Worker)
    assert_type(open_worker(command=["node", "plugin.mjs"]), Worker)
    for host in ("calc", math, Calculator, calculator, add, {"add": add}, None):
        assert_type(open_worker("calc", host=host), Worker)
    async with open_worker(calculator) as worker:
        assert_type(worker, Worker)
        assert_type(await worker.call(calculator.add, 1, 2), int)
        assert_type(await worker.call("add", 1, 2), Any)
    open_worker(
        "calc",
        host=calculator,
        start="fork",
        threads=4,
        name="calculator",
        grace=1,
        start_timeout=10,
        backend="trio",
        max_message_size=1000,
        close_fds=True,
        logging=False,
    )
    open_worker("calc", calculator)  # type: ignore[arg-type, call-arg]
    open_worker("calc", start="spawn")  # type: ignore[arg-type]
    open_worker("calc", threads="4")  # type: ignore[arg-type]
    open_worker("calc", backend="curio")  # type: ignore[arg-type]
    open_worker("calc", grace=None)  # type: ignore[arg-type]
    open_worker("calc", timeout=1)  # type: ignore[call-arg]
    open_worker(command="node plugin.mjs")  # type: ignore[arg-type]
    await open_worker("calc")  # type: ignore[misc]
    with open_worker("calc"):  # type: ignore[attr-defined]
        pass


async def workers(worker: Worker) -> None:
    assert_type(worker.pid, int)
    assert_type(worker.returncode, int | None)
    assert_type(worker.name, str)
    assert_type(worker.methods, Mapping[str, str])
    assert_type(await worker.ping(), float)
    assert_type(worker.terminate(), None)
    assert_type(worker.kill(), None)
    assert_type(await worker.aclose(), None)
    async with worker as same:
        assert_type(same, Worker)
    worker.pid = 7  # type: ignore[misc]
    worker.returncode = 7  # type: ignore[misc]
    worker.name = ""  # type: ignore[misc]
    worker.methods["add"] = "plain"  # type: ignore[index]
    worker.send(b"")  # type: ignore[attr-defined]
    _ = worker.add  # type: ignore[attr-defined]


def statistics(worker: Worker, blocking: SyncWorker) -> None:
    numbers = worker.statistics()
    assert_type(numbers, WorkerStatistics)
    assert_type(blocking.statistics(), WorkerStatistics)
    assert_type(numbers.pid, int)
    assert_type(numbers.uptime, float)
    assert_type(numbers.calls, int)
    assert_type(numbers.in_flight, int)
    assert_type(numbers.errors, int)
    assert_type(numbers.host_calls, int)
    assert_type(numbers.bytes_sent, int)
    assert_type(numbers.bytes_waiting, int)
    numbers.calls = 0  # type: ignore[misc]
    _ = numbers.requests  # type: ignore[attr-defined]


async def options(worker: Worker, calculator: Calculator) -> None:
    assert_type(worker.options(), Calls)
    other = worker.options(on_progress=show, window=4)
    assert_type(other, Calls)
    assert_type(other.options(window=8), Calls)
    assert_type(await other.call(calculator.add, 1, 2), int)
    assert_type([n async for n in other.stream(calculator.count, 3)], list[int])
    worker.options(on_progress=None)
    worker.options(on_progress=show_anything)
    worker.options(on_progress=lambda done, total, text: print(done, total, text.upper()))
    worker.options(on_progress=functools.partial(print, "progress"))
    worker.options(on_progress=show_less)  # type: ignore[arg-type]
    worker.options(on_progress=show_whole)  # type: ignore[arg-type]
    worker.options(on_progress=show_total)  # type: ignore[arg-type]
    worker.options(on_progress=show_keyword)  # type: ignore[arg-type]
    worker.options(on_progress=7)  # type: ignore[arg-type]
    worker.options(on_progress=lambda done: None)  # type: ignore[arg-type, misc]
    worker.options(window="4")  # type: ignore[arg-type]
    worker.options(window=None)  # type: ignore[arg-type]
    worker.options(timeout=1)  # type: ignore[call-arg]
    worker.options(show)  # type: ignore[call-arg]
    async with other:  # type: ignore[attr-defined]
        pass
    _ = other.pid  # type: ignore[attr-defined]


async def handling() -> None:
    call = current_call()
    assert_type(call, CurrentCall)
    assert_type(call.method, str)
    assert_type(call.deadline, float)
    assert_type(call.cancelled, bool)
    assert_type(call.host, Calls)
    assert_type(await call.host.call(add, 7), int)
    assert_type(await call.host.call("square", 7), Any)
    assert_type(await call.progress(1), None)
    await call.progress(1, 2.5, "text")
    await call.progress(1, None, text="text")
    with call.shield():
        pass
    await call.progress()  # type: ignore[call-arg]
    await call.progress("1")  # type: ignore[arg-type]
    await call.progress(1, "2")  # type: ignore[arg-type]
    await call.progress(1, 2, 3)  # type: ignore[arg-type]
    call.progress(1)  # type: ignore[unused-coroutine]
    await call.host.call(add, "7")  # type: ignore[call-overload]
    call.deadline = 1.0  # type: ignore[misc]
    _ = call.id  # type: ignore[attr-defined]
    async with call.shield():  # type: ignore[attr-defined]
        pass


def blocking(calculator: Calculator) -> None:
    assert_type(sync.open_worker("calc"), SyncWorker)
    for host in (math, Calculator, calculator, add, {"add": add}, None):
        assert_type(sync.open_worker("calc", host=host), SyncWorker)
    with sync.open_worker(calculator) as worker:
        assert_type(worker, SyncWorker)
        assert_type(worker.pid, int)
        assert_type(worker.returncode, int | None)
        assert_type(worker.name, str)
        assert_type(worker.methods, Mapping[str, str])
        assert_type(worker.ping(), float)
        assert_type(worker.close(), None)
    other = worker.options(on_progress=show, window=4, timeout=0.5)
    assert_type(other, SyncCalls)
    assert_type(other.options(timeout=None), SyncCalls)
    assert_type(other.call(calculator.add, 1, 2), int)
    worker.options(on_progress=show_less)  # type: ignore[arg-type]
    worker.options(timeout="1")  # type: ignore[arg-type]
    sync.open_worker("calc", start="spawn")  # type: ignore[arg-type]
    sync.open_worker("calc", calculator)  # type: ignore[arg-type, call-arg]
    _ = other.pid  # type: ignore[attr-defined]


def blocking_calls(calls: SyncCalls, calculator: Calculator) -> None:
    assert_type(calls.call("add", 1, 2), Any)
    assert_type(calls.call(add, 1), int)
    assert_type(calls.call(unannotated, 1), Any)
    assert_type(calls.call(calculator.add, 1, b=2), int)
    assert_type(calls.call(calculator.nap, 1), str)
    assert_type(calls.call(fail), None)
    assert_type(calls.notify(add, 1), None)
    assert_type(calls.notify("add", 1), None)
    assert_type(calls.call(calculator.count, 1), StreamedNotCalled)
    assert_type(calls.call(calculator.tick), StreamedNotCalled)
    assert_type(calls.notify(calculator.count, 1), StreamedNotCalled)
    for _ in calls.call(calculator.count, 1):  # type: ignore[attr-defined]
        pass
    number: int = calls.call(calculator.count, 1)  # type: ignore[assignment]
    wider: float | None = calls.call(add, 1)
    thing: object = calls.call(calculator.nap, 1)
    text: str = calls.call(add, 1)  # type: ignore[assignment]
    calls.call(add)  # type: ignore[call-overload]
    calls.call(add, "1")  # type: ignore[call-overload]
    calls.call(add, 1, 2, 3)  # type: ignore[call-overload]
    calls.call(7)  # type: ignore[call-overload]
    calls.call(calculator.nap, "1")  # type: ignore[call-overload]
    calls.call(Calculator.add, 1, 2)  # type: ignore[call-overload]
    calls.notify(add, "1")  # type: ignore[call-overload]
    del number, wider, thing, text


async def blocking_calls_are_not_awaited(calls: SyncCalls) -> None:
    await calls.call(add, 1)  # type: ignore[misc]
    await calls.notify(add, 1)  # type: ignore[misc]
    async with sync.open_worker("calc"):  # type: ignore[attr-defined]
        pass


def plain_handling() -> None:
    call = sync.current_call()
    assert_type(call, SyncCurrentCall)
    assert_type(call.method, str)
    assert_type(call.deadline, float)
    assert_type(call.cancelled, bool)
    assert_type(call.host, SyncCalls)
    assert_type(call.host.call(add, 7), int)
    assert_type(call.progress(1, 2.5, "text"), None)
    with call.shield():
        pass
    call.progress("1")  # type: ignore[arg-type]
    call.host.call(add, "7")  # type: ignore[call-overload]
    call.cancelled = True  # type: ignore[misc]

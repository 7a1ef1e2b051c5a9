"""One small call there and back, again and again; and a hundred at a time.

What is compared: `add(1, 2)` in a worker. The baseline sends pickled requests over
multiprocessing.Pipe to a child that loops, by hand: the least that a Python program can do.
concurrent.futures is asked from a thread, and from asyncio with run_in_executor.

Bias: a closed loop of one call measures latency. It is the worst case for an event loop, which
never has more than one thing to do in a turn, and the best one for a pair of threads that wait for
each other. Calls here have names, ids, checked arguments and deadlines; a pickled tuple has none.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import multiprocessing
from collections.abc import Callable
from functools import partial
from time import perf_counter
from typing import Any, Final

import anyio
from _harness import BASELINE, HOSTS, Contender, Table, main, median_seconds, on_loop, paced

import forkwire
from forkwire import sync

TURNS: Final = 50
AT_ONCE: Final = 100


def add(a: int, b: int) -> int:
    return a + b


async def add_async(a: int, b: int) -> int:
    return a + b


def answer(connection: Any) -> None:
    while True:
        name, a, b = connection.recv()
        connection.send(add(a, b) if name == "add" else None)


def with_pipe(stretches: int) -> float:
    here, there = multiprocessing.Pipe()
    child = multiprocessing.get_context("fork").Process(target=answer, args=(there,), daemon=True)
    child.start()

    def call() -> None:
        here.send(("add", 1, 2))
        here.recv()

    seconds = timed(call, stretches)
    child.kill()
    child.join()
    return seconds


def with_executor(stretches: int) -> float:
    context = multiprocessing.get_context("fork")
    with concurrent.futures.ProcessPoolExecutor(1, mp_context=context) as executor:
        return timed(lambda: executor.submit(add, 1, 2).result(), stretches)


def timed(call: Callable[[], object], stretches: int) -> float:
    marks = []
    for _ in range(stretches + 1):
        marks.append(perf_counter())
        for _ in range(TURNS):
            call()
    return median_seconds(marks[1:], TURNS)


def with_sync(service: dict[str, Any], stretches: int) -> float:
    with sync.open_worker(service) as worker:
        return timed(lambda: worker.call("add", 1, 2), stretches)


def with_forkwire(host: str, service: dict[str, Any], stretches: int) -> float:
    async def run() -> float:
        async with forkwire.open_worker(service) as worker:
            marks = []
            for _ in range(stretches + 1):
                marks.append(perf_counter())
                for _ in range(TURNS):
                    await worker.call("add", 1, 2)
            return median_seconds(marks[1:], TURNS)

    return on_loop(host, run)


def many_with_forkwire(host: str, service: dict[str, Any], stretches: int) -> float:
    async def run() -> float:
        async with forkwire.open_worker(service) as worker:
            marks = []
            for _ in range(stretches + 1):
                marks.append(perf_counter())
                async with anyio.create_task_group() as tasks:
                    for _ in range(AT_ONCE):
                        tasks.start_soon(worker.call, "add", 1, 2)
            return median_seconds(marks[1:], AT_ONCE)

    return on_loop(host, run)


def many_with_executor(stretches: int) -> float:
    async def run() -> float:
        loop = asyncio.get_running_loop()
        context = multiprocessing.get_context("fork")
        with concurrent.futures.ProcessPoolExecutor(1, mp_context=context) as executor:
            marks = []
            for _ in range(stretches + 1):
                marks.append(perf_counter())
                await asyncio.gather(
                    *(loop.run_in_executor(executor, add, 1, 2) for _ in range(AT_ONCE))
                )
            return median_seconds(marks[1:], AT_ONCE)

    return on_loop("asyncio", run)


def many_with_pipe(stretches: int) -> float:
    here, there = multiprocessing.Pipe()
    child = multiprocessing.get_context("fork").Process(target=answer, args=(there,), daemon=True)
    child.start()
    marks = []
    for _ in range(stretches + 1):
        marks.append(perf_counter())
        for _ in range(AT_ONCE):
            here.send(("add", 1, 2))
        for _ in range(AT_ONCE):
            here.recv()
    child.kill()
    child.join()
    return median_seconds(marks[1:], AT_ONCE)


def tables(quick: bool, place: str, pinned: bool) -> list[Table]:
    stretches = paced(quick, 40)
    plain, mixed = {"add": add}, {"add": add_async}
    one: dict[str, Contender] = {
        BASELINE: partial(with_pipe, stretches),
        "concurrent.futures": partial(with_executor, stretches),
        "forkwire.sync": partial(with_sync, plain, stretches),
    }
    many: dict[str, Contender] = {
        BASELINE: partial(many_with_pipe, stretches),
        "concurrent.futures, asyncio": partial(many_with_executor, stretches),
    }
    for host in HOSTS:
        one[f"forkwire, {host}"] = partial(with_forkwire, host, plain, stretches)
        one[f"forkwire, {host}, async handler"] = partial(with_forkwire, host, mixed, stretches)
        many[f"forkwire, {host}"] = partial(many_with_forkwire, host, plain, stretches)
        many[f"forkwire, {host}, async handler"] = partial(
            many_with_forkwire, host, mixed, stretches
        )
    return [
        Table(f"One call, {place}", pinned, one),
        Table(f"A call of {AT_ONCE} at once, {place}", pinned, many),
    ]


if __name__ == "__main__":
    main(__doc__, tables)

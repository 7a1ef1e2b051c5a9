"""What a type checker makes of executors: checked, never run.

The ignored lines are errors; both checkers are told to mind an ignore that is not needed.
"""

# pyright: reportUnnecessaryTypeIgnoreComment=true

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from concurrent.futures import Executor, Future
from typing import assert_type

from forkwire import ExecutorStatistics, ProcessExecutor


def add(a: int, b: int = 1) -> int:
    return a + b


def nothing() -> None: ...


def submitting(executor: ProcessExecutor) -> None:
    assert_type(executor.submit(add, 1, b=2), Future[int])
    assert_type(executor.submit(add, 1).result(), int)
    assert_type(executor.submit(nothing), Future[None])
    assert_type(executor.submit(str.upper, "a"), Future[str])
    executor.submit(add)  # type: ignore[call-arg]
    executor.submit(add, "1")  # type: ignore[arg-type]
    executor.submit(add, 1, c=2)  # type: ignore[call-arg]


def mapping(executor: ProcessExecutor) -> None:
    assert_type(executor.map(add, [1], [2]), Iterator[int])
    assert_type(executor.map(str.upper, ["a"], timeout=1, chunksize=2, buffersize=3), Iterator[str])


def making() -> None:
    with ProcessExecutor(4, retries=2, cancel_running=True, start="exec") as executor:
        assert_type(executor, ProcessExecutor)
        assert_type(executor.statistics(), ExecutorStatistics)
    plain: Executor = ProcessExecutor(initializer=add, initargs=(1,))
    plain.shutdown(wait=False, cancel_futures=True)
    ProcessExecutor("4")  # type: ignore[arg-type]
    ProcessExecutor(start="spawn")  # type: ignore[arg-type]


async def awaiting(executor: ProcessExecutor) -> None:
    loop = asyncio.get_running_loop()
    assert_type(await loop.run_in_executor(executor, add, 1), int)

"""What a type checker makes of ``run``: checked by mypy and pyright, never run.

The ignored lines are errors; both checkers are told to mind an ignore that is not needed.
"""

# pyright: reportUnnecessaryTypeIgnoreComment=true

from __future__ import annotations

import functools
from collections.abc import AsyncIterator
from types import TracebackType
from typing import Any, assert_type

from forkwire import InputChannel, OutputChannel, ProcessWorker, UsageError, WorkerDied, run


async def takes_str(inp: InputChannel, out: OutputChannel, arg: str) -> None: ...


def takes_str_plainly(inp: InputChannel, out: OutputChannel, arg: str) -> None: ...


def takes_object(inp: InputChannel, out: OutputChannel, arg: object) -> int:
    return 7


async def takes_list(inp: InputChannel, out: OutputChannel, arg: list[int]) -> bool:
    return True


def takes_two(inp: InputChannel, out: OutputChannel) -> None: ...


def takes_four(inp: InputChannel, out: OutputChannel, arg: str, more: str) -> None: ...


def channels_swapped(out: OutputChannel, inp: InputChannel, arg: str) -> None: ...


def with_option(inp: InputChannel, out: OutputChannel, arg: str, *, option: int = 0) -> None: ...


async def stream(inp: InputChannel, out: OutputChannel, arg: str) -> AsyncIterator[bytes]:
    yield b""


class Service:
    async def method(self, inp: InputChannel, out: OutputChannel, arg: str) -> None: ...

    async def __call__(self, inp: InputChannel, out: OutputChannel, arg: str) -> None: ...


async def right() -> None:
    assert_type(await run(takes_str, "text"), ProcessWorker)
    assert_type(await run(takes_str_plainly, "text"), ProcessWorker)
    assert_type(await run(takes_object, object()), ProcessWorker)
    assert_type(await run(takes_list, [1, 2]), ProcessWorker)
    assert_type(await run(with_option, "text"), ProcessWorker)
    assert_type(await run(Service().method, "text"), ProcessWorker)
    assert_type(await run(Service(), "text"), ProcessWorker)
    assert_type(await run(lambda inp, out, arg: None, 7), ProcessWorker)
    assert_type(await run(functools.partial(with_option, option=1), "text"), ProcessWorker)
    await run(
        takes_str,
        "text",
        grace=1,
        close_fds=True,
        backend="trio",
        capture_stderr=True,
        max_message_size=1000,
    )
    await run(takes_str, "text", grace=0.5, backend=None)


async def wrong() -> None:
    await run(takes_str, 7)  # type: ignore[arg-type]
    await run(takes_str_plainly, b"bytes")  # type: ignore[arg-type]
    await run(takes_list, ["text"])  # type: ignore[arg-type]
    await run(takes_str)  # type: ignore[call-arg]
    await run(takes_two, "text")  # type: ignore[arg-type]
    await run(takes_four, "text")  # type: ignore[arg-type]
    await run(channels_swapped, "text")  # type: ignore[arg-type]
    await run(None, "text")  # type: ignore[arg-type]
    await run(takes_str, "text", 2.0)  # type: ignore[call-arg]
    await run(takes_str, "text", grace="2")  # type: ignore[arg-type]
    await run(takes_str, "text", backend="curio")  # type: ignore[arg-type]
    await run(takes_str, "text", timeout=2)  # type: ignore[call-arg]
    _ = run(takes_str, "text").pid  # type: ignore[attr-defined]
    async with run(takes_str, "text"):  # type: ignore[attr-defined]
        pass


async def handle(worker: ProcessWorker) -> None:
    assert_type(worker.pid, int)
    assert_type(worker.returncode, int | None)
    assert_type(worker.died, WorkerDied | None)
    assert_type(worker.input_channel, InputChannel)
    assert_type(worker.output_channel, OutputChannel)
    assert_type(await worker.wait(), int)
    async with worker as same:
        assert_type(same, ProcessWorker)
    worker.pid = 7  # type: ignore[misc]
    worker.returncode = 0  # type: ignore[misc]
    worker.input_channel = worker.input_channel  # type: ignore[misc]


def errors(died: WorkerDied, usage: UsageError) -> None:
    assert_type(died.returncode, int)
    assert_type(died.signal_name, str | None)
    assert_type(died.exit_code, int | None)
    assert_type(died.reason, str)
    assert_type(died.inside_message, bool | None)
    also: TypeError = usage
    trace: TracebackType | None = also.__traceback__
    anything: Any = trace
    del anything

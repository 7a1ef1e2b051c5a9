"""What the tests of calls share; it holds no test."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio

from forkwire import Calls, Worker, open_worker

from .services import calling

SERVICES = Path(__file__).parent / "services"

# A worker that should have ended a call within this hangs.
LIMIT = 20.0


@asynccontextmanager
async def worker_of(service: object = calling, **options: Any) -> AsyncIterator[Worker]:
    """A worker, which must not be needed for longer than a test may take."""
    with anyio.fail_after(LIMIT):
        async with open_worker(service, **options) as worker:
            yield worker


async def until(condition: Callable[[], Any]) -> Any:
    """Wait for what nothing tells of."""
    end = time.monotonic() + LIMIT
    while not (value := condition()):
        assert time.monotonic() < end, "in vain"
        await anyio.sleep(0.002)
    return value


async def cancel_once(
    begun: Callable[[], Awaitable[Any]],
    function: Callable[..., Coroutine[Any, Any, Any]],
    *args: Any,
) -> None:
    """Cancel ``function(*args)`` after ``begun()``, and wait until it has ended."""
    with anyio.CancelScope() as scope:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(function, *args)
            await begun()
            scope.cancel()


async def until_state(worker: Calls, key: str, value: int) -> None:
    """Wait until the service has counted so far."""
    with anyio.fail_after(LIMIT):
        while await worker.call("state", key) != value:
            await anyio.sleep(0.002)


def wait_for_spare(parent: int, worker: int) -> None:
    """Wait until the template has another child, which waits for its request."""
    children = Path(f"/proc/{parent}/task/{parent}/children")
    end = time.monotonic() + LIMIT
    while not any(
        is_waiting(pid) for pid in map(int, children.read_text().split()) if pid != worker
    ):
        assert time.monotonic() < end, "in vain"
        time.sleep(0.005)


def is_waiting(pid: int) -> bool:
    return "unix_stream" in Path(f"/proc/{pid}/wchan").read_text()

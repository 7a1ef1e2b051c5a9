"""Our host and the worker in Node."""

from __future__ import annotations

import shutil
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Final

import anyio
import pytest

import forkwire

NODE: Final = shutil.which("node")
WORKER: Final = Path(__file__).resolve().parents[2] / "examples" / "node" / "worker.mjs"
# So many bytes go as an attachment, both ways.
LARGE: Final = 300_000

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.skipif(NODE is None, reason="node is not installed"),
]


class Host:
    """What the worker may call."""

    def square(self, n: int) -> int:
        return n * n


async def numbers(count: int) -> AsyncIterator[int]:
    for number in range(count):
        yield number


async def test_calls_of_every_kind() -> None:
    """Calls, bytes, streams both ways, calls back and progress work with a program in Node."""
    reports: list[tuple[float, float | None, str]] = []
    async with forkwire.open_worker(command=[str(NODE), str(WORKER)], host=Host()) as worker:
        assert await worker.call("add", 1, 2) == 3
        assert await worker.call("echo", bytes(LARGE)) == bytes(LARGE)
        assert await worker.call("wordcount", "one two One") == {"one": 2, "two": 1}
        assert [n async for n in worker.stream("count", 100)] == list(range(100))
        assert await worker.call("total", numbers(100)) == 4950
        assert await worker.call("callback", "square", 7) == 49
        options = worker.options(on_progress=lambda *report: reports.append(report))
        assert await options.call("progress", 3) == 3
    assert reports[-1] == (3, 3, "")


async def test_ends_of_every_kind() -> None:
    """Errors, cancels and deadlines of a program in Node are what they are of ours."""
    async with forkwire.open_worker(command=[str(NODE), str(WORKER)]) as worker:
        with pytest.raises(forkwire.RemoteError, match="the reason"):
            await worker.call("fail", "the reason")
        with pytest.raises(forkwire.MethodNotFoundError):
            await worker.call("constructor")
        with pytest.raises(forkwire.InvalidArgumentsError):
            await worker.call("add", 1)
        with pytest.raises(forkwire.ValueEncodeError):
            await worker.call("unsendable")
        with pytest.raises(TimeoutError), anyio.fail_after(0.05):
            await worker.call("nap")
        with anyio.CancelScope() as scope:
            scope.cancel()
            await worker.call("nap")
        async for _ in worker.stream("count", 10**9):
            break
        assert await worker.call("add", 1, 2) == 3

"""``calls_worker.py BACKEND``: the test service of 3-calls.md, served by our library."""

from __future__ import annotations

import os
import sys
from collections.abc import AsyncIterator, Iterator
from typing import Any

import anyio

from forkwire import InputChannel, OutputChannel, current_call
from forkwire.rpc.serving import Start, serve


class TestService:
    """Plain and async functions, so that the worker has a loop and a lane."""

    def echo(self, value: Any) -> Any:
        return value

    def add(self, a: int, b: int) -> int:
        return a + b

    def count(self, n: int) -> Iterator[int]:
        yield from range(n)

    def fail(self, message: str) -> None:
        raise ValueError(message)

    async def nap(self, ignored: Any = None) -> None:
        await anyio.sleep_forever()

    async def total(self, items: AsyncIterator[int]) -> int:
        return sum([item async for item in items])

    async def first(self, items: AsyncIterator[Any]) -> Any:
        return await anext(items)

    async def callback(self, name: str, value: Any) -> Any:
        return await current_call().host.call(name, value)

    async def progress(self, n: int) -> int:
        for done in range(1, n + 1):
            await current_call().progress(done, n, "")
        return n

    def unsendable(self) -> object:
        return object()


def main(backend: Any) -> None:
    """Serve until the host is gone."""
    numbers = os.environ.pop("FORKWIRE_FDS").split(",")
    input_, output = InputChannel.from_fd(int(numbers[0])), OutputChannel.from_fd(int(numbers[1]))
    with input_, output:
        serve(input_, output, Start(TestService(), "the test service", backend))


if __name__ == "__main__":
    main(sys.argv[1])

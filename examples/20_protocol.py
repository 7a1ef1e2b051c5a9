"""A Protocol names what is there: a stub whose calls type checkers and editors know."""

from collections.abc import AsyncIterator
from typing import Protocol

import anyio

import forkwire


class Calculator(Protocol):
    async def add(self, a: int, b: int) -> int: ...
    def count(self, n: int) -> AsyncIterator[int]: ...


class Forgetful(Protocol):
    async def remember(self, what: str) -> None: ...


async def main() -> None:
    async with forkwire.open_worker("calc") as worker:  # by name: not imported here
        calculator = worker.proxy(Calculator)
        print(await calculator.add(1, b=2))
        print([n async for n in calculator.count(5)])
        try:
            worker.proxy(Forgetful)
        except forkwire.UsageError as error:  # at once, not at the first call
            print(str(error))


anyio.run(main)

# Prints:
# 3
# [0, 1, 2, 3, 4]
# Forgetful has remember(), which calc does not offer

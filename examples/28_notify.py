"""A notification: nobody waits for it, and what it raises is only logged, as a warning, here."""

import logging

import anyio

import forkwire


class Counter:
    def __init__(self) -> None:
        self.total = 0

    def add(self, n: int) -> None:
        self.total += int(n)

    def read(self) -> int:
        return self.total


async def main() -> None:
    logging.basicConfig(format="%(levelname)s %(message)s")
    async with forkwire.open_worker(Counter) as worker:
        for n in range(5):
            await worker.notify("add", n)
        print(await worker.call("read"))  # calls are handled in the order in which they were made
        await worker.notify("add", "many")


anyio.run(main)

# Prints:
# 10

"""A function that yields is streamed. It never runs far ahead, and leaving the loop closes it."""

from collections.abc import Iterator

import anyio

import forkwire


class Numbers:
    def __init__(self) -> None:
        self.made = 0
        self.closed = 0

    def squares(self) -> Iterator[int]:
        try:
            while True:
                yield self.made**2
                self.made += 1
        finally:
            self.closed += 1

    def counters(self) -> tuple[int, int]:
        return self.made, self.closed


async def main() -> None:
    async with forkwire.open_worker(Numbers) as worker:
        async with worker.options(window=4).stream("squares") as squares:
            async for square in squares:
                print(square)
                if square > 10:
                    break
        made, closed = await worker.call("counters")
        print("made at most a few more:", made < 20, "- closed:", closed)


anyio.run(main)

# Prints:
# 0
# 1
# 4
# 9
# 16
# made at most a few more: True - closed: 1

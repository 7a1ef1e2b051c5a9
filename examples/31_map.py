"""One call for each row of an iterable that never ends: read as its results are taken."""

import itertools

import anyio
import calc

import forkwire


async def main() -> None:
    async with forkwire.open_pool(calc, size=2) as pool:
        async for total in pool.map(calc.add, [1, 3], [2, 4]):
            print(total)

        numbers = itertools.count()
        async with pool.map("add", numbers, itertools.repeat(1), window=4) as results:
            async for total in results:
                if total > 100:
                    break  # what is in flight is stopped
        print("at", total, "no more than", 4, "were ahead:", next(numbers) <= 100 + 4 + 1)

        pairs = [(1, 2), (3, 4), (5, 6)]
        print(sorted([total async for total in pool.starmap("add", pairs, ordered=False)]))


anyio.run(main)

# Prints:
# 3
# 7
# at 101 no more than 4 were ahead: True
# [3, 7, 11]

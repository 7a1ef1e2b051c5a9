"""An argument may be a stream too: rows go to the worker as it asks for them, all never at once."""

import dataclasses
from collections.abc import AsyncIterator, Iterable

import anyio

import forkwire


@dataclasses.dataclass
class Row:
    city: str
    rain: float


def total(rows: Iterable[Row]) -> dict[str, float]:
    """Any iterable will do; here it is an iterator that waits for the next row."""
    sums: dict[str, float] = {}
    for row in rows:
        sums[row.city] = sums.get(row.city, 0) + row.rain
    return sums


async def measure() -> AsyncIterator[Row]:
    for day in range(1000):
        yield Row("Bergen" if day % 2 else "Cairo", day % 2 * 7.5)
        if day % 100 == 0:
            await anyio.sleep(0)  # rows may come from a file, a socket, another worker


async def main() -> None:
    async with forkwire.open_worker(total) as worker:
        print(await worker.call("total", measure()))
        print(await worker.call("total", (Row("Lima", 0.25) for _ in range(4))))


anyio.run(main)

# Prints:
# {'Cairo': 0.0, 'Bergen': 3750.0}
# {'Lima': 1.0}

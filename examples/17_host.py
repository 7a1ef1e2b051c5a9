"""The worker calls back: `host=` is what it may call here, while it handles a call or streams."""

import anyio

import forkwire


class Prices:
    """Stays in this process, with whatever it holds: a connection, a cache."""

    def __init__(self) -> None:
        self.asked = 0

    async def price(self, fruit: str) -> float:
        self.asked += 1
        return {"apple": 0.5, "pear": 0.75}[fruit]


async def bill(basket: dict[str, int]) -> float:
    """In the worker. A plain function uses `forkwire.sync.current_call()`, whose methods block."""
    host = forkwire.current_call().host
    total = 0.0
    for fruit, n in basket.items():
        total += n * await host.call("price", fruit)
    return total


async def main() -> None:
    prices = Prices()
    async with forkwire.open_worker(bill, host=prices) as worker:
        print(await worker.call("bill", {"apple": 4, "pear": 2}))
        print("asked", prices.asked, "times")
        try:
            await worker.call("bill", {"stone": 1})
        except KeyError as error:  # raised here, went through the worker, and came back
            print("no price for", error.args[0].splitlines()[0])


anyio.run(main)

# Prints:
# 3.5
# asked 2 times
# no price for stone

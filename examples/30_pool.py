"""A pool: several workers of one service; each call goes to the least busy of them."""

import os
import time

import anyio

import forkwire


class Kitchen:
    def cook(self, seconds: float) -> int:
        time.sleep(seconds)
        return os.getpid()

    def burn(self) -> None:
        os.abort()


async def main() -> None:
    async with forkwire.open_pool(Kitchen, size=3) as pool:
        cooks: set[int] = set()

        async def order() -> None:
            cooks.add(await pool.call("cook", 0.1))

        async with anyio.create_task_group() as tasks:
            for _ in range(6):
                tasks.start_soon(order)
        print(len(cooks), "workers ran 6 calls")

        try:
            await pool.call("burn")
        except forkwire.WorkerDied as died:
            print(died.signal_name, "took only the calls of its own worker")
        print(await pool.call("cook", 0) in cooks)

        statistics = pool.statistics()
        print(statistics.calls, "calls,", statistics.deaths, "death")


anyio.run(main)

# Prints:
# 3 workers ran 6 calls
# SIGABRT took only the calls of its own worker
# True
# 8 calls, 1 death

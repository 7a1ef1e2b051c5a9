"""A deadline or a cancellation stops the work itself; then, and only then, you go on."""

import time

import anyio
import calc

import forkwire


async def main() -> None:
    async with forkwire.open_worker(calc, grace=0.2) as worker:
        try:
            with anyio.fail_after(0.1):  # the worker gets what is left of it
                await worker.call("nap", 60)
        except TimeoutError:
            print("the nap was stopped")

        with anyio.move_on_after(0.1):
            await worker.call("spin")  # `while True: pass`, which never looks up
        print("the loop was stopped, and the worker is the same:", await worker.call("add", 1, 2))

    async with forkwire.open_worker({"sum_to": sum_to}, grace=0.2) as worker:
        before = time.monotonic()
        with anyio.move_on_after(0.1):
            await worker.call("sum_to", 10**12)
        print("C code does not look up, and was killed:", time.monotonic() - before < 5)
        try:
            await worker.call("sum_to", 3)
        except forkwire.WorkerDied as died:
            print(died.signal_name, "-", died.reason.partition(",")[0])


def sum_to(n: int) -> int:
    return sum(range(n))


anyio.run(main)

# Prints:
# the nap was stopped
# the loop was stopped, and the worker is the same: 3
# C code does not look up, and was killed: True
# SIGKILL - was killed by its host

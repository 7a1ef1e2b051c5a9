"""Call the functions of a module in another process, by their names or by themselves."""

import os

import anyio
import calc

import forkwire


async def main() -> None:
    async with forkwire.open_worker(calc) as worker:
        print(await worker.call("add", 1, 2))
        print(await worker.call(calc.add, 1, b=2))  # type checkers know that it is an int
        print("another process:", worker.pid != os.getpid())
        print(", ".join(f"{name} ({kind})" for name, kind in worker.methods.items()))


anyio.run(main)

# Prints:
# 3
# 3
# another process: True
# add (plain), count (generator), nap (async), spin (plain), log (plain)

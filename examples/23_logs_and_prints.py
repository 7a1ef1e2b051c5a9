"""What a worker logs is handled by the loggers here; what it prints comes out here, labelled."""

import logging
import sys

import anyio

import forkwire


def double(n: int) -> int:
    logging.getLogger("app.double").info("doubling %d", n)
    logging.getLogger("app.double").debug("not sent: nobody here would show it")
    print("[double 4711] is put before this line", file=sys.stderr)
    return 2 * n


async def main() -> None:
    logging.basicConfig(level="INFO", format="%(name)s: %(message)s", stream=sys.stdout)
    async with forkwire.open_worker(double) as worker:
        print(await worker.call("double", 21))


anyio.run(main)

# Prints:
# app.double: doubling 21
# 42

"""A worker in another language: any program that speaks protocol-spec/3-calls.md. Needs Node."""

import shutil
from pathlib import Path

import anyio

import forkwire

WORKER = Path(__file__).parent / "node" / "worker.mjs"


async def main() -> None:
    if shutil.which("node") is None:
        print("node is not installed: nothing to show")
        return
    async with forkwire.open_worker(command=["node", str(WORKER)]) as worker:
        print(await worker.call("add", 1, 2))
        print(await worker.call("wordcount", "the cat and the hat"))
        print([n async for n in worker.stream("count", 4)])
        try:
            await worker.call("fail", "not here")
        except forkwire.RemoteError as error:
            print(error.type_name, "-", error.message)
        with anyio.move_on_after(0.05) as scope:
            await worker.call("nap", 60)
        print("cancelled:", scope.cancelled_caught)


anyio.run(main)

# Prints:
# 3
# {'the': 2, 'cat': 1, 'and': 1, 'hat': 1}
# [0, 1, 2, 3]
# RangeError - not here
# cancelled: True

"""The worker's event loop is its own: trio's, whatever runs here. Needs forkwire[trio]."""

import anyio
import trio

from forkwire import InputChannel, OutputChannel, run, write_message


async def use_trio(inp: InputChannel, out: OutputChannel, numbers: list[int]) -> None:
    async def send(number: int) -> None:
        await write_message(out, b"trio task %d" % number)

    async with trio.open_nursery() as nursery:
        for number in numbers:
            nursery.start_soon(send, number)


async def main() -> None:
    async with await run(use_trio, [1, 2, 3], backend="trio") as worker:
        print(sorted([message async for message in worker.input_channel]))
    print(worker.returncode)


anyio.run(main)

# Prints:
# [b'trio task 1', b'trio task 2', b'trio task 3']
# 0

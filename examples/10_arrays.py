"""A payload is anything bytes-like, sent without a copy; a view reads the reply without one."""

from array import array

import anyio

from forkwire import InputChannel, OutputChannel, read_message, run, sync, write_message


def raise_to(inp: InputChannel, out: OutputChannel, power: int) -> None:
    for message in sync.messages(inp):
        numbers = memoryview(message).cast("d")
        sync.write_message(out, array("d", [number**power for number in numbers]))


async def main() -> None:
    async with await run(raise_to, 2) as worker:
        await write_message(worker.output_channel, array("d", [0.5, 1, 2]))
        reply = await read_message(worker.input_channel)
        assert isinstance(reply, bytes)
        print(memoryview(reply).cast("d").tolist())


anyio.run(main)

# Prints:
# [0.25, 1.0, 4.0]

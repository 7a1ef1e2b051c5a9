"""A limit on what the worker may send: nothing is allocated for a message that is too large."""

import anyio

from forkwire import InputChannel, OutputChannel, PeerError, read_message, run, sync


def boast(inp: InputChannel, out: OutputChannel, size: int) -> None:
    sync.write_message(out, b"modest")
    sync.write_message(out, bytes(size))


async def main() -> None:
    async with await run(boast, 1_000_001, max_message_size=1_000_000) as worker:
        print(await read_message(worker.input_channel))
        try:
            await read_message(worker.input_channel)
        except PeerError as error:  # the worker broke the rules, not we
            print(repr(error))
    print(worker.returncode)  # to write to a channel that nobody reads is no fault


anyio.run(main)

# Prints:
# b'modest'
# SizeLimitError(1000001, 1000000)
# 0

"""A function in another process, and one message there and back."""

import anyio

from forkwire import EndOfFile, InputChannel, OutputChannel, read_message, run, write_message


async def shout(inp: InputChannel, out: OutputChannel, suffix: str) -> None:
    while not isinstance(message := await read_message(inp), EndOfFile):
        await write_message(out, message.upper() + suffix.encode())


async def main() -> None:
    async with await run(shout, "!") as worker:  # forks; "!" is inherited, never serialised
        await write_message(worker.output_channel, b"hello")
        print(await read_message(worker.input_channel))
    print(worker.returncode)


anyio.run(main)

# Prints:
# b'HELLO!'
# 0

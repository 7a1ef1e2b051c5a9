"""A read that times out loses nothing: the next one goes on where it stood."""

import anyio

from forkwire import InputChannel, OutputChannel, read_message, run, sync, write_message


def answer_late(inp: InputChannel, out: OutputChannel, answer: bytes) -> None:
    sync.read_message(inp)
    sync.write_message(out, answer)


async def main() -> None:
    async with await run(answer_late, b"forty-two") as worker:
        with anyio.move_on_after(0.05) as waiting:
            print(await read_message(worker.input_channel))
        print("timed out:", waiting.cancelled_caught)
        await write_message(worker.output_channel, b"now!")
        print(await read_message(worker.input_channel))


anyio.run(main)

# Prints:
# timed out: True
# b'forty-two'

"""SIGTERM cancels the worker's function: it cleans up, and the host sees -15 all the same."""

import anyio

from forkwire import EndOfFile, InputChannel, OutputChannel, read_message, run, write_message


async def work(inp: InputChannel, out: OutputChannel, arg: None) -> None:
    try:
        await write_message(out, b"started")
        await anyio.sleep_forever()
    finally:
        with anyio.CancelScope(shield=True):  # within the grace: then comes SIGKILL
            await write_message(out, b"cleaned up")


async def main() -> None:
    async with await run(work, None, grace=10) as worker:
        print(await read_message(worker.input_channel))
        worker.terminate()
        while not isinstance(message := await read_message(worker.input_channel), EndOfFile):
            print(message)
        print(await worker.wait())


anyio.run(main)

# Prints:
# b'started'
# b'cleaned up'
# -15

"""Threads in the worker: several may write, and no message is ever torn."""

import hashlib
from concurrent.futures import ThreadPoolExecutor

import anyio

from forkwire import InputChannel, OutputChannel, run, sync, write_message


def digest_in_threads(inp: InputChannel, out: OutputChannel, count: int) -> None:
    def digest(message: bytes) -> None:
        sync.write_message(out, message[:1] + b" " + hashlib.sha256(message).hexdigest().encode())

    with ThreadPoolExecutor(count) as threads:
        for message in sync.messages(inp):
            threads.submit(digest, message)


async def main() -> None:
    async with await run(digest_in_threads, 3) as worker:
        for letter in b"abc":
            await write_message(worker.output_channel, bytes([letter]) * 100_000)
        await worker.output_channel.aclose()
        replies = [reply async for reply in worker.input_channel]  # in whatever order
    for reply in sorted(replies):
        print(reply.decode()[:18])


anyio.run(main)

# Prints:
# a 6d1cf22d7cc09b08
# b 768b54e315c41a8d
# c c280c4324f84f488

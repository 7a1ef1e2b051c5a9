"""A worker without an event loop: a plain function reads and writes with forkwire.sync."""

import zlib

import anyio

from forkwire import InputChannel, OutputChannel, read_message, run, sync, write_message


def compress(inp: InputChannel, out: OutputChannel, level: int) -> None:
    for text in sync.messages(inp):
        sync.write_message(out, zlib.compress(text, level))


async def main() -> None:
    async with await run(compress, 9) as worker:
        for text in (b"a" * 1_000_000, b"to be or not to be " * 1000):
            await write_message(worker.output_channel, text)
            packed = await read_message(worker.input_channel)
            assert isinstance(packed, bytes)  # and not EndOfFile
            print(len(text), "bytes, smaller packed:", len(packed) < len(text) // 100)
            assert zlib.decompress(packed) == text


anyio.run(main)

# Prints:
# 1000000 bytes, smaller packed: True
# 19000 bytes, smaller packed: True

"""A table that nobody wants to copy is simply there in the worker, which answers queries.

A greeting, then queries and answers with bare integers for their ids: the conversation of the
protocol's first user, in whatever language either side is written.
"""

import anyio

from forkwire import EndOfFile, InputChannel, OutputChannel, read_message, run, sync, write_message

Table = dict[bytes, int]


def serve(inp: InputChannel, out: OutputChannel, table: Table) -> None:
    assert sync.read_message(inp) == b"0 Ready"
    while not isinstance(query := sync.read_int(inp), EndOfFile):
        word = sync.read_message(inp)
        assert isinstance(word, bytes)
        sync.write_int(out, query)
        if word in table:
            sync.write_message(out, b"OK")
            sync.write_message(out, str(table[word]).encode())
        else:
            sync.write_message(out, b"ERR")
            sync.write_message(out, b"no such word: " + word)


async def main() -> None:
    table = {b"%d" % number: number * number for number in range(1_000_000)}
    async with await run(serve, table) as worker:  # nothing is copied
        inp, out = worker.input_channel, worker.output_channel
        await write_message(out, b"0 Ready")
        for query, word in enumerate([b"12", b"999999", b"twelve"]):
            await out.write_int(query)
            await write_message(out, word)
        for _ in range(3):
            print(await inp.read_int(), await read_message(inp), await read_message(inp))


anyio.run(main)

# Prints:
# 0 b'OK' b'144'
# 1 b'OK' b'999998000001'
# 2 b'ERR' b'no such word: twelve'

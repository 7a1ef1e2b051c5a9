"""A program that speaks the protocol on its stdin and stdout, and a host that talks to it.

It could be in any language. Here it is this file, with the argument "filter".
"""

import os
import subprocess
import sys
from contextlib import closing

import anyio

from forkwire import InputChannel, OutputChannel, read_message, sync, write_message


def reverse_messages() -> None:
    with closing(InputChannel.from_fd(0)) as inp, closing(OutputChannel.from_fd(1)) as out:
        for message in sync.messages(inp):
            sync.write_message(out, message[::-1])


async def main() -> None:
    its_stdin, our_end_of_stdin = os.pipe()
    our_end_of_stdout, its_stdout = os.pipe()
    program = subprocess.Popen(
        [sys.executable, __file__, "filter"], stdin=its_stdin, stdout=its_stdout
    )
    os.close(its_stdin)
    os.close(its_stdout)
    inp, out = InputChannel.from_fd(our_end_of_stdout), OutputChannel.from_fd(our_end_of_stdin)
    for message in (b"stressed", b"drawer"):
        await write_message(out, message)
        print(await read_message(inp))
    await out.aclose()
    print(await read_message(inp))
    await inp.aclose()
    print(program.wait())


if sys.argv[1:] == ["filter"]:
    reverse_messages()
else:
    anyio.run(main)

# Prints:
# b'desserts'
# b'reward'
# EndOfFile(truncated=False)
# 0

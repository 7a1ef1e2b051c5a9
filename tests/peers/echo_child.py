"""A child that sends every message back over stdin and stdout: ``echo_child.py FRONT``.

FRONT is ``blocking``, or the event loop of the async front: ``asyncio``, ``uvloop`` or ``trio``.
"""

from __future__ import annotations

import sys

import anyio

from forkwire import EndOfFile, InputChannel, OutputChannel, WriteOk, sync, write_message

LOOPS = {
    "asyncio": ("asyncio", {"use_uvloop": False}),
    "uvloop": ("asyncio", {"use_uvloop": True}),
    "trio": ("trio", {}),
}


def echo_blocking(inp: InputChannel, out: OutputChannel) -> None:
    for message in sync.messages(inp):
        expect_written(sync.write_message(out, message))
    inp.close()
    out.close()


async def echo(inp: InputChannel, out: OutputChannel) -> None:
    async for message in inp:
        expect_written(await write_message(out, message))
    await inp.aclose()
    await out.aclose()


def expect_written(answer: WriteOk | EndOfFile) -> None:
    if not isinstance(answer, WriteOk):
        sys.exit(f"expected the echo to be written, got {answer}")


async def main() -> None:
    await echo(InputChannel.from_fd(0), OutputChannel.from_fd(1))


if __name__ == "__main__":
    front = sys.argv[1]
    if front == "blocking":
        echo_blocking(InputChannel.from_fd(0), OutputChannel.from_fd(1))
    else:
        backend, options = LOOPS[front]
        anyio.run(main, backend=backend, backend_options=options)

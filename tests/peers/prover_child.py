"""A child that proves over stdin and stdout: ``prover_child.py FRONT``, as in ``echo_child.py``.

The parent says "0 Ready" once. Then each query is a bare id and a message, and each answer a bare
id, the message "OK" or "ERR", and the message with the result or the error.
"""

from __future__ import annotations

import sys

import anyio

from forkwire import (
    EndOfFile,
    InputChannel,
    OutputChannel,
    WriteOk,
    read_message,
    sync,
    write_message,
)

GREETING = b"0 Ready"

LOOPS = {
    "asyncio": ("asyncio", {"use_uvloop": False}),
    "uvloop": ("asyncio", {"use_uvloop": True}),
    "trio": ("trio", {}),
}


def prove(query: bytes) -> tuple[bytes, bytes]:
    """The verdict and the result: what cannot be proved starts with "!"."""
    if query.startswith(b"!"):
        return b"ERR", b"cannot prove " + query
    return b"OK", query[::-1]


def serve_blocking(inp: InputChannel, out: OutputChannel) -> None:
    expect_greeting(sync.read_message(inp))
    while not isinstance(number := sync.read_int(inp), EndOfFile):
        verdict, result = prove(expect_query(sync.read_message(inp)))
        expect_written(sync.write_int(out, number))
        expect_written(sync.write_message(out, verdict))
        expect_written(sync.write_message(out, result))
    inp.close()
    out.close()


async def serve(inp: InputChannel, out: OutputChannel) -> None:
    expect_greeting(await read_message(inp))
    while not isinstance(number := await inp.read_int(), EndOfFile):
        verdict, result = prove(expect_query(await read_message(inp)))
        expect_written(await out.write_int(number))
        expect_written(await write_message(out, verdict))
        expect_written(await write_message(out, result))
    await inp.aclose()
    await out.aclose()


def expect_greeting(message: bytes | EndOfFile) -> None:
    if message != GREETING:
        sys.exit(f"expected the greeting, got {message!r}")


def expect_query(message: bytes | EndOfFile) -> bytes:
    if isinstance(message, EndOfFile):
        sys.exit(f"expected a query after its id, got {message}")
    return message


def expect_written(answer: WriteOk | EndOfFile) -> None:
    if not isinstance(answer, WriteOk):
        sys.exit(f"expected the answer to be written, got {answer}")


async def main() -> None:
    await serve(InputChannel.from_fd(0), OutputChannel.from_fd(1))


if __name__ == "__main__":
    front = sys.argv[1]
    if front == "blocking":
        serve_blocking(InputChannel.from_fd(0), OutputChannel.from_fd(1))
    else:
        backend, options = LOOPS[front]
        anyio.run(main, backend=backend, backend_options=options)

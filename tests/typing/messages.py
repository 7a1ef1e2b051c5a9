"""What a type checker makes of reading and writing: checked by mypy and pyright, never run.

The ignored lines are errors; both checkers are told to mind an ignore that is not needed.
"""

# pyright: reportUnnecessaryTypeIgnoreComment=true

from __future__ import annotations

import array
import mmap
from collections.abc import AsyncIterator, Iterator
from typing import assert_type

from forkwire import EndOfFile, InputChannel, OutputChannel, WriteOk, read_message, sync
from forkwire import write_message as write


async def reading(inp: InputChannel) -> None:
    message = await read_message(inp)
    assert_type(message, bytes | EndOfFile)
    message.upper()  # type: ignore[union-attr]
    if isinstance(message, EndOfFile):
        assert_type(message.truncated, bool)
    else:
        assert_type(message, bytes)
    assert_type(await inp.read_int(), int | EndOfFile)
    assert_type(inp.end, EndOfFile | None)
    assert_type(aiter(inp), AsyncIterator[bytes])
    async for each in inp:
        assert_type(each, bytes)
    for _ in inp:  # type: ignore[attr-defined]
        pass


async def writing(out: OutputChannel) -> None:
    assert_type(await write(out, b"bytes"), WriteOk | EndOfFile)
    assert_type(await out.write_int(7), WriteOk | EndOfFile)
    await write(out, bytearray(b""))
    await write(out, memoryview(b""))
    await write(out, array.array("i"))
    await write(out, mmap.mmap(-1, 1))
    await write(out, "text")  # type: ignore[arg-type]
    await write(out, 7)  # type: ignore[arg-type]
    await write(out, [1, 2])  # type: ignore[arg-type]
    await write(out, None)  # type: ignore[arg-type]
    await write(out, EndOfFile())  # type: ignore[arg-type]
    await write(out)  # type: ignore[call-arg]
    await out.write_int("7")  # type: ignore[arg-type]
    await out.write_int(7.0)  # type: ignore[arg-type]


async def the_wrong_way_round(inp: InputChannel, out: OutputChannel) -> None:
    await read_message(out)  # type: ignore[arg-type]
    await write(inp, b"")  # type: ignore[arg-type]
    await read_message(0)  # type: ignore[arg-type]
    await inp.write_int(7)  # type: ignore[attr-defined]
    await out.read_int()  # type: ignore[attr-defined]
    async for _ in out:  # type: ignore[attr-defined]
        pass


def blocking(inp: InputChannel, out: OutputChannel) -> None:
    assert_type(sync.read_message(inp), bytes | EndOfFile)
    assert_type(sync.read_int(inp), int | EndOfFile)
    assert_type(sync.write_message(out, b""), WriteOk | EndOfFile)
    assert_type(sync.write_int(out, 7), WriteOk | EndOfFile)
    assert_type(sync.messages(inp), Iterator[bytes])
    sync.write_message(out, "text")  # type: ignore[arg-type]
    sync.read_message(out)  # type: ignore[arg-type]
    sync.write_message(inp, b"")  # type: ignore[arg-type]


def wrapping(fd: int) -> None:
    assert_type(InputChannel.from_fd(fd), InputChannel)
    assert_type(InputChannel.from_fd(fd, max_message_size=10), InputChannel)
    assert_type(OutputChannel.from_fd(fd), OutputChannel)
    assert_type(InputChannel.from_fd(fd).fileno(), int)
    assert_type(InputChannel.from_fd(fd).closed, bool)
    InputChannel.from_fd("0")  # type: ignore[arg-type]
    OutputChannel.from_fd(fd, max_message_size=10)  # type: ignore[call-arg]
    InputChannel.from_fd(fd, 10)  # type: ignore[call-arg]

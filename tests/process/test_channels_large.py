"""The largest message, 2**31 - 1 bytes, through a real pipe."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path
from typing import Any

import anyio
import numpy
import pytest

from forkwire import (
    MAX_PAYLOAD_SIZE,
    PayloadTooLargeError,
    WriteOk,
    read_message,
    sync,
    write_message,
)

from .test_channels_support import (
    INSIDE,
    Operation,
    drain,
    joined,
    message,
    reading,
    size_of,
    turns,
    writing,
)
from .test_channels_support import nothing_left as nothing_left

pytestmark = [pytest.mark.usefixtures("nothing_left")]

GIBIBYTE = 2**30


def status(name: str, path: str = "/proc/self/status") -> int:
    """A line of proc(5)'s tables, in bytes."""
    lines = Path(path).read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name))


enough_memory = pytest.mark.skipif(
    status("MemAvailable", "/proc/meminfo") < 6 * GIBIBYTE, reason="needs 6 GiB of memory"
)


def marked(size: int) -> Any:
    """Zeros that occupy no memory, with a mark here and there."""
    content = numpy.zeros(size, "u1")
    for place in range(0, size, 100_000_007):
        content[place] = place % 251 + 1
    content[-1] = 77
    return content


def same(got: bytes, sent: Any) -> bool:
    part = 2**26
    return len(got) == len(sent) and all(
        got[start : start + part] == sent[start : start + part].tobytes()
        for start in range(0, len(sent), part)
    )


@pytest.mark.long
@pytest.mark.timeout(180)
@enough_memory
@pytest.mark.parametrize("front", ["blocking", "asyncio"])
def test_the_largest_message_arrives_whole(front: str) -> None:
    """2 GiB less one byte; the reader's copy is the only one that is made."""
    sent = marked(MAX_PAYLOAD_SIZE)
    Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
    before = status("VmHWM")
    with joined() as (inp, out):
        began = time.monotonic()
        writer = threading.Thread(target=sync.write_message, args=(out, sent))
        writer.start()
        got: Any = None

        async def read() -> None:  # asyncio.run prints what its task returns, in secret
            nonlocal got
            got = await read_message(inp)

        if front == "blocking":
            got = sync.read_message(inp)
        else:
            anyio.run(read, backend=front)
        writer.join()
        assert time.monotonic() - began < 60
        assert status("VmHWM") - before < MAX_PAYLOAD_SIZE + GIBIBYTE // 4
        assert same(got, sent)
        assert sync.write_message(out, b"next") == WriteOk()
        assert sync.read_message(inp) == b"next"


@pytest.mark.anyio
async def test_a_byte_more_is_refused_before_a_byte_is_sent() -> None:
    """Also while another message is being written; the channel stays usable."""
    with writing() as (out, fd):
        async with anyio.create_task_group() as group:
            payload = bytes(3_000_000)
            first = Operation(False, group, write_message, out, payload)
            await turns(3)
            too_large: Any = numpy.zeros(2**31, "u1")
            with pytest.raises(PayloadTooLargeError):
                await write_message(out, too_large)
            with pytest.raises(PayloadTooLargeError):
                sync.write_message(out, bytes(2**31))
            second = Operation(False, group, write_message, out, b"next")
            stream = await anyio.to_thread.run_sync(drain, fd, 3_000_004 + 8)
            assert [await first.over(), await second.over()] == [[WriteOk()]] * 2
        assert stream == message(payload) + message(b"next")


@pytest.mark.anyio
async def test_an_announced_size_commits_no_memory() -> None:
    """A peer that announces 2 GiB and sends three bytes costs three bytes."""
    with reading() as (inp, fd):
        before = status("VmRSS")
        os.write(fd, size_of(MAX_PAYLOAD_SIZE) + b"abc")
        with anyio.move_on_after(0.01):
            await read_message(inp)
        assert status("VmRSS") - before < 16 * 2**20
        os.close(fd)
        assert await read_message(inp) == INSIDE

"""Several workers share one list of files: whoever has room in its pipe takes the next."""

import asyncio
from collections.abc import Iterator
from pathlib import Path

import anyio

from forkwire import EndOfFile, InputChannel, OutputChannel, ProcessWorker, run, sync, write_message


def count_lines(inp: InputChannel, out: OutputChannel, newline: bytes) -> None:
    for content in sync.messages(inp):
        sync.write_int(out, content.count(newline))


async def feed(worker: ProcessWorker, paths: Iterator[Path]) -> None:
    for path in paths:
        sent = await write_message(worker.output_channel, path.read_bytes())  # waits while full
        if isinstance(sent, EndOfFile):
            return  # it died: no more of the files for this one
    await worker.output_channel.aclose()  # that was all: the worker ends


async def employ(paths: Iterator[Path], counts: list[int]) -> None:
    async with await run(count_lines, b"\n") as worker, anyio.create_task_group() as tasks:
        tasks.start_soon(feed, worker, paths)
        while not isinstance(count := await worker.input_channel.read_int(), EndOfFile):
            counts.append(count)
    worker.check_returncode()  # if it died, what it had in hand was not counted


async def main() -> None:
    files = sorted(Path(asyncio.__file__).parent.glob("*.py"))
    paths, counts = iter(files), list[int]()
    async with anyio.create_task_group() as tasks:
        for _ in range(3):
            tasks.start_soon(employ, paths, counts)
    print("every file was counted:", len(counts) == len(files))
    print("and every line:", sum(counts) == sum(f.read_bytes().count(b"\n") for f in files))


anyio.run(main)

# Prints:
# every file was counted: True
# and every line: True

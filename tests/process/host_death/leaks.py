"""Start and end many workers in every way, and print what is left: ``leaks.py BACKEND COUNT``."""

from __future__ import annotations

import contextlib
import gc
import json
import os
import signal
import sys
import time
import warnings
from pathlib import Path
from typing import NoReturn

import anyio

from forkwire import InputChannel, OutputChannel, ProcessWorker, read_message, run, write_message
from forkwire.process import guard, ownership
from forkwire.sync import messages
from forkwire.sync import write_message as write_blocking

WARM_UP = 42
AT_ONCE = 4
A_ZOMBIE_FOR = 1.0  # seconds a child may be one: less than that, it is about to be reaped

warned: list[str] = []
started: list[int] = []
zombies: dict[int, float] = {}
lingering: set[int] = set()


async def echo(inp: InputChannel, out: OutputChannel, arg: object) -> None:
    async for message in inp:
        await write_message(out, message)


def plain_echo(inp: InputChannel, out: OutputChannel, arg: object) -> None:
    for message in messages(inp):
        write_blocking(out, message)


def crash(inp: InputChannel, out: OutputChannel, arg: object) -> NoReturn:
    os.write(2, b"a last word")
    os._exit(1)


async def ask(worker: ProcessWorker) -> None:
    started.append(worker.pid)
    await write_message(worker.output_channel, b"x" * 100)
    assert await read_message(worker.input_channel) == b"x" * 100


async def close(number: int) -> None:
    async with await run(echo if number % 10 else plain_echo, None) as worker:
        await ask(worker)


async def kill(number: int) -> None:
    async with await run(plain_echo, None) as worker:
        await ask(worker)
        worker.kill()


async def kill_from_outside(number: int) -> None:
    async with await run(plain_echo, None) as worker:
        os.kill(worker.pid, signal.SIGKILL)
        await worker.wait()
        started.append(worker.pid)


async def terminate(number: int) -> None:
    async with await run(echo if number % 10 else plain_echo, None) as worker:
        worker.terminate()
        started.append(worker.pid)


async def cancel_start(number: int) -> None:
    with anyio.CancelScope() as scope:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(close, number)
            if number % 2:
                await anyio.lowlevel.checkpoint()
            scope.cancel()


async def drop(number: int) -> None:
    await ask(await run(plain_echo, None, grace=0.5, capture_stderr=bool(number % 2)))


async def capture(number: int) -> None:
    async with await run(crash, None, capture_stderr=True) as worker:
        await worker.wait()
        assert worker.died
        assert worker.died.stderr_tail == "a last word"
        started.append(worker.pid)


WAYS = [close, kill, kill_from_outside, terminate, cancel_start, drop, capture]


async def live(numbers: range) -> None:
    async def some(first: int) -> None:
        for number in numbers[first::AT_ONCE]:
            await WAYS[number % len(WAYS)](number)
            look_for_zombies()

    async with anyio.create_task_group() as tasks:
        for first in range(AT_ONCE):
            tasks.start_soon(some, first)
    while children():  # those that were dropped
        await anyio.sleep(0.01)


def children() -> list[int]:
    found = ""
    for task in Path("/proc/self/task").iterdir():
        with contextlib.suppress(OSError):  # a thread that has ended
            found += (task / "children").read_text()
    return [int(pid) for pid in found.split()]


def look_for_zombies() -> None:
    now = time.monotonic()
    dead = {pid for pid in children() if state(pid) == "Z"}
    for pid in set(zombies) - dead:
        del zombies[pid]
    for pid in dead:
        if now - zombies.setdefault(pid, now) > A_ZOMBIE_FOR:
            lingering.add(pid)


def state(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return ""


def status(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field + ":"))


async def measure() -> dict[str, int]:
    while status("Threads") > 1:  # those that reaped the last ones
        await anyio.sleep(0.001)
    await anyio.sleep(0.01)  # what they left for the loop to do
    gc.collect()
    return {
        "descriptors": len(os.listdir("/proc/self/fd")),
        "children": len(children()),
        "threads": status("Threads"),
        "memory": status("VmRSS"),
        "objects": len(gc.get_objects()),
        "owned": len(ownership._owned),
        "registered": len(guard._workers),
    }


async def main(count: int) -> None:
    await live(range(WARM_UP))
    before = await measure()
    started.clear()
    warned.clear()
    await live(range(count))
    after = await measure()
    said = {
        "started": len(started),
        "warned": len(warned),
        "lingering": len(lingering),
    }
    print(json.dumps({"before": before, "after": after, **said}))


def show(message: Warning | str, category: type[Warning], *where: object) -> None:
    if category is ResourceWarning:
        warned.append(str(message))
    else:
        print(message)


if __name__ == "__main__":
    backend = sys.argv[1]
    warnings.simplefilter("always")
    warnings.showwarning = show  # type: ignore[assignment]
    loop = "trio" if backend == "trio" else "asyncio"
    options = {"use_uvloop": True} if backend == "uvloop" else {}
    with open(os.devnull, "w") as null, contextlib.redirect_stderr(null):
        anyio.run(main, int(sys.argv[2]), backend=loop, backend_options=options)

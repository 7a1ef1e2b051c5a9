"""From the call that starts a worker to its first reply, and to the end of its life.

Claim: the first reply takes at most the time that a multiprocessing.Process (fork context) with a
Pipe takes, both with a plain function.

Bias: the host is a small program (this one, with three event loops imported); a larger one makes
every fork here slower alike. One worker at a time, the first of them not counted: that one starts
the guard process, once a host, which costs ours some 30 ms more. Process does less: no group, no
guard, no signals reset; it also writes nothing when its host is killed. "os.fork" is the bare
system call with two pipes.
"""

from __future__ import annotations

import os
import statistics
from functools import partial
from time import perf_counter
from typing import Any

from _conversations import FORK
from _harness import BASELINE, HOSTS, Contender, Table, main, on_loop, paced

from forkwire import InputChannel, OutputChannel, read_message, run, sync, write_message

HELLO = b"hello"


def plain_worker(inp: InputChannel, out: OutputChannel, arg: None) -> None:
    for message in sync.messages(inp):
        sync.write_message(out, message)


async def async_worker(inp: InputChannel, out: OutputChannel, arg: None) -> None:
    async for message in inp:
        await write_message(out, message)


async def ours(worker_function: Any, whole: bool, times: int) -> float:
    lives = []
    for _ in range(times + 1):
        start = perf_counter()
        async with await run(worker_function, None) as worker:
            await write_message(worker.output_channel, HELLO)
            await read_message(worker.input_channel)
            replied = perf_counter()
        lives.append((perf_counter() if whole else replied) - start)
    return statistics.median(lives[1:])


def pipe_child(connection: Any) -> None:
    while message := connection.recv_bytes():
        connection.send_bytes(message)


def pipe(whole: bool, times: int) -> float:
    lives = []
    for _ in range(times + 1):
        start = perf_counter()
        ours, theirs = FORK.Pipe()
        child = FORK.Process(target=pipe_child, args=(theirs,))
        child.start()
        ours.send_bytes(HELLO)
        ours.recv_bytes()
        replied = perf_counter()
        ours.send_bytes(b"")
        child.join()
        ours.close()
        theirs.close()
        lives.append((perf_counter() if whole else replied) - start)
    return statistics.median(lives[1:])


def bare(whole: bool, times: int) -> float:
    lives = []
    for _ in range(times + 1):
        start = perf_counter()
        child_inp, out = os.pipe()
        inp, child_out = os.pipe()
        if os.fork() == 0:
            os.close(out)
            while message := os.read(child_inp, 100):
                os.write(child_out, message)
            os._exit(0)
        os.close(child_inp)
        os.write(out, HELLO)
        os.read(inp, 100)
        replied = perf_counter()
        os.close(out)
        os.wait()
        os.close(inp)
        os.close(child_out)
        lives.append((perf_counter() if whole else replied) - start)
    return statistics.median(lives[1:])


def contenders(whole: bool, times: int) -> dict[str, Contender]:
    found: dict[str, Contender] = {
        BASELINE: partial(pipe, whole, times),
        "os.fork": partial(bare, whole, times),
    }
    for host in HOSTS:
        for kind, function in (("plain", plain_worker), ("async", async_worker)):
            found[f"forkwire, {host}, {kind} worker"] = partial(
                on_loop, host, partial(ours, function, whole, times)
            )
    return found


def tables(quick: bool, place: str, pinned: bool) -> list[Table]:
    times = paced(quick, 40)
    return [
        Table(f"Start to first reply, {place}", pinned, contenders(False, times)),
        Table(f"Start to reaped, {place}", pinned, contenders(True, times)),
    ]


if __name__ == "__main__":
    main(__doc__, tables)

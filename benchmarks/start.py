"""From the call that starts a worker to its first reply, and to the end of its life.

Claim: the first reply takes at most the time that a multiprocessing.Process (fork context) with a
Pipe takes, both with a plain function.

The same for services: the second worker of a template against multiprocessing's fork, its
forkserver with everything preloaded, and spawn; with numpy imported beforehand too.

Bias: the host is a small program (this one, with three event loops imported); a larger one makes
every fork here slower alike. One worker at a time, the first of them not counted: that one starts
the guard process, once a host, which costs ours some 30 ms more. Process does less: no group, no
guard, no signals reset; it also writes nothing when its host is killed. "os.fork" is the bare
system call with two pipes. A template has a worker in advance by the time of the next: the time
that this took, while nobody waited, is not counted (it competes with the next contender's).
"""

from __future__ import annotations

import importlib
import multiprocessing
import os
import statistics
import time
from functools import partial
from time import perf_counter
from typing import Any, Final

import _service
import anyio
from _conversations import FORK
from _harness import BASELINE, HOSTS, Contender, Table, main, on_loop, paced

from forkwire import (
    InputChannel,
    OutputChannel,
    open_worker,
    read_message,
    run,
    sync,
    write_message,
)
from forkwire.rpc.settings import StartMethod

HELLO = b"hello"

# Between two starts, for what is done in advance: programs do not start workers all the time.
PAUSE: Final = 0.02


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


# -- services ---------------------------------------------------------------------------------


def processes(method: str, modules: tuple[str, ...], times: int) -> float:
    """Seconds until the first reply of a `multiprocessing` worker."""
    preload(modules)
    context: Any = multiprocessing.get_context(method)
    if method == "forkserver":
        context.set_forkserver_preload(["__main__", "_service", *modules])
    lives = []
    for _ in range(times + 1):
        start = perf_counter()
        ours, theirs = context.Pipe()
        child = context.Process(target=_service.answer, args=(theirs,))
        child.start()
        ours.send(("add", (1, 2)))
        ours.recv()
        lives.append(perf_counter() - start)
        ours.send(None)
        child.join()
        ours.close()
        theirs.close()
        time.sleep(PAUSE)
    return statistics.median(lives[1:])


async def services(method: StartMethod, modules: tuple[str, ...], times: int) -> float:
    """The same of ours."""
    preload(modules)
    lives = []
    for _ in range(times + 1):
        start = perf_counter()
        async with open_worker(_service, start=method, preload=modules) as worker:
            await worker.call("add", 1, 2)
            lives.append(perf_counter() - start)
        await anyio.sleep(PAUSE)
    return statistics.median(lives[1:])


def preload(modules: tuple[str, ...]) -> None:
    for name in modules:
        importlib.import_module(name)


def service_contenders(modules: tuple[str, ...], times: int) -> dict[str, Contender]:
    found: dict[str, Contender] = {BASELINE: partial(processes, "fork", modules, times)}
    for host in HOSTS:
        ours = partial(services, "template", modules, times)
        found[f"forkwire, {host}, template"] = partial(on_loop, host, ours)
    found["forkwire, asyncio, fork"] = partial(
        on_loop, "asyncio", partial(services, "fork", modules, times)
    )
    slow = max(2, times // 8)
    found["multiprocessing, forkserver, preloaded"] = partial(
        processes, "forkserver", modules, slow
    )
    found["multiprocessing, spawn"] = partial(processes, "spawn", modules, slow)
    found["forkwire, asyncio, exec"] = partial(
        on_loop, "asyncio", partial(services, "exec", modules, slow)
    )
    return found


def tables(quick: bool, place: str, pinned: bool) -> list[Table]:
    times = paced(quick, 40)
    return [
        Table(f"Start to first reply, {place}", pinned, contenders(False, times)),
        Table(f"Start to reaped, {place}", pinned, contenders(True, times)),
        Table(f"Service, start to first reply, {place}", pinned, service_contenders((), times)),
        Table(
            f"Service with numpy, start to first reply, {place}",
            pinned,
            service_contenders(("numpy",), times),
        ),
    ]


if __name__ == "__main__":
    main(__doc__, tables)

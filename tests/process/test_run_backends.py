"""Every host's loop with every worker's, on the main thread and off it."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import warnings
from typing import Literal

import anyio
import anyio.to_thread
import pytest

from forkwire import (
    EndOfFile,
    InputChannel,
    OutputChannel,
    ProcessWorker,
    read_message,
    run,
    sync,
    write_message,
)
from forkwire.process.backend import BackendName, current_backend
from forkwire.process.cancelling import DEAF_TO_SIGNALS

from .test_run_support import HOSTS, received, run_in, until_asleep

pytestmark = [
    pytest.mark.filterwarnings("ignore::forkwire.ForkThreadsWarning"),
    pytest.mark.parametrize("thread", [False, True], ids=["main-thread", "other-thread"]),
    pytest.mark.parametrize("host", HOSTS),
]


async def use_everything() -> bytes:
    """What a loop needs threads, signals, subprocesses and clocks for; its name."""
    await anyio.to_thread.run_sync(os.getpid)
    await anyio.run_process(["true"])
    await anyio.sleep(0)
    return current_backend().name.encode()


async def converse(inp: InputChannel, out: OutputChannel, arg: object) -> None:
    """Echo until the end or the cancellation, which is reported."""
    await write_message(out, await use_everything())
    try:
        while not isinstance(message := await read_message(inp), EndOfFile):
            await write_message(out, message.upper())
    finally:
        with anyio.CancelScope(shield=True):
            await write_message(out, b"cleaned up")


def converse_plainly(inp: InputChannel, out: OutputChannel, arg: object) -> None:
    """The same without a loop."""
    subprocess.run(["true"], check=True)
    sync.write_message(out, b"plain")
    try:
        for message in sync.messages(inp):
            sync.write_message(out, message.upper())
    finally:
        sync.write_message(out, b"cleaned up")


async def check(worker: ProcessWorker, name: BackendName | Literal["plain"], end: int) -> None:
    """The worker converses, and cleans up when its end comes."""
    async with worker:
        assert await received(worker) == name.encode()
        await write_message(worker.output_channel, b"hello")
        assert await received(worker) == b"HELLO"
        if end == 0:
            await worker.output_channel.aclose()
        else:
            worker.terminate()
        assert await received(worker) == b"cleaned up"
        assert await worker.wait() == end


@pytest.mark.parametrize("backend", HOSTS)
def test_an_async_f_runs_in_a_fresh_loop(
    host: BackendName, backend: BackendName, thread: bool
) -> None:
    """Whatever loop the host runs in whatever thread, the child's works, and SIGTERM cancels f."""

    async def main() -> None:
        assert await use_everything() == host.encode()
        for end in (0, -signal.SIGTERM):
            await check(await run(converse, None, backend=backend), backend, end)
        assert await use_everything() == host.encode()

    run_in(host, thread, main)


def test_a_plain_f_needs_no_loop(host: BackendName, thread: bool) -> None:
    """Whatever loop the host runs in whatever thread, plain code works, and SIGTERM cancels it."""

    async def main() -> None:
        await use_everything()
        for end in (0, -signal.SIGTERM):
            await check(await run(converse_plainly, None), "plain", end)

    run_in(host, thread, main)


def test_the_backend_is_the_hosts_unless_said(host: BackendName, thread: bool) -> None:
    """An async f runs on the loop that its host runs on."""

    async def f(inp: InputChannel, out: OutputChannel, arg: object) -> None:
        await write_message(out, current_backend().name.encode())

    async def main() -> None:
        async with await run(f, None) as worker:
            assert await received(worker) == host.encode()

    run_in(host, thread, main)


def test_plain_code_may_run_any_loop(host: BackendName, thread: bool) -> None:
    """No library believes that the host's loop runs in the child."""

    def f(inp: InputChannel, out: OutputChannel, arg: object) -> None:
        with pytest.raises(RuntimeError):
            asyncio.get_running_loop()
        with pytest.raises(RuntimeError):
            current_backend()
        assert sync.read_message(inp) == b"a wait that signals can end"
        if thread and DEAF_TO_SIGNALS:  # what hears of SIGTERM there has trio warn
            warnings.filterwarnings("ignore", "It looks like Trio's signal handling")
        assert asyncio.run(use_everything()) == b"asyncio"
        for name, options in HOSTS.items():
            assert anyio.run(use_everything, **options) == name.encode()

    async def main() -> None:
        async with await run(f, None) as worker:
            await until_asleep(worker.pid)
            await write_message(worker.output_channel, b"a wait that signals can end")
            assert await worker.wait() == 0

    run_in(host, thread, main)

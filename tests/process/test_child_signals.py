"""Of the host's signal handling nothing reaches the worker, and the other way round."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import threading
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import anyio
import pytest

from forkwire import InputChannel, OutputChannel, read_message, run, sync

from .test_run_support import name_of, program, received

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.filterwarnings("ignore::forkwire.ForkThreadsWarning"),
]

# What faulthandler and readline catch in C, in a host that pytest runs in.
FOREIGN = {
    *(signal.SIGSEGV, signal.SIGFPE, signal.SIGABRT, signal.SIGBUS, signal.SIGILL),
    signal.SIGWINCH,
}


def caught_signals() -> set[int]:
    """Those for which this process has a handler, C code's included, but for foreign ones."""
    status = Path("/proc/self/status").read_text()
    (mask,) = (int(line.split()[1], 16) for line in status.splitlines() if "SigCgt" in line)
    return {n for n in range(1, 65) if mask >> (n - 1) & 1 and n < 32} - FOREIGN


@contextlib.asynccontextmanager
async def loop_handler(number: signal.Signals, heard: list[int]) -> AsyncIterator[None]:
    """The running loop's own way to receive a signal."""
    import sniffio

    if sniffio.current_async_library() == "trio":
        import trio

        async def listen(receiver: Any) -> None:
            async for signal_number in receiver:
                heard.append(signal_number)  # noqa: PERF401

        with trio.open_signal_receiver(number) as receiver:
            async with anyio.create_task_group() as group:
                group.start_soon(listen, receiver)
                yield
                group.cancel_scope.cancel()
    else:
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(number, heard.append, int(number))
        yield
        loop.remove_signal_handler(number)


def sleep(inp: InputChannel, out: OutputChannel, arg: object) -> None:
    sync.write_message(out, b"ready")
    sync.read_message(inp)


async def sleep_async(inp: InputChannel, out: OutputChannel, arg: object) -> None:
    sync.write_message(out, b"ready")
    await read_message(inp)


@pytest.mark.parametrize("f", [sleep, sleep_async])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP])
async def test_the_loops_signal_handlers_do_not_run_in_the_worker(
    f: Any, number: signal.Signals
) -> None:
    """A signal sent to the worker is the worker's: it ends, and the host's loop hears nothing."""
    heard: list[int] = []
    async with loop_handler(number, heard), await run(f, None) as worker:
        assert await received(worker) == b"ready"
        os.kill(worker.pid, number)
        assert await worker.wait() == -number
        for _ in range(5):
            await anyio.lowlevel.checkpoint()
        assert heard == []
        os.kill(os.getpid(), number)
        with anyio.fail_after(20):
            while not heard:
                await anyio.sleep(0.001)
        assert heard == [number]


@pytest.mark.parametrize("kind", ["plain", "async"])
async def test_no_handler_lingers_in_the_worker(kind: str) -> None:
    """Of Python or of C: it catches SIGTERM and nothing else, and no wake-up descriptor is set."""

    def look(inp: InputChannel, out: OutputChannel, arg: object) -> None:
        ignored = [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTTIN, signal.SIGTTOU)]
        assert ignored == [signal.SIG_IGN] * 3
        assert signal.getsignal(signal.SIGUSR2) == signal.SIG_DFL
        sync.write_message(out, repr(caught_signals()).encode())
        if kind == "plain":
            assert signal.set_wakeup_fd(-1) == -1

    async def look_async(inp: InputChannel, out: OutputChannel, arg: object) -> None:
        look(inp, out, arg)

    before = signal.signal(signal.SIGUSR2, lambda number, frame: None)
    try:
        f: Any = look if kind == "plain" else look_async
        async with loop_handler(signal.SIGUSR1, []), await run(f, None) as worker:
            assert await received(worker) == repr({int(signal.SIGTERM)}).encode()
            assert await worker.wait() == 0
    finally:
        signal.signal(signal.SIGUSR2, before)


def test_neither_a_handler_nor_a_wakeup_descriptor_of_the_application() -> None:
    """``signal.signal`` and ``signal.set_wakeup_fd`` of the host stay the host's."""
    done = program(
        """
        def f(inp, out, arg):
            sync.write_message(out, b"ready")
            sync.read_message(inp)

        async def main():
            for number in (signal.SIGUSR1, signal.SIGALRM, signal.SIGTERM):
                async with await run(f, None) as worker:
                    await read_message(worker.input_channel)
                    os.kill(worker.pid, number)
                    assert await worker.wait() == -number

        def handler(number, frame):
            print("handled in", "the host" if os.getpid() == host else "the worker")

        host = os.getpid()
        a, b = socket.socketpair()
        a.setblocking(False)
        b.setblocking(False)
        signal.set_wakeup_fd(b.fileno())
        for number in (signal.SIGUSR1, signal.SIGALRM, signal.SIGTERM):
            signal.signal(number, handler)
        anyio.run(main)
        signal.set_wakeup_fd(b.fileno())
        try:
            print("woken by", a.recv(10))
        except BlockingIOError:
            print("never woken")
        os.kill(host, signal.SIGUSR1)
        print("woken by", list(a.recv(10)))
        signal.set_wakeup_fd(-1)
        a.close()
        b.close()
        """
    )
    assert done.stderr == ""
    assert done.stdout == "never woken\nhandled in the host\nwoken by [10]\n"


async def test_a_signal_during_the_fork_is_the_hosts(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that comes while the host forks is handled once, in the host, after the fork."""
    heard: list[int] = []
    fork = os.fork

    def signalled_fork() -> int:
        signal.pthread_kill(threading.get_ident(), signal.SIGUSR1)
        pid = fork()
        if pid == 0 and heard:
            os._exit(99)
        return pid

    def handler(number: int, frame: object) -> None:
        heard.append(os.getpid())

    monkeypatch.setattr(os, "fork", signalled_fork)
    before = signal.signal(signal.SIGUSR1, handler)
    try:
        async with await run(sleep, None) as worker:
            assert heard == [os.getpid()]
            assert await received(worker) == b"ready"
        assert worker.returncode == 0
        assert heard == [os.getpid()]
    finally:
        signal.signal(signal.SIGUSR1, before)


async def test_a_worker_may_handle_signals_itself() -> None:
    """What ``f`` installs is its own: SIGUSR1, and SIGTERM if it insists."""

    def f(inp: InputChannel, out: OutputChannel, arg: object) -> None:
        for number in (signal.SIGUSR1, signal.SIGTERM):
            signal.signal(number, lambda number, frame: os.write(heard, bytes([number])))
        sync.write_message(out, b"ready")
        sync.read_message(inp)

    told, heard = os.pipe()
    async with await run(f, None) as worker:
        assert await received(worker) == b"ready"
        for number in (signal.SIGUSR1, signal.SIGTERM):
            os.kill(worker.pid, number)
            with anyio.fail_after(20):
                await anyio.wait_readable(told)
            assert os.read(told, 10) == bytes([number])
    assert worker.returncode == 0
    os.close(told)
    os.close(heard)


async def test_what_a_worker_starts_can_be_terminated(
    anyio_backend: tuple[str, dict[str, Any]],
) -> None:
    """A subprocess has SIGTERM at its default and unblocked, in plain and in async code."""

    def start() -> int:
        with subprocess.Popen(["sleep", "60"]) as process:
            process.terminate()
            return process.wait()

    def plain(inp: InputChannel, out: OutputChannel, arg: object) -> None:
        sync.write_message(out, b"%d" % start())

    async def is_async(inp: InputChannel, out: OutputChannel, arg: object) -> None:
        sync.write_message(out, b"%d" % start())

    for f in (plain, is_async):
        async with await run(f, None, backend=name_of(anyio_backend)) as worker:
            assert await received(worker) == b"-15"

"""A host that is told on stdin what to start and how to end: ``python host.py BACKEND [TRAIT...]``.

Everything that descends from it inherits its stdout, so that stdout's end of file says that all of
it is gone. A worker that sees its SIGTERM says so there.
"""

from __future__ import annotations

import atexit
import contextlib
import hashlib
import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import anyio

from forkwire import EndOfFile, InputChannel, OutputChannel, ProcessWorker, read_message, run
from forkwire import write_message as write_message_async
from forkwire.process import child
from forkwire.process.cancelling import Termination
from forkwire.sync import read_message as read_blocking
from forkwire.sync import write_message

GRACE = 0.5
STUBBORN = ["sh", "-c", "trap '' TERM; sleep 1000"]

workers: list[ProcessWorker] = []


def say(*words: object) -> None:
    """One line, whole whoever else is writing."""
    os.write(1, (" ".join(map(str, words)) + "\n").encode())


@contextlib.contextmanager
def telling(kind: str) -> Iterator[None]:
    """Say when this very process is cancelled by SIGTERM."""
    pid = os.getpid()
    try:
        yield
    except BaseException as error:
        cancelled = isinstance(error, SystemExit) or "Cancelled" in type(error).__name__
        if cancelled and os.getpid() == pid:
            say("cancelled", kind)
        raise


def ready(output: OutputChannel, *descendants: int) -> None:
    write_message(output, " ".join(map(str, [os.getpid(), *descendants])).encode())


async def idle(inp: InputChannel, out: OutputChannel, kind: str) -> None:
    await write_message_async(out, str(os.getpid()).encode())
    while not isinstance(await read_message(inp), EndOfFile):
        pass


def plain_idle(inp: InputChannel, out: OutputChannel, kind: str) -> None:
    ready(out)
    while not isinstance(read_blocking(inp), EndOfFile):
        pass


async def async_sleep(inp: InputChannel, out: OutputChannel, kind: str) -> None:
    with telling(kind):
        await write_message_async(out, str(os.getpid()).encode())
        await anyio.sleep_forever()


def plain_sleep(inp: InputChannel, out: OutputChannel, kind: str) -> None:
    with telling(kind):
        ready(out)
        time.sleep(1000)


def python_loop(inp: InputChannel, out: OutputChannel, kind: str) -> None:
    with telling(kind):
        ready(out)
        while True:
            pass


def c_without_lock(inp: InputChannel, out: OutputChannel, kind: str) -> None:
    os.nice(19)
    ready(out)
    hashlib.pbkdf2_hmac("sha256", b"", b"", 10**9)


def c_with_lock(inp: InputChannel, out: OutputChannel, kind: str) -> None:
    os.nice(19)
    ready(out)
    sum(range(10**12))


def deaf(inp: InputChannel, out: OutputChannel, kind: str) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    ready(out)
    while True:
        signal.pause()


def busy_threads(inp: InputChannel, out: OutputChannel, kind: str) -> None:
    def burn() -> None:
        while True:
            pass

    for _ in range(2):
        threading.Thread(target=burn, daemon=True).start()
    with telling(kind):
        ready(out)
        time.sleep(1000)


def waiting_for_program(inp: InputChannel, out: OutputChannel, kind: str) -> None:
    with telling(kind), subprocess.Popen(["sleep", "1000"]) as program:
        ready(out, program.pid)


def stubborn_program(inp: InputChannel, out: OutputChannel, kind: str) -> None:
    with telling(kind):
        program = subprocess.Popen(STUBBORN)
        ready(out, program.pid)
        signal.pause()


def forked_descendant(inp: InputChannel, out: OutputChannel, kind: str) -> None:
    with telling(kind):
        pid = os.fork()
        if pid == 0:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            while True:
                signal.pause()
        ready(out, pid)
        os.waitpid(pid, 0)


async def nested(inp: InputChannel, out: OutputChannel, kind: str) -> None:
    inner = await run(deaf, kind, grace=GRACE)
    pid = await read_message(inner.input_channel)
    assert isinstance(pid, bytes)
    await write_message_async(out, b"%d %s" % (os.getpid(), pid))
    sum(range(10**12))


KINDS = {
    function.__name__: function
    for function in (
        idle, plain_idle, async_sleep, plain_sleep, deaf, waiting_for_program, stubborn_program,
        forked_descendant, busy_threads, nested, c_without_lock, c_with_lock, python_loop,
    )
}  # fmt: skip


async def start(kind: str) -> None:
    """Start a worker, and say the pids of it and its descendants once it is at work."""
    worker = await run(KINDS[kind], kind, grace=GRACE)
    workers.append(worker)
    pids = await read_message(worker.input_channel)
    assert isinstance(pids, bytes)
    say(pids.decode())


def start_in_a_thread(backend: str, kind: str) -> None:
    thread = threading.Thread(target=lambda: anyio.run(start, kind, backend=backend))
    thread.start()
    thread.join()


def end(way: str) -> None:
    if way == "raise":
        raise RuntimeError("the host fails")
    if way == "sys.exit":
        sys.exit(3)
    if way == "os._exit":
        os._exit(4)


async def obey(backend: str) -> None:
    while (words := sys.stdin.readline().split()) != ["return"]:
        match words:
            case ["start", kind]:
                await start(kind)
            case ["thread", kind]:
                start_in_a_thread(backend, kind)
            case ["close"]:
                await workers.pop().aclose()
            case ["storm"]:
                while True:
                    workers.append(await run(deaf, "deaf", grace=GRACE))
                    say("another")
            case ["children"]:
                try:
                    say(os.waitpid(-1, os.WNOHANG))
                except ChildProcessError:
                    say("none")
            case [way]:
                end(way)


def confess_exit_functions() -> None:
    """A worker that runs what its host registered for its own exit says so."""
    host = os.getpid()

    def confess() -> None:
        if os.getpid() != host:
            say("the host's exit function ran")

    atexit.register(confess)


def lose_host(*, and_guard: bool) -> None:
    """The next worker is orphaned before it has told the guard of itself, and asked the kernel."""
    die_with_host, host = child.die_with_host, os.getpid()

    def orphaned(birth: child.Birth, termination: Termination) -> None:
        if and_guard:
            wait_for_end_of(kill_guard())
        os.kill(host, signal.SIGKILL)
        while os.getppid() == host:
            time.sleep(0.001)
        die_with_host(birth, termination)

    child.die_with_host = orphaned


def kill_guard() -> int:
    host = b"%d" % os.getppid()
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        words = []
        with contextlib.suppress(OSError):  # it has ended
            words = entry.read_bytes().split(b"\0")
        if words[-2:-1] == [host] and b"guard_main" in words[-5]:
            pid = int(entry.parent.name)
            os.kill(pid, signal.SIGKILL)
            return pid
    raise AssertionError("no guard")


def wait_for_end_of(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        select.select([os.pidfd_open(pid)], [], [], 10)


def no_pidfd(pid: int, flags: int = 0) -> int:
    raise OSError(38, "Function not implemented")


def main(backend: str, *traits: str) -> None:
    if "no-executable" in traits:
        sys.executable = ""
    if "frozen" in traits:
        sys.frozen = True  # type: ignore[attr-defined]
    if "no-pidfd" in traits:
        os.pidfd_open = no_pidfd
    if {"orphan", "unguarded-orphan"} & set(traits):
        lose_host(and_guard="unguarded-orphan" in traits)
    confess_exit_functions()
    uvloop = {"use_uvloop": True} if backend == "uvloop" else {}
    loop = "trio" if backend == "trio" else "asyncio"
    anyio.run(obey, loop, backend=loop, backend_options=uvloop)


if __name__ == "__main__":
    main(*sys.argv[1:])

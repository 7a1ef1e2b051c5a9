"""The host's side of the guard: when it starts, what it does not hold, and when it cannot start."""

from __future__ import annotations

import contextlib
import errno
import gc
import os
import resource
import signal
import socket
import subprocess
import sys
import textwrap
import threading
from collections.abc import Iterator
from pathlib import Path

import anyio
import pytest

from forkwire import (
    InputChannel,
    OutputChannel,
    WorkerStartError,
    close_templates,
    read_message,
    run,
    sync,
    write_message,
)
from forkwire.process import guard, guard_main

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.skipif(sys.platform != "linux", reason="reads /proc"),
    pytest.mark.filterwarnings("ignore::forkwire.ForkThreadsWarning"),  # anyio's runner has one
]


async def echo(inp: InputChannel, out: OutputChannel, arg: object) -> None:
    async for message in inp:
        await write_message(out, message)


async def check_echo(**options: bool) -> None:
    async with await run(echo, None, **options) as worker:  # type: ignore[arg-type]
        await write_message(worker.output_channel, b"x")
        assert await read_message(worker.input_channel) == b"x"
    assert worker.returncode == 0


def open_files() -> dict[int, str]:
    found = {}
    for name in os.listdir("/proc/self/fd"):
        try:
            found[int(name)] = os.readlink(f"/proc/self/fd/{name}")
        except OSError:  # that of listdir itself
            continue
    for fd in (guard._connection, guard._table):
        found.pop(fd, None)
    return found


def children() -> list[int]:
    """Our children, zombies too."""
    found = ""
    for task in Path("/proc/self/task").iterdir():
        with contextlib.suppress(OSError):  # a thread that has ended
            found += (task / "children").read_text()
    return [int(pid) for pid in found.split()]


def cmdline(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


def guards() -> list[int]:
    """The guards of this process."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes().split(b"\0")
        except OSError:  # it has ended
            continue
        if words[-2:-1] == [b"%d" % os.getpid()] and words[-5].endswith(b"guard_main.py"):
            found.append(int(path.parent.name))
    return found


@pytest.fixture
def no_guard(monkeypatch: pytest.MonkeyPatch) -> Iterator[set[int]]:
    """As before the first worker, but for guards of other tests: those."""
    for name in ("_connection", "_table"):
        monkeypatch.setattr(guard, name, -1)
    monkeypatch.setattr(guard, "_inodes", None)
    strangers = set(guards())
    yield strangers
    for pid in set(guards()) - strangers:
        os.kill(pid, signal.SIGKILL)
    guard.close_ours()


async def check_cannot_start() -> WorkerStartError:
    """``run`` fails, and leaves neither a descriptor nor a process."""
    await anyio.lowlevel.checkpoint()
    before = open_files(), children()
    with pytest.raises(WorkerStartError) as caught:
        await run(echo, None)
    gc.collect()
    assert (open_files(), children()) == before
    return caught.value


@pytest.mark.usefixtures("no_guard")
@pytest.mark.parametrize("program", ["/bin/true", "/bin/false", "/nowhere/python"])
async def test_interpreter_that_does_not_start(
    monkeypatch: pytest.MonkeyPatch, program: str
) -> None:
    """An embedded one, or one that this user may not run: the guard is a fork then."""
    monkeypatch.setattr(sys, "executable", program)
    await check_echo()
    gone = [pid for pid in guards() if program.encode() in cmdline(pid)]
    assert not gone


@pytest.mark.usefixtures("no_guard")
async def test_guard_that_does_not_start(monkeypatch: pytest.MonkeyPatch) -> None:
    """``run`` says so, and why; nothing was forked."""
    monkeypatch.setattr(guard, "execute_guard", lambda theirs, table: None)
    monkeypatch.setattr(guard, "fork_guard", lambda theirs, table: None)
    error = await check_cannot_start()
    assert "guard" in str(error)
    assert "ended at once" in str(error)
    assert error.errno == errno.ECHILD


@pytest.mark.usefixtures("no_guard")
async def test_start_after_a_failed_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """A failure is not remembered."""
    with monkeypatch.context() as patch:
        patch.setattr(guard, "execute_guard", lambda theirs, table: None)
        patch.setattr(guard, "fork_guard", lambda theirs, table: None)
        await check_cannot_start()
    await check_echo()


async def test_fork_that_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    """``run`` says why, with the number of the system's error; nothing is left."""
    await check_echo()

    def refuse() -> int:
        raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))

    monkeypatch.setattr(os, "fork", refuse)
    assert (await check_cannot_start()).errno == errno.EAGAIN


@pytest.mark.usefixtures("no_guard")
@pytest.mark.parametrize("first", [True, False], ids=["first worker", "later worker"])
@pytest.mark.parametrize("capture", [True, False], ids=["stderr captured", "not captured"])
async def test_no_descriptor_is_left_to_take(capture: bool, first: bool) -> None:
    """Whatever number is left, ``run`` fails and leaves none, or its worker works or says why."""
    await check_echo(capture_stderr=capture)
    failed = 0
    answer: object = None
    while answer != b"x":
        if first:
            guard.close_ours()
        before = open_files(), children()
        try:
            with free_descriptors(failed):
                answer = await one_answer(capture)
        except WorkerStartError:
            answer = None
        failed += 1
        assert (open_files(), children()) == before
    assert failed > 3


async def one_answer(capture: bool) -> object:
    """Of an echo; the end of the file if the worker itself had too few descriptors."""
    async with await run(echo, None, capture_stderr=capture) as worker:
        await write_message(worker.output_channel, b"x")
        answer = await read_message(worker.input_channel)
    assert worker.returncode == int(answer != b"x")
    return answer


@contextlib.contextmanager
def free_descriptors(count: int) -> Iterator[None]:
    """Only ``count`` more descriptors can be opened."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(open_files()) + 20, hard))
    taken: list[int] = []
    try:
        with contextlib.suppress(OSError):
            while True:
                taken.append(os.open(os.devnull, os.O_RDONLY))
        for _ in range(count):
            os.close(taken.pop())
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        for fd in taken:
            os.close(fd)


@pytest.mark.usefixtures("no_guard")
async def test_host_with_many_open_files() -> None:
    """The descriptor of the guard may have a number above 1023."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < 1300:
        pytest.skip(f"at most {hard} descriptors")
    resource.setrlimit(resource.RLIMIT_NOFILE, (1300, hard))
    files = [os.open(os.devnull, os.O_RDONLY) for _ in range(1100)]
    try:
        await check_echo()
        await check_echo()
    finally:
        for fd in files:
            os.close(fd)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


async def test_host_that_ignores_its_children(no_guard: set[int]) -> None:
    """The guard starts although the status of what starts it is lost."""
    before = signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    try:
        async with await run(echo, None) as worker:
            await write_message(worker.output_channel, b"x")
            assert await read_message(worker.input_channel) == b"x"
    finally:
        signal.signal(signal.SIGCHLD, before)
    assert len(set(guards()) - no_guard) == 1


@pytest.mark.usefixtures("no_guard")
async def test_host_that_closes_every_descriptor() -> None:
    """Its numbers may be other files' by then: they stay open, and the next worker has a guard."""
    close_templates()  # of other tests: they are in the table too
    await check_echo()
    async with await run(echo, None) as worker:
        numbers = guard._connection, guard._table
        other = os.open(os.devnull, os.O_RDONLY)
        for number in numbers:
            os.dup2(other, number)
        os.close(other)
        await check_echo()
        assert not set(numbers) & {guard._connection, guard._table}
        assert worker.pid in guard_main.read(guard._table)
        for number in numbers:
            os.close(number)
    assert worker.returncode == 0
    assert guard_main.read(guard._table) == {}


@pytest.mark.usefixtures("no_guard")
async def test_default_timeout_of_sockets() -> None:
    """An application's ``socket.setdefaulttimeout`` is not the guard's."""
    socket.setdefaulttimeout(0.01)
    try:
        await check_echo()
        await check_echo()
    finally:
        socket.setdefaulttimeout(None)


async def test_guard_holds_nothing_of_its_host() -> None:
    """Its descriptors are /dev/null, its socket, the table, and one that watches the host."""
    read_end, write_end = os.pipe()
    os.set_inheritable(write_end, True)
    await check_echo()
    for pid in guards():
        files = Path(f"/proc/{pid}/fd")
        links = {int(path.name): os.readlink(path) for path in files.iterdir()}
        assert {links.pop(fd) for fd in range(3)} == {os.devnull}
        kinds = {link.partition("[")[0].partition(" ")[0] for link in links.values()}
        assert kinds <= {"socket:", "anon_inode:", "/memfd:forkwire"}
        assert os.readlink(f"/proc/{pid}/cwd") == "/"
    os.close(read_end)
    os.close(write_end)


def test_output_of_a_program_that_left_a_worker_ends_with_it() -> None:
    """Whoever reads the output of a host to its end does not wait for the guard."""
    script = """
        import os, anyio
        from forkwire import run

        async def f(inp, out, arg):
            await anyio.sleep_forever()

        async def main():
            worker = await run(f, None, grace=60)
            os._exit(5)

        anyio.run(main)
    """
    program = [sys.executable, "-c", textwrap.dedent(script)]
    done = subprocess.run(program, capture_output=True, text=True, timeout=30, check=False)
    assert (done.returncode, done.stdout) == (5, "")


async def be_host(inp: InputChannel, out: OutputChannel, arg: object) -> None:
    files = [open(os.devnull) for _ in range(30)]  # noqa: SIM115
    await check_echo()
    for file in files:
        os.fstat(file.fileno())
        file.close()
    await write_message(out, b"well")


@pytest.mark.parametrize("close_fds", [True, False])
async def test_worker_that_is_a_host(close_fds: bool) -> None:
    """It gets a guard of its own, and closes no descriptor that it did not open."""
    async with await run(be_host, None, close_fds=close_fds) as worker:
        assert await read_message(worker.input_channel) == b"well"


def fork_in_thread(inp: InputChannel, out: OutputChannel, backend: str) -> None:
    def start() -> None:
        anyio.run(check_echo, backend=backend)
        sync.write_message(out, b"well")

    thread = threading.Thread(target=start)
    thread.start()
    thread.join()


async def test_thread_of_a_worker_starts_a_worker(anyio_backend_name: str) -> None:
    """The lock that the host held while it forked is no lock of the worker's."""
    async with await run(fork_in_thread, anyio_backend_name) as worker:
        with anyio.fail_after(20):
            assert await read_message(worker.input_channel) == b"well"

"""``close_fds``: nothing of the host's stays open, and its memory is not searched for that."""

from __future__ import annotations

import ast
import os
import select
import socket
import sys
import tempfile
import weakref
from collections.abc import Callable
from typing import Any, Final

import anyio
import pytest

from forkwire import InputChannel, OutputChannel, run, sync, write_message
from forkwire.process.backend import BackendName

from .test_run_support import open_files, program, received, run_in

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.skipif(sys.platform != "linux", reason="reads /proc"),
    pytest.mark.filterwarnings("ignore::forkwire.ForkThreadsWarning"),
]

PATIENCE: Final = 20.0
ALL: Final[list[BackendName]] = ["asyncio", "uvloop", "trio"]


def plain(inp: InputChannel, out: OutputChannel, arg: object) -> None:
    """Tell what is open: own descriptors, then all."""
    files = open_files()
    sync.write_message(out, repr(([inp.fileno(), out.fileno()], files)).encode())
    sync.read_message(inp)


async def in_a_loop(inp: InputChannel, out: OutputChannel, arg: object) -> None:
    files = open_files()
    await write_message(out, repr(([inp.fileno(), out.fileno()], files)).encode())
    async for _ in inp:
        pass


@pytest.mark.parametrize("f", [plain, in_a_loop])
@pytest.mark.parametrize("backend", ALL)
async def test_nothing_of_the_hosts_is_behind_any_descriptor(
    f: Callable[..., Any], backend: BackendName
) -> None:
    """No file, socket or pipe, but those of 0 to 2 and ``arg``; whatever loop either side has."""
    one, other = socket.socketpair()
    given, others = os.pipe(), os.pipe()
    with (
        one,
        other,
        tempfile.NamedTemporaryFile() as file,
        select.epoll() as epoll,
        socket.create_server(("127.0.0.1", 0)) as server,
    ):
        epoll.register(one)
        kept = {0, 1, 2, given[1], server.fileno()}
        async with (
            await run(plain, None),
            await run(f, [given[1], server], close_fds=True, backend=backend) as worker,
        ):
            with anyio.fail_after(PATIENCE):
                own, files = ast.literal_eval((await received(worker)).decode())
            host = open_files()
    allowed = {link for fd, link in host.items() if fd in kept} | {os.devnull}
    allowed |= {link for fd, link in files.items() if fd in own}
    of_the_host = {link for link in host.values() if not link.startswith("anon_inode:")}
    assert file.name in of_the_host
    assert set(files.values()) & of_the_host <= allowed
    assert files[given[1]] == host[given[1]]
    if f is plain:  # it has no loop, so no poller of any kind
        assert set(files.values()) <= allowed
    for fd in given + others:
        os.close(fd)


MUCH_MEMORY = """
    lists = [[number] for number in range(2_000_000)]

    def private_dirty():
        with open("/proc/self/smaps_rollup") as file:
            (line,) = [line for line in file if line.startswith("Private_Dirty:")]
        return int(line.split()[1])

    def little(inp, out, arg):
        sync.write_message(out, b"%d" % private_dirty())

    def touching(inp, out, arg):
        for part in lists:
            pass
        sync.write_message(out, b"%d" % private_dirty())

    async def first_reply(f, close_fds):
        start = time.perf_counter()
        async with await run(f, None, close_fds=close_fds) as worker:
            size = int(await read_message(worker.input_channel))
            return time.perf_counter() - start, size

    async def main():
        await first_reply(little, True)  # and the guard is there
        for f, close_fds in ((little, True), (touching, False)):
            results = [await first_reply(f, close_fds) for _ in range(3)]
            print(min(seconds for seconds, _ in results), max(size for _, size in results))

    backend = sys.argv[1]
    uvloop = {"use_uvloop": True} if backend == "uvloop" else {}
    loop = "trio" if backend == "trio" else "asyncio"
    anyio.run(main, backend=loop, backend_options=uvloop)
"""


@pytest.mark.slow
@pytest.mark.parametrize("host", ALL)
def test_memory_of_the_host_is_not_touched(
    host: BackendName, record_property: Callable[[str, object], None]
) -> None:
    """Two million lists stay shared; the first reply does not wait for a look at each."""
    done = program(MUCH_MEMORY, host)
    assert (done.returncode, done.stderr) == (0, "")
    (seconds, size), (all_seconds, all_size) = [
        (float(seconds), int(size)) for seconds, size in map(str.split, done.stdout.splitlines())
    ]
    record_property("private_dirty_kb", size)
    record_property("first_reply_s", seconds)
    assert all_size > 80_000  # kB: what the lists take, so the measure measures
    assert size < 40_000
    assert seconds < all_seconds / 2


class Referent:
    pass


def refuse(*arguments: object) -> Any:
    raise ZeroDivisionError


# Not to be asked what it is.
Hostile: Any = type("Hostile", (), {"__class__": property(refuse), "__getattr__": refuse})


@pytest.mark.parametrize("f", [plain, in_a_loop])
async def test_objects_of_the_host_are_not_asked(f: Callable[..., Any]) -> None:
    """A dead proxy, and one whose class raises, may be anywhere in it."""
    referent = Referent()
    kept: list[Any] = [weakref.proxy(referent), Hostile()]
    del referent
    with pytest.raises(ReferenceError):
        bool(kept[0].anything)
    with pytest.raises(ZeroDivisionError):
        isinstance(kept[1], int)
    async with await run(f, None, close_fds=True, capture_stderr=True) as worker:
        with anyio.fail_after(PATIENCE):
            await received(worker)
            await worker.output_channel.aclose()
            assert await worker.wait() == 0
    assert len(kept) == 2


def forks(inp: InputChannel, out: OutputChannel, arg: object) -> None:
    """Tell what a child of ours has where we have four pipes."""
    numbers = [fd for _ in range(4) for fd in os.pipe()]
    ours = {fd: os.readlink(f"/proc/self/fd/{fd}") for fd in numbers}
    assert len(set(ours.values())) == 4
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            theirs = {fd: link for fd, link in open_files().items() if fd in ours}
            sync_ok = all(os.write(write_end, b"x") == 1 for write_end in numbers[1::2])
            sync_ok = sync_ok and all(os.read(read_end, 1) == b"x" for read_end in numbers[::2])
            status = 0 if theirs == ours and sync_ok else 2
        finally:
            os._exit(status)
    _, status = os.waitpid(pid, 0)
    sync.write_message(out, b"%d" % os.waitstatus_to_exitcode(status))


@pytest.mark.parametrize("close_fds", [True, False])
@pytest.mark.parametrize("host", ALL)
def test_a_fork_in_the_worker_inherits_its_descriptors(host: BackendName, close_fds: bool) -> None:
    """What the host's loop set up to be done at a fork closes none of the worker's own."""

    async def main() -> None:
        for _ in range(3):
            async with await run(forks, None, close_fds=close_fds) as worker:
                with anyio.fail_after(PATIENCE):
                    assert await received(worker) == b"0"
                    assert await worker.wait() == 0

    run_in(host, False, main)


@pytest.mark.parametrize("close_fds", [True, False])
@pytest.mark.parametrize("host", ALL)
def test_a_pool_of_multiprocessing_in_the_worker(host: BackendName, close_fds: bool) -> None:
    """Its processes are forks of the worker, and talk to it over pipes that it opened."""
    done = program(
        """
        import multiprocessing, warnings

        def f(inp, out, arg):
            warnings.simplefilter("ignore", DeprecationWarning)  # it forks beside its threads
            with multiprocessing.get_context("fork").Pool(2) as pool:
                result = pool.map(abs, range(-5, 0))
                pool.close()
                pool.join()
            sync.write_message(out, repr(result).encode())

        async def main():
            with anyio.fail_after(30):
                async with await run(f, None, close_fds=sys.argv[2] == "True") as worker:
                    print((await read_message(worker.input_channel)).decode())
                    print(await worker.wait())

        backend = sys.argv[1]
        uvloop = {"use_uvloop": True} if backend == "uvloop" else {}
        loop = "trio" if backend == "trio" else "asyncio"
        anyio.run(main, backend=loop, backend_options=uvloop)
        """,
        host,
        str(close_fds),
    )
    assert (done.stdout, done.stderr) == ("[5, 4, 3, 2, 1]\n0\n", "")

"""Which descriptors a worker has, and what closing them does."""

from __future__ import annotations

import _socket
import asyncio
import gc
import json
import mmap
import multiprocessing
import os
import select
import socket
import sys
import threading
import time
from collections.abc import AsyncGenerator, Callable, Iterable
from pathlib import Path
from typing import Any

import anyio
import pytest

from forkwire import EndOfFile, InputChannel, OutputChannel, read_message, run, sync, write_message
from forkwire.process import guard
from forkwire.process.loops import loop_descriptors

from .test_run_support import open_files, owned, program, received, until_readable

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.filterwarnings("ignore::forkwire.ForkThreadsWarning"),
]

# What stands in the place of a descriptor that had to go (O_PATH: good for nothing).
PLACEHOLDER = os.devnull


def echo(inp: InputChannel, out: OutputChannel, arg: object) -> None:
    for message in sync.messages(inp):
        sync.write_message(out, message)


def list_files(inp: InputChannel, out: OutputChannel, arg: object) -> None:
    """What the worker has open, itself excepted."""
    files = open_files()
    del files[inp.fileno()], files[out.fileno()]
    sync.write_message(out, json.dumps(files).encode())
    sync.read_message(inp)


async def list_files_async(inp: InputChannel, out: OutputChannel, arg: object) -> None:
    list_files(inp, out, arg)


async def files_of(f: Callable[..., object], arg: object = None, **options: Any) -> dict[int, str]:
    """What a worker that runs ``f`` has open."""
    async with await run(f, arg, **options) as worker:
        files = json.loads(await received(worker))
    return {int(fd): link for fd, link in files.items()}


def behind(fds: Iterable[int]) -> set[str]:
    """The files behind descriptors of this process."""
    files = open_files()
    return {files[fd] for fd in fds}


async def ends(worker: Any) -> None:
    """The worker reads the end of the file and ends, while others live."""
    await worker.output_channel.aclose()
    with anyio.fail_after(20):
        assert isinstance(await read_message(worker.input_channel), EndOfFile)
        assert await worker.wait() == 0


# -- siblings ------------------------------------------------------------------------------------


async def test_a_sibling_does_not_keep_a_pipe_open() -> None:
    """In whatever order workers are closed, each sees its end of the file at once."""
    for order in ([0, 1, 2], [2, 1, 0], [1, 0, 2]):
        workers = [await run(echo, None) for _ in range(3)]
        for index in order:
            await ends(workers[index])
        for worker in workers:
            await worker.aclose()


async def test_the_host_sees_a_workers_end_while_siblings_live() -> None:
    """A later sibling holds no writing end of an earlier one, nor the other way round."""
    first = await run(lambda i, o, a: sync.read_message(i), None)
    second = await run(echo, None)
    async with first, second:
        first.kill()
        with anyio.fail_after(20):
            assert isinstance(await read_message(first.input_channel), EndOfFile)
        await write_message(second.output_channel, b"alive")
        assert await received(second) == b"alive"


async def test_a_child_of_os_fork_does_not_keep_a_pipe_open() -> None:
    """The application's own fork holds no end, from whatever thread it forks."""

    def fork() -> None:
        pid = os.fork()
        if pid == 0:
            time.sleep(60)
            os._exit(0)
        pids.append(pid)

    pids: list[int] = []
    async with await run(echo, None) as worker:
        fork()
        if sys.version_info < (3, 12):  # later ones warn of such a fork, and warnings are errors
            thread = threading.Thread(target=fork)
            thread.start()
            thread.join()
        try:
            await ends(worker)
        finally:
            for pid in pids:
                os.kill(pid, 9)
                os.waitpid(pid, 0)


def test_multiprocessing_in_another_thread_does_not_keep_a_pipe_open() -> None:
    """Its fork context, used while workers are started and closed."""
    done = program(
        """
        import multiprocessing, warnings
        warnings.simplefilter("ignore", DeprecationWarning)
        warnings.simplefilter("ignore", ForkThreadsWarning)
        context = multiprocessing.get_context("fork")
        processes = []

        def start_processes():
            for _ in range(10):
                process = context.Process(target=time.sleep, args=(60,), daemon=True)
                process.start()
                processes.append(process)

        def f(inp, out, arg):
            assert isinstance(sync.read_message(inp), EndOfFile)

        async def main():
            starting = threading.Thread(target=start_processes)
            starting.start()
            for _ in range(10):
                async with await run(f, None, grace=10) as worker:
                    await worker.output_channel.aclose()
                    with anyio.fail_after(8):
                        assert isinstance(await read_message(worker.input_channel), EndOfFile)
                        assert await worker.wait() == 0
            starting.join()

        anyio.run(main)
        for process in processes:
            process.kill()
            process.join()
        print("done")
        """
    )
    assert (done.stdout, done.stderr) == ("done\n", "")


async def test_no_end_of_another_worker_is_in_the_child() -> None:
    """Pipes, pidfds and the guard's socket of the host: none of them is behind any descriptor."""
    async with await run(echo, None, capture_stderr=True), await run(echo, None):
        ours = behind(owned())
        assert len(ours) >= 6
        files = await files_of(list_files)
        assert ours.isdisjoint(set(files.values()) - {"anon_inode:[pidfd]"})
        assert "anon_inode:[pidfd]" not in files.values()


# -- the host's loop -----------------------------------------------------------------------------


@pytest.mark.parametrize("f", [list_files, list_files_async])
async def test_no_descriptor_of_the_hosts_loop_is_in_the_child(f: Any) -> None:
    """Its poller, its wake-up sockets, pipes and eventfds are nowhere; nothing else is missing."""
    loops = loop_descriptors()
    assert len(loops) >= 3
    host = open_files()
    files = await files_of(list_files)
    for fd in loops:
        assert files[fd] == PLACEHOLDER
    sockets_and_pipes = {host[fd] for fd in loops if host[fd].startswith(("socket", "pipe"))}
    assert sockets_and_pipes
    assert sockets_and_pipes.isdisjoint(files.values())
    not_inherited = loops | owned() | {guard._connection, guard._table}
    kept = {fd: link for fd, link in host.items() if fd not in not_inherited}
    kinds = {link for link in files.values() if link.startswith("anon_inode")}
    assert kinds <= set(kept.values())
    changed = {kept[fd] for fd in kept if files[fd] != kept[fd]}
    assert len(changed) <= 1  # libuv makes its lock, a pipe, anew in every child
    assert all(link.startswith("pipe") for link in changed)


def make_pair(kind: str) -> tuple[int, int]:
    """What is watched, and where to write to wake who watches it."""
    if kind == "pipe":
        return os.pipe()
    if kind == "eventfd":
        fd = os.eventfd(0)
        return fd, fd
    one, other = socket.socketpair()
    return one.detach(), other.detach()


@pytest.mark.parametrize("kind", ["pipe", "eventfd", "socket"])
async def test_what_the_hosts_loop_watches_is_inherited(kind: str) -> None:
    """A descriptor of the application's is the application's, also while its loop waits for it."""

    def f(inp: InputChannel, out: OutputChannel, fd: int) -> None:
        os.write(fd, b"\1\0\0\0\0\0\0\0")

    watched, written = make_pair(kind)
    async with anyio.create_task_group() as group:
        group.start_soon(until_readable, watched)
        await anyio.wait_all_tasks_blocked()
        await anyio.sleep(0.001)  # a turn of the loop: now its poller knows the descriptor
        async with await run(f, written) as worker:
            assert await worker.wait() == 0
    for fd in {watched, written}:
        os.close(fd)


async def test_the_hosts_loop_goes_on_undisturbed() -> None:
    """A worker that ends, or is killed, takes nothing out of the poller that it had inherited."""
    read_end, write_end = os.pipe()
    woken = 0
    for end in ("closed", "killed") * 3:
        async with anyio.create_task_group() as group:
            group.start_soon(until_readable, read_end)
            await anyio.wait_all_tasks_blocked()
            async with await run(echo, None) as worker:
                await write_message(worker.output_channel, b"hello")
                assert await received(worker) == b"hello"
                if end == "killed":
                    worker.kill()
            os.write(write_end, b"+")
        woken += len(os.read(read_end, 10))
    assert woken == 6
    os.close(read_end)
    os.close(write_end)


@pytest.mark.filterwarnings("ignore:Async generator:ResourceWarning")  # trio's own
@pytest.mark.parametrize("backend", ["asyncio", "uvloop", "trio"])
async def test_the_hosts_loop_may_be_told_things_in_the_child(backend: Any) -> None:
    """An inherited async generator is dropped there: its finaliser wakes a loop that is no more."""

    async def numbers() -> AsyncGenerator[int, None]:
        yield 1
        yield 2

    kept = [numbers()]
    assert await anext(kept[0]) == 1

    async def f(inp: InputChannel, out: OutputChannel, arg: object) -> None:
        sys.unraisablehook = lambda unraisable: os._exit(9)
        kept.clear()
        gc.collect()
        await write_message(out, b"fine")

    async with await run(f, None, backend=backend) as worker:
        assert await received(worker) == b"fine"
        assert await worker.wait() == 0
    await kept[0].aclose()


# -- finalisers ----------------------------------------------------------------------------------


def broken_files(count: int, drop: Callable[[], object]) -> int:
    """Open files, drop inherited objects, and count the files that stopped working."""
    files = [os.open("/proc/self/status", os.O_RDONLY) for _ in range(count)]
    drop()
    gc.collect()
    broken = 0
    for fd in files:
        try:
            os.read(fd, 1)
        except OSError:
            broken += 1
    return broken


async def test_inherited_objects_of_ours_close_nothing_when_finalised() -> None:
    """Channels, workers and loops of the host, dropped in the child: all its own files work."""
    kept: list[Any] = [await run(echo, None, capture_stderr=True) for _ in range(4)]
    workers = list(kept)

    def f(inp: InputChannel, out: OutputChannel, arg: object) -> None:
        def drop() -> None:
            workers.clear()
            for worker in kept:
                worker.input_channel.close()
                worker.output_channel.close()
            kept.clear()

        sync.write_message(out, b"%d" % broken_files(32, drop))

    async with await run(f, None) as worker:
        assert await received(worker) == b"0"
    for other in workers:
        await write_message(other.output_channel, b"still ours")
        assert await received(other) == b"still ours"
        await other.aclose()


def make_file() -> Any:
    return open(os.devnull, "w")


def make_scandir() -> Any:
    entries = os.scandir("/")
    next(entries)
    return entries


def make_mmap() -> Any:
    with open("/proc/self/exe", "rb") as file:
        return mmap.mmap(file.fileno(), 4096, access=mmap.ACCESS_READ)


OWNERS: dict[str, Callable[[], Any]] = {
    "file": make_file,
    "socket": socket.socketpair,
    "socket of C code": _socket.socket,
    "event loop": asyncio.new_event_loop,
    "mmap": make_mmap,
    "epoll": select.epoll,
    "scandir": make_scandir,
    "multiprocessing connection": multiprocessing.Pipe,
}


def close_all(thing: Any) -> None:
    for part in thing if isinstance(thing, tuple) else [thing]:
        part.close()


@pytest.mark.parametrize("frozen", [False, True], ids=["", "frozen"])
@pytest.mark.parametrize("make", OWNERS.values(), ids=OWNERS)
def test_with_close_fds_inherited_objects_close_nothing_when_finalised(
    make: Callable[[], Any], frozen: bool
) -> None:
    """Whoever owned a descriptor in the host, its finaliser does not hit the worker's files."""
    things = [make() for _ in range(8)]
    originals = list(things)

    def f(inp: InputChannel, out: OutputChannel, arg: object) -> None:
        def drop() -> None:
            things.clear()
            originals.clear()

        sync.write_message(out, b"%d" % broken_files(32, drop))

    async def main() -> None:
        async with await run(f, None, close_fds=True) as worker:
            assert await received(worker) == b"0"
            assert await worker.wait() == 0

    if frozen:
        gc.freeze()
    try:
        anyio.run(main)
    finally:
        gc.unfreeze()
        for thing in originals:
            close_all(thing)


# -- close_fds -----------------------------------------------------------------------------------


def real(files: dict[int, str]) -> dict[int, str]:
    return {fd: link for fd, link in files.items() if link != PLACEHOLDER}


def test_close_fds_leaves_the_standard_ones_its_own_and_args() -> None:
    """An int, an object with fileno(), or a flat list of them; nothing else."""

    async def main() -> None:
        for arg, kept in cases:
            files = await files_of(list_files, arg, close_fds=True)
            files = {fd: link for fd, link in files.items() if link != PLACEHOLDER or fd in kept}
            assert files.keys() - standard == kept - standard, arg

    with Path(os.devnull).open("rb") as one, socket.socket() as two, select.epoll() as three:
        read_end, write_end = os.pipe()
        standard = {0, 1, 2} & open_files().keys()
        cases: list[tuple[Any, set[int]]] = [
            (None, set()),
            (write_end, {write_end}),
            (two, {two.fileno()}),
            ([read_end, two, three], {read_end, two.fileno(), three.fileno()}),
            ((one, write_end), {one.fileno(), write_end}),
            ({write_end}, {write_end}),
            ("text", set()),
            (True, set()),
        ]
        anyio.run(main)
        os.close(read_end)
        os.close(write_end)


@pytest.mark.parametrize("arg", [10**12, 2**31 - 1, -7, 2**64, 999, [10**12, -1]])
async def test_close_fds_takes_an_arg_that_is_no_descriptor(arg: Any) -> None:
    """A number may be just a number: it names nothing that is open."""

    def f(inp: InputChannel, out: OutputChannel, got: object) -> None:
        sync.write_message(out, repr(got).encode())

    async with await run(f, arg, close_fds=True) as worker:
        assert await received(worker) == repr(arg).encode()
        assert await worker.wait() == 0


async def test_close_fds_works_with_a_closed_file_in_arg() -> None:
    """One whose fileno() raises or is -1 names nothing."""
    with Path(os.devnull).open() as file, socket.socket() as closed:
        pass
    async with await run(echo, [file, closed, sys.stdin], close_fds=True) as worker:
        await write_message(worker.output_channel, b"fine")
        assert await received(worker) == b"fine"


async def test_close_fds_async_on_every_backend() -> None:
    """The worker's own loop, threads and subprocesses work after it."""

    async def f(inp: InputChannel, out: OutputChannel, arg: object) -> None:
        await anyio.to_thread.run_sync(os.getpid)
        await anyio.run_process(["true"])
        await write_message(out, b"fine")

    for backend in ("asyncio", "uvloop", "trio"):
        async with await run(f, None, close_fds=True, backend=backend) as worker:
            assert await received(worker) == b"fine"
            assert await worker.wait() == 0


async def test_close_fds_in_a_worker_of_a_worker() -> None:
    """What the outer worker froze is found all the same."""
    files = [make_file() for _ in range(8)]
    originals = list(files)

    def inner(inp: InputChannel, out: OutputChannel, arg: object) -> None:
        def drop() -> None:
            files.clear()
            originals.clear()

        sync.write_message(out, b"%d" % broken_files(32, drop))

    async def outer(inp: InputChannel, out: OutputChannel, arg: object) -> None:
        async with await run(inner, None, close_fds=True) as worker:
            await write_message(out, await received(worker))

    async with await run(outer, None) as worker:
        assert await received(worker) == b"0"
    for file in originals:
        file.close()


def test_more_descriptors_than_select_can_take() -> None:
    """A host with thousands of files open starts workers, ends them, and hears of their ends."""
    done = program(
        """
        import resource
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        if hard < 2000:
            sys.exit("too low")
        resource.setrlimit(resource.RLIMIT_NOFILE, (2000, hard))

        def plain(inp, out, arg):
            for message in sync.messages(inp):
                sync.write_message(out, message)

        async def asynchronous(inp, out, arg):
            async for message in inp:
                await write_message(out, message)

        async def main():
            for f in (plain, asynchronous, plain, asynchronous):
                async with await run(f, None, capture_stderr=True) as worker:
                    await write_message(worker.output_channel, b"hello")
                    assert await read_message(worker.input_channel) == b"hello"
                    worker.terminate()
                    assert await worker.wait() == -15

        fds = [os.dup(0) for _ in range(1200)]
        for backend in ("asyncio", "trio"):
            anyio.run(main, backend=backend)
        """
    )
    assert "too low" in done.stderr or (done.returncode, done.stderr) == (0, "")

"""A handle that another process inherited is nobody's there: it refuses, and harms nothing."""

from __future__ import annotations

import ast
import gc
import os
import sys
import warnings
import weakref
from collections.abc import Callable, Coroutine
from typing import Any, Final

import anyio
import pytest

from forkwire import (
    InputChannel,
    OutputChannel,
    ProcessWorker,
    UsageError,
    read_message,
    run,
    sync,
    write_message,
)

from .test_run_support import open_files, received

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.skipif(sys.platform != "linux", reason="reads /proc"),
    pytest.mark.filterwarnings("ignore::forkwire.ForkThreadsWarning"),
]

PATIENCE: Final = 20.0

PLAIN: Final[dict[str, Callable[[ProcessWorker], object]]] = {
    "terminate": ProcessWorker.terminate,
    "kill": ProcessWorker.kill,
    "returncode": lambda worker: worker.returncode,
    "died": lambda worker: worker.died,
    "check_returncode": ProcessWorker.check_returncode,
}
AWAITED: Final[dict[str, Callable[[ProcessWorker], Coroutine[Any, Any, object]]]] = {
    "wait": ProcessWorker.wait,
    "aclose": ProcessWorker.aclose,
    "async with": lambda worker: leave(worker),
}


async def leave(worker: ProcessWorker) -> None:
    async with worker:
        pass


async def echo(inp: InputChannel, out: OutputChannel, arg: object) -> None:
    async for message in inp:
        await write_message(out, message)


def outcome(do: Callable[[], object]) -> str:
    """What came of it, if that is not what should."""
    try:
        return f"answered {do()!r}"
    except UsageError as error:
        return str(error)
    except BaseException as error:
        return repr(error)


def stepped(coroutine: Coroutine[Any, Any, object]) -> object:
    """Run it as far as it gets without an event loop."""
    try:
        return coroutine.send(None)
    except StopIteration as stop:
        return stop.value
    finally:
        coroutine.close()


def try_plain(worker: ProcessWorker) -> dict[str, str]:
    return {name: outcome(lambda do=do: do(worker)) for name, do in PLAIN.items()}  # type: ignore[misc]


def try_stepped(worker: ProcessWorker) -> dict[str, str]:
    return {name: outcome(lambda do=do: stepped(do(worker))) for name, do in AWAITED.items()}  # type: ignore[misc]


async def try_awaited(worker: ProcessWorker) -> dict[str, str]:
    found = {}
    for name, do in AWAITED.items():
        try:
            found[name] = f"answered {await do(worker)!r}"
        except UsageError as error:
            found[name] = str(error)
    return found


def check_refusals(found: dict[str, str], worker: ProcessWorker, elsewhere: int) -> None:
    """Each names the process that started the worker, and the one that may not touch it."""
    start = f"worker {worker.pid} belongs to process {os.getpid()}"
    accepted = {
        name: text
        for name, text in found.items()
        if not (text.startswith(start) and f"({elsewhere})" in text)
    }
    assert accepted == {}


async def check_unharmed(worker: ProcessWorker) -> None:
    """It answers, and its end is a good one."""
    with anyio.fail_after(PATIENCE):
        assert worker.returncode is None
        await write_message(worker.output_channel, b"hello")
        assert await read_message(worker.input_channel) == b"hello"
        await worker.aclose()
    assert worker.returncode == 0


def in_os_fork(do: Callable[[], object]) -> tuple[int, Any]:
    """The pid of a child of ``os.fork``, and the literal that ``do`` answers there."""
    read_end, write_end = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.write(write_end, repr(do()).encode())
        except BaseException as error:
            os.write(write_end, repr(repr(error)).encode())
        finally:
            os._exit(0)
    os.close(write_end)
    with open(read_end, "rb") as file:
        answer = file.read()
    os.waitpid(pid, 0)
    return pid, ast.literal_eval(answer.decode())


# -- in a worker that was forked later ----------------------------------------------------------


async def test_plain_worker_that_uses_another_workers_handle() -> None:
    """Every method and property that would touch the worker refuses."""

    def f(inp: InputChannel, out: OutputChannel, worker: ProcessWorker) -> None:
        sync.write_message(out, repr(try_plain(worker) | try_stepped(worker)).encode())

    worker = await run(echo, None)
    async with await run(f, worker) as other:
        with anyio.fail_after(PATIENCE):
            found = ast.literal_eval((await received(other)).decode())
            assert await other.wait() == 0
    assert found.keys() == PLAIN.keys() | AWAITED.keys()
    check_refusals(found, worker, other.pid)
    await check_unharmed(worker)


async def test_async_worker_that_uses_another_workers_handle() -> None:
    """So does what is awaited, at once."""

    async def f(inp: InputChannel, out: OutputChannel, worker: ProcessWorker) -> None:
        await write_message(out, repr(try_plain(worker) | await try_awaited(worker)).encode())

    worker = await run(echo, None)
    async with await run(f, worker) as other:
        with anyio.fail_after(PATIENCE):
            found = ast.literal_eval((await received(other)).decode())
            assert await other.wait() == 0
    assert found.keys() == PLAIN.keys() | AWAITED.keys()
    check_refusals(found, worker, other.pid)
    await check_unharmed(worker)


# -- in a child of os.fork ----------------------------------------------------------------------


async def test_child_of_os_fork_that_uses_a_handle() -> None:
    """It is no worker, and refused all the same."""
    worker = await run(echo, None)
    pid, found = in_os_fork(lambda: try_plain(worker) | try_stepped(worker))
    check_refusals(found, worker, pid)
    await check_unharmed(worker)


async def test_a_worker_that_ended_says_nothing_elsewhere() -> None:
    """What the host knows of its end is the host's to know."""
    async with await run(echo, None) as worker:
        pass
    assert worker.returncode == 0
    pid, found = in_os_fork(lambda: try_plain(worker))
    check_refusals(found, worker, pid)


# -- dropped ------------------------------------------------------------------------------------


def drop(handles: list[ProcessWorker]) -> tuple[list[str], list[str], bool]:
    """What is warned of and raised meanwhile, and whether the handle and its channels are gone."""
    raised: list[str] = []
    sys.unraisablehook = lambda unraisable: raised.append(repr(unraisable.exc_value))
    ghosts = [
        weakref.ref(part)
        for part in (handles[0], handles[0].input_channel, handles[0].output_channel)
    ]
    before = open_files()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        handles.clear()
        gc.collect()
    gone = all(ghost() is None for ghost in ghosts)
    return [str(one.message) for one in caught], raised, gone and open_files() == before


async def test_handle_dropped_in_a_worker() -> None:
    """No warning there, no file closed, nothing happens to the one that it is of."""

    def f(inp: InputChannel, out: OutputChannel, handles: list[ProcessWorker]) -> None:
        sync.write_message(out, repr(drop(handles)).encode())

    handles = [await run(echo, None)]
    async with await run(f, handles) as other:
        with anyio.fail_after(PATIENCE):
            assert ast.literal_eval((await received(other)).decode()) == ([], [], True)
            assert await other.wait() == 0
    await check_unharmed(handles[0])


async def test_handle_dropped_in_a_child_of_os_fork() -> None:
    """The same."""
    handles = [await run(echo, None)]
    _, found = in_os_fork(lambda: drop(handles))
    assert found == ([], [], True)
    await check_unharmed(handles[0])


# -- channels -----------------------------------------------------------------------------------


def close_channels(worker: ProcessWorker) -> bool:
    """Whether closing them leaves the files of this process as they were; placeholders are none."""
    before = open_files()
    for _ in range(2):
        worker.input_channel.close()
        worker.output_channel.close()
    after = open_files()
    return {fd for fd, link in before.items() if after.get(fd) != link} <= {
        fd for fd, link in before.items() if link == os.devnull
    }


def close_channels_over_own_files(worker: ProcessWorker) -> bool:
    """The same, where this process has closed their numbers and got them for files of its own."""
    channels = worker.input_channel, worker.output_channel
    numbers = [channel.fileno() for channel in channels]
    file = os.open(sys.executable, os.O_RDONLY)
    for number in numbers:
        os.dup2(file, number)
    link = os.readlink(f"/proc/self/fd/{file}")
    for channel in channels:
        channel.close()
    after = open_files()
    return all(after.get(number) == link for number in numbers)


CLOSINGS: Final = [
    close_channels,
    close_channels_over_own_files,
]


@pytest.mark.parametrize("close", CLOSINGS)
async def test_channels_closed_in_a_worker(close: Callable[[ProcessWorker], bool]) -> None:
    """They close no file of that process, and the host's go on."""

    def f(inp: InputChannel, out: OutputChannel, worker: ProcessWorker) -> None:
        sync.write_message(out, repr(close(worker)).encode())

    worker = await run(echo, None)
    async with await run(f, worker) as other:
        with anyio.fail_after(PATIENCE):
            found = await received(other)
            assert await other.wait() == 0
    await check_unharmed(worker)
    assert found == b"True"


@pytest.mark.parametrize("close", CLOSINGS)
async def test_channels_closed_in_a_child_of_os_fork(
    close: Callable[[ProcessWorker], bool],
) -> None:
    """The same."""

    def do() -> bool:
        return close(worker)

    worker = await run(echo, None)
    _, found = in_os_fork(do)
    await check_unharmed(worker)
    assert found is True

"""The seam to the loops: each of the three does what the base layer asks of it."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import threading
from typing import Any

import anyio
import pytest

from forkwire.process.backend import Backend, BackendName, Stop, current_backend, in_trio

from .test_channels_support import closing_fd, open_files, turns, until

pytestmark = pytest.mark.anyio


@pytest.fixture
def name(anyio_backend: tuple[str, dict[str, Any]]) -> BackendName:
    if anyio_backend[0] == "trio":
        return "trio"
    return "uvloop" if anyio_backend[1]["use_uvloop"] else "asyncio"


def run_in(backend: tuple[str, dict[str, Any]], function: Any) -> Any:
    return anyio.run(function, backend=backend[0], backend_options=backend[1])


async def current() -> Backend:
    return current_backend()


async def test_a_loop_is_recognised(name: BackendName) -> None:
    """By its name; in it, it is current and running."""
    backend = current_backend()
    assert backend.name == name
    assert backend.is_current()
    assert backend.is_running()
    assert in_trio() == (name == "trio")


def test_there_is_none_outside() -> None:
    """Without a loop there is a RuntimeError, and not a new loop."""
    with pytest.raises(RuntimeError, match="no running event loop"):
        current_backend()


def test_a_loop_that_is_over(anyio_backend: tuple[str, dict[str, Any]]) -> None:
    """It is neither current nor running; what it is asked to call is called at once."""
    backend = run_in(anyio_backend, current)
    calls: list[int] = []
    assert not backend.is_current()
    assert not backend.is_running()
    backend.run_soon(lambda: calls.append(1))
    backend.call(lambda: calls.append(2))
    assert calls == [1, 2]


def test_another_loop_is_not_this_one(anyio_backend: tuple[str, dict[str, Any]]) -> None:
    """Two runs of the same kind are told apart."""
    first = run_in(anyio_backend, current)

    async def look() -> bool:
        return bool(first.is_current()) or first.is_running()

    assert not run_in(anyio_backend, look)


async def test_a_loop_is_not_current_in_another_thread() -> None:
    """It runs, but not there."""
    backend = current_backend()

    def look() -> tuple[bool, bool]:
        return backend.is_current(), backend.is_running()

    assert await anyio.to_thread.run_sync(look) == (False, True)


@pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning")
async def test_a_fork_does_not_run_its_parents_loop() -> None:
    """In the child that loop is a thing of the past."""
    backend = current_backend()
    read_fd, write_fd = os.pipe()
    with closing_fd(read_fd, write_fd):
        pid = os.fork()
        if pid == 0:
            os.write(write_fd, b"01"[backend.is_running() :][:1])
            os._exit(0)
        os.waitpid(pid, 0)
        assert os.read(read_fd, 10) == b"0"


async def test_calling_from_another_thread() -> None:
    """``run_soon`` and ``call`` run the function in the loop's thread."""
    backend = current_backend()
    threads: list[int] = []

    def note() -> None:
        threads.append(threading.get_ident())

    await anyio.to_thread.run_sync(backend.run_soon, note)
    await anyio.to_thread.run_sync(backend.call, note)
    await until(lambda: len(threads) == 2)
    backend.call(note)
    assert threads == [threading.get_ident()] * 3


async def test_what_is_spawned_outlives_its_scope() -> None:
    """The caller's cancellation does not reach it, nor does the caller wait for it."""
    backend = current_backend()
    opened, done = anyio.Event(), anyio.Event()

    async def work() -> None:
        await opened.wait()
        done.set()

    with anyio.CancelScope() as scope:
        backend.spawn(work, "test")
        scope.cancel()
        await anyio.sleep(0)
    opened.set()
    await done.wait()


async def stopped(stop: Stop, how: str) -> None:
    """Stop watching, in one of the ways; return when that is done."""
    calls: list[int] = []
    if how == "here":
        stop(lambda: calls.append(1))
    else:
        await anyio.to_thread.run_sync(stop, lambda: calls.append(1))
    await until(lambda: calls)
    assert calls == [1]


@pytest.mark.parametrize("how", ["here", "another thread"])
async def test_watching_a_descriptor(how: str) -> None:
    """The callback comes while there is something to read, until it is stopped."""
    backend = current_backend()
    read_fd, write_fd = os.pipe()
    with closing_fd(read_fd, write_fd):
        calls: list[bytes] = []
        stop = backend.watch(read_fd, lambda: calls.append(os.read(read_fd, 1)))
        await turns(5)
        assert calls == []
        os.write(write_fd, b"ab")
        await until(lambda: calls == [b"a", b"b"])
        await stopped(stop, how)
        os.write(write_fd, b"c")
        await turns(20)
        assert calls == [b"a", b"b"]


async def test_a_thread_is_waited_for() -> None:
    """Its answer, or its exception, is the caller's."""
    backend = current_backend()
    assert await backend.in_thread(lambda: threading.get_ident()) != threading.get_ident()
    with pytest.raises(ZeroDivisionError):
        await backend.in_thread(lambda: 1 // 0)


async def test_a_cancelled_thread_is_waited_for() -> None:
    """When the scope is cancelled, the function has still ended before the caller goes on."""
    backend = current_backend()
    entered, opened = threading.Event(), threading.Event()
    done: list[int] = []

    def work() -> None:
        entered.set()
        opened.wait(20)
        done.append(1)

    async with anyio.create_task_group() as group:

        async def call() -> None:
            await backend.in_thread(work)

        group.start_soon(call)
        await until(entered.is_set)
        group.cancel_scope.cancel()
        opened.set()
    assert done == [1]


@pytest.mark.parametrize("anyio_backend", [("asyncio", {})], ids=["asyncio"])
async def test_a_natively_cancelled_thread_is_waited_for() -> None:
    """``Task.cancel``, several times, does not let go of it either."""
    backend = current_backend()
    entered, opened = threading.Event(), threading.Event()

    def work() -> None:
        entered.set()
        opened.wait(20)

    task = asyncio.ensure_future(backend.in_thread(work))
    await until(entered.is_set)
    for _ in range(3):
        task.cancel()
        await turns(3)
        assert not task.done()
    opened.set()
    with pytest.raises(asyncio.CancelledError):
        await task


@pytest.mark.parametrize("direction", ["readable", "writable"])
async def test_waiting_for_a_descriptor(direction: str) -> None:
    """It returns once the descriptor is ready, and leaves nothing registered."""
    backend = current_backend()
    read_fd, write_fd = os.pipe()
    with closing_fd(read_fd, write_fd):
        os.set_blocking(write_fd, False)
        before = open_files()
        if direction == "readable":
            wait, fd = backend.wait_readable, read_fd
        else:
            wait, fd = backend.wait_writable, write_fd
            os.write(write_fd, bytes(65536))
        for _ in range(2):
            with anyio.move_on_after(0.01) as scope:
                await wait(fd)
            assert scope.cancelled_caught
        async with anyio.create_task_group() as group:
            group.start_soon(wait, fd)
            await turns(3)
            if direction == "readable":
                os.write(write_fd, b"x")
            else:
                os.read(read_fd, 65536)
        assert open_files() == before


async def test_a_wait_for_room_can_be_ended() -> None:
    """By ``stop_waiting``, from a callback too, so that the descriptor can be closed."""
    backend = current_backend()
    read_fd, write_fd = os.pipe()
    with closing_fd(read_fd, write_fd):
        os.set_blocking(write_fd, False)
        os.write(write_fd, bytes(65536))
        over: list[int] = []

        async def wait() -> None:
            try:
                await backend.wait_writable(write_fd)
            except Exception:
                over.append(1)
            else:
                over.append(2)

        async with anyio.create_task_group() as group:
            group.start_soon(wait)
            await turns(3)
            assert not over
            backend.run_soon(lambda: backend.stop_waiting(write_fd))
        assert len(over) == 1
        backend.stop_waiting(write_fd)


def test_trio_is_not_loaded_for_asyncio() -> None:
    """A program that does not use trio does not pay for importing it."""
    source = (
        "import anyio, sys, forkwire\n"
        "from forkwire.process.backend import current_backend\n"
        "async def main(): return current_backend().name\n"
        "assert anyio.run(main) == 'asyncio'\n"
        "assert not {'trio', 'uvloop'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-W", "error", "-c", source], check=True, timeout=30)


def test_a_half_imported_trio_is_no_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another thread may be importing it at this moment."""
    monkeypatch.setitem(sys.modules, "trio", type(sys)("trio"))
    assert not in_trio()

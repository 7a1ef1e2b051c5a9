"""Which descriptors are the loop's, and what a forked child forgets."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
import traceback
from collections.abc import Callable

import anyio
import anyio.lowlevel
import pytest

from forkwire.process.backend import BackendName, current_backend, in_trio
from forkwire.process.loops import forget_running_loop, loop_descriptors

from .test_run_support import HOSTS, open_files, program, until_readable


def in_a_child(function: Callable[[], None]) -> int:
    """Fork here, call ``function`` there; the child's exit status."""
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            function()
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


@pytest.mark.parametrize("host", HOSTS)
def test_the_loops_descriptors_are_found_exactly(host: BackendName) -> None:
    """What was not open before the loop was, is the loop's; what it watches is not."""

    async def main() -> None:
        await anyio.sleep(0.001)
        new = open_files().keys() - before
        assert loop_descriptors() == new
        a, b = socket.socketpair()
        with a, b:
            async with anyio.create_task_group() as group:
                group.start_soon(until_readable, a.fileno())
                await anyio.wait_all_tasks_blocked()
                assert loop_descriptors() == new
                group.cancel_scope.cancel()

    anyio.run(anyio.lowlevel.checkpoint, **HOSTS[host])  # libuv opens some for the whole process
    before = set(open_files())
    anyio.run(main, **HOSTS[host])


def test_without_a_loop_there_are_none() -> None:
    """Nothing is found, and forgetting does no harm."""
    assert loop_descriptors() == set()
    forget_running_loop()
    anyio.run(anyio.lowlevel.checkpoint)


@pytest.mark.parametrize("child", HOSTS)
@pytest.mark.parametrize("host", HOSTS)
def test_a_forked_child_that_forgets_may_run_any_loop(
    host: BackendName, child: BackendName
) -> None:
    """Without forgetting, the same is refused."""

    def run_another() -> None:
        async def main() -> None:
            await anyio.sleep(0)
            assert current_backend().name == child

        with pytest.raises(RuntimeError):
            anyio.run(main, **HOSTS[child])
        forget_running_loop()
        signal.set_wakeup_fd(-1)
        assert not in_trio()
        with pytest.raises(RuntimeError):
            current_backend()
        assert sys.get_asyncgen_hooks() == (None, None)
        anyio.run(main, **HOSTS[child])

    async def main() -> None:
        async with anyio.create_task_group():
            assert in_a_child(run_another) == 0
        assert current_backend().name == host

    anyio.run(main, **HOSTS[host])


def test_the_loop_of_the_host_is_not_the_childs_current_one() -> None:
    """``asyncio.get_event_loop`` never hands out a loop that belongs to another process."""

    def look() -> None:
        forget_running_loop()
        try:
            loop = asyncio.get_event_loop()
        except RuntimeError:
            return
        assert not loop.is_running()

    async def main() -> None:
        assert in_a_child(look) == 0

    anyio.run(main)


def test_nothing_is_imported_for_it() -> None:
    """Where trio, sniffio and uvloop were not imported, forgetting does not do so."""
    done = program(
        """
        from forkwire.process.loops import forget_running_loop, loop_descriptors

        async def main():
            loop_descriptors()
            forget_running_loop()
            print({"trio", "uvloop"} & set(sys.modules))
            os._exit(sys.stdout.flush() or 0)

        import asyncio
        asyncio.run(main())
        """
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "set()\n", "")

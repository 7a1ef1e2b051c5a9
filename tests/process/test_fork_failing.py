"""When the system refuses: a clear error, nothing left open, nothing left running."""

from __future__ import annotations

import errno
import os

import anyio
import pytest

from forkwire import InputChannel, OutputChannel, WorkerError, WorkerStartError, run, sync
from forkwire.process.loop_backends import AsyncioBackend, TrioBackend

from .test_run_support import is_gone, open_files, owned, program, received

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.filterwarnings("ignore::forkwire.ForkThreadsWarning"),
]


def say(inp: InputChannel, out: OutputChannel, arg: bytes) -> None:
    sync.write_message(out, arg)


async def works() -> None:
    async with await run(say, b"works") as worker:
        assert await received(worker) == b"works"
    assert worker.returncode == 0


def refuse(number: int) -> int:
    raise OSError(number, os.strerror(number))


async def test_a_fork_that_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """WorkerStartError with the errno, no descriptor more than before, and the next one works."""
    await works()
    before = open_files(), owned()
    with monkeypatch.context() as patch:
        patch.setattr(os, "fork", lambda: refuse(errno.EAGAIN))
        with pytest.raises(WorkerStartError, match="could not be started") as caught:
            await run(say, b"", capture_stderr=True)
    assert caught.value.errno == errno.EAGAIN
    assert isinstance(caught.value, (OSError, WorkerError))
    assert (open_files(), owned()) == before
    await works()


async def test_a_worker_that_cannot_be_watched(monkeypatch: pytest.MonkeyPatch) -> None:
    """With its stderr captured it is ended; in any case it is reaped, and nothing is left."""
    await works()
    before = open_files(), owned()
    pids: list[int] = []
    fork = os.fork

    def noted_fork() -> int:
        pids.append(fork())
        return pids[-1]

    with monkeypatch.context() as patch:
        patch.setattr(os, "fork", noted_fork)
        for backend in (AsyncioBackend, TrioBackend):
            patch.setattr(backend, "watch", lambda *arguments: refuse(errno.ENOSPC))
        with pytest.raises(WorkerStartError) as caught:
            await run(say, b"", capture_stderr=True)
        assert caught.value.errno == errno.ENOSPC
        del caught
        worker = await run(say, b"works")
        await anyio.wait_all_tasks_blocked()
    with anyio.fail_after(20):
        while not all(map(is_gone, pids)):
            await anyio.sleep(0.001)
    assert await received(worker) == b"works"
    await worker.aclose()
    assert worker.returncode == 0
    await works()
    assert (open_files(), owned()) == before


def test_no_descriptor_is_left_at_any_step() -> None:
    """From none to just enough: each refusal is one WorkerStartError, and leaves nothing."""
    done = program(
        """
        import errno, resource

        def f(inp, out, arg):
            sync.write_message(out, b"works")

        def count():
            return len(os.listdir("/proc/self/fd")) - 1

        async def attempt(spare):
            fillers = []
            soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
            resource.setrlimit(resource.RLIMIT_NOFILE, (100, hard))
            try:
                while True:
                    fillers.append(os.dup(0))
            except OSError:
                for _ in range(spare):
                    os.close(fillers.pop())
            try:
                before = os.listdir("/proc/self/fd") if spare else None
                worker = await run(f, None, capture_stderr=True)
            except WorkerStartError as error:
                worker = None
                assert error.errno == errno.EMFILE, error
                if spare:
                    assert os.listdir("/proc/self/fd") == before
            finally:
                for filler in fillers:
                    os.close(filler)
                resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
            if worker is None:
                return False
            async with worker:
                await worker.wait()
            return True

        async def main():
            assert not await attempt(0)  # no guard yet
            async with await run(f, None) as worker:
                assert await read_message(worker.input_channel) == b"works"
            refused = 0
            before = count()
            for spare in range(30):
                if await attempt(spare):
                    break
                refused += 1
                assert count() == before, (spare, before, count())
            assert 5 < refused < 30, refused
            async with await run(f, None) as worker:
                assert await read_message(worker.input_channel) == b"works"
            try:
                os.waitpid(-1, 0)
            except ChildProcessError:
                print("nobody is left")

        anyio.run(main, backend=sys.argv[1])
        """,
        "asyncio",
    )
    assert (done.stdout, done.stderr) == ("nobody is left\n", "")


def test_too_many_processes() -> None:
    """An ordinary user at its limit: EAGAIN from the system itself."""
    if os.geteuid() == 0:
        pytest.skip("root has no such limit")
    done = program(
        """
        import resource

        async def main():
            async with await run(lambda inp, out, arg: None, None):
                pass
            resource.setrlimit(resource.RLIMIT_NPROC, (1, 1))
            try:
                await run(lambda inp, out, arg: None, None)
            except WorkerStartError as error:
                print(error.errno)

        anyio.run(main)
        """
    )
    assert (done.stdout, done.stderr) == (f"{errno.EAGAIN}\n", "")

"""A worker is ended and reaped however rudely its host is treated, or behaves, while it lives."""

from __future__ import annotations

import asyncio
import gc
import math
import os
import select
import signal
import sys
import time
from collections.abc import Callable
from typing import Any, Final

import anyio
import pytest

from forkwire import (
    InputChannel,
    OutputChannel,
    ProcessWorker,
    UsageError,
    run,
    sync,
    write_message,
)
from forkwire.process.backend import BackendName

from .test_run_support import is_gone, program, received, run_in

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.filterwarnings("ignore::forkwire.ForkThreadsWarning"),
]

GRACE: Final = 0.3
SLACK: Final = 10.0  # seconds, on a loaded machine
PATIENCE: Final = 20.0

NATIVE: Final[list[BackendName]] = ["asyncio", "uvloop"]
ALL: Final[list[BackendName]] = ["asyncio", "uvloop", "trio"]

linux = pytest.mark.skipif(sys.platform != "linux", reason="asks the guard, and pidfds")


def sleeps(inp: InputChannel, out: OutputChannel, arg: object) -> None:
    sync.write_message(out, b"ready")
    time.sleep(30)


def stubborn(inp: InputChannel, out: OutputChannel, arg: object) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    sync.write_message(out, b"ready")
    time.sleep(30)


def echo(inp: InputChannel, out: OutputChannel, arg: object) -> None:
    for message in sync.messages(inp):
        sync.write_message(out, message)


# -- native cancellations -----------------------------------------------------------------------


@pytest.mark.parametrize(("f", "code"), [(sleeps, -15), (stubborn, -9)])
@pytest.mark.parametrize(("times", "at_once"), [(1, False), (2, False), (3, False), (3, True)])
@pytest.mark.parametrize("host", NATIVE)
def test_a_task_cancelled_again_and_again_still_reaps(
    host: BackendName, times: int, at_once: bool, f: Any, code: int
) -> None:
    """``Task.cancel`` does not hurry the closing, and comes after it."""

    async def main() -> None:
        workers: list[ProcessWorker] = []
        entered = anyio.Event()

        async def use() -> None:
            async with await run(f, None, grace=GRACE) as worker:
                assert await received(worker) == b"ready"
                workers.append(worker)
                entered.set()
                await anyio.sleep_forever()

        task = asyncio.get_running_loop().create_task(use())
        with anyio.fail_after(PATIENCE):
            await entered.wait()
            start = time.monotonic()
            for _ in range(times):
                task.cancel()
                if not at_once:  # the next one finds it in the middle of closing
                    await anyio.wait_all_tasks_blocked()
            await asyncio.wait([task])
        took = time.monotonic() - start
        assert task.cancelled()
        assert is_gone(workers[0].pid)
        assert workers[0].returncode == code
        assert GRACE * (1 if code == -15 else 2) <= took < 3 * GRACE + SLACK

    run_in(host, False, main)


ENDING_LOOP = """
    def sleeps(inp, out, arg):
        if arg == "stubborn":
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
        sync.write_message(out, b"ready")
        time.sleep(30)

    async def use(ready):
        async with await run(sleeps, kind, grace=0.3) as worker:
            workers.append(worker)
            await read_message(worker.input_channel)
            ready.set()
            await anyio.sleep_forever()

    async def main():
        ready = anyio.Event()
        task = asyncio.create_task(use(ready))
        await ready.wait()
        if moment == "closing":
            task.cancel()
            await anyio.wait_all_tasks_blocked()

    import asyncio
    host, kind, moment, after = sys.argv[1:]
    workers = []
    factory = None
    if host == "uvloop":
        import uvloop
        factory = uvloop.new_event_loop
    with asyncio.Runner(loop_factory=factory) as runner:
        runner.run(main())
    pid = workers[0].pid
    if after == "go on":
        deadline = time.monotonic() + 15
        while True:
            try:
                os.kill(pid, 0)
            except ProcessLookupError:
                break
            assert time.monotonic() < deadline
            time.sleep(0.002)
        print(workers[0].returncode)
    print(time.monotonic())
"""


@pytest.mark.parametrize("after", ["end", "go on"])
@pytest.mark.parametrize("moment", ["inside", "closing"])
@pytest.mark.parametrize("kind", ["meek", "stubborn"])
@pytest.mark.parametrize("host", NATIVE)
def test_loop_that_ends_with_the_task_pending(
    host: str, kind: str, moment: str, after: str
) -> None:
    """``asyncio.run`` cancels all tasks, the closing too: the worker is gone soon, in silence."""
    done = program(ENDING_LOOP, host, kind, moment, after)
    # What it printed was heard to the end of the file: the worker, which inherits it, is gone.
    left = time.monotonic()
    assert (done.returncode, done.stderr) == (0, "")
    *codes, ended = done.stdout.split()
    if after != "end":
        assert codes == ["-9" if kind == "stubborn" else "-15"]
    assert left - float(ended) < 3 * GRACE + SLACK


# -- the worker's process group -----------------------------------------------------------------


def leave_group(inp: InputChannel, host: int) -> None:
    sync.read_message(inp)  # the host, too, puts it into a group of its own, before it writes
    os.setpgid(0, os.getpgid(host))


def leaves_its_group(inp: InputChannel, out: OutputChannel, host: int) -> None:
    leave_group(inp, host)
    stubborn(inp, out, None)


async def test_a_worker_that_left_its_group_is_ended() -> None:
    """It is signalled by its number, its host's group is not."""
    async with await run(leaves_its_group, os.getpid(), grace=GRACE) as worker:
        with anyio.fail_after(PATIENCE):
            await write_message(worker.output_channel, b"go")
            assert await received(worker) == b"ready"
        assert os.getpgid(worker.pid) == os.getpgrp() != worker.pid
        start = time.monotonic()
    assert worker.returncode == -signal.SIGKILL
    assert is_gone(worker.pid)
    assert 2 * GRACE <= time.monotonic() - start < 3 * GRACE + SLACK


@pytest.mark.parametrize("end", [ProcessWorker.terminate, ProcessWorker.kill])
async def test_a_worker_that_left_its_group_is_signalled(
    end: Callable[[ProcessWorker], None],
) -> None:
    """By ``terminate`` and ``kill``."""

    def f(inp: InputChannel, out: OutputChannel, host: int) -> None:
        leave_group(inp, host)
        sleeps(inp, out, None)

    async with await run(f, os.getpid(), grace=PATIENCE) as worker:
        with anyio.fail_after(PATIENCE):
            await write_message(worker.output_channel, b"go")
            assert await received(worker) == b"ready"
            end(worker)
            assert await worker.wait() == (-15 if end is ProcessWorker.terminate else -9)


@linux
def test_a_worker_that_left_its_group_does_not_outlive_a_killed_host() -> None:
    """Nor does it when it ignores SIGTERM: the guard kills it after the grace."""
    done = program(
        """
        def f(inp, out, host):
            sync.read_message(inp)
            os.setpgid(0, os.getpgid(host))
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            sync.write_message(out, b"ready")
            time.sleep(1000)

        async def main():
            worker = await run(f, os.getpid(), grace=0.3)
            await write_message(worker.output_channel, b"go")
            await read_message(worker.input_channel)
            assert os.getpgid(worker.pid) == os.getpgrp()
            print(time.monotonic(), flush=True)
            os.kill(os.getpid(), signal.SIGKILL)

        anyio.run(main)
        """,
        start_new_session=True,
    )
    took = time.monotonic() - float(done.stdout)  # to the end of the stdout that it inherits
    assert (done.returncode, done.stderr) == (-signal.SIGKILL, "")
    assert GRACE <= took < GRACE + SLACK


# -- a host that executes, and one that closes everything ---------------------------------------

EXECUTES = """
    import itertools

    def python_loop(inp, out, arg):
        os.nice(19)
        sync.write_message(out, b"ready")
        while True:
            pass

    def in_c(inp, out, arg):
        os.nice(19)
        # All in C: once it is ready, no handler runs.
        say = map(os.write, [out.fileno()], [b"\\5\\0\\0\\0ready"])
        sum(itertools.chain(say, range(10**12)))

    def deaf(inp, out, arg):
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        sync.write_message(out, b"ready")
        while True:
            signal.pause()

    async def main():
        workers = [await run(f, None, grace=0.5) for f in (python_loop, in_c, deaf)]
        for worker in workers:
            await read_message(worker.input_channel)
        arguments = [str(time.monotonic()), *[str(worker.pid) for worker in workers]]
        os.execv(sys.executable, [sys.executable, "-I", "-S", "-c", NEXT, *arguments])

    # They are its children still.
    NEXT = '''if True:
        import os, select, signal, sys, time
        start = float(sys.argv[1])
        for pid in map(int, sys.argv[2:]):
            code = "alive"
            if select.select([os.pidfd_open(pid)], [], [], 15)[0]:
                code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
            else:
                os.kill(pid, signal.SIGKILL)
            print(code, time.monotonic() - start)
    '''
    backend = sys.argv[1]
    uvloop = {"use_uvloop": True} if backend == "uvloop" else {}
    loop = "trio" if backend == "trio" else "asyncio"
    anyio.run(main, backend=loop, backend_options=uvloop)
"""


@linux
@pytest.mark.parametrize("host", ALL)
def test_workers_do_not_outlive_a_host_that_executes_another_program(host: str) -> None:
    """The guard ends them, busy or deaf, though the process and its number live on."""
    done = program(EXECUTES, host)
    assert (done.returncode, done.stderr) == (0, "")
    lines = [line.split() for line in done.stdout.splitlines()]
    assert [code for code, _ in lines] == ["-15", "-9", "-9"]
    assert all(float(seconds) < 0.5 + 1 for _, seconds in lines), lines


@linux
def test_a_host_that_closes_every_descriptor_keeps_its_workers() -> None:
    """Also the guard's: they live on until it ends, and no longer."""
    done = program(
        """
        def deaf(inp, out, arg):
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            sync.write_message(out, b"ready")
            while True:
                signal.pause()

        async def main():
            global worker
            worker = await run(deaf, None, grace=0.1)
            await read_message(worker.input_channel)

        anyio.run(main)
        os.closerange(3, 256)
        pidfd = os.pidfd_open(worker.pid)
        import select
        lives = not select.select([pidfd], [], [], 1)[0]
        print(lives, worker.returncode, time.monotonic(), flush=True)
        os.kill(os.getpid(), signal.SIGKILL)
        """
    )
    lives, code, ended = done.stdout.split()
    took = time.monotonic() - float(ended)
    assert (lives, code, done.returncode, done.stderr) == ("True", "None", -9, "")
    assert took < 0.1 + SLACK


# -- the grace ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "grace", [10**400, 10**5000, -1, -0.001, math.nan, math.inf, -math.inf, "2", None, 1j],
    ids=lambda grace: f"{type(grace).__name__}{str(grace)[:6] if grace != 10**5000 else 'huge'}",
)  # fmt: skip
async def test_a_grace_that_is_no_time_is_refused(grace: Any) -> None:
    """Before anything is forked."""
    with pytest.raises(UsageError, match="grace is a number of seconds"):
        await run(echo, None, grace=grace)


@pytest.mark.parametrize("grace", [0, 0.0, 1, 1e9, 10**9])
async def test_the_least_and_the_longest_grace(grace: float) -> None:
    """A worker lives and ends with them as with any other."""
    async with await run(echo, None, grace=grace) as worker:
        with anyio.fail_after(PATIENCE):
            await write_message(worker.output_channel, b"hello")
            assert await received(worker) == b"hello"
            worker.output_channel.close()
            assert await worker.wait() == 0


async def test_closing_with_the_longest_grace() -> None:
    """A worker that reads its end of the file is not waited for any longer than it lives."""
    worker = await run(echo, None, grace=1e9)
    with anyio.fail_after(PATIENCE, shield=True):
        await worker.aclose()
    assert worker.returncode == 0


# -- between loops ------------------------------------------------------------------------------


def ends_at_the_end_of_its_input(inp: InputChannel, out: OutputChannel, arg: object) -> None:
    sync.read_message(inp)
    sys.exit(7)


def ended_after_its_loop(host: BackendName) -> ProcessWorker:
    """A worker that ended when its loop was over: a zombie."""

    async def main() -> ProcessWorker:
        return await run(ends_at_the_end_of_its_input, None, grace=PATIENCE)

    worker = run_in(host, False, main)
    worker.output_channel.close()
    if hasattr(os, "pidfd_open"):
        pidfd = os.pidfd_open(worker.pid)
        assert select.select([pidfd], [], [], PATIENCE)[0]
        os.close(pidfd)
    os.waitid(os.P_PID, worker.pid, os.WEXITED | os.WNOWAIT)
    return worker


@pytest.mark.parametrize("second", ALL)
@pytest.mark.parametrize("first", ALL)
def test_the_next_run_reaps_what_ended_between_loops(
    first: BackendName, second: BackendName
) -> None:
    """No zombie stays once another worker is started, in whatever loop."""

    async def main() -> None:
        async with await run(echo, None):
            assert is_gone(worker.pid)

    worker = ended_after_its_loop(first)
    assert not is_gone(worker.pid)
    run_in(second, False, main)
    assert worker.returncode == 7
    worker.input_channel.close()


@pytest.mark.parametrize("host", ALL)
def test_looking_at_the_handle_reaps_what_ended_between_loops(host: BackendName) -> None:
    """``returncode`` and ``died`` need no loop."""
    worker = ended_after_its_loop(host)
    assert worker.returncode == 7
    assert is_gone(worker.pid)
    other = ended_after_its_loop(host)
    died = other.died
    assert died is not None
    assert died.exit_code == 7
    assert is_gone(other.pid)


@pytest.mark.parametrize("host", ALL)
def test_dropping_the_handle_reaps_what_ended_between_loops(host: BackendName) -> None:
    """Without a warning: there is nothing left to close."""
    worker = ended_after_its_loop(host)
    pid = worker.pid
    worker.input_channel.close()
    del worker
    gc.collect()
    assert is_gone(pid)


@pytest.mark.parametrize("how", ["look", "run", "wait"])
@pytest.mark.parametrize("host", ALL)
def test_a_status_that_was_lost_between_loops(host: BackendName, how: str) -> None:
    """Another part of the program waited for it: 255, and that is said."""
    worker = ended_after_its_loop(host)
    assert os.waitpid(worker.pid, 0)[0] == worker.pid

    async def main() -> None:
        if how == "run":
            async with await run(echo, None):
                pass
        elif how == "wait":
            with anyio.fail_after(PATIENCE):
                assert await worker.wait() == 255

    run_in(host, False, main)
    assert worker.returncode == 255
    died = worker.died
    assert died is not None
    assert "something else" in died.reason
    worker.input_channel.close()


# -- signal handlers that raise -----------------------------------------------------------------

INTERRUPTED = """
    import gc
    from forkwire.process import guard, guard_main, worker as worker_module

    mine = TimeoutError("too slow")

    def too_slow(number, frame):
        raise mine

    async def f(inp, out, arg):
        await anyio.sleep_forever()

    def interrupting(function, where):
        def call(*arguments, **more):
            if where == "before":
                signal.raise_signal(signal.SIGALRM)
            result = function(*arguments, **more)
            if where == "after" and result != 0:
                signal.raise_signal(signal.SIGALRM)
            return result
        return call

    async def main():
        if "guard" not in moment:
            async with await run(f, None) as worker:
                worker.kill()
            del worker
        before = len(os.listdir("/proc/self/fd"))
        module, name = {
            "fork": (os, "fork"),
            "pipes": (worker_module, "open_ends"),
            "table": (guard, "table_copy"),
            "guard's connection": (guard, "connection"),
            "guard's start": (os, "posix_spawn"),
            "guard's answer": (guard_main, "readable"),
        }[moment]
        function = getattr(module, name)
        signal.signal(signal.SIGALRM, too_slow)
        setattr(module, name, interrupting(function, where))
        try:
            await run(f, None, grace=0.1)
        except BaseException as error:
            print("mine" if error is mine else repr(error))
        setattr(module, name, function)
        gc.collect()
        await anyio.sleep(0)
        kept = len(os.listdir("/proc/self/fd")) - before  # the guard may be there by now
        print(kept if kept != 2 or "guard" not in moment else 0, guard._workers)
        try:
            os.waitpid(-1, 0)
        except ChildProcessError:
            print("no child is left")

    backend, moment, where = sys.argv[1:]
    uvloop = {"use_uvloop": True} if backend == "uvloop" else {}
    loop = "trio" if backend == "trio" else "asyncio"
    anyio.run(main, backend=loop, backend_options=uvloop)
"""


@linux
@pytest.mark.parametrize("where", ["before", "after"])
@pytest.mark.parametrize(
    "moment",
    ["fork", "pipes", "table", "guard's connection", "guard's start", "guard's answer"],
)
@pytest.mark.parametrize("host", ALL)
def test_a_handler_that_raises_an_oserror(host: str, moment: str, where: str) -> None:
    """A timeout's own exception comes out of ``run``, not one of ours; nothing is left."""
    done = program(INTERRUPTED, host, moment, where)
    assert (done.stdout, done.stderr) == ("mine\n0 {}\nno child is left\n", "")

"""What must not go wrong at the edges of a worker's life, in odd surroundings."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import signal
import sys
import tempfile
import time
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import anyio
import pytest
import trio
import trio.testing
import uvloop  # noqa: F401  first imported in a worker it would find another set_wakeup_fd

from forkwire import InputChannel, OutputChannel, read_message, run, sync, write_message
from forkwire.process.backend import BackendName

from .test_child_terminal import terminal
from .test_run_support import HOSTS, program, received, run_in, until_asleep

pytestmark = [
    pytest.mark.filterwarnings("ignore::forkwire.ForkThreadsWarning"),
    # On 3.13 a worker that was not forked on the main thread has a thread that hears SIGTERM.
    pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning"),
]

F = Callable[[InputChannel, OutputChannel, Any], Any]
TERMINATED: Final = -signal.SIGTERM
ENDLESS: Final = 25  # seconds; the worker is given less

kinds: Final = pytest.mark.parametrize("kind", ["plain", *HOSTS])
anywhere: Final = pytest.mark.parametrize(
    "thread", [False, True], ids=["main-thread", "other-thread"]
)


def of_kind(kind: str, body: Callable[[InputChannel, OutputChannel], None]) -> F:
    """An ``f`` that is ``body``."""

    def plain(inp: InputChannel, out: OutputChannel, arg: object) -> None:
        body(inp, out)

    async def is_async(inp: InputChannel, out: OutputChannel, arg: object) -> None:
        body(inp, out)

    return plain if kind == "plain" else is_async


def end_of(kind: Any, body: Callable[[InputChannel, OutputChannel], None]) -> tuple[int, str]:
    """The status and the stderr of a worker that does ``body``."""

    async def main() -> tuple[int, str]:
        backend = None if kind == "plain" else kind
        f = of_kind(kind, body)
        async with await run(f, None, backend=backend, capture_stderr=True) as worker:
            with anyio.fail_after(20):
                returncode = await worker.wait()
        return returncode, worker.died.stderr_tail if worker.died else ""

    return anyio.run(main)


def check_cancelled(f: F, thread: bool, asleep: bool = True) -> None:
    """SIGTERM that ``f`` gets once it is ready: its cleanup runs, nothing is printed, -15."""

    async def main() -> None:
        async with await run(f, None, capture_stderr=True) as worker:
            with anyio.fail_after(20):
                assert await received(worker) == b"ready"
                if asleep:
                    await until_asleep(worker.pid)
                worker.terminate()
                assert await received(worker) == b"finally"
                assert await worker.wait() == TERMINATED
        assert worker.died is not None
        assert worker.died.stderr_tail == ""

    run_in("asyncio", thread, main)


# -- a thread of the host is inside C's stdio ----------------------------------------------------

FGETS: Final = """
    libc = ctypes.CDLL(None)
    stdin = ctypes.c_void_p.in_dll(libc, "stdin")
    read_a_line = lambda: libc.fgets(ctypes.create_string_buffer(100), 100, stdin)
"""
INPUT: Final = "    read_a_line = input\n"
IMPORTED: Final = "    import readline\n    read_a_line = input\n"


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
@pytest.mark.parametrize("host", HOSTS)
@pytest.mark.parametrize("reader", [FGETS, INPUT, IMPORTED], ids=["fgets", "input", "readline"])
def test_a_thread_that_reads_from_the_terminal(host: BackendName, reader: str) -> None:
    """As long as nobody types: ``run`` does not wait for it, and the worker works."""
    source = (
        reader
        + """
    def f(inp, out, arg):
        print("said", "by", "the", "worker")
        for message in sync.messages(inp):
            sync.write_message(out, message.upper())

    async def main():
        with anyio.fail_after(20):
            async with await run(f, None) as worker:
                await write_message(worker.output_channel, b"hello")
                print(await read_message(worker.input_channel))
        print(worker.returncode)

    thread = threading.Thread(target=read_a_line)
    thread.start()
    tid = thread.native_id
    while open(f"/proc/self/task/{tid}/stat").read().rpartition(")")[2].split()[0] != "S":
        time.sleep(0)
    print("ready")
    warnings.simplefilter("ignore", ForkThreadsWarning)
    anyio.run(main, OPTIONS)
    print("over")
    """.replace("OPTIONS", f"**{HOSTS[host]!r}")
    )
    with terminal("    import warnings\n" + source) as screen:
        text = screen.read_until("over\n")
        assert "said by the worker\n" in text
        assert "b'HELLO'\n0\n" in text
        screen.press("a line\n")
        screen.read_until("")
        assert screen.status() == 0


# -- stderr under signals ------------------------------------------------------------------------


@kinds
def test_a_storm_of_signals_costs_no_text_on_stderr(kind: str) -> None:
    """Long lines that are interrupted in the middle arrive whole, and in order."""
    done = program(
        """
        def say():
            signal.signal(signal.SIGALRM, lambda number, frame: None)
            signal.setitimer(signal.ITIMER_REAL, 0.0005, 0.0005)
            for number in range(30):
                sys.stderr.write(chr(ord("A") + number) * 200_000 + "\\n")
            signal.setitimer(signal.ITIMER_REAL, 0)

        def plain(inp, out, arg):
            say()

        async def is_async(inp, out, arg):
            say()

        async def main(f, backend):
            async with await run(f, None, capture_stderr=True, backend=backend) as worker:
                with anyio.fail_after(30):
                    print(await worker.wait())

        kind = sys.argv[1]
        if kind == "plain":
            anyio.run(main, plain, None)
        else:
            anyio.run(main, is_async, kind)
        """,
        kind,
    )
    assert done.stdout == "0\n"
    lines = done.stderr.split("\n")
    assert [(line[:1], len(line)) for line in lines[:-1]] == [
        (chr(ord("A") + number), 200_000) for number in range(30)
    ]
    assert [len(set(line)) for line in lines] == [1] * 30 + [0]


# -- loops that plain code runs ------------------------------------------------------------------


def runs_trio(inp: InputChannel, out: OutputChannel, arg: object) -> None:
    async def main() -> None:
        try:
            sync.write_message(out, b"ready")
            await trio.sleep(ENDLESS)
        finally:
            with trio.CancelScope(shield=True):
                await trio.lowlevel.checkpoint()
                await trio.sleep(0.01)
            sync.write_message(out, b"finally")

    trio.run(main)


def runs_trio_with_children(inp: InputChannel, out: OutputChannel, arg: object) -> None:
    ended = []

    async def child(number: int) -> None:
        try:
            await trio.sleep(ENDLESS)
        finally:
            ended.append(number)

    async def main() -> None:
        try:
            async with trio.open_nursery() as nursery:
                for number in range(3):
                    nursery.start_soon(child, number)
                await trio.testing.wait_all_tasks_blocked()
                sync.write_message(out, b"ready")
        finally:
            assert sorted(ended) == [0, 1, 2]
            sync.write_message(out, b"finally")

    trio.run(main)


def runs_asyncio(inp: InputChannel, out: OutputChannel, arg: object) -> None:
    async def main() -> None:
        try:
            sync.write_message(out, b"ready")
            await asyncio.sleep(ENDLESS)
        finally:
            await asyncio.sleep(0.01)
            sync.write_message(out, b"finally")

    asyncio.run(main())


RUNNERS: Final[list[F]] = [runs_trio, runs_trio_with_children, runs_asyncio]


@anywhere
@pytest.mark.parametrize("f", RUNNERS, ids=lambda f: f.__name__)
def test_sigterm_cancels_a_loop_that_plain_code_runs(f: F, thread: bool) -> None:
    """Its ``finally`` blocks run, and may await; nothing is printed."""
    check_cancelled(f, thread)


@anywhere
@pytest.mark.parametrize("backend", HOSTS)
def test_sigterm_cancels_anyio_run_in_plain_code(backend: BackendName, thread: bool) -> None:
    """The same on each loop, with channels of the loop's."""

    def f(inp: InputChannel, out: OutputChannel, arg: object) -> None:
        async def main() -> None:
            try:
                await write_message(out, b"ready")
                await anyio.sleep(ENDLESS)
            finally:
                with anyio.CancelScope(shield=True):
                    await anyio.sleep(0.01)
                    await write_message(out, b"finally")

        anyio.run(main, **HOSTS[backend])

    check_cancelled(f, thread)


@anywhere
@pytest.mark.parametrize("backend", HOSTS)
def test_sigterm_cancels_a_group_of_busy_tasks(backend: BackendName, thread: bool) -> None:
    """Which never wait for anything: it comes while one of them runs."""

    def f(inp: InputChannel, out: OutputChannel, arg: object) -> None:
        async def work() -> None:
            while True:
                await anyio.lowlevel.checkpoint()

        async def main() -> None:
            try:
                async with anyio.create_task_group() as group:
                    for _ in range(3):
                        group.start_soon(work)
                    await anyio.lowlevel.checkpoint()
                    sync.write_message(out, b"ready")
            finally:
                sync.write_message(out, b"finally")

        anyio.run(main, **HOSTS[backend])

    check_cancelled(f, thread, asleep=False)


@anywhere
@pytest.mark.parametrize("place", ["sleeps", "reads"])
@pytest.mark.parametrize("backend", HOSTS)
def test_sigterm_interrupts_a_task_that_blocks_its_loop(
    backend: BackendName, place: str, thread: bool
) -> None:
    """Plain code in a task that gets to no await: it is interrupted where it is."""

    def f(inp: InputChannel, out: OutputChannel, arg: object) -> None:
        async def main() -> None:
            try:
                sync.write_message(out, b"ready")
                THEN[place](inp)
            finally:
                await anyio.sleep(0)
                sync.write_message(out, b"finally")

        anyio.run(main, **HOSTS[backend])

    check_cancelled(f, thread)


# -- at the exit ---------------------------------------------------------------------------------


@kinds
def test_a_queue_that_was_filled_last_arrives(kind: Any) -> None:
    """What ``f`` puts into a queue of multiprocessing just before it returns is not lost."""
    queue = multiprocessing.get_context("fork").Queue()
    items = [bytes([number]) * 20_000 for number in range(100)]

    def body(inp: InputChannel, out: OutputChannel) -> None:
        for item in items:
            queue.put(item)

    async def main() -> None:
        backend = None if kind == "plain" else kind
        async with await run(of_kind(kind, body), None, backend=backend) as worker:
            assert [queue.get(timeout=20) for _ in items] == items
            with anyio.fail_after(20):
                assert await worker.wait() == 0

    anyio.run(main)
    queue.close()
    queue.join_thread()


KEPT: list[object] = []  # as in a module's global


def make_a_directory(inp: InputChannel, out: OutputChannel, arg: object) -> None:
    KEPT.append(theirs := tempfile.TemporaryDirectory())
    sync.write_message(out, theirs.name.encode())
    sync.read_message(inp)


async def make_a_directory_async(inp: InputChannel, out: OutputChannel, arg: object) -> None:
    KEPT.append(theirs := tempfile.TemporaryDirectory())
    await write_message(out, theirs.name.encode())
    await read_message(inp)


@kinds
@pytest.mark.parametrize("status", [0, TERMINATED])
def test_each_side_removes_its_own_temporary_directory(kind: Any, status: int) -> None:
    """The worker the one that it made, at its end, however it ends; the host's stays."""
    ours = tempfile.TemporaryDirectory()
    KEPT.append(ours)

    async def main() -> None:
        f: F = make_a_directory if kind == "plain" else make_a_directory_async
        async with await run(f, None, backend=None if kind == "plain" else kind) as worker:
            with anyio.fail_after(20):
                theirs = (await received(worker)).decode()
                assert Path(theirs).exists()
                if status == TERMINATED:
                    worker.terminate()
                else:
                    await write_message(worker.output_channel, b"return")
                assert await worker.wait() == status
        assert not Path(theirs).exists()
        assert Path(ours.name).exists()

    try:
        anyio.run(main)
    finally:
        KEPT.clear()
        ours.cleanup()
    assert not Path(ours.name).exists()


@kinds
def test_what_the_host_finalizes_a_worker_that_drops_it_does_not(kind: Any) -> None:
    """Its directory stays when the worker's last reference goes; to call a finalizer works."""
    done = program(
        """
        import tempfile, weakref

        class Thing:
            pass

        def drop():
            kept.clear()

        def plain(inp, out, when):
            atexit.register(drop)
            if when == "at once":
                drop()
            if when == "by hand":
                finalizer()

        async def is_async(inp, out, when):
            plain(inp, out, when)

        async def main(f, backend):
            for when in ("at once", "at exit", "by hand"):
                async with await run(f, when, backend=backend) as worker:
                    await worker.wait()
                print(worker.returncode, os.path.isdir(name), flush=True)

        kept = [tempfile.TemporaryDirectory(), Thing()]
        name = kept[0].name
        finalizer = weakref.finalize(kept[1], os.write, 1, b"finalized\\n")
        kind = sys.argv[1]
        if kind == "plain":
            anyio.run(main, plain, None)
        else:
            anyio.run(main, is_async, kind)
        kept[0].cleanup()
        del kept[0]
        """,
        kind,
    )
    assert done.stderr == ""
    assert done.stdout == "0 True\n0 True\nfinalized\n0 True\nfinalized\n"


# -- standard streams that are not what they were ------------------------------------------------


@kinds
@pytest.mark.parametrize(
    ("how", "expected"),
    [("raise ValueError('it broke')", "ValueError: it broke"), ("sys.exit('a text')", "a text")],
)
def test_the_last_words_reach_descriptor_2(kind: str, how: str, expected: str) -> None:
    """Where the host keeps what is printed on stderr in memory, as a test runner does."""
    done = program(
        f"""
        import io

        def plain(inp, out, arg):
            {how}

        async def is_async(inp, out, arg):
            {how}

        async def main(f, backend):
            async with await run(f, None, backend=backend) as worker:
                await worker.wait()
            print(worker.returncode, repr(sys.stderr.getvalue()))

        sys.stderr = io.StringIO()
        kind = sys.argv[1]
        if kind == "plain":
            anyio.run(main, plain, None)
        else:
            anyio.run(main, is_async, kind)
        """,
        kind,
    )
    assert done.stdout == "1 ''\n"
    assert done.stderr.splitlines()[-1] == expected
    assert done.stderr.count(expected) == 1


@kinds
def test_a_stdout_that_cannot_be_flushed(kind: str) -> None:
    """Whatever it raises: the worker starts, works, ends well, and by SIGTERM when told to."""
    done = program(
        """
        class Broken:
            def write(self, text):
                raise RuntimeError("cannot write")

            flush = fileno = lambda self: 1 / 0

        def plain(inp, out, arg):
            for message in sync.messages(inp):
                sync.write_message(out, message)

        async def is_async(inp, out, arg):
            async for message in inp:
                await write_message(out, message)

        async def main(f, backend):
            for terminated in (False, True):
                async with await run(f, None, backend=backend) as worker:
                    await write_message(worker.output_channel, b"x")
                    assert await read_message(worker.input_channel) == b"x"
                    if terminated:
                        worker.terminate()
                        await worker.wait()
                os.write(1, b"%d\\n" % worker.returncode)

        whole, sys.stdout = sys.stdout, Broken()
        kind = sys.argv[1]
        if kind == "plain":
            anyio.run(main, plain, None)
        else:
            anyio.run(main, is_async, kind)
        sys.stdout = whole
        """,
        kind,
    )
    assert (done.stdout, done.stderr) == ("0\n-15\n", "")


# -- SIGTERM where Python ignores exceptions -----------------------------------------------------


def terminate_us() -> None:
    """Give Python time to run the handler here."""
    os.kill(os.getpid(), signal.SIGTERM)
    for _ in range(1000):
        pass


class Deleted:
    def __del__(self) -> None:
        terminate_us()


def in_a_del() -> None:
    Deleted()


class Thing:
    pass


def in_a_weakref_callback() -> None:
    thing = Thing()
    reference = weakref.ref(thing, lambda reference: terminate_us())
    del thing
    assert reference() is None


def in_a_finalizer() -> None:
    thing = Thing()
    weakref.finalize(thing, terminate_us)
    del thing


def fork_once() -> None:
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    os.waitpid(pid, 0)


def in_a_hook_before_a_fork() -> None:
    os.register_at_fork(before=terminate_us)
    fork_once()


def in_a_hook_after_a_fork() -> None:
    os.register_at_fork(after_in_parent=terminate_us)
    fork_once()


IGNORED: Final = [
    in_a_del,
    in_a_weakref_callback,
    in_a_finalizer,
    in_a_hook_before_a_fork,
    in_a_hook_after_a_fork,
]
THEN: Final[dict[str, Callable[[InputChannel], object]]] = {
    "sleeps": lambda inp: time.sleep(ENDLESS),
    "reads": sync.read_message,
    "loops": lambda inp: [None for _ in iter(int, 1)],
}


@anywhere
@pytest.mark.parametrize("then", ["sleeps", "reads", "loops"])
@pytest.mark.parametrize("place", IGNORED, ids=lambda f: f.__name__)
def test_sigterm_is_heard_though_its_exception_is_ignored(
    place: Callable[[], None], then: str, thread: bool
) -> None:
    """``f`` is cancelled a moment later, wherever it is by then, and nothing is printed."""

    def f(inp: InputChannel, out: OutputChannel, arg: object) -> None:
        try:
            place()
            sync.write_message(out, b"ignored")
            THEN[then](inp)
        finally:
            sync.write_message(out, b"finally")

    async def main() -> None:
        async with await run(f, None, capture_stderr=True) as worker:
            with anyio.fail_after(20):
                while (message := await received(worker)) == b"ignored":
                    pass
                assert message == b"finally"
                assert await worker.wait() == TERMINATED
        assert worker.died is not None
        assert worker.died.stderr_tail == ""

    run_in("asyncio", thread, main)


def test_what_is_ignored_otherwise_is_said_as_ever() -> None:
    """Another exception in a ``__del__`` is printed, once, and changes nothing."""

    class Fails:
        def __del__(self) -> None:
            raise LookupError("in a __del__")

    def body(inp: InputChannel, out: OutputChannel) -> None:
        sys.unraisablehook = sys.__unraisablehook__
        Fails()
        sys.exit(3)

    status, text = end_of("plain", body)
    assert status == 3
    assert text.count("LookupError: in a __del__") == 1


# -- descriptors that f closed -------------------------------------------------------------------


def closes_its_output(inp: InputChannel, out: OutputChannel) -> None:
    os.close(out.fileno())


def closes_its_input(inp: InputChannel, out: OutputChannel) -> None:
    os.close(inp.fileno())


def closes_both_after_use(inp: InputChannel, out: OutputChannel) -> None:
    sync.write_message(out, b"written")
    os.close(inp.fileno())
    os.close(out.fileno())


def closes_all(inp: InputChannel, out: OutputChannel) -> None:
    os.closerange(3, 256)


CLOSING: Final = [closes_its_output, closes_its_input, closes_both_after_use]


@kinds
@pytest.mark.parametrize("body", CLOSING, ids=lambda f: f.__name__)
def test_f_may_close_its_own_descriptors(
    kind: Any, body: Callable[[InputChannel, OutputChannel], None]
) -> None:
    """That is no error: status 0, and no traceback."""
    assert end_of(kind, body) == (0, "")


@anywhere
def test_plain_code_may_close_everything(thread: bool) -> None:
    """As a daemon does, which has no loop that would miss it."""

    def f(inp: InputChannel, out: OutputChannel, arg: object) -> None:
        closes_all(inp, out)

    async def main() -> None:
        async with await run(f, None, capture_stderr=True) as worker:
            with anyio.fail_after(20):
                assert await worker.wait() == 0
        assert worker.died is None

    run_in("asyncio", thread, main)

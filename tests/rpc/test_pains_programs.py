"""What users of other libraries suffer in programs: output, logs, Ctrl-C, orphans, __main__."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import select
import signal
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from forkwire import UsageError, WorkerDied, open_worker

from .support_pains import (
    BACKENDS,
    LIMIT,
    WAYS_TO_SERVE,
    is_running,
    nothing_left_behind,  # noqa: F401
    outcome,
    script,
    sync_worker_of,
    until_true,
    worker_of,
)

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.usefixtures("nothing_left_behind"),
    pytest.mark.timeout(60),
    pytest.mark.skipif(sys.platform != "linux", reason="reads /proc"),
]

EVERY_BACKEND = pytest.mark.parametrize("backend", BACKENDS)


# -- output -----------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["print_everywhere", "print_everywhere_later"])
async def test_a_print_does_not_corrupt_the_protocol(
    method: str, capfd: pytest.CaptureFixture[str]
) -> None:
    """Elsewhere one print, or a C library's puts, breaks a connection that goes over stdout.

    Here all of it comes out at the host, whoever wrote it, each line with whose it is.
    """
    async with worker_of(name="printer") as worker:
        for _ in range(3):
            assert await worker.call(method, "words") == "words"
        label = f"[printer {worker.pid}] "
    out, err = capfd.readouterr()
    lines = [f"{label}words {how}" for how in ("print", "puts", "write", "program")]
    assert sorted(out.splitlines()) == sorted(lines * 3)
    assert err.splitlines() == [f"{label}words error"] * 3


async def test_a_worker_does_not_eat_the_hosts_input() -> None:
    """Elsewhere a worker that reads stdin takes what its host, or the protocol, was to read."""
    async with worker_of() as worker:
        assert await worker.call("read_stdin") == ""
        assert await worker.call("add", 1, 2) == 3


async def test_a_worker_that_prints_much_does_not_hang(capfd: pytest.CaptureFixture[str]) -> None:
    """Elsewhere nobody reads its stdout or stderr: the pipe fills, and a print never returns.

    Or all is thrown away. Here every line comes out, in order.
    """
    count = 4000
    async with worker_of(name="x") as worker:
        assert await worker.call("print_much", count) == count
    out, err = capfd.readouterr()
    for text, letter in ((out, "x"), (err, "y")):
        found = re.findall(rf"^\[x \d+\] (\d+) {letter}{{93}}$", text, re.MULTILINE)
        assert [int(number) for number in found] == list(range(count))


@pytest.mark.parametrize("served", WAYS_TO_SERVE)
async def test_what_a_worker_says_arrives_however_it_is_served(
    served: str, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    """Elsewhere it depends on threads and loops what arrives; here all of it does."""
    async with worker_of(name="w", **WAYS_TO_SERVE[served]) as worker:
        assert await worker.call("print_everywhere", "words") == "words"
        await worker.call("log", logging.WARNING, "careful")
    out, err = capfd.readouterr()
    assert len(out.splitlines()) == 4
    assert f"[w {worker.pid}] words error" in err.splitlines()
    assert [r.getMessage() for r in caplog.records if r.name == "suffering.service"] == ["careful"]


def test_a_worker_that_prints_much_does_not_hang_without_a_loop(
    capfd: pytest.CaptureFixture[str],
) -> None:
    """The same, while the host waits for a call or does something else."""
    with sync_worker_of(name="x") as worker:
        assert worker.call("print_much", 4000) == 4000
    out, err = capfd.readouterr()
    assert (len(out.splitlines()), len(err.splitlines())) == (4000, 4000)


async def test_the_last_words_of_a_worker_are_not_lost(capfd: pytest.CaptureFixture[str]) -> None:
    """Elsewhere what it said before it died goes down with it; here it is shown, and told."""
    async with worker_of() as worker:
        with pytest.raises(WorkerDied, match="out of cheese"):
            await worker.call("complain_and_die", "out of cheese")
    assert "out of cheese" in capfd.readouterr().err


# -- logs -------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["log", "log_later"])
async def test_log_records_of_a_worker_arrive(
    method: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Elsewhere they vanish, or need a queue and a listener; here they are handled at the host.

    With nothing set up: logger, level, text and extra fields as they were.
    """
    caplog.set_level(logging.DEBUG)
    async with worker_of() as worker:
        await worker.call(method, logging.INFO, "hello from far away")
    (record,) = [found for found in caplog.records if found.name == "suffering.service"]
    assert (record.levelno, record.getMessage()) == (logging.INFO, "hello from far away")
    assert record.process == worker.pid
    assert vars(record)["order"] == 17


def test_log_records_of_a_worker_arrive_without_a_loop(caplog: pytest.LogCaptureFixture) -> None:
    """The same, blocking."""
    caplog.set_level(logging.DEBUG)
    with sync_worker_of() as worker:
        worker.call("log", logging.WARNING, "hello")
    assert [r.getMessage() for r in caplog.records if r.name == "suffering.service"] == ["hello"]


async def test_logged_exceptions_keep_their_tracebacks(caplog: pytest.LogCaptureFixture) -> None:
    """Elsewhere records with a traceback cannot be pickled and are lost; here it comes as text."""
    async with worker_of() as worker:
        await worker.call("log_failure")
    (record,) = [found for found in caplog.records if found.name == "suffering.service"]
    text = logging.Formatter().format(record)
    assert "it failed" in text
    assert "ValueError: deep inside" in text
    assert "log_failure" in text


async def test_a_worker_logs_no_more_than_its_host_wants(caplog: pytest.LogCaptureFixture) -> None:
    """Elsewhere a spawned worker has other levels than its host; here they are the same."""
    caplog.set_level(logging.ERROR)
    async with worker_of() as worker:
        await worker.call("log", logging.WARNING, "quiet")
        await worker.call("log", logging.ERROR, "loud")
    found = [r.getMessage() for r in caplog.records if r.name == "suffering.service"]
    assert found == ["loud"]


# -- whole programs ---------------------------------------------------------------------------


class Program:
    """A running script, and what it says."""

    def __init__(self, command: list[str]) -> None:
        self._token = f"FORKWIRE_TEST={uuid.uuid4()}"
        name, _, value = self._token.partition("=")
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
            bufsize=0,
            env={
                **os.environ,
                "PYTHONPATH": str(Path(__file__).parent / "services"),
                name: value,
            },
        )

    def line(self) -> str:
        stdout = self.process.stdout
        assert stdout is not None
        heard = b""
        while not heard.endswith(b"\n"):
            assert select.select([stdout], [], [], LIMIT)[0], heard
            byte = stdout.read(1)
            assert byte, (heard, self.errors())
            heard += byte
        return heard.decode().strip()

    def errors(self) -> str:
        assert self.process.stderr is not None
        return self.process.stderr.read().decode()

    def descendants(self) -> set[int]:
        """Of its workers too; the guard and the templates, nobody's children, among them."""
        found = {int(name) for name in filter(str.isdecimal, os.listdir("/proc"))}
        found = {pid for pid in found if self._token in environment(pid)}
        return found - {self.process.pid}

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        for stream in (self.process.stdout, self.process.stderr):
            assert stream is not None
            stream.close()


def environment(pid: int) -> list[str]:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/environ").read_text(errors="replace").split("\0")
    return []


@contextlib.contextmanager
def running(command: list[str]) -> Iterator[Program]:
    program = Program(command)
    try:
        yield program
    finally:
        program.close()


BUSY = """
    import os, signal, sys, threading
    from pathlib import Path
    import anyio
    import forkwire, suffering
    from forkwire import sync

    METHODS = sys.argv[2:]
    FOLDER = Path(sys.argv[1])

    async def tell(workers):
        while len(list(FOLDER.glob("begun*"))) < len(METHODS):
            await anyio.sleep(0.005)
        print(*(worker.pid for worker in workers), flush=True)

    async def busy(method, workers):
        async with forkwire.open_worker(suffering, grace=0.5) as worker:
            workers.append(worker)
            await worker.call(method, str(FOLDER / f"begun {method}"))

    async def main():
        workers = []
        async with anyio.create_task_group() as tasks:
            for method in METHODS:
                tasks.start_soon(busy, method, workers)
            await tell(workers)

    try:
        <run>
    except BaseExceptionGroup as group:
        assert group.split(KeyboardInterrupt)[1] is None, group
        print("interrupted")
    except KeyboardInterrupt:
        print("interrupted")
    """

SYNC_BUSY = """
    import sys
    from pathlib import Path
    import suffering
    from forkwire import sync

    try:
        with sync.open_worker(suffering, grace=0.5) as worker:
            with sync.open_worker(suffering, grace=0.5) as other:
                print(worker.pid, other.pid, flush=True)
                worker.call(sys.argv[2], sys.argv[1] + "/begun")
    except KeyboardInterrupt:
        print("interrupted")
    """


@EVERY_BACKEND
def test_ctrl_c_prints_no_storm_of_tracebacks(backend: str, tmp_path: Path) -> None:
    """Elsewhere Ctrl-C prints a traceback of every worker; here the host's own exception is all.

    Also where the signal reaches the workers themselves, in the midst of a call.
    """
    run = f"anyio.run(main, {BACKENDS[backend]})"
    methods = ["spin", "sleep", "sleep_later", "wait_for_a_program"]
    with running([*script(tmp_path, BUSY, run=run), str(tmp_path), *methods]) as program:
        workers = [int(pid) for pid in program.line().split()]
        assert len(workers) == len(methods)
        for pid in [*workers, program.process.pid]:
            os.kill(pid, signal.SIGINT)
        assert program.line() == "interrupted"
        assert program.process.wait(LIMIT) == 0
        assert program.errors() == ""
        assert not [pid for pid in workers if is_running(pid)]


@pytest.mark.parametrize("method", ["spin", "sleep_later"])
def test_ctrl_c_prints_no_storm_of_tracebacks_without_a_loop(method: str, tmp_path: Path) -> None:
    """The same where a blocking call is interrupted."""
    with running([*script(tmp_path, SYNC_BUSY), str(tmp_path), method]) as program:
        workers = [int(pid) for pid in program.line().split()]
        until_true((tmp_path / "begun").exists)
        for pid in [*workers, program.process.pid]:
            os.kill(pid, signal.SIGINT)
        assert program.line() == "interrupted"
        assert program.process.wait(LIMIT) == 0
        assert program.errors() == ""
        assert not [pid for pid in workers if is_running(pid)]


ALL_BUSY = ["spin", "work_in_c", "sleep", "sleep_later", "wait_for_a_program"]


@EVERY_BACKEND
@pytest.mark.parametrize(
    ("number", "methods"),
    [(signal.SIGKILL, ALL_BUSY), (signal.SIGTERM, ["wait_for_a_program"])],
    ids=["SIGKILL", "SIGTERM"],
)
def test_no_orphans_when_the_host_is_killed(
    backend: str, number: signal.Signals, methods: list[str], tmp_path: Path
) -> None:
    """Elsewhere busy workers run on when their parent was killed; here all of them end.

    In Python, in C that keeps the interpreter's lock, in a sleep, waiting for a program: that
    ends too.
    """
    run = f"anyio.run(main, {BACKENDS[backend]})"
    with running([*script(tmp_path, BUSY, run=run), str(tmp_path), *methods]) as program:
        workers = {int(pid) for pid in program.line().split()}
        descendants = until_true(lambda: _with_program(program, workers))
        program.process.send_signal(number)
        assert program.process.wait(LIMIT) == -number
        until_true(lambda: not [pid for pid in descendants if is_running(pid)])


def _with_program(program: Program, workers: set[int]) -> set[int]:
    """All that descends from it, once the program that a worker starts is among them."""
    found = program.descendants()
    programs = [pid for pid in found - workers if _name(pid) == "sleep"]
    return found if workers <= found and programs else set()


def _name(pid: int) -> str:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/comm").read_text().strip()
    return ""


def test_no_orphans_of_a_host_without_a_loop(tmp_path: Path) -> None:
    """The same where a blocking call waits."""
    with running([*script(tmp_path, SYNC_BUSY), str(tmp_path), "work_in_c"]) as program:
        program.line()
        until_true((tmp_path / "begun").exists)
        descendants = program.descendants()
        assert len(descendants) >= 2
        program.process.kill()
        program.process.wait(LIMIT)
        until_true(lambda: not [pid for pid in descendants if is_running(pid)])


# -- __main__ ---------------------------------------------------------------------------------


SERVES_ITSELF = """
    import dataclasses, os, sys
    import anyio
    import forkwire
    from forkwire import sync

    print("the top of", __name__, sys.argv[1:], flush=True)
    table = {"loaded": os.getpid()}

    @dataclasses.dataclass
    class Point:
        x: int
        y: int = 0

    class Counter:
        def __init__(self) -> None:
            self.value = 40

        def up(self, by: int) -> int:
            self.value += by
            return self.value

    def mirror(point: Point) -> Point:
        assert type(point) is Point
        return Point(-point.x, -point.y)

    def look() -> list:
        return [table["loaded"], os.getpid(), sys.argv[1:], __name__]

    async def later(n: int) -> int:
        await anyio.lowlevel.checkpoint()
        return n + 1

    async def main():
        parent = os.getpid()
        async with forkwire.open_worker(sys.modules["__main__"]) as worker:
            assert await worker.call(mirror, Point(1, 2)) == Point(-1, -2)
            assert await worker.call(later, 1) == 2
            found = await worker.call("look")
            assert found == [parent, worker.pid, sys.argv[1:], "__main__"], found
        async with forkwire.open_worker(Counter) as worker:
            assert await worker.call("up", 2) == 42
        async with forkwire.open_worker({"add": lambda a, b: a + b}) as worker:
            assert await worker.call("add", 1, 2) == 3

    anyio.run(main, <backend>)
    with sync.open_worker(mirror) as worker:
        assert worker.call(mirror, Point(3)) == Point(-3)
    print("done")
    """


@EVERY_BACKEND
def test_a_script_serves_its_own_functions_and_is_not_run_again(
    backend: str, tmp_path: Path
) -> None:
    """Elsewhere a script without ``if __name__ == "__main__"`` starts itself again and again.

    Or its functions and classes cannot be found in the worker. Here they are inherited, and its
    top level runs once.
    """
    command = script(tmp_path, SERVES_ITSELF, backend=BACKENDS[backend])
    done = outcome([*command, "an argument"])
    assert done.stderr == ""
    assert done.stdout == "the top of __main__ ['an argument']\ndone\n"


def test_code_that_is_in_no_file_can_be_served() -> None:
    """Elsewhere what was typed or piped in cannot be imported; here it is inherited."""
    source = """
import sys
from forkwire import sync
print("the top")
def add(a: int, b: int) -> int:
    return a + b
class Greeter:
    def greet(self, name: str) -> str:
        return f"hello {name}"
with sync.open_worker(add) as worker:
    print(worker.call(add, 1, 2))
with sync.open_worker(Greeter()) as worker:
    print(worker.call("greet", "you"))
"""
    done = outcome([sys.executable, "-W", "error", "-"], input=source)
    assert (done.stdout, done.stderr) == ("the top\n3\nhello you\n", "")
    done = outcome([sys.executable, "-W", "error", "-c", source])
    assert (done.stdout, done.stderr) == ("the top\n3\nhello you\n", "")


NOTEBOOK = """
import ast, asyncio, inspect, sys, types

CELLS = [
    "import os, forkwire",
    "def square(n: int) -> int:\\n    return n * n",
    "async def cube(n: int) -> int:\\n    return n ** 3",
    "worker = await forkwire.open_worker({'square': square, 'cube': cube}).__aenter__()",
    "print(await worker.call(square, 7), await worker.call('cube', 2))",
    "def square(n: int) -> int:\\n    return -n",
    "async with forkwire.open_worker(square) as other: print(await other.call('square', 7))",
    "print(await worker.call('square', 7))",
    "await worker.aclose()",
]

async def kernel():
    '''Runs cells in __main__, in the loop that runs, as a notebook does.'''
    names = sys.modules["__main__"].__dict__
    for number, cell in enumerate(CELLS):
        code = compile(cell, f"<cell {number}>", "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
        result = eval(code, names)
        if inspect.iscoroutine(result):
            await result

asyncio.run(kernel())
"""


def test_a_notebooks_cells_can_be_served(tmp_path: Path) -> None:
    """Elsewhere functions of a notebook are not found, and its running loop is in the way.

    Here a worker that is opened in one cell is used in the next, and keeps what was defined when
    it was started; one that is opened later has what is defined then.
    """
    done = outcome(script(tmp_path, NOTEBOOK))
    assert done.stderr == ""
    assert done.stdout == "49 8\n-7\n49\n"


def test_what_no_other_interpreter_could_import_is_refused_by_name() -> None:
    """Elsewhere it fails in the child, with a trace of pickle; here before anything is started."""

    class Local:
        def method(self) -> int:
            return 1

    with pytest.raises(UsageError, match=r"(?s)inherited.*fork"):
        open_worker({"add": lambda a, b: a + b}, start="exec")
    with pytest.raises(UsageError, match=r"(?s)inherited.*fork"):
        open_worker(Local(), start="exec")

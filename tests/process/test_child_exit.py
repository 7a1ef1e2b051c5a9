"""How a worker ends by itself: statuses, tracebacks, exit callbacks, what was printed."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import pytest

from forkwire import EndOfFile, InputChannel, OutputChannel, read_message, run, sync

from .test_run_support import program, received

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.filterwarnings("ignore::forkwire.ForkThreadsWarning"),
]

F = Callable[[InputChannel, OutputChannel, Any], Any]


async def end_of(f: F, arg: object) -> tuple[int, str]:
    """The status and the stderr of a worker."""
    async with await run(f, arg, capture_stderr=True) as worker:
        returncode = await worker.wait()
    return returncode, worker.died.stderr_tail if worker.died else ""


def leave(inp: InputChannel, out: OutputChannel, how: object) -> None:
    """End plainly, as ``how`` says."""
    if isinstance(how, BaseException):
        raise how


async def leave_async(inp: InputChannel, out: OutputChannel, how: object) -> None:
    leave(inp, out, how)


both_kinds: Final = pytest.mark.parametrize("f", [leave, leave_async], ids=["plain", "async"])


@both_kinds
@pytest.mark.parametrize("result", [None, 7, "text"])
async def test_returning_is_status_0(f: F, result: object) -> None:
    """Whatever ``f`` returns means success."""
    assert await end_of(f, result) == (0, "")


@both_kinds
@pytest.mark.parametrize(
    ("code", "status", "text"),
    [
        (None, 0, ""),
        (0, 0, ""),
        (3, 3, ""),
        (True, 1, ""),
        (256 + 7, 7, ""),
        (-1, 255, ""),
        ("a reason", 1, "a reason\n"),
        (("a", 1), 1, "('a', 1)\n"),
    ],
)
async def test_sys_exit_is_what_python_makes_of_it(f: F, code: Any, status: int, text: str) -> None:
    """None is 0, numbers count modulo 256, anything else is printed and is 1."""
    assert await end_of(f, SystemExit(code)) in [(status, text), (0, "")][: 1 + (status == 0)]


@both_kinds
@pytest.mark.parametrize(
    "error",
    [
        ValueError("it broke"),
        KeyboardInterrupt("it broke"),
        GeneratorExit("it broke"),
        ExceptionGroup("several", [ValueError("it broke"), KeyError(1)]),
        BaseExceptionGroup("several", [SystemExit(3), ValueError("it broke")]),
    ],
    ids=lambda error: type(error).__name__,
)
async def test_raising_is_status_1_and_a_traceback(f: F, error: BaseException) -> None:
    """Also what is no Exception, and a group that holds a SystemExit."""
    returncode, text = await end_of(f, error)
    assert returncode == 1
    assert text.count("Traceback (most recent call last)") == 1
    assert f"{type(error).__name__}: " in text
    assert "it broke" in text


@both_kinds
async def test_the_traceback_begins_at_f(f: F) -> None:
    """Neither the host's frames, nor ours, nor the loop's are in it."""
    _, text = await end_of(f, ValueError("it broke"))
    frames = [line for line in text.splitlines() if line.startswith("  File ")]
    names = [line.rpartition(" in ")[2] for line in frames]
    assert names == [f.__name__, "leave"][f is leave :]


async def test_a_cause_is_in_the_traceback() -> None:
    """``raise ... from`` is shown as everywhere."""

    def f(inp: InputChannel, out: OutputChannel, arg: object) -> None:
        try:
            raise KeyError("first")
        except KeyError as error:
            raise ValueError("then") from error

    _, text = await end_of(f, None)
    assert "KeyError: 'first'" in text
    assert "direct cause" in text
    assert text.rstrip().endswith("ValueError: then")


async def test_os_exit_and_a_crash_are_what_they_are() -> None:
    """A worker that ends behind Python's back has the status that the system saw."""
    assert await end_of(lambda i, o, a: os._exit(9), None) == (9, "")
    assert (await end_of(lambda i, o, a: os.abort(), None))[0] == -6


async def test_what_was_written_arrives_also_when_f_raises() -> None:
    """A failing worker's messages are not lost, and the end is at a message's edge."""

    def f(inp: InputChannel, out: OutputChannel, arg: object) -> None:
        sync.write_message(out, b"before it broke")
        raise SystemExit(4)

    async with await run(f, None) as worker:
        assert await received(worker) == b"before it broke"
        assert await read_message(worker.input_channel) == EndOfFile(truncated=False)
        assert await worker.wait() == 4


def test_the_traceback_is_on_stderr() -> None:
    """In a whole program: one traceback, on stderr only, and the host goes on."""
    done = program(
        """
        def f(inp, out, arg):
            1 / 0

        async def main():
            async with await run(f, None) as worker:
                await worker.wait()
            print("host:", worker.returncode)

        anyio.run(main)
        """
    )
    assert (done.returncode, done.stdout) == (0, "host: 1\n")
    assert done.stderr.splitlines()[0] == "Traceback (most recent call last):"
    assert done.stderr.splitlines()[-1] == "ZeroDivisionError: division by zero"
    assert len(done.stderr.splitlines()) <= 5


@pytest.mark.parametrize("how", ["raise ValueError('said')", "sys.exit('said')"])
def test_without_a_stderr_nothing_goes_to_stdout(how: str) -> None:
    """A traceback, or the text of ``sys.exit``, never lands in the program's output."""
    done = program(
        f"""
        def f(inp, out, arg):
            {how}

        async def main():
            async with await run(f, None) as worker:
                await worker.wait()
            print("host:", worker.returncode)

        os.close(2)
        sys.stderr = None
        anyio.run(main)
        """
    )
    assert (done.returncode, done.stdout) == (0, "host: 1\n")


def test_exit_callbacks() -> None:
    """Those of the host run in the host alone, those that ``f`` registers in the worker."""
    done = program(
        """
        def say(text):
            os.write(1, f"{text} {os.getpid() == host}\\n".encode())

        def f(inp, out, how):
            atexit.register(say, how)
            if how == "raises":
                raise SystemExit(3)
            if how == "waits":
                sync.write_message(out, b"")
                time.sleep(60)

        async def main():
            for how in ("returns", "raises", "waits"):
                async with await run(f, how) as worker:
                    await read_message(worker.input_channel)
                    worker.terminate()
                    await worker.wait()

        host = os.getpid()
        atexit.register(say, "registered by the host")
        anyio.run(main)
        """
    )
    assert done.stderr == ""
    assert done.stdout.splitlines() == [
        "returns False",
        "raises False",
        "waits False",
        "registered by the host True",
    ]


def test_a_worker_that_cannot_start_runs_no_callback_of_the_host() -> None:
    """Also when its preparation fails."""
    done = program(
        """
        from forkwire.process import child

        def fail(birth, termination):
            raise RuntimeError("no signals today")

        async def main():
            async with await run(lambda inp, out, arg: None, None) as worker:
                await worker.wait()
            print(worker.returncode, flush=True)

        child.die_with_host = fail
        atexit.register(os.write, 1, b"callback\\n")
        anyio.run(main)
        """
    )
    assert done.stdout == "1\ncallback\n"
    assert "no signals today" in done.stderr


def test_what_was_printed_before_the_fork_comes_once() -> None:
    """stdout, stderr and their buffers, into a pipe, in order, whatever way the worker ends."""
    done = program(
        """
        def f(inp, out, how):
            print("worker", how, end="|")
            print("error of worker", how, end="|", file=sys.stderr)
            if how == "exit":
                sys.exit(3)
            if how == "term":
                os.kill(os.getpid(), signal.SIGTERM)
                time.sleep(60)

        async def main():
            print("before", end="|")
            sys.stdout.flush()
            sys.stdout.buffer.write(b"bytes|")
            print("error before", end="|", file=sys.stderr)
            for how in ("return", "exit", "term"):
                async with await run(f, how) as worker:
                    await worker.wait()
            print("after")

        anyio.run(main)
        """
    )
    assert done.stdout == "before|bytes|worker return|worker exit|worker term|after\n"
    errors = "error before|error of worker return|error of worker exit|error of worker term|"
    assert done.stderr == errors


def test_what_c_code_printed_comes_once() -> None:
    """The C library's own buffer is neither doubled by the fork nor lost at the worker's end."""
    done = program(
        """
        libc = ctypes.CDLL(None)

        def f(inp, out, flushes):
            libc.puts(b"worker")
            if flushes:
                libc.fflush(None)

        async def main():
            libc.puts(b"before")
            for flushes in (True, False):
                async with await run(f, flushes) as worker:
                    await worker.wait()
            libc.puts(b"after")

        anyio.run(main)
        """
    )
    assert done.stdout == "before\nworker\nworker\nafter\n"


def test_a_broken_stdout_is_no_reason_not_to_start() -> None:
    """What the host cannot print is its own affair: ``run`` works."""
    done = program(
        """
        async def main():
            read_end, write_end = os.pipe()
            os.dup2(write_end, 1)
            os.close(write_end)
            os.close(read_end)
            print("nobody reads this", end="")
            async with await run(lambda inp, out, arg: sync.write_message(out, b"ok"), None) as w:
                print(await read_message(w.input_channel), file=sys.stderr)

        anyio.run(main)
        os._exit(0)
        """
    )
    assert (done.returncode, done.stderr) == (0, "b'ok'\n")


async def test_a_file_that_f_left_open_is_not_doubled(tmp_path: Path) -> None:
    """What the host had not flushed yet is written by the host alone."""
    path = tmp_path / "log"
    with path.open("w") as file:
        file.write("once")

        def f(inp: InputChannel, out: OutputChannel, arg: object) -> None:
            assert not file.closed

        async with await run(f, None) as worker:
            assert await worker.wait() == 0
    assert path.read_text() == "once"


async def test_stdio_that_f_replaced_is_flushed(tmp_path: Path) -> None:
    """``sys.stdout`` is whatever it is when the worker ends."""
    path = tmp_path / "out"

    def f(inp: InputChannel, out: OutputChannel, arg: object) -> None:
        sys.stdout = path.open("w")
        print("kept")

    async with await run(f, None) as worker:
        assert await worker.wait() == 0
    assert path.read_text() == "kept\n"

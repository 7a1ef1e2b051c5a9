"""What a service's worker prints comes out at the host's streams, labelled, line by line."""

from __future__ import annotations

import contextlib
import io
import os
import subprocess
import sys
from collections.abc import Iterator

import anyio
import pytest

from forkwire import InputChannel, OutputChannel, ProcessWorker, sync
from forkwire.process.backend import current_backend
from forkwire.process.fork import Options
from forkwire.process.stderr import LINE, Relay
from forkwire.process.worker import start_worker
from forkwire.rpc.telling import output

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.filterwarnings("ignore::forkwire.ForkThreadsWarning"),  # anyio's runner has one
]

LIMIT = 1024


class Stream(io.StringIO):
    """Ours, as the test sees it: each write."""

    def __init__(self) -> None:
        super().__init__()
        self.writes: list[str] = []

    def write(self, text: str) -> int:
        self.writes.append(text)
        return len(text)

    @property
    def text(self) -> str:
        return "".join(self.writes)


@contextlib.contextmanager
def hearing() -> Iterator[tuple[Stream, Stream]]:
    """``sys.stdout`` and ``sys.stderr`` are the test's; pytest sets a fixture's again."""
    out, err = Stream(), Stream()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "stdout", out)
        patch.setattr(sys, "stderr", err)
        yield out, err


def start(f: object, arg: object, name: str = "calc", *, trusted: bool = True) -> ProcessWorker:
    options = output.capturing(current_backend().name, 2.0, LIMIT)
    sinks = output.sinks(trusted=trusted)
    return start_worker(f, arg, options, label=output.label(name), sinks=sinks)  # type: ignore[arg-type]


def prints(inp: InputChannel, out: OutputChannel, arg: object) -> None:
    print("printed")
    os.write(1, b"written\n")
    print("said", file=sys.stderr)
    os.write(2, b"shouted\n")
    subprocess.run(["sh", "-c", "echo from a program; echo its error >&2"], check=True)


async def test_both_streams_are_relayed_with_a_label() -> None:
    """Each to the host's own of the same name, whoever in the worker wrote it."""
    with hearing() as (out, err):
        async with start(prints, None) as worker:
            await worker.wait()
        label = f"[calc {worker.pid}] "
        assert out.text.splitlines() == [
            f"{label}{line}" for line in ("printed", "written", "from a program")
        ]
        assert err.text.splitlines() == [
            f"{label}{line}" for line in ("said", "shouted", "its error")
        ]
        assert worker.returncode == 0


def asks_stdin(inp: InputChannel, out: OutputChannel, arg: object) -> None:
    answer = (sys.stdin.read(), os.read(0, 10), os.readlink("/proc/self/fd/0"))
    program = subprocess.run(["cat"], capture_output=True, check=True)
    sync.write_message(out, repr((*answer, program.stdout)).encode())


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
async def test_stdin_is_dev_null() -> None:
    """For Python, for C, and for programs that the worker starts."""
    with hearing():
        async with start(asks_stdin, None) as worker:
            assert await anext(worker.input_channel) == repr(("", b"", "/dev/null", b"")).encode()


def says_without_an_end(inp: InputChannel, out: OutputChannel, arg: object) -> None:
    print("a\n\nb", end="")


async def test_a_last_line_without_an_end() -> None:
    """It comes when the worker has ended, and gets a newline; empty lines stay."""
    with hearing() as (out, _):
        async with start(says_without_an_end, None) as worker:
            await worker.wait()
        label = f"[calc {worker.pid}] "
        assert out.text == f"{label}a\n{label}\n{label}b\n"


def says_lines(inp: InputChannel, out: OutputChannel, count: int) -> None:
    for number in range(count):
        print(f"line {number}")


async def test_lines_of_two_workers_do_not_mix() -> None:
    """Each write to the host's stream is of whole lines of one worker."""
    with hearing() as (out, _):
        async with start(says_lines, 3000, "a") as one, start(says_lines, 3000, "b") as two:
            await one.wait()
            await two.wait()
        for text in out.writes:
            assert text.endswith("\n")
            assert len({line.split("]")[0] for line in text.splitlines()}) == 1
        for worker, name in ((one, "a"), (two, "b")):
            label = f"[{name} {worker.pid}] "
            mine = [line for line in out.text.splitlines() if line.startswith(label)]
            assert mine == [f"{label}line {number}" for number in range(3000)]


def writes(inp: InputChannel, out: OutputChannel, data: bytes) -> None:
    os.write(1, data)


async def test_an_untrusted_workers_control_characters_are_shown() -> None:
    """A trusted one's colours come as they are. What is no UTF-8 is escaped in any case."""
    data = b"\x1b[31mred\x1b[0m\r \xff\ttab\n\xe2\x80\xaeend\n"
    with hearing() as (out, _):
        async with start(writes, data) as worker:
            await worker.wait()
        label = f"[calc {worker.pid}] "
        assert out.text == f"{label}\x1b[31mred\x1b[0m\r \\xff\ttab\n{label}\u202eend\n"
    with hearing() as (out, _):
        async with start(writes, data, trusted=False) as worker:
            await worker.wait()
        label = f"[calc {worker.pid}] "
        shown = f"{label}\\x1b[31mred\\x1b[0m\\r \\xff\ttab\n{label}\\u202eend\n"
        assert out.text == shown


def test_a_label_is_one_short_line() -> None:
    """Whatever the worker is called."""
    assert output.label("calc") == "calc"
    shown = output.label("a\nb\x1b" + "c" * 1000)
    assert shown.startswith("a\\nb\\x1bccc")
    assert len(shown) < 60


async def test_the_tail_of_stderr_has_no_label() -> None:
    """The report of a death quotes what the worker said."""
    with hearing() as (_, err):
        async with start(raises, None) as worker:
            await worker.wait()
        died = worker.died
        assert died is not None
        assert died.stderr_tail.startswith("Traceback (most recent call last):\n")
        assert f"[calc {worker.pid}] LookupError: mine\n" in err.text


def raises(inp: InputChannel, out: OutputChannel, arg: object) -> None:
    raise LookupError("mine")


async def test_a_stream_that_fails_disturbs_nobody() -> None:
    """The host's stream is closed, or none: the worker runs on, and is drained."""
    for stream in (None, closed()):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "stdout", stream)
            async with start(says_lines, 20_000) as worker:
                with anyio.fail_after(30):
                    assert await worker.wait() == 0


def closed() -> io.StringIO:
    stream = io.StringIO()
    stream.close()
    return stream


# -- the relay ----------------------------------------------------------------------------------


class Pipe:
    """A labelled relay at the end of a pipe, without a loop."""

    def __init__(self, label: str = "[x] ") -> None:
        read_end, self.write_end = os.pipe()
        os.set_blocking(read_end, False)
        self.passed: list[str] = []
        self.relay = Relay(read_end, self.passed.append)
        self.relay.label = label

    def says(self, data: bytes) -> None:
        os.write(self.write_end, data)
        self.relay.drain()

    def ends(self) -> str:
        os.close(self.write_end)
        self.relay.finish()
        return "".join(self.passed)


@pytest.mark.parametrize("more", [0, 1])
def test_a_long_line_comes_in_parts(more: int) -> None:
    """Each part is a line of its own, so nobody else's text gets into it; none is empty."""
    pipe = Pipe()
    pipe.says(b"x" * (LINE + more))
    pipe.says(b"\nnext\n")
    text = pipe.ends()
    assert text.replace("\n[x] x", "").count("x" * (LINE + more)) == 1
    assert text.endswith("x\n[x] next\n")
    assert "[x] \n" not in text


def test_a_long_line_goes_on_after_a_part() -> None:
    """The rest of it, and an empty line after it."""
    pipe = Pipe()
    pipe.says(b"x" * (LINE + 1))
    pipe.says(b"rest\n\nnext\n")
    assert pipe.ends() == f"[x] {'x' * (LINE + 1)}\n[x] rest\n[x] \n[x] next\n"


def test_a_part_ends_between_two_bytes_of_a_character() -> None:
    """The character arrives whole, with the next part."""
    pipe = Pipe()
    data = "é".encode()
    pipe.says(b"x" * LINE + data[:1])
    pipe.says(data[1:] + b"\n")
    assert pipe.ends() == f"[x] {'x' * LINE}\n[x] é\n"


def test_other_ends_of_line_are_text() -> None:
    """Only a line feed ends a line."""
    pipe = Pipe()
    pipe.says("a\x0bb\x85c\u2028d\n".encode())
    assert pipe.ends() == "[x] a\x0bb\x85c\u2028d\n"


def test_nothing_said_is_nothing() -> None:
    """No label without a line."""
    assert Pipe().ends() == ""


# -- the start ----------------------------------------------------------------------------------


def open_here() -> int:
    return len(os.listdir("/proc/self/fd"))


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("close_fds", [False, True])
@pytest.mark.parametrize("stdout", [False, True])
@pytest.mark.parametrize("stderr", [False, True])
async def test_any_capture_leaves_nothing_open(
    anyio_backend: object, stdout: bool, stderr: bool, close_fds: bool
) -> None:
    """Each of the two alone, both, or none: what is captured arrives, and every end is closed."""
    with hearing() as (out, err):
        name = current_backend().name
        options = Options(name, 2.0, LIMIT, close_fds, stderr, stdout, null_stdin=stdout)
        for round_ in range(2):
            before = open_here()
            f = prints if stdout and stderr else says_one if stdout or stderr else asks_nothing
            async with start_worker(f, 1 if stdout else 2, options, label="x") as worker:
                await worker.wait()
            with anyio.fail_after(20):
                while round_ and open_here() != before:  # the first one starts the guard
                    await anyio.sleep(0.001)
            assert worker.returncode == 0
        assert bool(out.text) is stdout
        assert bool(err.text) is stderr


def says_one(inp: InputChannel, out: OutputChannel, fd: int) -> None:
    print("said", file=sys.stdout if fd == 1 else sys.stderr)


def asks_nothing(inp: InputChannel, out: OutputChannel, arg: object) -> None:
    assert not os.get_inheritable(inp.fileno())


async def test_a_sibling_does_not_hold_an_end() -> None:
    """A worker that was started later has no end of another's pipes: its output ends with it."""
    with hearing() as (out, _):
        async with start(waits, None) as first:
            async with start(waits, None) as second:
                first.kill()
                await first.wait()
                relay = first._stdout
                assert relay is not None
                assert relay._closed
                await sync_with(second)
            assert "up" in out.text


async def sync_with(worker: ProcessWorker) -> None:
    assert await anext(worker.input_channel) == b"up"


def waits(inp: InputChannel, out: OutputChannel, arg: object) -> None:
    print("up")
    sync.write_message(out, b"up")
    sync.read_message(inp)

"""What cannot work is refused by a clear error, before anything is started."""

from __future__ import annotations

import functools
import inspect
import os
import struct
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import anyio
import pytest

import forkwire
from forkwire import (
    ChannelOSError,
    EndOfFile,
    ForkUnavailableError,
    ForkwireError,
    InputChannel,
    NegativeSizeError,
    OutputChannel,
    PayloadTypeError,
    ProcessWorkerIPCError,
    SizeLimitError,
    UsageError,
    read_message,
    run,
    sync,
    write_message,
)

from .test_run_support import received

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.filterwarnings("ignore::forkwire.ForkThreadsWarning"),
]


async def nothing(inp: InputChannel, out: OutputChannel, arg: object) -> None:
    pass


def generator(inp: InputChannel, out: OutputChannel, arg: object) -> Iterator[bytes]:
    yield b""


async def async_generator(
    inp: InputChannel, out: OutputChannel, arg: object
) -> AsyncIterator[bytes]:
    yield b""


def two(inp: InputChannel, out: OutputChannel) -> None: ...


def four(inp: InputChannel, out: OutputChannel, arg: object, more: object) -> None: ...


def needs_keyword(inp: InputChannel, out: OutputChannel, arg: object, *, key: int) -> None: ...


class Generators:
    """One whose call would run nothing."""

    def __call__(self, inp: InputChannel, out: OutputChannel, arg: object) -> Iterator[bytes]:
        yield b""

    def method(self, inp: InputChannel, out: OutputChannel, arg: object) -> Iterator[bytes]:
        yield b""


@pytest.fixture
def no_fork(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever is refused is refused before the fork."""

    def fork() -> int:
        raise AssertionError("forked")

    monkeypatch.setattr(os, "fork", fork)


@pytest.mark.usefixtures("no_fork")
@pytest.mark.parametrize(
    ("f", "text"),
    [
        (None, "takes a function f(input, output, arg), not NoneType"),
        (7, "takes a function f(input, output, arg), not int"),
        ("nothing", "takes a function f(input, output, arg), not str"),
        (generator, "generator has a yield"),
        (async_generator, "async_generator has a yield"),
        (functools.partial(generator), "has a yield"),
        (Generators().method, "Generators.method has a yield"),
        (Generators(), "has a yield"),
        (two, "two(inp: 'InputChannel', out: 'OutputChannel') -> 'None' cannot be called"),
        (four, "missing a required argument: 'more'"),
        (needs_keyword, "argument: 'key'"),
        (lambda: None, "cannot be called as f(input, output, arg): too many positional"),
    ],
)
async def test_f_that_can_never_run(f: Any, text: str) -> None:
    """A UsageError, which is a TypeError too, says what was passed and what is wanted."""
    with pytest.raises(UsageError) as caught:
        await run(f, None)
    assert isinstance(caught.value, (ForkwireError, TypeError))
    assert text in str(caught.value)


@pytest.mark.usefixtures("no_fork")
async def test_a_coroutine_instead_of_its_function() -> None:
    """The error names the function to pass, and no "never awaited" follows."""
    coroutine = nothing(None, None, None)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match=r"write run\(nothing, arg\)"):
        await run(coroutine, None)  # type: ignore[arg-type]
    assert inspect.getcoroutinestate(coroutine) == inspect.CORO_CLOSED


@pytest.mark.usefixtures("no_fork")
@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"grace": -1}, "grace is a number of seconds, 0 or more, not -1"),
        ({"grace": float("nan")}, "grace is a number"),
        ({"grace": float("inf")}, "grace is a number"),
        ({"grace": "2"}, "grace is a number of seconds, 0 or more, not '2'"),
        ({"grace": None}, "grace is a number"),
        ({"backend": "curio"}, "backend must be one of"),
        ({"backend": 3}, "backend must be one of"),
        ({"backend": ["trio"]}, "backend must be one of"),
        ({"max_message_size": -1}, "max_message_size is a number of bytes, 0 to 2147483647"),
        ({"max_message_size": 2**31}, "max_message_size is a number of bytes"),
        ({"max_message_size": 1.5}, "max_message_size is a number of bytes"),
    ],
)
async def test_options_that_cannot_work(options: dict[str, Any], text: str) -> None:
    """Each says what is accepted."""
    with pytest.raises(UsageError) as caught:
        await run(nothing, None, **options)
    assert text in str(caught.value)


@pytest.mark.usefixtures("no_fork")
@pytest.mark.parametrize("name", ["uvloop", "trio"])
async def test_a_backend_that_is_not_installed(
    name: Any, monkeypatch: pytest.MonkeyPatch, anyio_backend: tuple[str, dict[str, Any]]
) -> None:
    """The error is raised here, not in the child, and says what to install."""
    if name == anyio_backend[0]:
        return  # the host runs on it
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(UsageError, match=rf"pip install forkwire\[{name}\]"):
        await run(nothing, None, backend=name)


async def test_without_fork(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a platform that has none, the error says what to do."""
    monkeypatch.delattr(os, "fork")
    with pytest.raises(ForkUnavailableError, match="WSL"):
        await run(nothing, None)


def test_without_a_loop() -> None:
    """``run`` outside any loop cannot be awaited, and says nothing odd."""
    coroutine = run(nothing, None)
    with pytest.raises(RuntimeError):
        coroutine.send(None)
    coroutine.close()


@pytest.mark.usefixtures("no_fork")
async def test_a_cancelled_run_starts_nothing() -> None:
    """It is a checkpoint before the fork; after it, it cannot be cancelled."""
    with anyio.CancelScope() as scope:
        scope.cancel()
        await run(nothing, None)
    assert scope.cancelled_caught


def raw(data: bytes) -> Callable[[InputChannel, OutputChannel, object], None]:
    """A peer that does not keep to the protocol."""

    def f(inp: InputChannel, out: OutputChannel, arg: object) -> None:
        os.write(out.fileno(), data)
        sync.read_message(inp)

    return f


async def test_a_negative_size_from_a_worker() -> None:
    """A PeerError with the size, again and again; the worker can still be closed."""
    async with await run(raw(struct.pack("=i", -5) + b"rest"), None) as worker:
        for _ in range(2):
            with pytest.raises(NegativeSizeError) as caught:
                await read_message(worker.input_channel)
            assert caught.value.size == -5
            assert isinstance(caught.value, ProcessWorkerIPCError)
    assert worker.returncode == 0


async def test_a_size_above_the_limit_from_a_worker() -> None:
    """Refused before anything is allocated: the size never arrives."""
    async with await run(raw(struct.pack("=i", 2**31 - 1)), None, max_message_size=1000) as worker:
        with pytest.raises(SizeLimitError) as caught:
            await read_message(worker.input_channel)
        assert (caught.value.size, caught.value.limit) == (2**31 - 1, 1000)
    assert worker.returncode == 0


async def test_max_message_size_holds_in_the_worker_too() -> None:
    """At the limit a message passes, above it the worker's own read raises."""

    def f(inp: InputChannel, out: OutputChannel, arg: object) -> None:
        message = sync.read_message(inp)
        assert isinstance(message, bytes)
        sync.write_message(out, message)
        with pytest.raises(SizeLimitError):
            sync.read_message(inp)

    async with await run(f, None, max_message_size=10) as worker:
        await write_message(worker.output_channel, b"x" * 10)
        assert await received(worker) == b"x" * 10
        await write_message(worker.output_channel, b"x" * 11)
        assert await worker.wait() == 0


@pytest.mark.parametrize("payload", ["text", 7, None, [1], object()])
async def test_a_payload_that_is_not_bytes_like(payload: Any) -> None:
    """Nothing is sent, and the channel goes on working."""

    def f(inp: InputChannel, out: OutputChannel, arg: object) -> None:
        with pytest.raises(PayloadTypeError):
            sync.write_message(out, payload)
        for message in sync.messages(inp):
            sync.write_message(out, message)

    async with await run(f, None) as worker:
        with pytest.raises(PayloadTypeError, match="bytes-like"):
            await write_message(worker.output_channel, payload)
        await write_message(worker.output_channel, memoryview(b"fine"))
        assert await received(worker) == b"fine"


async def test_a_channel_that_this_side_closed() -> None:
    """Reading and writing answer the end of the file."""
    async with await run(nothing, None) as worker:
        await worker.input_channel.aclose()
        await worker.output_channel.aclose()
        assert isinstance(await read_message(worker.input_channel), EndOfFile)
        assert isinstance(await write_message(worker.output_channel, b""), EndOfFile)


async def test_another_workers_channel_as_arg() -> None:
    """It is not in the child: using it there is an error of ours, not somebody else's bytes."""

    async def f(inp: InputChannel, out: OutputChannel, other: InputChannel) -> None:
        try:
            await read_message(other)
        except ChannelOSError as error:
            await write_message(out, f"{error.errno}".encode())

    async def other(inp: InputChannel, out: OutputChannel, arg: object) -> None:
        await write_message(out, b"for the host alone")

    async with (
        await run(other, None) as first,
        await run(f, first.input_channel) as second,
    ):
        assert await received(second) == b"9"  # EBADF
        assert await received(first) == b"for the host alone"


def test_every_error_is_of_the_one_tree() -> None:
    """Whoever catches ForkwireError catches them all."""
    for name in forkwire.__all__:
        thing = getattr(forkwire, name)
        if isinstance(thing, type) and issubclass(thing, Exception):
            assert issubclass(thing, (ForkwireError, Warning)), name

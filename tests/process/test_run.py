"""What a worker inherits, and what it is: ``f``, ``arg``, the context, and a process of its own."""

from __future__ import annotations

import asyncio
import contextvars
import functools
import os
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anyio
import pytest
import trio
import uvloop

from forkwire import (
    EndOfFile,
    InputChannel,
    OutputChannel,
    ProcessWorker,
    read_message,
    run,
    sync,
    write_message,
)
from forkwire.process.backend import BackendName, current_backend

from .test_run_support import name_of, program, received, until_asleep

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.filterwarnings("ignore::forkwire.ForkThreadsWarning"),
]

Channels = tuple[InputChannel, OutputChannel]


def say(inp: InputChannel, out: OutputChannel, arg: bytes) -> None:
    sync.write_message(out, arg)


async def say_async(inp: InputChannel, out: OutputChannel, arg: bytes) -> None:
    await write_message(out, arg)


class Speaker:
    """Methods, plain and async, and an async ``__call__``."""

    def __init__(self, more: bytes) -> None:
        self.more = more

    def plain(self, inp: InputChannel, out: OutputChannel, arg: bytes) -> None:
        sync.write_message(out, arg + self.more)

    async def method(self, inp: InputChannel, out: OutputChannel, arg: bytes) -> None:
        await write_message(out, arg + self.more)

    async def __call__(self, inp: InputChannel, out: OutputChannel, arg: bytes) -> None:
        await write_message(out, arg + self.more)


class PlainSpeaker(Speaker):
    """A plain ``__call__``, which answers a coroutine."""

    def __call__(self, inp: InputChannel, out: OutputChannel, arg: bytes) -> Any:
        return super().__call__(inp, out, arg)


def closure(more: bytes) -> Callable[[InputChannel, OutputChannel, bytes], None]:
    def inner(inp: InputChannel, out: OutputChannel, arg: bytes) -> None:
        sync.write_message(out, arg + more)

    return inner


def with_more(more: bytes, inp: InputChannel, out: OutputChannel, arg: bytes) -> None:
    sync.write_message(out, arg + more)


async def with_more_async(
    inp: InputChannel, out: OutputChannel, arg: bytes, *, more: bytes
) -> None:
    await write_message(out, arg + more)


CALLABLES: dict[str, Callable[[InputChannel, OutputChannel, bytes], object]] = {
    "plain lambda": lambda inp, out, arg: sync.write_message(out, arg + b"!"),
    "lambda that answers a coroutine": lambda inp, out, arg: say_async(inp, out, arg + b"!"),
    "closure": closure(b"!"),
    "partial of a plain function": functools.partial(with_more, b"!"),
    "partial of an async function": functools.partial(with_more_async, more=b"!"),
    "plain bound method": Speaker(b"!").plain,
    "async bound method": Speaker(b"!").method,
    "object with an async __call__": Speaker(b"!"),
    "object with a plain __call__": PlainSpeaker(b"!"),
}


@pytest.mark.parametrize("f", CALLABLES.values(), ids=CALLABLES)
async def test_f_may_be_any_callable(f: Callable[[InputChannel, OutputChannel, Any], Any]) -> None:
    """Nothing about ``f`` must be importable or picklable."""
    async with await run(f, b"hello") as worker:
        assert await received(worker) == b"hello!"
        assert await worker.wait() == 0


async def test_arg_is_inherited_and_never_serialised(tmp_path: Path) -> None:
    """What no serialiser takes is there, in the state that it was in."""

    class Refuses:
        def __reduce__(self) -> Any:
            raise AssertionError("serialised")

    def f(inp: InputChannel, out: OutputChannel, arg: Any) -> None:
        refuses, file, lock, generator, function = arg
        assert type(refuses) is Refuses
        assert lock.locked()
        sync.write_message(out, file.read() + str((next(generator), function(2))).encode())

    path = tmp_path / "file"
    path.write_bytes(b"0123456789")
    lock = threading.Lock()
    generator = (number * number for number in range(10))
    with path.open("rb", buffering=0) as file, lock:
        assert (file.read(4), next(generator), next(generator)) == (b"0123", 0, 1)
        async with await run(f, (Refuses(), file, lock, generator, lambda x: x + 1)) as worker:
            assert await received(worker) == b"456789(4, 3)"
        assert file.read() == b""  # the position is shared, as after any fork
        assert next(generator) == 4  # the memory is not


def test_a_huge_table_stays_shared() -> None:
    """Reading 128 MiB of numpy costs the worker next to no memory of its own."""
    done = program(
        """
        import numpy as np

        def private():
            lines = open("/proc/self/smaps_rollup").read().splitlines()[1:]
            sizes = {line.split()[0]: int(line.split()[1]) for line in lines}
            return sizes["Private_Dirty:"] + sizes["Private_Clean:"], sizes["Rss:"], sizes["Pss:"]

        def f(inp, out, table):
            total = int(table.sum())
            own, resident, proportional = private()
            assert resident > table.nbytes / 1024, resident
            assert proportional < table.nbytes / 1024 * 0.75, proportional
            sync.write_message(out, b"%d %d" % (total, own))

        async def main():
            table = np.ones(2**24, np.int64)
            async with await run(f, table) as worker:
                total, own = map(int, (await read_message(worker.input_channel)).split())
                assert total == 2**24, total
                assert own < 16 * 1024, own

        anyio.run(main)
        """,
        options=(),
        env={**os.environ, "OPENBLAS_NUM_THREADS": "1"},
    )
    assert (done.returncode, done.stderr) == (0, "")


async def test_context_variables_are_visible() -> None:
    """The child sees the caller's context, and its changes stay its own."""
    variable = contextvars.ContextVar("variable", default="unset")

    async def f(inp: InputChannel, out: OutputChannel, arg: object) -> None:
        await write_message(out, variable.get().encode())
        variable.set("changed")

    variable.set("set by the host")
    async with await run(f, None) as worker:
        assert await received(worker) == b"set by the host"
    assert variable.get() == "set by the host"


async def test_the_worker_is_a_process_of_its_own() -> None:
    """Its parent is the host, it leads a process group, and its memory is a copy."""
    counter = [0]

    def f(inp: InputChannel, out: OutputChannel, arg: object) -> None:
        counter[0] += 1
        facts = (os.getpid(), os.getppid(), os.getpgrp(), os.getsid(0), os.getcwd(), counter)
        sync.write_message(out, repr(facts).encode())

    async with await run(f, None) as worker:
        facts = (worker.pid, os.getpid(), worker.pid, os.getsid(0), os.getcwd(), [1])
        assert await received(worker) == repr(facts).encode()
    assert counter == [0]


async def test_the_hosts_cancel_scopes_do_not_reach_the_child() -> None:
    """What is cancelled around ``run`` in the host goes on in the worker."""

    async def f(inp: InputChannel, out: OutputChannel, arg: object) -> None:
        await anyio.sleep(0)
        await write_message(out, str(anyio.current_effective_deadline()).encode())
        async for message in inp:
            await write_message(out, message)

    async def start() -> None:
        with anyio.CancelScope() as scope, anyio.move_on_after(1000):
            workers.append(await run(f, None))
            scope.cancel()
            await anyio.sleep_forever()

    workers: list[ProcessWorker] = []
    async with anyio.create_task_group() as outer, anyio.create_task_group() as inner:
        inner.start_soon(start)
        outer.start_soon(anyio.sleep, 0)
    async with workers[0] as worker:
        assert await received(worker) == b"inf"
        await write_message(worker.output_channel, b"still here")
        assert await received(worker) == b"still here"


async def test_several_workers_at_once() -> None:
    """Started together, each has its own pipes, arg and process."""

    async def ask(number: int) -> None:
        async with await run(say if number % 2 else say_async, b"%d" % number) as worker:
            answers[number] = await received(worker)
            pids.add(worker.pid)
            assert await worker.wait() == 0

    answers: dict[int, bytes] = {}
    pids: set[int] = set()
    async with anyio.create_task_group() as group:
        for number in range(8):
            group.start_soon(ask, number)
    assert answers == {number: b"%d" % number for number in range(8)}
    assert len(pids) == 8


async def relay(worker: ProcessWorker, out: OutputChannel) -> None:
    async with worker:
        async for message in worker.input_channel:
            await write_message(out, message)


async def test_a_worker_may_run_workers(anyio_backend: tuple[str, dict[str, Any]]) -> None:
    """``run`` inside ``run``, two levels down, on the same backend."""
    host = name_of(anyio_backend)

    async def f(inp: InputChannel, out: OutputChannel, depth: int) -> None:
        assert current_backend().name == host
        await write_message(out, b"%d %d" % (depth, os.getppid()))
        if depth:
            await relay(await run(f, depth - 1), out)

    async with await run(f, 2) as worker:
        parents: list[int] = []
        async for message in worker.input_channel:
            depth, parent = map(int, message.split())
            assert depth == 2 - len(parents)
            parents.append(parent)
        assert parents[:2] == [os.getpid(), worker.pid]
        assert len(set(parents)) == 3
        assert await worker.wait() == 0


async def test_a_thread_of_a_worker_may_run_workers(anyio_backend_name: str) -> None:
    """No lock of ours is left held in the child."""

    def f(inp: InputChannel, out: OutputChannel, arg: object) -> None:
        async def main() -> None:
            await relay(await run(say, b"from the inner one"), out)

        thread = threading.Thread(target=lambda: anyio.run(main, backend=anyio_backend_name))
        thread.start()
        thread.join()

    async with await run(f, None) as worker:
        with anyio.fail_after(20):
            assert await received(worker) == b"from the inner one"
        assert await worker.wait() == 0


async def use_every_backend() -> None:
    backends: tuple[BackendName | None, ...] = (None, "asyncio", "uvloop", "trio")
    for backend in backends:
        async with await run(say_async, b"hello", backend=backend) as worker:
            assert await received(worker) == b"hello"
            assert await worker.wait() == 0


async def use_every_backend_eagerly() -> None:
    """In a task that runs before its creator has ended its turn (Python 3.12)."""
    factory = vars(asyncio)["eager_task_factory"]
    asyncio.get_running_loop().set_task_factory(factory)
    await asyncio.create_task(use_every_backend())


PLAIN_HOSTS: dict[str, Callable[[], object]] = {
    "asyncio.run": lambda: asyncio.run(use_every_backend()),
    "asyncio.run, debug": lambda: asyncio.run(use_every_backend(), debug=True),
    "uvloop.run": lambda: uvloop.run(use_every_backend()),
    "trio.run": lambda: trio.run(use_every_backend),
}
if sys.version_info >= (3, 12):
    PLAIN_HOSTS["eager tasks"] = lambda: asyncio.run(use_every_backend_eagerly())


@pytest.mark.parametrize("host", PLAIN_HOSTS.values(), ids=PLAIN_HOSTS)
def test_the_host_need_not_use_anyio(host: Callable[[], object]) -> None:
    """Whatever started the loop, ``run`` finds it, and the child forgets it."""
    host()


async def test_messages_go_both_ways_in_the_order_they_were_sent() -> None:
    """An async echo of a thousand messages of all sizes, with a reader and a writer at work."""

    async def f(inp: InputChannel, out: OutputChannel, arg: object) -> None:
        async for message in inp:
            await write_message(out, message)

    messages = [bytes([n % 256]) * (n * 7919 % 5000) for n in range(1000)]
    async with await run(f, None) as worker, anyio.create_task_group() as group:

        async def send() -> None:
            for message in messages:
                await write_message(worker.output_channel, message)
            await worker.output_channel.aclose()

        group.start_soon(send)
        assert [message async for message in worker.input_channel] == messages


async def test_the_worker_closes_its_channels_when_f_returns() -> None:
    """What was written arrives, then the end of the file, at a message's edge."""
    async with await run(say, b"last words") as worker:
        assert await received(worker) == b"last words"
        assert await read_message(worker.input_channel) == EndOfFile(truncated=False)


async def test_what_f_could_not_write_at_once_is_delivered() -> None:
    """A message whose writer was cancelled in the middle goes out before the worker exits."""
    size = 3_000_000

    async def f(inp: InputChannel, out: OutputChannel, returning: int) -> None:
        async with anyio.create_task_group() as group:
            group.start_soon(write_message, out, b"x" * size)
            await anyio.wait_all_tasks_blocked()
            group.cancel_scope.cancel()
        os.write(returning, b"+")

    told, returning = os.pipe()
    async with await run(f, returning) as worker:
        await anyio.wait_readable(told)
        await until_asleep(worker.pid)
        assert await received(worker) == b"x" * size
        assert await worker.wait() == 0
    os.close(told)
    os.close(returning)


async def test_the_recursion_limit_and_the_like_are_the_hosts() -> None:
    """Interpreter state that nobody asked to change is inherited."""
    before = sys.getrecursionlimit()

    def f(inp: InputChannel, out: OutputChannel, arg: object) -> None:
        sync.write_message(out, str((sys.getrecursionlimit(), sys.argv)).encode())

    sys.setrecursionlimit(before + 17)
    try:
        async with await run(f, None) as worker:
            assert await received(worker) == str((before + 17, sys.argv)).encode()
    finally:
        sys.setrecursionlimit(before)

"""``forkwire map``: one call a file, over a pool of workers."""

from __future__ import annotations

import sys
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any, Final, TextIO

import anyio
import anyio.to_thread

from .. import (
    ForkwireError,
    InvalidArgumentsError,
    Pool,
    PoolBrokenError,
    RemoteError,
    UsageError,
    WrongKindError,
    open_pool,
)
from ..process.backend import BackendName
from ..rpc.data.kinds import STREAMED
from .calling import look_here_too, on_one_line, worker_prints_to_stderr
from .plain import json_of
from .running import FAILURE, USAGE, complain, run_async
from .terminal import PlainConsole, counted, printable

__all__ = ["Job", "map_files"]

# Calls that are made for each worker: one that it runs, one that waits for it.
AHEAD: Final = 2
# Results that wait for an earlier one to be printed.
KEPT: Final = 1000

# What no other file will do better with.
WRONG_USE: Final = (InvalidArgumentsError, UsageError, WrongKindError)


@dataclass(frozen=True, slots=True)
class Job:
    """What is asked for. ``files``: names; ``stdin``: more are on standard input, one a line.

    ``timeout``: seconds for one file. ``content``: the function gets the bytes, not the name.
    """

    target: str
    files: Sequence[str]
    stdin: bool = False
    workers: int | None = None
    timeout: float | None = None
    content: bool = False
    ordered: bool = True
    show_traceback: bool = False


def map_files(job: Job, backend: BackendName) -> int:
    """Call the function for each file, print what it answers; the exit status."""
    _, colon, path = job.target.partition(":")
    if not (colon and path):
        return complain(f"name a function in a module, as in zlib:crc32, not {job.target}", USAGE)
    look_here_too()
    with worker_prints_to_stderr() as out:
        return run_async(lambda: mapped(job, backend, out), backend)


async def mapped(job: Job, backend: BackendName, out: TextIO) -> int:
    """The exit status; a fault is told."""
    try:
        async with open_pool(job.target, size=job.workers, backend=backend) as pool:
            method = the_function(pool, job.target)
            with counted(stderr_console(), None if job.stdin else len(job.files)) as advance:
                run = Run(job, pool, method, out, advance)
                await run.work()
    except RemoteError as error:  # while it was loaded: those of calls are told where they are made
        return complain(f"{job.target} cannot be loaded: {on_one_line(error)}", USAGE)
    except WRONG_USE as error:
        return complain(error, USAGE)
    return run.judge()


def the_function(pool: Pool, target: str) -> str:
    """The name of the only one that there is. Raises :exc:`UsageError`."""
    if len(pool.methods) != 1:
        raise UsageError(f"{target} offers {', '.join(pool.methods)}: name a function, not a class")
    ((name, kind),) = pool.methods.items()
    if kind in STREAMED:
        raise UsageError(f"{name} yields, and map prints one answer a file: use forkwire call")
    return name


@dataclass
class Run:
    """The files on their way, and what became of them."""

    job: Job
    pool: Pool
    method: str
    out: TextIO
    advance: Callable[[int], None]
    done: int = 0
    failed: int = 0
    _next: int = 0  # to be printed
    _lines: dict[int, str | None] = field(default_factory=dict)
    _printed: anyio.Event = field(default_factory=anyio.Event)
    _taking: anyio.Lock = field(default_factory=anyio.Lock)
    _taken: int = 0
    _since: float = field(default_factory=time.monotonic)

    async def work(self) -> None:
        """Returns when every file had its turn; raises what no file can be spared from."""
        failure: BaseException | None = None
        try:
            async with (
                aclosing(names_of(self.job)) as names,
                anyio.create_task_group() as tasks,
            ):
                for _ in range(AHEAD * self.pool.statistics().size):
                    tasks.start_soon(self._take_and_call, names)
        except* (*WRONG_USE, PoolBrokenError) as group:
            failure = first_of(group)
        if failure is not None:
            raise failure  # not where it was caught: some Pythons would make a group of it

    async def _take_and_call(self, names: AsyncIterator[str]) -> None:
        while True:
            async with self._taking:
                while self._taken - self._next > KEPT:
                    await self._printed.wait()
                try:
                    name = await anext(names)
                except StopAsyncIteration:
                    return
                number = self._taken
                self._taken += 1
            self._finish(number, await self._call(name))

    async def _call(self, name: str) -> str | None:
        """The line to be printed; None where it failed, which is told."""
        try:
            argument: object = name
            if self.job.content:
                argument = await anyio.Path(name).read_bytes()
            with anyio.fail_after(self.job.timeout):
                answer = await self.pool.call(self.method, argument)
            return json_of({"file": name, "result": answer})
        except (*WRONG_USE, PoolBrokenError):
            raise
        except TimeoutError as error:
            text = f"took longer than {self.job.timeout:g} seconds, and was stopped"
            self._tell(name, error if isinstance(error, RemoteError) else text)
        except (ForkwireError, OSError) as error:
            self._tell(name, error)
        return None

    def _tell(self, name: str, error: object) -> None:
        if self.job.show_traceback and isinstance(error, RemoteError):
            print(error.traceback.rstrip(), file=sys.stderr)
        text = on_one_line(error) if isinstance(error, Exception) else error
        complain(f"{printable(name)}: {text}")

    def _finish(self, number: int, line: str | None) -> None:
        self.done += line is not None
        self.failed += line is None
        self.advance(1)
        if not self.job.ordered:
            number = self._next
        self._lines[number] = line
        while self._next in self._lines:
            ready = self._lines.pop(self._next)
            self._next += 1
            if ready is not None:
                print(ready, file=self.out, flush=True)
        self._printed.set()
        self._printed = anyio.Event()

    def judge(self) -> int:
        """Say how it went; the exit status."""
        deaths = self.pool.statistics().deaths
        lost = f"; {deaths} worker{'s' * (deaths > 1)} died" if deaths else ""
        took = f"{time.monotonic() - self._since:.1f} s"
        text = f"{self.done} of {self.done + self.failed} files done in {took}{lost}"
        print(f"forkwire: {text}", file=sys.stderr)
        return FAILURE if self.failed else 0


async def names_of(job: Job) -> AsyncGenerator[str, None]:
    """The names, those on standard input line by line as they come."""
    for name in job.files:
        yield name
    while job.stdin and (line := await anyio.to_thread.run_sync(read_line, abandon_on_cancel=True)):
        if name := line.removesuffix("\n"):
            yield name


def read_line() -> str:
    return "" if sys.stdin is None else sys.stdin.readline()


def first_of(group: BaseExceptionGroup[Any]) -> BaseException:
    error: BaseException = group.exceptions[0]
    return first_of(error) if isinstance(error, BaseExceptionGroup) else error


def stderr_console() -> PlainConsole:
    """Where the bar goes: what is printed may go into a file."""
    is_terminal = sys.stderr is not None and sys.stderr.isatty()
    return PlainConsole(stderr=True, force_terminal=is_terminal, highlight=False)

"""``forkwire call`` and ``forkwire describe``: a service from the shell."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final, TextIO

import anyio
from rich.console import Console

from .. import (
    InvalidArgumentsError,
    MethodNotFoundError,
    RemoteError,
    UsageError,
    Worker,
    open_worker,
)
from ..process.backend import BackendName
from ..rpc.data.kinds import STREAMED
from ..rpc.handlers.service import Service
from .plain import json_of, split_arguments
from .running import USAGE, complain, run_async
from .terminal import printable

__all__ = ["call", "describe"]

# What the caller wrote wrong, which nothing was run of.
WRONG_USE: Final = (InvalidArgumentsError, MethodNotFoundError, UsageError)

PREFIXES: Final = {"async": "async ", "generator": "stream ", "async_generator": "async stream "}


def describe(name: str, console: Console) -> int:
    """Show what the service ``name`` offers; answer the exit status."""
    look_here_too()
    try:
        about = Service.of(name).describe()
    except UsageError as error:
        return complain(error, USAGE)
    except Exception as error:  # its module may raise anything when it is imported
        return complain(f"{name} cannot be loaded: {on_one_line(error)}", USAGE)
    console.print(printable(" - ".join(filter(None, (about["name"], about["doc"])))), style="bold")
    for method, facts in about["methods"].items():
        prefix = PREFIXES.get(facts["kind"], "")
        console.print(f"\n{prefix}{method}{printable(facts['signature'])}", soft_wrap=True)
        if facts["doc"]:
            console.print(f"    {printable(facts['doc'])}", soft_wrap=True)
    return 0


def call(
    service: str,
    method: str,
    words: Sequence[str],
    *,
    backend: BackendName,
    timeout: float | None,
    show_traceback: bool,
) -> int:
    """Start a worker, call, print the answer; the exit status."""
    try:
        args, kwargs = split_arguments(words)
    except ValueError as error:
        return complain(error, USAGE)
    look_here_too()
    with worker_prints_to_stderr() as out:
        asked = Asked(service, method, args, kwargs, out)
        return run_async(lambda: answered(asked, backend, timeout, show_traceback), backend)


@dataclass(frozen=True, slots=True)
class Asked:
    """What is called, and where its answer goes."""

    service: str
    method: str
    args: list[Any]
    kwargs: dict[str, Any]
    out: TextIO


async def answered(
    asked: Asked, backend: BackendName, timeout: float | None, show_traceback: bool
) -> int:
    """The exit status; a fault is told."""
    try:
        with anyio.fail_after(timeout) as limit:
            return await start_and_call(asked, backend)
    except RemoteError as error:
        if show_traceback:
            print(error.traceback.rstrip(), file=sys.stderr)
        return complain(on_one_line(error))
    except WRONG_USE as error:
        return complain(error, USAGE)
    except TimeoutError:
        if not limit.cancelled_caught:
            raise
        return complain(f"{asked.method} took longer than {timeout:g} seconds, and was stopped")


async def start_and_call(asked: Asked, backend: BackendName) -> int:
    async with contextlib.AsyncExitStack() as stack:
        try:
            opening = open_worker(asked.service, start="fork", backend=backend)  # for one call
            worker = await stack.enter_async_context(opening)
        except RemoteError as error:
            return complain(f"{asked.service} cannot be loaded: {on_one_line(error)}", USAGE)
        await print_answer(worker, asked)
    return 0


async def print_answer(worker: Worker, asked: Asked) -> None:
    """One line of JSON, or one for each item of a stream as it comes."""
    if worker.methods.get(asked.method) in STREAMED:
        async with worker.stream(asked.method, *asked.args, **asked.kwargs) as items:
            async for item in items:
                print(json_of(item), file=asked.out, flush=True)
    else:
        answer = await worker.call(asked.method, *asked.args, **asked.kwargs)
        print(json_of(answer), file=asked.out)


@contextlib.contextmanager
def worker_prints_to_stderr() -> Iterator[TextIO]:
    """Nothing but JSON goes to standard output, which this answers."""
    with contextlib.redirect_stdout(sys.stderr):
        yield sys.__stdout__ or sys.stderr


def look_here_too() -> None:
    """A module in the current folder is found, as with ``python -m``."""
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())


def on_one_line(error: Exception) -> str:
    """The type and the message, without the remote traceback."""
    if isinstance(error, RemoteError):
        kind, text = error.type_name.removeprefix("builtins."), error.message
    else:
        kind, text = type(error).__name__, str(error)
    return printable(": ".join(filter(None, (kind, " ".join(text.split())))))

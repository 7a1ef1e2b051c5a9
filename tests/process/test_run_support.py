"""What the tests of ``run`` share; it holds no test."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
import threading
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Final, TypeVar

import anyio

from forkwire import EndOfFile, ProcessWorker, read_message
from forkwire.process import ownership
from forkwire.process.backend import BackendName

__all__ = [
    "HOSTS",
    "is_gone",
    "name_of",
    "open_files",
    "owned",
    "program",
    "received",
    "run_in",
    "until_asleep",
    "until_readable",
]

T = TypeVar("T")

HOSTS: Final[dict[BackendName, dict[str, Any]]] = {
    "asyncio": {"backend": "asyncio", "backend_options": {"use_uvloop": False}},
    "uvloop": {"backend": "asyncio", "backend_options": {"use_uvloop": True}},
    "trio": {"backend": "trio"},
}

PRELUDE: Final = """
import atexit, ctypes, os, signal, socket, subprocess, sys, threading, time
import anyio
from forkwire import *
from forkwire import sync
"""


def program(
    source: str, *arguments: str, options: tuple[str, ...] = ("-W", "error"), **more: Any
) -> subprocess.CompletedProcess[str]:
    """Run ``source`` as a program of its own, in which forkwire's names are there."""
    unusual = {"PYTHONUNBUFFERED", "PYTHONWARNINGS", "PYTHONDEVMODE"}
    environment = {key: value for key, value in os.environ.items() if key not in unusual}
    return subprocess.run(
        [sys.executable, *options, "-c", PRELUDE + textwrap.dedent(source), *arguments],
        **{"capture_output": True, "text": True, "timeout": 40, "env": environment, **more},
    )


def run_in(host: BackendName, thread: bool, main: Callable[[], Awaitable[T]]) -> T:
    """``anyio.run`` in this thread, or in one of its own."""
    results: list[T] = []
    errors: list[BaseException] = []

    def target() -> None:
        try:
            results.append(anyio.run(main, **HOSTS[host]))
        except BaseException as error:
            errors.append(error)

    if thread:
        runner = threading.Thread(target=target)
        runner.start()
        runner.join()
    else:
        target()
    if errors:
        raise errors[0]
    return results[0]


def name_of(anyio_backend: tuple[str, dict[str, Any]]) -> BackendName:
    """What the parameter of a test is called in ``run``."""
    name, options = anyio_backend
    if name == "trio":
        return "trio"
    return "uvloop" if options.get("use_uvloop") else "asyncio"


async def received(worker: ProcessWorker) -> bytes:
    """The worker's next message."""
    message = await read_message(worker.input_channel)
    assert not isinstance(message, EndOfFile), worker
    return message


async def until_readable(fd: int) -> None:
    """``anyio.wait_readable`` for a task group."""
    await anyio.wait_readable(fd)


async def until_asleep(pid: int) -> None:
    """Wait until a process sleeps: it has nothing left to do but to wait."""
    with anyio.fail_after(20):
        while Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "S":
            await anyio.sleep(0.001)


def is_gone(pid: int) -> bool:
    """Whether it was reaped: a zombie is still there."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False


def owned() -> set[int]:
    """The descriptors that no forked child of this process gets."""
    return set(ownership._owned)


def open_files() -> dict[int, str]:
    """What each descriptor of this process leads to."""
    found = {}
    for entry in Path("/proc/self/fd").iterdir():
        try:
            found[int(entry.name)] = os.readlink(entry)
        except FileNotFoundError:  # the listing's own
            continue
    return found

"""A service for workers elsewhere: what is hard to stop, and what prints."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

_state = {"stopped": 0}


def pid() -> int:
    return os.getpid()


def add(a: int, b: int) -> int:
    return a + b


def stopped() -> int:
    return _state["stopped"]


def sleeps(begun: str) -> None:
    Path(begun).write_text(str(os.getpid()))
    try:
        time.sleep(1000)
    finally:
        _state["stopped"] += 1


def computes(begun: str) -> None:
    Path(begun).write_text(str(os.getpid()))
    try:
        for _ in iter(int, 1):
            pass
    finally:
        _state["stopped"] += 1


def in_c(begun: str) -> None:
    """Keeps the interpreter's lock."""
    Path(begun).write_text(str(os.getpid()))
    sum(range(10**12))


def ignores(begun: str) -> None:
    Path(begun).write_text(str(os.getpid()))
    while True:
        try:
            while True:
                time.sleep(0.01)
        except BaseException:
            continue


def descends(begun: str) -> None:
    """Waits for a process of its own, in its group."""
    with subprocess.Popen(["sleep", "1000"]) as process:
        Path(begun).write_text(str(process.pid))


async def sleeps_later(begun: str) -> None:
    import anyio

    Path(begun).write_text(str(os.getpid()))
    await anyio.sleep(1000)


def note(path: str) -> None:
    """Takes its time."""
    time.sleep(0.2)
    Path(path).touch()


def prints() -> str:
    """By Python, by a system call, by C, and by another program; answers what stdin brought."""
    print("by Python")
    os.write(1, b"by a system call\n")
    libc = ctypes.CDLL(None)
    libc.puts(b"by C")
    libc.fflush(None)
    subprocess.run(["echo", "by a program"], check=True)
    print("on stderr", file=sys.stderr)
    return sys.stdin.read()


# The same without a loop.
PLAIN: dict[str, Callable[..., Any]] = {
    function.__name__: function
    for function in (
        add, computes, descends, ignores, in_c, note, pid, prints, sleeps, stopped,
    )
}  # fmt: skip

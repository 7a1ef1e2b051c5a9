"""A service of the tests of start methods: it tells how it was started."""

from __future__ import annotations

import contextlib
import gc
import logging
import os
import random
import signal
import sys
import threading
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any, NoReturn

import anyio

import forkwire
from forkwire import sync

_made_in = os.getpid()  # where this module was imported
_initialized: list[Any] = []


def initialize(*arguments: Any) -> None:
    _initialized.extend(arguments)


def fail_to_initialize() -> NoReturn:
    raise LookupError("no table")


def initialized() -> list[Any]:
    return _initialized


def add(a: int, b: int) -> int:
    return a + b


async def add_later(a: int, b: int) -> int:
    await anyio.lowlevel.checkpoint()
    return a + b


def count(n: int) -> Iterator[int]:
    yield from range(n)


async def count_later(n: int) -> AsyncIterator[int]:
    for number in range(n):
        yield number


def pids() -> list[int]:
    """Of this process, its parent, and the one that imported this module."""
    return [os.getpid(), os.getppid(), _made_in]


def spin() -> NoReturn:
    while True:
        pass


def stuck_in_c() -> None:
    sum(range(10**12))


async def nap(seconds: float) -> None:
    await anyio.sleep(seconds)


def fail(text: str) -> NoReturn:
    raise ValueError(text)


def die(number: int) -> NoReturn:
    """Of a signal, or for 0 with a status."""
    if number:
        os.kill(os.getpid(), number)
        time.sleep(60)
    os._exit(3)


def log(text: str) -> None:
    logging.getLogger("starting").warning(text)


def speak(text: str) -> None:
    print(text, flush=True)
    print(text, file=sys.stderr, flush=True)


def square_there(n: int) -> Any:
    return sync.current_call().host.call("square", n)


async def square_there_later(n: int) -> Any:
    return await forkwire.current_call().host.call("square", n)


def surroundings(name: str) -> list[Any]:
    """What a process has of its own."""
    return [os.environ.get(name), os.getcwd(), sys.argv, sys.path]


def surroundings_safely(name: str) -> list[Any]:
    """The same, where the value may be no text."""
    return [ascii(os.environ.get(name)), os.getcwd(), sys.argv, sys.path]


def environment() -> list[str]:
    return sorted(os.environ)


def handlers() -> list[str]:
    """The signals that do something else than by default."""
    usual = (signal.SIG_DFL, None)
    return [each.name for each in signal.Signals if signal.getsignal(each) not in usual]


def blocked() -> list[int]:
    return sorted(signal.pthread_sigmask(signal.SIG_BLOCK, ()))


def descriptors() -> dict[str, str]:
    found = {}
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(FileNotFoundError):  # the listing's own
            found[name] = os.readlink(f"/proc/self/fd/{name}")
    return found


def collects() -> bool:
    return gc.isenabled()


def threads() -> list[str]:
    return [thread.name for thread in threading.enumerate()]


def chance() -> list[float]:
    """What a generator of random numbers says first."""
    numpy: Any = sys.modules.get("numpy")
    return [random.random(), *([float(numpy.random.random())] if numpy else [])]


def groups() -> list[int]:
    return [os.getpid(), os.getpgrp(), os.getsid(0)]


def start_descendant(begun: str) -> int:
    """A process in this one's group that outlives it, unless somebody ends it."""
    pid = os.fork()
    if pid == 0:
        Path(begun).write_text(str(os.getpid()))
        time.sleep(120)
        os._exit(0)
    return pid


def logging_handlers() -> list[str]:
    return [type(handler).__name__ for handler in logging.getLogger().handlers]


def options() -> list[Any]:
    """Some that the interpreter was started with."""
    return [sys.dont_write_bytecode, sys.warnoptions, sys.flags.utf8_mode]

"""A service that logs and prints, for the tests of these."""

from __future__ import annotations

import atexit
import ctypes
import logging
import os
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any, NoReturn

import anyio

from forkwire import sync

log = logging.getLogger("telling")
log.info("imported")


class Unprintable:
    def __repr__(self) -> str:
        raise RuntimeError("no")


# -- logs -------------------------------------------------------------------------------------


def say(text: str, level: int = logging.WARNING, name: str = "telling") -> None:
    logging.getLogger(name).log(level, "%s", text)


async def say_later(text: str) -> None:
    log.warning("%s", text)
    await anyio.lowlevel.checkpoint()


def say_items(n: int) -> Iterator[int]:
    for number in range(n):
        log.warning("item %d", number)
        yield number
    log.warning("done")


async def say_items_later(n: int) -> AsyncIterator[int]:
    for number in range(n):
        log.warning("item %d", number)
        yield number
    log.warning("done")


def say_in_thread(text: str) -> None:
    thread = threading.Thread(target=log.warning, args=("%s", text), name="mine")
    thread.start()
    thread.join()


def fail_and_say() -> None:
    try:
        raise LookupError("gone")
    except LookupError:
        log.exception("it failed")


def say_unprintable() -> None:
    log.warning("this: %s", Unprintable())
    log.warning("%d", "no number")
    log.warning("half a pair: %s", "\udc80")


def flood(count: int) -> None:
    for number in range(count):
        log.warning("%d", number)


def flood_in_background(count: int, size: int) -> None:
    text = "x" * size

    def run() -> None:
        for number in range(count):
            log.warning("%d %s", number, text)

    threading.Thread(target=run, daemon=True).start()


def say_for_ever() -> NoReturn:
    while True:
        log.debug("unheard")
        log.warning("still here")


def say_at_the_end() -> None:
    atexit.register(log.warning, "at exit")


def say_when_stopped() -> NoReturn:
    try:
        log.warning("begun")
        while True:
            time.sleep(60)
    finally:
        log.warning("stopped")


async def say_later_when_stopped() -> None:
    try:
        log.warning("begun")
        await anyio.sleep_forever()
    finally:
        log.warning("stopped")


def say_when_closed() -> Iterator[int]:
    try:
        yield 1
        yield 2
    finally:
        log.warning("closed")


def handlers() -> list[str]:
    return [type(handler).__name__ for handler in logging.getLogger().handlers]


def enabled(level: int, name: str = "telling") -> bool:
    return logging.getLogger(name).isEnabledFor(level)


def ping() -> int:
    return os.getpid()


# -- prints -----------------------------------------------------------------------------------


def print_lines() -> None:
    print("printed")
    os.write(1, b"written\n")
    print("said", file=sys.stderr)
    libc = ctypes.CDLL(None)
    libc.puts(b"put by C")
    libc.fflush(None)
    subprocess.run(["sh", "-c", "echo by a program; echo its error >&2"], check=True)


def print_line(text: str) -> None:
    print(text)


def print_and_wait(text: str) -> None:
    print(text)
    sync.current_call().progress(1)
    time.sleep(60)


def print_protocol() -> str:
    """What would look like a message, on every descriptor that could be taken for its pipe."""
    for number in (0, 1, 2):
        try:
            os.write(number, b"\x00\x00\x00\x02\x82\x02\n")
        except OSError:
            assert number == 0
    print("\x00\x00\x00\x03abc", flush=True)
    return "intact"


def print_without_end() -> None:
    os.write(1, b"no end")


def print_much(size: int) -> int:
    line = "x" * 99
    for _ in range(size // 100):
        print(line)
    return size


def read_stdin() -> list[Any]:
    program = subprocess.run(["cat"], capture_output=True, check=True)
    return [sys.stdin.read(), os.read(0, 1), program.stdout]


def die(text: str) -> NoReturn:
    print(text, file=sys.stderr)
    os._exit(3)


def crash() -> None:
    ctypes.string_at(0)

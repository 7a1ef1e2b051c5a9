"""A service with plain and async functions that call each other through their host."""

from __future__ import annotations

import threading

import forkwire
from forkwire import sync
from forkwire.process.backend import current_backend


def spin() -> None:
    while True:
        pass


async def add_later(a: int, b: int) -> int:
    return a + b


def my_thread() -> str:
    return threading.current_thread().name


async def countdown_mixed(n: int) -> int:
    """Every other turn is `countdown_plainly`'s."""
    if n == 0:
        return 0
    return 1 + int(await forkwire.current_call().host.call("bounce_plainly", n - 1))


def countdown_plainly(n: int) -> int:
    return 0 if n == 0 else 1 + int(sync.current_call().host.call("bounce_mixed", n - 1))


def wrong_in_plain() -> str:
    try:
        forkwire.current_call()
    except forkwire.UsageError as error:
        return str(error)
    return ""


async def wrong_in_async() -> str:
    try:
        sync.current_call()
    except forkwire.UsageError as error:
        return str(error)
    return ""


async def loop() -> str:
    return current_backend().name

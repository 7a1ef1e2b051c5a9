"""What the tests of executors run in workers; it holds no test."""

from __future__ import annotations

import logging
import os
import pathlib
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

# What should have come within this does not come.
LIMIT = 30.0


def until(condition: Callable[[], Any]) -> Any:
    """Wait for what nothing tells of."""
    end = time.monotonic() + LIMIT
    while not (value := condition()):
        assert time.monotonic() < end, "in vain"
        time.sleep(0.005)
    return value


def square(number: int) -> int:
    return number * number


def fail(text: str) -> None:
    error = ValueError(text, 7)
    error.add_note("a note")
    raise error


def throw(error: BaseException) -> None:
    raise error


def hold(begun: str, go: str) -> str:
    """Say that it has begun, and wait until it may end."""
    path = pathlib.Path(begun)
    path.write_text(str(os.getpid()))
    until(pathlib.Path(go).exists)
    return "held"


def spin(begun: str, stopped: str) -> None:
    try:
        pathlib.Path(begun).touch()
        while True:
            pass
    finally:
        pathlib.Path(stopped).touch()


def sleep_in_c(begun: str) -> int:
    """Keeps the interpreter's lock, and looks at no signal."""
    pathlib.Path(begun).touch()
    return sum(range(10**12))


def note(path: str, number: int) -> int:
    """Add a line to a file, as one of many processes."""
    with open(path, "a") as file:
        file.write(f"{number}\n")
    return number


def note_and_crash(path: str, number: int) -> None:
    note(path, number)
    crash()


def die_soon() -> None:
    """After the worker is ready, at any moment."""
    threading.Timer(0.001, os._exit, (3,)).start()


def crash() -> None:
    os.kill(os.getpid(), 9)


def crash_once(flag: str) -> str:
    path = pathlib.Path(flag)
    if not path.exists():
        path.touch()
        os._exit(3)
    return "at last"


def say(text: str) -> None:
    print(text)
    logging.getLogger("theirs").warning("logged %s", text)


def fill(array: Any) -> Any:
    array[0] = 42
    return array


def make_lambda() -> Callable[[], int]:
    return lambda: 1


def make_generator() -> Any:
    return (n for n in range(3))


class NeedsTwo(Exception):
    """Pickles, and cannot be rebuilt: its constructor takes two arguments."""

    def __init__(self, first: str, second: str) -> None:
        super().__init__(f"{first} and {second}")


class NoPickle(Exception):
    def __reduce__(self) -> Any:
        raise TypeError("never pickled")


def fail_with(kind: Any, *args: object) -> None:
    raise kind(*args)


class Unreadable:
    """Is pickled here, and raises where it is read."""

    def __reduce__(self) -> Any:
        return raise_lookup_error, ()


def raise_lookup_error() -> None:
    raise LookupError("not here")


def make_unreadable() -> Unreadable:
    return Unreadable()


STATE: list[str] = []


def start_with(text: str) -> None:
    STATE.append(text)


def state() -> list[str]:
    return STATE


def refuse(log: str) -> None:
    """An initializer that fails, and counts how often it was run."""
    with open(log, "a") as file:
        file.write("x")
    raise RuntimeError("no database")


def refuse_second(log: str) -> None:
    with open(log, "a") as file:
        file.write("x")
    if len(pathlib.Path(log).read_text()) > 1:
        raise RuntimeError("no database any more")


def loaded(names: list[str]) -> list[str]:
    return [name for name in names if name in sys.modules]

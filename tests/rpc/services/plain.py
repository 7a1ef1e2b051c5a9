"""A service with plain functions only, for the tests of callers without a loop."""

from __future__ import annotations

import logging
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn

from forkwire.sync import current_call, open_worker

_state = {"closed": 0, "stopped": 0}


def add(a: int, b: int) -> int:
    return a + b


def echo(value: object) -> Any:
    return value


def fail(message: str) -> NoReturn:
    raise ValueError(message)


def exit_hard(code: int) -> None:
    os._exit(code)


def pid() -> int:
    return os.getpid()


def state(key: str) -> int:
    return _state[key]


def nap(seconds: float) -> str:
    try:
        time.sleep(seconds)
    except BaseException:
        _state["stopped"] += 1
        raise
    return "slept"


def hold(begun: str, until: str) -> str:
    """Says that it runs, and does until it is let go."""
    Path(begun).touch()
    while not Path(until).exists():
        time.sleep(0.002)
    return "let go"


def deaf(seconds: float) -> None:
    """Cannot be interrupted."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            time.sleep(0.01)
        except BaseException:
            continue


def count(n: int) -> Iterator[int]:
    try:
        yield from range(n)
    finally:
        _state["closed"] += 1


def endless() -> Iterator[int]:
    n = 0
    try:
        while True:
            yield n
            n += 1
    finally:
        _state["closed"] += 1


def silent() -> Iterator[int]:
    """Never gets to its second item."""
    try:
        yield 1
        time.sleep(60)
    finally:
        _state["closed"] += 1


def bad_end() -> Iterator[int]:
    try:
        while True:
            yield 1
    finally:
        raise OSError("the finally failed")


def total(numbers: Iterator[int]) -> int:
    return sum(numbers)


def first(numbers: Iterator[int]) -> int:
    return next(numbers)


def doubled(numbers: Iterator[int]) -> Iterator[int]:
    for number in numbers:
        yield 2 * number


def meet(parties: int) -> list[str]:
    """Ends once so many run at a time."""
    _barrier(parties).wait(timeout=10)
    return [threading.current_thread().name]


_barriers: dict[int, threading.Barrier] = {}
_lock = threading.Lock()


def _barrier(parties: int) -> threading.Barrier:
    with _lock:
        return _barriers.setdefault(parties, threading.Barrier(parties))


def threads() -> list[str]:
    return sorted(thread.name for thread in threading.enumerate())


def wait_for_cancel(begun: str) -> None:
    """Cooperates, in whatever thread it runs."""
    call = current_call()
    Path(begun).touch()
    while not call.cancelled:
        time.sleep(0.002)
    _state["stopped"] += 1


def log(text: str) -> None:
    logging.getLogger("plain").info(text)
    logging.getLogger("plain").error(text)


def modules() -> list[str]:
    return sorted(sys.modules)


_begun: list[Any] = []


def begin(*args: Any) -> None:
    """An initializer."""
    if args == ("boo",):
        raise ValueError("boo")
    _begun.extend(args)


def begun() -> list[Any]:
    return _begun


def environment(name: str) -> str | None:
    return os.environ.get(name)


# -- with a host ------------------------------------------------------------------------------


def ask(method: str, *args: Any) -> Any:
    return current_call().host.call(method, *args)


def ask_for(seconds: float, method: str, *args: Any) -> str:
    try:
        current_call().host.options(timeout=seconds).call(method, *args)
    except TimeoutError as error:
        return str(error)
    return "in time"


def countdown(n: int) -> int:
    """Calls itself through its host; answers how deep it got."""
    return 0 if n == 0 else 1 + int(current_call().host.call("bounce", n - 1))


def gather(n: int) -> list[int]:
    return list(current_call().host.stream("numbers", n))


def gather_some(n: int) -> list[int]:
    taken = []
    with current_call().host.stream("endless_numbers") as numbers:
        for number in numbers:
            taken.append(number)
            if len(taken) == n:
                break
    return taken


def feed(n: int) -> int:
    """Streams an argument to its host."""
    return int(current_call().host.call("total", iter(range(n))))


def steps(n: int) -> str:
    for done in range(n):
        current_call().progress(done + 1, n, f"step {done + 1}")
    return "done"


def deadline() -> float:
    return current_call().deadline - time.monotonic()


def shielded(begun: str, until: str) -> str:
    with current_call().shield():
        hold(begun, until)
        _state["stopped"] += 1
    time.sleep(60)
    return "not stopped"


def who() -> str:
    call = current_call()
    return f"{call.method} {call.cancelled} {call!r}"


def who_elsewhere() -> str:
    """In a thread of its own there is no call."""
    found: list[str] = []

    def look() -> None:
        try:
            current_call()
        except Exception as error:
            found.append(type(error).__name__)

    thread = threading.Thread(target=look)
    thread.start()
    thread.join()
    return found[0]


def grand(n: int) -> int:
    """Has a worker of its own."""
    with open_worker({"double": _double}) as worker:
        return int(worker.call("double", n))


def _double(n: int) -> int:
    return 2 * n


def apply(names: list[str]) -> list[object]:
    here: dict[str, Callable[[], object]] = {"pid": pid, "who": who}
    return [here[name]() for name in names]


def countdown_plain(n: int) -> int:
    """As `countdown`, through a plain function of the host."""
    return 0 if n == 0 else 1 + int(current_call().host.call("bounce_plain", n - 1))


def feed_slowly() -> int:
    def numbers() -> Iterator[int]:
        yield 1
        time.sleep(60)

    return int(current_call().host.call("total", numbers()))


def ask_badly() -> str:
    try:
        current_call().host.call("square", object())
    except TypeError as error:
        return type(error).__name__
    return "sent"


def grand_nap(path: str) -> None:
    """Waits for a worker of its own, whose pid it writes down."""
    with open_worker({"nap": nap}) as worker:
        Path(path).write_text(str(worker.pid))
        worker.call("nap", 60)

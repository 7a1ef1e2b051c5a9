"""A service that dies, hangs, prints, floods and asks back, for the tests of what users suffer."""

from __future__ import annotations

import ctypes
import faulthandler
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn

import anyio

import forkwire.sync

_counted = {"made": 0, "taken": 0, "closed": 0, "unpickled": 0}


# -- dying ------------------------------------------------------------------------------------


def _kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(60)


def _crash_in_c() -> None:
    ctypes.string_at(0)


def _leave_a_program_with_every_descriptor() -> None:
    fds = [int(fd) for fd in os.listdir("/proc/self/fd") if int(fd) > 2]
    held = [fd for fd in fds if os.path.exists(f"/proc/self/fd/{fd}")]
    subprocess.Popen(["sleep", "60"], pass_fds=held)
    os._exit(9)


_ENDS: dict[str, Callable[[], object]] = {
    "SIGKILL": _kill,
    "SIGSEGV": _crash_in_c,
    "SIGABRT": os.abort,
    "os._exit": lambda: os._exit(7),
    "held pipe": _leave_a_program_with_every_descriptor,
}


def die(how: str) -> str:
    _ENDS[how]()
    return "alive"


async def die_later(how: str) -> str:
    await anyio.lowlevel.checkpoint()
    return die(how)


def die_in_stream(how: str) -> Iterator[int]:
    yield 1
    die(how)


def complain_and_die(words: str) -> None:
    print(words, file=sys.stderr)
    sys.stderr.flush()
    os._exit(3)


def crash_in_c(words: str) -> None:
    print(words, file=sys.stderr, flush=True)
    faulthandler.enable()
    _crash_in_c()


# -- waiting ----------------------------------------------------------------------------------


def pid() -> int:
    return os.getpid()


async def pid_later() -> int:
    return os.getpid()


def wait_for(begun: str, path: str) -> str:
    """Runs from when ``begun`` is made until ``path`` is there."""
    try:
        Path(begun).touch()
        while not os.path.exists(path):
            time.sleep(0.002)
    finally:
        _counted["closed"] += 1
    return "found"


async def wait_for_later(begun: str, path: str) -> str:
    try:
        Path(begun).touch()
        while not os.path.exists(path):
            await anyio.sleep(0.002)
    finally:
        _counted["closed"] += 1
    return "found"


def spin(begun: str) -> None:
    """Pure Python that never waits."""
    try:
        Path(begun).touch()
        while True:
            pass
    finally:
        _counted["closed"] += 1


def sleep(begun: str) -> None:
    try:
        Path(begun).touch()
        time.sleep(60)
    finally:
        _counted["closed"] += 1


async def sleep_later(begun: str) -> None:
    try:
        Path(begun).touch()
        await anyio.sleep(60)
    finally:
        _counted["closed"] += 1


def join_a_lock(begun: str) -> None:
    lock = threading.Lock()
    lock.acquire()
    try:
        Path(begun).touch()
        lock.acquire()
    finally:
        _counted["closed"] += 1


def wait_for_a_program(begun: str) -> None:
    try:
        Path(begun).touch()
        subprocess.run(["sleep", "60"], check=False)
    finally:
        _counted["closed"] += 1


def work_in_c(begun: str) -> int:
    """Keeps the interpreter's lock, and never looks at a signal."""
    Path(begun).touch()
    return sum(range(10**12))


def counted(what: str) -> int:
    return _counted[what]


def add(a: int, b: int) -> int:
    return a + b


async def add_later(a: int, b: int) -> int:
    return a + b


# -- signals ----------------------------------------------------------------------------------


def handlers() -> dict[str, str]:
    """What this process does with each signal that is not left at its default."""
    found = {}
    for number in signal.valid_signals():
        handler = signal.getsignal(number)
        if handler is not signal.SIG_DFL:
            found[signal.Signals(number).name if number < signal.SIGRTMIN else str(number)] = str(
                getattr(handler, "__module__", handler)
            )
    return found


# -- printing and logging ---------------------------------------------------------------------


def print_everywhere(words: str) -> str:
    """By Python, by its C library, by a program, and straight to the descriptors."""
    print(words, "print", flush=True)
    libc = ctypes.CDLL(None)
    libc.puts(f"{words} puts".encode())
    libc.fflush(None)
    os.write(1, f"{words} write\n".encode())
    os.write(2, f"{words} error\n".encode())
    subprocess.run(["echo", words, "program"], check=True)
    return words


async def print_everywhere_later(words: str) -> str:
    return print_everywhere(words)


def read_stdin() -> str:
    return sys.stdin.read() + os.read(0, 100).decode()


def print_much(lines: int) -> int:
    for number in range(lines):
        print(f"{number:06} " + "x" * 93)
        print(f"{number:06} " + "y" * 93, file=sys.stderr)
    return lines


def log(level: int, message: str) -> None:
    logging.getLogger("suffering.service").log(level, message, extra={"order": 17})


async def log_later(level: int, message: str) -> None:
    log(level, message)


def log_failure() -> None:
    try:
        raise ValueError("deep inside")
    except ValueError:
        logging.getLogger("suffering.service").exception("it failed")


# -- errors and values ------------------------------------------------------------------------


class NeedsTwo(Exception):
    """Cannot be made again from its args."""

    def __init__(self, code: int, *, reason: str) -> None:
        super().__init__(f"{code}: {reason}")
        self.code = code
        self.lock = threading.Lock()  # nor copied


class Bomb:
    """Pickled and unpickled, it runs a function."""

    def __init__(self, path: str = "") -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (_explode, (self.path,))


class BombError(Exception):
    def __init__(self, path: str) -> None:
        super().__init__("a bomb", Bomb(path))
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (_explode, (self.path,))


def _explode(path: str) -> str:
    Path(path).touch()
    return "boom"


def fail_needing_two() -> NoReturn:
    raise NeedsTwo(404, reason="not there")


async def fail_needing_two_later() -> NoReturn:
    raise NeedsTwo(404, reason="not there")


def fail_locally() -> NoReturn:
    class Local(Exception):
        pass

    raise Local("nobody can import it")


def fail_in_a_group() -> NoReturn:
    raise ExceptionGroup("several", [ValueError("one"), NeedsTwo(1, reason="two")])


def fail_with_a_cause() -> NoReturn:
    try:
        raise KeyError("the key")
    except KeyError as error:
        error.add_note("look in the drawer")
        raise NeedsTwo(1, reason="no key") from error


def fail_with_a_bomb(path: str) -> NoReturn:
    raise BombError(path)


def answer_a_bomb(path: str) -> object:
    return {"inside": [1, Bomb(path)]}


def answer_a_lock() -> object:
    return {"rows": [1, {"lock": threading.Lock()}]}


async def answer_a_lock_later() -> object:
    return answer_a_lock()


def yield_a_lock() -> Iterator[object]:
    yield 1
    yield {"lock": threading.Lock()}


def size_of(value: bytes) -> int:
    return len(value)


def echo(value: Any) -> Any:
    return value


async def echo_later(value: Any) -> Any:
    return value


def modules() -> list[str]:
    return sorted(sys.modules)


# -- flow -------------------------------------------------------------------------------------


def numbers() -> Iterator[int]:
    """Endless; counts what it made."""
    number = 0
    while True:
        _counted["made"] += 1
        yield number
        number += 1


async def numbers_later() -> AsyncIterator[int]:
    number = 0
    while True:
        _counted["made"] += 1
        yield number
        number += 1


def blocks(size: int, count: int) -> Iterator[bytes]:
    for _ in range(count):
        _counted["made"] += 1
        yield bytes(size)


def take(numbers: Iterator[Any], count: int, begun: str, path: str) -> int:
    """Takes ``count``, waits for the file, then takes the rest."""
    for _ in range(count):
        next(numbers)
    wait_for(begun, path)
    return sum(1 for _ in numbers) + count


async def take_later(numbers: AsyncIterator[Any], count: int, begun: str, path: str) -> int:
    for _ in range(count):
        await anext(numbers)
    await wait_for_later(begun, path)
    return sum([1 async for _ in numbers]) + count


def memory() -> int:
    """KB that this process has held at most since `forget_memory`."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM"):
            return int(line.split()[1])
    return 0


def forget_memory() -> int:
    """What is held at most is what is held now, in KB."""
    Path("/proc/self/clear_refs").write_text("5")
    return memory()


# -- calling back -----------------------------------------------------------------------------


def down(depth: int) -> int:
    """Asks its host, which asks here again, until it is deep enough."""
    if not depth:
        return 0
    answer: int = forkwire.sync.current_call().host.call("up", depth - 1)
    return answer + 1


async def down_later(depth: int) -> int:
    if not depth:
        return 0
    answer: int = await forkwire.current_call().host.call("up_later", depth - 1)
    return answer + 1


def twice(value: bytes) -> bytes:
    return value * 2


async def twice_later(value: bytes) -> bytes:
    return value * 2

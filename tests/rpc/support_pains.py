"""What the tests of what users suffer share; it holds no test."""

from __future__ import annotations

import contextlib
import gc
import os
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FunctionType
from typing import Any, Final

import anyio
import pytest
import uvloop

from forkwire import Worker, close_templates, open_worker, sync
from forkwire.sync import SyncWorker

from .services import suffering

__all__ = [
    "BACKENDS",
    "LIMIT",
    "PLAIN",
    "WAYS_TO_SERVE",
    "is_running",
    "nothing_left_behind",
    "open_files",
    "outcome",
    "script",
    "sync_worker_of",
    "until",
    "until_true",
    "worker_of",
]

# What takes longer hangs, also on a loaded machine.
LIMIT: Final = 20.0
PATIENCE: Final = 10.0

# The loops of a program of its own, as `anyio.run` takes them.
BACKENDS: Final = {
    "asyncio": "backend='asyncio'",
    "uvloop": "backend='asyncio', backend_options={'use_uvloop': True}",
    "trio": "backend='trio'",
}

# The same service served in each of the ways there are: in a loop, which reads whatever else goes
# on; by the one thread that also runs the functions; by a thread beside several that run them.
PLAIN: Final = {
    name: function
    for name, function in vars(suffering).items()
    if isinstance(function, FunctionType)
    and function.__module__ == suffering.__name__
    and not (name.startswith("_") or name.endswith("_later"))
}
WAYS_TO_SERVE: Final[dict[str, dict[str, Any]]] = {
    "loop": {"service": suffering},
    "alone": {"service": PLAIN},
    "threads": {"service": PLAIN, "threads": 3},
}

# Threads that a loop keeps for its next use.
KEPT_THREADS: Final = ("Trio thread", "AnyIO worker thread")

_warm: list[bool] = []


@dataclass(frozen=True)
class Left:
    """What a process has that it has to give back."""

    descriptors: frozenset[tuple[str, str]]
    children: frozenset[int]
    threads: frozenset[int | None]

    @classmethod
    def now(cls) -> Left:
        threads = [t for t in threading.enumerate() if not t.name.startswith(KEPT_THREADS)]
        return cls(
            frozenset(open_files(os.getpid())),
            frozenset(children()),
            frozenset(t.ident for t in threads),
        )

    def minus(self, before: Left) -> dict[str, object]:
        more = {
            "descriptors": self.descriptors - before.descriptors,
            "children": self.children - before.children,
            "threads": self.threads - before.threads,
        }
        return {name: found for name, found in more.items() if found}


def open_files(pid: int) -> Iterator[tuple[str, str]]:
    """Each descriptor of a process, and what it refers to."""
    for fd in os.listdir(f"/proc/{pid}/fd"):
        with contextlib.suppress(OSError):
            target = os.readlink(f"/proc/{pid}/fd/{fd}")
            if not target.endswith("/fd"):  # the listing itself
                yield fd, target


def children() -> Iterator[int]:
    """Those not reaped yet too."""
    for name in filter(str.isdecimal, os.listdir("/proc")):
        with contextlib.suppress(OSError):
            stat = Path(f"/proc/{name}/stat").read_text()
            if int(stat.rpartition(")")[2].split()[1]) == os.getpid():
                yield int(name)


def is_running(pid: int) -> bool:
    """Whether there is such a process, and it has not ended."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    return stat.rpartition(")")[2].split()[0] != "Z"


@pytest.fixture
def nothing_left_behind() -> Iterator[None]:
    """Fail a test after which a descriptor, a process or a thread is left."""
    if not _warm:  # the first worker starts the guard, and libuv keeps a pipe for signals
        _warm.append(True)
        uvloop.new_event_loop().close()
        with sync.open_worker(suffering) as worker:
            worker.call("pid")
    close_templates()
    before = Left.now()
    yield
    close_templates()
    end = time.monotonic() + PATIENCE
    while (more := Left.now().minus(before)) and time.monotonic() < end:
        gc.collect()
        time.sleep(0.01)
    assert not more


@asynccontextmanager
async def worker_of(service: object = suffering, **options: Any) -> AsyncIterator[Worker]:
    with anyio.fail_after(LIMIT):
        async with open_worker(service, **options) as worker:
            yield worker


@contextmanager
def sync_worker_of(service: object = suffering, **options: Any) -> Iterator[SyncWorker]:
    with sync.open_worker(service, **options) as worker:
        yield worker


async def until(condition: Callable[[], Any]) -> Any:
    """Wait for what nothing tells of."""
    end = time.monotonic() + LIMIT
    while not (value := condition()):
        assert time.monotonic() < end, "in vain"
        await anyio.sleep(0.002)
    return value


def until_true(condition: Callable[[], Any]) -> Any:
    """The same without a loop."""
    end = time.monotonic() + LIMIT
    while not (value := condition()):
        assert time.monotonic() < end, "in vain"
        time.sleep(0.002)
    return value


def script(folder: Path, source: str, **formats: str) -> list[str]:
    """Write ``source`` as a program; the command that runs it."""
    path = folder / "script.py"
    text = textwrap.dedent(source)
    for name, value in formats.items():
        text = text.replace(f"<{name}>", value)
    path.write_text(text)
    return [sys.executable, "-W", "error", str(path)]


def outcome(command: list[str], **options: Any) -> subprocess.CompletedProcess[str]:
    """Run it to its end."""
    return subprocess.run(
        command,
        **{"capture_output": True, "text": True, "timeout": LIMIT, "check": False, **options},
    )

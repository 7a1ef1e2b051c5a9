"""What the tests of callers without a loop share; it holds no test."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from forkwire.sync import SyncWorker, open_worker

from .services import plain

SERVICES = Path(__file__).parent / "services"

# A worker that should have answered within this hangs.
LIMIT = 20.0


@pytest.fixture
def worker() -> Iterator[SyncWorker]:
    """A worker of the plain service."""
    with open_worker(plain) as worker:
        yield worker


@pytest.fixture
def importable(monkeypatch: pytest.MonkeyPatch) -> None:
    """The services can be imported by name, by fresh interpreters too."""
    monkeypatch.syspath_prepend(str(SERVICES))


def until(condition: Callable[[], Any]) -> Any:
    """Wait for what nothing tells of."""
    end = time.monotonic() + LIMIT
    while not (value := condition()):
        assert time.monotonic() < end, "in vain"
        time.sleep(0.002)
    return value


def in_threads(function: Callable[[int], Any], count: int) -> list[Any]:
    """What ``function(n)`` answers in so many threads at once; raises what one of them raised."""
    results: list[Any] = [None] * count
    errors: list[BaseException] = []

    def run(number: int) -> None:
        try:
            results[number] = function(number)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(LIMIT)
    assert not any(thread.is_alive() for thread in threads), "a thread hangs"
    if errors:
        raise errors[0]
    return results


@contextlib.contextmanager
def in_background(function: Callable[[], Any]) -> Iterator[list[Any]]:
    """``function`` runs in a thread; the list gets its result, or what it raised."""
    outcome: list[Any] = []

    def run() -> None:
        try:
            outcome.append(function())
        except BaseException as error:
            outcome.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield outcome
    finally:
        thread.join(LIMIT)
        assert not thread.is_alive(), "the thread hangs"


def is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def path_with_services() -> str:
    """For fresh interpreters: PYTHONPATH."""
    return os.pathsep.join(filter(None, [str(SERVICES), os.environ.get("PYTHONPATH")]))


def run_script(code: str, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    """``code`` as a program of its own, which can import the services."""
    environment = {**os.environ, "PYTHONPATH": path_with_services(), "PYTHONWARNINGS": "error"}
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        env=environment,
        check=False,
    )
    assert not check or done.returncode == 0, done.stdout + done.stderr
    return done

"""What a host without an event loop offers its worker."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import forkwire
from forkwire.sync import SyncCurrentCall, SyncWorker, current_call, open_worker

from .services import plain
from .support_sync import in_threads, until


class Host:
    """Offers plain functions, some of which call the worker."""

    def __init__(self) -> None:
        self.worker: SyncWorker | None = None
        self.threads: list[threading.Thread] = []
        self.running = self.most = 0
        self.closed = 0

    def square(self, n: int) -> int:
        self.threads.append(threading.current_thread())
        return n * n

    def slow(self) -> str:
        self.running += 1
        self.most = max(self.most, self.running)
        time.sleep(0.02)
        self.running -= 1
        return "slow"

    def bounce(self, n: int) -> int:
        assert self.worker is not None
        return int(self.worker.call("countdown", n))

    def numbers(self, n: int) -> Iterator[int]:
        yield from range(n)

    def endless_numbers(self) -> Iterator[int]:
        n = 0
        try:
            while True:
                yield n
                n += 1
        finally:
            self.closed += 1

    def total(self, numbers: Iterator[int]) -> int:
        return sum(numbers)

    def fail(self) -> None:
        raise ValueError("the host refuses")

    def who(self) -> str:
        call: SyncCurrentCall = current_call()
        return call.method

    def back(self) -> int:
        """By the call's own way back."""
        return int(current_call().host.call("add", 1, 2))

    def until_cancelled(self) -> None:
        call = current_call()
        while not call.cancelled:
            time.sleep(0.002)
        self.closed += 1


@pytest.fixture
def host() -> Host:
    return Host()


@pytest.fixture
def worker(host: Host) -> Iterator[SyncWorker]:
    with open_worker(plain, host=host) as worker:
        host.worker = worker
        yield worker


def test_the_worker_calls_its_host(worker: SyncWorker, host: Host) -> None:
    """In a thread of the host's, not the one that waits."""
    assert worker.call("ask", "square", 7) == 49
    assert host.threads[0] is not threading.current_thread()


def test_what_the_host_raises_arrives(worker: SyncWorker) -> None:
    """In the worker, and from there at the caller."""
    with pytest.raises(ValueError, match="the host refuses"):
        worker.call("ask", "fail")


def test_what_the_host_does_not_offer(worker: SyncWorker) -> None:
    """Is an error that says so."""
    with pytest.raises(AttributeError, match="offers no 'nothing'"):
        worker.call("ask", "nothing")


def test_no_host_is_an_error_of_the_call() -> None:
    """A worker that was given no host is told."""
    with open_worker(plain) as worker, pytest.raises(AttributeError, match="host="):
        worker.call("ask", "square", 7)


def test_streams_between_worker_and_host(worker: SyncWorker, host: Host) -> None:
    """Results and arguments, whole and left early."""
    assert worker.call("gather", 100) == list(range(100))
    assert worker.call("gather_some", 40) == list(range(40))
    until(lambda: host.closed == 1)
    assert worker.call("feed", 100) == sum(range(100))


@pytest.mark.parametrize("depth", [1, 10, 100])
def test_calls_nest(worker: SyncWorker, depth: int) -> None:
    """Worker and host call each other as deep as anybody likes; each call runs where one waits."""
    assert worker.call("countdown", depth) == depth


def test_calls_nest_in_several_threads(worker: SyncWorker) -> None:
    """Each tree apart, and none waits for another for ever."""
    assert in_threads(lambda number: worker.call("countdown", 5 + number), 5) == [5, 6, 7, 8, 9]


def test_the_way_back_of_a_hosts_handler(worker: SyncWorker) -> None:
    """`current_call` in the host's function calls the worker."""
    assert worker.call("ask", "back") == 3
    assert worker.call("ask", "who") == "who"


def test_host_functions_take_turns(host: Host) -> None:
    """They need not be thread-safe."""
    with open_worker(plain, host=host, threads=4) as worker:
        assert in_threads(lambda number: worker.call("ask", "slow"), 4) == ["slow"] * 4
    assert host.most == 1


def test_a_host_call_that_times_out(worker: SyncWorker, host: Host) -> None:
    """The worker's handler goes on; the host's function is told that it is not wanted."""
    text = worker.call("ask_for", 0.05, "until_cancelled")
    assert text == "until_cancelled did not end within 0.05 seconds"
    assert host.closed == 1


def test_cancelling_a_call_cancels_what_it_asks_its_host(worker: SyncWorker, host: Host) -> None:
    """The cancel goes all the way."""
    with pytest.raises(TimeoutError):
        worker.options(timeout=0.1).call("ask", "until_cancelled")
    assert host.closed == 1
    assert worker.call("add", 1, 2) == 3


def test_async_functions_need_a_loop() -> None:
    """A host that offers some is refused at once."""

    async def later() -> None: ...

    with pytest.raises(forkwire.UsageError, match="no event loop"):
        open_worker(plain, host={"later": later})


def test_a_death_cancels_what_the_host_does(host: Host, tmp_path: Path) -> None:
    """A host's function whose worker is gone is told."""
    with open_worker(plain, host=host) as worker:
        worker.notify("ask", "until_cancelled")
        until(lambda: any(t.name.startswith("forkwire: Host") for t in threading.enumerate()))
        worker.kill()
        until(lambda: host.closed == 1)

"""Waiting: when patience pays, and a sleep that no signal can slip past."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import itertools
import operator
import os
import select
import signal
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from forkwire.process import waiting
from forkwire.process.waiting import Patience, Use, this_threads_waker, wait_blocking

from .test_loops import in_a_child
from .test_run_support import open_files


class Clock:
    """A clock that a yield moves on."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 0.0
        self.yields = 0
        self.step = 0.0001
        monkeypatch.setattr(waiting, "sched_yield", self.sched_yield)
        monkeypatch.setattr(waiting, "perf_counter", lambda: self.now)

    def sched_yield(self) -> None:
        self.yields += 1
        self.now += self.step


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


def test_patience_goes_on_where_it_pays(clock: Clock) -> None:
    """As long as the peer answers at once, each wait begins with a yield."""
    patience = Patience()
    assert all(patience.pays_off(lambda: True) for _ in range(100))
    assert clock.yields == 100


def test_patience_ends_where_it_does_not(clock: Clock) -> None:
    """After two yields in vain there is none for a while, and for longer each time."""
    patience = Patience()
    waits = []
    for number in range(3 * Patience.LONGEST_PAUSE):
        before = clock.yields
        assert not patience.pays_off(lambda: False)
        if clock.yields > before:
            assert clock.yields == before + 2
            waits.append(number)
    pauses = [after - before - 1 for before, after in itertools.pairwise(waits)]
    longer = [min(Patience.PAUSE * 2**n, Patience.LONGEST_PAUSE) for n in range(len(pauses))]
    assert pauses == longer
    assert pauses[-1] == Patience.LONGEST_PAUSE


def test_patience_comes_back(clock: Clock) -> None:
    """After the pause one yield that helped is enough, and the next pause is a short one."""
    patience = Patience()
    for _ in range(2):
        patience.pays_off(lambda: False)
        for _ in range(2 * Patience.PAUSE):
            patience.pays_off(lambda: True)
    before = clock.yields
    patience.pays_off(lambda: False)
    for _ in range(Patience.PAUSE):
        patience.pays_off(lambda: True)
    assert clock.yields == before + 2
    assert patience.pays_off(lambda: True)
    assert clock.yields == before + 3


def test_the_second_yield_may_help(clock: Clock) -> None:
    """The system sometimes runs another process first."""
    patience = Patience()
    answers = itertools.cycle((False, True))
    for _ in range(10):
        assert patience.pays_off(lambda: next(answers))
    assert clock.yields == 20


def test_a_yield_that_takes_long_does_not_pay(clock: Clock) -> None:
    """Somebody else used the processor, or the peer has work to do: the attempt counts."""
    clock.step = 10 * Patience.TOO_LONG
    patience = Patience()
    assert all(patience.pays_off(lambda: True) for _ in range(Patience.PAUSE + 1))
    assert clock.yields == 1
    patience.pays_off(lambda: True)
    assert clock.yields == 2


def test_an_attempt_that_raises(clock: Clock) -> None:
    """Its exception is the caller's."""
    patience = Patience()
    with pytest.raises(ZeroDivisionError):
        patience.pays_off(lambda: bool(1 // 0))
    assert clock.yields == 1


# -- sleeping ---------------------------------------------------------------------------------


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    read_fd, write_fd = os.pipe()
    yield read_fd, write_fd
    for fd in (read_fd, write_fd):
        try:
            os.close(fd)
        except OSError:
            continue


def test_waiting_for_data(pipe: tuple[int, int]) -> None:
    """It returns once there is something to read."""
    timer = threading.Timer(0.02, os.write, (pipe[1], b"x"))
    timer.start()
    wait_blocking(pipe[0], select.POLLIN)
    assert os.read(pipe[0], 10) == b"x"
    timer.join()


def test_waiting_for_an_end(pipe: tuple[int, int]) -> None:
    """It returns when the other side has closed, in both directions."""
    timer = threading.Timer(0.02, os.close, (pipe[1],))
    timer.start()
    wait_blocking(pipe[0], select.POLLIN)
    assert os.read(pipe[0], 10) == b""
    timer.join()


def test_waiting_for_room(pipe: tuple[int, int]) -> None:
    """It returns at once where there is room."""
    wait_blocking(pipe[1], select.POLLOUT)


class Interruption(Exception):
    pass


@pytest.fixture
def raising() -> Iterator[None]:
    """SIGUSR1 raises in the main thread."""

    def handler(number: int, frame: object) -> None:
        raise Interruption

    before = signal.signal(signal.SIGUSR1, handler)
    yield
    signal.signal(signal.SIGUSR1, before)


@pytest.fixture
def own_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a worker: the main thread's waits end when a signal arrives."""
    monkeypatch.setattr(waiting, "_wake_on_signals", False)
    waiting.wake_on_signals()


class LatePoll:
    """A poll before which a signal arrives that Python has not handled yet.

    ``map`` calls both from C, so the interpreter has no chance in between.
    """

    raise_signal = ctypes.CDLL(None)["raise"]

    def __init__(self) -> None:
        self.real = real_poll()
        self.register = self.real.register

    def poll(self, timeout: float | None = None) -> Any:
        arrive = functools.partial(self.raise_signal, int(signal.SIGUSR1))
        calls: list[Any] = [arrive, functools.partial(self.real.poll, timeout)]
        return list(map(operator.call, calls))[1]


real_poll = select.poll


@pytest.mark.usefixtures("raising", "own_process")
def test_a_signal_just_before_the_sleep_is_not_slept_through(
    pipe: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its handler runs, though the descriptor stays silent for ever."""
    monkeypatch.setattr(select, "poll", LatePoll)
    for _ in range(3):
        with pytest.raises(Interruption):
            wait_blocking(pipe[0], select.POLLIN, this_threads_waker())
    monkeypatch.setattr(select, "poll", real_poll)
    os.write(pipe[1], b"x")
    wait_blocking(pipe[0], select.POLLIN, this_threads_waker())


@contextlib.contextmanager
def signals(handler: Callable[[], None]) -> Iterator[None]:
    """Send SIGUSR1 to the main thread again and again; each time ``handler`` is called."""
    main = threading.main_thread().ident
    over = threading.Event()

    def send() -> None:
        while not over.wait(0.005):
            signal.pthread_kill(main or 0, signal.SIGUSR1)

    live = False  # not yet while the thread starts: it would be left running
    before = signal.signal(signal.SIGUSR1, lambda *_: handler() if live else None)
    thread = threading.Thread(target=send)
    thread.start()
    try:
        live = True
        yield
    finally:
        live = False
        over.set()
        thread.join()
        signal.signal(signal.SIGUSR1, before)


def test_a_handler_that_raises_ends_the_sleep(pipe: tuple[int, int]) -> None:
    """Its exception is raised out of the wait."""
    calls = []

    def once() -> None:
        calls.append(1)
        if len(calls) == 3:
            raise Interruption

    with pytest.raises(Interruption), signals(once):
        wait_blocking(pipe[0], select.POLLIN)


def test_a_handler_that_returns_does_not_end_the_sleep(pipe: tuple[int, int]) -> None:
    """EINTR is not an error: the wait goes on until there is something."""
    calls = []

    def fifth() -> None:
        calls.append(1)
        if len(calls) == 5:
            os.write(pipe[1], b"x")

    with signals(fifth):
        wait_blocking(pipe[0], select.POLLIN)
        assert len(calls) >= 5


@pytest.mark.usefixtures("own_process")
def test_the_wakeup_descriptor_is_given_back(pipe: tuple[int, int]) -> None:
    """One that a loop had set is set again after the wait; other threads never touch it."""
    read_fd, write_fd = os.pipe()
    os.set_blocking(write_fd, False)
    before = signal.set_wakeup_fd(write_fd)
    try:
        wait_blocking(pipe[1], select.POLLOUT, this_threads_waker())
        thread = threading.Thread(
            target=lambda: wait_blocking(pipe[1], select.POLLOUT, this_threads_waker())
        )
        thread.start()
        thread.join()
    finally:
        assert signal.set_wakeup_fd(before) == write_fd
        os.close(read_fd)
        os.close(write_fd)


def test_a_child_forgets_its_hosts_wakeup(monkeypatch: pytest.MonkeyPatch) -> None:
    """It makes its own when it needs one."""
    monkeypatch.setattr(waiting, "_wake_on_signals", True)
    hosts = this_threads_waker()

    def look() -> None:
        waiting.forget_wakeup()
        assert not waiting._wake_on_signals
        waker = this_threads_waker()
        assert waker is not hosts
        waker.wake()
        wait_blocking(waker.read_end, select.POLLIN)

    assert in_a_child(look) == 0
    assert this_threads_waker() is hosts


def test_a_thread_takes_its_pipe_along() -> None:
    """It is closed when the thread ends."""
    before = open_files().keys()
    seen: list[int] = []

    def wait() -> None:
        waker = this_threads_waker()
        seen.extend((waker.read_end, waker.write_end))
        assert this_threads_waker() is waker

    thread = threading.Thread(target=wait)
    thread.start()
    thread.join()
    assert len(seen) == 2
    deadline = time.monotonic() + 10
    while open_files().keys() != before and time.monotonic() < deadline:
        time.sleep(0)  # it lets go of what is its own a moment after it was joined
    assert open_files().keys() == before


def test_whoever_is_inside_is_woken_and_then_it_is_done(pipe: tuple[int, int]) -> None:
    """What waits for the end of a use runs once, after it."""
    use, inside = Use(), threading.Event()
    done: list[int] = []

    def wait() -> None:
        use.begin()
        try:
            inside.set()
            use.wait(pipe[0], select.POLLIN, lambda: False)
            assert not done
        finally:
            use.end()

    thread = threading.Thread(target=wait)
    thread.start()
    inside.wait()
    while use._waker is None:
        time.sleep(0)
    use.when_over(lambda: done.append(1))
    thread.join(20)
    assert done == [1]
    use.when_over(lambda: done.append(2))
    assert done == [1, 2]

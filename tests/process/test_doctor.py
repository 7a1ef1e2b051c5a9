"""What is said of a fork beside other threads: who they are, what they hold, and what to do."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import logging
import queue
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import anyio
import pytest
import trio

from forkwire import ForkRisks, examine_fork
from forkwire.process import doctor

from .test_run_support import program

SAFE = ForkRisks()


@pytest.fixture
def beside() -> Iterator[Callable[..., None]]:
    """Starts threads that are inside of something, until the test's end."""
    release = threading.Event()
    threads: list[threading.Thread] = []

    def start(
        block: Any = None, *, name: str = "the other", kind: type[threading.Thread] | None = None
    ) -> None:
        entered = threading.Event()

        def stay() -> None:
            with block or contextlib.nullcontext():
                entered.set()
                release.wait()

        threads.append((kind or threading.Thread)(target=stay, name=name))
        threads[-1].start()
        entered.wait()

    yield start
    release.set()
    for thread in threads:
        thread.join()


def test_a_thread_is_told_with_its_place(beside: Callable[..., None]) -> None:
    """Where it is in the user's code, not in the library's that this has called."""
    beside(name="worker 7")
    risks = examine_fork()
    assert not risks.safe
    (thread,) = [text for text in risks.threads if text.startswith("'worker 7'")]
    assert f"at {__file__}:" in thread
    assert thread.endswith("stay()")
    assert f"  thread {thread}" in str(risks).splitlines()


def test_our_own_threads_are_left_out(beside: Callable[..., None]) -> None:
    """They share no lock with anybody."""
    beside(name="forkwire: link")
    assert "forkwire: link" not in str(examine_fork())


LOCK = threading.Lock()


class Account:
    def __init__(self) -> None:
        self.guard = threading.RLock()
        self.changed = threading.Condition()
        self.orders: queue.Queue[int] = queue.Queue()

    def hold(self, part: Any, entered: threading.Event, release: threading.Event) -> None:
        with part:
            entered.set()
            release.wait()


@contextlib.contextmanager
def running(function: Callable[[threading.Event, threading.Event], object]) -> Iterator[None]:
    """``function(entered, release)`` in a thread that is called "holder"."""
    entered, release = threading.Event(), threading.Event()
    thread = threading.Thread(target=function, args=(entered, release), name="holder")
    thread.start()
    try:
        assert entered.wait(20)
        yield
    finally:
        release.set()
        thread.join()


def hold_global(entered: threading.Event, release: threading.Event) -> None:
    with LOCK:
        entered.set()
        release.wait()


def hold_local(entered: threading.Event, release: threading.Event) -> None:
    mine = threading.Lock()
    with mine:
        entered.set()
        release.wait()


def hold_queue(entered: threading.Event, release: threading.Event) -> None:
    orders: queue.Queue[int] = queue.Queue()
    with orders.mutex:
        entered.set()
        release.wait()


def hold_handler(entered: threading.Event, release: threading.Event) -> None:
    handler = logging.StreamHandler()
    assert handler.lock is not None
    with handler.lock:
        entered.set()
        release.wait()


def hold_attribute(entered: threading.Event, release: threading.Event) -> None:
    account = Account()
    account.hold(account.guard, entered, release)


def hold_condition(entered: threading.Event, release: threading.Event) -> None:
    account = Account()
    account.hold(account.changed, entered, release)


@pytest.mark.parametrize(
    ("function", "says"),
    [
        (hold_global, "LOCK in 'holder' at "),
        (hold_local, "mine in 'holder' at "),
        (hold_queue, "orders.mutex in 'holder' at "),
        (hold_handler, "the lock of logging's StreamHandler, held by 'holder'"),
        (hold_attribute, "self.guard in 'holder' at "),
        (hold_condition, "self.changed in 'holder' at "),
    ],
)
def test_a_lock_is_seen(function: Callable[..., object], says: str) -> None:
    """While it is held, and not after that."""
    with running(function):
        found = [lock for lock in examine_fork().locks if lock.startswith(says)]
        assert len(found) == 1
        assert f"  locked: {found[0]}" in str(examine_fork()).splitlines()
    assert not any("holder" in lock for lock in examine_fork().locks)


def test_an_import_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever imports that module in the child would wait for ever."""
    (tmp_path / "slow_to_import.py").write_text(
        "import sys\nentered, release = sys.modules['events_of_slow']\n"
        "entered.set()\nrelease.wait()\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))

    def load(entered: threading.Event, release: threading.Event) -> None:
        monkeypatch.setitem(sys.modules, "events_of_slow", (entered, release))
        __import__("slow_to_import")

    with running(load):
        assert "the import of slow_to_import, held by 'holder'" in examine_fork().locks


def test_who_waits_holds_nothing() -> None:
    """For a lock of ours, an event, a queue: that is how these work."""
    events: queue.Queue[int] = queue.Queue()

    def wait(entered: threading.Event, release: threading.Event) -> None:
        entered.set()
        events.get()

    with running(wait):
        found = [lock for lock in examine_fork().locks if "holder" in lock]
        events.put(1)
    assert found == []


@pytest.mark.parametrize("backend", ["asyncio", "uvloop", "trio"])
def test_a_loop_is_seen(backend: str) -> None:
    """In another thread, not in this one."""

    def loop(entered: threading.Event, release: threading.Event) -> None:
        async def main() -> None:
            entered.set()
            await anyio.to_thread.run_sync(release.wait)

        if backend == "trio":
            anyio.run(main, backend="trio")
        else:
            anyio.run(main, backend_options={"use_uvloop": backend == "uvloop"})

    kind = "trio" if backend == "trio" else "asyncio"
    with running(loop):
        assert examine_fork().loops == (f"{kind} in 'holder'",)

        async def here() -> tuple[str, ...]:
            return examine_fork().loops

        assert asyncio.run(here()) == trio.run(here) == (f"{kind} in 'holder'",)


class Prying:
    """Whoever asks it anything runs its code."""

    asked: list[str] = []  # noqa: RUF012

    @property
    def __dict__(self) -> dict[str, object]:  # type: ignore[override]
        self.asked.append("__dict__")
        return {}

    @property  # type: ignore[misc]
    def __class__(self) -> type:  # pyright: ignore[reportIncompatibleMethodOverride]
        self.asked.append("__class__")
        return Prying

    def __getattribute__(self, name: str) -> Any:
        if name != "asked":
            Prying.asked.append(name)
        return object.__getattribute__(self, name)

    def __eq__(self, other: object) -> bool:
        Prying.asked.append("__eq__")
        return False

    def __hash__(self) -> int:
        Prying.asked.append("__hash__")
        return 0

    def __repr__(self) -> str:
        Prying.asked.append("__repr__")
        return ""


def test_none_of_their_code_is_run() -> None:
    """No property, no comparison, no text: not of what they have, nor of a thread."""
    told: list[str] = []

    class Named(threading.Thread):
        @property
        def name(self) -> str:
            told.append("name")
            return "?"

        @name.setter
        def name(self, name: str) -> None:  # pyright: ignore[reportIncompatibleVariableOverride]
            told.append("name")

    entered, release = threading.Event(), threading.Event()

    def stay() -> None:
        prying = Prying()
        entered.set()
        release.wait()
        assert prying is not None

    thread = Named(target=stay)
    thread.start()
    entered.wait()
    told.clear()
    Prying.asked.clear()
    try:
        examine_fork()
        assert told == []
        assert Prying.asked == []
    finally:
        release.set()
        thread.join()


def test_nothing_is_kept_of_what_was_seen() -> None:
    """The frames of others, with all that they have, are let go."""
    kept: list[object] = []

    class Thing:
        def __del__(self) -> None:
            kept.append("freed")

    def stay(entered: threading.Event, release: threading.Event) -> None:
        thing = Thing()
        entered.set()
        release.wait()
        del thing

    with running(stay):
        examine_fork()
        assert kept == []
    assert kept == ["freed"]


def test_the_report_of_nothing() -> None:
    """Says so."""
    assert SAFE.safe
    assert str(SAFE) == "safe to fork: no other thread runs"
    with pytest.raises(dataclasses.FrozenInstanceError):
        SAFE.foreign = 1  # type: ignore[misc]


def test_what_it_cannot_name_is_counted() -> None:
    """Threads that Python did not start are as unsafe."""
    risks = ForkRisks(foreign=3)
    assert not risks.safe
    assert "threads that Python did not start: 3" in str(risks)


def test_a_process_of_one_thread_is_safe() -> None:
    """And looks no further."""
    done = program("""
        sys._current_frames = None
        print(examine_fork())
        """)
    assert (done.stdout, done.stderr) == ("safe to fork: no other thread runs\n", "")


def test_one_that_hides_all_it_has_is_survived(monkeypatch: pytest.MonkeyPatch) -> None:
    """A library that is not as we know it takes nothing away but its own part."""
    monkeypatch.setattr(logging, "_handlerList", None)
    with running(hold_global):
        assert any(lock.startswith("LOCK") for lock in examine_fork().locks)


# -- the warning --------------------------------------------------------------------------------

WARNED = """
import warnings

LOCK = threading.Lock()

def idle(inp, out, arg):
    sync.read_message(inp)

async def start():
    async with await run(idle, None):
        pass

def warned():
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        anyio.run(start)
    return [str(warning.message) for warning in caught]

def hold():
    with LOCK:
        entered.set()
        release.wait()

entered, release = threading.Event(), threading.Event()
waiting = threading.Event()
"""


def test_each_finding_is_told_once() -> None:
    """Not once a fork, and not for another thread of the same name but for its number."""
    done = program(
        WARNED
        + """
threads = [threading.Thread(target=waiting.wait, name=f"pool-{n}") for n in range(3)]
threads[0].start()
print(len(warned()), len(warned()))
threads[1].start()
threads[2].start()
print(len(warned()))
holder = threading.Thread(target=hold, name="holder")
holder.start()
entered.wait()
(text,) = warned()
print("Locked now: LOCK in 'holder' at " in text, "examine_fork()" in text)
print(len(warned()))
release.set()
waiting.set()
"""
    )
    assert (done.stdout, done.stderr) == ("1 0\n0\nTrue True\n0\n", "")


DEADLOCK = """
import importlib, warnings
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import locking
from forkwire.sync import open_worker

def call(**options):
    with open_worker("locking", grace=0.1, **options) as worker:
        try:
            return worker.options(timeout=20 if options["start"] != "fork" else 0.5).call("work")
        except TimeoutError:
            return "hangs"

def hold():
    with locking.LOCK:
        entered.set()
        release.wait()

entered, release = threading.Event(), threading.Event()
thread = threading.Thread(target=hold, name="holder")
thread.start()
entered.wait()
for start in ("fork", "template", "exec"):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        print(start, call(start=start), end="")
    for warning in caught:
        print("", str(warning.message).partition("Locked now: ")[2][:24], end="")
    print()
release.set()
thread.join()
print("before threads", call(start="fork"))
"""

LOCKING = """
import threading

LOCK = threading.Lock()

def work():
    with LOCK:
        return "works"
"""


def test_a_real_deadlock_is_warned_of_and_the_advice_helps(tmp_path: Path) -> None:
    """A fork hangs on the lock that the warning names; a template and an exec do not."""
    (tmp_path / "locking.py").write_text(LOCKING)
    done = program(DEADLOCK, str(tmp_path))
    assert done.stderr == ""
    assert done.stdout.splitlines() == [
        "fork hangs locking.LOCK in 'holder'",
        "template works",
        "exec works",
        "before threads works",
    ]


def test_a_program_that_always_has_new_threads_is_told_no_more() -> None:
    """After so many findings it is known."""
    done = program(
        WARNED
        + f"""
from forkwire.process import doctor

count = 0
for n in range({doctor.MOST_TOLD} + 5):
    threading.Thread(target=release.wait, name=chr(97 + n)).start()
    count += len(warned())
print(count)
release.set()
"""
    )
    assert (done.stdout, done.stderr) == (f"{doctor.MOST_TOLD}\n", "")

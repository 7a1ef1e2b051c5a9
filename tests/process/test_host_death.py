"""However a host ends, its workers get SIGTERM, then SIGKILL, and nothing of them is left."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Self

import pytest

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")

PROGRAM = Path(__file__).parent / "host_death" / "host.py"
BACKENDS = ["asyncio", "uvloop", "trio"]
GRACE = 0.5  # as in host.py
PATIENCE = 30.0  # seconds for a host to answer on a loaded machine

CLEANS_UP = {
    "async_sleep", "plain_sleep", "waiting_for_program", "stubborn_program",
    "forked_descendant", "busy_threads", "python_loop",
}  # fmt: skip
SHOWS_NOTHING = {"idle", "plain_idle", "deaf", "nested", "c_without_lock", "c_with_lock"}
WAYS = ["return", "raise", "sys.exit", "os._exit", "SIGTERM", "SIGKILL"]


class Host:
    """The program ``host_death/host.py``, and what it says."""

    def __init__(self, backend: str, *traits: str) -> None:
        self.token = f"FORKWIRE_TEST={uuid.uuid4()}"
        name, _, value = self.token.partition("=")
        self.process = subprocess.Popen(
            [sys.executable, "-W", "ignore", str(PROGRAM), backend, *traits],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            bufsize=0,
            env={**os.environ, name: value},
        )
        self.pids: list[int] = []
        self._heard = b""

    def tell(self, *words: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(" ".join(words).encode() + b"\n")

    def ask(self, *words: str) -> str:
        """The line that it answers."""
        self.tell(*words)
        deadline = time.monotonic() + PATIENCE
        while b"\n" not in self._heard:
            assert self._hear(deadline), f"the host ended at {words}"
        line, _, self._heard = self._heard.partition(b"\n")
        return line.decode()

    def start(self, kind: str, where: str = "start") -> list[int]:
        """Start a worker; its pid, and those of its descendants."""
        pids = [int(pid) for pid in self.ask(where, kind).split()]
        self.pids += pids
        return pids

    def guards(self) -> list[int]:
        """Those of its descendants that left its session: its guard, its workers' guards."""
        return [pid for pid in self.tree() if session(pid) not in (None, self.process.pid)]

    def tree(self) -> list[int]:
        """All that descends from it, and itself."""
        return [pid for pid in pids_now() if self.token in environment(pid)]

    def end(self, way: str) -> None:
        if way.startswith("SIG"):
            self.process.send_signal(signal.Signals[way])
        else:
            self.tell(way)
        self.process.wait(PATIENCE)

    def last_words(self, within: float) -> set[str]:
        """What is said until everything that descends from the host, but a guard, is gone."""
        deadline = time.monotonic() + within
        while self._hear(deadline):
            pass
        return set(self._heard.decode().splitlines())

    def _hear(self, deadline: float) -> bool:
        """Read some; False at the end of the file."""
        assert self.process.stdout is not None
        left = max(0.0, deadline - time.monotonic())
        if not select.select([self.process.stdout], [], [], left)[0]:
            raise AssertionError(f"{self.tree()} of {self.pids} live; heard {self._heard!r}")
        data = self.process.stdout.read(65536)
        assert data is not None
        self._heard += data
        return bool(data)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.process.kill()
        with self.process:
            for pid in self.tree():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)


def pids_now() -> Iterator[int]:
    return (int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdecimal())


def environment(pid: int) -> list[str]:
    """Of a process that lives; what has ended has none."""
    try:
        return Path(f"/proc/{pid}/environ").read_bytes().decode("utf-8", "replace").split("\0")
    except OSError:
        return []


def session(pid: int) -> int | None:
    with contextlib.suppress(ProcessLookupError):
        return os.getsid(pid)
    return None


def wait_for_end(pid: int, within: float) -> None:
    """Wait until process ``pid``, which need not be a child, has ended."""
    try:
        pidfd = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        assert select.select([pidfd], [], [], within)[0], f"process {pid} still lives"
    finally:
        os.close(pidfd)


def on_each_backend(check: Callable[..., None], *args: object) -> None:
    """Call ``check(backend, *args)`` for each, at the same time."""
    with ThreadPoolExecutor(len(BACKENDS)) as pool:
        for result in [pool.submit(check, backend, *args) for backend in BACKENDS]:
            result.result()


def check_nothing_outlives(backend: str, way: str) -> None:
    with Host(backend) as host:
        for kind in [*SHOWS_NOTHING, *CLEANS_UP]:
            host.start(kind)
        guards = host.guards()
        assert len(guards) == 2  # the host's, and that of the worker which is a host
        host.end(way)
        cancelled = host.last_words(within=2 * GRACE + 1)
        assert cancelled == {f"cancelled {kind}" for kind in CLEANS_UP}
        for guard in guards:
            wait_for_end(guard, within=2 * GRACE + 2)


@pytest.mark.parametrize("way", WAYS)
def test_nothing_outlives_the_host(way: str) -> None:
    """Every kind of worker, what descends from it and the guard end; those that can, clean up."""
    on_each_backend(check_nothing_outlives, way)


def check_orphan(backend: str, trait: str) -> None:
    with Host(backend, trait) as host:
        host.tell("start", "plain_sleep")
        assert host.process.wait(PATIENCE) == -signal.SIGKILL
        assert host.last_words(within=GRACE + 1) == set()


@pytest.mark.parametrize("trait", ["orphan", "unguarded-orphan"])
def test_worker_that_is_orphaned_at_birth_ends(trait: str) -> None:
    """It runs neither its function nor what its host registered for the exit."""
    on_each_backend(check_orphan, trait)


def check_storm(backend: str, delay: float) -> None:
    with Host(backend) as host:
        host.ask("storm")
        time.sleep(delay)  # for the kill to fall anywhere
        host.end("SIGKILL")
        host.last_words(within=GRACE + 1)


@pytest.mark.parametrize("delay", [0.0, 0.007, 0.023])
def test_host_that_is_killed_while_it_starts_workers(delay: float) -> None:
    """Workers that ignore SIGTERM, whatever stage of their start they are at, are gone."""
    on_each_backend(check_storm, delay)


def check_thread(backend: str) -> None:
    with Host(backend) as host:
        (pid,) = host.start("plain_sleep", where="thread")
        assert host.ask("children") == "(0, 0)"
        host.start("c_with_lock", where="thread")
        assert pid in host.tree()
        host.end("SIGKILL")
        assert host.last_words(within=GRACE + 1) == {"cancelled plain_sleep"}


def test_worker_outlives_the_thread_that_forked_it() -> None:
    """It is not ended when a short-lived thread is, and is when the host is."""
    on_each_backend(check_thread)


def check_second_guard(backend: str) -> None:
    with Host(backend) as host:
        host.start("c_with_lock")
        (first,) = host.guards()
        os.kill(first, signal.SIGKILL)
        wait_for_end(first, PATIENCE)
        host.start("deaf")
        (second,) = host.guards()
        assert second != first
        host.end("SIGKILL")
        host.last_words(within=GRACE + 1)
        wait_for_end(second, within=GRACE + 2)


def test_guard_that_was_killed_is_replaced() -> None:
    """The next start of a worker starts a guard, which is told of those that run."""
    on_each_backend(check_second_guard)


def check_signals(backend: str) -> None:
    with Host(backend) as host:
        host.start("c_with_lock")
        host.start("plain_sleep")
        (guard,) = host.guards()
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT):
            os.kill(guard, number)
        os.killpg(host.process.pid, signal.SIGHUP)
        os.killpg(host.process.pid, signal.SIGINT)
        host.process.wait(PATIENCE)
        assert host.last_words(within=GRACE + 1) == {"cancelled plain_sleep"}


def test_guard_survives_the_signals_of_a_terminal() -> None:
    """Ctrl-C, a hang-up and a plain ``kill`` end the host, and so its workers, not the guard."""
    on_each_backend(check_signals)


@pytest.mark.parametrize("trait", ["no-executable", "frozen", "no-pidfd"])
def test_guard_where_the_system_lacks_something(trait: str) -> None:
    """It is a fork where no interpreter can be executed, and polls where there is no pidfd."""
    on_each_backend(check_poor_system, trait)


def check_poor_system(backend: str, trait: str) -> None:
    with Host(backend, trait) as host:
        host.start("c_with_lock")
        host.start("plain_sleep")
        host.start("forked_descendant")
        (guard,) = host.guards()
        files = {
            os.readlink(path).partition("[")[0] for path in Path(f"/proc/{guard}/fd").iterdir()
        } - {"anon_inode:"}
        assert files == {os.devnull, "socket:", "/memfd:forkwire (deleted)"}
        host.end("SIGKILL")
        cancelled = host.last_words(within=GRACE + 1)
        assert cancelled == {"cancelled plain_sleep", "cancelled forked_descendant"}
        wait_for_end(guard, within=GRACE + 2)


@pytest.mark.parametrize("traits", [(), ("no-executable",)])
def test_guard_is_nobodys_child(traits: tuple[str, ...]) -> None:
    """A host that waits for any child of its own meets none, and one guard serves all workers."""
    with Host("asyncio", *traits) as host:
        for _ in range(3):
            host.start("idle")
        assert len(host.guards()) == 1
        for _ in range(3):
            host.tell("close")
        assert host.ask("children") == "none"
        assert len(host.guards()) == 1
        host.end("return")

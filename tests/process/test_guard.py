"""The guard as a program: what it does when its host is gone, however late or poor it is."""

from __future__ import annotations

import ast
import contextlib
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

import pytest

from forkwire.process import guard_main

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")

PROGRAM: Final = Path(guard_main.__file__)
PATIENCE: Final = 20.0  # seconds, on a loaded machine
NEVER_A_PID: Final = 2**22 + 1  # above what /proc/sys/kernel/pid_max may be

AWAKE = "echo ready; while true; do sleep 0.01; done"
MEEK = "trap 'echo cancelled; exit' TERM; echo ready; sleep 1000 & wait"
DEAF = "trap '' TERM; echo ready; sleep 1000 & wait"
LEAVES_A_DEAF_CHILD = """
trap 'exit' TERM
(trap '' TERM; sleep 1000; sleep 1000) &
echo ready
wait
"""

RUN_IT = "runpy.run_path(sys.argv[0], run_name='__main__')"

WITHOUT_PIDFD = f"""
import os, runpy, sys
del os.pidfd_open, sys.argv[0]
{RUN_IT}
"""


class Group:
    """A shell script that leads a process group; its stdout ends when the last of them has."""

    def __init__(self, script: str) -> None:
        self.process = subprocess.Popen(
            ["sh", "-c", script],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,
        )
        self.pid = self.process.pid
        assert self.process.stdout is not None
        self.stdout = self.process.stdout
        assert self.stdout.readline() == b"ready\n"

    def last_words(self, within: float) -> bytes:
        """What it says until all of the group is gone."""
        deadline = time.monotonic() + within
        said = b""
        while select.select([self.stdout], [], [], max(0.0, deadline - time.monotonic()))[0]:
            data = os.read(self.stdout.fileno(), 4096)
            if not data:
                return said
            said += data
        raise AssertionError(f"some of the group live after {within} s")

    def close(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        self.process.__exit__(None, None, None)


class Guarded:
    """A guard, and the host that it watches: any process will do."""

    def __init__(self, *interpreter: str) -> None:
        self.host = subprocess.Popen(["sleep", "1000"])
        self.connection, theirs = socket.socketpair()
        self.table = os.memfd_create("test")
        with theirs:
            numbers = (theirs.fileno(), self.table, self.host.pid)
            self.guard = subprocess.Popen(
                [
                    sys.executable,
                    *(interpreter or ("-I", "-S")),
                    str(PROGRAM),
                    *map(str, numbers),
                ],
                pass_fds=numbers[:2],
                start_new_session=True,
            )
        assert self.connection.recv(1) == b"+"
        self.polls = bool(interpreter)
        self.groups: list[Group] = []

    def group(self, script: str, grace: float) -> Group:
        group = Group(script)
        self.groups.append(group)
        guard_main.write(self.table, len(self.groups), group.pid, grace)
        return group

    def forget(self, group: Group) -> None:
        guard_main.write(self.table, self.groups.index(group) + 1, 0, 0)

    def kill_host(self) -> None:
        self.host.kill()
        self.host.wait(PATIENCE)

    def close(self) -> None:
        self.connection.close()
        os.close(self.table)
        for process in (self.host, self.guard):
            process.kill()
            process.wait(PATIENCE)
        for group in self.groups:
            group.close()


@pytest.fixture(params=[(), ("-I", "-S", "-c", WITHOUT_PIDFD)], ids=["", "without pidfd"])
def guarded(request: pytest.FixtureRequest) -> Iterator[Guarded]:
    it = Guarded(*request.param)
    yield it
    it.close()


def test_sigterm_comes_first(guarded: Guarded) -> None:
    """A group that ends on SIGTERM does so by itself."""
    group = guarded.group(MEEK, grace=PATIENCE)
    guarded.kill_host()
    assert group.last_words(within=PATIENCE / 2) == b"cancelled\n"


def test_sigterm_comes_twice(guarded: Guarded) -> None:
    """A program that missed one, since it was just about to wait, is interrupted by another."""
    group = guarded.group("trap 'trap \"echo cancelled; exit\" TERM' TERM; " + AWAKE, PATIENCE)
    guarded.kill_host()
    assert group.last_words(within=PATIENCE / 2) == b"cancelled\n"


def test_sigkill_comes_after_the_grace_of_each(guarded: Guarded) -> None:
    """A group that ignores SIGTERM gets its own grace, no less and hardly more."""
    patient, short = guarded.group(DEAF, grace=0.8), guarded.group(DEAF, grace=0.2)
    start = time.monotonic()
    guarded.kill_host()
    short.last_words(within=PATIENCE)
    assert 0.2 <= time.monotonic() - start < 0.8
    patient.last_words(within=PATIENCE)
    assert 0.8 <= time.monotonic() - start < 1.8


def test_rest_of_a_group_does_not_outlive_its_leader(guarded: Guarded) -> None:
    """Once the leader has ended there is nothing to be patient for."""
    group = guarded.group(LEAVES_A_DEAF_CHILD, grace=PATIENCE)
    guarded.kill_host()
    group.process.wait(PATIENCE)
    group.last_words(within=PATIENCE / 2)


def test_guard_that_is_late_forgets_nobody(guarded: Guarded) -> None:
    """The kernel may end a leader, and init reap it, before the guard sees its host's end."""
    group = guarded.group(LEAVES_A_DEAF_CHILD, grace=PATIENCE)
    guarded.guard.send_signal(signal.SIGSTOP)
    guarded.kill_host()
    os.kill(group.pid, signal.SIGTERM)
    group.process.wait(PATIENCE)
    guarded.guard.send_signal(signal.SIGCONT)
    group.last_words(within=PATIENCE / 2)


def test_leader_that_nobody_reaps(guarded: Guarded) -> None:
    """A zombie has ended, and so its group."""
    group = guarded.group(LEAVES_A_DEAF_CHILD, grace=PATIENCE)
    guarded.kill_host()
    group.last_words(within=PATIENCE / 2)


def test_thousands_of_workers(guarded: Guarded) -> None:
    """The guard needs no descriptor for any of them."""
    group = guarded.group(MEEK, grace=PATIENCE)
    for slot in range(100, 5000):
        guard_main.write(guarded.table, slot, NEVER_A_PID + slot, PATIENCE)
    guarded.kill_host()
    assert group.last_words(within=PATIENCE / 2) == b"cancelled\n"
    assert guarded.guard.wait(PATIENCE) == 0


def test_worker_that_was_forgotten(guarded: Guarded) -> None:
    """What the host has cleared is not signalled."""
    other, meek = guarded.group(MEEK, PATIENCE), guarded.group(MEEK, PATIENCE)
    guarded.forget(other)
    guarded.kill_host()
    assert meek.last_words(within=PATIENCE / 2) == b"cancelled\n"
    assert guarded.guard.wait(PATIENCE) == 0
    assert other.process.poll() is None


def test_number_that_another_process_has_by_now(guarded: Guarded) -> None:
    """A process that started after the worker had registered is somebody else's."""
    stranger = Group(MEEK)
    guarded.groups.append(stranger)
    yesterday = guard_main.RECORD.pack(stranger.pid, PATIENCE, guard_main.uptime() - 86400)
    os.pwrite(guarded.table, yesterday, guard_main.RECORD.size)
    guarded.kill_host()
    assert guarded.guard.wait(PATIENCE) == 0
    assert stranger.process.poll() is None


def test_start_of_a_process_is_told() -> None:
    """In the clock that a worker registers with."""
    before = guard_main.uptime()
    process = subprocess.Popen(["sleep", "1000"])
    try:
        tick = 1 / os.sysconf("SC_CLK_TCK")
        assert before - tick <= guard_main.started(process.pid) <= guard_main.uptime()
    finally:
        process.kill()
        process.wait()
    assert guard_main.started(process.pid) == 0


def test_empty_table(guarded: Guarded) -> None:
    """A host that never had a worker."""
    guarded.kill_host()
    assert guarded.guard.wait(PATIENCE) == 0


def test_host_that_nobody_reaps(guarded: Guarded) -> None:
    """A zombie has ended, also where only its number can tell."""
    group = guarded.group(MEEK, grace=PATIENCE)
    guarded.connection.close()  # as the host's end would
    guarded.host.kill()
    assert group.last_words(within=PATIENCE / 2) == b"cancelled\n"


@pytest.mark.parametrize("guarded", [()], indirect=True, ids=[""])
def test_end_of_the_connection_is_not_the_end_of_the_host(guarded: Guarded) -> None:
    """Where there is a pidfd to tell, it alone does."""
    group = guarded.group(MEEK, grace=PATIENCE)
    guarded.connection.close()
    assert not select.select([group.stdout], [], [], 0.3)[0]
    guarded.kill_host()
    assert group.last_words(within=PATIENCE / 2) == b"cancelled\n"


def test_guard_does_nothing_while_its_host_lives(guarded: Guarded) -> None:
    """Workers come and go: it sleeps."""

    def fields() -> dict[str, str]:
        text = Path(f"/proc/{guarded.guard.pid}/status").read_text()
        return dict(line.split(":", 1) for line in text.splitlines())

    while not fields()["State"].strip().startswith("S"):
        time.sleep(0.001)
    before = fields()["voluntary_ctxt_switches"]
    for _ in range(20):
        guarded.group("echo ready", grace=PATIENCE).process.wait(PATIENCE)
    assert guarded.polls or fields()["voluntary_ctxt_switches"] == before


def test_guard_is_small(guarded: Guarded, record_property: Callable[[str, object], None]) -> None:
    """It takes less than 20 MB of memory, and one thread."""
    status = Path(f"/proc/{guarded.guard.pid}/status").read_text()
    fields = dict(line.split(":", 1) for line in status.splitlines())
    size = int(fields["VmRSS"].split()[0])
    record_property("guard_rss_kb", size)
    assert size < 20_000
    assert fields["Threads"].strip() == "1"


def test_guard_imports_the_standard_library_only() -> None:
    """It runs with ``-I -S``, where nothing else could be found."""
    tree = ast.parse(PROGRAM.read_text())
    imported = {
        name.partition(".")[0]
        for node in ast.walk(tree)
        for name in names_imported(node)
    }  # fmt: skip
    assert imported <= sys.stdlib_module_names


def names_imported(node: ast.AST) -> list[str]:
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom):
        return [node.module or "." * node.level]
    return []


# -- of one worker that no host has forked ------------------------------------------------------


class Attended:
    """A guard, the worker that it attends, and the far end of what that reads."""

    def __init__(self, link: str, script: str, grace: float, *interpreter: str) -> None:
        self.group = Group(script)
        connection, theirs = socket.socketpair()
        read_end: int | socket.socket
        if link == "pipe":
            read_end, self.far = os.pipe()
        else:
            far, read_end = socket.socketpair()
            self.far = far.detach()
        number = read_end if isinstance(read_end, int) else read_end.detach()
        with connection, theirs:
            numbers = (theirs.fileno(), number)
            self.guard = subprocess.Popen(
                [
                    sys.executable,
                    *(interpreter or ("-I", "-S")),
                    str(PROGRAM),
                    *map(str, numbers),
                    str(self.group.pid),
                    str(grace),
                ],
                pass_fds=numbers,
                start_new_session=True,
            )
            assert connection.recv(1) == b"+"
        os.close(number)

    def close(self) -> None:
        self.guard.kill()
        self.guard.wait(PATIENCE)
        self.group.close()


@pytest.fixture(params=[(), ("-I", "-S", "-c", WITHOUT_PIDFD)], ids=["", "without pidfd"])
def attended(request: pytest.FixtureRequest) -> Iterator[Callable[..., Attended]]:
    made: list[Attended] = []

    def make(link: str, script: str, grace: float) -> Attended:
        made.append(Attended(link, script, grace, *request.param))
        return made[-1]

    yield make
    for one in made:
        one.close()


@pytest.mark.parametrize("link", ["pipe", "socket"])
def test_a_hang_up_ends_the_group(link: str, attended: Callable[..., Attended]) -> None:
    """First with SIGTERM, though what was sent before has not been read."""
    worker = attended(link, MEEK, 0.2)
    os.write(worker.far, b"not read")
    os.close(worker.far)
    assert worker.group.last_words(PATIENCE) == b"cancelled\n"
    worker.guard.wait(PATIENCE)


def test_half_a_hang_up_will_do(attended: Callable[..., Attended]) -> None:
    """Nobody writes any more, though somebody still reads."""
    worker = attended("socket", DEAF, 0.2)
    with socket.socket(fileno=worker.far) as far:
        far.shutdown(socket.SHUT_WR)
        worker.group.last_words(PATIENCE)


def test_who_ends_by_itself_is_not_told_to(attended: Callable[..., Attended]) -> None:
    """The grace is for that: SIGTERM comes near its end."""
    ends = "trap 'echo cancelled' TERM; echo ready; read line; echo by itself"
    worker = attended("pipe", ends, 4 * PATIENCE)
    os.close(worker.far)
    assert worker.group.process.stdin is not None
    worker.group.process.stdin.close()
    assert worker.group.last_words(PATIENCE) == b"by itself\n"
    worker.guard.wait(PATIENCE)


def test_a_worker_that_ends_first_takes_its_group_along(attended: Callable[..., Attended]) -> None:
    """At once, with the link still there; and its guard too."""
    worker = attended("pipe", LEAVES_A_DEAF_CHILD, 1000.0)
    worker.group.process.terminate()
    worker.group.process.wait(PATIENCE)
    worker.group.last_words(PATIENCE)
    worker.guard.wait(PATIENCE)
    os.close(worker.far)

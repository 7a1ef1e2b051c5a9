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

from forkwire.process import guard, guard_main

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")

PROGRAM: Final = Path(guard_main.__file__)
PATIENCE: Final = 20.0  # seconds, on a loaded machine
NEVER_A_PID: Final = 2**22 + 1  # above what /proc/sys/kernel/pid_max may be

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

OLD_KERNEL = f"""
import runpy, signal, sys
send = signal.pidfd_send_signal
def refuse_flags(pidfd, number, info=None, flags=0):
    if flags:
        raise OSError(22, "Invalid argument")
    send(pidfd, number)
signal.pidfd_send_signal = refuse_flags
del sys.argv[0]
{RUN_IT}
"""


class Group:
    """A shell script that leads a process group; its stdout ends when the last of them has."""

    def __init__(self, script: str) -> None:
        self.process = subprocess.Popen(
            ["sh", "-c", script], stdout=subprocess.PIPE, start_new_session=True
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
        self.registrations, theirs = socket.socketpair()
        with theirs:
            arguments = [str(PROGRAM), str(theirs.fileno()), str(self.host.pid)]
            self.guard = subprocess.Popen(
                [sys.executable, *(interpreter or ("-I", "-S")), *arguments],
                pass_fds=[theirs.fileno()],
                start_new_session=True,
            )
        assert self.registrations.recv(1) == b"+"
        self.groups: list[Group] = []

    def group(self, script: str, grace: float) -> Group:
        group = self.unregistered(script)
        guard.register(self.registrations.fileno(), group.pid, grace)
        return group

    def without_pidfd(self, script: str, grace: float) -> Group:
        group = self.unregistered(script)
        self.registrations.send(guard_main.RECORD.pack(group.pid, grace))
        return group

    def unregistered(self, script: str) -> Group:
        group = Group(script)
        self.groups.append(group)
        return group

    def kill_host(self) -> None:
        self.host.kill()
        self.host.wait(PATIENCE)

    def descriptors(self) -> int:
        return len(os.listdir(f"/proc/{self.guard.pid}/fd"))

    def wait_for_descriptors(self, most: int) -> None:
        """Until it has no more than ``most``: there is no event for that."""
        deadline = time.monotonic() + PATIENCE
        while self.descriptors() > most:
            assert time.monotonic() < deadline, f"it has {self.descriptors()} descriptors"
            time.sleep(0.01)

    def close(self) -> None:
        self.registrations.close()
        for process in (self.host, self.guard):
            process.kill()
            process.wait(PATIENCE)
        for group in self.groups:
            group.close()


@pytest.fixture
def guarded() -> Iterator[Guarded]:
    it = Guarded()
    yield it
    it.close()


@pytest.fixture
def without_pidfd() -> Iterator[Guarded]:
    it = Guarded("-I", "-S", "-c", WITHOUT_PIDFD)
    yield it
    it.close()


@pytest.fixture
def old_kernel() -> Iterator[Guarded]:
    """One whose pidfds cannot signal groups."""
    it = Guarded("-I", "-S", "-c", OLD_KERNEL)
    yield it
    it.close()


def test_sigterm_comes_first(guarded: Guarded) -> None:
    """A group that ends on SIGTERM does so by itself."""
    group = guarded.group(MEEK, grace=PATIENCE)
    guarded.kill_host()
    assert group.last_words(within=PATIENCE / 2) == b"cancelled\n"


def test_sigkill_comes_after_the_grace_of_each(guarded: Guarded) -> None:
    """A group that ignores SIGTERM gets its own grace, no less and hardly more."""
    patient, short = guarded.group(DEAF, grace=0.8), guarded.group(DEAF, grace=0.2)
    guarded.kill_host()
    start = time.monotonic()
    short.last_words(within=PATIENCE)
    assert 0.2 <= time.monotonic() - start < 0.8
    patient.last_words(within=PATIENCE)
    assert 0.8 <= time.monotonic() - start < 1.8


@pytest.mark.parametrize("fixture", ["guarded", "without_pidfd", "old_kernel"])
def test_rest_of_a_group_does_not_outlive_its_leader(
    fixture: str, request: pytest.FixtureRequest
) -> None:
    """Once the leader has ended there is nothing to be patient for."""
    guarded: Guarded = request.getfixturevalue(fixture)
    group = guarded.group(LEAVES_A_DEAF_CHILD, grace=PATIENCE)
    guarded.kill_host()
    group.last_words(within=PATIENCE / 2)


@pytest.mark.parametrize("fixture", ["guarded", "without_pidfd", "old_kernel"])
def test_guard_that_is_late_forgets_nobody(fixture: str, request: pytest.FixtureRequest) -> None:
    """The kernel may end a leader, and init reap it, before the guard sees its host's end."""
    guarded: Guarded = request.getfixturevalue(fixture)
    group = guarded.group(LEAVES_A_DEAF_CHILD, grace=0.3)
    guarded.guard.send_signal(signal.SIGSTOP)
    guarded.kill_host()
    os.kill(group.pid, signal.SIGTERM)
    group.process.wait(PATIENCE)
    guarded.guard.send_signal(signal.SIGCONT)
    group.last_words(within=PATIENCE / 2)


def test_more_workers_than_select_can_wait_for(guarded: Guarded) -> None:
    """The guard's descriptors may have numbers above 1023."""
    group = guarded.group(MEEK, grace=PATIENCE)
    pidfd = os.pidfd_open(group.pid)
    for number in range(1100):
        record = guard_main.RECORD.pack(NEVER_A_PID + number, PATIENCE)
        socket.send_fds(guarded.registrations, [record], [pidfd])
    os.close(pidfd)
    guarded.kill_host()
    assert b"cancelled\n" in group.last_words(within=PATIENCE / 2)


def test_worker_without_a_pidfd(guarded: Guarded) -> None:
    """A worker that could open none is known by its number."""
    meek = guarded.without_pidfd(MEEK, 0.5)  # all of it: the number of a zombie is still taken
    deaf = guarded.without_pidfd(DEAF, 0.1)
    guarded.kill_host()
    assert meek.last_words(within=PATIENCE / 2) == b"cancelled\n"
    deaf.last_words(within=PATIENCE / 2)
    assert guarded.guard.wait(PATIENCE) == 0


def test_end_of_a_worker_without_a_pidfd(guarded: Guarded) -> None:
    """The guard goes on for the others."""
    meek = guarded.group(MEEK, PATIENCE)
    for _ in range(3):
        guarded.without_pidfd("echo ready", PATIENCE).process.wait(PATIENCE)
        guarded.group("echo ready", PATIENCE).process.wait(PATIENCE)
    with pytest.raises(subprocess.TimeoutExpired):
        guarded.guard.wait(3 * guard_main.POLLED)
    guarded.kill_host()
    assert meek.last_words(within=PATIENCE / 2) == b"cancelled\n"
    assert guarded.guard.wait(PATIENCE) == 0


def test_worker_that_registers_after_the_end_of_the_host(guarded: Guarded) -> None:
    """A worker forked just before its host died is told to end."""
    guarded.kill_host()
    assert guarded.group(MEEK, grace=PATIENCE).last_words(within=PATIENCE / 2) == b"cancelled\n"


def test_registered_twice(guarded: Guarded) -> None:
    """A worker counts once, and takes one descriptor."""
    before = guarded.descriptors()
    group = guarded.group(MEEK, grace=PATIENCE)
    for _ in range(50):
        guard.register(guarded.registrations.fileno(), group.pid, PATIENCE)
    guarded.wait_for_descriptors(before + 1)
    guarded.kill_host()
    assert group.last_words(within=PATIENCE / 2) == b"cancelled\n"


def test_workers_that_were_reaped_are_forgotten(guarded: Guarded) -> None:
    """The guard of a host that lives long keeps no descriptor of workers that are gone."""
    before = guarded.descriptors()
    for _ in range(20):
        guarded.group("echo ready", grace=PATIENCE).process.wait(PATIENCE)
    guarded.group(MEEK, grace=PATIENCE)
    guarded.wait_for_descriptors(before + 2)  # the last to end may be looked at once more


@pytest.mark.parametrize("fixture", ["guarded", "without_pidfd"])
def test_host_that_nobody_reaps(fixture: str, request: pytest.FixtureRequest) -> None:
    """A zombie has ended, also where only its number can tell."""
    guarded: Guarded = request.getfixturevalue(fixture)
    group = guarded.group(MEEK, grace=PATIENCE)
    guarded.registrations.close()  # as the host's end would
    guarded.host.kill()
    assert group.last_words(within=PATIENCE / 2) == b"cancelled\n"


def test_end_of_registrations_is_not_the_end_of_the_host(guarded: Guarded) -> None:
    """Where there is a pidfd to tell, it alone does."""
    group = guarded.group(MEEK, grace=PATIENCE)
    guarded.registrations.close()
    assert not select.select([group.stdout], [], [], 0.3)[0]
    guarded.kill_host()
    assert group.last_words(within=PATIENCE / 2) == b"cancelled\n"


def test_guard_ends_soon_after_its_host(guarded: Guarded) -> None:
    """With no worker left it waits for those that may still register, then ends well."""
    guarded.kill_host()
    assert guarded.guard.wait(guard_main.LATE + 1) == 0


def test_guard_is_small(guarded: Guarded, record_property: Callable[[str, object], None]) -> None:
    """It takes less than 20 MB of memory, three descriptors of its own, and one thread."""
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

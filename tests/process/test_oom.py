"""What is known of the kernel's out-of-memory killer, and how the report of a death says it.

The kernel's files are ours here: to fill a real control group would endanger the tests' own.
"""

from __future__ import annotations

import os
import signal
from pathlib import Path

import anyio
import pytest

from forkwire import InputChannel, OutputChannel, run
from forkwire.process import oom

pytestmark = pytest.mark.filterwarnings("ignore::forkwire.ForkThreadsWarning")

EVENTS = "low 0\nhigh 0\nmax 12\noom 3\noom_kill {}\noom_group_kill 9\n"

LINE = (
    b"<3>[ %s] %s: Killed process %d (python) total-vm:1kB, anon-rss:1kB, UID:0 pgtables:1kB "
    b"oom_score_adj:0\n"
)
GLOBAL = b"Out of memory"
GROUP = b"Memory cgroup out of memory"


@pytest.fixture
def events(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file with the count, of a control group of version 2."""
    path = tmp_path / "memory.events"
    path.write_text(EVENTS.format(4))
    monkeypatch.setattr(oom, "counters", lambda: (os.devnull, str(path)))
    return path


def test_the_count_of_victims(events: Path) -> None:
    """It is read from the first file that has one; -1 where there is none."""
    assert oom.kills() == 4
    events.write_text("oom_kill_disable 0\nunder_oom 0\noom_kill 17\n")  # version 1
    assert oom.kills() == 17
    events.write_text("oom_kill_disable 0\nunder_oom 0\n")  # an old kernel's
    assert oom.kills() == -1
    events.unlink()
    assert oom.kills() == -1


@pytest.mark.parametrize(
    ("text", "groups"),
    [
        ("0::/user.slice/my app\n", ["/user.slice/my app"]),
        ("5:cpu,memory:/a\n4:devices:/b\n0::/\n", ["/a", "/"]),
        ("4:memory,cpu:/a\n3:memoryless:/c\n", ["/a"]),
        ("4:name=memory:/b\n", []),
        ("", []),
    ],
)
def test_the_control_groups_of_a_process(text: str, groups: list[str]) -> None:
    """That of version 2, and that of version 1 which counts memory."""
    assert oom.GROUP.findall(text) == groups


@pytest.mark.parametrize(
    ("log", "expected"),
    [
        (LINE % (b"100.000001", GLOBAL, 77), True),
        (b"<6>[ 99.5] else\n" + LINE % (b"100.5", GROUP, 77) + b"<6>[ 101.0] more\n", True),
        (LINE % (b"100.5", GLOBAL, 771), False),
        (LINE % (b"100.5", GLOBAL, 7), False),
        (LINE % (b"10.5", GLOBAL, 77), False),
        (b"<6>[ 100.5] a driver says: Killed process 77 (x)\n", False),
        (b"<6>Out of memory: Killed process 77 (x)\n", False),
        (b"\xff\0", False),
        (b"", False),
    ],
    ids=["all", "group", "longer", "shorter", "long ago", "other", "no time", "bytes", "none"],
)
def test_the_kernels_log(monkeypatch: pytest.MonkeyPatch, log: bytes, expected: bool) -> None:
    """A victim is known by its number, if the line is not of long before it was born."""
    monkeypatch.setattr(oom, "kernel_log", lambda: log)
    assert oom.log_names(77, 90.0) is expected


def test_another_namespace_has_other_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    """The log is not asked there, nor where it may not be read."""
    monkeypatch.setattr(os, "readlink", lambda path: "pid:[4026532222]")
    assert oom.kernel_log() == b""

    def refuse(path: str) -> str:
        raise PermissionError

    monkeypatch.setattr(os, "readlink", refuse)
    assert oom.kernel_log() == b""


def waits(inp: InputChannel, out: OutputChannel, arg: object) -> None:
    inp.fileno()
    signal.pause()


async def end_of_one(events: Path, *, more: int, capture: bool = True) -> str:
    async with await run(waits, None, capture_stderr=capture) as worker:
        events.write_text(EVENTS.format(4 + more))
        os.kill(worker.pid, signal.SIGKILL)
        await worker.wait()
        assert worker.died is not None
        return worker.died.reason


@pytest.mark.anyio
async def test_named_by_the_kernel(events: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the log says is certain."""
    monkeypatch.setattr(oom, "log_names", lambda pid, since: True)
    expected = "was killed by the kernel for lack of memory (SIGKILL)"
    assert await end_of_one(events, more=1) == expected
    assert await end_of_one(events, more=0, capture=False) == expected


@pytest.mark.anyio
async def test_counted_by_the_kernel(events: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One victim more may be another process: it is likely, and that is what is said."""
    monkeypatch.setattr(oom, "log_names", lambda pid, since: False)
    assert "most likely by the kernel for lack of memory" in await end_of_one(events, more=1)
    events.write_text(EVENTS.format(4))
    assert "perhaps by the kernel's out-of-memory" in await end_of_one(events, more=0)


@pytest.mark.anyio
async def test_killed_by_its_handle(events: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Then nobody else is suspected, and the kernel is not asked."""
    monkeypatch.setattr(oom, "log_names", lambda pid, since: 1 / 0)
    async with await run(waits, None, capture_stderr=True) as worker:
        worker.kill()
        with anyio.fail_after(20):
            await worker.wait()
        assert worker.died is not None
        assert worker.died.reason == "was ended by SIGKILL"

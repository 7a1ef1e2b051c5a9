"""How long templates live, who shares them, and what of them is left where."""

from __future__ import annotations

import contextlib
import gc
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import forkwire
from forkwire import sync
from forkwire.process import ownership, template, templates
from forkwire.process.template import Template

from .services import starting
from .support_calls import SERVICES, wait_for_spare

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")

LIMIT = 20.0


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    """No template of another test's."""
    forkwire.close_templates()
    yield
    forkwire.close_templates()


def until(condition: Callable[[], Any]) -> Any:
    end = time.monotonic() + LIMIT
    while not (value := condition()):
        assert time.monotonic() < end, "in vain"
        time.sleep(0.005)
    return value


def is_over(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return True


def ask(method: str, /, *arguments: Any, **options: Any) -> Any:
    """Of a new worker."""
    with sync.open_worker(starting, start="template", **options) as worker:
        return worker.call(method, *arguments)


def parent() -> int:
    """The template's pid."""
    return int(ask("pids")[1])


def names() -> set[str]:
    """What can be imported here as a service."""
    return {each.recipe.label for each in templates._current.values()}


# -- their end ----------------------------------------------------------------------------------


def test_an_idle_one_ends_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    """With its spare worker; the next start makes another."""
    monkeypatch.setattr(template, "IDLE_SECONDS", 0.05)
    first = parent()
    until(lambda: is_over(first))
    assert parent() != first


def test_one_with_a_worker_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    """However long that does nothing."""
    monkeypatch.setattr(template, "IDLE_SECONDS", 0.05)
    with sync.open_worker(starting, start="template") as worker:
        first = worker.call("pids")[1]
        time.sleep(0.3)  # longer than its patience
        assert not is_over(first)
        assert worker.call("add", 1, 2) == 3


def test_close_templates() -> None:
    """The idle end at once, the others with their last worker; later workers get new ones."""
    first = parent()
    forkwire.close_templates()
    until(lambda: is_over(first))  # its descriptors go a moment before it
    with sync.open_worker(starting, start="template") as worker:
        second = worker.call("pids")[1]
        forkwire.close_templates()
        assert worker.call("add", 1, 2) == 3
        assert parent() not in (first, second)
        assert not is_over(second)
    until(lambda: is_over(second))


def test_nothing_of_them_is_left() -> None:
    """No descriptor, thread or process, spare workers among these."""
    gc.collect()
    ask("add", 1, 2)
    forkwire.close_templates()
    before = set(os.listdir("/proc/self/fd")), set(threading.enumerate())
    with sync.open_worker(starting, start="template") as worker:
        pid = worker.call("pids")[1]
        wait_for_spare(pid, worker.pid)
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    forkwire.close_templates()
    until(lambda: all(is_over(int(child)) for child in [pid, *children]))
    assert set(os.listdir("/proc/self/fd")) <= before[0]
    assert before[1].issuperset(threading.enumerate())


def test_there_are_not_too_many(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The one that was not used for longest ends."""
    monkeypatch.setattr(templates, "MOST_IDLE", 2)
    monkeypatch.syspath_prepend(str(tmp_path))
    for name in ("first", "second", "third", "first", "fourth"):
        (tmp_path / f"fw_{name}.py").write_text("def name() -> str: return __name__\n")
        with sync.open_worker(f"fw_{name}", start="template") as worker:
            assert worker.call("name") == f"fw_{name}"
    with sync.open_worker("fw_first", start="template"):
        pass
    assert names() <= {"fw_first", "fw_fourth", "fw_third"}
    assert "fw_second" not in names()


def replace(recipe: template.Recipe) -> None:
    """The next worker gets a new one."""
    old = templates.set_aside(recipe)
    assert old is not None
    templates.let_go_of(old)


def test_one_that_was_set_aside_can_be_put_back() -> None:
    """It has workers again, and the one that had its place meanwhile ends."""
    old = parent()
    (recipe,) = templates._current
    aside = templates.set_aside(recipe)
    assert aside is not None
    new = parent()
    assert new != old
    templates.put_back(aside)
    assert parent() == old
    until(lambda: is_over(new))
    templates.let_go_of(aside)
    templates.put_back(aside)  # too late
    assert parent() not in (old, new)


def test_one_that_is_set_aside_is_closed_with_the_others() -> None:
    """It is no more than an idle one."""
    pid = parent()
    (recipe,) = templates._current
    assert templates.set_aside(recipe) is not None
    forkwire.close_templates()
    until(lambda: is_over(pid))
    assert not templates.all_of_them()


def test_a_retired_one_is_forgotten_by_the_next_start_after_its_end() -> None:
    """Not only when another one is made: its descriptor would stay open until then."""
    with sync.open_worker(starting, start="template"):
        (old,) = templates._current.values()
        replace(old.recipe)
        parent()
    until(lambda: old.is_gone)
    parent()
    assert old.fileno() < 0
    assert old not in templates._retired


def test_a_retired_one_has_no_new_workers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those that it has go on; the next worker runs the code as it is then."""
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    module = tmp_path / "fw_changing.py"
    module.write_text("def version() -> int: return 1\n")
    with sync.open_worker("fw_changing", start="template") as old:
        module.write_text("def version() -> int: return 22\n")
        with sync.open_worker("fw_changing", start="template") as same:
            assert (old.call("version"), same.call("version")) == (1, 1)
        (recipe,) = templates._current
        replace(recipe)
        with sync.open_worker("fw_changing", start="template") as new:
            assert (old.call("version"), new.call("version")) == (1, 22)


# -- who shares them ----------------------------------------------------------------------------


def test_threads_share_one() -> None:
    """Also those that need it before it is ready, and each that ends soon after."""
    parents: list[int] = []
    threads = [threading.Thread(target=lambda: parents.append(parent())) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(LIMIT)
    assert len(parents) == 6
    assert len(set(parents)) == 1
    assert parent() == parents[0]  # it outlives the thread that made it


def test_a_fork_of_the_host_has_its_own() -> None:
    """It knows nothing of the host's, and keeps none of their sockets open."""
    first = parent()
    mine = {os.readlink(f"/proc/self/fd/{each.fileno()}") for each in templates._current.values()}
    read_end, write_end = os.pipe()
    pid = os.fork()
    if pid == 0:
        with contextlib.suppress(BaseException):
            found = {os.readlink(f"/proc/self/fd/{fd}") for fd in range(64) if is_open(fd)}
            same = parent() == first
            forkwire.close_templates()
            os.write(write_end, b"%d%d" % (bool(found & mine), same))
        os._exit(0)
    os.close(write_end)
    assert os.read(read_end, 10) == b"00"
    os.close(read_end)
    os.waitpid(pid, 0)
    assert parent() == first


def is_open(fd: int) -> bool:
    return os.path.exists(f"/proc/self/fd/{fd}")


def test_other_options_share_it_and_other_paths_do_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is imported, and from where, makes the difference."""
    first = parent()
    assert int(ask("pids", threads=2, grace=1, name="another")[1]) == first
    assert int(ask("pids", preload=["json.tool"])[1]) != first
    monkeypatch.syspath_prepend(str(tmp_path))
    assert parent() != first


# -- what its workers have ----------------------------------------------------------------------


def test_workers_have_luck_of_their_own() -> None:
    """``random`` and ``numpy.random`` differ in each, though both are preloaded."""
    found = [ask("chance", preload=["numpy"]) for _ in range(3)]
    assert [len(each) for each in found] == [2, 2, 2]
    for numbers in zip(*found, strict=True):
        assert len(set(numbers)) == 3


def test_workers_collect_garbage() -> None:
    """The template does not."""
    assert ask("collects") is True


@pytest.mark.parametrize("spare", [False, True])
def test_without_logging_handlers_are_left_alone(spare: bool) -> None:
    """A rehearsal leaves none behind."""
    with sync.open_worker(starting, start="template", logging=False) as worker:
        if spare:
            wait_for_spare(worker.call("pids")[1], worker.pid)
        assert ask("logging_handlers", logging=False) == []


def test_a_spare_worker_that_was_killed_is_replaced() -> None:
    """The next request is served by a fork."""
    with sync.open_worker(starting, start="template") as worker:
        pid = worker.call("pids")[1]
        wait_for_spare(pid, worker.pid)
        (spare,) = set(children(pid)) - {worker.pid}
        os.kill(spare, signal.SIGKILL)
        until(lambda: is_over(spare))
        assert parent() == pid
        assert worker.call("add", 1, 2) == 3


def children(pid: int) -> list[int]:
    return list(map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split()))


def test_many_at_once() -> None:
    """Each is another process, none is lost, and all are reaped."""
    with contextlib.ExitStack() as stack:
        workers = [
            stack.enter_context(sync.open_worker(starting, start="template")) for _ in range(20)
        ]
        pids = [worker.call("pids") for worker in workers]
    assert len({pid for pid, _, _ in pids}) == 20
    assert len({parent for _, parent, _ in pids}) == 1
    assert not children(pids[0][1]) or set(children(pids[0][1])).isdisjoint(p for p, _, _ in pids)


# -- unusual hosts ------------------------------------------------------------------------------

UNUSUAL = """
import os, signal, sys
from forkwire import sync
def no_child():
    try:
        os.wait()
    except ChildProcessError:
        return
    raise AssertionError("it waited for something of ours")
{before}
with sync.open_worker("starting", start="template") as worker:
    pids = worker.call("pids")
assert worker.returncode == 0, worker.returncode
with sync.open_worker("starting", start="template") as worker:
    assert worker.call("pids")[1] == pids[1]
    {after}
with open({told!r}, "w") as file:
    file.write("done")
"""


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("signal.signal(signal.SIGCHLD, signal.SIG_IGN)", ""),
        ("os.closerange(0, 3); sys.stdin = sys.stdout = sys.stderr = None", ""),
        (
            "signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())",
            "assert worker.call('blocked') == []",
        ),
        ("import socket; socket.setdefaulttimeout(0.001)", ""),
        ("", "os.chdir('/'); os.environ['A'] = 'b'"),
        ("", "no_child()"),
    ],
    ids=["SIGCHLD ignored", "no standard streams", "signals blocked", "timeouts", "moved", "wait"],
)
def test_unusual_hosts(before: str, after: str, tmp_path: Path) -> None:
    """A template is no child that an application waits for, and needs nothing of its host."""
    told = tmp_path / "told"
    path = os.pathsep.join(filter(None, [str(SERVICES), os.environ.get("PYTHONPATH")]))
    script = UNUSUAL.format(before=before, after=after, told=str(told))
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", script],
        capture_output=True,
        text=True,
        timeout=50,
        env={**os.environ, "PYTHONPATH": path},
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert told.read_text() == "done"


@pytest.mark.parametrize("start", ["template", "exec"])
def test_an_interpreter_s_own_options_travel(start: str) -> None:
    """-W, -X and the like hold for a fresh one too."""
    script = (
        "import sys\nfrom forkwire import sync\n"
        f"with sync.open_worker('starting', start={start!r}) as worker:\n"
        "    print(worker.call('options'))\n"
    )
    path = os.pathsep.join(filter(None, [str(SERVICES), os.environ.get("PYTHONPATH")]))
    done = subprocess.run(
        [sys.executable, "-B", "-W", "error", "-X", "utf8", "-c", script],
        capture_output=True,
        text=True,
        timeout=50,
        env={**os.environ, "PYTHONPATH": path},
    )
    assert done.stdout == "[True, ['error'], 1]\n", done.stderr


def test_what_is_left_of_workers_at_the_end_is_silent() -> None:
    """CPython complains of each `struct_rusage` that its last collection finds."""
    script = (
        "import signal, threading\nfrom forkwire import WorkerDied, sync\n"
        "def have_one():\n"
        "    with sync.open_worker('starting', start='template', grace=0.3) as worker:\n"
        "        try:\n"
        "            worker.call('die', signal.SIGKILL)\n"
        "        except WorkerDied as error:\n"
        "            assert error.rusage.ru_maxrss > 0\n"
        "threads = [threading.Thread(target=have_one) for _ in range(12)]\n"
        "for each in threads:\n"
        "    each.start()\n"
        "for each in threads:\n"
        "    each.join()\n"
    )
    path = os.pathsep.join(filter(None, [str(SERVICES), os.environ.get("PYTHONPATH")]))
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", script],
        capture_output=True,
        text=True,
        timeout=50,
        env={**os.environ, "PYTHONPATH": path},
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_owned_descriptors_are_counted() -> None:
    """Those of templates are nobody else's, as all of ours."""
    ask("add", 1, 2)
    assert all(each.fileno() in ownership._owned for each in templates._current.values())
    assert all(isinstance(each, Template) for each in templates._current.values())

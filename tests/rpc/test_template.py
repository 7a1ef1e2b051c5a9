"""Workers that a template forks: what they have of it, of the host, and of their own."""

from __future__ import annotations

import os
import signal
import sys
import types
from pathlib import Path
from typing import Any

import anyio
import pytest

from forkwire import UsageError, WorkerDied, open_worker, sync
from forkwire.process import templates
from forkwire.process.template import Template

from .services import starting
from .support_calls import until, worker_of

pytestmark = pytest.mark.anyio


def newest() -> Template:
    """The template that was used last."""
    return max(templates._current.values(), key=lambda each: each.used)


async def test_workers_of_a_service_share_a_template(anyio_backend: Any) -> None:
    """Each is forked from it, which imported the service; neither is a child of the host."""
    pids = []
    for _ in range(2):
        async with worker_of(starting, start="template") as worker:
            pids.append(await worker.call("pids"))
            assert pids[-1][0] == worker.pid
        assert worker.returncode == 0
    (first, parent, imported), (second, *others) = pids
    assert first != second
    assert [parent, imported] == others == [newest().pid] * 2
    with pytest.raises(ChildProcessError):
        os.waitpid(parent, os.WNOHANG)


async def test_a_loop_and_a_thread_share_a_template(anyio_backend: Any) -> None:
    """The front without a loop finds the template that the loop's made, if it has that loop."""
    async with worker_of(starting, start="template") as worker:
        _, parent, _ = await worker.call("pids")

        def ask() -> int:
            with sync.open_worker(starting, start="template", backend=backend) as other:
                return int(other.call("pids")[1])

        backend: Any = worker._handle.process._child._backend.name  # type: ignore[union-attr]
        assert await anyio.to_thread.run_sync(ask) == parent


async def test_a_worker_has_the_host_s_surroundings(
    anyio_backend: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its environment, folder, arguments and path are those of the host now, not before."""
    async with worker_of(starting, start="template") as worker:
        assert (await worker.call("surroundings", "A_TEST"))[0] is None
        parent = (await worker.call("pids"))[1]
    monkeypatch.setenv("A_TEST", "\udc80 as it is")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["program", "--option"])
    async with worker_of(starting, start="template") as worker:
        assert (await worker.call("pids"))[1] == parent
        value, *rest = await worker.call("surroundings_safely", "A_TEST")
        assert value == ascii("\udc80 as it is")
        assert rest == [str(tmp_path), sys.argv, sys.path]
    monkeypatch.delenv("A_TEST")
    async with worker_of(starting, start="template") as worker:
        assert (await worker.call("surroundings", "A_TEST"))[0] is None


async def test_a_large_environment_travels(
    anyio_backend: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What does not fit into a small message comes all the same."""
    monkeypatch.setenv("A_TEST", "x" * 100_000)
    async with worker_of(starting, start="template") as worker:
        assert (await worker.call("surroundings", "A_TEST"))[0] == "x" * 100_000


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV, 0])
async def test_a_death_is_told_as_that_of_a_child(anyio_backend: Any, number: int) -> None:
    """The code, the reason and the resources come from the template."""
    async with worker_of(starting, start="template") as worker:
        with pytest.raises(WorkerDied) as died:
            await worker.call("die", number)
        assert died.value.returncode == (-number or 3)
        assert died.value.rusage is not None
        assert died.value.in_flight


async def test_what_is_stuck_in_c_is_killed(anyio_backend: Any) -> None:
    """SIGTERM, the grace, SIGKILL, as for every worker."""
    async with worker_of(starting, start="template", grace=0.1) as worker:
        with anyio.move_on_after(0.2) as scope:
            await worker.call("stuck_in_c")
        assert scope.cancelled_caught
        assert worker.returncode == -signal.SIGKILL


async def test_the_rest_of_its_group_ends_with_it(anyio_backend: Any, tmp_path: Path) -> None:
    """What a worker forked, and left in its group, is killed as it is reaped."""
    begun = tmp_path / "begun"
    async with worker_of(starting, start="template") as worker:
        pid = await worker.call("start_descendant", str(begun))
        await until(begun.exists)
    await until(lambda: not Path(f"/proc/{pid}").exists() or is_zombie(pid))


def is_zombie(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return True


async def test_what_can_only_be_inherited_is_refused(anyio_backend: Any, tmp_path: Path) -> None:
    """An instance, a closure, and what a fresh interpreter would not find."""
    for service in (tmp_path, {"add": lambda a, b: a + b}, types.ModuleType("made_up")):
        if isinstance(service, types.ModuleType):
            service.add = starting.add  # type: ignore[attr-defined]
            service.__all__ = ["add"]  # type: ignore[attr-defined]
        for start in ("template", "exec"):
            with pytest.raises(UsageError, match="inherited"):
                open_worker(service, start=start)

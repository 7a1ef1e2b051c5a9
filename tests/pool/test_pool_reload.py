"""All workers anew, with the code as it is now: ``pool.reload()``."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import anyio
import pytest

from forkwire import Pool, PoolBrokenError, Restart, UsageError, WorkerClosedError
from forkwire.process.templates import close_templates

from ..rpc.support_pains import nothing_left_behind
from .support_pools import kill, pids_of, pool_of, there, until

__all__ = ["nothing_left_behind"]

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("nothing_left_behind")]

VERSION = "def version():\n    return {}\n\ndef wait_for(begun, path):\n{}"
WAITS = """
    import os, time
    open(begun, "w").close()
    while not os.path.exists(path):
        time.sleep(0.002)
    return version()
"""


@pytest.fixture
def no_template(nothing_left_behind: None) -> Iterator[None]:
    """Its template ends with the test."""
    yield
    close_templates()


@pytest.fixture
def write(
    no_template: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[[object], None]:
    """Writes a version of the module ``versioned``, which workers can import."""
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")
    module = tmp_path / "versioned.py"

    def write_version(number: object) -> None:
        module.write_text(VERSION.format(number, WAITS))

    return write_version


@pytest.mark.parametrize("start", ["exec", "template"])
async def test_reload_loses_no_call(
    start: Any, tmp_path: Path, write: Callable[[object], None]
) -> None:
    """What runs ends on the old code, what comes after the reload runs the new one."""
    write(1)
    async with pool_of("versioned", start=start) as pool, anyio.create_task_group() as tasks:
        assert await pool.call("version") == 1
        results: list[int] = []

        async def run() -> None:
            path = str(tmp_path / "go")
            results.append(await pool.call("wait_for", str(tmp_path / "begun"), path))

        tasks.start_soon(run)
        await there(tmp_path / "begun")
        write(2)
        await pool.reload()
        assert await pool.broadcast("version") == [2, 2]
        assert results == []
        (tmp_path / "go").touch()
        await until(lambda: results == [1])
        assert pool.statistics().deaths == 0
        await until(lambda: len(pids_of(pool)) == 2)


async def test_reload_learns_what_the_new_code_offers(
    tmp_path: Path, write: Callable[[object], None]
) -> None:
    """A function that was added can be called."""
    write(1)
    async with pool_of("versioned", start="exec", size=1) as pool:
        (tmp_path / "versioned.py").write_text("def version():\n    yield 3\n")
        await pool.reload()
        assert [n async for n in pool.stream("version")] == [3]


async def test_code_that_does_not_start_is_not_taken(write: Callable[[object], None]) -> None:
    """Its error is raised, and the old workers go on."""
    write(1)
    async with pool_of("versioned", start="exec") as pool:
        before = pids_of(pool)
        write("1 / 0\n\n1 / 0")
        with pytest.raises(ZeroDivisionError):
            await pool.reload()
        assert pids_of(pool) == before
        assert await pool.call("version") == 1
        write(2)
        await pool.reload()
        assert await pool.broadcast("version") == [2, 2]


async def test_forked_workers_cannot_be_reloaded() -> None:
    """They inherit the code of this process."""
    async with pool_of(start="fork") as pool:
        with pytest.raises(UsageError, match="inherit"):
            await pool.reload()


async def test_a_reload_that_failed_leaves_the_old_code_to_restarts(
    write: Callable[[object], None],
) -> None:
    """A worker that dies afterwards is forked from the template that has it."""
    write(1)
    async with pool_of("versioned", start="template", size=1) as pool:
        write("1 / 0\n\n1 / 0")
        with pytest.raises(ZeroDivisionError):
            await pool.reload()
        (old,) = pids_of(pool)
        kill(old)
        await until(lambda: pids_of(pool) - {old})
        assert await pool.call("version") == 1
        write(2)
        await pool.reload()
        await until(lambda: len(pids_of(pool)) == 1)
        kill(*pids_of(pool))
        await until(lambda: pool.statistics().deaths == 2)
        assert await pool.call("version") == 2


async def test_reloads_at_a_time_each_have_their_own_outcome(
    write: Callable[[object], None],
) -> None:
    """Several at a time go one after the other: none is told that all is well by another's end."""
    write(1)
    async with pool_of("versioned", start="exec", size=1) as pool:
        errors: list[BaseException] = []

        async def reload() -> None:
            try:
                await pool.reload()
            except ZeroDivisionError as error:
                errors.append(error)

        write("1 / 0\n\n1 / 0")
        async with anyio.create_task_group() as tasks:
            for _ in range(3):
                tasks.start_soon(reload)
        assert len(errors) == 3
        assert await pool.call("version") == 1


async def test_a_reload_that_was_cancelled_goes_on(write: Callable[[object], None]) -> None:
    """The next one waits for it, and then loads what is there by then."""
    write(1)
    async with pool_of("versioned", start="exec", size=1) as pool:
        write(2)
        with anyio.move_on_after(0.01):
            await pool.reload()
        write(3)
        await pool.reload()
        assert await pool.call("version") == 3


async def test_a_pool_that_ends_is_not_reloaded(write: Callable[[object], None]) -> None:
    """A reload says so: before, and where the end comes in its midst."""
    write(1)
    async with pool_of("versioned", start="exec", size=1) as pool:
        ended: list[BaseException] = []

        async def reload() -> None:
            try:
                await pool.reload()
            except WorkerClosedError as error:
                ended.append(error)

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(reload)
            await until(lambda: pool.statistics().starting == 1)
            await pool.aclose()
        await reload()
        assert len(ended) == 2


async def test_a_pool_that_is_broken_is_not_reloaded(write: Callable[[object], None]) -> None:
    """Nor resized: both raise what a call would."""
    write(1)
    restart = Restart(intensity=0)
    async with pool_of("versioned", start="exec", size=1, restart=restart) as pool:
        kill(*pids_of(pool))
        await until(lambda: is_broken(pool))
        with pytest.raises(PoolBrokenError):
            await pool.reload()
        with pytest.raises(PoolBrokenError):
            await pool.resize(2)


def is_broken(pool: Pool) -> bool:
    return " broken," in repr(pool)

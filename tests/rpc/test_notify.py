"""Notifications: sent, run, and heard of no more, but for the log."""

from __future__ import annotations

import logging

import anyio
import pytest

from forkwire import MethodNotFoundError, ValueEncodeError, WorkerDied, WrongKindError

from .services import calling
from .support_calls import until, until_state, worker_of

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize("function", ["count_run", "count_run_later"])
async def test_it_runs(function: str) -> None:
    """By name or by function, plain or async."""
    async with worker_of() as worker:
        await worker.notify(function)
        await worker.notify(getattr(calling, function))
        await until_state(worker, "ran", 2)


async def test_it_does_not_wait() -> None:
    """The handler may take its time."""
    async with worker_of() as worker:
        started = anyio.current_time()
        await worker.notify("nap_later", 0.2)
        await worker.notify("nap", 0.2)
        assert anyio.current_time() - started < 0.15
        worker.kill()


async def test_what_it_raises_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    """As a warning that names the worker, the function and the error."""
    caplog.set_level(logging.WARNING, "forkwire")
    async with worker_of() as worker:
        for function in ("fail", "fail_later"):
            await worker.notify(function, "boo")
        await until(lambda: len(caplog.records) == 2)
        assert {record.levelname for record in caplog.records} == {"WARNING"}
        for function in ("fail", "fail_later"):
            assert any(f"'{function}'" in r.getMessage() and "boo" in r.getMessage()
                       for r in caplog.records)  # fmt: skip
        assert await worker.call("add", 1) == 11


async def test_what_is_known_here_is_raised_here() -> None:
    """Names that are not offered, kinds that do not fit, values that cannot be encoded."""
    async with worker_of() as worker:
        with pytest.raises(MethodNotFoundError):
            await worker.notify("ad")
        with pytest.raises(WrongKindError):
            await worker.notify("count", 1)
        with pytest.raises(ValueEncodeError):
            await worker.notify("echo", calling.Odd())
        worker.kill()
        await until(lambda: worker._own_caller().link.over)
        with pytest.raises(WorkerDied):
            await worker.notify("count_run")


async def test_what_was_sent_before_leaving_is_done(tmp_path: object) -> None:
    """Leaving the block lets notifications run to their end."""
    path = f"{tmp_path}/there"
    async with worker_of() as worker:
        await worker.notify("append_slowly", path, "a")
        await worker.notify("append_slowly_later", path, "b")
    with open(path) as file:
        assert sorted(file.read()) == ["a", "b"]
    assert worker.returncode == 0


async def test_the_callers_memory_is_its_own_again() -> None:
    """What was passed may be changed at once."""
    async with worker_of() as worker:
        data = bytearray(b"x" * 3_000_000)
        await worker.notify("keep", data)
        data[:] = b"y" * len(data)
        assert await worker.call("kept") == {ord("x"): 3_000_000}


async def test_a_cancelled_scope_does_not_take_it_back() -> None:
    """Once it was sent nothing stops it."""
    async with worker_of() as worker:
        with anyio.CancelScope() as scope:
            await worker.notify("nap_then_count", 0.02)
            scope.cancel()
        await until_state(worker, "ran", 1)

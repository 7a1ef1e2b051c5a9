"""The first lines that users write, as they are promised: calls with a loop and without one."""

from __future__ import annotations

import concurrent.futures
import importlib
import logging
import math
import os
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol

import anyio
import pytest

import forkwire
from forkwire import sync

CALC = """\
import logging
from collections.abc import Iterator

import anyio

import forkwire
import forkwire.sync


def add(a: int, b: int) -> int: return a + b
def count(n: int) -> Iterator[int]: yield from range(n)
async def nap(seconds: float) -> str:
    try:
        await anyio.sleep(seconds)
    except BaseException:
        naps.append("stopped")
        raise
    return "rested"
naps: list[str] = []
def stopped_naps() -> list[str]: return naps
def fail(text: str) -> None: raise ValueError(text)
def log(text: str) -> None: logging.getLogger("calc").warning(text)
async def square_there(n: int) -> int:
    call = forkwire.current_call()
    await call.progress(1, 2, "half")
    return await call.host.call("square", n)
def square_there_plain(n: int) -> int:
    call = forkwire.sync.current_call()
    call.progress(1, 2, "half")
    return call.host.call("square", n)
async def left() -> tuple[float, bool]:
    call = forkwire.current_call()
    with call.shield():
        return call.deadline, call.cancelled
def die() -> None:
    import os
    os._exit(3)
def parent() -> int:
    import os
    return os.getppid()
"""


class CalculatorProtocol(Protocol):
    async def add(self, a: int, b: int) -> int: ...
    def count(self, n: int) -> AsyncIterator[int]: ...


class SyncCalculatorProtocol(Protocol):
    def add(self, a: int, b: int) -> int: ...
    def count(self, n: int) -> Iterator[int]: ...


@pytest.fixture(scope="module")
def calc(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ModuleType]:
    """The module, where a program would find it."""
    folder = tmp_path_factory.mktemp("calc")
    (folder / "calc.py").write_text(CALC)
    sys.path.insert(0, str(folder))
    sys.modules.pop("calc", None)
    yield importlib.import_module("calc")
    sys.path.remove(str(folder))
    del sys.modules["calc"]


class Host:
    def square(self, n: int) -> int:
        return n * n


@pytest.mark.anyio
@pytest.mark.parametrize("by_name", [False, True], ids=["module", "name"])
async def test_calls_in_a_loop(
    calc: Any, by_name: bool, caplog: pytest.LogCaptureFixture, anyio_backend: Any
) -> None:
    """Each line of the section on calls does what stands beside it."""
    async with forkwire.open_worker("calc" if by_name else calc) as worker:
        assert await worker.call("add", 1, 2) == 3
        assert await worker.call(calc.add, 1, 2) == 3
        assert [n async for n in worker.stream("count", 10)] == list(range(10))
        with pytest.raises(TimeoutError):
            with anyio.fail_after(0.05):
                await worker.call("nap", 60)
        assert await worker.call("stopped_naps") == ["stopped"]
        calculator = worker.proxy(CalculatorProtocol)
        assert await calculator.add(1, 2) == 3
        assert [n async for n in calculator.count(3)] == [0, 1, 2]
        with caplog.at_level(logging.WARNING):
            await worker.notify("log", "no answer wanted")
            await worker.call("add", 1, 2)
        assert [record.getMessage() for record in caplog.records] == ["no answer wanted"]
        assert worker.pid > 0
        assert worker.statistics().calls >= 7
    assert worker.returncode == 0


@pytest.mark.anyio
async def test_the_host_is_called_and_hears_of_progress(calc: Any, anyio_backend: Any) -> None:
    """``host=`` and ``on_progress=``, from async handlers and from plain ones."""
    reports: list[tuple[float, float | None, str]] = []

    def show(done: float, total: float | None, text: str) -> None:
        reports.append((done, total, text))

    async with forkwire.open_worker(calc, host=Host()) as worker:
        for name in "square_there", "square_there_plain":
            assert await worker.options(on_progress=show).call(name, 7) == 49
        assert await worker.call("left") == (math.inf, False)
        with anyio.fail_after(60):
            deadline, _ = await worker.call(calc.left)
        assert deadline != math.inf
    assert reports == [(1, 2, "half")] * 2


@pytest.mark.anyio
async def test_a_stream_is_a_context_manager_and_is_no_call(calc: Any, anyio_backend: Any) -> None:
    """Leaving the block closes it; to call what yields is a clear error."""
    async with forkwire.open_worker(calc) as worker:
        async with worker.stream(calc.count, 10**9) as numbers:
            async for n in numbers:
                if n == 3:
                    break
        with pytest.raises(forkwire.WrongKindError, match="streamed, not called"):
            await worker.call("count", 3)
        assert await worker.call("add", 1, 2) == 3


@pytest.mark.anyio
async def test_errors(calc: Any, anyio_backend: Any) -> None:
    """A handler's is the builtin that it was, the body's is not wrapped, a death tells all."""
    async with forkwire.open_worker(calc) as worker:
        with pytest.raises(ValueError, match="boo") as raised:
            await worker.call("fail", "boo")
        assert isinstance(raised.value, forkwire.RemoteError)
        assert "def fail" in str(raised.value)
        with pytest.raises(forkwire.WorkerDied) as died:
            await worker.call("die")
        assert (died.value.pid, died.value.returncode) == (worker.pid, 3)
        assert died.value.in_flight[0].startswith("die")
    with pytest.raises(KeyError):
        async with forkwire.open_worker(calc):
            raise KeyError("as it is")


@pytest.mark.anyio
async def test_start(calc: Any, anyio_backend: Any) -> None:
    """Forked or executed, and what can only be inherited is forked; each answers the same."""
    for start in ("fork", "exec"):
        async with forkwire.open_worker(calc, start=start) as worker:
            assert await worker.call("add", 1, 2) == 3
    numbers = {"add": lambda a, b: a + b}
    async with forkwire.open_worker(numbers) as worker:
        assert await worker.call("add", 1, 2) == 3
    with pytest.raises(forkwire.UsageError, match="inherited"):
        forkwire.open_worker(numbers, start="exec")


@pytest.mark.anyio
async def test_a_template_is_the_default(calc: Any, anyio_backend: Any) -> None:
    """A module and its name start from a template, an instance is inherited; each can be told."""
    async with forkwire.open_worker(calc) as one, forkwire.open_worker("calc") as other:
        assert await one.call("parent") == await other.call("parent") != os.getpid()
    for opened in (forkwire.open_worker(calc, start="fork"), forkwire.open_worker(Host())):
        async with opened as worker:
            with open(f"/proc/{worker.pid}/stat") as stat:
                assert int(stat.read().rpartition(")")[2].split()[1]) == os.getpid()
    async with forkwire.open_worker(calc, start="exec") as worker:
        assert await worker.call(calc.add, 1, 2) == 3


@pytest.mark.anyio
async def test_pools(calc: Any, anyio_backend: Any) -> None:
    """The lines of the section of pools."""
    pairs = [(1, 2), (3, 4), (5, 6)]
    async with forkwire.open_pool(calc, size=4) as pool:
        assert await pool.call("add", 1, 2) == 3
        assert [result async for result in pool.map("add", [1, 3], [2, 4])] == [3, 7]
        unordered = [n async for n in pool.starmap("add", pairs, ordered=False)]
        assert sorted(unordered) == [3, 7, 11]


def test_an_executor() -> None:
    """It is one of :mod:`concurrent.futures`, and is for code that is trusted."""
    with forkwire.ProcessExecutor(max_workers=4) as executor:
        assert isinstance(executor, concurrent.futures.Executor)
        assert executor.submit(pow, 2, 10).result() == 1024
    with pytest.raises(forkwire.UsageError):
        forkwire.ProcessExecutor(sandbox=object())  # type: ignore[arg-type]


def test_calls_without_a_loop(calc: Any) -> None:
    """The lines of the section without an event loop, and the others of their kind."""
    with sync.open_worker("calc", host=Host()) as worker:
        assert worker.call("add", 1, 2) == 3
        assert worker.call(calc.add, 1, 2) == 3
        assert list(worker.stream("count", 10)) == list(range(10))
        with pytest.raises(TimeoutError):
            worker.options(timeout=0.05).call("nap", 60)
        assert worker.call("stopped_naps") == ["stopped"]
        calculator = worker.proxy(SyncCalculatorProtocol)
        assert calculator.add(1, 2) == 3
        assert list(calculator.count(3)) == [0, 1, 2]
        assert worker.call("square_there_plain", 7) == 49
        worker.notify("log", "no answer wanted")
        assert worker.statistics().calls >= 7


def test_a_first_program(tmp_path: Path) -> None:
    """A module and a script beside it, nothing else: what a user has after five minutes."""
    import subprocess

    (tmp_path / "calc.py").write_text("def add(a: int, b: int) -> int: return a + b\n")
    script = tmp_path / "program.py"
    script.write_text(
        'from forkwire.sync import open_worker\nwith open_worker("calc") as worker:\n'
        '    print(worker.call("add", 1, 2))\n'
    )
    done = subprocess.run(
        [sys.executable, "-W", "error", script], capture_output=True, text=True, timeout=50
    )
    assert (done.stdout, done.stderr, done.returncode) == ("3\n", "", 0)


def test_every_error_is_ours() -> None:
    """Every error that is exported descends from ``ForkwireError``."""
    found = [getattr(forkwire, name) for name in forkwire.__all__]
    errors = [each for each in found if isinstance(each, type) and issubclass(each, Exception)]
    ours = [each for each in errors if not issubclass(each, Warning)]
    assert len(ours) > 20
    assert all(issubclass(each, forkwire.ForkwireError) for each in ours)

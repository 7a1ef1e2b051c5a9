"""Workers that are programs of their own: fresh interpreters, and whatever speaks the protocol."""

from __future__ import annotations

import importlib
import logging
import os
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cbor2
import pytest

import forkwire
from forkwire import open_worker
from forkwire import sync as blocking
from forkwire.rpc import standalone
from forkwire.sync import SyncWorker

from .services import plain
from .support_sync import SERVICES, importable, in_threads, is_running, path_with_services, until

__all__ = ["importable"]

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("importable")]

SERVE = [sys.executable, "-m", "forkwire", "serve"]

# What a service of plain functions must not import: loops, and what is large.
HEAVY = {
    "anyio", "asyncio", "concurrent.futures", "ssl", "tempfile", "forkwire.rpc.caller.aio",
    "forkwire.rpc.caller.calls", "forkwire.rpc.handlers.hosting", "forkwire.rpc.handlers.tasks",
    "forkwire.rpc.worker", "forkwire.cli",
    "msgspec", "multiprocessing", "numpy", "opentelemetry", "trio", "uvloop",
}  # fmt: skip


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """A command that is given as one is found by its own means."""
    monkeypatch.setenv("PYTHONPATH", path_with_services())


# -- start="exec" -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def fresh() -> Iterator[SyncWorker]:
    """One fresh interpreter for those that leave it as it was."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(SERVICES))
        with blocking.open_worker("plain", start="exec", host={"square": square}) as worker:
            yield worker


def square(n: int) -> int:
    return n * n


async def test_a_fresh_interpreter_serves() -> None:
    """Started from a loop, each of the three."""
    async with open_worker("plain", start="exec") as worker:
        assert await worker.call("add", 1, 2) == 3
        with pytest.raises(ValueError, match="boo"):
            await worker.call("fail", "boo")
    assert worker.returncode == 0


def test_a_fresh_interpreter_serves_without_a_loop(fresh: SyncWorker) -> None:
    """Calls, streams both ways, errors, calls back."""
    assert fresh.call("pid") == fresh.pid
    assert list(fresh.stream("count", 3)) == [0, 1, 2]
    assert fresh.call("total", iter([1, 2, 3])) == 6
    assert fresh.call("ask", "square", 7) == 49


def test_a_fresh_interpreter_imports_little(fresh: SyncWorker) -> None:
    """Plain functions need no loop, no other thread, and no library of ours that is large."""
    modules = set(fresh.call("modules"))
    assert "cbor2" in modules
    assert not modules & HEAVY
    assert fresh.call("threads") == ["MainThread"]


def test_a_fresh_interpreter_is_interrupted_as_a_forked_one(fresh: SyncWorker) -> None:
    """By the control pipe."""
    with pytest.raises(TimeoutError):
        fresh.options(timeout=0.1).call("nap", 60)
    assert fresh.call("state", "stopped") == 1


def test_a_fresh_interpreter_has_threads() -> None:
    """As many as were asked for; a module that was imported is given by its name."""
    top_level = importlib.import_module("plain")
    with blocking.open_worker(top_level, start="exec", threads=3) as worker:
        assert len({str(name) for name in in_threads(lambda n: worker.call("meet", 3), 3)}) == 3


@pytest.mark.parametrize(
    "service", [{"add": plain.add}, lambda: None, object(), "__main__", "__main__:Thing"]
)
def test_what_has_no_name_can_only_be_inherited(service: Any) -> None:
    """A fresh interpreter could not import it."""
    with pytest.raises(forkwire.UsageError):
        blocking.open_worker(service, start="exec")


def test_a_service_that_is_not_there() -> None:
    """The import's error is raised here."""
    with (
        pytest.raises(ModuleNotFoundError, match="no_such_module"),
        blocking.open_worker("no_such_module", start="exec"),
    ):
        raise AssertionError


@pytest.mark.parametrize("level", [logging.INFO, logging.ERROR])
def test_the_level_of_logs_comes_with_the_greeting(
    level: int, caplog: pytest.LogCaptureFixture
) -> None:
    """What the host does not want is not sent."""
    with caplog.at_level(level), blocking.open_worker("plain", start="exec") as worker:
        worker.call("log", "said in the worker")
    said = [r.levelno for r in caplog.records if "said in the worker" in r.getMessage()]
    assert said == [n for n in (logging.INFO, logging.ERROR) if n >= level]


def test_sigterm_interrupts_what_runs(tmp_path: Path) -> None:
    """The function is left, and the worker ends by that signal, as it says itself."""
    begun = tmp_path / "begun"
    with blocking.open_worker("plain", start="exec") as worker:
        worker.notify("hold", str(begun), str(tmp_path / "never"))
        until(begun.exists)
        worker.terminate()
        until(lambda: worker.returncode is not None)
        assert worker.returncode == -signal.SIGTERM
        with pytest.raises(forkwire.WorkerDied):
            worker.call("add", 1, 2)


@pytest.mark.parametrize("front", ["by name", "itself"])
def test_a_fresh_interpreter_is_initialized(front: str) -> None:
    """With what the initializer is to be given, however large."""
    top_level = importlib.import_module("plain")
    given: Any = "plain:begin" if front == "by name" else top_level.begin
    values = [1, "two", b"3" * 200_000, [4.5]]
    with blocking.open_worker("plain", start="exec", initializer=given, initargs=values) as worker:
        assert worker.call("begun") == values


def test_an_initializer_that_raises_in_a_fresh_interpreter() -> None:
    """It is why there is no service."""
    with (
        pytest.raises(ValueError, match="boo"),
        blocking.open_worker("plain", start="exec", initializer="plain:begin", initargs=["boo"]),
    ):
        raise AssertionError


def test_an_initializer_that_cannot_be_imported() -> None:
    """A fresh interpreter has no way to it, and a program has its own."""
    with pytest.raises(forkwire.UsageError, match="cannot be imported"):
        blocking.open_worker("plain", start="exec", initializer=lambda: None)
    with pytest.raises(forkwire.UsageError, match="is for services"):
        blocking.open_worker(command=["true"], initializer="plain:begin")


async def test_a_fresh_interpreter_has_the_loop_that_runs_here(
    anyio_backend: tuple[str, dict[str, Any]],
) -> None:
    """As a forked one has."""
    async with open_worker("mixed", start="exec") as worker:
        expected = "trio" if anyio_backend[0] == "trio" else "asyncio"
        if anyio_backend[1].get("use_uvloop"):
            expected = "uvloop"
        assert await worker.call("loop") == expected


def test_a_fresh_interpreter_has_the_limit_of_its_host() -> None:
    """In its greeting: what is above is not sent."""
    with (
        blocking.open_worker("plain", start="exec", max_message_size=5000) as worker,
        pytest.raises(forkwire.ValueEncodeError, match="above the 5000"),
    ):
        worker.call("echo", b"x" * 6000)


# -- command= ---------------------------------------------------------------------------------


@pytest.mark.usefixtures("environment")
def test_a_command_is_a_worker() -> None:
    """Here a Python that knows nothing of its host but the two descriptors.

    Without a control pipe a plain function is interrupted all the same.
    """
    with blocking.open_worker(command=[*SERVE, "plain"], grace=0.2) as worker:
        assert worker.name == "plain"
        assert worker.methods["add"] == "plain"
        assert worker.call("add", 1, 2) == 3
        with pytest.raises(TimeoutError):
            worker.options(timeout=0.1).call("nap", 60)
        assert worker.call("state", "stopped") == 1


@pytest.mark.usefixtures("environment")
def test_the_loop_of_a_command() -> None:
    """An option says which."""
    command = [*SERVE, "mixed", "--backend=trio"]
    with blocking.open_worker(command=command) as worker:
        assert worker.call("add_later", 1, 2) == 3
        assert worker.call("loop") == "trio"


@pytest.mark.parametrize("command", ["ls", [], b"ls", 5, ["no-such-program-at-all"]])
def test_what_is_no_command(command: Any) -> None:
    """Is refused before anything is started."""
    with pytest.raises(forkwire.UsageError):
        blocking.open_worker(command=command)


def test_a_program_that_ends_at_once() -> None:
    """Is a worker that died, with what it said."""
    command = ["sh", "-c", "echo this is no worker >&2; exit 3"]
    with (
        pytest.raises(forkwire.WorkerDied, match="this is no worker") as caught,
        blocking.open_worker(command=command),
    ):
        raise AssertionError
    assert caught.value.returncode == 3


def test_a_program_that_says_something_else() -> None:
    """Breaks the protocol, and is not waited for."""
    command = ["sh", "-c", r"printf '\377\377\377\377' >&4; sleep 60"]
    before = time.monotonic()
    worker = blocking.open_worker(command=command)
    with pytest.raises(forkwire.ProcessWorkerIPCError), worker:
        raise AssertionError
    assert time.monotonic() - before < 10
    assert not is_running(worker.pid)


def test_a_program_that_goes_on_without_its_pipes() -> None:
    """It closed its connection and is killed after the grace."""
    command = ["sh", "-c", "exec 3<&- 4>&-; sleep 60"]
    worker = blocking.open_worker(command=command, grace=0.1)
    with pytest.raises(forkwire.WorkerDied, match="closed its connection"), worker:
        raise AssertionError


def test_the_descriptors_of_a_program(tmp_path: Path) -> None:
    """Its own three, the two pipes, and none of the host's that were not meant for it."""
    with (
        (tmp_path / "secret").open("w"),
        pytest.raises(forkwire.WorkerDied) as caught,
        blocking.open_worker(command=["sh", "-c", "ls -l /proc/self/fd >&2; exit 1"]),
    ):
        raise AssertionError
    assert "3 -> pipe:" in caught.value.stderr_tail
    assert "secret" not in caught.value.stderr_tail


# -- the command line -------------------------------------------------------------------------


def serve(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*SERVE, *arguments],
        capture_output=True,
        text=True,
        timeout=20,
        stdin=subprocess.DEVNULL,
        check=False,
        env={**os.environ, **environment},
    )


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "name one service"),
        (["plain", "mixed"], "name one service"),
        (["plain", "--nothing"], "there is no option --nothing"),
        (["plain", "--threads", "many"], "--threads is a number, not 'many'"),
        (["plain", "--threads=0"], "--threads is a number, not '0'"),
        (["plain", "--threads"], "--threads is a number, not ''"),
        (["plain", "--backend=curio"], "--backend is one of asyncio, uvloop, trio"),
    ],
)
def test_options_that_cannot_be(arguments: list[str], says: str) -> None:
    """Each is explained."""
    with pytest.raises(forkwire.UsageError, match=says):
        standalone.options_of(arguments)


@pytest.mark.parametrize("numbers", ["", "3", "a,b", "1,2,3", "-1,-2", "97,98"])
def test_descriptors_that_are_none(numbers: str) -> None:
    """What the environment names has to be two pipes."""
    with pytest.raises(forkwire.UsageError, match="no host has started this"):
        standalone.channels(numbers)


@pytest.mark.parametrize(
    ("messages", "status"),
    [
        ([[0, {"protocol": [1]}], [12, None]], 0),
        ([[0, {"protocol": [1]}]], 0),
        ([[0, {"protocol": [1]}], [7, 1, 1]], 1),
        ([[0, {"protocol": [2]}]], 1),
        ([[1, 1]], 1),
    ],
)
@pytest.mark.parametrize("service", ["plain", "calling"])
def test_the_status_says_whether_the_host_broke_the_protocol(
    service: str, messages: list[list[object]], status: int, environment: None
) -> None:
    """0 at the end of the session or of the input, another one after a fault."""
    (theirs, ours), (answers, more) = os.pipe(), os.pipe()
    with subprocess.Popen(
        [*SERVE, service],
        pass_fds=[theirs, more],
        env={**os.environ, "FORKWIRE_FDS": f"{theirs},{more}"},
    ) as process:
        os.close(theirs)
        os.close(more)
        for message in messages:
            payload = cbor2.dumps(message)
            os.write(ours, struct.pack("=i", len(payload)) + payload)
        os.close(ours)
        with open(answers, "rb") as file:
            file.read()
    assert process.returncode == status


@pytest.mark.parametrize(
    ("arguments", "says"), [(["plain"], "no host has started this"), (["--no"], "no option --no")]
)
def test_misuse_is_explained(arguments: list[str], says: str) -> None:
    """On stderr, without a traceback, with status 2."""
    done = serve(*arguments, FORKWIRE_FDS="97,98")
    assert done.returncode == 2
    assert says in done.stderr
    assert "usage: forkwire serve SERVICE" in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


@pytest.mark.parametrize("status", [0, 3])
def test_a_program_that_speaks_no_calls(status: int) -> None:
    """Its end says what it may lack, whatever its status."""
    with (
        pytest.raises(forkwire.WorkerDied, match=r"before it greeted.*3-calls\.md") as caught,
        blocking.open_worker(command=["sh", "-c", f"exit {status}"]),
    ):
        raise AssertionError
    assert caught.value.returncode == status


@pytest.mark.parametrize(
    ("options", "says"),
    [({"max_message_size": 0}, "4096 bytes at least"), ({"name": 3}, "name is a text")],
    ids=str,
)
def test_settings_that_cannot_work(options: dict[str, Any], says: str) -> None:
    """They are refused before anything is started."""
    with pytest.raises(forkwire.UsageError, match=says):
        blocking.open_worker("plain", **options)
    with pytest.raises(forkwire.UsageError, match=says):
        forkwire.open_worker("plain", **options)

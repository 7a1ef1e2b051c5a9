"""What real workers log is handled by the host's loggers."""

from __future__ import annotations

import logging
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

import anyio
import pytest

from forkwire import WorkerDied, close_templates, sync
from forkwire.rpc.telling import logs

from .services import telling
from .support_calls import LIMIT, SERVICES, until, worker_of
from .support_telling import Heard, heard

__all__ = ["heard"]

pytestmark = pytest.mark.anyio

NAME = telling.__name__  # of the service


@pytest.fixture
def on_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(SERVICES))


Starts = list[dict[str, Any]]


@pytest.fixture
def starts(on_path: None, anyio_backend_name: str) -> Starts:
    """How to start; an interpreter of its own takes long, and knows nothing of the host's loop."""
    fork, execute = {"start": "fork"}, {"start": "exec"}
    return [fork, execute] if anyio_backend_name == "asyncio" else [fork]


# -- from where -------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["say", "say_later", "say_in_thread"])
async def test_a_record_arrives(heard: Heard, method: str) -> None:
    """From plain and async functions and threads: with the worker, and the call where known."""
    async with worker_of(telling) as worker:
        await worker.call(method, "hello")
        record = heard.last()
        assert record.getMessage() == "hello"
        assert (record.levelno, record.levelname) == (logging.WARNING, "WARNING")
        assert record.process == vars(record)["forkwire_pid"] == worker.pid
        assert record.processName == vars(record)["forkwire_worker"] == NAME
        found = vars(record)["forkwire_call"], vars(record)["forkwire_method"]
        assert found == ((None, None) if method == "say_in_thread" else (1, method))
        assert Path(record.pathname).name == "telling.py" or method == "say_in_thread"


@pytest.mark.parametrize("method", ["say_items", "say_items_later"])
async def test_from_generators(heard: Heard, method: str) -> None:
    """Each record has the call's number, however often the generator gave its place away."""
    async with worker_of(telling) as worker:
        stream = worker.options(window=1).stream(method, 5)
        async for _ in stream:
            await worker.call("ping")
        assert heard.messages() == [*(f"item {number}" for number in range(5)), "done"]
        ours = [vars(record) for record in heard.records if record.name == "telling"]
        assert {fields["forkwire_method"] for fields in ours} == {method}
        assert len({fields["forkwire_call"] for fields in ours}) == 1


async def test_in_an_interpreter_of_its_own(heard: Heard, on_path: None) -> None:
    """Started by exec too, from the import of the service on."""
    async with worker_of("telling", start="exec") as worker:
        await worker.call("say", "hello")
        assert (heard.imports(), heard.messages()) == (["imported"], ["hello"])
        assert {record.process for record in heard.records} == {worker.pid}
        assert await worker.call("handlers") == ["Bridge"]


async def test_while_the_service_is_loaded(heard: Heard, on_path: None) -> None:
    """What the import says is held until the greeting, and then is the first to come.

    Once for all workers of a template.
    """
    sys.modules.pop("telling", None)
    close_templates()
    for start in ("fork", "template", "template"):
        async with worker_of("telling", start=start) as worker:
            await worker.call("ping")
            assert vars(heard.last())["forkwire_call"] is None
    assert heard.imports() == ["imported"] * 2
    assert "telling" not in sys.modules


async def test_a_service_that_cannot_be_loaded(
    heard: Heard, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was said on the way is handled, and the reason raised."""
    (tmp_path / "broken_service.py").write_text(
        "import logging\nlogging.getLogger('telling').warning('on the way')\nraise ValueError(5)\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(ValueError, match="5"):
        async with worker_of("broken_service"):
            pass
    assert heard.messages() == ["on the way"]


def test_without_a_loop(heard: Heard) -> None:
    """``forkwire.sync`` hears the same."""
    with sync.open_worker(telling) as worker:
        worker.call("say", "hello")
        worker.call("say_later", "later")
        assert heard.messages() == ["hello", "later"]
        assert vars(heard.last())["forkwire_call"] == 2


class Plain:
    """Has no async function: one thread does everything."""

    say = staticmethod(telling.say)
    flood = staticmethod(telling.flood)
    flood_in_background = staticmethod(telling.flood_in_background)
    ping = staticmethod(telling.ping)
    say_for_ever = staticmethod(telling.say_for_ever)
    say_at_the_end = staticmethod(telling.say_at_the_end)
    say_when_stopped = staticmethod(telling.say_when_stopped)
    say_when_closed = staticmethod(telling.say_when_closed)


@pytest.mark.parametrize("options", [{}, {"threads": 2}])
async def test_a_service_without_async_functions(heard: Heard, options: Any) -> None:
    """With one thread and with several."""
    async with worker_of(Plain, **options) as worker:
        await worker.call("say", "hello")
        assert heard.messages() == ["hello"]
        assert vars(heard.last())["forkwire_method"] == "say"


async def test_a_notification(heard: Heard) -> None:
    """It has a number as calls do."""
    async with worker_of(telling) as worker:
        await worker.notify("say", "hello")
        await until(heard.messages)
        assert vars(heard.last())["forkwire_method"] == "say"


# -- levels -----------------------------------------------------------------------------------


async def test_the_roots_level(heard: Heard, starts: Starts) -> None:
    """Is the worker's: below it no record is made there."""
    logging.getLogger().setLevel(logging.ERROR)
    for options in starts:
        async with worker_of("telling", **options) as worker:
            assert not await worker.call("enabled", logging.WARNING)
            assert await worker.call("enabled", logging.ERROR)


async def test_disabled_levels(heard: Heard, starts: Starts) -> None:
    """``logging.disable`` holds in workers too."""
    logging.disable(logging.WARNING)
    for options in starts:
        async with worker_of("telling", **options) as worker:
            assert not await worker.call("enabled", logging.WARNING)
            assert await worker.call("enabled", logging.ERROR)


async def test_levels_of_loggers(heard: Heard) -> None:
    """A worker has those, and the host's own still decide."""
    logging.getLogger().setLevel(logging.ERROR)
    logger = logging.getLogger("telling.loud")
    logger.setLevel(logging.DEBUG)
    try:
        async with worker_of(telling) as worker:
            await worker.call("say", "heard", logging.DEBUG, "telling.loud")
            assert heard.messages("telling.loud") == ["heard"]
            logger.setLevel(logging.CRITICAL)
            await worker.call("say", "unheard", logging.DEBUG, "telling.loud")
            assert heard.messages("telling.loud") == ["heard"]
    finally:
        logger.setLevel(logging.NOTSET)


async def test_left_alone(heard: Heard, on_path: None) -> None:
    """With ``logging=False`` nothing is bridged, forked or not."""
    async with worker_of(telling, logging=False) as worker:
        await worker.call("say", "unheard")
        assert "Bridge" not in await worker.call("handlers")
    async with worker_of("telling", logging=False, start="exec") as worker:
        await worker.call("say", "unheard")
        assert await worker.call("handlers") == []
    assert not heard.records


# -- what -------------------------------------------------------------------------------------


async def test_an_exception(heard: Heard) -> None:
    """Its traceback is text here."""
    async with worker_of(telling) as worker:
        await worker.call("fail_and_say")
        text = heard.last().exc_text
        assert text is not None
        assert text.startswith("Traceback")
        assert text.endswith("LookupError: gone")
        assert "Traceback" in logging.Formatter().format(heard.last())


async def test_what_cannot_be_printed(heard: Heard) -> None:
    """Is told instead, and the call goes on."""
    async with worker_of(telling) as worker:
        await worker.call("say_unprintable")
        first, second, third = heard.messages()
        assert "cannot be formatted: RuntimeError: no" in first
        assert second.startswith("'%d' [cannot be formatted: TypeError")
        assert third == "half a pair: \\udc80"


# -- too much ---------------------------------------------------------------------------------


@pytest.mark.parametrize("service", [Plain, telling])
async def test_a_flood_followed_by_silence(
    heard: Heard, service: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Is bounded, and what was dropped is told when the call ends: nothing is lost unsaid."""
    monkeypatch.setattr(logs, "BURST", 100.0)  # inherited
    monkeypatch.setattr(logs, "RATE", 10.0)
    async with worker_of(service, start="fork") as worker:
        await worker.call("flood", 3000)
        await worker.call("ping")
        told = [int(text.split()[1]) for text in heard.messages("forkwire.worker")]
        assert len(heard.messages()) + sum(told) == 3000
        assert 90 <= len(heard.messages()) < 1000
        assert len(told) <= 20


async def test_a_host_that_does_not_listen(heard: Heard) -> None:
    """What a thread says while the pipe is full comes once there is room, without any call."""
    async with worker_of(Plain) as worker:
        await worker.call("flood_in_background", 60, 10_000)
        time.sleep(0.2)  # the loop stands still
        await until(lambda: len(heard.messages()) == 60)


def test_a_host_thread_that_holds_a_handlers_lock(heard: Heard) -> None:
    """At the fork: the worker has no use for that handler."""
    held, done = threading.Event(), threading.Event()

    def hold() -> None:
        with heard.lock or threading.Lock():
            held.set()
            done.wait(LIMIT)

    thread = threading.Thread(target=hold)
    thread.start()
    try:
        held.wait(LIMIT)
        with sync.open_worker(Plain) as worker:
            logging.getLogger().removeHandler(heard)  # the host itself would wait for it
            assert worker.call("ping") == worker.pid
            worker.call("say", "hello")
    finally:
        done.set()
        thread.join()


async def test_a_hosts_handler_that_raises(
    heard: Heard, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Disturbs neither the call nor the worker; it is told on stderr, as logging does."""

    def emit(record: logging.LogRecord) -> None:
        raise RuntimeError("a broken handler")

    monkeypatch.setattr(heard, "emit", emit)
    async with worker_of(telling) as worker:
        await worker.call("say", "hello")
        assert await worker.call("ping") == worker.pid
    assert "a broken handler" in capsys.readouterr().err


# -- ends -------------------------------------------------------------------------------------


@pytest.mark.parametrize("service", [Plain, telling])
async def test_an_interrupted_function(heard: Heard, service: object) -> None:
    """What does nothing but log is interrupted at once, and the worker goes on."""
    async with worker_of(service, grace=1) as worker:
        with anyio.move_on_after(0.1):
            await worker.call("say_for_ever")
        await worker.call("say", "afterwards")
        assert heard.messages()[-1] == "afterwards"
        with anyio.move_on_after(0.2):
            await worker.call("say_when_stopped")
        await worker.call("ping")
        assert heard.messages()[-1] == "stopped"


async def test_at_the_end_of_a_worker(heard: Heard) -> None:
    """What is stopped by it is heard, calls and generators, plain and async."""
    stopped = {"say_when_stopped": Plain, "say_later_when_stopped": telling}
    for method, service in stopped.items():
        async with anyio.create_task_group() as tasks, worker_of(service) as worker:

            async def call(worker: Any = worker, method: str = method) -> None:
                with pytest.raises(Exception, match=r"cancelled|closed"):
                    await worker.call(method)

            tasks.start_soon(call)
            await until(lambda: "begun" in heard.messages()[-1:])
        assert heard.messages()[-2:] == ["begun", "stopped"]


async def test_a_generator_closed_at_the_end(heard: Heard) -> None:
    """Its ``finally`` runs when the host is gone already; what that says is heard."""
    async with worker_of(Plain) as worker:
        stream = worker.options(window=1).stream("say_when_closed")
        assert await anext(stream) == 1
    assert heard.messages() == ["closed"]


async def test_terminated(heard: Heard) -> None:
    """SIGTERM stops what runs, and what that says on its way out is heard."""
    for method, service in (("say_when_stopped", Plain), ("say_later_when_stopped", telling)):
        async with worker_of(service) as worker, anyio.create_task_group() as tasks:

            async def call(worker: Any = worker, method: str = method) -> None:
                with pytest.raises(WorkerDied) as caught:
                    await worker.call(method)
                assert caught.value.returncode == -signal.SIGTERM

            tasks.start_soon(call)
            await until(lambda: "begun" in heard.messages()[-1:])
            worker.terminate()
        assert heard.messages()[-2:] == ["begun", "stopped"]


async def test_functions_at_exit(heard: Heard, capsys: pytest.CaptureFixture[str]) -> None:
    """Run when the connection is over: what they log is said on the host's stderr."""
    async with worker_of(Plain) as worker:
        await worker.call("say_at_the_end")
    assert f"[Plain {worker.pid}] WARNING:telling:at exit\n" in capsys.readouterr().err


async def test_a_worker_of_a_worker(heard: Heard) -> None:
    """Records of a worker that a worker has come out at the first host."""

    def nested() -> int:
        with sync.open_worker(telling) as inner:
            inner.call("say", "from below")
            return inner.pid

    async with worker_of({"nested": nested}) as worker:
        await worker.call("nested")
        await until(lambda: heard.messages() == ["from below"])
        assert heard.last().process == worker.pid


def test_nothing_of_ours_is_left_in_the_host(heard: Heard) -> None:
    """Workers leave the host's loggers as they are."""
    root = logging.getLogger()
    before = list(root.handlers), root.level
    with sync.open_worker({"f": telling.ping}) as worker:
        worker.call("f")
    assert (list(root.handlers), root.level) == before

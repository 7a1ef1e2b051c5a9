"""A worker where it cannot be used: another process, loop or thread, twice, too late."""

from __future__ import annotations

import asyncio
import functools
import logging
import os
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any, Final

import anyio
import anyio.to_thread
import pytest

import forkwire.sync
from forkwire import UsageError, Worker, WorkerClosedError, WorkerDied, open_worker, run

from .support_calls import LIMIT, until, worker_of

ADD: Final = "add"


class Service:
    def add(self, a: int, b: int) -> int:
        return a + b

    def count(self) -> Iterator[int]:
        yield from range(1000)

    def log(self) -> None:
        logging.getLogger("misused").warning("heard")

    def stop_listening(self) -> None:
        """The process goes on, and says nothing any more."""
        os.closerange(3, 100)
        threading.Event().wait()

    def ask(self) -> int:
        return int(forkwire.sync.current_call().host.call("add", 1, 2))

    def ask_elsewhere(self) -> list[str]:
        call = forkwire.sync.current_call()
        errors: list[str] = []

        def ask() -> None:
            for function in (functools.partial(call.host.call, "add", 1, 2), call.progress):
                try:
                    function(1)
                except UsageError as error:
                    errors.append(str(error))

        thread = threading.Thread(target=ask)
        thread.start()
        thread.join()
        return errors


def usage_error(function: Callable[[], Any]) -> bool:
    try:
        function()
    except UsageError:
        return True
    return False


# -- another process ------------------------------------------------------------------------------


@pytest.mark.anyio
async def test_an_inherited_worker() -> None:
    """In a child nothing of it hangs: it belongs to who started it, and says so."""
    async with worker_of(Service) as worker:
        stream = worker.stream("count")
        assert await anext(stream) == 0

        async def misuse(input_: object, output: object, arg: object) -> None:
            assert "running" in repr(worker)
            with anyio.fail_after(LIMIT):
                for function in (
                    functools.partial(worker.call, ADD, 1, 2),
                    functools.partial(worker.notify, ADD, 1, 2),
                    worker.stream("count").__anext__,
                    worker.ping,
                    worker.aclose,
                ):
                    with pytest.raises(UsageError, match="belongs to"):
                        await function()

        async with await run(misuse, None) as child:
            assert await child.wait() == 0
        assert await worker.call(ADD, 1, 2) == 3
        assert await anext(stream) == 1


def test_an_inherited_worker_without_a_loop(capfd: pytest.CaptureFixture[str]) -> None:
    """The same; a stream that goes there, and the end of its block, disturb nobody."""
    with forkwire.sync.open_worker(Service) as worker:
        stream = worker.stream("count")
        assert next(stream) == 0
        pid = os.fork()
        if not pid:
            status = 1
            try:
                del stream
                fine = "running" in repr(worker) and all(
                    usage_error(function)
                    for function in (
                        lambda: worker.call(ADD, 1, 2),
                        lambda: worker.notify(ADD, 1, 2),
                        lambda: next(worker.stream("count")),
                        worker.ping,
                        worker.kill,
                    )
                )
                worker.close()
                status = 0 if fine else 2
            finally:
                os._exit(status)
        assert os.waitpid(pid, 0)[1] == 0
        assert worker.call(ADD, 1, 2) == 3
        assert next(stream) == 1
    assert capfd.readouterr().err == ""


# -- another loop or thread -----------------------------------------------------------------------


@pytest.mark.anyio
async def test_another_loop() -> None:
    """Nobody would be woken there."""
    async with worker_of(Service) as worker:

        async def elsewhere() -> None:
            with pytest.raises(UsageError, match="belongs to the event loop"):
                await worker.call(ADD, 1, 2)
            with pytest.raises(UsageError, match="belongs to the event loop"):
                await worker.ping()

        await anyio.to_thread.run_sync(asyncio.run, elsewhere())
        assert await worker.call(ADD, 1, 2) == 3


def test_a_loop_that_is_over() -> None:
    """Its worker can still be closed in the next one, and is reaped."""

    async def start() -> Worker:
        return await open_worker(Service).__aenter__()

    async def stop(worker: Worker) -> None:
        with pytest.raises(UsageError, match="belongs to the event loop"):
            await worker.call(ADD, 1, 2)
        await worker.aclose()
        assert worker.returncode is not None

    asyncio.run(stop(asyncio.run(start())))


def test_the_thread_that_reads() -> None:
    """A handler of log records that waits for the worker would wait for itself."""
    errors: list[bool] = []

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            errors.extend(
                usage_error(function)
                for function in (
                    lambda: worker.call(ADD, 1, 2),
                    lambda: next(worker.stream("count")),
                    worker.ping,
                    worker.close,
                )
            )

    handler = Handler()
    logging.getLogger("misused").addHandler(handler)
    try:
        with forkwire.sync.open_worker(Service) as worker:
            worker.call("log")
            assert worker.call(ADD, 1, 2) == 3
    finally:
        logging.getLogger("misused").removeHandler(handler)
    assert errors == [True] * 4


@pytest.mark.anyio
@pytest.mark.parametrize("threads", [1, 2])
async def test_a_handlers_call_in_another_thread(threads: int) -> None:
    """Only the handler's own thread can wait for the host."""
    async with worker_of(Service, host=Service(), threads=threads) as worker:
        errors = await worker.call("ask_elsewhere")
        assert len(errors) == 2
        assert all("in another thread" in error for error in errors)
        assert await worker.call("ask") == 3


# -- twice, and at the wrong time -----------------------------------------------------------------


@pytest.mark.anyio
async def test_entered_twice_at_once() -> None:
    """There is one process, and it ends."""
    worker = open_worker(Service)
    outcomes: list[str] = []

    async def enter() -> None:
        try:
            async with worker:
                outcomes.append("entered")
                await until(lambda: len(outcomes) == 2)
        except UsageError:
            outcomes.append("refused")

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(enter)
        tasks.start_soon(enter)
    assert sorted(outcomes) == ["entered", "refused"]
    assert worker.returncode is not None


@pytest.mark.anyio
async def test_a_stream_that_is_closed_before_it_began() -> None:
    """A task that waits to begin it begins nothing any more."""
    async with worker_of(Service) as worker:
        link = worker._started_handle().link
        busy, late = worker.stream("count"), worker.stream("count")
        assert await anext(busy) == 0
        link.session.peer_calls = 1

        async def take() -> None:
            async for _ in late:
                raise AssertionError("it went on")

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(take)
            await until(lambda: link._room._waiting)
            await late.aclose()
            await busy.aclose()
        assert worker.statistics().in_flight == 0


# -- where threads and loops end ------------------------------------------------------------------


def no_thread(*args: object, **kwargs: object) -> None:
    raise RuntimeError("can't start new thread")


@pytest.mark.anyio
async def test_a_host_without_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """A call that cannot be run is answered; the next one is run."""
    async with worker_of(Service, host=Service()) as worker:
        with monkeypatch.context() as patch:
            patch.setattr(anyio.to_thread, "run_sync", no_thread)
            with pytest.raises(RuntimeError, match="can't start new thread"):
                await worker.call("ask")
        assert await worker.call("ask") == 3


def test_a_host_without_threads_or_a_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same."""
    with forkwire.sync.open_worker(Service, host=Service()) as worker:
        with monkeypatch.context() as patch:
            patch.setattr(threading.Thread, "start", no_thread)
            with pytest.raises(RuntimeError, match="can't start new thread"):
                worker.call("ask")
        assert worker.call("ask") == 3


@pytest.mark.parametrize("what", ["bury", "close"])
def test_a_loop_that_ends_while_a_worker_does(what: str) -> None:
    """`asyncio.run` cancels the tasks that see to it as well: whoever waits hears of that."""
    heard: list[BaseException] = []
    workers: list[Worker] = []

    async def call(worker: Worker) -> None:
        try:
            await worker.call("stop_listening")
        except BaseException as error:
            heard.append(error)
            raise

    async def main() -> None:
        worker = open_worker(Service, grace=LIMIT)
        workers.append(await worker.__aenter__())
        tasks = [asyncio.create_task(call(worker))]
        link = worker._started_handle().link
        await until(lambda: link.ended)
        if what == "close":
            tasks.append(asyncio.create_task(worker.aclose()))
            await until(lambda: worker._end is not None)

    thread = threading.Thread(target=asyncio.run, args=(main(),), daemon=True)
    thread.start()
    thread.join(LIMIT / 2)
    assert not thread.is_alive(), "the loop does not end"
    handle = workers[0]._started_handle()
    assert isinstance(handle.link.over, (WorkerClosedError, WorkerDied))
    assert handle.process.returncode is not None or handle.process._child.abandoned


class Totals:
    def __init__(self) -> None:
        self.ended: list[str] = []

    async def total(self, numbers: AsyncIterator[int]) -> int:
        try:
            with anyio.CancelScope(shield=True):
                total = sum([n async for n in numbers])
            self.ended.append(f"all of it: {total}")
        except Exception as error:
            self.ended.append(type(error).__name__)
            raise
        return total

    async def endings(self) -> list[str]:
        return self.ended


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
@pytest.mark.anyio
async def test_an_argument_that_is_cut_short_is_not_taken_for_all_of_it() -> None:
    """Where a loop ends it cancels the task that sends it: its handler sees an error."""
    given = anyio.Event()

    async def numbers() -> AsyncIterator[int]:
        yield 1
        given.set()
        await anyio.sleep_forever()

    async with worker_of(Totals) as worker:
        call = asyncio.create_task(worker.call("total", numbers()))
        await given.wait()
        (pump,) = [task for task in asyncio.all_tasks() if "argument of" in task.get_name()]
        pump.cancel()
        with pytest.raises(forkwire.RemoteError):
            await call
        assert await worker.call("endings") == ["CallCancelledError"]

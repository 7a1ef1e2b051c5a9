"""What moves links: a loop, a thread, or whoever waits. Writes that block, waits that wake."""

from __future__ import annotations

import contextlib
import math
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import anyio
import anyio.to_thread
import pytest

from forkwire import open_worker
from forkwire.errors import ChannelOSError, ProcessWorkerIPCError, WorkerClosedError
from forkwire.process.backend import current_backend
from forkwire.process.writing import Parts
from forkwire.rpc.caller.aio import Caller
from forkwire.rpc.caller.requests import Request
from forkwire.rpc.links.drivers import LoopDriver, OwnDriver
from forkwire.rpc.links.link import OutCall
from forkwire.rpc.links.poll_thread import PollDriver, PollThread
from forkwire.wire.messages import Log

from .support_links import Pair, Side

MIB: Final = 2**20
LIMIT: Final = 10.0
COUNT: Final = 8  # messages of 1 MiB: far more than pipes take


@pytest.fixture
def pair() -> Iterator[Pair]:
    pair = Pair()
    yield pair
    pair.close()


@pytest.fixture
def stops() -> Iterator[list[PollThread]]:
    """Threads to be stopped, before the channels are closed."""
    threads: list[PollThread] = []
    yield threads
    for thread in threads:
        thread.stop()


def thread_driver(side: Side, stops: list[PollThread]) -> PollDriver:
    thread = PollThread("test")
    stops.append(thread)
    thread.start()
    driver = PollDriver(side.link, thread)
    driver.start()
    return driver


def in_threads(*functions: Callable[[], object]) -> None:
    """Run them at once; each has to end in time."""
    errors: list[BaseException] = []

    def run(function: Callable[[], object]) -> None:
        try:
            function()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(f,), daemon=True) for f in functions]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(LIMIT)
        assert not thread.is_alive(), "it hangs"
    if errors:
        raise errors[0]


def say_much(side: Side) -> None:
    for number in range(COUNT):
        side.link.send(Log({"message": "x" * MIB, "level": number}))


def heard_all(side: Side) -> bool:
    return len(side.logged) == COUNT and not side.link.outbox.waiting


def check_heard(side: Side) -> None:
    assert [record["level"] for record in side.logged] == [*range(COUNT)]
    assert side.ends == []


# -- writes that block in both directions ---------------------------------------------------------


def talk_alone(side: Side) -> None:
    """The thread that sends is the one that reads."""
    driver = OwnDriver(side.link)
    say_much(side)
    driver.wait(lambda: heard_all(side))


def talk_by_thread(side: Side, stops: list[PollThread]) -> None:
    """A thread reads and writes what was blocked."""
    driver = thread_driver(side, stops)
    say_much(side)
    driver.wait(lambda: heard_all(side))


@pytest.mark.parametrize("one", ["alone", "thread"])
@pytest.mark.parametrize("other", ["alone", "thread"])
def test_both_say_much_at_once(one: str, other: str, pair: Pair, stops: list[PollThread]) -> None:
    """More than the pipes take, in both directions: nobody waits for ever."""

    def talk(how: str, side: Side) -> Callable[[], None]:
        if how == "alone":
            return lambda: talk_alone(side)
        return lambda: talk_by_thread(side, stops)

    in_threads(talk(one, pair.one), talk(other, pair.other))
    check_heard(pair.one)
    check_heard(pair.other)


async def in_loop(side: Side) -> LoopDriver:
    driver = LoopDriver(side.link, current_backend())
    driver.start()
    return driver


async def until(condition: Callable[[], Any]) -> None:
    with anyio.fail_after(LIMIT):
        while not condition():
            await anyio.sleep(0.001)


@pytest.mark.anyio
@pytest.mark.parametrize("other", ["alone", "thread", "loop"])
async def test_a_loop_says_and_hears_much(other: str, pair: Pair, stops: list[PollThread]) -> None:
    """The same in a loop, which goes on meanwhile."""
    await in_loop(pair.one)
    say_much(pair.one)
    if other == "loop":
        await in_loop(pair.other)
        say_much(pair.other)
    elif other == "alone":
        await anyio.to_thread.run_sync(lambda: in_threads(lambda: talk_alone(pair.other)))
    else:
        await anyio.to_thread.run_sync(
            lambda: in_threads(lambda: talk_by_thread(pair.other, stops))
        )
    await until(lambda: heard_all(pair.one) and heard_all(pair.other))
    check_heard(pair.one)
    check_heard(pair.other)
    await hang_up(pair)


async def hang_up(pair: Pair) -> None:
    """Both sides close, so that the loop holds nothing any more."""
    pair.close()
    await anyio.sleep(0)


@pytest.mark.anyio
async def test_many_threads_send_over_a_loops_link(pair: Pair) -> None:
    """One flush at a time, whoever was blocked, and nothing is left behind."""
    await in_loop(pair.one)
    await in_loop(pair.other)

    def send() -> None:
        for _ in range(50):
            pair.one.link.send(Log({"message": "x" * 100_000}))

    await anyio.to_thread.run_sync(lambda: in_threads(send, send, send))
    await until(lambda: len(pair.other.logged) == 150 and not pair.one.link.outbox.waiting)
    await hang_up(pair)


@pytest.mark.anyio
async def test_who_gives_up_waiting_for_room_is_forgotten(pair: Pair) -> None:
    """However many do, while the peer reads nothing."""
    driver = await in_loop(pair.one)
    say_much(pair.one)
    for _ in range(10):
        with anyio.move_on_after(0.001) as scope:
            await driver.roomy()
        assert scope.cancelled_caught
    assert not pair.one.link.outbox._when_roomy
    await hang_up(pair)


@pytest.mark.anyio
async def test_a_thread_takes_the_last_room(pair: Pair) -> None:
    """A call of the loop that looked before then waits for its turn, and is not one too many."""
    caller = Caller(await in_loop(pair.one))
    await in_loop(pair.other)
    link = pair.one.link
    link.session.peer_calls = 1
    first: list[OutCall] = []
    encode = link._parts

    def quicker(message: object) -> Parts:
        link._parts = encode  # type: ignore[method-assign]
        in_threads(lambda: first.append(pair.one.call("first")))
        return encode(message)

    async def call() -> None:
        assert await caller.call(Request("second", (), {})) == "done"

    async with anyio.create_task_group() as tasks:
        link._lock = contextlib.nullcontext()  # type: ignore[misc, assignment]  # just before it
        link._parts = quicker  # type: ignore[method-assign]
        tasks.start_soon(call)
        for name in ("first", "second"):
            await until(lambda: pair.other.came)
            (came,) = pair.other.came
            assert came.method == name
            pair.other.came.clear()
            pair.other.link.reply(came, "done")
    await hang_up(pair)


def test_a_finaliser_that_sends_in_the_midst_of_a_write(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It waits for no thread that waits for the write: there is one lock, not two."""
    link, push = pair.one.link, pair.one.link.sink.push
    writing, encoding = threading.Event(), threading.Event()

    def push_and_finalise(parts: Parts = ()) -> bool | None:
        if not writing.is_set():
            writing.set()
            encoding.wait(0.2)
            link.send(Log({"message": "finalised"}))
        return push(parts)

    def encode(message: object) -> Parts:
        if threading.current_thread().name == "other":
            encoding.set()
        return parts_of(message)

    def other() -> None:
        threading.current_thread().name = "other"
        assert writing.wait(LIMIT)
        link.send(Log({"message": "other"}))

    parts_of = link._parts
    monkeypatch.setattr(link.sink, "push", push_and_finalise)
    monkeypatch.setattr(link, "_parts", encode)
    in_threads(lambda: link.send(Log({"message": "one"})), other)
    pair.pump()
    said = [record["message"] for record in pair.other.logged]
    assert sorted(said) == ["finalised", "one", "other"]


# -- the end --------------------------------------------------------------------------------------


def test_the_peer_closes_while_we_are_blocked_alone(pair: Pair) -> None:
    """The wait ends, since nothing more can come."""
    driver = OwnDriver(pair.one.link)
    say_much(pair.one)
    in_threads(lambda: driver.wait(lambda: False), pair.other.close)
    assert pair.one.link.ended
    assert pair.one.ends[-1] is None


def test_the_peer_closes_while_we_are_blocked_with_a_thread(
    pair: Pair, stops: list[PollThread]
) -> None:
    """Who waits is woken when the owner says that it is over; `on_end` is called in the thread."""
    link = pair.one.link
    where: list[str] = []

    def on_end(error: object) -> None:
        where.append(threading.current_thread().name)
        link.fail(WorkerClosedError("over"))

    link.on_end = on_end
    driver = thread_driver(pair.one, stops)
    say_much(pair.one)
    in_threads(lambda: driver.wait(lambda: link.over is not None), pair.other.close)
    assert set(where) == {"forkwire: test"}
    assert link.outbox.waiting == 0


@pytest.mark.anyio
async def test_the_peer_closes_while_a_loop_is_blocked(pair: Pair) -> None:
    """It is told in the loop, and no write is left waiting."""
    driver = await in_loop(pair.one)
    say_much(pair.one)
    pair.other.close()
    await until(lambda: pair.one.link.ended)
    assert pair.one.ends[0] is None
    await until(lambda: not pair.one.link.outbox.waiting)
    assert not driver.link.pump()
    await hang_up(pair)


@pytest.mark.anyio
async def test_we_close_while_a_loop_is_blocked(pair: Pair) -> None:
    """The flush ends, and does not begin again."""
    await in_loop(pair.one)
    say_much(pair.one)
    await anyio.sleep(0)
    pair.one.close()
    await until(lambda: pair.one.link.outbox.gone)
    assert pair.one.ends == []


def refuse(parts: Parts = ()) -> bool | None:
    raise ChannelOSError(5, "input/output error")


@pytest.mark.anyio
async def test_the_system_refuses_to_write_in_a_loop(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The link is broken off, once, wherever it was found."""
    await in_loop(pair.one)
    say_much(pair.one)
    monkeypatch.setattr(pair.one.link.sink, "push", refuse)
    await anyio.to_thread.run_sync(lambda: pair.one.link.send(Log({})))
    await until(lambda: pair.one.ends)
    for _ in range(20):
        await anyio.sleep(0)
    (error,) = pair.one.ends
    assert isinstance(error, ProcessWorkerIPCError)
    assert not pair.one.link.send(Log({}))
    await hang_up(pair)


def test_the_system_refuses_to_write_otherwise(
    pair: Pair, stops: list[PollThread], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same in a thread, and alone."""
    for side, in_thread in ((pair.one, True), (pair.other, False)):
        monkeypatch.setattr(side.link.sink, "push", refuse)
        driver = thread_driver(side, stops) if in_thread else OwnDriver(side.link)
        in_threads(
            lambda side=side: side.link.send(Log({})),  # type: ignore[misc]
            lambda driver=driver, side=side: driver.wait(lambda: bool(side.ends)),  # type: ignore[misc]
        )
        assert isinstance(side.ends[0], ChannelOSError)


# -- waits ----------------------------------------------------------------------------------------


def test_what_comes_wakes_who_waits(pair: Pair, stops: list[PollThread]) -> None:
    """Several threads, each for its own."""
    driver = thread_driver(pair.one, stops)
    calls = [pair.one.call("f", n) for n in range(3)]

    def answer() -> None:
        own = OwnDriver(pair.other.link)
        own.wait(lambda: len(pair.other.came) == 3)
        for call in pair.other.came:
            pair.other.link.reply(call, call.values[0])

    def wait(n: int) -> Callable[[], None]:
        return lambda: driver.wait(lambda: calls[n].ended)

    in_threads(answer, *[wait(n) for n in range(3)])
    assert [call.result() for call in calls] == [0, 1, 2]


def test_wake_has_waits_look_again(pair: Pair, stops: list[PollThread]) -> None:
    """Something changed that did not come over the link."""
    driver = thread_driver(pair.one, stops)
    changed: list[bool] = []
    waiting = threading.Event()

    def ready() -> bool:
        waiting.set()
        return bool(changed)

    def change() -> None:
        waiting.wait(LIMIT)
        changed.append(True)
        driver.wake()

    in_threads(lambda: driver.wait(ready), change)
    assert not driver.wait_until(lambda: False, time.monotonic() + 0.01)
    assert driver.wait_until(lambda: True, -math.inf)


def test_room_in_the_outbox_wakes_who_waits(pair: Pair, stops: list[PollThread]) -> None:
    """Though nothing came: the peer has only read."""
    driver = thread_driver(pair.one, stops)
    say_much(pair.one)
    assert not pair.one.link.has_room
    room: list[bool] = []
    pair.one.link.when_room(lambda: room.append(True))

    def read() -> None:
        while not (room and len(pair.other.logged) == COUNT):
            pair.other.link.pump()

    in_threads(lambda: driver.wait(lambda: bool(room)), read)


def test_a_goodbye_that_was_blocked_ends_the_wait(pair: Pair, stops: list[PollThread]) -> None:
    """When the last of it is out, the session is done, and who waits for that hears of it."""
    driver = thread_driver(pair.one, stops)
    idle = threading.Event()
    pair.one.link.on_idle = idle.set
    say_much(pair.one)
    pair.one.link.goodbye()
    pair.other.link.goodbye()

    def read() -> None:
        while not pair.other.link.is_done:
            pair.other.turn()

    in_threads(lambda: driver.wait(lambda: pair.one.link.is_done), read)
    assert idle.wait(LIMIT)


def test_who_waits_alone_is_woken_by_what_another_thread_sends(pair: Pair) -> None:
    """If that was blocked, it is the waiting thread that goes on with it."""
    asleep = threading.Event()

    def wait() -> None:
        driver = OwnDriver(pair.one.link)

        def ready() -> bool:
            asleep.set()
            return len(pair.other.logged) == COUNT

        driver.wait(lambda: ready() or bool(pair.one.came))

    def send() -> None:
        asleep.wait(LIMIT)
        say_much(pair.one)

    def read() -> None:
        while len(pair.other.logged) < COUNT:
            pair.other.link.pump()
        pair.other.call("done")

    in_threads(wait, send, read)


# -- threads --------------------------------------------------------------------------------------


def test_a_thread_does_what_it_is_handed(pair: Pair, stops: list[PollThread]) -> None:
    """In order; and it is stopped as often as one likes, by itself too."""
    driver = thread_driver(pair.one, stops)
    done: list[Any] = []
    over = threading.Event()
    thread = driver.thread
    thread.run_soon(lambda: done.append(threading.current_thread().name))
    pair.one.link.in_driver(lambda: done.append(2))
    thread.run_soon(lambda: pair.one.link.in_driver(lambda: done.append(3)))
    thread.run_soon(thread.stop)
    thread.run_soon(over.set)
    assert over.wait(LIMIT)
    thread.stop()
    thread.stop()
    assert done == ["forkwire: test", 2, 3]
    pair.one.link.in_driver(lambda: done.append(4))
    assert done[-1] == 4


def test_a_thread_that_was_never_started() -> None:
    """Stops as well."""
    PollThread("never").stop()


def test_a_thread_at_the_end_of_its_input_does_not_spin(
    pair: Pair, stops: list[PollThread]
) -> None:
    """It waits for what it is handed, and uses no time."""
    driver = thread_driver(pair.one, stops)
    in_threads(lambda: driver.wait(lambda: bool(pair.one.ends)), pair.other.close)
    before = os.times()
    time.sleep(0.05)
    after = os.times()
    assert after.user + after.system - before.user - before.system < 0.04


# -- answers --------------------------------------------------------------------------------------


def large() -> bytes:
    return bytes(20 * MIB)


def wait_for(path: str) -> None:
    while not os.path.exists(path):
        time.sleep(0.001)


@pytest.mark.anyio
@pytest.mark.parametrize("threads", [1, 2])
async def test_an_answer_does_not_wait_for_the_next_call(threads: int, tmp_path: Path) -> None:
    """What the pipe did not take at once is written before the lane runs something else."""
    gate = tmp_path / "gate"
    ended = anyio.Event()
    with anyio.fail_after(LIMIT):
        async with open_worker({"large": large, "wait_for": wait_for}, threads=threads) as worker:

            async def call_large() -> None:
                assert len(await worker.call("large")) == 20 * MIB
                ended.set()

            async with anyio.create_task_group() as group:
                group.start_soon(call_large)
                while worker.statistics().calls < 1:
                    await anyio.sleep(0)
                group.start_soon(worker.call, "wait_for", str(gate))
                await ended.wait()
                gate.touch()


def test_settle(pair: Pair, stops: list[PollThread]) -> None:
    """Alone it blocks until all is written, reading meanwhile; a thread does so by itself."""
    say_much(pair.one)
    say_much(pair.other)

    def read() -> None:
        while pair.one.link.outbox.waiting:
            pair.other.turn()

    in_threads(lambda: OwnDriver(pair.one.link).settle(), read)
    assert not pair.one.link.outbox.waiting
    assert pair.one.logged
    thread_driver(pair.other, stops).settle()

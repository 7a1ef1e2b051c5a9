"""Arguments that are streamed: async iterables and plain iterators, pulled by the handler."""

from __future__ import annotations

import functools
import itertools
from collections.abc import AsyncIterator, Iterator

import anyio
import anyio.lowlevel
import pytest

from forkwire import (
    InvalidArgumentsError,
    RemoteError,
    UsageError,
    ValueDecodeError,
    ValueEncodeError,
    Worker,
    WorkerDied,
    sync,
)

from .services import calling
from .services.calling import Point
from .support_calls import cancel_once, until_state, worker_of

pytestmark = pytest.mark.anyio


class Source:
    """Numbers in both forms: how many were given, and whether it was closed."""

    def __init__(self, n: int | None = None, *, failure: BaseException | None = None) -> None:
        self.numbers = itertools.count() if n is None else iter(range(n))
        self.given = 0
        self.closed = 0
        self.failure = failure

    def plain(self) -> Iterator[int]:
        try:
            for number in self.numbers:
                self.given += 1
                yield number
            if self.failure is not None:
                raise self.failure
        finally:
            self.closed += 1

    async def later(self) -> AsyncIterator[int]:
        try:
            for number in self.plain():
                yield number
        finally:
            await anyio.sleep(0.01)  # closing takes its time, and is waited for
            self.closed += 1

    def of(self, form: str) -> Iterator[int] | AsyncIterator[int]:
        return self.plain() if form == "plain" else self.later()


FORMS = pytest.mark.parametrize("form", ["plain", "later"])


def either(name: str) -> pytest.MarkDecorator:
    """A plain handler, and the async one."""
    return pytest.mark.parametrize("function", [name, f"{name}_later"])


@FORMS
@either("total")
async def test_both_forms_to_both_kinds_of_handlers(form: str, function: str) -> None:
    """Any iterator can be an argument, of any handler."""
    async with worker_of() as worker:
        assert await worker.call(function, Source(1000).of(form)) == 499_500
        assert await worker.call(function, numbers=Source(3).of(form)) == 3
        assert await worker.call(function, Source(0).of(form)) == 0


async def test_other_iterators() -> None:
    """``map``, an open file, an object with ``__anext__``: what can be iterated only once."""
    async with worker_of() as worker:
        assert await worker.call("total", map(int, "123")) == 6
        assert await worker.call("total", [1, 2]) == 3  # a list is a value
        assert await worker.call(calling.total, iter([4, 5])) == 9
        assert await worker.call("total", worker.stream("count", 100)) == 4950


@either("spread")
async def test_items_as_annotated(function: str) -> None:
    """Each is what the annotation says; several streams of one call do not mix."""
    async with worker_of() as worker:

        async def points() -> AsyncIterator[Point]:
            for x in range(100):
                yield Point(x)

        found = await worker.call(function, points(), more=iter(range(70)))
        assert found == [list(range(100)), list(range(70))]


@either("total")
async def test_items_that_do_not_fit(function: str) -> None:
    """The handler meets an error where it reads the item; the iterable is closed."""
    async with worker_of() as worker:
        closed = False

        def words() -> Iterator[object]:
            nonlocal closed
            try:
                yield 1
                yield from itertools.repeat("two")
            finally:
                closed = True

        with pytest.raises(RemoteError, match="expected int") as caught:
            await worker.call(function, words())
        assert "ValueDecodeError" in caught.value.type_name
        assert not isinstance(caught.value, ValueDecodeError)
        assert closed


@FORMS
@either("take_slowly")
async def test_no_further_ahead_than_the_handler_wants(form: str, function: str) -> None:
    """The caller's iterable is not advanced beyond the window; a cancel closes it."""
    async with worker_of() as worker:
        source = Source()
        begun = functools.partial(until_state, worker, "ran", 5)
        await cancel_once(begun, worker.call, function, source.of(form), 5)
        assert 5 <= source.given <= 5 + 33
        assert source.closed
        assert await worker.call("state", "closed") == 5


@FORMS
@either("first")
async def test_a_handler_that_wants_no_more(form: str, function: str) -> None:
    """Whoever returns early has the caller's iterable closed before the call returns."""
    async with worker_of() as worker:
        source = Source()
        assert await worker.call(function, source.of(form)) == 0
        assert source.closed == (1 if form == "plain" else 2)
        assert worker.statistics().in_flight == 0


@FORMS
@either("ignore")
async def test_a_handler_that_wants_none(form: str, function: str) -> None:
    """Nothing of the iterable runs."""
    async with worker_of() as worker:
        source = Source()
        assert await worker.call(function, source.of(form)) == "ignored"
        assert source.given == 0


@FORMS
@either("total")
async def test_an_iterable_that_raises(form: str, function: str) -> None:
    """The caller gets the very exception; the handler saw it after the items before it."""
    async with worker_of() as worker:
        failure = KeyError("mine")
        source = Source(40, failure=failure)
        with pytest.raises(KeyError) as caught:
            await worker.call(function, source.of(form))
        assert caught.value is failure
        assert not isinstance(caught.value, RemoteError)


@FORMS
@either("caught")
async def test_a_handler_may_catch_what_the_iterable_raised(form: str, function: str) -> None:
    """There it is a remote error, and the builtin that it was."""
    async with worker_of() as worker:
        source = Source(3, failure=ValueError("boo", 1))
        result = await worker.call(function, source.of(form))
        assert result == "RemoteError[ValueError] ('boo', 1)"
        assert await worker.call(function, Source(3).of(form)) == "nothing"


@pytest.mark.parametrize("failure", [SystemExit(3), KeyboardInterrupt()], ids=["exit", "ctrl-c"])
async def test_an_iterable_that_exits(failure: BaseException) -> None:
    """Is an end like any other: it is raised where the call is awaited."""
    async with worker_of() as worker:
        caught: BaseException | None = None
        try:
            await worker.call("total", Source(3, failure=failure).plain())
        except BaseException as error:
            caught = error
        assert caught is failure
        assert await worker.call("add", 1) == 11


@either("total")
async def test_items_that_cannot_be_encoded(function: str) -> None:
    """End the call with the reason, on both sides."""
    async with worker_of() as worker:
        with pytest.raises(ValueEncodeError, match="Odd"):
            await worker.call(function, iter([1, calling.Odd()]))
        assert await worker.call(function, iter([1, 2])) == 3


@either("total")
@pytest.mark.parametrize("inner", ["add", "add_later"])
async def test_a_producer_that_calls_the_same_worker(function: str, inner: str) -> None:
    """The handler waits for it, and so its calls are run inside, plain ones too."""
    async with worker_of() as worker:

        async def sums() -> AsyncIterator[int]:
            for n in range(50):
                yield await worker.call(inner, n, n)

        assert await worker.call(function, sums()) == 2450


class OnlyPlain:
    """Without async functions: a worker that has one thread."""

    def total(self, numbers: Iterator[int]) -> int:
        return sum(numbers)

    def first(self, numbers: Iterator[int]) -> int:
        return next(numbers)

    def squares(self, numbers: Iterator[int]) -> Iterator[int]:
        for number in numbers:
            yield number**2

    def squares_of_host(self, numbers: Iterator[int]) -> Iterator[int]:
        host = sync.current_call().host
        for number in numbers:
            yield host.call("square", number)

    def add(self, a: int, b: int) -> int:
        return a + b


@FORMS
async def test_a_worker_with_one_thread(form: str) -> None:
    """All the same where a worker needs no event loop."""
    async with worker_of(OnlyPlain) as worker:

        async def sums() -> AsyncIterator[int]:
            for n in range(50):
                yield await worker.call("add", n, n)

        assert await worker.call("total", sums()) == 2450
        source = Source()
        assert await worker.call("first", source.of(form)) == 0
        assert source.closed
        squares = worker.stream("squares", Source(100).of(form))
        assert [n async for n in squares] == [n**2 for n in range(100)]


@FORMS
@either("squares")
async def test_a_stream_of_an_argument_stream(form: str, function: str) -> None:
    """Items in, items out; left early, both generators are closed."""
    async with worker_of() as worker:
        squares = worker.stream(function, Source(100).of(form))
        assert [n async for n in squares] == [n**2 for n in range(100)]
        source = Source()
        async with worker.stream(function, source.of(form)) as endless:
            assert [await anext(endless) for _ in range(50)] == [n**2 for n in range(50)]
        assert source.closed
        assert source.given <= 50 + 2 * 33


async def test_other_calls_go_on_meanwhile() -> None:
    """A producer that takes its time holds up nobody but its handler."""
    async with worker_of() as worker:
        gate = anyio.Event()

        async def slow() -> AsyncIterator[int]:
            yield 1
            await gate.wait()
            yield 2

        results: list[int] = []

        async def total() -> None:
            results.append(await worker.call("total_later", slow()))

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(total)
            for n in range(20):
                assert await worker.call("add", n, n) == 2 * n
            gate.set()
        assert results == [3]


async def test_arguments_that_do_not_fit_beside_a_stream() -> None:
    """Nothing runs: neither the handler nor the iterable."""
    async with worker_of() as worker:
        source = Source()
        with pytest.raises(InvalidArgumentsError):
            await worker.call("total", source.later(), 1, 2, 3)
        with pytest.raises(ValueEncodeError):
            await worker.call("take_slowly", source.later(), calling.Odd())
        assert source.given == 0


@FORMS
async def test_a_worker_that_dies_closes_the_iterable(form: str) -> None:
    """The call raises how it died."""
    async with worker_of() as worker:
        source = Source()

        async def call() -> None:
            with pytest.raises(WorkerDied):
                await worker.call("take_slowly_later", source.of(form), 3)

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(call)
            await until_given(source)
            worker.kill()
        assert source.closed


async def until_given(source: Source) -> None:
    while source.given < 3:
        await anyio.sleep(0.002)


async def test_a_producer_is_cancelled_where_it_waits() -> None:
    """Its ``finally`` runs, and may await, before the cancelled call returns."""
    async with worker_of() as worker:
        ended = False
        stuck_there = anyio.Event()

        async def stuck() -> AsyncIterator[int]:
            nonlocal ended
            yield 1
            stuck_there.set()
            try:
                await anyio.sleep(60)
            finally:
                with anyio.CancelScope(shield=True):
                    await anyio.sleep(0.01)
                ended = True

        await cancel_once(stuck_there.wait, worker.call, "total", stuck())
        assert ended
        assert await worker.call("add", 1) == 11


async def test_notifications_have_streams_too() -> None:
    """They are fed in the background."""

    async def reset_then_run(worker: Worker) -> None:
        await worker.notify("run_total", Source(3).later())
        await until_state(worker, "ran", 3)

    async with worker_of() as worker:
        await reset_then_run(worker)


async def test_one_iterator_for_two_arguments() -> None:
    """Is refused: each of its items could go to one only. Nothing is sent, and it is as it was."""
    async with worker_of() as worker:
        for source in (Source(3).later(), Source(3).plain()):
            with pytest.raises(UsageError, match="an argument of spread twice"):
                await worker.call("spread", source, more=source)
            assert await worker.call("total", source) == 3
        assert worker.statistics().calls == 2


async def test_a_report_that_raises_when_the_stream_has_ended() -> None:
    """The iterable is closed nevertheless."""

    def show(done: float, total: float | None, text: str) -> None:
        raise KeyError(text)

    async with worker_of(Reporting) as worker:
        source = Source()
        stream = worker.options(on_progress=show, window=1).stream("one", source.later())
        assert await anext(stream) == 0
        assert await worker.call("add", 1, 2) == 3  # by now the end is here
        with pytest.raises(KeyError):
            await anext(stream)
        assert source.closed == 2


class Reporting:
    def one(self, numbers: Iterator[int]) -> Iterator[int]:
        yield next(numbers)
        sync.current_call().progress(1)

    def add(self, a: int, b: int) -> int:
        return a + b


@pytest.mark.parametrize("failure", [SystemExit(3), ValueError("boo")], ids=["exit", "error"])
async def test_a_notification_whose_iterable_raises(
    failure: BaseException, caplog: pytest.LogCaptureFixture
) -> None:
    """It is logged, whatever it is; and the loop goes on."""
    async with worker_of() as worker:
        await worker.notify("run_total", Source(3, failure=failure).plain())
        while not caplog.records:
            assert await worker.call("add", 1) == 11
        assert type(failure).__name__ in caplog.text


@pytest.mark.parametrize("form", ["generator", "function"])
async def test_a_generator_goes_on_where_there_is_a_lane(form: str) -> None:
    """It waits for its argument, or its host, in whatever thread it has got to by then."""
    name = "squares" if form == "generator" else "squares_of_host"
    async with worker_of(OnlyPlain, threads=3, host=Squaring()) as worker:
        results: list[list[int]] = []

        async def later() -> AsyncIterator[int]:
            for n in range(50):
                yield n
                await anyio.lowlevel.checkpoint()

        async def stream() -> None:
            stream = worker.options(window=1).stream(name, later())
            results.append([n async for n in stream])

        async with anyio.create_task_group() as tasks:
            for _ in range(5):
                tasks.start_soon(stream)
        assert results == [[n**2 for n in range(50)]] * 5


class Squaring:
    def square(self, number: int) -> int:
        return number**2

    def squares(self, numbers: Iterator[int]) -> Iterator[int]:
        for number in numbers:
            yield number**2


class Asking:
    def ask(self, n: int) -> list[int]:
        host = sync.current_call().host
        return list(host.options(window=1).stream("squares", (i for i in range(n))))


async def test_a_generator_of_the_host_goes_on_in_another_thread() -> None:
    """Each part of it may run in another one."""
    async with worker_of(Asking, host=Squaring()) as worker:
        assert await worker.call("ask", 50) == [n**2 for n in range(50)]

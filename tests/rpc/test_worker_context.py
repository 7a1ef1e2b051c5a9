"""What travels beside the arguments of real calls: context variables and traces."""

from __future__ import annotations

import contextvars
import subprocess
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import anyio
import pytest

from forkwire import Calls, sync

from .services import carrying
from .support_calls import SERVICES, until, worker_of
from .support_telling import span_exporter

if TYPE_CHECKING:
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

pytestmark = pytest.mark.anyio

request, private = carrying.request, carrying.private


@pytest.fixture(autouse=True)
def context_as_it_was() -> Iterator[None]:
    """A test's values are gone after it, whichever context it ran in."""
    yield
    for var in (request, private):
        assert var.get(None) is None


def set_to(value: str, private_value: str = "mine") -> None:
    request.set(value)
    private.set(private_value)


# -- variables, to the worker -----------------------------------------------------------------


@pytest.mark.parametrize("method", ["context_here", "context_later"])
async def test_a_call_carries_what_is_registered(method: str) -> None:
    """And nothing else; what is not set is not sent, and none is left for the next call."""
    async with worker_of(carrying) as worker:
        assert await worker.call(method) == [None, None]
        token, other = request.set("first"), private.set("unseen")
        assert await worker.call(method) == ["first", None]
        request.reset(token)
        private.reset(other)
        assert await worker.call(method) == [None, None]


async def test_in_an_interpreter_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """Both sides have registered it by the same name."""
    monkeypatch.syspath_prepend(str(SERVICES))
    async with worker_of("carrying", start="exec") as worker:
        token = request.set("first")
        assert await worker.call("context_here") == ["first", None]
        request.reset(token)


async def test_a_fork_leaves_no_values() -> None:
    """What was set when the worker was started is not what its calls see."""
    tokens = request.set("at the start"), private.set("at the start")
    async with worker_of(carrying) as worker:
        request.reset(tokens[0])
        private.reset(tokens[1])
        for method in ("context_here", "context_later"):
            assert await worker.call(method) == [None, None]


@pytest.mark.parametrize("method", ["contexts", "contexts_later"])
async def test_a_stream_carries_it(method: str) -> None:
    """A generator keeps its context from its first step to its last, also between others."""
    async with worker_of(carrying) as worker:
        token = request.set("first")
        stream = worker.options(window=1).stream(method)
        assert await anext(stream) == ["first", None]
        request.reset(token)
        assert await worker.call("context_here") == [None, None]
        assert await anext(stream) == ["changed by the generator", None]
        assert await worker.call("context_here") == [None, None]
        await stream.aclose()


@pytest.mark.parametrize("method", ["note_context", "note_context_later"])
async def test_a_notification_carries_it(method: str) -> None:
    """Whenever it is handled."""
    async with worker_of(carrying) as worker:
        token = request.set("first")
        await worker.notify(method)
        request.reset(token)
        seen: list[Any] = []
        while not seen:
            seen = await worker.call("noted")
        assert seen == ["first"]


async def test_calls_at_once_have_each_their_own() -> None:
    """In tasks here, and in tasks and one after the other there."""
    async with worker_of(carrying) as worker, anyio.create_task_group() as tasks:

        async def check(number: int) -> None:
            set_to(str(number))
            for method in ("context_here", "context_later"):
                assert await worker.call(method) == [str(number), None]
            await worker.call("set_context", "elsewhere")

        for number in range(20):
            tasks.start_soon(check, number)


def in_a_context(function: Any, *args: Any) -> Any:
    return contextvars.copy_context().run(function, *args)


def test_without_a_loop() -> None:
    """``forkwire.sync`` carries the same, and its streams do."""

    def calls() -> None:
        with sync.open_worker(carrying) as worker:
            set_to("first")
            assert worker.call("context_here") == ["first", None]
            assert worker.call("context_later") == ["first", None]
            assert next(iter(worker.stream("contexts"))) == ["first", None]

    in_a_context(calls)


# -- to the host ------------------------------------------------------------------------------


class Host:
    """Offers what the worker calls."""

    worker: Calls

    def context_of_host(self) -> list[str | None]:
        return carrying.context_here()

    async def call_back(self) -> Any:
        return await self.worker.call("context_here")


class AsyncHost(Host):
    async def context_of_host(self) -> list[str | None]:  # type: ignore[override]
        return carrying.context_here()


@pytest.mark.parametrize("host", [Host, AsyncHost])
@pytest.mark.parametrize("method", ["ask_host", "ask_host_later"])
async def test_a_call_of_the_host_carries_it(host: type[Host], method: str) -> None:
    """What came from the caller, or what the handler has set since."""
    async with worker_of(carrying, host=host()) as worker:
        token, other = request.set("first"), private.set("unseen")
        assert await worker.call(method) == ["first", None]
        assert await worker.call(method, "changed") == ["changed", None]
        assert request.get() == "first"
        request.reset(token)
        private.reset(other)
        assert await worker.call(method) == [None, None]


def test_a_call_of_a_host_without_a_loop() -> None:
    """The same in its threads."""
    with sync.open_worker(carrying, host={"context_of_host": carrying.context_here}) as worker:
        assert worker.call("ask_host", "changed") == ["changed", None]
        assert worker.call("ask_host_later") == [None, None]


async def test_a_call_inside_another() -> None:
    """That runs on top of the one that waits has what was sent with it, not what that one has."""
    host = Host()
    async with worker_of(carrying, host=host) as worker:
        host.worker = worker
        assert await worker.call("through_host", "passed on") == ["passed on", None]


# -- OpenTelemetry ----------------------------------------------------------------------------


_spans: InMemorySpanExporter | None = None


@pytest.fixture
def spans() -> Iterator[InMemorySpanExporter]:
    """Of this process; a forked worker has its own copy, with which it collects its own."""
    global _spans
    if _spans is None:
        _spans = span_exporter()
    _spans.clear()
    yield _spans
    _spans.clear()


Span = dict[str, Any]


def collected() -> list[Span]:
    """The spans that ended in this process."""
    assert _spans is not None
    return [
        {
            "name": span.name,
            "kind": span.kind.name,
            "id": span.context.span_id if span.context else 0,
            "trace": span.context.trace_id if span.context else 0,
            "parent": span.parent.span_id if span.parent else None,
            "service": (span.attributes or {}).get("rpc.service"),
            "status": span.status.status_code.name,
            "error": (span.attributes or {}).get("error.type"),
            "events": [event.name for event in span.events],
        }
        for span in _spans.get_finished_spans()
    ]


def inner_span() -> None:
    from opentelemetry import trace

    with trace.get_tracer("test").start_as_current_span("inside"):
        pass


def traced() -> None:
    inner_span()


async def traced_later() -> None:
    inner_span()


def traced_items() -> Iterator[int]:
    inner_span()
    yield 1
    inner_span()


async def traced_items_later() -> Any:
    inner_span()
    yield 1
    inner_span()


def failing() -> None:
    raise LookupError("x")


async def failing_later() -> None:
    raise LookupError("x")


def asking() -> None:
    sync.current_call().host.call("offered")


async def asking_later() -> None:
    from forkwire import current_call

    await current_call().host.call("offered")


def quiet_spans() -> list[Span]:
    """What this worker has collected, but for the calls that ask for it."""
    return [span for span in collected() if "quiet" not in span["name"]]


TRACED = {
    function.__name__: function
    for function in (
        *(traced, traced_later, traced_items, traced_items_later, failing, failing_later),
        *(asking, asking_later, quiet_spans),
    )
}


def find(spans: list[Span], name: str) -> Span:
    (found,) = [span for span in spans if span["name"].endswith(name)]
    return found


@pytest.mark.parametrize("method", ["traced", "traced_later"])
async def test_a_trace_crosses_into_the_worker(spans: InMemorySpanExporter, method: str) -> None:
    """The caller's span has the call's, that has the handler's, and that what is inside."""
    from opentelemetry import trace

    async with worker_of(TRACED, name="calc") as worker:
        with trace.get_tracer("test").start_as_current_span("caller"):
            await worker.call(method)
        there = await worker.call("quiet_spans")
    here = collected()
    caller, call = find(here, "caller"), find(here, f"call/{method}")
    handler, inside = find(there, method), find(there, "inside")
    assert (call["kind"], handler["kind"]) == ("CLIENT", "SERVER")
    chain = [caller, call, handler, inside]
    assert [span["parent"] for span in chain] == [None, *(span["id"] for span in chain[:-1])]
    assert len({span["trace"] for span in chain}) == 1
    assert not [span for span in here if span["kind"] == "SERVER"]


@pytest.mark.parametrize("method", ["traced_items", "traced_items_later"])
async def test_a_stream_is_one_span(spans: InMemorySpanExporter, method: str) -> None:
    """Of its handler, from the first step to the last, inside the caller's own."""
    from opentelemetry import trace

    async with worker_of(TRACED) as worker:
        with trace.get_tracer("test").start_as_current_span("caller"):
            async for _ in worker.stream(method):
                pass
        there = await worker.call("quiet_spans")
    handler = find(there, method)
    assert handler["parent"] == find(collected(), "caller")["id"]
    assert [span["parent"] for span in there if span["name"] == "inside"] == 2 * [handler["id"]]


@pytest.mark.parametrize("method", ["failing", "failing_later"])
async def test_errors_are_recorded(spans: InMemorySpanExporter, method: str) -> None:
    """On both sides, each with what was raised there."""
    async with worker_of(TRACED) as worker:
        with pytest.raises(LookupError):
            await worker.call(method)
        there = await worker.call("quiet_spans")
    handler, call = find(there, method), find(collected(), f"call/{method}")
    assert handler["error"] == "builtins.LookupError"
    assert call["error"].endswith("LookupError]")
    for span in (handler, call):
        assert (span["status"], span["events"]) == ("ERROR", ["exception"])


def offered() -> None:
    inner_span()


async def offered_later() -> None:
    inner_span()


@pytest.mark.parametrize("method", ["asking", "asking_later"])
@pytest.mark.parametrize("function", [offered, offered_later])
async def test_a_trace_crosses_back(
    spans: InMemorySpanExporter, method: str, function: Any
) -> None:
    """Call and handler in the worker, call of the host and its handler: one chain of spans."""
    async with worker_of(TRACED, host={"offered": function}) as worker:
        await worker.call(method)
        there = await worker.call("quiet_spans")
    here = collected()
    chain = [
        find(here, f"call/{method}"),
        find([span for span in there if span["kind"] == "SERVER"], method),
        find(there, "call/offered"),
        find([span for span in here if span["kind"] == "SERVER"], "offered"),
        find(here, "inside"),
    ]
    assert [span["parent"] for span in chain] == [None, *(span["id"] for span in chain[:-1])]


def test_a_trace_without_a_loop(spans: InMemorySpanExporter) -> None:
    """``forkwire.sync`` has the same spans, for its host too."""
    with sync.open_worker(TRACED, host={"offered": offered}) as worker:
        worker.call("asking")
        there = worker.call("quiet_spans")
    here = collected()
    chain = [
        find(here, "call/asking"),
        find([span for span in there if span["kind"] == "SERVER"], "asking"),
        find(there, "call/offered"),
        find([span for span in here if span["kind"] == "SERVER"], "offered"),
        find(here, "inside"),
    ]
    assert [span["parent"] for span in chain] == [None, *(span["id"] for span in chain[:-1])]


class Stub:
    async def traced(self) -> None: ...


async def test_calls_of_a_stub_have_spans(spans: InMemorySpanExporter) -> None:
    """As those by name do."""
    async with worker_of(TRACED) as worker:
        await worker.proxy(Stub).traced()
        await until(lambda: find(collected(), "call/traced"))


def test_nothing_is_imported_when_unused() -> None:
    """A program and its worker that have no use for OpenTelemetry do not load it."""
    script = f"""
import sys
sys.path.insert(0, {str(SERVICES)!r})
from forkwire import sync
def loaded() -> list[str]:
    return [name for name in sys.modules if name.startswith(("opentelemetry", "numpy"))]
if __name__ == "__main__":
    with sync.open_worker({{"loaded": loaded}}) as worker:
        assert worker.call("loaded") == loaded() == [], loaded()
"""
    subprocess.run([sys.executable, "-c", script], check=True, timeout=50)

"""What travels beside the arguments: chosen context variables, and OpenTelemetry's context."""

from __future__ import annotations

import contextlib
import contextvars
import subprocess
import sys
import threading
from collections.abc import Generator, Iterator
from typing import TYPE_CHECKING, Any

import anyio
import pytest

from forkwire import UsageError
from forkwire.rpc.telling import context
from forkwire.rpc.telling.context import (
    applied,
    capture,
    client_span,
    context_of,
    propagate,
    server_span,
)

from .support_telling import span_exporter

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import ReadableSpan
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

user: contextvars.ContextVar[object] = contextvars.ContextVar("user")
tenant: contextvars.ContextVar[object] = contextvars.ContextVar("tenant", default="nobody's")


@pytest.fixture(autouse=True)
def nothing_registered(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each test registers its own, and has no OpenTelemetry unless it says so."""
    monkeypatch.setattr(context, "_variables", {})
    monkeypatch.setattr(context, "_modules", {})


def fresh(function: Any, *args: Any) -> Any:
    """Call ``function`` where no variable is set."""
    return contextvars.Context().run(function, *args)


# -- variables ----------------------------------------------------------------------------------


def test_nothing_registered_is_nothing_sent() -> None:
    """Variables that nobody named stay here."""
    user.set("ada")
    assert capture() is None


def test_a_registered_variable_travels() -> None:
    """Its value there is what it was here, inside; afterwards it is what it was there."""
    assert propagate(user) is user
    user.set("ada")
    data = capture()
    assert data == {"variables": {"user": "ada"}}

    def there() -> None:
        with applied(data):
            assert user.get() == "ada"
        assert user.get(None) is None
        user.set("bob")
        with applied(data):
            assert user.get() == "ada"
        assert user.get() == "bob"

    fresh(there)


def test_what_is_not_set_is_not_sent() -> None:
    """A default is the other side's own."""
    propagate(user)
    propagate(tenant)

    def there() -> None:
        assert capture() is None
        user.set(None)
        assert capture() == {"variables": {"user": None}}

    fresh(there)


def test_a_name_of_its_own() -> None:
    """Two variables may have the same name; on the way each needs one of its own."""
    other: contextvars.ContextVar[object] = contextvars.ContextVar("user")
    propagate(user)
    propagate(user)
    with pytest.raises(UsageError, match="propagated as 'user' already"):
        propagate(other)
    propagate(other, name="other")
    user.set(1)
    other.set(2)
    assert capture() == {"variables": {"user": 1, "other": 2}}


@pytest.mark.parametrize(
    "data",
    [
        None,
        {},
        5,
        "text",
        [],
        {"variables": None},
        {"variables": ["user"]},
        {"variables": {"unknown": 1, 5: 6, None: 7}},
        {"trace": 5, "more": 6, 7: 8},
    ],
    ids=str,
)
def test_what_is_unknown_or_malformed_is_left_out(data: object) -> None:
    """A peer may be newer, or hostile."""
    propagate(user)

    def there() -> None:
        with applied(data):
            assert user.get("unset") == "unset"
        assert context_of(data).run(user.get, "unset") == "unset"

    fresh(there)


def test_a_peer_that_is_not_trusted() -> None:
    """It neither sees a variable nor sets one."""
    propagate(user)
    user.set("ada")
    assert capture(variables=False) is None

    def there() -> None:
        with applied({"variables": {"user": "root"}}, variables=False):
            assert user.get(None) is None
        data = {"variables": {"user": "root"}}
        assert context_of(data, variables=False).run(user.get, None) is None

    fresh(there)


def test_an_exception_undoes_it_too() -> None:
    """Whatever ends the handler."""
    propagate(user)

    def there() -> None:
        with contextlib.suppress(KeyboardInterrupt), applied({"variables": {"user": 1}}):
            raise KeyboardInterrupt
        assert user.get(None) is None

    fresh(there)


def test_a_generator_closed_in_another_context() -> None:
    """There is nothing to undo there, and nothing is raised."""
    propagate(user)

    def stream() -> Generator[object]:
        with applied({"variables": {"user": "ada"}}):
            yield user.get()

    def there() -> None:
        made = stream()
        assert next(made) == "ada"
        fresh(made.close)

    fresh(there)


def test_a_context_to_run_in() -> None:
    """A copy of this one with the peer's in it, which a thread or a task can take along."""
    propagate(user)
    user.set("bob")
    tenant.set("acme")
    made = context_of({"variables": {"user": "ada"}})
    seen: list[object] = []
    thread = threading.Thread(
        target=made.run, args=(lambda: seen.extend((user.get(), tenant.get())),)
    )
    thread.start()
    thread.join(20)
    assert seen == ["ada", "acme"]
    assert user.get() == "bob"


@pytest.mark.anyio
async def test_calls_at_once_have_each_their_own() -> None:
    """Tasks do not see each other's variables."""
    propagate(user)
    entered = 0
    everybody = anyio.Event()

    async def handler(name: str) -> None:
        nonlocal entered
        with applied({"variables": {"user": name}}):
            entered += 1
            if entered == 3:
                everybody.set()
            await everybody.wait()
            assert user.get() == name

    async with anyio.create_task_group() as tasks:
        for name in ("a", "b", "c"):
            tasks.start_soon(handler, name)


def test_nothing_registered_costs_next_to_nothing() -> None:
    """No OpenTelemetry is imported, and a span is one shared object that does nothing."""
    script = (
        "import sys, forkwire.rpc.telling.context as c\n"
        "assert c.capture() is None\n"
        "assert c.client_span('s', 'm') is c.server_span('s', 'm') is c.applied(None)\n"
        "with c.applied({'trace': {'traceparent': 'x'}}): pass\n"
        "assert not [name for name in sys.modules if name.startswith('opentelemetry')]\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True, timeout=50)


# -- OpenTelemetry ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def exporter() -> InMemorySpanExporter:
    """What the program's tracer provider hands its spans to."""
    return span_exporter()


@pytest.fixture
def spans(
    exporter: InMemorySpanExporter, monkeypatch: pytest.MonkeyPatch
) -> Iterator[InMemorySpanExporter]:
    monkeypatch.setattr(context, "_modules", sys.modules)
    exporter.clear()
    yield exporter
    exporter.clear()


def of_kind(spans: InMemorySpanExporter, kind: str) -> ReadableSpan:
    (found,) = [span for span in spans.get_finished_spans() if span.kind.name == kind]
    return found


def test_a_trace_goes_on_in_the_worker(spans: InMemorySpanExporter) -> None:
    """The handler's span is a child of the call's, which is a child of the caller's own."""
    from opentelemetry import trace

    with (
        trace.get_tracer("mine").start_as_current_span("caller"),
        client_span("calc", "add"),
    ):
        data = capture()
    assert data is not None
    assert list(data) == ["trace"]

    def there() -> None:
        with applied(data), server_span("calc", "add"):
            pass
        assert not trace.get_current_span().get_span_context().is_valid

    fresh(there)
    caller, call, handler = (of_kind(spans, kind) for kind in ("INTERNAL", "CLIENT", "SERVER"))
    assert (call.name, handler.name) == ("forkwire.call/add", "calc/add")
    assert call.parent is not None
    assert caller.context is not None
    assert call.parent.span_id == caller.context.span_id
    assert handler.parent is not None
    assert call.context is not None
    assert handler.context is not None
    assert handler.parent.span_id == call.context.span_id
    assert handler.parent.is_remote
    assert handler.context.trace_id == caller.context.trace_id
    expected = {"rpc.system": "forkwire", "rpc.service": "calc", "rpc.method": "add"}
    assert dict(call.attributes or {}) == dict(handler.attributes or {}) == expected


def test_errors_are_recorded(spans: InMemorySpanExporter) -> None:
    """With status, type, and the exception as an event; it comes out as it is."""
    error = LookupError("x")
    with pytest.raises(LookupError) as caught, server_span("calc", "find"):
        raise error
    assert caught.value is error
    span = of_kind(spans, "SERVER")
    assert span.status.status_code.name == "ERROR"
    assert (span.attributes or {})["error.type"] == "builtins.LookupError"
    assert [event.name for event in span.events] == ["exception"]


@pytest.mark.anyio
async def test_a_cancelled_call_is_told(spans: InMemorySpanExporter) -> None:
    """Its span ends, and has the type of what ended it, but is no failure."""
    with anyio.CancelScope() as scope, client_span("calc", "nap"):
        scope.cancel()
        await anyio.sleep_forever()
    span = of_kind(spans, "CLIENT")
    assert "Cancelled" in str((span.attributes or {})["error.type"])
    assert span.status.status_code.name == "UNSET"


def test_baggage_is_for_trusted_peers(spans: InMemorySpanExporter) -> None:
    """It holds a program's own values; the trace's numbers are for everybody."""
    from opentelemetry import baggage
    from opentelemetry import context as otel

    token = otel.attach(baggage.set_baggage("user", "ada"))
    try:
        with client_span("calc", "add"):
            data, less = capture(), capture(variables=False)
    finally:
        otel.detach(token)
    assert data is not None
    assert less is not None
    assert set(data["trace"]) == {"traceparent", "baggage"}  # type: ignore[call-overload]
    assert set(less["trace"]) == {"traceparent"}  # type: ignore[call-overload]

    def there() -> None:
        with applied(data):
            assert baggage.get_baggage("user") == "ada"
        with applied(data, variables=False):
            assert baggage.get_baggage("user") is None
        assert context_of(data).run(baggage.get_baggage, "user") == "ada"

    fresh(there)


@pytest.mark.parametrize(
    "trace",
    [
        5,
        {},
        {"traceparent": 5},
        {"traceparent": "not one"},
        {"traceparent": "00-" + "0" * 32 + "-" + "0" * 16 + "-01"},
        {5: "x", "traceparent": None},
        {"baggage": "x" * 100_000, "tracestate": "=,=" * 1000},
        {f"header{number}": "" for number in range(1000)},
    ],
    ids=lambda trace: str(trace)[:30],
)
def test_malformed_traces_are_left_out(spans: InMemorySpanExporter, trace: object) -> None:
    """A handler runs all the same, in a trace of its own."""

    def there() -> None:
        with applied({"trace": trace}), server_span("calc", "add"):
            pass
        context_of({"trace": trace})

    fresh(there)
    assert of_kind(spans, "SERVER").parent is None


def test_variables_and_a_trace(spans: InMemorySpanExporter) -> None:
    """Both in one map; outside of a trace there is none of it."""
    propagate(user)
    user.set("ada")
    assert capture() == {"variables": {"user": "ada"}}
    with client_span("calc", "add"):
        data = capture()
    assert data is not None
    assert sorted(data) == ["trace", "variables"]


def test_imported_without_a_provider_spans_do_nothing() -> None:
    """A library that imports OpenTelemetry's interface alone makes no trace."""
    pytest.importorskip("opentelemetry")
    script = (
        "import opentelemetry.trace, forkwire.rpc.telling.context as c\n"
        "with c.client_span('s', 'm'), c.server_span('s', 'm'):\n"
        "    assert c.capture() is None, c.capture()\n"
        "assert not opentelemetry.trace.get_current_span().is_recording()\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True, timeout=50)

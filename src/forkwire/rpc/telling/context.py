"""What travels beside a call's arguments: chosen context variables, and OpenTelemetry's context.

Nothing unless it was asked for: variables by :func:`propagate`, traces by a program that has
imported OpenTelemetry itself. This module imports none of it.

A call has a span on either side. A stream has one where its items are made, from the first step to
the last; its caller's own code runs between them, so there it is inside of whatever span began it.

The map in a call's metadata: ``{"variables": {name: value}, "trace": {"traceparent": text, ..}}``.
"""

from __future__ import annotations

import contextlib
import contextvars
import sys
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from typing import Any, Final, TypeVar

from ...errors import UsageError

__all__ = ["applied", "capture", "client_span", "context_of", "propagate", "server_span"]

T = TypeVar("T")

# What a peer may send of a trace: W3C has 512 characters of tracestate, 8192 of baggage.
TRACE_HEADERS: Final = 16
HEADER: Final = 8192

BAGGAGE: Final = "baggage"  # a program's own values, which are not for everybody

OTEL: Final = "opentelemetry.trace"  # imported means wanted
SYSTEM: Final = "forkwire"

_variables: dict[str, contextvars.ContextVar[Any]] = {}
_modules: Final = sys.modules


def propagate(var: contextvars.ContextVar[T], name: str | None = None) -> contextvars.ContextVar[T]:
    """Have the value of ``var`` travel with every call, when it is set; answers ``var``.

    Both sides register it, by the same name (``var.name`` unless given): in a module that both
    import, or before a fork. The values are plain data, as arguments without annotations are: a
    tuple arrives as a list. Raises :exc:`UsageError` when the name is another variable's.
    """
    name = var.name if name is None else name
    if _variables.setdefault(name, var) is not var:
        raise UsageError(
            f"another context variable is propagated as {name!r} already: give this one a name "
            "of its own, propagate(var, name=...)"
        )
    return var


def capture(*, variables: bool = True) -> dict[str, object] | None:
    """The caller's context as it travels; None when there is nothing to send.

    ``variables``: False for a peer that is not to see them, nor the trace's baggage.
    """
    if not _variables and OTEL not in _modules:
        return None
    data: dict[str, object] = {}
    if variables and (found := values_set()):
        data["variables"] = found
    if OTEL in _modules and (trace := carrier(baggage=variables)):
        data["trace"] = trace
    return data or None


def values_set() -> dict[str, object]:
    """Those of the registered variables that were set here; a default is not sent."""
    context = contextvars.copy_context()
    return {name: context[var] for name, var in list(_variables.items()) if var in context}


def carrier(*, baggage: bool) -> dict[str, str]:
    """The headers of the current trace; none outside of one."""
    from opentelemetry import propagate as otel

    headers: dict[str, str] = {}
    otel.inject(headers)
    if not baggage:
        headers.pop(BAGGAGE, None)
    return headers


def applied(data: object, *, variables: bool = True) -> AbstractContextManager[None]:
    """Inside, the context is the one that the peer sent; afterwards what it was.

    ``data``: what the call's metadata holds, of whatever type. What is unknown or malformed is
    left out. ``variables``: False for a peer that must not set any, nor the trace's baggage.
    """
    if not isinstance(data, Mapping) or not data:
        return NOTHING
    return _applied(data, variables)


NOTHING: Final = contextlib.nullcontext()


@contextlib.contextmanager
def _applied(data: Mapping[object, object], variables: bool) -> Iterator[None]:
    with contextlib.ExitStack() as stack:
        enter(data, variables, stack)
        yield


def enter(data: Mapping[object, object], variables: bool, stack: contextlib.ExitStack) -> None:
    """Set all that was sent, and have ``stack`` undo it."""
    if variables:
        for var, value in known(data.get("variables")):
            stack.callback(reset, var, var.set(value))
    if OTEL in _modules:
        attach(plain_headers(data.get("trace"), baggage=variables), stack)


def context_of(data: object, *, variables: bool = True) -> contextvars.Context:
    """A copy of the current context with the peer's in it, for a task or a thread to run in."""
    context = contextvars.copy_context()
    if isinstance(data, Mapping):
        context.run(enter, data, variables, contextlib.ExitStack())  # goes with the copy
    return context


def known(sent: object) -> list[tuple[contextvars.ContextVar[Any], object]]:
    """The registered ones of the variables that were sent."""
    if not isinstance(sent, Mapping):
        return []
    return [(var, sent[name]) for name, var in list(_variables.items()) if name in sent]


def reset(var: contextvars.ContextVar[T], token: contextvars.Token[T]) -> None:
    """Undo; a generator may be closed in another context, which there is nothing to undo in."""
    with contextlib.suppress(ValueError):
        var.reset(token)


def attach(headers: dict[str, str], stack: contextlib.ExitStack) -> None:
    """Make the peer's trace the current one until ``stack`` is closed."""
    if not headers:
        return
    from opentelemetry import context, propagate

    with contextlib.suppress(Exception):  # a propagator of the program's that knows no such text
        stack.callback(context.detach, context.attach(propagate.extract(headers)))


def plain_headers(sent: object, *, baggage: bool) -> dict[str, str]:
    """Of a peer's headers those that are text, and not too long."""
    if not isinstance(sent, Mapping) or len(sent) > TRACE_HEADERS:
        return {}
    return {
        name: text
        for name, text in sent.items()
        if isinstance(name, str) and isinstance(text, str) and len(text) <= HEADER
        if baggage or name.lower() != BAGGAGE
    }


def client_span(service: str, method: str) -> AbstractContextManager[object]:
    """A span around a call, on the caller's side; `capture` inside it. Nothing without a tracer."""
    if OTEL not in _modules:
        return NOTHING
    return span(f"forkwire.call/{method}", "CLIENT", service, method)


def server_span(service: str, method: str) -> AbstractContextManager[object]:
    """A span around a handler, inside what is `applied`; entered and left in one context."""
    if OTEL not in _modules:
        return NOTHING
    return span(f"{service}/{method}", "SERVER", service, method)


@contextlib.contextmanager
def span(name: str, kind: str, service: str, method: str) -> Iterator[object]:
    """Named as OpenTelemetry's conventions for RPC have it; an exception is recorded."""
    from opentelemetry import trace

    attributes = {"rpc.system": SYSTEM, "rpc.service": service, "rpc.method": method}
    with trace.get_tracer("forkwire").start_as_current_span(
        name, kind=trace.SpanKind[kind], attributes=attributes
    ) as current:
        try:
            yield current
        except BaseException as error:
            kind_of_error = type(error)
            name = f"{kind_of_error.__module__}.{kind_of_error.__qualname__}"
            current.set_attribute("error.type", name)
            raise

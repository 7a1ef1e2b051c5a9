"""Spans of caller and handler in one trace. Needs opentelemetry-sdk; just import it, no more."""

import anyio
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider

import forkwire

trace.set_tracer_provider(TracerProvider())  # with an exporter of yours


def trace_id() -> str:
    """In the worker, inside the span that was made there for this call."""
    return f"{trace.get_current_span().get_span_context().trace_id:032x}"


async def main() -> None:
    async with forkwire.open_worker(trace_id) as worker:
        with trace.get_tracer("example").start_as_current_span("request") as span:
            ours = f"{span.get_span_context().trace_id:032x}"
            print("one trace:", await worker.call(trace_id) == ours)


anyio.run(main)

# Prints:
# one trace: True

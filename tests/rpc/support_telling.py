"""What the tests of logs, prints and contexts of real workers share; it holds no test."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter


IMPORTED = "imported"


class Heard(logging.Handler):
    """The records of workers that reached a handler of the host's."""

    def __init__(self) -> None:
        super().__init__()
        self.records: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        if hasattr(record, "forkwire_worker"):
            self.records.append(record)

    def messages(self, name: str = "telling") -> list[str]:
        """All but what the import says: in a template that has one before this test."""
        found = [record.getMessage() for record in self.records if record.name == name]
        return [message for message in found if message != IMPORTED]

    def imports(self) -> list[str]:
        found = [record.getMessage() for record in self.records]
        return [message for message in found if message == IMPORTED]

    def last(self, name: str = "telling") -> logging.LogRecord:
        return next(record for record in reversed(self.records) if record.name == name)


@pytest.fixture
def heard() -> Iterator[Heard]:
    """The root logger's handler, and its level DEBUG; all is put back."""
    root = logging.getLogger()
    handler = Heard()
    level = root.level
    root.addHandler(handler)
    root.setLevel(logging.DEBUG)
    yield handler
    logging.disable(logging.NOTSET)
    root.removeHandler(handler)
    root.setLevel(level)


def span_exporter() -> InMemorySpanExporter:
    """One more for the spans of this process, whose tracer provider there is one of."""
    pytest.importorskip("opentelemetry.sdk")
    from opentelemetry import trace
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

    if not isinstance(trace.get_tracer_provider(), TracerProvider):
        trace.set_tracer_provider(TracerProvider())
    provider = trace.get_tracer_provider()
    assert isinstance(provider, TracerProvider)
    exporter = InMemorySpanExporter()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    return exporter

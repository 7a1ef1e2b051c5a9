"""What the tests of logs, prints and contexts of real workers share; it holds no test."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest


class Heard(logging.Handler):
    """The records of workers that reached a handler of the host's."""

    def __init__(self) -> None:
        super().__init__()
        self.records: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        if hasattr(record, "forkwire_worker"):
            self.records.append(record)

    def messages(self, name: str = "telling") -> list[str]:
        return [record.getMessage() for record in self.records if record.name == name]

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

"""A service that starts a worker of itself as it is imported, as a program without a guard does."""

from __future__ import annotations

import os

from forkwire import sync


class Service:
    def pid(self) -> int:
        return os.getpid()


with sync.open_worker(Service, start=os.environ["FORKWIRE_TEST_START"]) as worker:  # type: ignore[arg-type]
    worker.call("pid")

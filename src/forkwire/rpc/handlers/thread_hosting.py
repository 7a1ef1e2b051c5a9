"""What a host without an event loop offers its worker (``host=``): run in threads of its own."""

from __future__ import annotations

import threading
from typing import Final

from ..links.link import InCall
from ..links.poll_thread import PollDriver
from .handling import find
from .lane import Lane
from .lanes import Job, Lanes
from .service import Service

__all__ = ["ThreadHosting"]


class ThreadHosting(Lanes):
    """Runs what the worker calls: plain functions, each call in a thread, one at a time.

    One that is called while its caller's call to the worker is handled here (the same tree) does
    not wait for its turn.
    """

    def __init__(self, driver: PollDriver, service: Service) -> None:
        super().__init__(driver, service.name)
        service.load()
        self._service: Final = service
        self._turn: Final = threading.Lock()
        self._trees: Final[list[str]] = []

    def take_call(self, call: InCall) -> None:
        """Have ``call`` run, or answer why not."""
        try:
            method = find(self._service, call)
        except Exception as error:
            call.link.reply_error(call, error)
        else:
            self.accept(call, method)

    def enqueue(self, job: Job) -> None:
        """A thread for ``job``, or for its next part."""
        thread = threading.Thread(
            target=self._run, args=(job,), name=f"forkwire: {self.name}", daemon=True
        )
        try:
            thread.start()
        except RuntimeError as error:  # the system has none left
            self.refuse(job, error)

    def _run(self, job: Job) -> None:
        if job.call.tree and job.call.tree in self._trees:
            self._advance(job)
            return
        with self._turn:
            self._advance(job)

    def _advance(self, job: Job) -> None:
        self._trees.append(job.call.tree)
        try:
            Lane(self, None).advance(job)
        finally:
            self._trees.remove(job.call.tree)

"""Reloads of a pool, one after the other: new code that does not start changes nothing."""

from __future__ import annotations

import dataclasses
import functools
import time
from typing import TYPE_CHECKING, Final

import anyio

from ..errors import UsageError
from ..process import templates
from ..rpc.programs import Program
from ..rpc.starting import set_template_aside

if TYPE_CHECKING:
    from ..process.template import Template
    from .crew import Crew
    from .dispatch import Dispatcher
    from .supervisor import Supervisor

__all__ = ["Reloads"]


class Reloads:
    """Of one pool. In its event loop."""

    def __init__(self, crew: Crew, dispatcher: Dispatcher) -> None:
        self._crew: Final = crew
        self._dispatcher: Final = dispatcher
        self._supervisor: Final[Supervisor] = crew.supervisor
        self._turn: Final = anyio.Lock()
        self._judging = False

    async def reload(self) -> None:
        """Replace all workers, as :meth:`forkwire.Pool.reload` says."""
        settings = self._crew.settings
        if settings.start == "fork" and not isinstance(settings.target, Program):
            raise UsageError(
                "forked workers inherit the code of this process, which stays what it is: to "
                'reload it, open the pool with start="template" or start="exec"'
            )
        async with self._turn:
            await self._crew.until(lambda: not self._goes_on)  # one that was cancelled does
            self._dispatcher.check_open()
            self._begin()
            await self._crew.until(lambda: not self._goes_on)
            error, self._supervisor.reload_error = self._supervisor.reload_error, None
            if error is not None:
                raise error
            self._dispatcher.check_open()

    @property
    def _goes_on(self) -> bool:
        return self._judging or self._supervisor.reloading

    def _begin(self) -> None:
        crew = self._crew
        # What they offer is what they say, no more what the code here does.
        crew.settings = dataclasses.replace(crew.settings, service=None)
        if crew.settings.start == "template":
            old = set_template_aside(crew.settings, crew.backend.name)
            if old is not None:
                self._judging = True
                judge = functools.partial(self._judge, old)
                crew.backend.spawn(judge, "forkwire: reload of a pool")
        crew.ordered(self._supervisor.reload(time.monotonic()))

    async def _judge(self, old: Template) -> None:
        """The old template is needed again if the new code does not start."""
        try:
            await self._crew.until(lambda: not self._supervisor.proving)
        finally:
            good = self._supervisor.reload_error is None
            (templates.let_go_of if good else templates.put_back)(old)
            self._judging = False
            self._crew.ordered([])

"""What a pool tells of itself: plain data, and the counters it is made of."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

from .histogram import Histogram, Recorder

if TYPE_CHECKING:
    from ..rpc.handle import WorkerStatistics

__all__ = ["Counters", "MethodStatistics", "PoolStatistics"]

# Methods that are counted by name. A service has a few dozen; a program that makes up names as it
# goes is not to fill the memory with them.
MOST_METHODS: Final = 256

# What the others are counted as; no method is named so.
OTHERS: Final = "(others)"


@dataclass(frozen=True, slots=True)
class MethodStatistics:
    """The calls of one method that have ended.

    ``errors``: of them, those that raised here. ``latency``: from the worker's being chosen to
    the end. ``wait``: before that, for a worker with room.
    """

    calls: int
    errors: int
    latency: Histogram
    wait: Histogram


@dataclass(frozen=True, slots=True)
class PoolStatistics:
    """What a pool has done, and does now. Times are seconds.

    ``size``: workers that are there or come. Of them ``ready``: take calls, ``busy`` of these run
    some or are lent, ``starting``: are being started, or wait for it. ``queued``: calls that wait
    for a worker. ``calls``, ``errors``, ``latency``, ``wait``: of all methods together, as in
    :class:`MethodStatistics`. ``deaths``: workers that ended though nobody asked them to;
    ``restarts``: that were started for one of these, or for a start that failed; ``recycled``: that
    were well and replaced by policy. ``retries``: calls that were made once more; ``refused``: that
    were not made, since too many waited or they were poison. ``methods``: by name; beyond 256
    of them the rest is under ``"(others)"``. ``workers``: each worker's own, by its number.
    """

    size: int
    ready: int
    busy: int
    starting: int
    queued: int
    calls: int
    errors: int
    deaths: int
    restarts: int
    recycled: int
    retries: int
    refused: int
    latency: Histogram
    wait: Histogram
    methods: Mapping[str, MethodStatistics]
    workers: Mapping[int, WorkerStatistics]


class OneMethod:
    __slots__ = ("calls", "errors", "latency", "wait")

    def __init__(self) -> None:
        self.calls = 0
        self.errors = 0
        self.latency: Final = Recorder()
        self.wait: Final = Recorder()

    def ended(self, wait: float, seconds: float, *, error: bool) -> None:
        self.calls += 1
        self.errors += error
        self.latency.add(seconds)
        self.wait.add(wait)

    def statistics(self) -> MethodStatistics:
        latency, wait = self.latency.histogram(), self.wait.histogram()
        return MethodStatistics(self.calls, self.errors, latency, wait)


class Counters:
    """What is counted of a pool's calls."""

    def __init__(self) -> None:
        self.all: Final = OneMethod()
        self.retries = 0
        self.refused = 0
        self._methods: Final[dict[str, OneMethod]] = {}

    def ended(self, method: str, wait: float, seconds: float, *, error: bool) -> None:
        """A call ended that waited so long for its worker, and then ran so long."""
        self.all.ended(wait, seconds, error=error)
        one = self._methods.get(method)
        if one is None:
            name = method if len(self._methods) < MOST_METHODS else OTHERS
            one = self._methods.setdefault(name, OneMethod())
        one.ended(wait, seconds, error=error)

    def methods(self) -> Mapping[str, MethodStatistics]:
        return MappingProxyType({name: one.statistics() for name, one in self._methods.items()})

"""Who waits for a worker, in the order in which they came. It is told the time."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Final

import anyio

from .states import Need

if TYPE_CHECKING:
    from .members import Post

__all__ = ["Line", "Waiter"]

# Seconds after which one worker more gets no calls, for the sake of whoever waits to have one
# alone: the calls of the first may never end.
PATIENCE: Final = 1.0


class Waiter:
    """Waits for a worker, since then."""

    __slots__ = ("error", "event", "need", "number", "post", "since")

    def __init__(self, need: Need, number: int, since: float) -> None:
        self.need: Final = need
        self.number: Final = number
        self.since: Final = since
        self.event: Final = anyio.Event()
        self.post: Post | None = None
        self.error: Exception | None = None


class Line:
    """One for each need, so that nobody waits behind those who need something else."""

    def __init__(self) -> None:
        self._queues: Final[Mapping[Need, OrderedDict[int, Waiter]]] = {
            need: OrderedDict() for need in Need
        }
        self._last = 0

    def __len__(self) -> int:
        return sum(map(len, self._queues.values()))

    def counts(self) -> dict[Need, int]:
        """How many wait, by what they need."""
        return {need: len(queue) for need, queue in self._queues.items()}

    def join(self, need: Need, now: float) -> Waiter:
        self._last += 1
        waiter = self._queues[need][self._last] = Waiter(need, self._last, now)
        return waiter

    def leave(self, waiter: Waiter) -> bool:
        """Whether it still waited."""
        return self._queues[waiter.need].pop(waiter.number, None) is not None

    def waits(self, need: Need) -> bool:
        return bool(self._queues[need])

    def first(self, beside: Collection[Need] = ()) -> Waiter | None:
        """Who came first, of those that do not need what is ``beside``."""
        best: Waiter | None = None
        for need, queue in self._queues.items():
            if queue and need not in beside:
                waiter = next(iter(queue.values()))
                if best is None or waiter.number < best.number:
                    best = waiter
        return best

    def kept(self, now: float) -> int:
        """How many workers get no calls of those who come after one that needs all of a worker."""
        for waiter in self._queues[Need.ALL].values():
            return 1 + int((now - waiter.since) / PATIENCE)
        return 0

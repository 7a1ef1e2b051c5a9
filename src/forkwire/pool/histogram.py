"""How long things took: counts in buckets of a logarithmic scale. It knows no clock."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Final

from ..errors import UsageError

__all__ = ["Histogram", "Recorder"]

# Buckets for each doubling: a quantile is at most 2 ** (1 / 8) - 1, 9 %, beside the truth.
PART: Final = 4

# Seconds: what is shorter counts as this long. The finest clocks' ticks are below.
SHORTEST: Final = 1e-7

# The last bucket, of a bit more than a year.
LAST: Final = int(math.log2(3e7 / SHORTEST) * PART) + 1


@dataclass(frozen=True, slots=True)
class Histogram:
    """Times in seconds. All of it is 0 where nothing was counted.

    ``buckets``: how many lay between ``bound(n)`` and ``bound(n + 1)``, by n.
    """

    count: int = 0
    sum: float = 0.0
    min: float = 0.0
    max: float = 0.0
    buckets: Mapping[int, int] = field(default_factory=lambda: MappingProxyType({}))

    @property
    def mean(self) -> float:
        return self.sum / self.count if self.count else 0.0

    def quantile(self, q: float) -> float:
        """What a part ``q`` (0 to 1) of the times do not exceed, within 9 %."""
        if not 0 <= q <= 1:
            raise UsageError(f"a quantile is between 0 and 1, not {q!r}")
        wanted = max(1, math.ceil(q * self.count))
        seen = 0
        for bucket in sorted(self.buckets):
            seen += self.buckets[bucket]
            if seen >= wanted:
                middle = math.sqrt(self.bound(bucket) * self.bound(bucket + 1))
                return min(self.max, max(self.min, middle))
        return 0.0

    @staticmethod
    def bound(bucket: int) -> float:
        """The shortest time in seconds that counts in ``bucket``, save the first, which has all."""
        return SHORTEST * math.exp2(bucket / PART)


class Recorder:
    """A histogram in the making."""

    __slots__ = ("buckets", "count", "max", "min", "sum")

    def __init__(self) -> None:
        self.buckets: dict[int, int] = {}
        self.count = 0
        self.sum = 0.0
        self.min = math.inf
        self.max = 0.0

    def add(self, seconds: float) -> None:
        bucket = bucket_of(seconds)
        self.buckets[bucket] = self.buckets.get(bucket, 0) + 1
        self.count += 1
        self.sum += seconds
        self.min = min(self.min, seconds)
        self.max = max(self.max, seconds)

    def histogram(self) -> Histogram:
        """As it is now."""
        if not self.count:
            return Histogram()
        buckets = MappingProxyType(dict(self.buckets))
        return Histogram(self.count, self.sum, self.min, self.max, buckets)


def bucket_of(seconds: float) -> int:
    if seconds <= SHORTEST:
        return 0
    return min(LAST, int(math.log2(seconds / SHORTEST) * PART))

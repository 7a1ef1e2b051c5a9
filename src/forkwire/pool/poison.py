"""Which calls workers die of again and again. No I/O: a driver tells who died, and of what."""

from __future__ import annotations

import hashlib
from collections import Counter, OrderedDict
from collections.abc import Iterable
from typing import Final

from ..errors import PoisonCallError

__all__ = ["Suspects", "digest_of"]

# Calls that are remembered. What killed no worker for longer than all of these is forgotten.
MOST_SUSPECTS: Final = 1024

DIGEST_SIZE: Final = 16  # bytes: nobody looks for collisions on purpose


def digest_of(method: str, parts: Iterable[bytes | bytearray | memoryview]) -> bytes:
    """What tells one call from another: its method, and its arguments as they are sent."""
    name = method.encode("utf-8", "surrogatepass")
    digest = hashlib.blake2b(len(name).to_bytes(8) + name, digest_size=DIGEST_SIZE)
    for part in parts:
        digest.update(part)
    return digest.digest()


class Suspects:
    """The calls that were in flight when a worker died, until one of the kind is answered.

    Only the deaths of which nothing else can have been the cause are counted.
    """

    def __init__(self, limit: int) -> None:
        self.limit: Final = limit
        self._deaths: Final[OrderedDict[bytes, tuple[str, int, BaseException]]] = OrderedDict()
        self._methods: Final[Counter[str]] = Counter()

    def __len__(self) -> int:
        return len(self._deaths)

    def may_be(self, method: str) -> bool:
        """Whether there are suspects of that method; else no digest need be made."""
        return method in self._methods

    def died(self, digest: bytes, method: str, error: BaseException, *, alone: bool) -> int:
        """A worker died that ran it, ``alone`` or not; how many died of it so far."""
        count = self.deaths(digest) + alone
        self._forget(digest)
        self._deaths[digest] = method, count, error
        self._methods[method] += 1
        if len(self._deaths) > MOST_SUSPECTS:
            self._forget(next(iter(self._deaths)))
        return count

    def succeeded(self, digest: bytes) -> None:
        """A worker has answered it, if with an error: it is no poison."""
        self._forget(digest)

    def _forget(self, digest: bytes) -> None:
        known = self._deaths.pop(digest, None)
        if known is not None:
            method = known[0]
            self._methods[method] -= 1
            if not self._methods[method]:
                del self._methods[method]

    def is_one(self, digest: bytes) -> bool:
        return digest in self._deaths

    def deaths(self, digest: bytes) -> int:
        return self._deaths[digest][1] if digest in self._deaths else 0

    def check(self, digest: bytes, method: str) -> None:
        """Raises :exc:`PoisonCallError` for a call of which as many workers died as may."""
        count = self.deaths(digest)
        if count >= self.limit:
            error = self._deaths[digest][2]
            raise PoisonCallError(
                f"{method!r} with these arguments was not run: {count} workers died while they "
                f"ran it, the last of them: {error}",
                count,
            ) from error

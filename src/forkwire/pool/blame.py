"""Which calls are suspected when a worker dies: they run alone until one was answered.

The table is :mod:`.poison`'s; here it is asked about requests.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Final

from ..errors import PoisonCallError, ValueEncodeError
from ..rpc.caller.pumps import is_streamed
from ..rpc.caller.requests import Request, streams_in
from ..rpc.data import codec
from .poison import Suspects, digest_of
from .statistics import Counters

__all__ = ["Blame", "Mark", "has_streams"]

CALL: Final = 1  # the type of the message, for the codec's sake


class Mark:
    """What tells a call from others. Found out once, when it is first needed."""

    __slots__ = ("_digest", "_made", "request")

    def __init__(self, request: Request) -> None:
        self.request: Final = request
        self._made = False
        self._digest: bytes | None = None

    @property
    def digest(self) -> bytes | None:
        """None where its arguments are streamed, or cannot be sent."""
        if not self._made:
            self._made, self._digest = True, digest(self.request)
        return self._digest


class Blame:
    """``limit``: deaths after which a call is refused."""

    def __init__(self, limit: int, counters: Counters) -> None:
        self._suspects: Final = Suspects(limit)
        self._counters: Final = counters

    def died(self, marks: Collection[Mark], error: BaseException) -> None:
        """A worker died that ran these."""
        for mark in marks:
            if (known := mark.digest) is not None:
                method = mark.request.method
                self._suspects.died(known, method, error, alone=len(marks) == 1)

    def answered(self, mark: Mark) -> None:
        """It did not kill its worker."""
        if self._suspects.may_be(mark.request.method) and (known := mark.digest) is not None:
            self._suspects.succeeded(known)

    def must_be_alone(self, mark: Mark) -> bool:
        """Whether it is suspected: if its worker dies, nothing else is to have been in flight.

        Raises :exc:`PoisonCallError` if too many workers died of it.
        """
        method = mark.request.method
        if not self._suspects.may_be(method) or (known := mark.digest) is None:
            return False
        try:
            self._suspects.check(known, method)
        except PoisonCallError:
            self._counters.refused += 1
            raise
        return self._suspects.is_one(known)


def has_streams(request: Request) -> bool:
    """Whether some of its arguments are used up."""
    return bool(streams_in(request, is_streamed)[2])


def digest(request: Request) -> bytes | None:
    args, kwargs, streams = streams_in(request, is_streamed)
    if streams:
        return None
    try:
        body, attachments = codec.encode([CALL, 0, request.method, args, kwargs])
    except ValueEncodeError:
        return None
    return digest_of(request.method, [body, *attachments])

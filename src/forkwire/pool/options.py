"""How calls of a pool are made: what ``pool.options`` sets beside what a worker's does."""

from __future__ import annotations

from dataclasses import dataclass

from ..errors import UsageError
from ..rpc.caller.requests import CallOptions, Request

__all__ = ["PoolOptions", "retries_of"]


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolOptions(CallOptions):
    """``retries``: times that a call is made once more when its worker died."""

    retries: int = 0

    def __post_init__(self) -> None:
        CallOptions.__post_init__(self)  # super() does not work in a class with slots
        retries: object = self.retries
        if not isinstance(retries, int) or isinstance(retries, bool) or retries < 0:
            raise UsageError(f"retries is how often a call may be repeated, not {retries!r}")


def retries_of(request: Request) -> int:
    options = request.options
    return options.retries if isinstance(options, PoolOptions) else 0

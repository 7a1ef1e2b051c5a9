"""What only type checkers see of the fronts' overloads. None of it is ever made."""

from __future__ import annotations

from typing import Protocol, final

__all__ = ["StreamedNotCalled", "Untyped"]


class StreamedNotCalled(Protocol):
    """What `call` and `notify` are said to answer for a function that yields: use `stream`.

    It can be neither awaited nor iterated, so that a type checker names it where that is tried;
    said to be `typing.Never`, it would have the checker skip what follows without a word.
    """


@final
class Untyped:
    """What no function returns: only one that is annotated with Any, or not at all, fits it.

    The overload with it comes first: pyright takes the first that such a function fits, which
    would be the one for functions that yield.
    """

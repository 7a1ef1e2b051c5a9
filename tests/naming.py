"""Names of parametrised tests that are the same in every run, so that runs can be compared."""

from __future__ import annotations

import re

__all__ = ["named"]


def named(value: object) -> str:
    """A short ``repr``, or the text itself, without the address of the object."""
    text = value if isinstance(value, str) else repr(value)
    return re.sub(r" at 0x[0-9a-f]+", "", text)[:60]

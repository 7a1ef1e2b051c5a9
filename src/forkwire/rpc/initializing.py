"""An initializer on its way to a worker that does not inherit it: by its name, with plain values.

The function travels as ``"module:name"``, its arguments as CBOR in text.
"""

from __future__ import annotations

import base64
import sys
from collections.abc import Callable
from typing import Any, Final

from ..errors import UsageError, ValueEncodeError
from .data import codec
from .references import findable

__all__ = ["Initializer", "Packed", "pack", "unpack"]

Initializer = str | Callable[..., object]

# The name, the arguments in one message, and its attachments; plain data.
Packed = list[Any]

HINT: Final = 'use start="fork", which inherits it'


def pack(initializer: Initializer | None, initargs: tuple[object, ...]) -> Packed | None:
    """Plain data; None where there is none. Raises :exc:`UsageError` for what cannot travel."""
    if initializer is None:
        return None
    name = initializer if isinstance(initializer, str) else name_of(initializer)
    try:
        body, attachments = codec.encode(list(initargs))
    except ValueEncodeError as error:
        raise UsageError(
            f"initargs of {name} cannot be sent to a worker: {error}; {HINT}"
        ) from error
    return [name, as_text(body), [as_text(each) for each in attachments]]


def unpack(packed: Packed | None) -> tuple[str | None, list[object]]:
    """The name and the arguments that `pack` had."""
    if packed is None:
        return None, []
    name, body, attachments = packed
    initargs: list[object] = codec.decode(
        base64.b64decode(body), [base64.b64decode(each) for each in attachments]
    )
    return name, initargs


def as_text(data: bytes | memoryview) -> str:
    return base64.b64encode(data).decode()


def name_of(function: Callable[..., object]) -> str:
    """Where another interpreter finds it. Raises :exc:`UsageError` if nowhere."""
    module = str(getattr(function, "__module__", None))
    path: str = getattr(function, "__qualname__", "")
    found: Any = sys.modules.get(module)
    for part in path.split("."):
        found = getattr(found, part, None)
    if not path or found is not function or not findable(module):
        raise UsageError(
            f"the initializer {path or function!r} cannot be imported by another interpreter: "
            f'put it into a module, or name it, "module:function", or {HINT}'
        )
    return f"{module}:{path}"

"""Frames to messages: attachments are put where they belong.

Knows nothing of calls, and nothing of where frames come from.
"""

from __future__ import annotations

from typing import Any, Final

from ...errors import ProtocolError
from ...wire.messages import CARRIERS, Attach, Call, Message, Notify, StreamRef, parse
from ..data import codec
from ..data.tags import STREAM_TAG, UnknownTag

__all__ = ["Assembler"]

# How the tag of an argument stream ends, in each of its widths.
STREAM_MARK: Final = STREAM_TAG.to_bytes(4, "big")


class Assembler:
    """``limit``: bytes of the attachments of one message together."""

    def __init__(self, limit: int, *, trusted: bool) -> None:
        self._limit: Final = limit
        self._trusted: Final = trusted
        self._sizes: list[int] = []
        self._attached: list[bytes] = []

    def take(self, frame: bytes) -> Message | None:
        """The message that ``frame`` is, or completes. Raises :exc:`ProtocolError`."""
        if len(self._attached) < len(self._sizes):
            self._attach(frame)
            return None
        attached, self._attached, self._sizes = self._attached, [], []
        message = parse(codec.decode(frame, attached, trusted=self._trusted))
        if attached and getattr(message, "TYPE", None) not in CARRIERS:
            raise ProtocolError(
                f"the peer announced attachments of a {type(message).__name__} message, "
                "which has none"
            )
        if STREAM_MARK in frame:
            check_streams(message)
        if isinstance(message, Attach):
            self._announce(message)
            return None
        return message

    @property
    def inside(self) -> bool:
        """Whether a message has begun."""
        return bool(self._sizes)

    def _attach(self, frame: bytes) -> None:
        size = self._sizes[len(self._attached)]
        if len(frame) != size:
            raise ProtocolError(f"the peer announced an attachment of {size} bytes, and sent one "
                                f"of {len(frame)}")  # fmt: skip
        self._attached.append(frame)

    def _announce(self, message: Attach) -> None:
        total = sum(message.sizes)
        if total > self._limit:
            raise ProtocolError(
                f"the peer announced attachments of {total} bytes together, above the limit of "
                f"{self._limit} bytes"
            )
        self._sizes = list(message.sizes)


def check_streams(message: Message) -> None:
    """An argument stream is an argument, not a part of one, and nothing else (C-33)."""
    values: list[Any] = []
    if isinstance(message, Call | Notify):
        arguments = [*message.args, *message.kwargs.values()]
        values += [value for value in arguments if type(value) is not StreamRef]
        values.append(message.meta)
    else:
        values += [getattr(message, name, None) for name in ("value", "error", "about", "record")]
    while values:
        value = values.pop()
        if type(value) is StreamRef:
            raise ProtocolError(
                "the peer sent an argument stream where there can be none: it is an argument of a "
                "call, not a part of one (C-33)"
            )
        if isinstance(value, list | tuple | set | frozenset):
            values += value
        elif isinstance(value, dict):
            values += value.keys()
            values += value.values()
        elif isinstance(value, UnknownTag):
            values.append(value.value)

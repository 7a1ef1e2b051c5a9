"""Values that calls answer, as JSON: what JSON has no form for becomes what people would write."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from datetime import date, time
from typing import Any

__all__ = ["argument_of", "json_of", "split_arguments"]


def json_of(value: object) -> str:
    """``value`` on one line.

    Bytes become base64, dates ISO 8601, sets sorted arrays, arrays of numbers nested arrays; all
    else that JSON does not have becomes its ``str``.
    """
    return json.dumps(plain(value), ensure_ascii=False)


def plain(value: Any) -> Any:
    if value is None or isinstance(value, str | bool | int | float):
        return value
    if isinstance(value, bytes | bytearray):
        return base64.b64encode(value).decode()
    if isinstance(value, date | time):
        return value.isoformat()
    if isinstance(value, Mapping):
        return {key_of(key): plain(item) for key, item in value.items()}
    if isinstance(value, AbstractSet):
        return sorted(map(plain, value), key=lambda item: (str(type(item)), str(item)))
    if isinstance(value, Sequence) and not isinstance(value, memoryview):
        return [plain(item) for item in value]
    if hasattr(value, "tolist"):  # of numpy, array and memoryview
        return plain(value.tolist())
    return str(value)


def key_of(key: object) -> str:
    made = plain(key)
    return made if isinstance(made, str) else json.dumps(made)


def split_arguments(words: Sequence[str]) -> tuple[list[Any], dict[str, Any]]:
    """``['[1, 2]', 'weights=[3, 4]']``: each is JSON, after ``name=`` a keyword argument.

    Raises ValueError with a sentence about what is no JSON.
    """
    args: list[Any] = []
    kwargs: dict[str, Any] = {}
    for word in words:
        name, equals, text = word.partition("=")
        if equals and name.isidentifier():  # no JSON begins like that
            kwargs[name] = argument_of(text)
        elif kwargs:
            raise ValueError(f"{word} stands behind {next(iter(kwargs))}=: names come last")
        else:
            args.append(argument_of(word))
    return args, kwargs


def argument_of(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        quoted = json.dumps(text, ensure_ascii=False)
        raise ValueError(f"{text} is not JSON; a text is written '{quoted}'") from None

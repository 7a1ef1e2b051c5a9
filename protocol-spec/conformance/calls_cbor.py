"""CBOR for `calls.py`: bytes, values, and diagnostic notation. Standard library only.

Values: None, bool, int, float, str, bytes, list, dict, `Tag`. In a pattern, ``...`` stands for any
value, for the rest of an array, or for further keys of a map.

The notation is that of RFC 8949, chapter 8, as far as these values go: ``[1, "a", h'ff', {"k":
null}, 37(h'00')]``.
"""

from __future__ import annotations

import math
import re
import struct
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

ARGUMENT_BYTES = {24: 1, 25: 2, 26: 4, 27: 8}
FLOATS = {25: ">e", 26: ">f", 27: ">d"}
MAX_DEPTH = 200
POSITIVE_BIGNUM, NEGATIVE_BIGNUM = 2, 3
ELISION = type("Elision", (), {"__repr__": lambda self: "..."})()
NUMBER = r"-?\d+(?:\.\d+)?(?:e[+-]?\d+)?"
TOKEN = re.compile(
    rf"\s*(?:({NUMBER})|(\"(?:[^\"\\]|\\.)*\")|h'([0-9a-f]*)'|(\.\.\.|-?\w+)|([][{{}}(),:]))\s*"
)
WORDS = {
    "null": None,
    "true": True,
    "false": False,
    "NaN": math.nan,
    "Infinity": math.inf,
    "-Infinity": -math.inf,
    "...": ELISION,
}
ESCAPES = {'"': '"', "\\": "\\", "n": "\n"}


class Tag(NamedTuple):
    """A value with a meaning of its own."""

    tag: int
    value: Any


class CBORError(ValueError):
    """These are not the bytes, or the notation, of one value that the protocol allows."""


# Bytes


def encode(value: Any) -> bytes:
    """``value`` in CBOR: the shortest lengths, floats always of 64 bits, keys as they come."""
    if value is None or isinstance(value, bool):
        return {None: b"\xf6", False: b"\xf4", True: b"\xf5"}[value]
    if isinstance(value, int):
        return encode_int(value)
    if isinstance(value, float):
        return b"\xfb" + struct.pack(">d", value)
    if isinstance(value, Tag):
        return head(6, value.tag) + encode(value.value)
    if isinstance(value, (bytes, str)):
        data = value.encode() if isinstance(value, str) else value
        return head(3 if isinstance(value, str) else 2, len(data)) + data
    if isinstance(value, list):
        return head(4, len(value)) + b"".join(map(encode, value))
    assert isinstance(value, dict), value
    parts = [encode(part) for entry in value.items() for part in entry]
    return head(5, len(value)) + b"".join(parts)


def encode_int(number: int) -> bytes:
    """An integer; a bignum where it must be."""
    size = -1 - number if number < 0 else number
    if size < 1 << 64:
        return head(1 if number < 0 else 0, size)
    data = size.to_bytes((size.bit_length() + 7) // 8, "big")
    return encode(Tag(NEGATIVE_BIGNUM if number < 0 else POSITIVE_BIGNUM, data))


def head(major: int, argument: int) -> bytes:
    """The first bytes of an item."""
    if argument < 24:
        return bytes([major << 5 | argument])
    info = next(info for info, size in ARGUMENT_BYTES.items() if argument < 1 << 8 * size)
    return bytes([major << 5 | info]) + argument.to_bytes(ARGUMENT_BYTES[info], "big")


def decode(data: bytes, tagged: Callable[[Tag], Any] = lambda tag: tag) -> Any:
    """The one value that ``data`` is; ``tagged`` may replace tags."""
    decoder = Decoder(data, tagged)
    value = decoder.item(0)
    if decoder.at != len(data):
        raise CBORError(f"{len(data) - decoder.at} bytes follow the value")
    return value


class Decoder:
    """Reads one value."""

    def __init__(self, data: bytes, tagged: Callable[[Tag], Any]) -> None:
        self.data = data
        self.tagged = tagged
        self.at = 0

    def take(self, size: int) -> bytes:
        """The next bytes."""
        if size > len(self.data) - self.at:
            raise CBORError("the value is cut short")
        self.at += size
        return self.data[self.at - size : self.at]

    def item(self, depth: int) -> Any:
        """The next value."""
        if depth > MAX_DEPTH:
            raise CBORError("the value is nested too deep")
        first = self.take(1)[0]
        major, info = first >> 5, first & 31
        if major == 7:
            return self.simple(info)
        if info > 27:
            raise CBORError("lengths are definite here")
        count = info if info < 24 else int.from_bytes(self.take(ARGUMENT_BYTES[info]), "big")
        if major < 2:
            return count if major == 0 else -1 - count
        if major == 2:
            return self.take(count)
        if major == 3:
            return self.take(count).decode()
        if major == 6:
            return self.tag(count, self.item(depth + 1))
        items = [self.item(depth + 1) for _ in range(count if major == 4 else 2 * count)]
        return items if major == 4 else self.map(items)

    def map(self, items: list[Any]) -> dict[Any, Any]:
        """A map of keys and values in turn."""
        try:
            found = dict(zip(items[::2], items[1::2]))  # noqa: B905 - Python 3.8
        except TypeError as error:
            raise CBORError(f"a key that Python cannot look up: {error}") from None
        if len(found) * 2 != len(items):
            raise CBORError("a map has a key twice")
        return found

    def tag(self, number: int, value: Any) -> Any:
        """A value with a tag."""
        if number in (POSITIVE_BIGNUM, NEGATIVE_BIGNUM) and isinstance(value, bytes):
            size = int.from_bytes(value, "big")
            return size if number == POSITIVE_BIGNUM else -1 - size
        return self.tagged(Tag(number, value))

    def simple(self, info: int) -> Any:
        """A float, or one of three simple values."""
        if info in FLOATS:
            return struct.unpack(FLOATS[info], self.take(ARGUMENT_BYTES[info]))[0]
        if info not in (20, 21, 22):
            raise CBORError(f"the simple value {info} has no use here")
        return {20: False, 21: True, 22: None}[info]


# Diagnostic notation


def show(value: Any) -> str:
    """``value`` in diagnostic notation."""
    if isinstance(value, float):
        return {"inf": "Infinity", "-inf": "-Infinity", "nan": "NaN"}.get(repr(value), repr(value))
    for word, meaning in WORDS.items():
        if value is meaning:
            return word
    if isinstance(value, str):
        return '"{}"'.format("".join(escape(letter) for letter in value))
    if isinstance(value, bytes):
        return f"h'{value.hex()}'"
    if isinstance(value, Tag):
        return f"{value.tag}({show(value.value)})"
    if isinstance(value, list):
        return "[{}]".format(", ".join(map(show, value)))
    if isinstance(value, dict):
        entries = ["..." if k is ELISION else f"{show(k)}: {show(v)}" for k, v in value.items()]
        return "{{{}}}".format(", ".join(entries))
    return str(value)


def escape(letter: str) -> str:
    """A character inside quotes."""
    if letter in '"\\':
        return "\\" + letter
    if letter.isprintable():
        return letter
    units = letter.encode("utf-16-be").hex()
    return "".join(f"\\u{units[at : at + 4]}" for at in range(0, len(units), 4))


def parse(text: str) -> Any:
    """The value, or pattern, of diagnostic notation."""
    tokens = list(tokenize(text))
    tokens.reverse()
    value = parse_value(tokens)
    if tokens:
        raise CBORError(f"what follows the value: {text}")
    return value


def tokenize(text: str) -> Iterator[tuple[str, Any]]:
    """Pairs of a kind, ``value`` or ``mark``, and what it is."""
    at = 0
    while at < len(text):
        match = TOKEN.match(text, at)
        if not match or (match[4] and match[4] not in WORDS):
            raise CBORError(f"no diagnostic notation: {text[at:]}")
        at = match.end()
        number, string, octets, word, mark = match.groups()
        if mark:
            yield "mark", mark
        elif number:
            yield "value", float(number) if set(number) & set(".e") else int(number)
        elif string:
            yield "value", unescape(string[1:-1])
        else:
            yield "value", WORDS[word] if word else bytes.fromhex(octets)


def unescape(text: str) -> str:
    """The text inside quotes."""
    units = re.sub(r"(?:\\u[0-9a-f]{4})+", lambda m: utf16(m[0].replace("\\u", "")), text)
    return re.sub(r'\\(["\\n])', lambda match: ESCAPES[match[1]], units)


def utf16(digits: str) -> str:
    """Characters from the hex of UTF-16."""
    return bytes.fromhex(digits).decode("utf-16-be")


def parse_value(tokens: list[tuple[str, Any]]) -> Any:
    """The next value; ``tokens`` from the last to the first."""
    kind, token = tokens.pop() if tokens else ("mark", "end")
    if kind == "value":
        if type(token) is not int or not tokens or tokens[-1] != ("mark", "("):
            return token
        tokens.pop()
        tag = Tag(token, parse_value(tokens))
        expect(tokens, ")")
        return tag
    if token == "[":
        return parse_list(tokens, "]", parse_value)
    if token == "{":
        return dict(parse_list(tokens, "}", parse_entry))
    raise CBORError(f"a value cannot begin with {token}")


def parse_entry(tokens: list[tuple[str, Any]]) -> tuple[Any, Any]:
    """The next entry of a map."""
    key = parse_value(tokens)
    if key is ELISION:
        return key, key
    expect(tokens, ":")
    return key, parse_value(tokens)


def parse_list(tokens: list[tuple[str, Any]], end: str, one: Callable[[Any], Any]) -> list[Any]:
    """What stands between brackets."""
    found: list[Any] = []
    while tokens and tokens[-1] != ("mark", end):
        if found:
            expect(tokens, ",")
        found.append(one(tokens))
    expect(tokens, end)
    return found


def expect(tokens: list[tuple[str, Any]], mark: str) -> None:
    """Take a mark."""
    if not tokens or tokens.pop() != ("mark", mark):
        raise CBORError(f"there is no {mark} where it should be")


# Patterns


def matches(pattern: Any, value: Any) -> bool:
    """Is ``value`` what ``pattern`` says? Numbers are compared as numbers: 1 is 1.0."""
    if pattern is ELISION:
        return True
    if isinstance(pattern, list):
        if not isinstance(value, list):
            return False
        if pattern[-1:] == [ELISION]:
            pattern = pattern[:-1]
            value = value[: len(pattern)]
        return len(pattern) == len(value) and all(
            matches(part, value[index]) for index, part in enumerate(pattern)
        )
    if isinstance(pattern, dict):
        return isinstance(value, dict) and matches_map(pattern, value)
    if isinstance(pattern, Tag):
        return isinstance(value, Tag) and pattern[0] == value[0] and matches(pattern[1], value[1])
    if isinstance(pattern, bool) or isinstance(value, bool):
        return pattern is value
    if isinstance(pattern, float) and math.isnan(pattern):
        return isinstance(value, float) and math.isnan(value)
    return bool(pattern == value) and isinstance(pattern, str) == isinstance(value, str)


def matches_map(pattern: dict[Any, Any], value: dict[Any, Any]) -> bool:
    """Every key of the pattern is there and matches, and no other unless it has ``...``."""
    keys = set(pattern) - {ELISION}
    if not (keys == set(value) or (ELISION in pattern and keys < set(value))):
        return False
    return all(matches(pattern[key], value[key]) for key in keys)

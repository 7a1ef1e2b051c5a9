"""The runner's own CBOR and notation, against cbor2 and against themselves."""

from __future__ import annotations

import contextlib
import importlib
import math
import sys
from pathlib import Path
from typing import Any, Final

import cbor2
import pytest
from hypothesis import given
from hypothesis import strategies as st

SPEC: Final = Path(__file__).resolve().parents[2] / "protocol-spec"
sys.path.insert(0, str(SPEC / "conformance"))
cbor: Final[Any] = importlib.import_module("calls_cbor")

TAG: Final = 4711  # one that cbor2 leaves alone

SCALARS: Final = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**80), 2**80),
    st.floats(allow_nan=False, allow_infinity=False),  # which cbor2 writes in 16 bits
    st.text(st.characters(exclude_categories=["Cs"])),
    st.binary(max_size=300),
)
KEYS: Final = st.one_of(st.text(st.characters(exclude_categories=["Cs"])), st.integers())
VALUES: Final = st.recursive(
    SCALARS,
    lambda inner: st.one_of(
        st.lists(inner), st.dictionaries(KEYS, inner), inner.map(lambda v: cbor.Tag(TAG, v))
    ),
    max_leaves=20,
)


def to_cbor2(value: Any) -> Any:
    """The value as cbor2 has it."""
    if isinstance(value, cbor.Tag):
        return cbor2.CBORTag(value.tag, to_cbor2(value.value))
    if isinstance(value, list):
        return [to_cbor2(item) for item in value]
    if isinstance(value, dict):
        return {key: to_cbor2(item) for key, item in value.items()}
    return value


@given(VALUES)
def test_encodes_as_cbor2(value: Any) -> None:
    """What it encodes is, byte for byte, what cbor2 encodes."""
    assert cbor.encode(value) == cbor2.dumps(to_cbor2(value))


@given(VALUES)
def test_decodes_what_it_encodes(value: Any) -> None:
    """A value comes back, of the same types."""
    back = cbor.decode(cbor.encode(value))
    assert back == value
    assert cbor.show(back) == cbor.show(value)


@given(VALUES)
def test_notation_and_back(value: Any) -> None:
    """A value comes back from its notation, of the same types."""
    back = cbor.parse(cbor.show(value))
    assert cbor.encode(back) == cbor.encode(value)


@given(VALUES)
def test_a_value_matches_itself(value: Any) -> None:
    """A value is a pattern that it matches, and that nothing around it matches."""
    assert cbor.matches(value, value)
    assert not cbor.matches(value, [value, value, value, value, value])
    assert cbor.matches(cbor.ELISION, value)


@given(st.binary(max_size=40))
def test_any_bytes_are_a_value_or_an_error(data: bytes) -> None:
    """Bytes that are no value raise ValueError and nothing else."""
    with contextlib.suppress(ValueError):
        cbor.decode(data)


@pytest.mark.parametrize(
    ("pattern", "notation", "expected"),
    [
        ("[1, ...]", "[1, 2, 3]", True),
        ("[1, ...]", "[1]", True),
        ("[1, ...]", "[2]", False),
        ("[...]", "[]", True),
        ('{"a": ...}', '{"a": null}', True),
        ('{"a": 1}', '{"a": 1, "b": 2}', False),
        ('{"a": 1, ...}', '{"a": 1, "b": 2}', True),
        ("{...}", "{}", True),
        ("1", "1.0", True),
        ("1", "true", False),
        ("0", "false", False),
        ("null", "0", False),
        ("h'61'", '"a"', False),
        ("NaN", "NaN", True),
        ("0(...)", '0("2026")', True),
        ("0(...)", '1("2026")', False),
    ],
)
def test_matches(pattern: str, notation: str, expected: bool) -> None:
    """Patterns: a rest, further keys, anything; numbers by value, all else by type."""
    assert cbor.matches(cbor.parse(pattern), cbor.parse(notation)) is expected


@pytest.mark.parametrize("text", ["", "[1", "[1 2]", "{1}", "x", "'a'", "1)", "[1], 2", "(1)"])
def test_refuses_notation(text: str) -> None:
    """What is no notation of one value is an error."""
    with pytest.raises(cbor.CBORError):
        cbor.parse(text)


def test_reads_other_widths() -> None:
    """Floats of every width and integers in longer forms are read."""
    assert cbor.decode(bytes.fromhex("83f93e00fa3fa000001b0000000000000001")) == [1.5, 1.25, 1]
    assert math.isnan(cbor.decode(bytes.fromhex("f97e00")))

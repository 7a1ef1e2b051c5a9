"""Text of a peer: nothing in it moves a cursor, hides, or is without an end."""

from __future__ import annotations

import sys
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from forkwire.wire.text import clean

# Longer than any note of what is left out.
NOTE = len(f"... [{sys.maxsize} more]")

anything = st.text(st.characters(exclude_categories=()), max_size=200)


@pytest.mark.parametrize("text", ["", "plain", "größer", "数", "مرحبا", "می‌خواهم", "👩‍🚀", "a\\nb"])
def test_letters_of_every_script_pass(text: str) -> None:
    """Emoji and scripts that need a joiner too; a backslash is no escape yet."""
    assert clean(text, 100) == text


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\x1b[31mred\x1b[0m", r"\x1b[31mred\x1b[0m"),
        ("\x9b31m", r"\x9b31m"),
        ("a\rb\bc\x00d\x7f", r"a\rb\x08c\x00d\x7f"),
        ("safe\u202egnp.exe", r"safe\u202egnp.exe"),
        ("\u2066x\u2069\u200f", r"\u2066x\u2069\u200f"),
        ("one\u2028two\u2029\x85", r"one\u2028two\u2029\x85"),
        ("a\u200bb\ufeffc\u00add", r"a\u200bb\ufeffc\xadd"),
        ("\ud800 \udfff", r"\ud800 \udfff"),
        ("\U000e0041", r"\U000e0041"),
    ],
)
@pytest.mark.parametrize("multiline", [False, True])
def test_what_is_not_seen_is_escaped(text: str, shown: str, multiline: bool) -> None:
    """Controls, escapes of a terminal, bidi overrides, separators, lone surrogates, tags."""
    assert clean(text, 100, multiline=multiline) == shown


def test_lines_stay_where_they_are_wanted() -> None:
    """Line feeds and tabs are kept with ``multiline``; a carriage return never is."""
    assert clean("a\n\tb\r\n", 100) == r"a\n\tb\r\n"
    assert clean("a\n\tb\r\n", 100, multiline=True) == "a\n\tb\\r\n"


@pytest.mark.parametrize(
    ("text", "limit", "shown"),
    [
        ("abcdef", 6, "abcdef"),
        ("abcdef", 4, "abcd... [2 more]"),
        ("abcdef", 0, "... [6 more]"),
        ("abcdef", -1, "... [6 more]"),
        ("ab\x1bcd", 6, r"ab\x1b... [2 more]"),
        ("ab\x1bcd", 5, "ab... [3 more]"),
        ("\x1b\x1b\x1b", 9, r"\x1b\x1b... [1 more]"),
        ("\x1bbcdefgh", 6, r"\x1bbc... [5 more]"),
    ],
)
def test_text_is_cut_at_the_limit(text: str, limit: int, shown: str) -> None:
    """What is shown has at most ``limit`` characters, no half escape, and a count of the rest."""
    assert clean(text, limit) == shown


def test_a_large_text_costs_what_is_shown() -> None:
    """Ten million characters are not looked at."""
    assert clean("\x1b" * 10_000_000, 8) == r"\x1b\x1b... [9999998 more]"


def test_every_format_and_control_is_known() -> None:
    """By Python's own table of Unicode; the two joiners are the exceptions."""
    unseen = {"Cc", "Cf", "Cs", "Zl", "Zp"}
    letters = map(chr, range(sys.maxunicode + 1))
    kept = [c for c in letters if unicodedata.category(c) in unseen and clean(c, 100) == c]
    assert set(kept) <= {"\u200c", "\u200d"}


@given(text=anything, limit=st.integers(0, 100), multiline=st.booleans())
def test_whatever_comes_is_bounded_and_seen(text: str, limit: int, multiline: bool) -> None:
    """One line, encodable, within the limit; and clean text is left as it is."""
    shown = clean(text, limit, multiline=multiline)
    shown.encode()
    assert len(shown) <= limit + NOTE
    assert multiline or len(shown.splitlines()) <= 1
    assert clean(shown, 1000, multiline=multiline) == shown


@given(text=anything)
def test_what_fits_is_whole(text: str) -> None:
    """Where the escapes fit, nothing is left out."""
    shown = clean(text, 10 * len(text))
    assert shown == "".join(clean(letter, 10) for letter in text)

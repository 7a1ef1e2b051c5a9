"""Text of a peer, made safe to print and to log. A peer may write what it likes.

What moves a cursor, hides, reorders or breaks lines is shown as an escape, as ``repr`` does it;
letters of every script pass. This module must not know what the text is about.
"""

from __future__ import annotations

import re
from typing import Final

__all__ = ["clean"]

# Controls (C0, DEL, C1), the soft hyphen, Arabic and other invisible formats, zero-width space and
# direction marks, line and paragraph separators, embeddings and overrides, invisible operators and
# isolates, surrogates, the byte order mark, annotations, musical and shorthand formats, tags.
# The joiners U+200C and U+200D are no threat, and Persian, Hindi and emoji need them.
SEEN_BY_NOBODY: Final = (
    "\x00-\x08\x0b-\x1f\x7f-\x9f\xad\u0600-\u0605\u061c\u06dd\u070f\u0890\u0891\u08e2\u180e"
    "\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ud800-\udfff\ufeff\ufff9-\ufffb\ufffe\uffff"
    "\U000110bd\U000110cd\U00013430-\U0001345f\U0001bca0-\U0001bca3\U0001d173-\U0001d17a"
    "\U000e0000-\U000e007f"
)
UNSAFE_LINES: Final = re.compile(f"[{SEEN_BY_NOBODY}]")
UNSAFE_LINE: Final = re.compile(f"[\t\n{SEEN_BY_NOBODY}]")


def clean(text: str, limit: int, *, multiline: bool = False) -> str:
    """``text`` with all that is not seen escaped, in at most ``limit`` characters.

    What is left out is counted in a note behind them. ``multiline``: line feeds and tabs stay.
    """
    pattern = UNSAFE_LINES if multiline else UNSAFE_LINE
    limit = max(limit, 0)
    head = text[:limit]
    kept = fitting(head, limit, pattern)
    shown = pattern.sub(escape, head[:kept])
    rest = len(text) - kept
    return f"{shown}... [{rest} more]" if rest else shown


def fitting(text: str, room: int, pattern: re.Pattern[str]) -> int:
    """How many characters of ``text`` fill at most ``room`` once they are escaped."""
    grown = 0
    for match in pattern.finditer(text):
        begin = match.start()
        grows = len(escape(match)) - 1
        if begin + 1 + grown + grows > room:
            return min(begin, room - grown)
        grown += grows
    return min(len(text), room - grown)


def escape(match: re.Match[str]) -> str:
    """One character as Python would write it."""
    return match[0].encode("unicode_escape").decode("ascii")

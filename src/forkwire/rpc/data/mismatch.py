"""What is said when a value that arrived is not what an annotation says."""

from __future__ import annotations

from typing import Any, Final

__all__ = ["Mismatch", "described", "key_step", "kind_of", "wrong"]

LONGEST_STEP: Final = 60


class Mismatch(Exception):
    """A value that is not what was expected; the path grows while the containers are left."""

    def __init__(self, what: str) -> None:
        super().__init__(what)
        self.what = what
        self._steps: list[str] = []

    @property
    def is_deep(self) -> bool:
        """Whether it lies inside the value rather than being all of it."""
        return bool(self._steps)

    def inside(self, step: str) -> Mismatch:
        self._steps.append(step)
        return self

    def sentence(self, root: str) -> str:
        """``root`` names the whole value, a parameter for instance."""
        return f"{root}{''.join(reversed(self._steps))}: {self.what}"


def wrong(expected: str, value: object) -> Mismatch:
    return Mismatch(f"expected {expected}, got {kind_of(value)}")


def kind_of(value: object) -> str:
    """What a value is, in the words of whoever wrote the annotation."""
    return "None" if value is None else type(value).__name__


def described(annotation: Any) -> str:
    """An annotation as it was written."""
    if annotation is type(None):
        return "None"
    if isinstance(annotation, type) and not hasattr(annotation, "__origin__"):
        return annotation.__name__
    return str(annotation).replace("typing.", "").replace("collections.abc.", "")


def key_step(key: object) -> str:
    text = repr(key)
    return f"[{text}]" if len(text) <= LONGEST_STEP else f"[{text[:LONGEST_STEP]}...]"

"""Which call is being handled in this context, and so which tree of calls a new one is in."""

from __future__ import annotations

import os
from contextvars import ContextVar
from typing import Final

from ..links.link import InCall

__all__ = ["Inside", "handling", "may_wait", "new_tree", "tree_for_call"]


class Inside:
    """Stands for a call that is not handled here, but whose ``tree`` calls made here are in."""

    __slots__ = ("tree",)

    def __init__(self, tree: str) -> None:
        self.tree = tree


# The call that runs in this context; None outside of any.
handling: Final[ContextVar[InCall | Inside | None]] = ContextVar("forkwire_handling", default=None)


def tree_for_call() -> str:
    """What a call made here carries, so that it may run inside those that wait for it; or ""."""
    call = handling.get()
    return "" if call is None else tree_of(call)


def may_wait() -> bool:
    """Whether a call made here may wait for others to end: none of them waits for this one."""
    call = handling.get()
    return call is None or (isinstance(call, InCall) and not call.nested)


def tree_of(call: InCall | Inside) -> str:
    """The name of the tree of calls that ``call`` is in. It gets one when it is first needed."""
    if not call.tree:
        call.tree = os.urandom(8).hex()
    return call.tree


def new_tree() -> str:
    """For a call that does not run inside another, but makes calls while it is made."""
    return tree_for_call() or os.urandom(8).hex()

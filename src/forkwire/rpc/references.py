"""Names by which another interpreter finds what this one has.

Looks at finders and at what is imported already; imports nothing itself.
"""

from __future__ import annotations

import functools
import os
import sys
from typing import Any, Final

from ..process import guard_main
from .handlers.service import Service

__all__ = ["findable", "no_template", "reference_of"]

# Those of every interpreter. Others may be this program's own, and find nothing elsewhere; those
# of editable installations are set up by their site-packages, so every interpreter has them.
USUAL: Final = frozenset({"BuiltinImporter", "FrozenImporter", "PathFinder"})
EDITABLE: Final = "editable"

NOWHERE: Final = frozenset({"__main__", "__mp_main__"})

REMEMBERED: Final = 1024  # answers


def reference_of(service: object, local: Service | None) -> str | None:
    """The name by which a fresh interpreter finds ``service``; None where it would not."""
    name = service if isinstance(service, str) else local.reference if local else None
    return name if name and findable(name.partition(":")[0]) else None


def findable(module: str) -> bool:
    """Whether a fresh interpreter has ``module`` from where this one has it, or would."""
    if module in NOWHERE:
        return False
    loaded = sys.modules.get(module)
    if loaded is None:
        return True  # or nobody has it: the worker's error says so
    spec = getattr(loaded, "__spec__", None)
    path = tuple(sys.path)
    return spec is not None and found_at(module, spec.origin, path, tuple(map(id, sys.meta_path)))


@functools.lru_cache(REMEMBERED)
def found_at(module: str, origin: str | None, path: tuple[str, ...], finders: object) -> bool:
    """``path`` and ``finders`` are what the answer depends on."""
    parent, _, _ = module.rpartition(".")
    if parent and not findable(parent):
        return False
    where = getattr(sys.modules.get(parent), "__path__", None) if parent else None
    for finder in sys.meta_path:
        if not is_everywheres(finder):
            continue
        try:
            spec = finder.find_spec(module, where)
        except Exception:  # of somebody's finder
            continue
        if spec is not None:
            return same(spec.origin, origin)
    return False


def is_everywheres(finder: Any) -> bool:
    kind = finder if isinstance(finder, type) else type(finder)
    if EDITABLE in kind.__module__:
        return True
    return kind.__name__ in USUAL and kind.__module__.startswith(("_frozen_", "importlib."))


def same(first: str | None, second: str | None) -> bool:
    if first == second:
        return True
    return first is not None and second is not None and os.path.abspath(first) == second


def no_template() -> str:
    """Why no worker of this program can come from a template, or ""."""
    if not sys.executable or getattr(sys, "frozen", False):
        return "this program has no Python interpreter that could be executed"
    if not can_watch():
        return "this system has no pidfd (Linux 5.3)"
    return ""


@functools.cache
def can_watch() -> bool:
    fd = guard_main.open_exit_fd(os.getpid())
    if fd >= 0:
        os.close(fd)
    return fd >= 0

"""Which locks other threads can be seen to hold, without taking one and without running their code.

What C holds is not seen, nor what no frame names: no finding is no proof. Of a plain lock only that
it is locked can be known, of an RLock also by whom.
"""

from __future__ import annotations

import _thread
import contextlib
import re
import sys
import types
import weakref
from collections.abc import Iterator, Mapping
from itertools import islice
from types import FrameType
from typing import Any, Final, TypeAlias

from . import descriptors

__all__ = ["OURS", "Frames", "Names", "attributes_of", "held_locks", "package_of", "place_of",
           "stack_of"]  # fmt: skip

# Enough for what people write, and an end to what may be endless.
DEPTH: Final = 64  # frames of a thread
BREADTH: Final = 64  # names in a frame or an object, handlers of logs, modules being imported
LOOKS: Final = 20_000  # in all, at what the code of threads names

LOCK: Final = type(_thread.allocate_lock())
RLOCK: Final = type(_thread.RLock())
OWNER: Final = re.compile(r"owner=(\d+)")

# What answers an object's ``__dict__`` without code of its class's; the second is that of modules.
C_DESCRIPTORS: Final = (types.GetSetDescriptorType, types.MemberDescriptorType)

# Locked as long as somebody waits, or a thread runs: so these work, and nobody else wants them.
HARMLESS: Final = frozenset({"waiter", "_handle", "_tstate_lock", "_worker_lock"})

# In our code locks are bells that ring once, and nobody's else.
OURS: Final = __name__.partition(".")[0]

# Threads by their number: where each is, and how it is called.
Frames: TypeAlias = Mapping[int, FrameType]
Names: TypeAlias = Mapping[int, str]

# A lock, or `HELD` for one that has no object; and what it is called.
Candidates: TypeAlias = Iterator[tuple[object, str]]
HELD: Final = object()


def held_locks(frames: Frames, names: Names) -> tuple[str, ...]:
    """Those that the threads of ``frames`` seem to hold. Never raises, never waits."""
    found: dict[object, str] = {}
    in_threads = islice(of_threads(frames, names), LOOKS)
    for candidates in (of_logging(), of_c(), of_imports(names), in_threads):
        with contextlib.suppress(Exception):  # changed while we looked, or not as we know it
            for lock, what in candidates:
                key = what if lock is HELD else id(lock)
                if key not in found and (lock is HELD or is_held(lock, frames)):
                    owner = names.get(owner_of(lock))
                    found[key] = f"{what}, held by {owner}" if owner else what
    return tuple(found.values())


def is_held(lock: object, frames: Frames) -> bool:
    """Whether it is a lock, and locked by a thread of ``frames`` as far as that can be known."""
    if type(lock) is RLOCK:
        return owner_of(lock) in frames
    held: bool = type(lock) is LOCK and lock.locked()
    return held


def owner_of(lock: object) -> int:
    """The thread that holds an RLock, which only its text says; 0 for any other, and for nobody."""
    owner = OWNER.search(repr(lock)) if type(lock) is RLOCK else None
    return int(owner[1]) if owner else 0


# -- where locks are ----------------------------------------------------------------------------


def of_logging() -> Candidates:
    """That of the module, and of each handler."""
    logging: Any = sys.modules.get("logging")
    if logging is None:
        return
    yield logging._lock, "the lock of logging"
    for reference in logging._handlerList[:BREADTH]:
        handler = reference() if type(reference) is weakref.ref else reference
        yield attributes_of(handler).get("lock"), f"the lock of logging's {type(handler).__name__}"


def of_c() -> Candidates:
    """What guards the buffers of C's stdout and stderr."""
    for stream in descriptors.busy_c_streams():
        yield HELD, f"the buffer of C's {stream}"


def of_imports(names: Names) -> Candidates:
    """Modules that a thread is importing: who imports them in the child waits for it."""
    bootstrap: Any = sys.modules["_frozen_importlib"]
    for name, reference in islice(list(bootstrap._module_locks.items()), BREADTH):
        owner = names.get(attributes_of(reference()).get("owner") or 0)
        if owner:
            yield HELD, f"the import of {name}, held by {owner}"


def of_threads(frames: Frames, names: Names) -> Candidates:
    """What the code of each thread names: its locals, its globals, and what these have, one level.

    A local stays alive in Python before 3.13, once it was looked at, until its function ends.
    """
    for number, frame in frames.items():
        for each in stack_of(frame):
            if package_of(each) == OURS:
                continue
            where = f"in {names.get(number, number)} at {place_of(each)}"
            for name, value in names_in(each):
                if name in HARMLESS:
                    continue
                yield value, f"{name} {where}"
                for inner, part in islice(list(attributes_of(value).items()), BREADTH):
                    if inner not in HARMLESS:
                        yield lock_in(part), f"{name}.{inner} {where}"


def names_in(frame: FrameType) -> Iterator[tuple[str, object]]:
    found = frame.f_locals
    if type(found).__module__ == "builtins":  # a class body's may be of any class
        yield from islice(list(found.items()), BREADTH)
    for name in frame.f_code.co_names[:BREADTH]:
        if name in frame.f_globals:
            yield name, frame.f_globals[name]


def lock_in(value: object) -> object:
    """The lock of a condition, which a queue and a semaphore have; else ``value`` itself."""
    return attributes_of(value).get("_lock", value) if is_condition(value) else value


def is_condition(value: object) -> bool:
    kind = type(value)
    return (kind.__module__, kind.__qualname__) == ("threading", "Condition")


def attributes_of(value: object) -> Mapping[Any, Any]:
    """What an object holds of its own; {} where to ask could run code of its class's."""
    for kind in type.__dict__["__mro__"].__get__(type(value)):
        own = type.__dict__["__dict__"].__get__(kind).get("__dict__")
        if own is not None:
            found = own.__get__(value) if type(own) in C_DESCRIPTORS else None
            return found if type(found) is dict else {}
    return {}


# -- where threads are --------------------------------------------------------------------------


def stack_of(frame: FrameType | None) -> Iterator[FrameType]:
    """From the innermost on outwards."""
    depth = 0
    while frame is not None and depth < DEPTH:
        yield frame
        frame, depth = frame.f_back, depth + 1


def package_of(frame: FrameType) -> str:
    return str(frame.f_globals.get("__name__")).partition(".")[0]


def place_of(frame: FrameType) -> str:
    code = frame.f_code
    return f"{code.co_filename}:{frame.f_lineno}, {code.co_name}()"

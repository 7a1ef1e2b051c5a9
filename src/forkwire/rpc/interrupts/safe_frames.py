"""Where in a function's code an exception out of nowhere can be raised.

It must get to the call, and leave nothing half done that outlives it. The frames on the stack tell.
"""

from __future__ import annotations

from types import FrameType
from typing import Final

__all__ = ["entry_below", "is_safe", "user_frame"]

PACKAGE: Final = __name__.partition(".")[0]
INTERRUPTING: Final = f"{__name__.rpartition('.')[0]}.interrupting"
ENTRIES: Final = ("run", "step")  # its methods, from which functions are called

# What keeps books: below other code it is finished first. The last two run as callbacks, in which
# an exception is swallowed.
UNSAFE_WAITING: Final = (
    *(f"{PACKAGE}.{part}." for part in ("plugin", "pool", "rpc", "wire")),
    "weakref.",
    "_weakrefset.",
)
UNSAFE: Final = (*UNSAFE_WAITING, f"{PACKAGE}.process.")
WAITING: Final = f"{PACKAGE}.process.waiting"  # where the base layer blocks, and may be cut short
# A function that waits for a worker of its own: what Ctrl-C may cut short there, we may too.
BELL: Final = f"{PACKAGE}.rpc.links.drivers", "wait"
CALLING_MODULES: Final = (
    "caller.blocking",
    "caller.feeding",
    "caller.proxy",
    "caller.sync_calls",
    "caller.sync_streams",
    "links.drivers",
    "links.poll_thread",
    "sync_caller",
    "sync_worker",
)
CALLING: Final = frozenset(f"{PACKAGE}.rpc.{name}." for name in CALLING_MODULES)
# What these have just taken, a lock above all, they would never give back. What they call may be
# others' and run for long: so only where they themselves are at work.
BLOCK_ENDS: Final = ("__enter__", "__exit__")
UNSAFE_INNERMOST: Final = frozenset(
    {
        *((module, name) for module in ("contextlib", "threading") for name in BLOCK_ENDS),
        *(("logging", name) for name in ("acquire", "handle", "release")),
        *(("threading", name) for name in ("_acquire_restore", "_release_save")),
    }
)


def is_safe(frame: FrameType | None) -> bool:
    """Whether an exception raised in ``frame`` gets to the call, and leaves nothing half done."""
    name = name_of(frame)
    if frame is None or (name, frame.f_code.co_name) in UNSAFE_INNERMOST:
        return False
    if (name, frame.f_code.co_name) == BELL:
        return entry_below(frame, UNSAFE, CALLING) is not None
    return entry_below(frame, UNSAFE_WAITING if name == WAITING else UNSAFE) is not None


def entry_below(
    frame: FrameType | None,
    unsafe: tuple[str, ...] = UNSAFE,
    safe: frozenset[str] = frozenset(),
) -> FrameType | None:
    """The frame of ``run`` or ``step`` that ``frame`` is part of, if nothing between is unsafe.

    Our own code that was given to ``run`` itself is part of the call.
    """
    unfinished = False
    while frame is not None:
        if is_entry(frame):
            return frame
        code = frame.f_code
        if code.co_name == "__del__" or code.co_filename.startswith("<frozen importlib"):
            return None
        module = f"{name_of(frame)}."
        if module.startswith(unsafe) and module not in safe:
            unfinished = True
        elif unfinished:
            return None
        frame = frame.f_back
    return None  # another greenlet's


def user_frame(frame: FrameType | None) -> FrameType | None:
    """The first that is not ours."""
    while frame is not None and f"{name_of(frame)}.".startswith(UNSAFE):
        if is_entry(frame):
            break
        frame = frame.f_back
    return frame


def is_entry(frame: FrameType) -> bool:
    return frame.f_code.co_name in ENTRIES and name_of(frame) == INTERRUPTING


def name_of(frame: FrameType | None) -> object:
    """The module that ``frame`` runs code of."""
    return None if frame is None else frame.f_globals.get("__name__")

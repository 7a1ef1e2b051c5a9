"""What the workers of a `ProcessExecutor` serve: calls that come pickled.

Imports little: a fresh worker is to be there soon. Knows no executor.
"""

from __future__ import annotations

import logging
import os
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from ..process.cancelling import Terminated
from ..rpc.exceptions import describing
from ..rpc.interrupts.interrupting import Interrupted
from .executor_claims import Claiming
from .pickling import Packed, label_of, pack, unpack

__all__ = ["run", "run_large", "set_up"]

# What a reply begins with.
VALUE: Final = 0
RAISED: Final = 1  # by the function
UNREAD: Final = 2  # the call could not be unpickled, so nothing was run
NOT_BEGUN: Final = 3  # it was taken back

LOGGER: Final = "concurrent.futures"  # where programs that come from there look for it

# Not for the function to answer: the worker's own.
OURS: Final = (Interrupted, Terminated)


class Here:
    """What the executor said of this worker."""

    inherited = False
    claiming = Claiming()


def set_up(packed: Packed) -> list[Any]:
    """Before the first call: the key of multiprocessing's managers, then the initializer.

    Answers whether calls are claimed.
    """
    try:
        key, Here.inherited, claims, initializer, args = unpack(packed)
    except OURS:
        raise
    except BaseException as error:
        return failure(UNREAD, error)
    if key:
        import multiprocessing.process

        multiprocessing.process.current_process().authkey = key
    Here.claiming = Claiming(claims)
    try:
        initialize(initializer, args)
    except OURS:
        raise
    except BaseException as error:
        return failure(RAISED, error)
    return [VALUE, pack(Here.claiming.works)]


def initialize(initializer: Callable[..., object] | None, args: Sequence[object]) -> None:
    """Call it; what it raises is logged as by concurrent.futures, too."""
    if initializer is None:
        return
    try:
        initializer(*args)
    except OURS:
        raise
    except BaseException:
        logging.getLogger(LOGGER).critical("Exception in initializer:", exc_info=True)
        raise


def run(number: int, packed: bytes) -> list[Any]:
    """Call what was packed; ``[VALUE, result]``, or what `failure` answers, or ``[NOT_BEGUN]``.

    ``number``: of the call, to claim it by. The annotations are those that are checked quickest.
    """
    return called(packed) if Here.claiming.claim(number) else [NOT_BEGUN]


def run_large(number: int, packed: Packed, path: Sequence[str]) -> list[Any]:
    """The same with buffers beside the pickle, or where the program's :data:`sys.path` is new."""
    follow(path)
    return called(packed) if Here.claiming.claim(number) else [NOT_BEGUN]


def called(packed: Packed) -> list[Any]:
    try:
        function, args, kwargs = unpack(packed)
    except OURS:
        raise
    except BaseException as error:
        return failure(UNREAD, error)
    del packed
    try:
        result = function(*args, **kwargs)
    except OURS:
        raise
    except BaseException as error:
        return failure(RAISED, error)
    del args, kwargs
    try:
        return [VALUE, pack(result, inherited=Here.inherited)]
    except OURS:
        raise
    except BaseException as error:
        error.add_note(
            f"forkwire: {label_of(function)} did return, but its result, of type "
            f"{label_of(type(result))}, cannot be pickled"
        )
        return failure(RAISED, error)


def follow(path: Sequence[str]) -> None:
    """Find what the program finds now, and what this worker found before."""
    known = {*sys.path}
    first = next((at for at, entry in enumerate(path) if entry in known), len(path))
    sys.path[:0] = [entry for entry in path[:first] if entry not in known]
    sys.path += [entry for entry in path[first:] if entry not in known]


def run_chunk(function: Callable[..., object], chunk: Sequence[Sequence[object]]) -> list[object]:
    """Several calls of one function as one."""
    return [function(*args) for args in chunk]


def set_environment(values: Mapping[str, str]) -> None:
    """An initializer: variables that libraries look at when they are imported."""
    os.environ.update(values)


def failure(kind: int, error: BaseException) -> list[Any]:
    """``[kind, error, its traceback, what is left of it where it cannot be rebuilt]``."""
    if error.__traceback__ is not None:
        error.__traceback__ = error.__traceback__.tb_next  # ours
    text = "".join(traceback.format_exception(error))
    described = describing.describe(error, code=describing.HANDLER_RAISED)
    try:
        packed = pack(error, inherited=Here.inherited)
    except OURS:
        raise
    except BaseException:
        packed = b""
    return [kind, packed, text, described]

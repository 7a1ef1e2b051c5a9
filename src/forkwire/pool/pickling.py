"""Pickles of calls and results, made and read on both sides of an executor.

What a fresh interpreter can import goes by its name. What it cannot (lambdas, nested functions, all
of ``__main__`` and of notebooks, modules that are on nobody's path) goes by value, where
cloudpickle is installed. Large buffers go beside the pickle, not copied into it. Knows of no
worker; a worker imports it too, so it is light.
"""

from __future__ import annotations

import copyreg
import io
import pickle
import sys
import threading
from types import CodeType, FunctionType, ModuleType
from typing import Any, Final, TypeAlias

from ..errors import ValueEncodeError
from ..rpc.references import findable

__all__ = ["NotPicklableError", "Packed", "label_of", "pack", "unpack"]

PROTOCOL: Final = 5

NO_FILE: Final = "<dynamic-code>"  # cloudpickle's

# Smaller buffers cost more beside the pickle than in it; larger ones are attachments of a call.
LEAST_BUFFER: Final = 16384  # bytes

# More than so many are copied into it after all: a message has room for 4096.
MOST_BUFFERS: Final = 1024

# What holds nothing else, and has no buffer.
PLAIN: Final = frozenset((bool, float, int, str, type(None)))

Packed: TypeAlias = "bytes | list[Any]"
"""A pickle; with buffers beside it ``[pickle, [whether each may be written to], *buffers]``."""


class NotPicklableError(ValueEncodeError, pickle.PicklingError):
    """A function or class cannot be sent to a worker. The message names it, and two ways out."""


def pack(value: object, *, inherited: bool = False) -> Packed:
    """Pickle ``value``. Raises what its parts raise, and :exc:`NotPicklableError`.

    ``inherited``: the other process was forked from this one, or is what this was forked from, so
    that without cloudpickle ``__main__`` goes by name.
    """
    if type(value) in PLAIN:
        return pickle.dumps(value, PROTOCOL)
    beside = Beside()
    stream = io.BytesIO()
    try:
        ByName(stream, PROTOCOL, buffer_callback=beside).dump(value)
        data = stream.getvalue()
    except NotByNameError as found:
        beside.buffers.clear()
        data = pack_by_value(value, beside, found.thing, inherited)
    if not beside.buffers:
        return data
    views = [buffer.raw() for buffer in beside.buffers]
    return [data, [not view.readonly for view in views], *views]


def unpack(packed: Packed) -> Any:
    """What was packed. Raises whatever the code of its classes raises."""
    if isinstance(packed, bytes):
        return pickle.loads(packed)
    data, writable, *buffers = packed
    return pickle.loads(
        data,
        buffers=[
            bytearray(buffer) if may_write else buffer
            for buffer, may_write in zip(buffers, writable, strict=True)
        ],
    )


def label_of(function: Any) -> str:
    """What a person calls ``function``; never raises."""
    try:
        function = getattr(function, "func", function)  # of a partial
        name = getattr(function, "__qualname__", None) or type(function).__qualname__
        module = getattr(function, "__module__", None)
        return f"{module}.{name}" if module and module != "builtins" else str(name)
    except Exception:
        return "a function"


class Beside:
    """Takes the buffers that are not to be copied into the pickle."""

    def __init__(self) -> None:
        self.buffers: list[pickle.PickleBuffer] = []

    def __call__(self, buffer: pickle.PickleBuffer) -> bool:
        """True: keep it inside."""
        if len(self.buffers) >= MOST_BUFFERS:
            return True
        try:
            if buffer.raw().nbytes < LEAST_BUFFER:
                return True
        except BufferError:  # not contiguous
            return True
        self.buffers.append(buffer)
        return False


class NotByNameError(Exception):
    """``thing`` cannot be found by its name over there."""

    def __init__(self, thing: Any) -> None:
        super().__init__(thing)
        self.thing: Final = thing


class ByName(pickle.Pickler):
    """Raises `NotByNameError` at the first function or class that has no name over there."""

    def __init__(self, stream: io.BytesIO, protocol: int, *, buffer_callback: Beside) -> None:
        super().__init__(stream, protocol, buffer_callback=buffer_callback)
        add_reducers(self)

    def reducer_override(self, thing: Any) -> Any:
        if isinstance(thing, (FunctionType, type)) and not has_name(thing):
            raise NotByNameError(thing)
        return NotImplemented


def add_reducers(pickler: Any) -> None:
    """Pickle as multiprocessing's queues do, whose reducers libraries register at."""
    reduction = sys.modules.get("multiprocessing.reduction")
    if reduction is not None:
        more = getattr(reduction.ForkingPickler, "_extra_reducers", {})
        pickler.dispatch_table = {**copyreg.dispatch_table, **more}


def pack_by_value(value: object, beside: Beside, thing: Any, inherited: bool) -> bytes:
    """With cloudpickle, if it is there."""
    try:
        from cloudpickle import CloudPickler
    except ImportError:
        if inherited and "<" not in thing.__qualname__:
            return pickle.dumps(value, PROTOCOL, buffer_callback=beside)
        raise NotPicklableError(no_name(thing)) from None
    del CloudPickler
    return ByValue().dump(value, beside)


def no_name(thing: Any) -> str:
    if "<" in thing.__qualname__:
        why = "it is no top-level function or class of a module"
    elif thing.__module__ == "__main__":
        why = "it is defined in __main__, which workers do not run again"
    else:
        why = f"a fresh interpreter does not find it in a module {thing.__module__!r}"
    return (
        f"{label_of(thing)} cannot be sent to a worker by its name: {why}. Move it to a module "
        "that can be imported, or install cloudpickle to send it by value (pip install "
        "'forkwire[executor]')"
    )


class ByValue:
    """cloudpickle, told of the modules that only this process has."""

    # What is registered with cloudpickle is so for the whole process.
    lock: Final = threading.RLock()

    def __init__(self) -> None:
        self.registered: Final[dict[str, ModuleType]] = {}

    def dump(self, value: object, beside: Beside) -> bytes:
        import cloudpickle

        outer = self

        class Pickler(cloudpickle.CloudPickler):  # type: ignore[misc,unused-ignore]
            def reducer_override(self, obj: Any) -> Any:
                if isinstance(obj, (FunctionType, type)):
                    outer.register(obj)
                elif isinstance(obj, CodeType):
                    return with_file(obj, self.dispatch_table[CodeType](obj))
                return super().reducer_override(obj)

        stream = io.BytesIO()
        with self.lock:
            try:
                Pickler(stream, PROTOCOL, buffer_callback=beside).dump(value)
            finally:
                for module in self.registered.values():
                    cloudpickle.unregister_pickle_by_value(module)
        return stream.getvalue()

    def register(self, thing: Any) -> None:
        """Have the module of ``thing`` go by value, if nobody finds it over there."""
        import cloudpickle

        name = thing.__module__
        module = sys.modules.get(name) if isinstance(name, str) else None
        if module is None or name == "__main__" or name in self.registered or is_findable(name):
            return
        if name not in cloudpickle.list_registry_pickle_by_value():
            cloudpickle.register_pickle_by_value(module)
            self.registered[name] = module


def with_file(code: CodeType, reduced: Any) -> Any:
    """Cloudpickle leaves out which file code is of: tracebacks had no lines."""
    make, parts, *rest = reduced
    return (make, tuple(code.co_filename if p == NO_FILE else p for p in parts), *rest)


def has_name(thing: Any) -> bool:
    """Whether ``thing``, a function or class, is what its name leads to, over there too."""
    module = thing.__module__
    if module == "builtins" or not isinstance(module, str):
        return True  # what has no module is pickle's to find
    if not is_findable(module):
        return False
    found: Any = sys.modules[module]
    for part in thing.__qualname__.split("."):
        found = getattr(found, part, None)
    return found is thing


def is_findable(module: str) -> bool:
    """Whether a fresh interpreter finds the very module that is here."""
    return module in sys.modules and findable(module)

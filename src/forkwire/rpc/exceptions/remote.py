"""The classes of remote errors: each is a `RemoteError`, and one exception of a list.

The list holds the builtins, a few of the standard library, and what somebody registered. No
module is imported for it. See `rebuilding` for what is made of them.
"""

from __future__ import annotations

import builtins
import sys
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Final, TypeVar, cast

from ...errors import CallError, RemoteError, UsageError

__all__ = ["FIELDS", "allowed_name", "bare", "base_of", "fields_of", "is_plain", "is_rebuilt",
           "is_registered", "known_class", "plain_args", "register", "remake"]  # fmt: skip

# What is not plain data of about this size says nothing in ``args``.
ARGS: Final = 16
ARG_SIZE: Final = 4096
ARG_BITS: Final = 1024
SCALARS: Final = (type(None), bool, int, float, str, bytes)

# What a builtin knows beside its arguments. All of these can be set.
FIELDS: Final[Mapping[type[BaseException], tuple[str, ...]]] = {
    AttributeError: ("name",),
    NameError: ("name",),
    ImportError: ("name", "path"),
    OSError: ("filename", "filename2"),
}

# They mean something to the machinery between the handler and whoever catches it.
NOT_RAISED: Final = (StopIteration, StopAsyncIteration, BaseExceptionGroup)

# Of the standard library, where they can be made from their ``args``; if imported already.
STANDARD: Final = frozenset(
    {
        "_queue.Empty",
        "asyncio.queues.QueueEmpty",
        "asyncio.queues.QueueFull",
        "configparser.Error",
        "queue.Full",
        "sqlite3.DatabaseError",
        "sqlite3.IntegrityError",
        "sqlite3.OperationalError",
        "sqlite3.ProgrammingError",
        "struct.error",
        "subprocess.CalledProcessError",
        "subprocess.TimeoutExpired",
        "zipfile.BadZipFile",
        "zlib.error",
    }
)

Error = TypeVar("Error", bound=Exception)


def is_rebuilt(found: object) -> bool:
    """Whether a builtin is one to mix with `RemoteError`."""
    return (
        isinstance(found, type)
        and issubclass(found, Exception)
        and found is not Exception
        and not issubclass(found, NOT_RAISED)
    )


registered: dict[str, type[Exception]] = {
    f"builtins.{found.__name__}": found for found in vars(builtins).values() if is_rebuilt(found)
}
names: dict[type, str] = {found: name for name, found in registered.items()}


def register(cls: type[Error]) -> type[Error]:
    """Let a class of yours come back as itself, and as `RemoteError`. May be used as a decorator.

    Register it where it is caught. It has the ``args`` and the public attributes that it had, as
    far as they were numbers, texts, bytes and the like. Its constructor is called with the
    ``args`` that the other side sent: do nothing in it that you would not have the other side do.
    One that takes something else is not called, and the attributes are set without it.

    Raises :exc:`UsageError`.
    """
    if not is_rebuilt(cls) or issubclass(cls, CallError):
        raise UsageError(f"register() takes a class of exceptions of yours, no group, not {cls!r}")
    try:
        remote_class(cls)
    except TypeError as error:
        raise UsageError(f"{cls.__name__} cannot be mixed with RemoteError: {error}") from None
    registered[full_name(cls)] = cls
    names[cls] = full_name(cls)
    return cls


def full_name(cls: type) -> str:
    """``"builtins.ValueError"``."""
    return f"{cls.__module__}.{cls.__qualname__}"


def allowed_name(cls: type) -> str:
    """Under which name a class is on the lists; "" where it is not."""
    return names.get(cls, "")


def is_registered(cls: type) -> bool:
    """Whether somebody registered it: it is none of Python's."""
    return cls in names and cls.__module__ != "builtins"


def known_class(name: object) -> type[Exception] | None:
    """The class of that name, if it is on a list and imported."""
    if not isinstance(name, str):
        return None
    if name in STANDARD:
        module, _, attribute = name.rpartition(".")
        found = getattr(sys.modules.get(module), attribute, None)
        return found if is_rebuilt(found) else None
    return registered.get(name)


class MixedError(RemoteError):
    """A `RemoteError` that is another exception too: it travels as that one and its state."""

    def __reduce__(self) -> tuple[Any, ...]:
        base = base_of(type(self))
        extra = {name: getattr(self, name) for name in fields_of(base)}
        return again, (base, self.args), {**extra, **self.__dict__}


class MixedGroup(MixedError):
    """An exception group. What ``except*`` splits off is remote as well."""

    def derive(self, errors: Any, /) -> RemoteError:
        state = {name: value for name, value in vars(self).items() if name != "__notes__"}
        return remake(base_of(type(self)), (self.message, list(errors)), state)


remote_classes: dict[type, type[RemoteError]] = {}


def remote_class(base: type[Exception]) -> type[RemoteError]:
    """The class that is both a `RemoteError` and a ``base``: one of each for ever."""
    if (found := remote_classes.get(base)) is not None:
        return found
    mixed = MixedGroup if issubclass(base, ExceptionGroup) else MixedError
    name = full_name(base).removeprefix("builtins.")
    metaclass: Any = type(base)
    made = metaclass(
        f"RemoteError[{base.__name__}]",  # Python's repr of an exception begins after the last dot
        (mixed, base),
        {
            "__module__": "forkwire",
            "__qualname__": f"RemoteError[{name}]",
            "__doc__": f"The handler raised a {name}.",
        },
    )
    return remote_classes.setdefault(base, made)


def base_of(cls: type[RemoteError]) -> type[Exception]:
    return cast("type[Exception]", cls.__bases__[1])


def fields_of(base: type[BaseException]) -> tuple[str, ...]:
    return next((found for cls, found in FIELDS.items() if issubclass(base, cls)), ())


def remake(
    base: type[Exception],
    args: tuple[object, ...],
    state: Mapping[str, object] = MappingProxyType({}),
) -> RemoteError:
    """Make one without `RemoteError.__init__`, whose arguments are others."""
    cls = remote_class(base)
    # MemoryError keeps spare objects of its own, and refuses to make one of a mixed class.
    maker: Any = Exception if issubclass(base, MemoryError) else base
    error = maker.__new__(cls, *args)
    vars(error).update(state)
    cast("Any", base).__init__(error, *args)
    return cast("RemoteError", error)


def bare(
    base: type[Exception],
    args: tuple[object, ...],
    state: Mapping[str, object] = MappingProxyType({}),
) -> RemoteError:
    """Make one whose constructor takes something else than its ``args``, without calling it."""
    cls = remote_class(base)
    builtin: Any = next(found for found in base.__mro__ if found.__module__ == "builtins")
    error = (Exception if issubclass(base, MemoryError) else builtin).__new__(cls, *args)
    builtin.__init__(error, *args)
    vars(error).update(state)
    return cast("RemoteError", error)


def again(base: type[Exception], args: tuple[object, ...]) -> RemoteError:
    """For pickle and copy: its attributes are set after that."""
    try:
        return remake(base, args)
    except Exception:
        if not is_registered(base):
            raise
        return bare(base, args)


def is_plain(value: object) -> bool:
    """Whether it is a scalar, none of its subclasses, and short."""
    if type(value) is int:
        return value.bit_length() <= ARG_BITS
    return type(value) in SCALARS and (
        not isinstance(value, (str, bytes)) or len(value) <= ARG_SIZE
    )


def plain_args(value: object, depth: int = 0) -> tuple[object, ...] | None:
    """Short scalars and tuples of them, or None. No subclass: it may lie.

    A list is a tuple that has travelled.
    """
    if type(value) not in (list, tuple):
        return None
    items = cast("list[object]", value)
    if len(items) > ARGS or depth > 1:
        return None
    plain: list[object] = []
    for item in items:
        if is_plain(item):
            plain.append(item)
        elif (inner := plain_args(item, depth + 1)) is not None:
            plain.append(inner)
        else:
            return None
    return tuple(plain)

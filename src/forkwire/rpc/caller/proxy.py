"""Typed stubs: an object with the methods of a Protocol or class, each of which calls a worker.

How a call is made is given by the front; knows of no workers, links or loops. What cannot work is
refused when the stub is made.
"""

from __future__ import annotations

import functools
import inspect
import typing
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final, NoReturn, Protocol, TypeVar, cast

from ...errors import InvalidArgumentsError, UsageError
from ...wire.text import clean
from ..data.kinds import (
    STREAMED,
    Kind,
    is_a,
    kind_of,
    may_stream,
    signature_text,
    stream_kind,
)
from ..data.shape import Shape
from ..exceptions.describing import suggestions
from ..handlers.targets import is_protocol, not_offered, public_methods

__all__ = ["Invoke", "proxy"]

T = TypeVar("T")

# The peer's name for its service, in messages.
_SHOWN: Final = 60
_POSITIONAL: Final = (
    inspect.Parameter.POSITIONAL_ONLY,
    inspect.Parameter.POSITIONAL_OR_KEYWORD,
)


class Invoke(Protocol):
    """A front's way to call: answers what the stub's method is to answer."""

    def __call__(
        self, name: str, shape: Shape, kind: Kind, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any: ...


def proxy(
    protocol: Callable[..., T],
    invoke: Invoke,
    *,
    service: str = "the worker",
    offered: Mapping[str, str] | None = None,
) -> T:
    """An object whose methods are those of ``protocol``, a Protocol or a class.

    ``kind`` of each, as ``invoke`` gets it, is the protocol's; where that leaves open whether a
    function is streamed, it is what ``offered`` says: the kinds by name that the worker announced,
    empty or None where they are unknown. Raises `UsageError` where the two do not fit.
    """
    owner: Any = typing.get_origin(protocol) or protocol
    if not is_a(owner, type):
        raise UsageError(
            f"proxy() takes a Protocol or a class, not {type(protocol).__name__}: "
            "write the worker's methods as a class that inherits from typing.Protocol"
        )
    methods = public_methods(owner)
    _check_members(owner, methods)
    service = clean(service, _SHOWN)
    stub = _Stub(f"{owner.__qualname__} of {service}", owner)
    for name, attribute in methods.items():
        kind = _agreed_kind(owner, name, attribute, service, offered)
        # Bound to the stub, so that its signature is without `self`.
        bound = cast("Any", attribute).__get__(stub, owner)
        stub.__dict__[name] = _method(name, bound, kind, invoke)
    return cast("T", stub)


class _Stub:
    """Holds its methods as plain attributes, which are found at once, and takes no others."""

    __slots__ = ("__dict__", "__weakref__", "_forkwire_owner", "_forkwire_title")

    def __init__(self, title: str, owner: type) -> None:
        object.__setattr__(self, "_forkwire_title", title)
        object.__setattr__(self, "_forkwire_owner", owner.__qualname__)

    def __getattr__(self, name: str) -> NoReturn:
        if name[:1] == "_":
            raise AttributeError(f"a stub has no {name}", name=name, obj=self)
        message = not_offered(self._forkwire_owner, name, self.__dict__, "has")
        # Told no name, the interpreter does not add a suggestion of its own.
        raise AttributeError(message, name=None, obj=None)

    def __setattr__(self, name: str, value: object) -> NoReturn:
        raise AttributeError(f"{self!r} is a stub: its attributes cannot be set")

    def __delattr__(self, name: str) -> NoReturn:
        raise AttributeError(f"{self!r} is a stub: its attributes cannot be deleted")

    def __dir__(self) -> Iterable[str]:
        return sorted(self.__dict__)

    def __repr__(self) -> str:
        return f"<{self._forkwire_title}>"

    def __reduce__(self) -> NoReturn:
        raise UsageError(f"{self!r} belongs to its worker: it cannot be copied or pickled")


def _method(name: str, bound: Any, kind: Kind, invoke: Invoke) -> Callable[..., Any]:
    shape = Shape.of(bound)
    check = _checker(bound, shape.signature)

    def method(*args: Any, **kwargs: Any) -> Any:
        check(args, kwargs)
        return invoke(name, shape, kind, args, kwargs)

    functools.update_wrapper(method, bound, updated=())
    # Found by inspect.signature before __wrapped__, which would keep the class's own function.
    method.__signature__ = shape.signature  # type: ignore[attr-defined]
    del method.__wrapped__  # type: ignore[attr-defined]
    return method


def _checker(
    function: Any, signature: inspect.Signature
) -> Callable[[tuple[Any, ...], dict[str, Any]], None]:
    least, most = _positional_range(signature)

    def check(args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if not kwargs and least <= len(args) <= most:
            return
        try:
            signature.bind(*args, **kwargs)
        except TypeError as error:
            shown = f"{function.__name__}{signature_text(function)}"
            raise InvalidArgumentsError(f"{shown}: {error}; nothing was sent") from None

    return check


def _positional_range(signature: inspect.Signature) -> tuple[int, float]:
    """How few and how many arguments fit by position alone; an empty range where none do."""
    least, most = 0, 0.0
    for parameter in signature.parameters.values():
        required = parameter.default is parameter.empty
        if parameter.kind in _POSITIONAL:
            least += required
            most += 1
        elif parameter.kind is parameter.VAR_POSITIONAL:
            most = float("inf")
        elif parameter.kind is parameter.KEYWORD_ONLY and required:
            return 1, 0
    return least, most


def _check_members(owner: type, methods: Mapping[str, object]) -> None:
    if not methods:
        raise UsageError(f"{owner.__qualname__} has no public methods: nothing could be called")
    if not is_protocol(owner):
        return
    for base in owner.__mro__[:-1]:
        members = {**_annotated(base), **vars(base)} if is_protocol(base) else {}
        for name in members:
            if name[0] != "_" and name not in methods:
                raise UsageError(
                    f"{owner.__qualname__}.{name} is not a method: a worker's attributes cannot be "
                    f"read. Leave it out, or write it as a method"
                )


def _annotated(owner: type) -> dict[str, Any]:
    try:
        return inspect.get_annotations(owner)
    except NameError:  # evaluated lazily, and of a name that only type checkers import
        return {}


def _agreed_kind(
    owner: type, name: str, attribute: object, service: str, offered: Mapping[str, str] | None
) -> Kind:
    kind = kind_of(attribute)
    if kind == "async" and stream_kind(attribute):
        raise UsageError(
            f"{owner.__qualname__}.{name} is an async def that returns an iterator, which is "
            "typed as to be awaited first: write def instead, or a yield into its body"
        )
    if not offered:
        return kind
    if name not in offered:
        sentence = f"{owner.__qualname__} has {name}(), which {service} does not offer"
        raise UsageError(sentence + suggestions(name, offered))
    return _fitting(owner, name, attribute, kind, offered[name], service)


def _fitting(
    owner: type, name: str, attribute: object, kind: Kind, actual: str, service: str
) -> Kind:
    if (kind in STREAMED) == (actual in STREAMED):
        return kind
    if kind == "plain" and may_stream(attribute):
        return "generator"
    if kind in STREAMED:
        raise UsageError(
            f"{owner.__qualname__}.{name}() is an iterator, but {service} offers a function that "
            "does not yield: annotate what it returns"
        )
    raise UsageError(
        f"{owner.__qualname__}.{name}() is no iterator, but {service} offers a function that "
        "yields: write def, not async def, and -> AsyncIterator[...] (Iterator[...] without a loop)"
    )

"""What a function's annotations say about the values that arrive for it and come from it.

A parameter without an annotation, or with one that cannot be resolved here (a name that is
imported for type checkers only), takes anything. This module must not know connections.
"""

from __future__ import annotations

import collections.abc as abc
import functools
import inspect
import sys
import types
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final, get_args, get_origin
from weakref import WeakKeyDictionary

from ...errors import InvalidArgumentsError, ValueDecodeError
from ...wire.messages import StreamRef
from .converting import converter_of
from .kinds import STREAMED, Kind, kind_of, unquoted
from .leaves import Converter
from .mismatch import Mismatch, described, wrong

__all__ = ["Shape"]

# What yields says so in what it returns, even where another function made it.
ASYNC_STREAMS: Final = (abc.AsyncIterator, abc.AsyncGenerator, abc.AsyncIterable)
STREAMS: Final = (abc.Iterator, abc.Generator, abc.Iterable, *ASYNC_STREAMS)
AWAITABLES: Final = (abc.Awaitable, abc.Coroutine)

# For a builtin that does not say what it takes.
UNKNOWN: Final = inspect.Signature(
    [
        inspect.Parameter("args", inspect.Parameter.VAR_POSITIONAL),
        inspect.Parameter("kwargs", inspect.Parameter.VAR_KEYWORD),
    ]
)

# An argument of exactly such a type needs no conversion.
SIMPLE: Final = (int, str, float, bool, bytes)

TOO_DEEP: Final = "nested too deeply for what is left of the stack"

POSITIONAL: Final = (
    inspect.Parameter.POSITIONAL_ONLY,
    inspect.Parameter.POSITIONAL_OR_KEYWORD,
)

_shapes: WeakKeyDictionary[Any, Shape] = WeakKeyDictionary()


class Shape:
    """What a function's annotations say.

    ``signature``: without ``self`` for a bound method. ``kind``: whether it is called, awaited or
    iterated.
    """

    __slots__ = ("__weakref__", "_converters", "_exact", "_hints", "_item", "_name", "_refusals",
                 "_result", "kind", "signature")  # fmt: skip

    @classmethod
    def of(cls, function: Callable[..., Any]) -> Shape:
        """The shape of ``function``; the same object as long as the function lives."""
        if inspect.ismethod(function):  # made anew at each access
            return cls(function)
        try:
            found = _shapes.get(function)
            if found is None:
                found = _shapes[function] = cls(function)
        except TypeError:  # cannot be referred to weakly, or hashed
            return cls(function)
        return found

    def __init__(self, function: Callable[..., Any]) -> None:
        self.signature = signature_of(function)
        self._name = getattr(function, "__name__", type(function).__name__)
        self._hints = hints_of(function, self.signature)
        returns = self._hints.get("return", Any)
        self.kind = kind_of(function)
        self._result = converter_of(unwrapped(returns)) if self.kind not in STREAMED else None
        self._item = converter_of(item_of(returns))
        hints = {name: self._hints.get(name, Any) for name in self.signature.parameters}
        self._converters = {name: argument_converter(hint) for name, hint in hints.items()}
        self._refusals = {name: refusal(hint, self.kind) for name, hint in hints.items()}
        self._exact = self.exact_types()

    def exact_types(self) -> tuple[type, ...] | None:
        """The types of all parameters, if positional arguments of just these need no look."""
        parameters = self.signature.parameters.values()
        types = tuple(self._hints.get(parameter.name) for parameter in parameters)
        if all(p.kind in POSITIONAL for p in parameters) and all(t in SIMPLE for t in types):
            return typing.cast("tuple[type, ...]", types)
        return None

    def bind(
        self, args: Sequence[object], kwargs: Mapping[str, object]
    ) -> tuple[list[object], dict[str, object]]:
        """The arguments as the annotations say; a `StreamRef` stays.

        Raises :exc:`InvalidArgumentsError`, which names the signature, the path and what was
        expected.
        """
        if not kwargs and tuple(map(type, args)) == self._exact:
            return list(args), {}
        try:
            bound = self.signature.bind(*args, **kwargs)
        except TypeError as error:
            what = str(error).replace("missing a required argument:", "missing argument")
            raise InvalidArgumentsError(f"{self}: {what}") from None
        try:
            for name, value in bound.arguments.items():
                bound.arguments[name] = self.converted(name, value)
        except Mismatch as mismatch:
            raise InvalidArgumentsError(f"{self}: {mismatch.sentence('')}") from mismatch.__cause__
        except RecursionError:
            raise InvalidArgumentsError(f"{self}: an argument is {TOO_DEEP}") from None
        return list(bound.args), bound.kwargs

    def converted(self, name: str, value: Any) -> Any:
        convert = self._converters[name]
        if convert is None:
            return value
        kind = self.signature.parameters[name].kind
        to = functools.partial(named, convert, self._refusals[name])
        if kind is inspect.Parameter.VAR_POSITIONAL:
            return tuple(to(item, f"{name}[{i}]") for i, item in enumerate(value))
        if kind is inspect.Parameter.VAR_KEYWORD:
            return {key: to(item, key) for key, item in value.items()}
        return to(value, name)

    def result(self, value: object) -> Any:
        """A result as the return annotation says. Raises :exc:`ValueDecodeError`."""
        return self.checked(self._result, value, "the result")

    def item(self, value: object) -> Any:
        """An item of the stream that is returned. Raises :exc:`ValueDecodeError`."""
        return self.checked(self._item, value, "an item")

    def argument_item(self, index_or_name: int | str) -> Callable[[object], Any]:
        """What makes an item of an argument stream what its annotation says."""
        name = index_or_name if isinstance(index_or_name, str) else self.parameter_at(index_or_name)
        convert = converter_of(item_of(self._hints.get(name, Any)))
        return functools.partial(self.checked, convert, what=f"an item of {name!r}")

    def parameter_at(self, index: int) -> str:
        """The name of the parameter that positional argument ``index`` is for."""
        for position, parameter in enumerate(self.signature.parameters.values()):
            if position == index or parameter.kind is inspect.Parameter.VAR_POSITIONAL:
                return parameter.name
        raise IndexError(index)

    def checked(self, convert: Converter | None, value: object, what: str) -> Any:
        if convert is None:
            return value
        try:
            return convert(value)
        except Mismatch as mismatch:
            text = mismatch.sentence("$")
            raise ValueDecodeError(f"{self}: {what} does not fit, {text}") from mismatch.__cause__
        except RecursionError:
            raise ValueDecodeError(f"{self}: {what} is {TOO_DEEP}") from None

    def __str__(self) -> str:
        return f"{self._name}{unquoted(self.signature)}"


def named(convert: Converter, refusal: str, value: Any, name: str) -> Any:
    if type(value) is StreamRef:
        if refusal:
            raise Mismatch(refusal).inside(name)
        return value
    try:
        return convert(value)
    except Mismatch as mismatch:
        raise mismatch.inside(name) from mismatch.__cause__


# -- of functions -----------------------------------------------------------------------------


def signature_of(function: Callable[..., Any]) -> inspect.Signature:
    try:
        if sys.version_info >= (3, 14):
            from annotationlib import Format

            return inspect.signature(function, annotation_format=Format.FORWARDREF)
        return inspect.signature(function)
    except (TypeError, ValueError):  # a builtin without one
        return UNKNOWN


def code_of(function: Any) -> Any:
    """The function that was written: behind partial objects, wrappers and callable instances."""
    while isinstance(function, functools.partial):
        function = function.func
    function = inspect.unwrap(function)
    if inspect.isroutine(function):
        return function
    if isinstance(function, type):
        return function.__init__  # type: ignore[misc]
    return type(function).__call__


def hints_of(function: Any, signature: inspect.Signature) -> dict[str, Any]:
    """Annotations by name, resolved; those that cannot be are left out."""
    code = code_of(function)
    try:
        return typing.get_type_hints(code, include_extras=True)
    except Exception:  # one that cannot be resolved spoils them all
        return resolved_one_by_one(code, signature)


def resolved_one_by_one(code: Any, signature: inspect.Signature) -> dict[str, Any]:
    names = getattr(inspect.unwrap(code), "__globals__", {})
    annotations = {name: p.annotation for name, p in signature.parameters.items()}
    annotations["return"] = signature.return_annotation
    hints = {}
    for name, annotation in annotations.items():
        try:
            holder = types_holder(name, annotation)
            hints[name] = typing.get_type_hints(holder, names, include_extras=True)[name]
        except Exception:  # evaluating an annotation may raise anything
            continue
    return hints


def types_holder(name: str, annotation: Any) -> Any:
    """Something with one annotation, as `typing.get_type_hints` wants it."""

    def holder() -> None: ...

    holder.__annotations__ = {name: annotation}
    return holder


def unwrapped(returns: Any) -> Any:
    """What is behind ``Awaitable[...]``."""
    if (get_origin(returns) or returns) not in AWAITABLES:
        return returns
    arguments = get_args(returns)
    return arguments[-1] if arguments else Any


def item_of(annotation: Any) -> Any:
    """``T`` of ``Iterator[T]`` and its kin, also where that is one of several choices."""
    arguments = [found for each in streams_in(annotation) for found in get_args(each)[:1]]
    return arguments[0] if arguments else Any


def streams_in(annotation: Any) -> list[Any]:
    """What in an annotation stands for a stream: ``Iterator[T]`` and its kin."""
    origin = get_origin(annotation)
    if origin is typing.Annotated:
        return streams_in(get_args(annotation)[0])
    if origin in (typing.Union, types.UnionType):
        return [found for each in get_args(annotation) for found in streams_in(each)]
    return [annotation] if (origin or annotation) in STREAMS else []


def argument_converter(annotation: Any) -> Converter | None:
    """An asynchronous iterator may come as a list, too."""
    if (get_origin(annotation) or annotation) not in ASYNC_STREAMS:
        return converter_of(annotation)
    items = converter_of(abc.Sequence[item_of(annotation)])  # type: ignore[misc]

    def convert(value: object) -> Iterated:
        if not isinstance(value, list):
            raise wrong(described(annotation), value)
        return Iterated(value if items is None else items(value))

    return convert


class Iterated:
    """A list as an asynchronous iterator."""

    def __init__(self, items: Iterable[object]) -> None:
        self._items: Final = iter(items)

    def __aiter__(self) -> Iterated:
        return self

    async def __anext__(self) -> object:
        for item in self._items:
            return item
        raise StopAsyncIteration


def refusal(annotation: Any, kind: Kind) -> str:
    """Why a streamed argument does not fit an annotation; "" where it does."""
    found = streams_in(annotation)
    if not found:
        anything = argument_converter(annotation) is None
        say = f"expected {described(annotation)}, got a stream: pass list(...) of it"
        return "" if anything else say
    in_loop = kind in ("async", "async_generator")
    if any(((get_origin(each) or each) in ASYNC_STREAMS) is in_loop for each in found):
        return ""
    fit = "an async function takes it as AsyncIterator" if in_loop else "take it as Iterator"
    return f"a stream is no {described(found[0])} here: {fit}"

"""How a function is to be run: called, awaited or iterated; and its signature as text.

Looks through decorators. Runs nothing of the function's own and knows of no services.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import sys
import typing
from collections import abc
from collections.abc import Iterator
from types import FunctionType, MethodType
from typing import Any, Final, Literal, TypeVar, overload

__all__ = [
    "STREAMED",
    "Kind",
    "first_line",
    "is_a",
    "kind_of",
    "may_stream",
    "signature_text",
    "stream_kind",
    "unquoted",
]

Kind = Literal["plain", "async", "generator", "async_generator"]
A = TypeVar("A")
B = TypeVar("B")

STREAMED: Final[frozenset[str]] = frozenset({"generator", "async_generator"})
# What a return annotation promises, also where another function does the work.
_PROMISES: Final[tuple[tuple[object, Kind], ...]] = (
    (abc.Iterator, "generator"),
    (abc.Generator, "generator"),
    (abc.AsyncIterator, "async_generator"),
    (abc.AsyncIterable, "async_generator"),
    (abc.AsyncGenerator, "async_generator"),
    (abc.Awaitable, "async"),
    (abc.Coroutine, "async"),
)
_NAMES: Final = {str(getattr(kind, "__name__", "")): kind for kind, _ in _PROMISES}
_UNKNOWN: Final = object()
# Decorators may wrap in a circle; nobody stacks more.
_MAX_LAYERS: Final = 32
# Long enough for any signature that is read by people.
_MAX_TEXT: Final = 300


@overload
def is_a(value: object, kind: type[A], /) -> typing.TypeGuard[A]: ...
@overload
def is_a(value: object, *kinds: type) -> bool: ...
def is_a(value: object, *kinds: type) -> bool:
    """``isinstance`` that asks the type alone: ``value.__class__`` may be code of the user's."""
    return issubclass(type(value), kinds)


def kind_of(function: object) -> Kind:
    """The kind of a function, method or callable object, decorated or not."""
    for layer in _layers(function):
        if inspect.isasyncgenfunction(layer):
            return "async_generator"
        if inspect.iscoroutinefunction(layer):
            return "async"
        if inspect.isgeneratorfunction(layer):
            return "generator"
    return _promised_kind(function) or "plain"


def stream_kind(function: object) -> Kind | None:
    """The kind of stream that the return annotation promises, if it is one."""
    kind = _promised_kind(function)
    return kind if kind in STREAMED else None


def may_stream(function: object) -> bool:
    """Whether the return annotation leaves open if it is iterated: none, Any or an Iterable."""
    return any(_returned(function) is each for each in (_UNKNOWN, Any, abc.Iterable))


def signature_text(attribute: object, owner: type | None = None) -> str:
    """``(a: int, b: int = 2) -> int``; ``(...)`` where nothing is known.

    Of a class's attribute, with ``owner``, without the parameter that binding fills.
    """
    try:
        signature = _signature(attribute, owner)
        text = str(unquoted(signature))
    except Exception:  # a default's repr, or a signature of a decorator's own making
        return "(...)"
    return text if len(text) <= _MAX_TEXT else text[: _MAX_TEXT - 3] + "..."


def doc_of(function: object) -> str:
    """The docstring, with its indentation taken out; "" for none. A partial has its function's."""
    for layer in _layers(function):
        if not is_a(layer, functools.partial, functools.partialmethod):
            return inspect.getdoc(layer) or ""
    return ""


def first_line(doc: str | None) -> str:
    """The first line of a docstring, "" for none."""
    return (doc or "").strip().partition("\n")[0].strip()[:_MAX_TEXT]


def _layers(function: Any) -> Iterator[Any]:
    """The function, then what it wraps, outermost first."""
    for _ in range(_MAX_LAYERS):
        yield function
        if _makes_context_manager(function):
            return
        if not is_a(function, FunctionType) and is_a(call := _call_of(function), FunctionType):
            yield call
        function = _inner(function)
        if function is None:
            return


def _call_of(function: object) -> object:
    return inspect.getattr_static(type(function), "__call__", None)


def _inner(function: Any) -> Any:
    if is_a(function, functools.partial, functools.partialmethod, functools.singledispatchmethod):
        return function.func
    if is_a(function, MethodType, staticmethod, classmethod):
        return function.__func__
    return inspect.getattr_static(function, "__wrapped__", None)


def _makes_context_manager(function: object) -> bool:
    """Whether ``contextlib.contextmanager`` made it, of a function that yields once."""
    if not is_a(function, FunctionType):
        return False
    return function.__globals__ is vars(contextlib) and function.__code__.co_name == "helper"


def _annotations(function: Any) -> dict[str, object]:
    if not is_a(function, FunctionType):
        return {}
    if sys.version_info >= (3, 14):
        import annotationlib

        return annotationlib.get_annotations(function, format=annotationlib.Format.FORWARDREF)
    return function.__annotations__


def _promised_kind(function: object) -> Kind | None:
    origin = _returned(function)
    return next((kind for promise, kind in _PROMISES if origin is promise), None)


def _returned(function: object) -> object:
    """What the return annotation is, or is a form of: for ``Iterator[int]`` the abstract class."""
    layers = list(_layers(function))
    if _makes_context_manager(layers[-1]):
        return _UNKNOWN
    for layer in layers:
        annotation = _annotations(layer).get("return", _UNKNOWN)
        if is_a(annotation, str):
            annotation = _resolved(annotation, layer.__globals__)
        if annotation is not _UNKNOWN:
            return typing.get_origin(annotation) or annotation
    return _UNKNOWN


def _resolved(text: str, names: dict[str, object]) -> object:
    """What ``"abc.Iterator[int]"`` is made of; a name unknown at runtime is taken at its word."""
    path = text.partition("[")[0].strip().split(".")
    found = names.get(path[0])
    for part in path[1:]:
        found = getattr(found, part, None)
    return _NAMES.get(path[-1], text) if found is None else found


def _signature(attribute: Any, owner: type | None) -> inspect.Signature:
    if owner is None or is_a(attribute, staticmethod):
        return _signature_of(attribute)
    if is_a(attribute, classmethod, functools.partialmethod):
        return _signature_of(attribute.__get__(object(), owner))
    signature = _signature_of(attribute)
    return signature.replace(parameters=list(signature.parameters.values())[1:])


def _signature_of(function: Any) -> inspect.Signature:
    if sys.version_info >= (3, 14):
        import annotationlib

        return inspect.signature(function, annotation_format=annotationlib.Format.STRING)
    return inspect.signature(function)


class _Bare:
    """An annotation that was written as text, shown without its quotes."""

    def __init__(self, text: str) -> None:
        self.text: Final = text

    def __repr__(self) -> str:
        return self.text


def unquoted(signature: inspect.Signature) -> inspect.Signature:
    """A signature whose annotations that are text are shown as they were written."""
    parameters = [
        parameter.replace(annotation=_bare(parameter.annotation))
        for parameter in signature.parameters.values()
    ]
    return signature.replace(
        parameters=parameters, return_annotation=_bare(signature.return_annotation)
    )


def _bare(annotation: object) -> object:
    return _Bare(annotation) if is_a(annotation, str) else annotation

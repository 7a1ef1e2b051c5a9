"""What can be offered as a service, and which of its functions are.

The rules stand in `service`. Whatever an object says of itself through code of its own, a property
or ``__getattr__``, is not asked. Runs nothing but imports.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib
import importlib.util
import inspect
import sys
from collections.abc import Iterable, Iterator, Mapping
from types import BuiltinFunctionType, FunctionType, MethodType, ModuleType
from typing import Any, Final, cast

from ...errors import UsageError
from ...wire.text import clean
from .. import importing
from ..data.kinds import doc_of, is_a
from ..exceptions.describing import suggestions

__all__ = [
    "Offer",
    "is_protocol",
    "listed",
    "not_offered",
    "offer_of",
    "public_methods",
    "quoted",
]

_LRU: Final = type(functools.lru_cache(len))
_FUNCTIONS: Final = (FunctionType, BuiltinFunctionType, MethodType, _LRU, functools.partial)
_METHODS: Final = (
    FunctionType,
    staticmethod,
    classmethod,
    functools.partialmethod,
    functools.singledispatchmethod,
)
# Mappings of other modules are somebody's own objects, which offer their methods.
_TABLES: Final = frozenset({"builtins", "collections", "types"})
# What a peer sends as a name is shown up to this many characters.
_SHOWN: Final = 60
_LISTED: Final = 8


@dataclasses.dataclass(frozen=True, slots=True)
class Offer:
    """The offered functions by name; those of an ``owner``, a class, are still to be bound."""

    name: str
    attributes: dict[str, object]
    owner: type | None = None
    instance: object = None
    reference: str | None = None
    doc: str = ""

    def __post_init__(self) -> None:
        if not self.attributes:
            raise UsageError(
                f"{self.name} offers nothing: define public functions (for a class, methods), "
                "or name imported ones in __all__"
            )


def offer_of(target: object) -> Offer:
    """What ``target`` offers; `UsageError` if it can never be a service."""
    if is_a(target, str):
        return _of_name(target)
    if is_a(target, ModuleType):
        return _of_module(target)
    if is_a(target, type):
        return _of_class(target)
    if is_a(target, *_FUNCTIONS):
        return _of_function(target)
    if is_a(target, Mapping) and type(target).__module__ in _TABLES:
        return _of_mapping(cast("Mapping[Any, object]", target))
    return _of_instance(target)


def quoted(text: str) -> str:
    """A name that somebody else chose, short and safe to print."""
    return f"'{clean(text, _SHOWN)}'"


def listed(names: Iterable[str]) -> str:
    """A few names to show, and that there are more."""
    names = list(names)
    more = ", ..." if len(names) > _LISTED else ""
    return ", ".join(names[:_LISTED]) + more


def not_offered(service: str, name: str, known: Iterable[str], verb: str = "offers") -> str:
    """The sentence for a name that a service does not offer."""
    known = list(known)
    hint = suggestions(name, known) or f"; there is {listed(known)}"
    return f"{service} {verb} no {quoted(name)}{hint}"


def is_protocol(owner: type) -> bool:
    """Whether the class itself is a Protocol, not one that implements it."""
    return bool(vars(owner).get("_is_protocol", False))


def public_methods(owner: type) -> dict[str, object]:
    """The public methods of a class and its bases, as they stand in the classes' own tables."""
    found: dict[str, object] = {}
    for base in reversed(owner.__mro__):
        if base is not object:
            found.update(vars(base))
    return {name: each for name, each in found.items() if _is_public(name) and _is_method(each)}


def _is_method(attribute: object) -> bool:
    if is_a(attribute, *_METHODS):
        return True
    # Methods of C classes and decorators that are classes: callable, and they know how to bind.
    kind = type(attribute)
    binds = _has(kind, "__get__") and not _has(kind, "__set__")
    return callable(attribute) and binds and not is_a(attribute, type)


def _has(owner: type, name: str) -> bool:
    """``hasattr`` that runs no hook of a metaclass."""
    return any(name in vars(base) for base in owner.__mro__)


def _of_name(name: str) -> Offer:
    module_name, colon, path = name.partition(":")
    parts = [*module_name.split("."), *(path.split(".") if colon else ())]
    if not all(part.isidentifier() for part in parts):
        raise UsageError(
            f"{quoted(name)} is not a module's name: write 'package.module', "
            "or 'package.module:Name' for a class or an object in it, not the path of a file"
        )
    module = importing.for_workers(module_name)
    return _of_object(module, path, name) if colon else offer_of(module)


def _of_object(module: ModuleType, path: str, reference: str) -> Offer:
    target: object = module
    for part in path.split("."):
        try:
            target = getattr(target, part)
        except AttributeError:
            hint = suggestions(part, dir(target))
            raise UsageError(f"{quoted(reference)}: there is no {part!r}{hint}") from None
    if is_a(target, str):
        raise UsageError(f"{quoted(reference)} is a string: name a class, a function or an object")
    return dataclasses.replace(offer_of(target), reference=reference)


def _of_module(module: ModuleType) -> Offer:
    names = vars(module).get("__all__")
    found = _defined(module) if names is None else _exported(module, names)
    importable = module.__name__ != "__main__" and sys.modules.get(module.__name__) is module
    return Offer(
        module.__name__,
        dict(found),
        reference=module.__name__ if importable else None,
        doc=module.__doc__ or "",
    )


def _defined(module: ModuleType) -> Iterator[tuple[str, object]]:
    for name, value in vars(module).items():
        if _is_public(name) and _defines(module.__name__, value):
            yield name, value


def _defines(module_name: str, value: Any) -> bool:
    while is_a(value, functools.partial):
        value = value.func
    if is_a(value, BuiltinFunctionType):
        # The C half of module bisect calls itself _bisect.
        return value.__module__ in (module_name, f"_{module_name}")
    if is_a(value, FunctionType, _LRU):
        return bool(value.__module__ == module_name)
    if not callable(value) or is_a(value, type):
        return False
    # A decorator that is a class: functools.update_wrapper left its marks on the object.
    wrapped = inspect.getattr_static(value, "__wrapped__", None)
    return wrapped is not None and inspect.getattr_static(value, "__module__", None) == module_name


def _exported(module: ModuleType, names: Any) -> Iterator[tuple[str, object]]:
    if not is_a(names, list, tuple) or not all(is_a(name, str) for name in names):
        raise UsageError(f"{module.__name__}.__all__ is not a list of names")
    for name in names:
        value = _exported_value(module, name)
        if _is_public(name) and callable(value) and not is_a(value, type):
            yield name, value


def _exported_value(module: ModuleType, name: str) -> object:
    try:
        # May be loaded by the module's own __getattr__.
        return getattr(module, name)
    except AttributeError:
        if _is_submodule(module, name):
            return None
        raise UsageError(
            f"{module.__name__}.__all__ names {quoted(name)}, which the module does not have"
        ) from None


def _is_submodule(module: ModuleType, name: str) -> bool:
    if not hasattr(module, "__path__") or not name.isidentifier():
        return False
    return importlib.util.find_spec(f"{module.__name__}.{name}") is not None


def _of_class(owner: type) -> Offer:
    if is_protocol(owner) or inspect.isabstract(owner):
        raise UsageError(
            f"{owner.__qualname__} is abstract: offer a class or an instance that implements it"
        )
    if needed := _needed_arguments(owner):
        raise UsageError(
            f"{owner.__qualname__}() needs arguments ({', '.join(needed)}): "
            f"offer an instance, {owner.__qualname__}(...), instead of the class"
        )
    return Offer(
        owner.__qualname__,
        public_methods(owner),
        owner=owner,
        reference=_reference(owner),
        doc=doc_of(owner),
    )


def _needed_arguments(owner: type) -> list[str]:
    try:
        parameters = inspect.signature(owner).parameters.values()
    except Exception:  # a class in C that says nothing, or a metaclass with hooks of its own
        return []
    optional = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return [p.name for p in parameters if p.default is p.empty and p.kind not in optional]


def _of_instance(instance: object) -> Offer:
    owner = type(instance)
    if hint := _no_service(owner):
        raise UsageError(f"a service cannot be made of {owner.__name__}: {hint}")
    return Offer(
        owner.__qualname__, public_methods(owner), owner=owner, instance=instance, doc=doc_of(owner)
    )


def _no_service(owner: type) -> str:
    if _has(owner, "__await__"):
        return "await it first, or offer the function itself, not called"
    if owner.__module__.startswith("forkwire."):
        return "it is one of Forkwire's own objects; offer what the worker is to run"
    if owner.__module__ == "builtins":
        return "offer a module or its name, a class, an instance, a function or a dict of functions"
    return ""


def _of_function(function: Any) -> Offer:
    inner = function
    while is_a(inner, functools.partial):
        inner = inner.func
    name = getattr(inner, "__name__", "")
    if not _is_public(name):
        raise UsageError(
            f"the function {quoted(name)} has no public name: "
            "offer it under one, as in {'name': function}"
        )
    return Offer(name, {name: function}, reference=_reference(function), doc=doc_of(function))


def _of_mapping(functions: Mapping[Any, object]) -> Offer:
    for name, value in functions.items():
        if not is_a(name, str) or not _is_public(name):
            raise UsageError(f"{name!r:.60} is not a public name: use one like 'add'")
        if not callable(value):
            raise UsageError(f"{quoted(name)} is a {type(value).__name__}, which cannot be called")
    return Offer("functions", dict(functions))


def _is_public(name: str) -> bool:
    return name.isidentifier() and name[0] != "_"


def _reference(target: Any) -> str | None:
    """``"module:Name"`` if another process finds this very object there."""
    module_name = getattr(target, "__module__", None)
    path = getattr(target, "__qualname__", None)
    if not module_name or not path or module_name == "__main__" or "<" in path:
        return None
    found: object = sys.modules.get(module_name)
    for part in path.split("."):
        found = getattr(found, part, None)
    return f"{module_name}:{path}" if found is target else None

"""What a service offers: the only functions that a peer can reach, and how each is to be run.

::

    target                  offered
    module, "name"          the callables in __all__ that are no classes; without __all__ the public
                            functions that the module itself defines
    class, instance         the public methods of the class and its bases
    mapping                 each callable under its name
    function                itself, under its own name

A name that begins with ``_`` is never offered, nor one with a dot in it, a property, or an
attribute set later. Nothing of an instance is looked up on the instance: that could run its code.
Knows of no messages, links or loops.
"""

from __future__ import annotations

import difflib
import functools
import importlib
import importlib.util
import inspect
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from types import BuiltinFunctionType, FunctionType, MappingProxyType, MethodType, ModuleType
from typing import TYPE_CHECKING, Any, Final

from forkwire.errors import MethodNotFoundError, UsageError
from forkwire.rpc.kinds import Kind, first_line, is_a, kind_of, signature_text
from forkwire.wire.text import clean

if TYPE_CHECKING:
    from forkwire.rpc.values import Shape

__all__ = ["Method", "Service", "near", "not_offered", "public_methods", "quoted"]

Function = Callable[..., Any]

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
# What a peer sends as a name is shown and compared up to this many characters.
_SHOWN: Final = 60
_NEAR: Final = 3
_LISTED: Final = 8
_NOT_YET: Final = object()


class Method:
    """One offered function, ready to be called. ``shape`` is made when it is first asked for."""

    __slots__ = ("_shape", "doc", "function", "kind", "name")

    def __init__(self, name: str, function: Function, kind: Kind) -> None:
        self.name: Final = name
        self.function: Final = function
        self.kind: Final[Kind] = kind
        self.doc: Final[str] = inspect.getdoc(function) or ""
        self._shape: Shape | None = None

    @property
    def shape(self) -> Shape:
        """What its signature and annotations say."""
        if self._shape is None:
            # Imports msgspec: not before a call needs it.
            from forkwire.rpc.values import Shape

            self._shape = Shape.of(self.function)
        return self._shape

    def __repr__(self) -> str:
        return f"<Method {self.name} {self.kind}>"


class Service:
    """The functions offered under one name.

    ``name``: of the module or class. ``reference``: what `of` takes for it in another process,
    None for what can only be inherited there. ``doc``: its docstring.
    """

    __slots__ = (
        "_attributes",
        "_instance",
        "_kinds",
        "_methods",
        "_owner",
        "doc",
        "name",
        "reference",
    )

    def __init__(
        self,
        name: str,
        attributes: Mapping[str, object],
        *,
        owner: type | None = None,
        instance: object = _NOT_YET,
        reference: str | None = None,
        doc: object = None,
    ) -> None:
        if not attributes:
            raise UsageError(
                f"{name} offers nothing: define public functions (for a class, methods), "
                "or name imported ones in __all__"
            )
        self.name: Final = name
        self.reference: Final = reference
        self.doc: Final = inspect.cleandoc(doc) if isinstance(doc, str) else ""
        self._attributes: Final = dict(attributes)
        self._owner: Final = owner
        self._instance = instance
        self._methods: dict[str, Method] = {}
        self._kinds: Mapping[str, Kind] | None = None

    @classmethod
    def of(cls, target: object) -> Service:
        """What ``target`` offers: a module, its name, a class, an instance, a mapping, a function.

        ``"package.module:Name"`` is a class, function or object in a module. A class is made an
        instance without arguments, by `load`. Raises `UsageError` for what can never be a service;
        a module that cannot be imported raises its own error.
        """
        if is_a(target, Service):
            return target
        if is_a(target, str):
            return _of_name(target)
        if is_a(target, ModuleType):
            return _of_module(target)
        if is_a(target, type):
            return _of_class(target)
        if is_a(target, *_FUNCTIONS):
            return _of_function(target)
        if is_a(target, Mapping) and type(target).__module__ in _TABLES:
            return _of_mapping(target)
        return _of_instance(target)

    def load(self) -> None:
        """Make the instance where a class is offered; whatever its constructor raises passes."""
        if self._owner is not None and self._instance is _NOT_YET:
            self._instance = self._owner()

    def get(self, name: str) -> Method:
        """The method of exactly that name; `MethodNotFoundError` with the near ones if none is."""
        method = self._methods.get(name)
        if method is None:
            if name not in self._attributes:
                raise MethodNotFoundError(not_offered(self.name, name, self._attributes))
            method = Method(name, self._bind(self._attributes[name]), self.kinds[name])
            self._methods[name] = method
        return method

    @property
    def methods(self) -> Mapping[str, Method]:
        """Every method by its name, in the order of definition."""
        return MappingProxyType({name: self.get(name) for name in self._attributes})

    @property
    def kinds(self) -> Mapping[str, Kind]:
        """The kind of every method, for the greeting. Makes no instance."""
        if self._kinds is None:
            kinds = {name: kind_of(each) for name, each in self._attributes.items()}
            self._kinds = MappingProxyType(kinds)
        return self._kinds

    @property
    def has_async(self) -> bool:
        """Whether any method needs an event loop."""
        return any(kind in ("async", "async_generator") for kind in self.kinds.values())

    def describe(self) -> dict[str, Any]:
        """Plain data: name, doc, and of each method its kind, signature and first line of doc."""
        return {
            "name": self.name,
            "doc": first_line(self.doc),
            "methods": {name: self._described(name) for name in self._attributes},
        }

    def __contains__(self, name: object) -> bool:
        return name in self._attributes

    def __repr__(self) -> str:
        return f"<Service {self.name}: {listed(self._attributes)}>"

    def _described(self, name: str) -> dict[str, str]:
        attribute = self._attributes[name]
        return {
            "kind": self.kinds[name],
            "signature": signature_text(attribute, self._owner),
            "doc": first_line(inspect.getdoc(attribute)),
        }

    def _bind(self, attribute: Any) -> Function:
        if self._owner is None:
            function: Function = attribute
        else:
            self.load()
            function = attribute.__get__(self._instance, self._owner)
        return function


def quoted(text: str) -> str:
    """A name that somebody else chose, short and safe to print."""
    return f"'{clean(text, _SHOWN)}'"


def near(name: str, known: Iterable[str]) -> list[str]:
    """The known names that ``name`` may be a slip of; none for a name too long for one."""
    if len(name) > _SHOWN:
        return []
    return difflib.get_close_matches(name, list(known), n=_NEAR)


def listed(names: Iterable[str]) -> str:
    """A few names to show, and that there are more."""
    names = list(names)
    more = ", ..." if len(names) > _LISTED else ""
    return ", ".join(names[:_LISTED]) + more


def not_offered(service: str, name: str, known: Iterable[str], verb: str = "offers") -> str:
    """The sentence for a name that a service does not offer."""
    known = list(known)
    if matches := near(name, known):
        hint = "did you mean " + " or ".join(map(repr, matches)) + "?"
    else:
        hint = f"there is {listed(known)}"
    return f"{service} {verb} no {quoted(name)}: {hint}"


def public_methods(owner: type) -> dict[str, object]:
    """The public methods of a class and its bases, as they stand in the classes' own tables."""
    found: dict[str, object] = {}
    for base in reversed(owner.__mro__):
        if base is not object:
            found.update(vars(base))
    return {name: each for name, each in found.items() if name[0] != "_" and _is_method(each)}


def _is_method(attribute: object) -> bool:
    if is_a(attribute, *_METHODS):
        return True
    # Methods of C classes and decorators that are classes: callable, and they know how to bind.
    kind = type(attribute)
    binds = hasattr(kind, "__get__") and not hasattr(kind, "__set__")
    return callable(attribute) and binds and not is_a(attribute, type)


def _of_name(name: str) -> Service:
    module_name, colon, path = name.partition(":")
    parts = [*module_name.split("."), *(path.split(".") if colon else ())]
    if not all(part.isidentifier() for part in parts):
        raise UsageError(
            f"{quoted(name)} is not a module's name: write 'package.module', "
            "or 'package.module:Name' for a class or an object in it, not the path of a file"
        )
    module = importlib.import_module(module_name)
    return _of_object(module, path, name) if colon else Service.of(module)


def _of_object(module: ModuleType, path: str, reference: str) -> Service:
    target: object = module
    for part in path.split("."):
        try:
            target = getattr(target, part)
        except AttributeError:
            known = near(part, dir(target))
            hint = f": did you mean {' or '.join(map(repr, known))}?" if known else ""
            raise UsageError(f"{quoted(reference)}: there is no {part!r}{hint}") from None
    if is_a(target, str):
        raise UsageError(f"{quoted(reference)} is a string: name a class, a function or an object")
    service = Service.of(target)
    return Service(
        service.name,
        service._attributes,
        owner=service._owner,
        instance=service._instance,
        reference=reference,
        doc=service.doc,
    )


def _of_module(module: ModuleType) -> Service:
    names = vars(module).get("__all__")
    found = _defined(module) if names is None else _exported(module, names)
    importable = module.__name__ != "__main__" and sys.modules.get(module.__name__) is module
    return Service(
        module.__name__,
        dict(found),
        reference=module.__name__ if importable else None,
        doc=module.__doc__,
    )


def _defined(module: ModuleType) -> Iterator[tuple[str, object]]:
    for name, value in vars(module).items():
        if name[:1] != "_" and _defines(module.__name__, value):
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
        if name.isidentifier() and name[0] != "_" and callable(value) and not is_a(value, type):
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


def _of_class(owner: type) -> Service:
    if getattr(owner, "_is_protocol", False) or inspect.isabstract(owner):
        raise UsageError(
            f"{owner.__qualname__} is abstract: offer a class or an instance that implements it"
        )
    if needed := _needed_arguments(owner):
        raise UsageError(
            f"{owner.__qualname__}() needs arguments ({', '.join(needed)}): "
            f"offer an instance, {owner.__qualname__}(...), instead of the class"
        )
    return Service(
        owner.__qualname__,
        public_methods(owner),
        owner=owner,
        reference=_reference(owner),
        doc=owner.__doc__,
    )


def _needed_arguments(owner: type) -> list[str]:
    try:
        parameters = inspect.signature(owner).parameters.values()
    except (TypeError, ValueError):  # a class written in C that says nothing
        return []
    optional = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return [p.name for p in parameters if p.default is p.empty and p.kind not in optional]


def _of_instance(instance: object) -> Service:
    owner = type(instance)
    if hint := _no_service(owner):
        raise UsageError(f"a service cannot be made of {owner.__name__}: {hint}")
    return Service(
        owner.__qualname__, public_methods(owner), owner=owner, instance=instance, doc=owner.__doc__
    )


def _no_service(owner: type) -> str:
    if hasattr(owner, "__await__"):
        return "await it first, or offer the function itself, not called"
    if owner.__module__.startswith("forkwire."):
        return "it is one of Forkwire's own objects; offer what the worker is to run"
    if owner.__module__ == "builtins":
        return "offer a module or its name, a class, an instance, a function or a dict of functions"
    return ""


def _of_function(function: Any) -> Service:
    inner = function
    while is_a(inner, functools.partial):
        inner = inner.func
    name = getattr(inner, "__name__", "")
    if not _is_public(name):
        raise UsageError(
            f"the function {quoted(name)} has no public name: "
            "offer it under one, as in {'name': function}"
        )
    return Service(name, {name: function}, reference=_reference(function), doc=function.__doc__)


def _of_mapping(functions: Mapping[Any, object]) -> Service:
    for name, value in functions.items():
        if not is_a(name, str) or not _is_public(name):
            raise UsageError(f"{name!r:.60} is not a public name: use one like 'add'")
        if not callable(value):
            raise UsageError(f"{quoted(name)} is a {type(value).__name__}, which cannot be called")
    return Service("functions", functions)


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

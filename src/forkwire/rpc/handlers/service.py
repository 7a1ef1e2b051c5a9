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

import contextlib
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final

from ...errors import MethodNotFoundError
from ..data.kinds import Kind, doc_of, first_line, is_a, kind_of, signature_text
from .targets import Offer, listed, not_offered, offer_of

if TYPE_CHECKING:
    from ..data.shape import Shape

__all__ = ["Method", "Service"]

Function = Callable[..., Any]


class Method:
    """One offered function, ready to be called. ``shape`` is made when it is first asked for."""

    __slots__ = ("_shape", "doc", "function", "kind", "name")

    def __init__(self, name: str, function: Function, kind: Kind, doc: str = "") -> None:
        self.name: Final = name
        self.function: Final = function
        self.kind: Final[Kind] = kind
        self.doc: Final = doc
        self._shape: Shape | None = None

    @property
    def shape(self) -> Shape:
        """What its signature and annotations say."""
        if self._shape is None:
            # Imports msgspec: not before a call needs it.
            from ..data.shape import Shape

            self._shape = Shape.of(self.function)
        return self._shape

    def __repr__(self) -> str:
        return f"<Method {self.name} {self.kind}>"


class Service:
    """The functions offered under one name.

    ``name``: of the module or class. ``reference``: what `of` takes for it in another process,
    None for what can only be inherited there. ``doc``: its docstring.
    """

    __slots__ = ("_instance", "_kinds", "_methods", "_offer", "doc", "name", "reference")

    def __init__(self, offer: Offer) -> None:
        self.name: Final = offer.name
        self.reference: Final = offer.reference
        self.doc: Final = offer.doc
        self._offer: Final = offer
        self._instance = offer.instance
        self._methods: dict[str, Method] = {}
        self._kinds: Mapping[str, Kind] | None = None

    @classmethod
    def of(cls, target: object) -> Service:
        """What ``target`` offers: a module, its name, a class, an instance, a mapping, a function.

        ``"package.module:Name"`` is a class, function or object in a module. A class is made an
        instance without arguments, by `load`. Raises `UsageError` for what can never be a service;
        a module that cannot be imported raises its own error.
        """
        return target if is_a(target, Service) else cls(offer_of(target))

    def load(self) -> None:
        """Make the instance where a class is offered; whatever its constructor raises passes."""
        if self._offer.owner is not None and self._instance is None:
            self._instance = self._offer.owner()

    def warm_up(self) -> None:
        """Make what is made when a method is first called, as far as that needs no instance."""
        from ..data import shape  # noqa: F401

        if self._offer.owner is None:
            for method in self.methods.values():
                with contextlib.suppress(Exception):  # of an annotation: a call tells
                    _ = method.shape

    def get(self, name: str) -> Method:
        """The method of exactly that name; `MethodNotFoundError` with the near ones if none is."""
        method = self._methods.get(name)
        if method is None:
            if name not in self._offer.attributes:
                raise MethodNotFoundError(not_offered(self.name, name, self._offer.attributes))
            attribute = self._offer.attributes[name]
            method = Method(name, self._bind(attribute), self.kinds[name], doc_of(attribute))
            self._methods[name] = method
        return method

    @property
    def methods(self) -> Mapping[str, Method]:
        """Every method by its name, in the order of definition."""
        return MappingProxyType({name: self.get(name) for name in self._offer.attributes})

    @property
    def kinds(self) -> Mapping[str, Kind]:
        """The kind of every method, for the greeting. Makes no instance."""
        if self._kinds is None:
            self._kinds = MappingProxyType(
                {name: kind_of(each) for name, each in self._offer.attributes.items()}
            )
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
            "methods": {name: self._described(name) for name in self._offer.attributes},
        }

    def __contains__(self, name: object) -> bool:
        return name in self._offer.attributes

    def __repr__(self) -> str:
        return f"<Service {self.name}: {listed(self._offer.attributes)}>"

    def _described(self, name: str) -> dict[str, str]:
        attribute = self._offer.attributes[name]
        return {
            "kind": self.kinds[name],
            "signature": signature_text(attribute, self._offer.owner),
            "doc": first_line(doc_of(attribute)),
        }

    def _bind(self, attribute: Any) -> Function:
        if self._offer.owner is None:
            function: Function = attribute
        else:
            self.load()
            function = attribute.__get__(self._instance, self._offer.owner)
        return function

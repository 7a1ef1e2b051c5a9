"""What the caller knows of the other side's service: from its code, or from its greeting."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any, Final

from ...errors import UsageError
from ...wire.text import clean
from ..data.shape import Shape
from ..handlers.handling import check_kind
from ..handlers.service import Service
from ..links.link import Link

__all__ = ["Offers"]

NAME: Final = 200  # characters of a service's name that are shown


class Offers:
    """``service``: the code itself, where it is here. ``kinds``: of each method, by its name."""

    def __init__(self, name: str, service: Service | None = None) -> None:
        self.name = name
        self.service = service
        self.kinds: Mapping[str, str] = {} if service is None else service.kinds

    def learn(self, link: Link) -> None:
        """Take over what the greeting says, where the code is not here."""
        about = link.session.peer_about.get("service")
        if self.service is not None or not isinstance(about, dict):
            return
        name, methods = about.get("name"), about.get("methods")
        if isinstance(name, str) and name:
            self.name = clean(name, NAME)
        if isinstance(methods, dict):
            self.kinds = {
                method: kind
                for method, kind in methods.items()
                if isinstance(method, str) and isinstance(kind, str)
            }

    def renew(self, link: Link) -> None:
        """The code over there is another now than it was here: its greeting says what it is."""
        self.service, self.kinds = None, {}
        self.learn(link)

    def look_up(
        self, function: object, *, streamed: bool
    ) -> tuple[str, Callable[[Any], Any] | None]:
        """The name of what is called, and what converts its result, or each item.

        Raises as `find` does, and :exc:`WrongKindError` where it is known to be of the other kind.
        """
        name, shape = self.find(function)
        kind = self.kinds.get(name)
        if kind is not None:
            check_kind(name, kind, streamed=streamed)
        if shape is None:
            return name, None
        return name, shape.item if streamed else shape.result

    def find(self, function: object) -> tuple[str, Shape | None]:
        """The name of what is called, and its annotations where they are known.

        Raises :exc:`MethodNotFoundError` and :exc:`UsageError`.
        """
        if isinstance(function, str):
            if self.service is None:
                return function, None
            return function, self.service.get(function).shape
        if not callable(function):
            raise UsageError(
                f"call a function by its name or by itself, not {type(function).__name__}"
            )
        name = self._name_of(function)
        return name, Shape.of(function)

    def _name_of(self, function: Any) -> str:
        inner = function
        while isinstance(inner, functools.partial):
            inner = inner.func
        name = getattr(inner, "__name__", None)
        if not isinstance(name, str):
            raise UsageError(f"{function!r} has no name that a worker could know: pass the name")
        if isinstance(function, functools.partial):
            raise UsageError(
                f"a partial of {name}() cannot be called there: pass {name} and all its arguments"
            )
        if self.service is not None:
            offered = self.service.get(name).function
            if not is_same(offered, function):
                raise UsageError(
                    f"{described(function)} is not what {self.name} offers as {name}(): pass the "
                    "service's own function, or its name"
                )
        return name


def is_same(offered: Any, function: Any) -> bool:
    if offered == function:
        return True
    ours = getattr(offered, "__func__", offered)
    return bool(getattr(function, "__func__", function) == ours)


def described(function: Any) -> str:
    return f"{getattr(function, '__module__', '?')}.{getattr(function, '__qualname__', '?')}"

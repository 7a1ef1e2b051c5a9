"""Converters of classes with fields: dataclasses, Structs, attrs classes and named tuples.

An unknown field is ignored, as msgspec does it, so that a newer peer may say more; a Struct with
``forbid_unknown_fields`` refuses it.
"""

from __future__ import annotations

import dataclasses
import sys
import typing
from collections.abc import Callable, Mapping
from typing import Any, Final, TypeAlias

from .leaves import Converter
from .mismatch import Mismatch, key_step, wrong

__all__ = ["Field", "Record", "record_of"]

# Stands for a field that is left to its default.
ABSENT: Final = object()

Compile: TypeAlias = Callable[[Any], "Converter | None"]


@dataclasses.dataclass(frozen=True, slots=True)
class Field:
    """One field: its name on the wire, in the constructor, and its type."""

    wire: str
    name: str
    convert: Converter | None
    required: bool
    init: bool = True


@dataclasses.dataclass(frozen=True, slots=True)
class Record:
    """A class whose instances are maps of fields, or arrays of them."""

    kind: Any
    fields: tuple[Field, ...]
    array: bool = False
    tag: tuple[str, object] | None = None
    exact: bool = False

    def convert(self, value: Any) -> Any:
        if isinstance(value, self.kind):
            return value
        items = self.from_array(value) if self.array else self.from_map(value)
        return self.build(items)

    def fits(self, value: Any) -> bool:
        """Whether a map names no field that is unknown here: which member of a union is meant."""
        if not isinstance(value, Mapping):
            return False
        known = {field.wire for field in self.fields}
        return known.issuperset(value) or (self.tag is not None and self.tag[0] in value)

    def from_map(self, value: Any) -> dict[str, Any]:
        if not isinstance(value, Mapping):
            raise wrong(self.kind.__name__, value)
        if self.tag is not None and value.get(self.tag[0], ABSENT) != self.tag[1]:
            raise Mismatch(
                f"{self.tag[0]} is not {self.tag[1]!r}, so this is no {self.kind.__name__}"
            )
        if self.exact:
            self.refuse_unknown(value)
        return {
            field.name: converted(field, value[field.wire])
            for field in self.fields
            if self.present(field, value)
        }

    def present(self, field: Field, value: Mapping[str, Any]) -> bool:
        if field.wire in value:
            return True
        if field.required:
            raise Mismatch(f"{self.kind.__name__} needs {field.wire!r}, which is missing")
        return False

    def refuse_unknown(self, value: Mapping[str, Any]) -> None:
        known = {field.wire for field in self.fields} | ({self.tag[0]} if self.tag else set())
        for key in value:
            if key not in known:
                raise Mismatch(f"{self.kind.__name__} has no field {key_step(key)[1:-1]}")

    def from_array(self, value: Any) -> dict[str, Any]:
        if not isinstance(value, list | tuple):
            raise wrong(self.kind.__name__, value)
        rest = list(value)
        if self.tag is not None and (not rest or rest.pop(0) != self.tag[1]):
            raise Mismatch(f"this is no {self.kind.__name__}, which begins with {self.tag[1]!r}")
        needed = sum(field.required for field in self.fields)
        if len(rest) < needed:
            raise Mismatch(f"{self.kind.__name__} has {needed} items, got {len(rest)}")
        return {
            field.name: converted(field, item, f"[{index}]")
            for index, (field, item) in enumerate(zip(self.fields, rest, strict=False))
        }

    def build(self, items: dict[str, Any]) -> Any:
        later = {field.name: items.pop(field.name) for field in self.fields
                 if not field.init and field.name in items}  # fmt: skip
        try:
            made = self.kind(**items)
        except (TypeError, ValueError) as error:
            raise Mismatch(f"{self.kind.__name__} refused its fields: {error}") from error
        for name, item in later.items():
            object.__setattr__(made, name, item)
        return made


def converted(field: Field, item: Any, step: str = "") -> Any:
    if field.convert is None:
        return item
    try:
        return field.convert(item)
    except Mismatch as mismatch:
        raise mismatch.inside(step or f".{field.wire}") from mismatch.__cause__


# -- classes ----------------------------------------------------------------------------------


def record_of(kind: Any, annotation: Any, compiled: Compile) -> Record | None:
    """The record that ``kind`` is, type variables as in ``annotation``; None if it is none."""
    msgspec = sys.modules.get("msgspec")
    if msgspec is not None and issubclass(kind, msgspec.Struct):
        return struct_record(kind, annotation, msgspec, compiled)
    if dataclasses.is_dataclass(kind):
        return dataclass_record(kind, annotation, compiled)
    if hasattr(kind, "__attrs_attrs__"):
        return attrs_record(kind, annotation, compiled)
    if issubclass(kind, tuple) and hasattr(kind, "_fields"):
        return named_tuple_record(kind, annotation, compiled)
    return None


def hints_of(kind: Any, annotation: Any) -> dict[str, Any]:
    """The types of the fields of ``kind``; one that cannot be resolved counts as Any."""
    try:
        hints = typing.get_type_hints(kind, include_extras=True)
    except Exception:  # a name that only a type checker sees, or any code
        hints = {}
        for base in reversed(kind.__mro__):
            hints |= getattr(base, "__annotations__", {})
        hints = {name: hint for name, hint in hints.items() if not isinstance(hint, str)}
    arguments = dict(zip(parameters_of(kind), typing.get_args(annotation), strict=False))
    return {name: substituted(hint, arguments) for name, hint in hints.items()}


def parameters_of(kind: Any) -> tuple[Any, ...]:
    return tuple(getattr(kind, "__parameters__", ()))


def substituted(hint: Any, arguments: Mapping[Any, Any]) -> Any:
    """``hint`` with type variables replaced."""
    if not arguments:
        return hint
    if isinstance(hint, typing.TypeVar):
        return arguments.get(hint, hint)
    inner = getattr(hint, "__parameters__", ())
    if not inner or isinstance(hint, type):
        return hint
    return hint[tuple(arguments.get(parameter, parameter) for parameter in inner)]


def dataclass_record(kind: Any, annotation: Any, compiled: Compile) -> Record:
    hints = hints_of(kind, annotation)
    missing = dataclasses.MISSING
    fields = [
        Field(
            field.name,
            field.name,
            compiled(hints.get(field.name, Any)),
            field.init and field.default is missing and field.default_factory is missing,
            field.init,
        )
        for field in dataclasses.fields(kind)
    ]
    return Record(kind, tuple(fields))


def attrs_record(kind: Any, annotation: Any, compiled: Compile) -> Record:
    hints = hints_of(kind, annotation)
    nothing = sys.modules["attr"].NOTHING
    fields = [
        Field(
            attribute.name,
            attribute.alias if attribute.init else attribute.name,
            compiled(hints.get(attribute.name, Any)),
            attribute.init and attribute.default is nothing,
            attribute.init,
        )
        for attribute in kind.__attrs_attrs__
    ]
    return Record(kind, tuple(fields))


def named_tuple_record(kind: Any, annotation: Any, compiled: Compile) -> Record:
    hints = hints_of(kind, annotation)
    defaults = kind._field_defaults
    fields = [
        Field(name, name, compiled(hints.get(name, Any)), name not in defaults)
        for name in kind._fields
    ]
    return Record(kind, tuple(fields), array=True)


def struct_record(kind: Any, annotation: Any, msgspec: Any, compiled: Compile) -> Record:
    config = kind.__struct_config__
    fields = [
        Field(field.encode_name, field.name, compiled(field.type), field.required)
        for field in msgspec.structs.fields(annotation)
    ]
    tag = None if config.tag is None else (config.tag_field, config.tag)
    return Record(kind, tuple(fields), config.array_like, tag, config.forbid_unknown_fields)

"""From an annotation to a function that makes an arrived value what the annotation says.

A converter takes a value and answers it, converted, or raises :class:`Mismatch`; None stands for
"anything is welcome". Nothing is guessed: an int will do for a float, the text of a date for a
date (that is how it travels), never the text of a number for a number. A class that has no form on
the wire takes only its instances; protocols and abstract classes take anything.

msgspec cannot say `bytes | str`, `Path | str`, mixed enums or arrays; so its rules are kept here,
and only its Structs are asked for their fields. This module must not know functions.
"""

from __future__ import annotations

import collections
import collections.abc as abc
import inspect
import types
import typing
from collections.abc import Callable, Iterable, Mapping
from typing import Annotated, Any, Final, Literal, NewType, TypeVar, Union, get_args, get_origin
from weakref import WeakKeyDictionary

from ...wire.messages import StreamRef
from .leaves import Converter, leaf_converter, numpy_converter
from .mismatch import Mismatch, described, key_step, kind_of, wrong
from .records import Record, hints_of, record_of

__all__ = ["Converter", "converter_of"]

ANYTHING: Final[tuple[object, ...]] = (Any, object, inspect.Parameter.empty, typing.Self, Callable)

# What a peer sends as an array, by what it becomes.
SEQUENCES: Final[dict[object, Callable[[Iterable[Any]], Any]]] = {
    list: list,
    abc.Sequence: list,
    abc.MutableSequence: list,
    abc.Collection: list,
    abc.Iterable: list,
    abc.Iterator: iter,
    abc.Reversible: list,
    collections.deque: collections.deque,
    set: set,
    abc.Set: set,
    abc.MutableSet: set,
    frozenset: frozenset,
}
SETS: Final = (set, frozenset)
SET_KINDS: Final = frozenset(
    {set, frozenset, abc.Set, abc.MutableSet, abc.Collection, abc.Iterable}
)
MAPPINGS: Final = frozenset({dict, abc.Mapping, abc.MutableMapping})

# A class is compiled once; it may be annotated with itself.
_records: WeakKeyDictionary[type, Record] = WeakKeyDictionary()


def converter_of(annotation: Any) -> Converter | None:
    """The converter for ``annotation``; None where anything is welcome."""
    if any(annotation is thing for thing in ANYTHING) or isinstance(annotation, str | TypeVar):
        return None
    if annotation is None:
        return leaf_converter(type(None))
    if isinstance(annotation, NewType):
        return converter_of(annotation.__supertype__)
    if (value := alias_value(annotation)) is not None:
        return lazily(value)
    origin = get_origin(annotation)
    if origin is Annotated:
        return annotated(annotation)
    if origin in (Union, types.UnionType):
        return union(get_args(annotation))
    if origin is Literal:
        return literal(get_args(annotation))
    if origin in (typing.Required, typing.NotRequired, typing.Final, typing.ClassVar):
        return converter_of(get_args(annotation)[0])
    return class_converter(origin or annotation, annotation)


def alias_value(annotation: Any) -> Any:
    """What `type Name[T] = ...` stands for, its parameters filled in; else None."""
    origin = get_origin(annotation) or annotation
    if type(origin).__name__ != "TypeAliasType":
        return None
    value = origin.__value__
    arguments = get_args(annotation)
    return value[arguments] if arguments and getattr(value, "__parameters__", ()) else value


def lazily(annotation: Any) -> Converter:
    """A converter that is made when it is needed: an alias may name itself."""
    made: list[Converter | None] = []

    def convert(value: Any) -> Any:
        if not made:
            made.append(converter_of(annotation))
        return value if made[0] is None else made[0](value)

    return convert


def annotated(annotation: Any) -> Converter | None:
    """The type, and what msgspec's Meta asks of it."""
    inner, *notes = get_args(annotation)
    convert = converter_of(inner)
    metas = [note for note in notes if type(note).__name__ == "Meta"]
    if not metas:
        return convert
    import msgspec

    def convert_checked(value: Any) -> Any:
        made = value if convert is None else convert(value)
        try:
            for meta in metas:
                msgspec.convert(made, Annotated[type(made), meta])
        except (msgspec.ValidationError, TypeError) as error:
            raise Mismatch(str(error)[:1].lower() + str(error)[1:]) from None
        return made

    return convert_checked


# -- choices ----------------------------------------------------------------------------------


def union(members: tuple[Any, ...]) -> Converter | None:
    """The member that the value is already; else the first that takes it, classes by fields."""
    choices = [(member, converter_of(member)) for member in members]
    if any(convert is None for _, convert in choices):  # one of them takes anything
        return None
    exact = {member for member in members if isinstance(member, type)}
    ordered = [convert for _, convert in choices if convert is not None]

    def convert(value: Any) -> Any:
        if type(value) in exact and type(value) not in CONTAINERS:
            return value
        mismatches = []
        for attempt in sorted(ordered, key=lambda one: not fits(one, value)):
            try:
                return attempt(value)
            except Mismatch as mismatch:
                mismatches.append(mismatch)
        raise closest(mismatches, members, value)

    return convert


CONTAINERS: Final = frozenset({list, dict, set, tuple, frozenset})


def fits(convert: Converter, value: Any) -> bool:
    record = getattr(convert, "__self__", None)
    return isinstance(record, LazyRecord) and record.fits(value)


def closest(mismatches: list[Mismatch], members: tuple[Any, ...], value: Any) -> Mismatch:
    """The one fault that lies deeper than the others says most."""
    deep = [mismatch for mismatch in mismatches if mismatch.is_deep]
    if len(deep) == 1:
        return deep[0]
    return wrong(" | ".join(map(described, members)), value)


def literal(choices: tuple[Any, ...]) -> Converter:
    def convert(value: Any) -> Any:
        for choice in choices:
            for form in (choice, getattr(choice, "value", choice)):
                if type(value) is type(form) and value == form:
                    return choice
        raise Mismatch(
            f"expected one of {', '.join(map(repr, choices))}, got {key_step(value)[1:-1]}"
        )

    return convert


# -- classes ----------------------------------------------------------------------------------


def class_converter(kind: Any, annotation: Any) -> Converter | None:
    if not isinstance(kind, type):
        return None
    arguments = get_args(annotation)
    if kind is StreamRef:
        return None
    if typing.is_typeddict(kind) or hasattr(kind, "__required_keys__"):
        return typed_dict(kind, annotation)
    for made in (leaf_converter(kind), numpy_converter(kind, annotation)):
        if made is not None:
            return made
    if (record := known_record(kind, annotation)) is not None:
        return record
    if issubclass(kind, tuple):
        return tuple_of(kind, arguments)
    if kind in SEQUENCES or issubclass(kind, list | collections.deque | set | frozenset):
        return sequence(kind, arguments)
    if kind in MAPPINGS or issubclass(kind, dict):
        return mapping(kind, arguments)
    return instance(kind)


def known_record(kind: Any, annotation: Any) -> Converter | None:
    """Classes with fields, looked at when a first value comes: they may hold themselves."""
    is_record = (
        hasattr(kind, "__dataclass_fields__")
        or hasattr(kind, "__struct_config__")
        or hasattr(kind, "__attrs_attrs__")
        or (issubclass(kind, tuple) and hasattr(kind, "_fields"))
    )
    return LazyRecord(kind, annotation).convert if is_record else None


class LazyRecord:
    """A record that is compiled when a value comes."""

    __slots__ = ("_annotation", "_kind", "_made")

    def __init__(self, kind: Any, annotation: Any) -> None:
        self._kind = kind
        self._annotation = annotation
        self._made: Record | None = None

    @property
    def record(self) -> Record:
        if self._made is None:
            self._made = self.compiled()
        return self._made

    def compiled(self) -> Record:
        generic = self._annotation is not self._kind
        found = None if generic else _records.get(self._kind)
        if found is None:
            found = record_of(self._kind, self._annotation, converter_of)
            assert found is not None
            if not generic:
                _records[self._kind] = found
        return found

    def fits(self, value: Any) -> bool:
        return self.record.fits(value)

    def convert(self, value: Any) -> Any:
        return self.record.convert(value)


def sequence(kind: Any, arguments: tuple[Any, ...]) -> Converter:
    make: Any = SEQUENCES.get(kind, kind)
    item = converter_of(arguments[0]) if arguments else None
    name = kind.__name__
    takes_sets = kind in SET_KINDS or issubclass(kind, SETS)
    same = arguments[0] if arguments and arguments[0] in (int, str, bool, float, bytes) else None

    def convert(value: Any) -> Any:
        if not (isinstance(value, list | tuple) or (takes_sets and isinstance(value, SETS))):
            if isinstance(value, kind) and not isinstance(value, str | bytes | memoryview):
                value = list(value)
            else:
                raise wrong(name, value)
        if item is None or (same is not None and set(map(type, value)) == {same}):
            return value if type(value) is make else make(value)
        return make(each(item, value))

    return convert


def each(convert: Converter, values: Iterable[Any]) -> list[Any]:
    made: list[Any] = []
    try:
        for value in values:
            made.append(convert(value))  # noqa: PERF401  the index is needed for the error
    except Mismatch as mismatch:
        raise mismatch.inside(f"[{len(made)}]") from mismatch.__cause__
    return made


def tuple_of(kind: Any, arguments: tuple[Any, ...]) -> Converter:
    if len(arguments) == 2 and arguments[1] is Ellipsis:
        return tuple_like(kind, converter_of(arguments[0]))
    if not arguments and kind is tuple:
        return tuple_like(kind, None)
    items = [converter_of(argument) for argument in arguments]

    def convert(value: Any) -> Any:
        if not isinstance(value, list | tuple):
            raise wrong("tuple", value)
        if len(value) != len(items):
            raise Mismatch(f"expected a tuple of {len(items)} items, got {len(value)}")
        rest = iter(items)

        def next_convert(item: Any) -> Any:
            step = next(rest)
            return item if step is None else step(item)

        return kind(each(next_convert, value))

    return convert


def tuple_like(kind: Any, item: Converter | None) -> Converter:
    def convert(value: Any) -> Any:
        if not isinstance(value, list | tuple):
            raise wrong("tuple", value)
        return kind(value if item is None else each(item, value))

    return convert


def mapping(kind: Any, arguments: tuple[Any, ...]) -> Converter:
    if issubclass(kind, collections.Counter):
        arguments = (*arguments, int)
    key, item = (converter_of(argument) for argument in (*arguments, Any, Any)[:2])
    make = (lambda made: made) if kind in MAPPINGS else maker(kind)

    def convert(value: Any) -> Any:
        if not isinstance(value, Mapping):
            raise wrong(kind.__name__, value)
        made = {}
        for k, v in value.items():
            try:
                made[k if key is None else key(k)] = v if item is None else item(v)
            except Mismatch as mismatch:
                raise mismatch.inside(key_step(k)) from mismatch.__cause__
        return make(made)

    return convert


def maker(kind: Any) -> Callable[[dict[Any, Any]], Any]:
    """How a kind of dict is made; a defaultdict comes without its factory."""
    if issubclass(kind, collections.defaultdict):
        return lambda made: kind(None, made)
    return lambda made: kind(made)


def typed_dict(kind: Any, annotation: Any) -> Converter:
    """A dict with known keys; others stay as they are."""
    compiled: dict[str, Converter | None] = {}
    required: list[str] = []

    def compile_keys() -> None:
        hints = hints_of(kind, annotation)
        compiled.update((name, converter_of(hint)) for name, hint in hints.items())
        required.extend(name for name, hint in hints.items() if is_required(kind, name, hint))

    def convert(value: Any) -> Any:
        if not isinstance(value, Mapping):
            raise wrong(kind.__name__, value)
        if not compiled:
            compile_keys()
        for name in required:
            if name not in value:
                raise Mismatch(f"{kind.__name__} needs {name!r}, which is missing")
        made = dict(value)
        for name in compiled.keys() & made.keys():
            made[name] = of_key(compiled[name], made[name], name)
        return made

    return convert


def is_required(kind: Any, name: str, hint: Any) -> bool:
    """As the hint says itself: where annotations are text, the class does not know."""
    origin = get_origin(hint)
    if origin in (typing.Required, typing.NotRequired):
        return origin is typing.Required
    return name in kind.__required_keys__


def of_key(convert: Converter | None, value: Any, name: str) -> Any:
    try:
        return value if convert is None else convert(value)
    except Mismatch as mismatch:
        raise mismatch.inside(key_step(name)) from mismatch.__cause__


def instance(kind: Any) -> Converter | None:
    """Of a class without a form on the wire: its instances; anything, if it is abstract."""
    if (
        inspect.isabstract(kind)
        or getattr(kind, "_is_protocol", False)
        or hasattr(kind, "register")
    ):
        return None

    def convert(value: Any) -> Any:
        if isinstance(value, kind):
            return value
        raise Mismatch(
            f"expected {kind.__name__}, got {kind_of(value)}: {kind.__name__} has no form on the "
            "wire; make it a dataclass, or annotate the parameter with what is sent"
        )

    return convert

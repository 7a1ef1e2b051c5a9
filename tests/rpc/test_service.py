"""What a service offers, what it never does, and how each function is to be run."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import inspect
import subprocess
import sys
import textwrap
import types
from collections import OrderedDict
from collections.abc import (
    AsyncIterator,
    Awaitable,
    Callable,
    Generator,
    Iterable,
    Iterator,
    Mapping,
    Sequence,
)
from pathlib import Path
from typing import Any, Protocol

import pytest

from forkwire import ForkwireError, UsageError
from forkwire.errors import MethodNotFoundError
from forkwire.rpc.data.kinds import kind_of, signature_text
from forkwire.rpc.handlers.service import Method, Service

from ..naming import named

Write = Callable[[str, str], types.ModuleType]


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Write]:
    """Writes a module, imports it, and forgets it after the test."""
    monkeypatch.syspath_prepend(tmp_path)
    before = set(sys.modules)

    def write(name: str, source: str) -> types.ModuleType:
        path = tmp_path.joinpath(*name.split(".")).with_suffix(".py")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(textwrap.dedent(source))
        name = name.removesuffix(".__init__")
        assert Service.of(name).name == name
        return sys.modules[name]

    yield write
    for name in set(sys.modules) - before:
        del sys.modules[name]


def names(target: object) -> list[str]:
    return list(Service.of(target).methods)


CALC = '''
"""Calculates.

At length.
"""
import math
from math import sqrt
from textwrap import dedent
import functools
from collections.abc import Iterator

PI = 3
def add(a: int, b: int = 2) -> int:
    """Add two numbers.

    More of it.
    """
    return a + b
def count(n: int) -> Iterator[int]:
    yield from range(n)
async def nap(seconds: float) -> str:
    return ""
async def ticks():
    yield 1
def _hidden(): ...
class Point: ...
@functools.lru_cache
def cached(n): return n
@functools.cache
def forever(n): return n
def logged(function):
    @functools.wraps(function)
    def wrapper(*args): return function(*args)
    return wrapper
@logged
def wrapped(n): return n
increment = functools.partial(add, 1)
root = functools.partial(sqrt, 4)
alias = add
double = lambda n: 2 * n
class Decorated:
    def __init__(self, function): functools.update_wrapper(self, function)
    def __call__(self, *args): return self.__wrapped__(*args)
@Decorated
def by_class(n): return n
application = object.__new__(Decorated)
'''


def test_module_offers_the_public_functions_it_defines(write: Write) -> None:
    """Without ``__all__``: what is defined there, decorated or not; no class, nothing imported."""
    offered = ["add", "count", "nap", "ticks", "cached", "forever", "logged", "wrapped"]
    assert names(write("calc", CALC)) == [*offered, "increment", "alias", "double", "by_class"]


def test_methods_are_ready_to_be_called(write: Write) -> None:
    """`Method.function` takes the call's arguments as they are."""
    service = Service.of(write("calc", CALC))
    for name in ("increment", "cached", "wrapped", "by_class"):
        method = service.get(name)
        assert (method.name, method.function(3)) == (name, 4 if name == "increment" else 3)
    assert service.get("add") is service.get("add")
    assert repr(service.get("nap")) == "<Method nap async>"


def test_all_decides(write: Write) -> None:
    """``__all__`` offers imported functions too; no class, constant, or ``_name``."""
    module = write(
        "chosen",
        """
        from math import sqrt, pi
        from textwrap import dedent, TextWrapper
        __all__ = ["sqrt", "pi", "TextWrapper", "own", "_private", "own", "__version__"]
        __version__ = "1"
        def own(): ...
        def other(): ...
        def _private(): ...
        """,
    )
    assert names(module) == ["sqrt", "own"]


def test_all_names_what_is_not_there(write: Write) -> None:
    """A name in ``__all__`` that does not exist is an error at once."""
    with pytest.raises(UsageError, match=r"broken\.__all__ names 'gone', which"):
        write("broken", "__all__ = ['gone']")


@pytest.mark.parametrize("value", ["'add'", "[1]", "None, 2", "{'add': 1}"])
def test_all_that_is_no_list_of_names(write: Write, value: str) -> None:
    """An ``__all__`` that is not a list of strings is an error at once."""
    with pytest.raises(UsageError, match="not a list of names"):
        write("odd", f"__all__ = {value}\ndef add(): ...")


def test_all_of_a_package_may_name_modules_and_lazy_names(write: Write) -> None:
    """A submodule in ``__all__`` is not offered; a function behind ``__getattr__`` is."""
    package = write(
        "package.__init__",
        """
        from pathlib import Path
        Path(__file__).with_name("sub.py").write_text("raise SystemExit('imported')")
        __all__ = ["sub", "lazy"]
        def found(): return 1
        def __getattr__(name):
            if name == "lazy": return found
            raise AttributeError(name)
        """,
    )
    assert names(package) == ["lazy"]
    assert Service.of(package).get("lazy").function() == 1


def test_module_that_offers_nothing(write: Write) -> None:
    """Nothing to offer is an error that says what to do."""
    with pytest.raises(UsageError, match="empty offers nothing: define public functions"):
        write("empty", "from math import sqrt")


@pytest.mark.parametrize(
    ("module", "function", "args", "result"),
    [
        ("math", "sqrt", [4], 2.0),
        ("statistics", "mean", [[1, 2, 6]], 3),
        ("json", "dumps", [[1]], "[1]"),
        ("textwrap", "dedent", [" a"], "a"),
        ("bisect", "bisect_left", [[1, 2, 3], 2], 1),
        ("operator", "add", [1, 2], 3),
        ("os.path", "basename", ["/a/b"], "b"),
    ],
)
def test_standard_library(module: str, function: str, args: list[Any], result: object) -> None:
    """The standard library's modules can be offered by name, those in C too."""
    assert Service.of(module).get(function).function(*args) == result


def test_standard_library_classes_and_constants_stay_out() -> None:
    """``json.JSONDecoder``, ``statistics.NormalDist`` and ``math.pi`` are no functions."""
    assert names("json") == ["dump", "dumps", "load", "loads"]
    assert "NormalDist" not in Service.of("statistics")
    assert "pi" not in Service.of("math")


def test_reference(write: Write) -> None:
    """What another process finds by name has a reference that `Service.of` takes."""
    module = write("calc", CALC + "class Tool:\n    def work(self): ...\ntool = Tool()\n")
    for target in (module, module.Tool, module.add):
        reference = Service.of(target).reference
        assert reference is not None
        assert list(Service.of(reference).methods) == names(target)
    assert Service.of("calc:tool").reference == "calc:tool"
    for target in (module.tool, module.cached.__wrapped__, {"add": module.add}, module.increment):
        assert Service.of(target).reference is None


def test_reference_of_main_is_none() -> None:
    """What stands in ``__main__`` can only be inherited."""
    main = types.ModuleType("__main__")
    exec("def add(): ...\nclass Tool:\n    def work(self): ...", main.__dict__)
    for target in (main, main.add, main.Tool):
        assert Service.of(target).reference is None
    assert names(main) == ["add"]


def test_object_in_a_module(write: Write) -> None:
    """``"package.module:Name"`` is a class, a function, or an object, also a nested one."""
    write(
        "shop.tools",
        """
        class Tool:
            def __init__(self, factor=2): self.factor = factor
            def work(self, n): return n * self.factor
            class Inner:
                def deep(self): ...
        tool = Tool(10)
        table = {"add": lambda a, b: a + b}
        text = "math"
        def alone(): ...
        """,
    )
    assert Service.of("shop.tools:Tool").get("work").function(4) == 8
    assert Service.of("shop.tools:tool").get("work").function(4) == 40
    assert names("shop.tools:Tool.Inner") == ["deep"]
    assert names("shop.tools:table") == ["add"]
    assert names("shop.tools:alone") == ["alone"]
    with pytest.raises(UsageError, match="is a string"):
        Service.of("shop.tools:text")
    with pytest.raises(UsageError, match="there is no 'Tol'; did you mean 'Tool'"):
        Service.of("shop.tools:Tol")


@pytest.mark.parametrize(
    "name",
    ["", ".", ".calc", "calc.py/", "./calc.py", "a b", "calc:", ":Tool", "a..b", "a:b:c", "a\0b",
     "1", "a:.b", "\x1b[31m", "x" * 10_000 + "!"],
)  # fmt: skip
def test_strings_that_are_no_module_names(name: str) -> None:
    """A string that can be no module's name is refused, in a short and printable sentence."""
    with pytest.raises(UsageError, match="not a module's name") as caught:
        Service.of(name)
    assert len(str(caught.value)) < 300
    assert str(caught.value).isprintable()


def test_import_errors_pass(write: Write) -> None:
    """A module that does not exist, or fails, raises its own error."""
    with pytest.raises(ModuleNotFoundError, match="nosuchmodule"):
        Service.of("nosuchmodule")
    with pytest.raises(ZeroDivisionError):
        write("failing", "1 / 0")


class Base:
    def inherited(self) -> str:
        return "base"

    def replaced(self) -> str:
        return "base"

    def blocked(self) -> None: ...

    def overridden_by_property(self) -> None: ...


class Account(Base):
    """An account."""

    owner: str = "me"
    constant = 3
    imported = len

    def __init__(self, balance: int = 0) -> None:
        self.balance = balance
        self.later = lambda: "set at runtime"

    def deposit(self, amount: int) -> int:
        """Put money in."""
        self.balance += amount
        return self.balance

    def replaced(self) -> str:
        return "account"

    blocked = None  # type: ignore[assignment]

    @property
    def overridden_by_property(self) -> None:  # type: ignore[override]
        raise AssertionError("a property was read")

    @functools.cached_property
    def exploding(self) -> None:
        raise AssertionError("a cached property was read")

    @staticmethod
    def static(a: int) -> int:
        return a

    @classmethod
    def named(cls) -> str:
        return cls.__name__

    @functools.lru_cache  # noqa: B019
    def remembered(self, n: int) -> int:
        return n

    part = functools.partialmethod(deposit, 5)

    async def nap(self) -> None: ...

    def __call__(self) -> None: ...

    def _private(self) -> None: ...

    def __mangled(self) -> None: ...

    class Inner:
        def method(self) -> None: ...


METHODS = ["inherited", "replaced", "deposit", "static", "named", "remembered", "part", "nap"]


@pytest.mark.parametrize("target", [Account, Account(7)], ids=["class", "instance"])
def test_class_and_instance_offer_public_methods(target: object) -> None:
    """Of the class and its bases; no property, attribute, inner class, or private name."""
    assert names(target) == METHODS


def test_bound_methods() -> None:
    """Each kind of method is bound as Python would bind it; the most derived one is taken."""
    account = Account(7)
    service = Service.of(account)
    assert service.get("deposit").function(1) == 8
    assert service.get("part").function() == 13
    assert service.get("static").function(3) == 3
    assert service.get("named").function() == "Account"
    assert service.get("remembered").function(4) == 4
    assert service.get("replaced").function() == "account"
    assert service.get("inherited").function() == "base"
    assert account.balance == 13


def test_attributes_set_at_runtime_are_not_offered() -> None:
    """Neither one set on the instance, nor one that hides a method: the class's own is called."""
    account = Account()
    account.deposit = lambda amount: -1  # type: ignore[method-assign]
    service = Service.of(account)
    assert service.get("deposit").function(2) == 2
    Account.added = lambda self: None  # type: ignore[attr-defined]
    try:
        for name in ("later", "added"):
            with pytest.raises(MethodNotFoundError):
                service.get(name)
    finally:
        del Account.added  # type: ignore[attr-defined]


def test_class_is_made_an_instance_where_it_runs() -> None:
    """Looking at a class makes no instance; `load` makes the one that every method shares."""
    made: list[object] = []

    class Counter:
        def __init__(self) -> None:
            made.append(self)
            self.n = 0

        def up(self) -> int:
            self.n += 1
            return self.n

    service = Service.of(Counter)
    assert service.kinds == {"up": "plain"}
    service.describe()
    assert not made
    service.load()
    service.load()
    assert [service.get("up").function(), service.get("up").function()] == [1, 2]
    assert len(made) == 1


def test_constructor_error_passes() -> None:
    """What a constructor raises comes out of `load` as it is."""

    class Broken:
        def __init__(self) -> None:
            raise KeyError("settings")

        def work(self) -> None: ...

    with pytest.raises(KeyError, match="settings"):
        Service.of(Broken).load()


def test_constructor_with_arguments_is_refused() -> None:
    """A class that needs arguments is refused at once, with what to do; optional ones are fine."""

    class Needs:
        def __init__(self, path: str, *args: int, size: int, other: int = 1, **kw: int) -> None: ...

        def work(self) -> None: ...

    with pytest.raises(
        UsageError, match=r"Needs\(\) needs arguments \(path, size\): offer an inst"
    ):
        Service.of(Needs)
    assert names(Needs("x", size=1)) == ["work"]


def test_hostile_instances() -> None:
    """Nothing is looked up on an instance, and no hook of its class or metaclass is run."""

    def explode(*_: object) -> None:
        raise AssertionError("a hook was run")

    class Meta(type):
        def __getattr__(cls, name: str) -> object:
            raise AssertionError("the metaclass was asked")

        def secret(cls) -> None: ...

    class Hostile(metaclass=Meta):
        __slots__ = ("slot",)
        __getattr__ = explode
        __getattribute__ = explode
        __class__ = property(explode)  # pyright: ignore[reportIncompatibleMethodOverride]
        __eq__ = explode  # type: ignore[assignment]
        __hash__ = explode  # type: ignore[assignment]
        __repr__ = explode  # type: ignore[assignment]
        __bool__ = explode
        __len__ = explode
        prop = property(explode)

        def fine(self) -> int:
            return 1

    service = Service.of(Hostile())
    assert list(service.methods) == ["fine"]
    assert service.get("fine").function() == 1
    assert Service.of(Hostile).get("fine").function() == 1
    service.describe()


def test_callable_proxies_in_a_module_are_left_alone(write: Write) -> None:
    """An object that pretends to be another one, as werkzeug's locals do, is not asked."""
    module = write(
        "local",
        """
        class Local:
            def __call__(self): ...
            @property
            def __class__(self): raise RuntimeError("outside of a request")
            def __getattr__(self, name): raise RuntimeError("outside of a request")
        request = Local()
        def add(): ...
        """,
    )
    assert names(module) == ["add"]


def test_dynamic_class_names() -> None:
    """A name that is no identifier is not offered, however it came into the class."""
    odd = type("Odd", (), {"a.b": lambda self: 1, "": lambda self: 1, "fine": lambda self: 1})
    assert names(odd) == ["fine"]


def test_subclass_of_a_builtin_offers_its_methods() -> None:
    """A class over ``dict`` offers the methods of ``dict`` too, also as an instance."""

    class Store(dict[str, int]):
        def put(self, key: str, value: int) -> None:
            self[key] = value

    service = Service.of(Store())
    service.get("put").function("a", 1)
    assert service.get("get").function("a") == 1
    assert Service.of(Store).get("fromkeys").function(["a"]) == {"a": None}


def test_mapping() -> None:
    """A mapping offers each callable under its key, as it was at that time; classes too."""
    table: dict[str, Any] = {"double": lambda n: 2 * n, "number": int, "mean": sum}
    service = Service.of(OrderedDict(table))
    table.clear()
    assert list(service.methods) == ["double", "number", "mean"]
    assert service.get("number").function("3") == 3
    assert names(types.MappingProxyType({"a": len})) == ["a"]


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({}, "offers nothing"),
        ({1: len}, "1 is not a public name"),
        ({"_a": len}, "not a public name"),
        ({"a.b": len}, "not a public name"),
        ({"": len}, "not a public name"),
        ({"a": 3}, "'a' is a int, which cannot be called"),
    ],
)
def test_odd_mappings(table: Mapping[Any, object], message: str) -> None:
    """A mapping with something that cannot be offered is refused."""
    with pytest.raises(UsageError, match=message):
        Service.of(table)


def test_single_function(write: Write) -> None:
    """A function is offered under its own name; one that has none is refused."""
    module = write("calc", CALC)
    assert names(module.add) == names(module.increment) == ["add"]
    assert names(module.cached) == ["cached"]
    assert names(Account(3).deposit) == ["deposit"]
    assert names(len) == ["len"]
    for target in (module._hidden, module.double, functools.partial(lambda: 1)):
        with pytest.raises(UsageError, match="offer it under one"):
            Service.of(target)


class Abstract(Protocol):
    def work(self) -> None: ...


async def coroutine_function() -> None: ...


@pytest.mark.parametrize(
    "target",
    [None, 3, b"calc", 1.5, ["calc"], ("calc",), {"calc"}, Abstract, Sequence, object(), object,
     iter([]), Ellipsis, NotImplemented],
    ids=named,
)  # fmt: skip
def test_what_can_never_be_a_service(target: object) -> None:
    """It is refused at once, and the sentence says what to offer instead."""
    with pytest.raises(UsageError, match="offer") as caught:
        Service.of(target)
    assert isinstance(caught.value, ForkwireError)


def test_awaitables_are_refused() -> None:
    """A coroutine is the commonest slip: the sentence says so."""
    coroutine = coroutine_function()
    with pytest.raises(UsageError, match="not called"):
        Service.of(coroutine)
    coroutine.close()


def test_workers_are_refused() -> None:
    """Forkwire's own objects are no services."""
    worker = object.__new__(__import__("forkwire").ProcessWorker)
    with pytest.raises(UsageError, match="one of Forkwire's own objects"):
        Service.of(worker)


def test_service_of_a_service() -> None:
    """A service is what it is."""
    service = Service.of("math")
    assert Service.of(service) is service


def test_near_names() -> None:
    """An unknown name is answered with the near ones, or with some that there are."""
    service = Service.of("math")
    with pytest.raises(MethodNotFoundError, match="math offers no 'sqr'; did you mean 'sqrt'"):
        service.get("sqr")
    with pytest.raises(AttributeError, match=r"there is acos, .*, \.\.\."):
        service.get("zzz")


@pytest.mark.parametrize(
    "name",
    ["", "_hidden", "__init__", "__class__", "deposit.__func__", "balance", "later", "mangled",
     "_Account__mangled", "Inner", "Inner.method", "mro", "register", "constant", "imported",
     "exploding", "blocked", "deposit\0", " deposit", "DEPOSIT", "ｄeposit", "\ud800", "\x1b[2J",
     "\u202edeposit", "x" * 1_000_000, "deposit" * 50_000],
    ids=lambda name: ascii(name[:20]),
)  # fmt: skip
def test_hostile_names(name: str) -> None:
    """Whatever is asked for, only what is offered is found; the answer is short and printable."""
    with pytest.raises(MethodNotFoundError) as caught:
        Service.of(Account()).get(name)
    text = str(caught.value)
    assert len(text) < 300
    assert text.isprintable()
    text.encode()
    assert name not in Service.of(Account)


def plain() -> None: ...
async def coroutine() -> None: ...
def generator() -> Iterator[int]:
    yield 1


async def async_generator() -> AsyncIterator[int]:
    yield 1


def returns_iterator() -> Iterator[int]:
    return iter([])


def returns_iterable() -> Iterable[int]:
    return []


def returns_generator() -> Generator[int, None, None]:
    return generator()  # type: ignore[return-value]


def returns_async() -> AsyncIterator[int]:
    return async_generator()


def returns_awaitable() -> Awaitable[None]:
    return coroutine()


def returns_unknown() -> Unknown[int]:  # type: ignore[name-defined] # noqa: F821
    ...
@contextlib.contextmanager
def context() -> Iterator[int]:
    yield 1


@contextlib.asynccontextmanager
async def async_context() -> AsyncIterator[int]:
    yield 1


def passing(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def wrapper(*args: Any) -> Any:
        return function(*args)

    return wrapper


def turned_async(function: Callable[..., Any]) -> Callable[..., Awaitable[Any]]:
    @functools.wraps(function)
    async def wrapper(*args: Any) -> Any:
        return list(function(*args))

    return wrapper


class Callables:
    def plain(self) -> None: ...
    async def coroutine(self) -> None: ...
    @staticmethod
    async def static() -> None: ...
    @classmethod
    async def of_class(cls) -> None: ...


class AsyncCallable:
    async def __call__(self) -> None: ...


class StreamCallable:
    def __call__(self) -> Iterator[int]:
        yield 1


def circular() -> None: ...


circular.__wrapped__ = circular  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("function", "kind"),
    [
        (plain, "plain"),
        (coroutine, "async"),
        (generator, "generator"),
        (async_generator, "async_generator"),
        (functools.partial(functools.partial(coroutine)), "async"),
        (functools.partial(async_generator), "async_generator"),
        (passing(coroutine), "async"),
        (passing(passing(generator)), "generator"),
        (functools.partial(passing(async_generator)), "async_generator"),
        (turned_async(generator), "async"),
        (functools.lru_cache(coroutine), "async"),
        (returns_iterator, "generator"),
        (returns_generator, "generator"),
        (returns_async, "async_generator"),
        (returns_iterable, "plain"),
        (returns_awaitable, "async"),
        (returns_unknown, "plain"),
        (context, "plain"),
        (async_context, "plain"),
        (passing(context), "plain"),
        (context()(generator), "generator"),
        (Callables().plain, "plain"),
        (Callables().coroutine, "async"),
        (Callables.static, "async"),
        (Callables.of_class, "async"),
        (Callables.__dict__["static"], "async"),
        (Callables.__dict__["of_class"], "async"),
        (functools.partialmethod(Callables.coroutine), "async"),
        (AsyncCallable(), "async"),
        (StreamCallable(), "generator"),
        (functools.partial(AsyncCallable()), "async"),
        (circular, "plain"),
        (len, "plain"),
        (int, "plain"),
        (asyncio.sleep, "async"),
    ],
)  # fmt: skip
def test_kinds(function: Any, kind: str) -> None:
    """How it is to be run is seen through partials, decorators and objects."""
    assert kind_of(function) == kind


def test_kinds_by_unresolvable_annotation() -> None:
    """A type that is only there for type checkers is taken at its word; a user's own is not."""
    scope: dict[str, Any] = {"annotations": None}
    source = """
from __future__ import annotations
class Generator: ...
def words() -> Iterator[str]: return iter(())
def dotted() -> abc.AsyncIterator[str]: ...
def own() -> Generator: return Generator()
"""
    exec(source, scope)
    assert kind_of(scope["words"]) == "generator"
    assert kind_of(scope["dotted"]) == "async_generator"
    assert kind_of(scope["own"]) == "plain"


def test_has_async(write: Write) -> None:
    """A service needs a loop if any function of it is async."""
    assert Service.of(write("calc", CALC)).has_async
    assert Service.of({"a": async_generator}).has_async
    assert not Service.of({"a": plain, "b": generator}).has_async


def test_describe(write: Write) -> None:
    """Plain data: kinds, signatures as they were written, first lines."""
    service = Service.of(write("calc", "from __future__ import annotations\n" + CALC))
    described = service.describe()
    assert described["name"] == "calc"
    assert described["methods"]["add"] == {
        "kind": "plain",
        "signature": "(a: int, b: int = 2) -> int",
        "doc": "Add two numbers.",
    }
    assert described["methods"]["count"]["signature"] == "(n: int) -> Iterator[int]"
    assert described["methods"]["nap"]["kind"] == "async"
    assert described["methods"]["increment"]["doc"] == "Add two numbers."
    assert Service.of("statistics").describe()["doc"] == "Basic statistics module."


def test_describe_leaves_self_out() -> None:
    """Signatures are as callers see them, for every kind of method."""
    methods = Service.of(Account).describe()["methods"]
    assert methods["deposit"]["signature"] == "(amount: int) -> int"
    assert methods["static"]["signature"] == "(a: int) -> int"
    assert methods["named"]["signature"] == "() -> str"
    assert methods["remembered"]["signature"] == "(n: int) -> int"
    assert methods["part"]["signature"] in ("() -> int", "(amount: int = 5) -> int")
    assert methods == Service.of(Account()).describe()["methods"]


def test_signature_text_is_bounded_and_never_raises() -> None:
    """A default that fails to show itself, or shows too much, does no harm."""

    class Odd:
        def __repr__(self) -> str:
            raise ValueError

    def odd(a: object = Odd()) -> None: ...
    def long(a: object = "x" * 10_000) -> None: ...

    assert signature_text(odd) == "(...)"
    assert len(signature_text(long)) == 300
    assert signature_text(type("NoSignature", (), {"__signature__": 3})()) == "(...)"


def test_methods_cannot_be_changed() -> None:
    """The mappings that a service hands out are read-only."""
    service = Service.of({"a": plain})
    with pytest.raises(TypeError):
        service.methods["b"] = Method("b", plain, "plain")  # type: ignore[index]
    with pytest.raises(TypeError):
        service.kinds["b"] = "plain"  # type: ignore[index]
    assert repr(service) == "<Service functions: a>"


def test_shape_is_made_late() -> None:
    """A method has the shape of its bound function."""
    shape = Service.of(Account()).get("deposit").shape
    assert list(shape.signature.parameters) == ["amount"]
    assert shape is not None
    assert inspect.signature(Account.deposit) != shape.signature


def test_light() -> None:
    """What a service offers is found without msgspec, cbor2, anyio or numpy in use."""
    code = (
        "import sys, types\n"
        "for name in ('msgspec', 'cbor2', 'numpy'): sys.modules[name] = None\n"
        "from forkwire.rpc.handlers.service import Service\n"
        "print(Service.of('math').get('sqrt').function(4))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30)
    assert (done.stdout, done.stderr) == ("2.0\n", "")

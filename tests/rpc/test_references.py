"""Which services another interpreter finds, and so how they are started unless that is said."""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import importlib.util
import sys
import types
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from forkwire import UsageError, open_worker
from forkwire.rpc import references
from forkwire.rpc.settings import settings_of

from .services import starting

SOURCE = "def add(a: int, b: int) -> int: return a + b\n"


class Calc:
    def add(self, a: int, b: int) -> int:
        return a + b


def default(service: object, **options: Any) -> str:
    return settings_of(service, **options).start


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """On the path; what is imported from it is forgotten."""
    monkeypatch.syspath_prepend(str(tmp_path))
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        del sys.modules[name]


def load(folder: Path, name: str) -> types.ModuleType:
    (folder / f"{name}.py").write_text(SOURCE)
    return importlib.import_module(name)


def test_what_can_be_imported_is_from_a_template(folder: Path) -> None:
    """Modules, their names, classes and functions in them; also what is not there at all."""
    module = load(folder, "fw_found")
    for service in (module, "fw_found", "fw_found:add", module.add, starting, "json", "fw_none"):
        assert default(service) == "template"
    assert default(Calc) == "template"


def test_what_has_a_state_here_is_forked() -> None:
    """Instances, mappings, closures, and what stands in ``__main__``."""

    def closure(a: int) -> int:
        return a

    for service in (Calc(), {"add": starting.add}, {"add": lambda a: a}, closure):
        assert default(service) == "fork"
    main = types.ModuleType("__main__")
    main.add = starting.add  # type: ignore[attr-defined]
    main.__all__ = ["add"]  # type: ignore[attr-defined]
    assert default(main) == "fork"


def test_an_initializer_without_a_name_is_inherited() -> None:
    """And so are arguments of it that do not travel."""
    assert default(starting, initializer=starting.initialize, initargs=[1]) == "template"
    assert default(starting, initializer=lambda: None) == "fork"
    assert default(starting, initializer=starting.initialize, initargs=[object()]) == "fork"


class InMemory(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """A finder of this program's own."""

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: object = None
    ) -> importlib.machinery.ModuleSpec | None:
        return importlib.util.spec_from_loader(name, self) if name == "fw_memory" else None

    def exec_module(self, module: types.ModuleType) -> None:
        exec(SOURCE, module.__dict__)


def test_what_only_this_program_finds_is_forked(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From a finder of its own, from another place than is found now, or from nowhere."""
    monkeypatch.setattr(sys, "meta_path", [InMemory(), *sys.meta_path])
    assert default(importlib.import_module("fw_memory")) == "fork"
    module = load(folder, "fw_shadowed")
    nearer = folder / "nearer"
    nearer.mkdir()
    (nearer / "fw_shadowed.py").write_text(SOURCE)
    assert default(module) == "template"
    monkeypatch.syspath_prepend(str(nearer))
    assert default(module) == "fork"
    made = types.ModuleType("fw_made")
    made.add, made.__all__ = starting.add, ["add"]  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "fw_made", made)
    assert default(made) == "fork"


def test_without_an_interpreter_all_is_forked(monkeypatch: pytest.MonkeyPatch) -> None:
    """A frozen program has none; to ask for a template there is refused, with the reason."""
    monkeypatch.setattr(sys, "frozen", True, raising=False)
    assert default(starting) == "fork"
    with pytest.raises(UsageError, match="no Python interpreter"):
        open_worker(starting, start="template")


def test_a_kernel_without_pidfd_has_none(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same."""
    references.can_watch.cache_clear()
    monkeypatch.setattr("forkwire.process.guard_main.open_exit_fd", lambda pid: -1)
    try:
        assert default(starting) == "fork"
    finally:
        references.can_watch.cache_clear()


def test_a_program_is_executed() -> None:
    """It has no start method."""
    with pytest.raises(UsageError, match="a program is executed"):
        open_worker(command=["true"], start="template")

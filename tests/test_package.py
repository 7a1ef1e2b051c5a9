"""The package as a whole: what importing it costs, what it offers, and what it is made of."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest

import forkwire
from forkwire import sync

from .naming import named

PUBLIC = [forkwire, sync]


@pytest.mark.parametrize("module", PUBLIC, ids=lambda module: module.__name__)
def test_all_is_true_and_sorted(module: object) -> None:
    """``__all__`` names what exists, once, in order."""
    names = list(getattr(module, "__all__", []))
    assert names
    assert len(set(names)) == len(names)
    assert all(hasattr(module, name) for name in names)


def public_things() -> list[tuple[str, object]]:
    found: list[tuple[str, object]] = []
    for module in PUBLIC:
        for name in module.__all__:
            thing = getattr(module, name)
            found.append((f"{module.__name__}.{name}", thing))
            if inspect.isclass(thing):
                found += [
                    (f"{module.__name__}.{name}.{member}", value)
                    for member, value in inspect.getmembers(thing)
                    if not member.startswith("_") and callable(value)
                    if getattr(value, "__module__", "").startswith("forkwire")
                ]
    return [(name, thing) for name, thing in found if callable(thing)]


@pytest.mark.parametrize(("name", "thing"), public_things(), ids=named)
def test_everything_public_has_a_docstring(name: str, thing: object) -> None:
    """Each public class, function and method says what it is."""
    assert inspect.getdoc(thing), name


def test_every_module_says_what_it_is_for() -> None:
    """Each module opens with a docstring, and can be imported."""
    for found in pkgutil.walk_packages(forkwire.__path__, "forkwire."):
        if not found.name.endswith("__main__"):
            assert importlib.import_module(found.name).__doc__, found.name


@pytest.mark.parametrize("module", ["forkwire", "forkwire.sync"])
def test_importing_brings_in_no_extra(module: str) -> None:
    """The base layer works with cbor2 not installed, and loads no optional package by itself."""
    unwanted = ["cbor2", "msgspec", "rich", "cyclopts", "trio", "uvloop", "numpy"]
    script = (
        f"import sys; sys.modules.update(dict.fromkeys({unwanted[:2]!r})); import {module}; "
        f"print([name for name in {unwanted!r} if sys.modules.get(name)])"
    )
    result = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=50
    )
    assert result.stdout.strip() == "[]"


def test_importing_all_starts_no_thread() -> None:
    """With an extra installed neither: each fork after it would be one beside threads."""
    code = (
        "from forkwire import *; import sys, threading; "
        "print(examine_fork(), {'joblib', 'numpy'} & sys.modules.keys())"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (result.stdout, result.stderr) == ("safe to fork: no other thread runs set()\n", "")


def test_the_package_is_marked_as_typed() -> None:
    """Type checkers read the annotations of an installed copy."""
    assert (Path(forkwire.__file__).parent / "py.typed").is_file()

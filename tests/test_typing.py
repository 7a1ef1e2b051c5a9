"""The types are part of the interface: mypy and pyright agree with the files in ``typing``."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
ROOT = HERE.parent
CASES = sorted((HERE / "typing").glob("*.py"))

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

CHECKERS = {"mypy": ["--strict", "--warn-unused-ignores"], "pyright": []}


@pytest.fixture(params=CHECKERS)
def checker(request: pytest.FixtureRequest) -> list[str]:
    """The command of one that is installed."""
    name: str = request.param
    if importlib.util.find_spec(name) is None:
        pytest.skip(f"{name} is not installed: pip install forkwire[check]")
    return [sys.executable, "-m", name, *CHECKERS[name]]


def test_the_types_are_what_the_files_assert(checker: list[str]) -> None:
    """Every assert_type holds, and every ignored line is an error without its ignore."""
    assert len(CASES) >= 6
    command = [*checker, *map(str, CASES)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stdout

"""The scripts around the tests: on which Pythons they run, and how a run is summed up."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
ALL_PYTHONS = ROOT / "tests" / "all-pythons"
CI = ROOT / ".ci" / "run"

# A Python of any version: it makes environments with itself in them, and tests nothing.
FAKE = """#!{python}
import os, shutil, sys
match sys.argv[1:3]:
    case ["-c", program]:
        sys.version_info = {version}
        sys.base_prefix = "{name}"
        exec(program)
    case ["-m", "venv"]:
        os.makedirs(sys.argv[-1] + "/bin", exist_ok=True)
        shutil.copy(__file__, sys.argv[-1] + "/bin/python")
    case ["-m", "pytest"]:
        print("tested with {name}")
"""


def script(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)
    return path


class Pythons:
    """A copy of ``tests/all-pythons``, and the interpreters that it can find."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.script = script(folder / "tests" / "all-pythons", ALL_PYTHONS.read_text())
        for tool in ("dirname", "seq"):
            found = shutil.which(tool)
            assert found
            (folder / "bin").mkdir(exist_ok=True)
            (folder / "bin" / tool).symlink_to(found)

    def add(self, place: str, name: str, *version: int) -> Path:
        text = FAKE.format(python=sys.executable, version=version, name=name)
        return script(self.folder / place, text)

    def run(self, **variables: str) -> subprocess.CompletedProcess[str]:
        places = {"PATH": str(self.folder / "bin"), "PYENV_ROOT": str(self.folder / "pyenv")}
        return subprocess.run(
            [self.script], env={**places, **variables}, capture_output=True, text=True, timeout=40
        )

    def used(self, **variables: str) -> list[str]:
        """The interpreters that it ran the tests with, which passed."""
        done = self.run(**variables)
        assert (done.returncode, done.stderr) == (0, "")
        prefix = "tested with "
        lines = done.stdout.splitlines()
        return [line.removeprefix(prefix) for line in lines if line.startswith(prefix)]


@pytest.fixture
def pythons(tmp_path: Path) -> Pythons:
    return Pythons(tmp_path)


def test_each_python_is_found_once(pythons: Pythons) -> None:
    """On PATH or under pyenv, and later ones than we know of; 3.10 is too old."""
    pythons.add("bin/python3.10", "too old", 3, 10)
    pythons.add("bin/python3.12", "on PATH", 3, 12)
    pythons.add("pyenv/versions/3.12.1/bin/python", "not needed", 3, 12)
    pythons.add("pyenv/versions/3.11.7/bin/python", "under pyenv", 3, 11)
    pythons.add("bin/python3.17", "yet to come", 3, 17)
    assert pythons.used() == ["under pyenv", "on PATH", "yet to come"]


def test_the_python_that_is_named_comes_first(pythons: Pythons) -> None:
    """Before the others of its version, also where an environment was made with another one."""
    pythons.add("bin/python3.12", "on PATH", 3, 12)
    assert pythons.used() == ["on PATH"]
    assert pythons.used(PYTHON=str(pythons.add("mine/python", "mine", 3, 12))) == ["mine"]
    assert pythons.used(PYTHON="") == ["on PATH"]


@pytest.mark.parametrize("version", [(3, 10), None], ids=["too old", "not there"])
def test_a_python_that_cannot_be_used_is_refused(
    pythons: Pythons, version: tuple[int, int] | None
) -> None:
    """Rather than others in its place."""
    pythons.add("bin/python3.12", "on PATH", 3, 12)
    if version:
        pythons.add("mine/python", "mine", *version)
    done = pythons.run(PYTHON=str(pythons.folder / "mine" / "python"))
    assert done.returncode == 1
    assert done.stdout == f"{pythons.folder}/mine/python is no Python from 3.11 up\n"


SKIPPED = "SKIPPED [3] tests/peers/test_peers.py:9: the OCaml peers are not built"
ALL_WELL = f"""...s
=========================== short test summary info ============================
{SKIPPED}
================== 1200 passed, 3 skipped in 80.00s (0:01:20) =================="""
SOME_FAIL = ALL_WELL.replace("1200 passed, 3", "2 failed, 1200 passed, 1 error, 3")
TWO_CHECKS = """src/forkwire/sync.py:1: error: no
make: *** [Makefile:60: check-mypy] Error 1
make: *** [Makefile:69: check-imports] Error 1
make: Target 'check' not remade because of errors."""


@pytest.mark.skipif(not CI.exists(), reason="this copy of the sources has no .ci")
@pytest.mark.parametrize(
    ("tests", "checks", "status", "last"),
    [
        ((0, ALL_WELL), (0, "fine"), 0, ALL_WELL.splitlines()[-1]),
        ((2, SOME_FAIL), (0, "fine"), 2, SOME_FAIL.splitlines()[-1]),
        ((0, ALL_WELL), (2, TWO_CHECKS), 1, "1200 passed, 2 failed"),
        ((2, SOME_FAIL), (2, TWO_CHECKS), 1, "1200 passed, 5 failed"),
        ((0, ALL_WELL), (2, "make: *** no network"), 1, "1200 passed, 1 failed"),
        ((2, "make: *** no network"), (2, "make: *** no network"), 1, "0 passed, 2 failed"),
        ((2, "killed"), (0, "fine"), 1, "0 passed, 1 failed"),
    ],
)
def test_ci_sums_up(
    tmp_path: Path, tests: tuple[int, str], checks: tuple[int, str], status: int, last: str
) -> None:
    """The last line counts what passed and failed; before it stands what was skipped, and why."""
    run = script(tmp_path / ".ci" / "run", CI.read_text())
    for name, (code, text) in {"test": tests, "check": checks}.items():
        script(tmp_path / name, f"cat <<'END'\n{text}\nEND\nexit {code}\n")
    script(tmp_path / "bin" / "make", '#!/bin/sh\nfor target; do :; done\nexec sh "$target"\n')
    path = f"{tmp_path}/bin:{os.environ['PATH']}"
    done = subprocess.run(
        [run], env={"PATH": path}, capture_output=True, text=True, timeout=40, check=False
    )
    assert (done.returncode, done.stderr) == (status, "")
    assert done.stdout.splitlines()[-1] == last
    after_the_checks = done.stdout.rpartition(checks[1])[2]
    assert (SKIPPED in after_the_checks) == (SKIPPED in tests[1])
    assert tests[1] in done.stdout

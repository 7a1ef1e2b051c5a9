"""A thousand workers, ended in every way, leave nothing behind."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="reads /proc"),
    pytest.mark.slow,
]

PROGRAM = Path(__file__).parent / "host_death" / "leaks.py"
WAYS = 7  # of ending one; one of them is to cancel the start, another to drop the handle
COUNT = 57 * WAYS  # on each of three backends


@pytest.mark.parametrize("backend", ["asyncio", "uvloop", "trio"])
def test_nothing_is_left_of_a_thousand_workers(backend: str) -> None:
    """Descriptors, children, threads, objects and memory are as before; there was no zombie."""
    program = [sys.executable, str(PROGRAM), backend, str(COUNT)]
    done = subprocess.run(program, capture_output=True, text=True, timeout=50, check=False)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    before, after = told["before"], told["after"]
    assert told["started"] >= COUNT // WAYS * (WAYS - 1)
    assert told["lingering"] == 0
    assert told["warned"] == COUNT // WAYS
    for what in ("descriptors", "children", "threads", "owned", "registered"):
        assert after[what] == before[what], what
    assert after["objects"] - before["objects"] < COUNT - COUNT // WAYS
    assert after["memory"] - before["memory"] < 2000  # KB

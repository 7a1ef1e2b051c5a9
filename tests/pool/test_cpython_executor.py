"""CPython's own tests of its executor, against ours, where this interpreter has them."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

SUITE = Path(__file__).with_name("cpython_suite.py")

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


def has_tests() -> bool:
    try:
        return importlib.util.find_spec("test.test_concurrent_futures.util") is not None
    except ImportError:
        return False


@pytest.mark.skipif(not has_tests(), reason="this interpreter comes without CPython's tests")
def test_cpythons_tests_pass() -> None:
    """All but those that `cpython_suite.LEFT_OUT` names, with the reason of each."""
    done = subprocess.run(
        [sys.executable, SUITE], capture_output=True, text=True, timeout=590, check=False
    )
    assert done.stdout, done.stderr
    report = json.loads(done.stdout.splitlines()[-1])
    assert report["failed"] == [], done.stderr
    assert report["ran"] >= 150
    assert report["left_out"] <= 30
    assert done.returncode == 0

"""Fuzz one target with atheris: ``python tests/fuzz/run.py TARGET [libFuzzer's options]``.

``make fuzz`` runs all of them. A finding is written to a file, and shown; give that file to this
script to see it again.
"""

from __future__ import annotations

import importlib
import logging
import pathlib
import sys
import tempfile
from typing import Any

# Installed by `make fuzz` alone.
atheris: Any = importlib.import_module("atheris")

sys.path.insert(0, str(pathlib.Path(__file__).parent))

with atheris.instrument_imports(include=["forkwire"]):
    from targets import TARGETS, seeds  # type: ignore[import-not-found,unused-ignore]


def main() -> None:
    if len(sys.argv) < 2 or sys.argv[1] not in TARGETS:
        sys.exit(f"usage: {sys.argv[0]} {'|'.join(TARGETS)} [libFuzzer's options]")
    logging.disable()
    target = TARGETS[sys.argv.pop(1)]
    with tempfile.TemporaryDirectory() as corpus:
        for number, seed in enumerate(seeds()):
            pathlib.Path(corpus, str(number)).write_bytes(seed)
        atheris.Setup([*sys.argv, corpus], target)
        atheris.Fuzz()


if __name__ == "__main__":
    main()

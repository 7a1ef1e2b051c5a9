"""Every example runs, on each backend, and prints what it says at its end."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent.parent / "examples"
EXAMPLES = sorted(FOLDER.glob("*.py"))
PRINTS = "\n# Prints:\n"

BACKENDS = {
    "asyncio": "anyio.run(main)",
    "uvloop": 'anyio.run(main, backend_options={"use_uvloop": True})',
    "trio": 'anyio.run(main, backend="trio")',
}


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_prints_what_it_says(example: Path, backend: str, tmp_path: Path) -> None:
    """With warnings shown there is none, and the output is the comment at the end."""
    source = example.read_text()
    assert source.count(BACKENDS["asyncio"]) == 1
    script = tmp_path / example.name
    script.write_text(source.replace(BACKENDS["asyncio"], BACKENDS[backend]))
    result = subprocess.run(
        [sys.executable, "-W", "always", script], capture_output=True, text=True, timeout=50
    )
    expected = source.partition(PRINTS)[2].replace("# ", "")
    assert result.stdout == expected, result.stderr
    assert result.returncode == 0
    assert "Warning" not in result.stderr


def test_the_table_lists_every_example() -> None:
    """``examples/README.md`` links to each, in order."""
    table = (FOLDER / "README.md").read_text()
    linked = [line.partition("(")[2].partition(")")[0] for line in table.splitlines()
              if line.startswith("| [")]  # fmt: skip
    assert linked == [path.name for path in EXAMPLES]

"""Every example runs, on each backend, and prints what it says at its end."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent.parent / "examples"
EXAMPLES = sorted(FOLDER.glob("[0-9]*.py"))
BESIDE = ("calc.py", "far_shell.py", "node")  # what some of them use
PRINTS = "\n# Prints:\n"
LIMIT = 50.0  # seconds

RUN = "anyio.run(main)"
BACKENDS = {
    "asyncio": RUN,
    "uvloop": 'anyio.run(main, backend_options={"use_uvloop": True})',
    "trio": 'anyio.run(main, backend="trio")',
}


def scripts_of(example: Path, folder: Path) -> Iterator[Path]:
    """The example once for each backend; just once where it runs no loop."""
    source = example.read_text()
    assert source.count(RUN) == ("\nimport anyio\n" in source)
    for backend, call in BACKENDS.items() if RUN in source else [("blocking", "")]:
        place = folder / backend
        place.mkdir()
        for name in BESIDE:
            (place / name).symlink_to(FOLDER / name)
        script = place / example.name
        script.write_text(source.replace(RUN, call))
        yield script


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_prints_what_it_says(example: Path, tmp_path: Path) -> None:
    """On every backend the output is the comment at the end; with warnings shown there is none."""
    expected = example.read_text().partition(PRINTS)[2].replace("# ", "")
    running = [
        subprocess.Popen(
            [sys.executable, "-W", "always", script],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for script in scripts_of(example, tmp_path)
    ]
    for process in running:
        output, errors = process.communicate(timeout=LIMIT)
        if "node is not installed" not in output:
            assert output == expected, (process.args, errors)
        assert process.returncode == 0
        assert "Warning" not in errors, process.args


def test_the_table_lists_every_example() -> None:
    """``examples/README.md`` links to each, in order."""
    table = (FOLDER / "README.md").read_text()
    linked = [line.partition("(")[2].partition(")")[0] for line in table.splitlines()
              if line.startswith("| [")]  # fmt: skip
    assert linked == [path.name for path in EXAMPLES]

"""The runner of calls finds what is broken: the worker in Node, each time with one fault."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Final

import pytest

ROOT: Final = Path(__file__).resolve().parents[2]
RUNNER: Final = ROOT / "protocol-spec" / "conformance" / "calls.py"
NODE: Final = shutil.which("node")
# A program that writes to the host what stands behind it.
WRITE: Final = (
    "import os; (lambda data: os.write(int(os.environ['FORKWIRE_FDS'].split(',')[1]), data))"
)
VECTORS: Final = {
    vector["name"]: vector
    for path in (RUNNER.parents[1] / "vectors-calls").glob("*.json")
    for vector in json.loads(path.read_text("utf-8"))["vectors"]
}

# What is replaced in which file, by what; the vector that finds it; the requirement that it breaks.
FAULTS: Final = [
    ("forkwire", "[PING](n) {\n    this.send([PONG, n]);", "[PING](n) {", "ping", "C-39"),
    ("forkwire", "this.send([PONG, n])", "this.send([PONG, n + 1])", "ping", "C-39"),
    ("forkwire", "    await call.wanted();\n", "", "stream-by-credit", "C-29"),
    ("forkwire", "this.credit--;", "", "stream-by-credit", "C-29"),
    ("forkwire", "id <= this.#last", "false", "id-twice", "C-12"),
    ("forkwire", "if (call) call.cancelled = true;", "", "cancel-twice", "C-26"),
    ("forkwire", "!call && id > this.#last", "!call", "late-messages", "C-15"),
    ("forkwire", "if (left.size) throw", "if (false) throw", "attachment-not-named", "C-23"),
    ("forkwire", "this.#streamed && message[0] !== CALL", "false",
     "argument-stream-in-a-result", "C-33"),
    ("forkwire", "message[0] > 23 && message[0] % 2", "false", "later-request", "C-41"),
    ("forkwire", "Object.hasOwn(this.methods, method) ? this.methods[method] : null",
     "this.methods[method]", "method-of-the-language", "C-17"),
    ("forkwire", "if (this.meta.progress !== true ||", "if (", "progress-unwanted", "C-42"),
    ("forkwire", "tree === undefined ? {} : { tree }", "{}", "callback-carries-the-tree", "C-48"),
    ("forkwire", "if (!this.#left) this.send([GOODBYE, null]);", "", "goodbye", "C-45"),
    ("forkwire", "if (this.#mute) return;", "", "item-for-a-plain-call", "C-32"),
    ("forkwire", "signal.addEventListener(\"abort\", cancel);", "", "cancel-in-a-callback", "C-25"),
    ("wire", "fields.length >= least && ", "", "ping-of-no-field", "C-2"),
    ("wire", "x !== \"\"", "true", "method-name-empty", "C-13"),
    ("cbor", "if (reader.at !== data.length)", "if (false)", "bytes-after-the-message", "C-1"),
    ("cbor", "if (map.has(key)) throw", "if (false) throw", "key-twice", "C-51"),
    ("cbor", "fatal: true", "fatal: false", "text-is-not-utf-8", "C-51"),
    ("cbor", "head(1, -1n - BigInt(value))", "head(1, -BigInt(value))", "plain-values", "C-50"),
    ("worker", "return n;", "", "progress-wanted", "C-42"),
]  # fmt: skip


def run(worker: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """The runner's report on a worker."""
    return subprocess.run(
        [sys.executable, RUNNER, *options, "--", str(NODE), worker],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.mark.skipif(NODE is None, reason="node is not installed")
@pytest.mark.parametrize(
    ("file", "old", "new", "vector", "requirement"), FAULTS, ids=[fault[3] for fault in FAULTS]
)
def test_finds(
    tmp_path: Path, file: str, old: str, new: str, vector: str, requirement: str
) -> None:
    """A worker with this fault fails this vector, which says that it shows this requirement."""
    assert requirement in VECTORS[vector]["requires"]
    shutil.copytree(ROOT / "examples" / "node", tmp_path, dirs_exist_ok=True)
    path = tmp_path / f"{file}.mjs"
    text = path.read_text("utf-8")
    assert text.count(old) == 1
    path.write_text(text.replace(old, new), "utf-8")
    result = run(tmp_path / "worker.mjs", "--timeout=0.7", f"--only={vector}")
    assert result.returncode == 1, result.stdout
    assert f"FAIL {vector}" in result.stdout
    assert VECTORS[vector]["comment"] in result.stdout
    assert "1 vector: 0 passed, 1 failed" in result.stdout


@pytest.mark.parametrize(
    ("command", "words"),
    [
        (["/no/such/program"], "cannot be started"),
        (["true"], "the end of its output"),
        (["sleep", "60"], "nothing came in"),
        ([sys.executable, "-c", f"{WRITE}(b'hello')"], "its output ended inside a frame"),
        ([sys.executable, "-c", f"{WRITE}(bytes([255] * 4))"], "a frame of -1"),
        ([sys.executable, "-c", f"{WRITE}(bytes(4))"], "it sent no CBOR"),
    ],
)
def test_programs_that_are_no_workers(command: list[str], words: str) -> None:
    """A program that does not speak the protocol fails, and the report says how."""
    result = subprocess.run(
        [sys.executable, RUNNER, "--timeout=0.5", "--only=call", "--", *command],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert result.returncode == 1
    assert words in result.stdout


def test_unknown_vectors_are_refused() -> None:
    """A name that no vector has is an error of the command line."""
    result = run(Path("worker.mjs"), "--only=no-such-vector")
    assert result.returncode == 2
    assert "no such vector: no-such-vector" in result.stderr


def test_converts_both_ways() -> None:
    """The runner writes hex for notation, and notation for hex."""
    for option, given, printed in (
        ("--encode", "[7, 1, 5]", "83070105"),
        ("--decode", "83070105", "[7, 1, 5]"),
    ):
        result = subprocess.run(
            [sys.executable, RUNNER, option, given], capture_output=True, text=True, check=True
        )
        assert result.stdout.strip() == printed


def test_lists_the_vectors() -> None:
    """``--list`` names every vector for workers, with its outcome."""
    result = subprocess.run(
        [sys.executable, RUNNER, "--list"], capture_output=True, text=True, check=True
    )
    listed = {line.split()[0]: line.split()[1] for line in result.stdout.splitlines()}
    assert listed == {name: vector["outcome"] for name, vector in VECTORS.items() if name in listed}
    assert len(listed) > 150

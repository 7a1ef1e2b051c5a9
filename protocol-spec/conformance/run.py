#!/usr/bin/env python3
"""Does a program speak the framing of 1-framing.md? Feed it every vector and check its answers.

The contract. ``TESTEE LIMIT READS`` reads standard input: LIMIT is its limit in bytes, READS the
kinds of item to read, again and again (``m`` a message, ``i`` a bare integer; ``im``: by turns).
It echoes a message as a message. It echoes an integer as a bare integer, and after it a message
that holds the integer's decimal digits. Its exit status names the end:
0 edge, 3 inside, 4 negative, 5 too large.

Each vector is fed in chunks of 1, 2, 3 and all bytes, a chunk when the one before was read; and
once in turns: an item, its echo, the next item, with a refusal due at the size alone.

Python 3.8 or later on a POSIX system, standard library only.
Exit status: 0 all passed, 1 some failed, 2 nothing was run.
"""

from __future__ import annotations

import argparse
import fcntl
import json
import os
import signal
import struct
import subprocess
import sys
import tempfile
import termios
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

VECTORS = Path(__file__).resolve().parent.parent / "vectors"
END_STATUS = {"edge": 0, "inside": 3, "negative": 4, "too-large": 5}
REFUSALS = ("negative", "too-large")
FEEDS = ("chunks of 1", "chunks of 2", "chunks of 3", "all at once", "in turns")
INT_SIZE = 4
# Only the first and last bytes of a long stream are cut up: a write a byte of 1 MiB shows no more.
CUT_SIZE = 128
SHOWN_BYTES = 48
SHOWN_LINES = 5
# The kernel has no event for "the other side has read everything".
POLL_SECONDS = 0.00005


class Step(NamedTuple):
    """Write ``data``, then wait: until it is read, for ``output`` bytes, or for the exit."""

    data: bytes
    until: str
    output: int = 0


class Vector(NamedTuple):
    """One vector in bytes: ``items`` as they are sent, ``echoes`` as they must come back."""

    name: str
    comment: str
    limit: int
    reads: str
    stream: bytes
    items: list[bytes]
    echoes: list[bytes]
    end: str

    def steps(self, feed: str) -> Iterator[Step]:
        """How this vector is written in one feed."""
        if feed == "in turns":
            return self.turns()
        size = {"chunks of 1": 1, "chunks of 2": 2, "chunks of 3": 3}.get(feed, 0)
        return (Step(piece, "read") for piece in cut(self.stream, size))

    def turns(self) -> Iterator[Step]:
        """Each item when the one before has come back; of what is refused, the size alone."""
        sent = output = 0
        for item, echo in pairs(self.items, self.echoes):
            sent += len(item)
            output += len(echo)
            yield Step(item, "echoed", output)
        if self.end in REFUSALS:
            yield Step(self.stream[sent : sent + INT_SIZE], "exited")
        else:
            yield Step(self.stream[sent:], "read")


class Answer(NamedTuple):
    """What the program did. ``stuck``: what was waited for when the time was over."""

    output: bytes
    status: int
    stderr: str
    stuck: str


def pairs(left: list[bytes], right: list[bytes]) -> list[tuple[bytes, bytes]]:
    """``zip`` of two lists of one length."""
    assert len(left) == len(right)
    return [(item, right[index]) for index, item in enumerate(left)]


def cut(stream: bytes, size: int) -> Iterator[bytes]:
    """``stream`` in pieces of ``size`` (0: one piece), its middle in one piece if it is long."""
    tail = max(len(stream) - CUT_SIZE, 0)
    at = 0
    while at < len(stream):
        if not size:
            stop = len(stream)
        elif CUT_SIZE <= at < tail:
            stop = tail
        else:
            stop = min(at + size, len(stream))
        yield stream[at:stop]
        at = stop


def octets(value: Any) -> bytes:
    """Bytes in hex, or in hex and repeated."""
    if isinstance(value, str):
        return bytes.fromhex(value)
    return bytes.fromhex(value["repeat"]) * int(value["times"])


def integer(number: int, byteorder: str) -> bytes:
    """F-1."""
    return struct.pack("<i" if byteorder == "little" else ">i", number)


def message(payload: bytes, byteorder: str) -> bytes:
    """F-2."""
    return integer(len(payload), byteorder) + payload


def piece(entry: Any, byteorder: str) -> bytes:
    """One entry of a vector's ``stream``."""
    return integer(entry["int"], byteorder) if "int" in entry else octets(entry["bytes"])


def item_and_echo(entry: Any, byteorder: str) -> tuple[bytes, bytes]:
    """One entry of a vector's ``results``: how it was sent, and what the testee makes of it."""
    if "int" not in entry:
        item = message(octets(entry["message"]), byteorder)
        return item, item
    item = integer(entry["int"], byteorder)
    return item, item + message(b"%d" % entry["int"], byteorder)


def vector(entry: Any, byteorder: str) -> Vector:
    """A vector of the files, in bytes."""
    results = [item_and_echo(result, byteorder) for result in entry["results"]]
    return Vector(
        name=entry["name"],
        comment=entry["comment"],
        limit=entry["limit"],
        reads=entry["reads"],
        stream=b"".join(piece(part, byteorder) for part in entry["stream"]),
        items=[item for item, _ in results],
        echoes=[echo for _, echo in results],
        end=entry["end"],
    )


def load(folder: Path = VECTORS, byteorder: str = sys.byteorder) -> list[Vector]:
    """Every vector of a folder."""
    files = [json.loads(path.read_text("utf-8")) for path in sorted(folder.glob("*.json"))]
    return [vector(entry, byteorder) for file in files for entry in file["vectors"]]


class Testee:
    """The program, running: its output is collected, and it is killed when its time is over."""

    def __init__(self, command: Sequence[str], timeout: float) -> None:
        self.errors = tempfile.TemporaryFile()  # noqa: SIM115
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.errors,
            bufsize=0,
            start_new_session=True,
        )
        self.output = bytearray()
        self.news = threading.Condition()
        self.closed = self.late = False
        self.waiting_for = self.stuck = ""
        self.reader = threading.Thread(target=self.collect)
        self.reader.start()
        self.timer = threading.Timer(timeout, self.give_up)
        self.timer.start()

    def collect(self) -> None:
        """Keep standard output flowing."""
        assert self.process.stdout
        while True:
            data = self.process.stdout.read(65536)
            with self.news:
                self.output += data or b""
                self.closed = not data
                self.news.notify_all()
            if not data:
                return

    def give_up(self) -> None:
        """Kill it; every wait then ends."""
        self.stuck = self.waiting_for
        self.kill()

    def kill(self) -> None:
        """Kill the program and what it started."""
        try:
            os.killpg(self.process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        except PermissionError:
            pass  # macOS says this of a group that has ended

    def run(self, steps: Iterator[Step]) -> Answer:
        """Take every step, close standard input, wait for the end."""
        try:
            for step in steps:
                self.write(step.data)
                self.wait(step)
            self.close_input()
            self.waiting_for = "it to exit at the end of its input"
            status = self.process.wait()
        finally:
            self.timer.cancel()
            self.kill()
            self.close_input()
            self.process.wait()
            self.reader.join()
            assert self.process.stdout
            self.process.stdout.close()
            stderr = self.stderr()
        return Answer(bytes(self.output), status, stderr, self.stuck)

    def write(self, data: bytes) -> None:
        """Write all of it, or as much as the program wants."""
        self.waiting_for = "it to read"
        rest = memoryview(data)
        try:
            while rest:
                rest = rest[os.write(self.stdin, rest) :]
        except BrokenPipeError:
            pass

    def wait(self, step: Step) -> None:
        """Wait for what the step says, or for the exit."""
        if step.until == "exited":
            self.waiting_for = "it to refuse a size as soon as that is read"
            self.process.wait()
        elif step.until == "echoed":
            self.waiting_for = "the echo of an item sent whole, before anything more is sent"
            with self.news:
                self.news.wait_for(lambda: self.closed or len(self.output) >= step.output)
        else:
            self.waiting_for = "it to read"
            while self.unread() and self.process.poll() is None:
                time.sleep(POLL_SECONDS)

    def unread(self) -> int:
        """Bytes in the pipe (where the system tells the writer; else 0)."""
        return int.from_bytes(fcntl.ioctl(self.stdin, termios.FIONREAD, bytes(4)), sys.byteorder)

    @property
    def stdin(self) -> int:
        """The descriptor of its standard input."""
        assert self.process.stdin
        return self.process.stdin.fileno()

    def close_input(self) -> None:
        """The end of file."""
        assert self.process.stdin
        self.process.stdin.close()

    def stderr(self) -> str:
        """The last lines of standard error."""
        with self.errors as file:
            file.seek(0)
            lines = file.read().decode("utf-8", "backslashreplace").splitlines()
        return "\n".join(lines[-SHOWN_LINES:])


def complaints(vector: Vector, answer: Answer, timeout: float) -> Iterator[str]:
    """What is wrong with an answer, a line each."""
    expected = b"".join(vector.echoes)
    if answer.stuck:
        yield f"killed after {timeout:g} s, waiting for {answer.stuck}"
    if answer.output != expected:
        yield from differences(expected, answer.output)
    if not answer.stuck and answer.status != END_STATUS[vector.end]:
        yield f"expected exit status {describe(END_STATUS[vector.end])}"
        yield f"got      exit status {describe(answer.status)}"
        if answer.status == END_STATUS["too-large"]:
            yield "(are sizes read in the byte order of this machine?)"


def differences(expected: bytes, got: bytes) -> Iterator[str]:
    """Both outputs from shortly before the first byte that differs."""
    common = min(len(expected), len(got))
    at = next((i for i in range(common) if expected[i] != got[i]), common)
    start = max(at - INT_SIZE, 0)
    yield f"the output of {len(got)} bytes differs at byte {at}; from byte {start}:"
    yield f"expected {shown(expected[start:])}"
    yield f"got      {shown(got[start:])}"


def shown(data: bytes) -> str:
    """Bytes in hex, cut."""
    text = " ".join(f"{byte:02x}" for byte in data[:SHOWN_BYTES]) or "nothing"
    return f"{text} ... ({len(data)} bytes)" if len(data) > SHOWN_BYTES else text


def describe(status: int) -> str:
    """An exit status and what it stands for."""
    if status < 0:
        return f"{status} (killed by signal {-status})"
    ends = {number: end for end, number in END_STATUS.items()}
    return f"{status} ({ends.get(status, 'no end: a crash?')})"


def check(vector: Vector, command: Sequence[str], timeout: float) -> list[str]:
    """Run one vector in every feed; the lines to print if one of them fails."""
    for feed in FEEDS:
        testee = Testee([*command, str(vector.limit), vector.reads], timeout)
        answer = testee.run(vector.steps(feed))
        lines = list(complaints(vector, answer, timeout))
        if lines:
            about = f"limit {vector.limit}, reads {vector.reads}, {feed}: {vector.comment}"
            return [about, *lines, *("stderr: " + line for line in answer.stderr.splitlines())]
    return []


def run(vectors: list[Vector], command: Sequence[str], timeout: float, jobs: int) -> int:
    """Run the vectors, print a line each and a summary; how many failed."""
    failed = 0
    with ThreadPoolExecutor(jobs) as executor:
        reports = executor.map(lambda vector: check(vector, command, timeout), vectors)
        for index, lines in enumerate(reports):
            failed += bool(lines)
            print("FAIL" if lines else "ok  ", vectors[index].name, flush=True)
            for line in lines:
                print("    ", line)
    passed = len(vectors) - failed
    count = f"{len(vectors)} vector" + "s" * (len(vectors) != 1)
    print(f"{count}, {len(FEEDS)} feeds each: {passed} passed, {failed} failed")
    return failed


def arguments() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        description="Check a program against the vectors of the framing.",
        usage="%(prog)s [options] TESTEE [ARG...]",
        epilog=(__doc__ or "").partition("\n\n")[2],
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--list", action="store_true", help="list the vectors and exit")
    parser.add_argument("--only", action="append", metavar="NAME", help="run this one (repeatable)")
    parser.add_argument("--timeout", type=float, default=10.0, help="seconds for each feed (10)")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="vectors at a time")
    parser.add_argument("--vectors", type=Path, default=VECTORS, metavar="DIR", help="the vectors")
    parser.add_argument(
        "--byteorder",
        choices=("little", "big"),
        default=sys.byteorder,
        help="the testee's byte order, if it runs under an emulator (this machine's)",
    )
    parser.add_argument("command", nargs=argparse.REMAINDER, metavar="TESTEE", help="the program")
    return parser


def main() -> int:
    """Run from the command line."""
    parser = arguments()
    options = parser.parse_args()
    vectors = load(options.vectors, options.byteorder)
    unknown = set(options.only or ()) - {vector.name for vector in vectors}
    if unknown or not vectors:
        parser.error(f"no such vector: {', '.join(sorted(unknown))}; see --list")
    vectors = [vector for vector in vectors if not options.only or vector.name in options.only]
    if options.list:
        for vector in vectors:
            print(f"{vector.name:28} {vector.end:10} {vector.comment}")
        return 0
    if not options.command:
        parser.error("which program? For example: python testee.py")
    try:
        return int(run(vectors, options.command, options.timeout, options.jobs) > 0)
    except OSError as error:
        parser.error(f"{options.command[0]} cannot be started: {error}")


if __name__ == "__main__":
    sys.exit(main())

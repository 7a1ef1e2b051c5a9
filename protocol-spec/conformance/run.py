#!/usr/bin/env python3
"""Does a program speak the framing of 1-framing.md? Feed it every vector and check its answers.

The contract. ``TESTEE LIMIT READS`` reads standard input: LIMIT is its limit in bytes, READS the
kinds of item to read, again and again (``m`` a message, ``i`` a bare integer; ``im``: by turns).
It echoes a message as a message. It echoes an integer as a bare integer, and after it a message
that holds the integer's decimal digits. Its exit status names the end:
0 edge, 3 inside, 4 negative, 5 too large.

Each vector is fed in chunks of 1, 2, 3 and all bytes, a chunk when the one before was read; and
once in turns: an item, its echo, the next item, with a refusal due at the size alone.

The program is killed when its time is over, and when it writes far more than it should.

Python 3.8 or later on a POSIX system, standard library only.
Exit status: 0 all passed, 1 some failed, 2 nothing was run, 128 and a signal's number if that
ended the runner: 130 for Ctrl-C, 141 when nobody reads the report.
"""

from __future__ import annotations

import argparse
import fcntl
import json
import os
import select
import signal
import struct
import subprocess
import sys
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
# Output beyond what is expected, in bytes: enough to show what it is.
EXCESS_SIZE = 65536
STDERR_SIZE = 4096
# The kernel has no event for "the other side has read everything".
POLL_SECONDS = 0.00005
# Between looks at a program that may have ended while a descendant of it holds the pipes.
LOOK_SECONDS = 0.05
# For what such a descendant goes on writing.
DRAIN_SECONDS = 0.5
ENDING_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


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
    """What the program did. ``killed``: why it was, if it was."""

    output: bytes
    status: int
    stderr: str
    killed: str


class CannotStart(Exception):
    """The system does not execute the program."""


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
    """The program, running. It is killed when its time is over, or its output too long."""

    def __init__(self, command: Sequence[str], timeout: float, expected: int) -> None:
        self.most = expected + EXCESS_SIZE
        self.timeout = timeout
        self.output = bytearray()
        self.errors = b""
        self.news = threading.Condition()
        self.closed = False
        self.until = float("inf")  # when collecting is over, at the latest
        self.waiting_for = self.killed = ""
        try:
            self.process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                bufsize=0,
                start_new_session=True,
            )
        except OSError as error:
            raise CannotStart(f"{command[0]} cannot be started: {error}") from error
        # So that a pipe that is full and that nobody reads does not hold us.
        os.set_blocking(self.stdin, False)
        self.reader = threading.Thread(target=self.collect)
        self.reader.start()
        self.timer = threading.Timer(timeout, self.give_up)
        self.timer.start()

    def collect(self) -> None:
        """Keep both outputs flowing, until they end or the program has."""
        assert self.process.stdout
        assert self.process.stderr
        out = self.process.stdout.fileno()
        poll = select.poll()
        poll.register(out, select.POLLIN)
        poll.register(self.process.stderr.fileno(), select.POLLIN)
        left = 2
        while left and time.monotonic() < self.until:
            ready = poll.poll(1000 * LOOK_SECONDS)
            if not ready and self.until != float("inf"):
                break
            for fd, _ in ready:
                data = os.read(fd, 65536)
                if not data:
                    poll.unregister(fd)
                    left -= 1
                if fd == out:
                    self.collected(data)
                else:
                    self.errors = (self.errors + data)[-STDERR_SIZE:]
        self.collected(b"")

    def collected(self, data: bytes) -> None:
        """Note a piece of output, or its end."""
        with self.news:
            self.output += data[: self.most - len(self.output)]
            self.closed = self.closed or not data
            self.news.notify_all()
        if len(self.output) >= self.most:
            self.end(f"after {EXCESS_SIZE} bytes more than were expected")

    def give_up(self) -> None:
        """Its time is over."""
        self.end(f"after {self.timeout:g} s, waiting for {self.waiting_for}")

    def end(self, why: str) -> None:
        """Kill it; every wait then ends."""
        with self.news:
            self.killed = self.killed or why
            self.news.notify_all()
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
            self.until = time.monotonic() + DRAIN_SECONDS
            self.reader.join()
            for pipe in (self.process.stdout, self.process.stderr):
                assert pipe
                pipe.close()
        return Answer(bytes(self.output), status, self.stderr(), self.killed)

    def write(self, data: bytes) -> None:
        """Write all of it, or as much as the program wants."""
        self.waiting_for = "it to read"
        poll = select.poll()
        poll.register(self.stdin, select.POLLOUT)
        rest = memoryview(data)
        while rest and self.process.poll() is None:
            try:
                rest = rest[os.write(self.stdin, rest) :]
            except BlockingIOError:
                poll.poll(1000 * LOOK_SECONDS)
            except BrokenPipeError:
                return

    def wait(self, step: Step) -> None:
        """Wait for what the step says, or for the exit."""
        if step.until == "exited":
            self.waiting_for = "it to refuse a size as soon as that is read"
            self.process.wait()
        elif step.until == "echoed":
            self.waiting_for = "the echo of an item sent whole, before anything more is sent"
            with self.news:
                self.news.wait_for(
                    lambda: self.closed or self.killed or len(self.output) >= step.output
                )
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
        lines = self.errors.decode("utf-8", "backslashreplace").splitlines()
        return "\n".join(lines[-SHOWN_LINES:])


class Bench:
    """Where programs are tested, several at a time; and all ended at once, should we have to."""

    def __init__(self, command: Sequence[str], timeout: float) -> None:
        self.command = command
        self.timeout = timeout
        self.running: set[Testee] = set()
        self.lock = threading.Lock()
        self.over = False

    def answer(self, vector: Vector, feed: str) -> Answer:
        """What the program makes of a vector."""
        command = [*self.command, str(vector.limit), vector.reads]
        testee = Testee(command, self.timeout, sum(map(len, vector.echoes)))
        with self.lock:
            self.running.add(testee)
            over = self.over
        if over:
            testee.kill()
        try:
            return testee.run(vector.steps(feed))
        finally:
            with self.lock:
                self.running.remove(testee)

    def stop(self) -> None:
        """End what runs."""
        with self.lock:
            self.over = True
            for testee in self.running:
                testee.end("at the end of the runner")


def complaints(vector: Vector, answer: Answer) -> Iterator[str]:
    """What is wrong with an answer, a line each."""
    expected = b"".join(vector.echoes)
    if answer.killed:
        yield f"killed {answer.killed}"
    if answer.output != expected:
        yield from differences(expected, answer.output)
    if not answer.killed and answer.status != END_STATUS[vector.end]:
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


def check(vector: Vector, bench: Bench) -> list[str]:
    """Run one vector in every feed; the lines to print if one of them fails."""
    for feed in FEEDS:
        if bench.over:
            break
        answer = bench.answer(vector, feed)
        lines = list(complaints(vector, answer))
        if lines:
            about = f"limit {vector.limit}, reads {vector.reads}, {feed}: {vector.comment}"
            return [about, *lines, *("stderr: " + line for line in answer.stderr.splitlines())]
    return []


def run(vectors: list[Vector], command: Sequence[str], timeout: float, jobs: int) -> int:
    """Run the vectors, print a line each and a summary; how many failed."""
    failed = 0
    bench = Bench(command, timeout)
    with ThreadPoolExecutor(jobs) as executor:
        try:
            reports = executor.map(lambda vector: check(vector, bench), vectors)
            for index, lines in enumerate(reports):
                failed += bool(lines)
                print("FAIL" if lines else "ok  ", vectors[index].name, flush=True)
                for line in lines:
                    print("    ", line)
        except BaseException:
            bench.stop()
            raise
    passed = len(vectors) - failed
    count = f"{len(vectors)} vector" + "s" * (len(vectors) != 1)
    print(f"{count}, {len(FEEDS)} feeds each: {passed} passed, {failed} failed")
    return failed


def seconds(text: str) -> float:
    """A number of seconds that a wait can take."""
    value = float(text)
    if not 0 < value <= threading.TIMEOUT_MAX:
        raise argparse.ArgumentTypeError(f"must be more than 0 seconds, not {text}")
    return value


def positive(text: str) -> int:
    """A number from 1 up."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be 1 or more, not {text}")
    return value


def arguments() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        description="Check a program against the vectors of the framing.",
        usage="%(prog)s [options] [--] TESTEE [ARG...]",
        epilog=(__doc__ or "").partition("\n\n")[2],
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--list", action="store_true", help="list the vectors and exit")
    parser.add_argument("--only", action="append", metavar="NAME", help="run this one (repeatable)")
    parser.add_argument("--timeout", type=seconds, default=10.0, help="seconds for each feed (10)")
    parser.add_argument(
        "--jobs", type=positive, default=os.cpu_count() or 1, help="vectors at a time"
    )
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
    if not vectors:
        parser.error(f"there are no vectors in {options.vectors}")
    unknown = set(options.only or ()) - {vector.name for vector in vectors}
    if unknown:
        parser.error(f"no such vector: {', '.join(sorted(unknown))}; see --list")
    vectors = [vector for vector in vectors if not options.only or vector.name in options.only]
    if options.list:
        for vector in vectors:
            print(f"{vector.name:28} {vector.end:10} {vector.comment}")
        return 0
    command = options.command
    if command[:1] == ["--"]:  # argparse leaves it there
        command = command[1:]
    if not command:
        parser.error("which program? For example: python testee.py")
    try:
        return int(run(vectors, command, options.timeout, options.jobs) > 0)
    except CannotStart as error:
        parser.error(str(error))


def leave(number: int, frame: object) -> None:
    """A signal that ends us, which are more than one process."""
    sys.exit(128 + number)


def start() -> int:
    """`main`, and nothing of it is left however it ends."""
    for number in ENDING_SIGNALS:
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, leave)
    try:
        try:
            return main()
        finally:
            if sys.stdout:
                sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE


if __name__ == "__main__":
    sys.exit(start())

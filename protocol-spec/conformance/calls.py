#!/usr/bin/env python3
"""Does a worker speak the protocol of 3-calls.md? Play every worker vector with it.

The worker is started as the specification says: the descriptors it reads and writes are in the
environment variable FORKWIRE_FDS. It serves the test service of 3-calls.md. Each vector is played
with a worker of its own.

``--encode`` and ``--decode`` turn diagnostic notation into hex and back, for writing vectors.

Python 3.8 or later on a POSIX system, standard library only.
Exit status: 0 all passed, 1 some failed, 2 nothing was run.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import select
import signal
import struct
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

import calls_cbor as cbor

if TYPE_CHECKING:
    from collections.abc import Sequence

VECTORS = Path(__file__).resolve().parent.parent / "vectors-calls"
FDS = "FORKWIRE_FDS"
HELLO, LOG, PING, PONG, GOODBYE, ATTACH, SEND, GRANT = 0, 9, 10, 11, 12, 13, 14, 16
ERROR, METHOD_NOT_FOUND = 4, -32601
LAST_KNOWN = 16
FIRST_REQUEST = 24
ATTACHMENT = 0x464B0001
GREETING = [HELLO, {"protocol": [1]}]
# Its pong shows that all before it was read, and that nothing else came of that.
PROBE = 4711
SIZE = struct.Struct("=i")
STDERR_SIZE = 2000


class Failure(Exception):
    """The worker did not do what the vector says."""


class Worker:
    """The program, running, and the two pipes to it."""

    def __init__(self, command: Sequence[str], timeout: float) -> None:
        self.timeout = timeout
        self.held = bytearray()
        self.granted: dict[tuple[int, int], int] = {}
        self.printed: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - closed in `close`
        inp, self.out = os.pipe()
        self.inp, out = os.pipe()
        try:
            self.process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=self.printed,
                stderr=self.printed,
                pass_fds=(inp, out),
                env={**os.environ, FDS: f"{inp},{out}"},
                start_new_session=True,
            )
        except OSError as error:
            raise Failure(f"{command[0]} cannot be started: {error}") from error
        finally:
            os.close(inp)
            os.close(out)

    def write(self, data: bytes) -> None:
        """Send bytes; a worker that has ended the session does not read them."""
        with contextlib.suppress(BrokenPipeError):
            while data:
                data = data[os.write(self.out, data) :]

    def frame(self, payload: bytes) -> None:
        """Send a frame."""
        self.write(SIZE.pack(len(payload)) + payload)

    def send(self, message: Any) -> None:
        """Send a message."""
        self.frame(cbor.encode(message))

    def take(self, size: int, until: float) -> bytes | None:
        """The next bytes; None at the end of the file."""
        poll = select.poll()
        poll.register(self.inp, select.POLLIN)
        while len(self.held) < size:
            if not poll.poll(max(0, until - time.monotonic()) * 1000):
                raise Failure(f"nothing came in {self.timeout:g} s")
            data = os.read(self.inp, 65536)
            if not data:
                if self.held or size != SIZE.size:
                    raise Failure("its output ended inside a frame")
                return None
            self.held += data
        taken = bytes(self.held[:size])
        del self.held[:size]
        return taken

    def next_frame(self, until: float) -> bytes | None:
        """The next frame; None at the end of the file."""
        head = self.take(SIZE.size, until)
        if head is None:
            return None
        (size,) = SIZE.unpack(head)
        if size < 0:
            raise Failure(f"it announced a frame of {size} bytes")
        return self.take(size, until) if size else b""

    def next_message(self) -> Any:
        """The next message, attachments in place; None at the end of the file.

        Log records and what is of a later version are left out; pings are answered.
        """
        until = time.monotonic() + self.timeout
        while True:
            frame = self.next_frame(until)
            if frame is None:
                return None
            message = decode(frame, [])
            if message[0] == ATTACH:
                attachments = [self.next_frame(until) for _ in message[1]]
                if [len(data or b"") for data in attachments] != message[1]:
                    raise Failure("its attachments are not of the sizes announced")
                message = decode(self.next_frame(until) or b"", attachments)
            if not self.settled(message):
                return message

    def settled(self, message: list[Any]) -> bool:
        """Is this a message that no vector speaks of?"""
        kind = message[0]
        if kind == PING:
            self.send([PONG, message[1]])
        elif kind >= FIRST_REQUEST and kind % 2:
            error = {"code": METHOD_NOT_FOUND, "message": "unknown request"}
            self.send([ERROR, message[1], error])
        return kind in (LOG, PING) or kind > LAST_KNOWN

    def close_input(self) -> None:
        """The end of the file."""
        if self.out >= 0:
            os.close(self.out)
            self.out = -1

    def status(self) -> int:
        """Its exit status, once it has ended."""
        try:
            return self.process.wait(self.timeout)
        except subprocess.TimeoutExpired:
            raise Failure(f"it had not exited after {self.timeout:g} s") from None

    def close(self) -> str:
        """End it; the last of what it printed."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        self.close_input()
        os.close(self.inp)
        size = self.printed.seek(0, os.SEEK_END)
        self.printed.seek(max(0, size - STDERR_SIZE))
        tail = self.printed.read().decode("utf-8", "backslashreplace")
        self.printed.close()
        return tail


def decode(frame: bytes, attachments: list[bytes | None]) -> list[Any]:
    """The message of a frame, with the attachments in their places."""

    def place(tag: cbor.Tag) -> Any:
        return attachments[tag.value] if tag.tag == ATTACHMENT else tag

    try:
        message = cbor.decode(frame, place)
    except (ValueError, IndexError) as error:
        raise Failure(f"it sent no CBOR: {error}: {frame[:64].hex()}") from None
    if not isinstance(message, list) or not message or type(message[0]) is not int:
        raise Failure(f"it sent what is no message: {cbor.show(message)}")
    return message


def next_answer(worker: Worker, wanted: Any = None) -> Any:
    """The next message but for grants, which are counted; they come when the worker likes.

    ``wanted``: a type that is returned all the same.
    """
    while True:
        message = worker.next_message()
        if message is None or message[0] != GRANT:
            return message
        key = (message[1], message[2])
        worker.granted[key] = worker.granted.get(key, 0) + message[3]
        if wanted == GRANT:
            return message


def wait_for_credit(worker: Worker, key: tuple[int, int]) -> None:
    """Until one more item of the argument stream may be sent."""
    while not worker.granted.get(key):
        message = next_answer(worker, GRANT)
        if message is None or message[0] != GRANT:
            raise Failure(f"expected a grant\n     got      {shown(message)}")
    worker.granted[key] -= 1


def octets(value: Any) -> bytes:
    """Bytes in hex, or in hex and repeated."""
    if isinstance(value, str):
        return bytes.fromhex(value)
    return bytes.fromhex(value["repeat"]) * int(value["times"])


def play(vector: dict[str, Any], worker: Worker) -> None:
    """Take every step, then look how it ends."""
    if vector.get("greeting", True):
        worker.send(GREETING)
        expect(worker, "[0, {...}]")
    for step in vector["steps"]:
        take_step(worker, step)
    OUTCOMES[vector["outcome"]](worker)


def take_step(worker: Worker, step: dict[str, Any]) -> None:
    """One step of a vector."""
    if "send" in step:
        payload = octets(step["send"])
        message = cbor.decode(payload)
        if message[0] == SEND:
            wait_for_credit(worker, (message[1], message[2]))
        worker.frame(payload)
    elif "frame" in step:
        worker.frame(octets(step["frame"]))
    elif "expect" in step:
        message = expect(worker, step["expect"])
        if "bytes" in step and message[-1] != octets(step["bytes"]):
            raise Failure("the bytes are not those that were sent")
    elif "unordered" in step:
        expect_unordered(worker, step["unordered"])
    elif "quiet" in step:
        probe(worker, "nothing, and then the pong")
    else:
        assert "close" in step, step
        worker.close_input()


def expect(worker: Worker, pattern: str) -> Any:
    """The next message is this one."""
    parsed = cbor.parse(pattern)
    message = next_answer(worker, parsed[0])
    if not cbor.matches(parsed, message):
        raise Failure(f"expected {pattern}\n     got      {shown(message)}")
    return message


def expect_unordered(worker: Worker, patterns: list[str]) -> None:
    """The next messages are these, in any order."""
    left = list(patterns)
    while left:
        message = next_answer(worker)
        found = [pattern for pattern in left if cbor.matches(cbor.parse(pattern), message)]
        if not found:
            raise Failure(f"expected one of {left}\n     got      {shown(message)}")
        left.remove(found[0])


def probe(worker: Worker, what: str) -> None:
    """A ping is answered, and nothing comes before."""
    worker.send([PING, PROBE])
    message = next_answer(worker)
    if message != [PONG, PROBE]:
        raise Failure(f"expected {what}\n     got      {shown(message)}")


def goes_on(worker: Worker) -> None:
    """The session goes on; at the end of its input the worker ends."""
    probe(worker, "nothing more, and then the pong")
    ends(worker)


def ends(worker: Worker) -> None:
    """At the end of its input the worker ends, with status 0."""
    worker.close_input()
    while worker.next_message() is not None:
        pass
    if worker.status() != 0:
        raise Failure(f"at the end of its input it exits with status {worker.status()}, not 0")


def fault(worker: Worker) -> None:
    """The worker ends the session, and the last that it says is a goodbye, or nothing."""
    worker.send([PING, PROBE])
    last = None
    while True:
        message = worker.next_message()
        if message is None:
            break
        if last and last[0] == GOODBYE:
            raise Failure(f"after its goodbye it sent {shown(message)}")
        if message == [PONG, PROBE]:
            raise Failure("it goes on, though the peer is at fault")
        last = message
    if last and last[0] == GOODBYE and not cbor.matches(cbor.parse("[12, {...}]"), last):
        raise Failure(f"a goodbye to a peer at fault names the error: {shown(last)}")
    if worker.status() < 0:
        raise Failure(f"it died of signal {-worker.status()}")


def left(worker: Worker) -> None:
    """After both goodbyes and the last answer the worker ends by itself, with status 0."""
    message = next_answer(worker)
    if message is not None:
        raise Failure(f"expected the end of its output\n     got      {shown(message)}")
    if worker.status() != 0:
        raise Failure(f"it exits with status {worker.status()}, not 0")


OUTCOMES = {"open": goes_on, "closed": ends, "fault": fault, "left": left}


def shown(message: Any) -> str:
    """A message for people."""
    text = "the end of its output" if message is None else cbor.show(message)
    return text if len(text) <= 300 else f"{text[:300]}..."


def load(folder: Path = VECTORS) -> list[dict[str, Any]]:
    """Every worker vector of a folder."""
    files = [json.loads(path.read_text("utf-8")) for path in sorted(folder.glob("*.json"))]
    return [vector for file in files if file["testee"] == "worker" for vector in file["vectors"]]


def check(vector: dict[str, Any], command: Sequence[str], timeout: float) -> str:
    """Play one vector; what went wrong."""
    try:
        worker = Worker(command, timeout)
    except Failure as failure:
        return str(failure)
    problem = ""
    try:
        play(vector, worker)
    except Failure as failure:
        problem = str(failure)
    finally:
        printed = worker.close()
    if problem and printed.strip():
        problem += f"\n     it printed: {printed.strip()}"
    return problem


def run(vectors: list[dict[str, Any]], command: Sequence[str], timeout: float, jobs: int) -> int:
    """Play the vectors, print a line each and a summary; how many failed."""
    failed = 0
    with ThreadPoolExecutor(jobs) as executor:
        problems = executor.map(lambda vector: check(vector, command, timeout), vectors)
        for index, problem in enumerate(problems):
            failed += bool(problem)
            print("FAIL" if problem else "ok  ", vectors[index]["name"], flush=True)
            if problem:
                print(f"     {vectors[index]['comment']}\n     {problem}")
    count = f"{len(vectors)} vector" + "s" * (len(vectors) != 1)
    print(f"{count}: {len(vectors) - failed} passed, {failed} failed")
    return failed


def arguments() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        description="Check a worker against the vectors of calls.",
        usage="%(prog)s [options] [--] WORKER [ARG...]",
    )
    parser.add_argument("--list", action="store_true", help="list the vectors and exit")
    parser.add_argument(
        "--only", action="append", metavar="NAME", help="play this one (repeatable)"
    )
    parser.add_argument("--timeout", type=float, default=10.0, help="seconds for each answer (10)")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="vectors at a time")
    parser.add_argument("--vectors", type=Path, default=VECTORS, metavar="DIR", help="the vectors")
    parser.add_argument("--encode", metavar="NOTATION", help="print this in hex and exit")
    parser.add_argument(
        "--decode", metavar="HEX", help="print this in diagnostic notation and exit"
    )
    parser.add_argument("command", nargs=argparse.REMAINDER, metavar="WORKER", help="the program")
    return parser


def main() -> int:
    """Run from the command line."""
    parser = arguments()
    options = parser.parse_args()
    if options.encode is not None or options.decode is not None:
        convert(options.encode, options.decode)
        return 0
    vectors = load(options.vectors)
    unknown = set(options.only or ()) - {vector["name"] for vector in vectors}
    if unknown:
        parser.error(f"no such vector: {', '.join(sorted(unknown))}; see --list")
    vectors = [vector for vector in vectors if not options.only or vector["name"] in options.only]
    if options.list:
        for vector in vectors:
            print(f"{vector['name']:32} {vector['outcome']:7} {vector['comment']}")
        return 0
    command = options.command[options.command[:1] == ["--"] :]
    if not vectors or not command:
        parser.error("which program? For example: node worker.mjs")
    return int(run(vectors, command, options.timeout, options.jobs) > 0)


def convert(notation: str | None, octets: str | None) -> None:
    """Print notation in hex, and hex in notation."""
    if notation is not None:
        print(cbor.encode(cbor.parse(notation)).hex())
    if octets is not None:
        print(cbor.show(cbor.decode(bytes.fromhex(octets))))


if __name__ == "__main__":
    sys.exit(main())

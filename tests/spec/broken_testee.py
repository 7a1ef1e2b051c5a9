"""``broken_testee.py FAULT LIMIT READS``: the readable testee with one fault built in."""

from __future__ import annotations

import importlib.util
import os
import signal
import struct
import sys
import time
from pathlib import Path
from typing import Any, NoReturn

CONFORMANCE = Path(__file__).resolve().parents[2] / "protocol-spec" / "conformance"


def load(name: str) -> Any:
    """A program of the conformance folder, as a module."""
    spec = importlib.util.spec_from_file_location(name, CONFORMANCE / f"{name}.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


testee = load("testee")
read_up_to, read_int, read_message = testee.read_up_to, testee.read_int, testee.read_message
write, write_int, write_message = testee.write, testee.write_int, testee.write_message


def big_endian() -> None:
    """Sizes as Erlang's ``{packet, 4}`` has them."""
    testee.INTEGER = struct.Struct(">i" if sys.byteorder == "little" else "<i")


def unsigned() -> None:
    """The sign is not looked at."""
    testee.INTEGER = struct.Struct("=I")


def short_size() -> None:
    """Only 16 bits of a size count."""
    testee.read_message = lambda limit: read_up_to(read_int() & 0xFFFF)


def drops_empty() -> None:
    """Empty messages are skipped."""
    testee.write_message = lambda payload: write_message(payload) if payload else None


def empty_is_end() -> None:
    """An empty message is taken for the end."""

    def message(limit: int) -> bytes:
        payload: bytes = read_message(limit)
        if not payload:
            raise testee.End(testee.EDGE)
        return payload

    testee.read_message = message


def text_mode() -> None:
    """Line ends are translated."""
    testee.read_message = lambda limit: read_message(limit).replace(b"\r\n", b"\n")


def wrong_status() -> None:
    """The end at an edge is a failure."""
    testee.EDGE = 1


def inside_is_edge() -> None:
    """A message cut short is no failure."""
    testee.INSIDE = 0


def delivers_part() -> None:
    """What came of a message cut short is delivered."""

    def message(limit: int) -> bytes:
        payload: bytes = read_up_to(read_int())
        return payload

    testee.read_message = message


def limit_off_by_one() -> None:
    """A size equal to the limit is refused."""
    testee.read_message = lambda limit: read_message(limit - 1)


def limits_ints() -> None:
    """The limit is applied to bare integers."""

    def integer() -> int:
        number: int = read_int()
        if number > int(sys.argv[2]):
            raise testee.End(testee.TOO_LARGE)
        return number

    testee.read_int = integer


def refuses_late() -> None:
    """A message that is too large is read before it is refused."""

    def message(limit: int) -> bytes:
        payload: bytes = read_message(2**31 - 1)
        if len(payload) > limit:
            raise testee.End(testee.TOO_LARGE)
        return payload

    testee.read_message = message


def skips_refused() -> None:
    """A message that is too large is skipped, and reading goes on."""

    def message(limit: int) -> bytes:
        payload: bytes = read_message(2**31 - 1)
        return payload if len(payload) <= limit else message(limit)

    testee.read_message = message


def skips_negative() -> None:
    """A negative size is skipped, and reading goes on."""

    def message(limit: int) -> bytes:
        try:
            payload: bytes = read_message(limit)
        except testee.End as end:
            if end.args[0] != testee.NEGATIVE:
                raise
            return message(limit)
        return payload

    testee.read_message = message


def block_buffered() -> None:
    """Input is read in blocks of 4096 bytes, each waited for."""
    held = bytearray()

    def up_to(size: int) -> bytes:
        while len(held) < size:
            block = read_up_to(4096)
            held.extend(block)
            if len(block) < 4096:
                break
        data = bytes(held[:size])
        del held[:size]
        return data

    testee.read_up_to = up_to


def one_read_a_message() -> None:
    """Whatever one read returns is taken for the rest of the payload."""

    def message(limit: int) -> bytes:
        size = read_int()
        return testee.os.read(0, size) if size else b""

    testee.read_message = message


def one_item_a_read() -> None:
    """What arrived in one piece with a message is thrown away."""
    held = bytearray()

    def up_to(size: int) -> bytes:
        while len(held) < size and (block := testee.os.read(0, 65536)):
            held.extend(block)
        data = bytes(held[:size])
        del held[:size]
        return data

    def message(limit: int) -> bytes:
        payload: bytes = read_message(limit)
        held.clear()
        return payload

    testee.read_up_to = up_to
    testee.read_message = message


def all_or_nothing() -> None:
    """Nothing is delivered unless the stream ends well."""
    held: list[bytes] = []
    main = testee.main

    def deliver(limit: int, reads: str) -> int:
        status: int = main(limit, reads)
        if status == testee.EDGE:
            write(b"".join(held))
        return status

    testee.write = held.append
    testee.main = deliver


def short_writes() -> None:
    """What one write does not take is lost."""
    testee.os.set_blocking(1, False)
    testee.write = lambda data: testee.os.write(1, data)


def eager() -> None:
    """The next four bytes are judged as a size as soon as a message is complete."""
    held: list[bytes] = []

    def message(limit: int) -> bytes:
        payload: bytes = read_message(limit)
        held.append(read_up_to(4))
        if held[0][3:] >= b"\x80":
            raise testee.End(testee.NEGATIVE)
        return payload

    def up_to(size: int) -> bytes:
        data: bytes = held.pop() if held else b""
        rest: bytes = read_up_to(size - len(data))
        return data + rest

    testee.read_up_to = up_to
    testee.read_message = message


def hangs() -> None:
    """It never ends."""

    def message(limit: int) -> NoReturn:
        while True:
            signal.pause()

    testee.read_message = message


def crashes() -> None:
    """It ends with a traceback."""

    def message(limit: int) -> NoReturn:
        raise RuntimeError("a bug")

    testee.read_message = message


def killed() -> None:
    """It dies of a signal."""
    testee.read_message = lambda limit: signal.raise_signal(signal.SIGKILL)


def chatters() -> None:
    """A greeting is printed first."""
    write(b"ready\n")


def floods() -> None:
    """It writes for ever, whatever it is sent."""
    while True:
        write(b"y\n" * 8192)


def complains() -> None:
    """The same on standard error."""
    while True:
        os.write(2, b"no\n" * 8192)


def leaves_descendant() -> None:
    """No fault: it works, but a process that leaves its session holds its descriptors."""
    runner = os.getppid()
    if os.fork() == 0:
        os.setsid()
        while is_running(runner):
            time.sleep(0.05)
        os._exit(0)


def leaves_descendant_and_goes() -> None:
    """Such a process is all that is left of it."""
    leaves_descendant()
    sys.exit(0)


def is_running(pid: int) -> bool:
    """Whether there is such a process."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def interrupts() -> None:
    """It has its runner interrupted, says in the working directory who it is, and never ends."""
    Path(str(os.getpid())).touch()
    os.kill(os.getppid(), signal.SIGINT)
    while True:
        signal.pause()


if __name__ == "__main__":
    globals()[sys.argv[1]]()
    sys.exit(testee.main(int(sys.argv[2]), sys.argv[3]))

#!/usr/bin/env python3
"""The framing of 1-framing.md in plain Python, to be read; and a testee for run.py."""

from __future__ import annotations

import itertools
import os
import struct
import sys

INTEGER = struct.Struct("=i")  # F-1: signed, 32 bits, the byte order of the host
EDGE, INSIDE, NEGATIVE, TOO_LARGE = 0, 3, 4, 5


class End(Exception):
    """One of the four ends, as an exit status."""


def read_up_to(size: int) -> bytes:
    """``size`` bytes from standard input; fewer only if it ends. Holds only what came (F-17)."""
    data = bytearray()
    while len(data) < size:
        piece = os.read(0, min(size - len(data), 65536))
        if not piece:
            break
        data += piece
    return bytes(data)


def read_int() -> int:
    """A bare integer, or a size."""
    data = read_up_to(INTEGER.size)
    if len(data) < INTEGER.size:
        raise End(INSIDE if data else EDGE)
    number: int = INTEGER.unpack(data)[0]
    return number


def read_message(limit: int) -> bytes:
    """A message's payload."""
    size = read_int()
    if size < 0:
        raise End(NEGATIVE)
    if size > limit:
        raise End(TOO_LARGE)
    payload = read_up_to(size)
    if len(payload) < size:
        raise End(INSIDE)
    return payload


def write(data: bytes) -> None:
    """All of ``data`` to standard output."""
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(1, rest) :]


def write_message(payload: bytes) -> None:
    """A message. (``pack`` refuses a size over 2^31-1 before a byte is sent: F-22.)"""
    write(INTEGER.pack(len(payload)) + payload)


def write_int(number: int) -> None:
    """A bare integer."""
    write(INTEGER.pack(number))


def main(limit: int, reads: str) -> int:
    """Echo until an end; the exit status names it."""
    try:
        for kind in itertools.cycle(reads):
            if kind == "m":
                write_message(read_message(limit))
            else:
                number = read_int()
                write_int(number)
                write_message(b"%d" % number)
    except End as end:
        return int(end.args[0])
    return EDGE


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), sys.argv[2]))

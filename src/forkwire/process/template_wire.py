"""What a host and its template say to each other, as bytes and descriptors.

The host writes requests to one socket: a size, JSON, and the descriptors that go with it. Each is
small enough to go out whole or not at all; what is larger travels in a file. The template answers
on a socket that was made for this one worker. Knows of no process.
"""

from __future__ import annotations

import array
import errno
import json
import os
import socket
import struct
import sys
from collections.abc import Sequence
from typing import Any, Final

from . import descriptors, guard, ownership

__all__ = [
    "ANSWER",
    "END",
    "GIVE_UP",
    "Message",
    "close_socket",
    "content",
    "pair",
    "pass_on",
    "receive",
    "receive_fds",
    "send",
]

Message = dict[str, Any]

SIZE: Final = struct.Struct("=I")

# A Linux socket takes so much in one piece; larger writes may stop half way.
LARGEST: Final = 8192

# Descriptors in one message; the kernel's own limit is 253 (SCM_MAX_FD).
MOST_FDS: Final = 32

ANSWER: Final = struct.Struct("=qi")  # the worker's pid and 0, or 0 and an errno
END: Final = struct.Struct("=i2d14q")  # a status as of wait(2), and struct rusage

# From the host, on a worker's socket: nobody wants it any more.
GIVE_UP: Final = b"K"

NO_SIGNAL: Final[int] = getattr(socket, "MSG_NOSIGNAL", 0)
CLOEXEC: Final[int] = getattr(socket, "MSG_CMSG_CLOEXEC", 0)
ROOM: Final = socket.CMSG_SPACE(MOST_FDS * 4)


def pair() -> tuple[socket.socket, socket.socket]:
    """Two connected sockets, owned, above the standard descriptors; ours does not block."""
    made: list[socket.socket] = []

    def make() -> tuple[int, ...]:
        made[:] = connected()
        return tuple(end.fileno() for end in made)

    ownership.make_owned(make)
    ours, theirs = made
    ours.setblocking(False)
    theirs.setblocking(True)  # whatever socket.setdefaulttimeout was told
    return ours, theirs


def connected() -> tuple[socket.socket, socket.socket]:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    if min(ours.fileno(), theirs.fileno()) >= descriptors.FIRST_FREE_FD:
        return ours, theirs
    with ours, theirs:
        first, second = descriptors.lifted(ours.fileno(), theirs.fileno())
    return socket.socket(fileno=first), socket.socket(fileno=second)


def close_socket(end: socket.socket) -> None:
    """Idempotent."""
    fd = end.detach()
    if fd >= 0:
        ownership.close(fd)


def send(to: socket.socket, message: Message, fds: Sequence[int]) -> None:
    """Send all of it or nothing. Raises :exc:`OSError`: EAGAIN where there is no room now."""
    data = json.dumps(message, separators=(",", ":")).encode()
    if SIZE.size + len(data) <= LARGEST:
        send_small(to, data, fds)
        return
    (file,) = ownership.make_owned(guard.new_table)
    try:
        os.pwrite(file, data, 0)
        send_small(to, b"%d" % len(data), [file, *fds])
    finally:
        ownership.close(file)


def send_small(to: socket.socket, data: bytes, fds: Sequence[int]) -> None:
    rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))]
    sent = to.sendmsg([SIZE.pack(len(data)), data], rights, NO_SIGNAL)
    if sent != SIZE.size + len(data):
        raise OSError(errno.EMSGSIZE, "a request was cut short")


def receive(source: socket.socket) -> tuple[bytes, list[int]]:
    """One message that `send` sent, and its descriptors; b"" at the end. Raises :exc:`OSError`."""
    data, fds = receive_fds(source, LARGEST)
    if data:
        (size,) = SIZE.unpack_from(data)
        while len(data) < SIZE.size + size and (more := source.recv(LARGEST)):
            data += more
    return data, fds


def pass_on(to: socket.socket, data: bytes, fds: Sequence[int]) -> None:
    """Send what `receive` answered. Raises :exc:`OSError`."""
    send_small(to, data[SIZE.size :], fds)


def content(data: bytes, fds: list[int]) -> Message:
    """What it says. Takes the file that it came in out of ``fds``."""
    found: Any = json.loads(data[SIZE.size :])
    if isinstance(found, int):
        file = fds.pop(0)
        found = json.loads(os.pread(file, found, 0))
        os.close(file)
    message: Message = found
    return message


def receive_fds(source: socket.socket, size: int) -> tuple[bytes, list[int]]:
    """Bytes and descriptors, which do not survive an exec. Raises :exc:`OSError`."""
    data, ancillary, flags, _ = source.recvmsg(size, ROOM, CLOEXEC)
    fds = array.array("i")
    for level, kind, content in ancillary:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            fds.frombytes(content[: len(content) - len(content) % fds.itemsize])
    if flags & socket.MSG_CTRUNC:
        for fd in fds:
            os.close(fd)
        raise OSError(errno.EMFILE, "descriptors were lost on their way: too many files are open")
    if sys.platform != "linux":
        for fd in fds:
            os.set_inheritable(fd, False)
    return data, list(fds)

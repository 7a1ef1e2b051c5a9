"""A stand-in for ssh: ``far_shell.py [--socket] HOST COMMAND`` has a shell run COMMAND "elsewhere".

That is, in a session and process group of its own, by a server that only sockets connect to us. As
ssh does, it copies stdin, stdout and stderr; and as with ssh, what runs there is told nothing when
we are killed, but that nobody reads and writes any more. HOST is not used.
"""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import threading
from typing import NoReturn

LOST = 255  # what ssh exits with where the connection has failed


def copy(source: int, target: int) -> None:
    """Copy until the end of ``source``, or until nobody takes it."""
    with contextlib.suppress(ConnectionError):
        while data := os.read(source, 65536):
            while data:
                data = data[os.write(target, data) :]


def in_thread(source: int, target: socket.socket | int) -> threading.Thread:
    """`copy` there; then that is at its end too."""

    def run() -> None:
        if isinstance(target, int):
            copy(source, target)
            return
        copy(source, target.fileno())
        target.shutdown(socket.SHUT_WR)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    return thread


def serve(
    stream: socket.socket, errors: socket.socket, command: str, *, by_socket: bool
) -> NoReturn:
    """Be the server: sshd connects a command by pipes or by a socket, as it was compiled."""
    os.setsid()
    outside, inside = socket.socketpair()
    end = inside.fileno() if by_socket else subprocess.PIPE
    process = subprocess.Popen(
        ["sh", "-c", command],
        stdin=end,
        stdout=end,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    inside.close()
    assert process.stderr is not None

    def give() -> None:
        copy(stream.fileno(), process.stdin.fileno() if process.stdin else outside.fileno())
        if process.stdin:
            process.stdin.close()
        else:
            outside.shutdown(socket.SHUT_WR)

    def hear() -> None:
        if not errors.recv(1):  # it never says anything: it is gone
            os._exit(LOST)

    for function in (give, hear):
        threading.Thread(target=function, daemon=True).start()
    output = process.stdout.fileno() if process.stdout else outside.fileno()
    for thread in (in_thread(output, stream), in_thread(process.stderr.fileno(), errors)):
        thread.join()
    os._exit(process.wait() & 0xFF)


def main() -> NoReturn:
    *options, _, command = sys.argv[1:]
    (stream, far_stream), (errors, far_errors) = socket.socketpair(), socket.socketpair()
    server = os.fork()
    if server == 0:
        stream.close()
        errors.close()
        null = os.open(os.devnull, os.O_RDWR)
        for fd in range(3):
            os.dup2(null, fd)
        serve(far_stream, far_errors, command, by_socket="--socket" in options)
    far_stream.close()
    far_errors.close()
    in_thread(0, stream)
    for thread in (in_thread(stream.fileno(), 1), in_thread(errors.fileno(), 2)):
        thread.join()
    _, status = os.waitpid(server, 0)
    os._exit(os.waitstatus_to_exitcode(status) & 0xFF)


if __name__ == "__main__":
    main()

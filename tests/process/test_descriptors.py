"""Descriptors: their modes, their sizes, and which of them a loop can wait for."""

from __future__ import annotations

import errno
import fcntl
import os
import pty
import resource
import socket
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest

from forkwire import ChannelOSError, UsageError
from forkwire.process import descriptors

from .test_channels_support import close_fd, closing_fd, ends
from .test_channels_support import nothing_left as nothing_left

pytestmark = [pytest.mark.usefixtures("nothing_left")]


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    pair = os.pipe()
    yield pair
    for fd in pair:
        close_fd(fd)


def run(source: str, **options: object) -> subprocess.CompletedProcess[bytes]:
    command = [sys.executable, "-W", "error", "-c", textwrap.dedent(source)]
    return subprocess.run(command, timeout=30, check=False, **options)  # type: ignore[call-overload,no-any-return]


# -- pipes ------------------------------------------------------------------------------------


def test_a_pipe_of_ours() -> None:
    """Both ends do not block, and no exec inherits them."""
    read_fd, write_fd = descriptors.make_pipe()
    with closing_fd(read_fd, write_fd):
        for fd in (read_fd, write_fd):
            assert not os.get_blocking(fd)
            assert not os.get_inheritable(fd)
            assert fd > 2
        os.write(write_fd, b"x")
        assert os.read(read_fd, 10) == b"x"


def test_a_pipe_never_becomes_standard_input() -> None:
    """In a program that was started without 0, 1 and 2, nothing printed reaches a channel."""
    done = run(
        """
        import os, sys
        from forkwire.process.descriptors import make_pipe
        for fd in (0, 1, 2):
            os.close(fd)
        ends = make_pipe()
        assert min(ends) > 2, ends
        for fd in (0, 1, 2):
            try:
                os.fstat(fd)
            except OSError:
                continue
            os._exit(4)
        os._exit(3)
        """
    )
    assert done.returncode == 3


@pytest.mark.parametrize("left", [0, 1])
def test_a_full_table_leaves_nothing_behind(left: int) -> None:
    """However many descriptors are left, a pipe is made whole or not at all."""
    before = set(os.listdir("/proc/self/fd"))
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    highest = os.dup(0)
    os.close(highest)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (highest + left, hard))
        with pytest.raises(OSError, match="Too many open files"):
            descriptors.make_pipe()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert set(os.listdir("/proc/self/fd")) == before


# -- modes ------------------------------------------------------------------------------------


def test_a_mode_that_fits(pipe: tuple[int, int]) -> None:
    """Read-write fits both."""
    near, far = ends("socketpair")
    with closing_fd(near, far):
        for fd, unwanted in ((pipe[0], os.O_WRONLY), (pipe[1], os.O_RDONLY)):
            descriptors.check(fd, unwanted)
            descriptors.check(near, unwanted)


def test_a_mode_that_does_not(pipe: tuple[int, int]) -> None:
    """The error says what is missing, and what to pass instead."""
    with pytest.raises(UsageError, match="not open for reading: pass the pipe's other end"):
        descriptors.check(pipe[1], os.O_WRONLY)
    with pytest.raises(UsageError, match="not open for writing: pass the pipe's other end"):
        descriptors.check(pipe[0], os.O_RDONLY)


def test_an_error_keeps_its_number() -> None:
    """And says what it concerns."""
    error = descriptors.as_os_error(OSError(errno.EIO, "Input/output error"), "reading x")
    assert type(error) is ChannelOSError
    assert (error.errno, error.strerror) == (errno.EIO, "reading x: Input/output error")


def test_the_mode_is_set_and_restored(pipe: tuple[int, int]) -> None:
    """What was already non-blocking is not touched."""
    assert descriptors.set_nonblocking(pipe[0])
    assert not os.get_blocking(pipe[0])
    descriptors.restore_blocking(pipe[0])
    assert os.get_blocking(pipe[0])
    os.set_blocking(pipe[1], False)
    assert not descriptors.set_nonblocking(pipe[1])
    descriptors.restore_blocking(pipe[1])
    assert not os.get_blocking(pipe[1])


def test_a_number_that_became_another_file_is_not_touched(pipe: tuple[int, int]) -> None:
    """The mode is restored on the file that we changed, or not at all."""
    other_read, other_write = os.pipe()
    os.set_blocking(other_read, False)
    descriptors.set_nonblocking(pipe[0])
    os.dup2(other_read, pipe[0])
    descriptors.restore_blocking(pipe[0])
    with closing_fd(other_read, other_write):
        assert not os.get_blocking(other_read)


def test_all_modes_are_restored_together(pipe: tuple[int, int]) -> None:
    """As at exit: also two numbers of one description."""
    near, far = ends("socketpair")
    again = os.dup(near)
    with closing_fd(near, far, again):
        for fd in (pipe[0], near, again):
            descriptors.set_nonblocking(fd)
        descriptors.restore_all()
        assert all(os.get_blocking(fd) for fd in (pipe[0], near, again))
        descriptors.restore_all()


# -- what a loop can wait for -----------------------------------------------------------------


def test_what_a_loop_can_wait_for(pipe: tuple[int, int], tmp_path: Path) -> None:
    """Pipes, sockets, terminals, counters: yes. Files, folders and simple devices: no."""
    near, far = ends("socketpair")
    master, slave = pty.openpty()
    waitable = [*pipe, near, far, master, slave, os.eventfd(0), os.pidfd_open(os.getpid())]
    paths = ["/dev/null", "/dev/zero", "/dev/full", "/", __file__, "/proc/self/status"]
    fixed = [os.open(path, os.O_RDONLY) for path in paths]
    fixed += [os.memfd_create("x"), os.open(tmp_path / "new", os.O_WRONLY | os.O_CREAT)]
    with closing_fd(*waitable, *fixed):
        assert all(descriptors.is_pollable(fd) for fd in waitable)
        assert not any(descriptors.is_pollable(fd) for fd in fixed)


def test_who_has_gone(pipe: tuple[int, int]) -> None:
    """A closed peer, on whatever kind of descriptor; not a real error of the device."""
    master, slave = pty.openpty()
    os.close(master)
    with closing_fd(slave):
        for number in (errno.EPIPE, errno.ECONNRESET, errno.ENOTCONN, errno.ESHUTDOWN):
            assert descriptors.is_gone(OSError(number, ""), pipe[0])
        assert descriptors.is_gone(OSError(errno.EIO, ""), slave)
        assert not descriptors.is_gone(OSError(errno.EIO, ""), pipe[0])
        assert not descriptors.is_gone(OSError(errno.ENOSPC, ""), slave)


# -- sizes ------------------------------------------------------------------------------------


def size(fd: int) -> int:
    return fcntl.fcntl(fd, fcntl.F_GETPIPE_SZ)


def test_large_pipes_have_a_budget() -> None:
    """A program's channels take a part of its user's, and give it back."""
    assert descriptors._large_pipes == 0
    pairs = [os.pipe() for _ in range(descriptors.MAX_LARGE_PIPES + 2)]
    with closing_fd(*(fd for pair in pairs for fd in pair)):
        grown = [descriptors.grow_pipe(write_fd) for _, write_fd in pairs]
        assert grown == [True] * descriptors.MAX_LARGE_PIPES + [False] * 2
        assert [size(fd) for fd, _ in pairs] == [
            descriptors.LARGE_PIPE if large else 65536 for large in grown
        ]
        descriptors.shrink_count()
        assert descriptors.grow_pipe(pairs[-1][1])
        for _ in range(descriptors.MAX_LARGE_PIPES):
            descriptors.shrink_count()
    assert descriptors._large_pipes == 0


def test_what_is_no_pipe_does_not_grow() -> None:
    """And does not count."""
    near, far = ends("socketpair")
    with closing_fd(near, far):
        assert not descriptors.grow_pipe(near)
    assert descriptors._large_pipes == 0


def test_a_refusal_of_the_system_is_no_error(
    pipe: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """An ordinary user's budget may be used up: the pipe works as it is."""

    def refuse(fd: int, command: int, argument: int = 0) -> int:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(fcntl, "fcntl", refuse)
    assert not descriptors.grow_pipe(pipe[0])
    assert descriptors._large_pipes == 0


def test_standard_streams_are_flushed() -> None:
    """Python's buffer and the C library's, in that order; broken and absent ones are passed."""
    done = run(
        """
        import ctypes, os, sys
        from forkwire.process.descriptors import flush_standard_streams
        sys.stdout.write("python ")
        flush_standard_streams()
        ctypes.CDLL(None).printf(b"and C")
        flush_standard_streams()
        sys.stderr = None
        sys.stdout.close()
        flush_standard_streams()
        os._exit(0)
        """,
        stdout=subprocess.PIPE,
    )
    assert (done.returncode, done.stdout) == (0, b"python and C")


def test_sockets_of_other_kinds(tmp_path: Path) -> None:
    """A loop can wait for any socket."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as server:
        server.bind(str(tmp_path / "socket"))
        assert descriptors.is_pollable(server.fileno())

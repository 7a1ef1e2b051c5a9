"""Owned descriptors are in no forked child, whoever forks it and whenever."""

from __future__ import annotations

import errno
import fcntl
import gc
import os
import resource
import sys
import threading
from collections.abc import Callable, Iterator

import pytest

from forkwire.process import ownership

from .test_loops import in_a_child
from .test_run_support import open_files, owned


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    """A pipe whose ends are owned."""
    ends = os.pipe()
    for fd in ends:
        ownership.own(fd)
    yield ends
    for fd in ends:
        if fd in owned():
            ownership.close(fd)


def error_of(function: Callable[[], object]) -> int | None:
    try:
        function()
    except OSError as error:
        return error.errno
    return None


def is_placeholder(fd: int) -> bool:
    """Whether reading and writing it are refused, and it leads nowhere."""
    refused = (error_of(lambda: os.read(fd, 1)), error_of(lambda: os.write(fd, b"x")))
    return refused == (errno.EBADF, errno.EBADF) and open_files()[fd] == os.devnull


def test_an_owned_descriptor_is_a_placeholder_in_a_forked_child(pipe: tuple[int, int]) -> None:
    """Its number stays in use, the file behind it is let go."""

    def look() -> None:
        assert is_placeholder(pipe[0])
        assert is_placeholder(pipe[1])
        assert os.dup(0) not in pipe
        assert not os.get_inheritable(pipe[0])

    assert in_a_child(look) == 0
    os.write(pipe[1], b"the host's")
    assert os.read(pipe[0], 20) == b"the host's"


def test_a_forked_childs_copy_does_not_keep_the_pipe_open(pipe: tuple[int, int]) -> None:
    """The end of the file comes while a child lives."""
    waiting, release = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(release)
        os.read(waiting, 1)
        os._exit(0)
    ownership.close(pipe[1])
    assert os.read(pipe[0], 1) == b""
    os.close(release)
    os.close(waiting)
    assert os.waitpid(pid, 0)[1] == 0


def test_a_child_may_own_and_fork_in_turn(pipe: tuple[int, int]) -> None:
    """What the parent owned is forgotten there: the numbers may be used for something else."""

    def look() -> None:
        assert owned() == set()
        os.close(pipe[0])
        mine = os.pipe()
        ownership.own(mine[1])
        assert in_a_child(lambda: check(mine)) == 0
        assert in_a_thread(fork_and_wait)

    def check(mine: tuple[int, int]) -> None:
        assert is_placeholder(mine[1])
        assert error_of(lambda: fcntl.fcntl(mine[0], fcntl.F_GETFL)) is None

    assert in_a_child(look) == 0


def fork_and_wait() -> None:
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    os.waitpid(pid, 0)


def in_a_thread(function: Callable[[], object]) -> bool:
    """Whether it came to an end there."""
    thread = threading.Thread(target=function, daemon=True)
    thread.start()
    thread.join(20)
    return not thread.is_alive()


def test_close_forgets_the_number(pipe: tuple[int, int]) -> None:
    """A file that gets the number next is inherited."""
    ownership.close(pipe[0])
    assert pipe[0] not in owned()
    again = os.open(os.devnull, os.O_WRONLY)
    assert again == pipe[0]

    def write() -> None:
        os.write(again, b"+")

    assert in_a_child(write) == 0
    os.close(again)


def test_a_number_that_is_anothers_by_now_is_left_alone(pipe: tuple[int, int]) -> None:
    """Somebody closed it behind our back: what got the number is inherited."""
    os.close(pipe[0])
    other = os.open(os.devnull, os.O_RDONLY)
    assert other == pipe[0]

    def look() -> None:
        assert os.read(other, 1) == b""
        assert is_placeholder(pipe[1])

    assert in_a_child(look) == 0


def test_a_forking_thread_may_hand_descriptors_to_its_child(pipe: tuple[int, int]) -> None:
    """They stay as they are in that child, and in no later one."""

    def look() -> None:
        assert error_of(lambda: os.write(pipe[1], b"+")) is None
        assert is_placeholder(pipe[0])

    plan = ownership.plan_fork([pipe[1]])

    def carry_out_and_look() -> None:
        plan.carry_out()
        look()

    try:
        assert in_a_child(carry_out_and_look) == 0
    finally:
        ownership.end_fork()
    assert in_a_child(look) == 1


def test_a_plan_closes_and_covers(pipe: tuple[int, int]) -> None:
    """What nobody will touch is closed, what is not owned swallows what is written to it."""
    other = os.open(os.devnull, os.O_RDONLY)
    plan = ownership.plan_fork([], [pipe[0]], [other])

    def look() -> None:
        plan.carry_out()
        assert is_placeholder(pipe[1])
        assert os.write(other, b"x") == 1
        assert os.read(other, 1) == b""
        assert pipe[0] not in open_files()
        assert owned() == set()

    try:
        assert in_a_child(look) == 0
    finally:
        ownership.end_fork()
    os.close(other)


def test_nothing_new_is_unseen_by_a_planned_fork() -> None:
    """What another thread makes between the plan and the fork is made again after it."""
    ownership.plan_fork([])
    made: list[int] = []

    def make() -> tuple[int, ...]:
        made.append(0)
        ends = os.pipe()
        if len(made) == 3:
            ended.set()
        return ends

    ended = threading.Event()
    results: list[tuple[int, ...]] = []
    thread = threading.Thread(target=lambda: results.append(ownership.make_owned(make)))
    thread.start()
    assert ended.wait(20)
    assert not results
    ownership.end_fork()
    thread.join(20)
    for fd in results[0]:
        ownership.close(fd)


def test_what_was_made_while_another_thread_forked_is_made_again() -> None:
    """No child has a copy of what ``make_owned`` answers; what it might have is closed."""
    made: list[tuple[int, ...]] = []

    def make() -> tuple[int, ...]:
        made.append(os.pipe())
        if len(made) < 3:
            fork_and_wait()
        return made[-1]

    before = open_files().keys()
    ends = ownership.make_owned(make)
    assert len(made) == 3
    assert ends == made[-1]
    assert open_files().keys() == before | set(ends)
    assert in_a_child(lambda: check_both(ends)) == 0
    for fd in ends:
        ownership.close(fd)


def check_both(ends: tuple[int, ...]) -> None:
    assert is_placeholder(ends[0])
    assert is_placeholder(ends[1])


def test_overlay_needs_no_free_descriptor() -> None:
    """In a full table it makes its own room."""

    def look() -> None:
        ends = os.pipe()
        limit = max(open_files()) + 2
        resource.setrlimit(resource.RLIMIT_NOFILE, (limit, resource.getrlimit(7)[1]))
        while error_of(lambda: os.dup(0)) is None:
            pass
        ownership.overlay(ends)
        os.close(2)  # the look needs one
        assert is_placeholder(ends[0])
        assert is_placeholder(ends[1])

    assert in_a_child(look) == 0


def test_overlay_leaves_nothing_else_open() -> None:
    """As many descriptors after it as before."""

    def look() -> None:
        ends = [fd for _ in range(5) for fd in os.pipe()]
        before = set(open_files())
        ownership.overlay(ends)
        ownership.overlay([])
        assert set(open_files()) == before

    assert in_a_child(look) == 0


def test_the_placeholder_is_good_for_nothing_but_closing() -> None:
    """It is no open file: EBADF for whoever tries, and closing it is harmless."""

    def look() -> None:
        (fd, other) = os.pipe()
        ownership.overlay([fd])
        if sys.platform == "linux":
            assert error_of(lambda: os.fstat(fd)) is None
            assert error_of(lambda: os.lseek(fd, 0, 0)) == errno.EBADF
        os.close(fd)
        assert os.dup(other) == fd

    assert in_a_child(look) == 0


class Finaliser:
    """Lets go of a descriptor when it is collected."""

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self.me = self

    def __del__(self) -> None:
        if self.fd in owned():
            ownership.close(self.fd)


@pytest.mark.parametrize("allocations", [2, 5, 9])
def test_a_finaliser_closes_while_a_fork_is_planned(
    allocations: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Garbage may be collected at any moment, also while what is owned is gone through."""
    begin = ownership._begin_fork
    kept = [fd for _ in range(10) for fd in ownership.make_owned(os.pipe)]
    thresholds = gc.get_threshold()

    def begin_and_collect_soon(thread: int) -> None:
        begin(thread)
        gc.collect()
        for fd in ownership.make_owned(os.pipe):
            Finaliser(fd)
        gc.set_threshold(gc.get_count()[0] + allocations)

    monkeypatch.setattr(ownership, "_begin_fork", begin_and_collect_soon)
    try:
        ownership.plan_fork([])
    finally:
        gc.set_threshold(*thresholds)
        ownership.end_fork()
    for fd in kept:
        ownership.close(fd)
    gc.collect()


def test_what_was_closed_meanwhile_is_covered_all_the_same() -> None:
    """Another thread may close a descriptor between the plan of a fork and the fork."""
    gone, other = os.pipe()
    os.close(gone)
    ownership.overlay([gone, other])
    try:
        for fd in (gone, other):
            with pytest.raises(OSError, match="Bad file descriptor"):
                os.write(fd, b"x")
    finally:
        os.close(gone)
        os.close(other)

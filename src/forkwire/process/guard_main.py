"""The guard: a small process of its own that outlives its host by one grace.

It sleeps until the host is gone, however it went, then reads the table of workers, sends SIGTERM
to the process group of each and, after its grace or when its leader has ended, SIGKILL. No thread
or handler inside a worker could do that: a C call that keeps the interpreter's lock runs neither.

The table is an unlinked file. Each worker writes its own record before ``f`` runs, so that the
guard has nothing to do as long as the host lives; the host clears it before it reaps the worker.

A worker that no host of ours has forked has a guard of its own: it watches the pipe or socket that
the worker reads, and ends the worker's group once that has hung up.

Runs as ``python -I -S guard_main.py CONNECTION TABLE HOST`` (two descriptors and a pid), or with
``CONNECTION LINK WORKER GRACE``: standard library only, nothing of this package.
"""

from __future__ import annotations

import contextlib
import math
import os
import select
import signal
import struct
import sys
import time

# A worker's pid, which leads its group (0: nobody); its grace in seconds; when it registered.
RECORD = struct.Struct("=qdd")
POLLED = 0.1  # seconds between looks at what has no descriptor
# Python handles a signal that comes just before a blocking call only after it, unless another one
# interrupts that: so SIGTERM is sent twice. This many seconds lie in between.
AGAIN = 0.1
SHORTEST_PAUSE, LONGEST_PAUSE = 0.01, 0.25  # seconds between looks at workers that were told to end

# Nobody writes to it any more; POLLHUP is told unasked. Never POLLIN: what comes is the worker's.
HUNG_UP = getattr(select, "POLLRDHUP", 0)
# A worker whose link has hung up ends by itself. If not, it is told to, this many seconds before
# its grace is over, or half of it.
LAST_WORDS = 0.5

_queues: list[object] = []  # kqueues close when they are dropped


def open_exit_fd(pid: int) -> int:
    """A descriptor that becomes readable when ``pid`` ends; -1 where the system has none.

    Raises :exc:`ProcessLookupError` if there is no such process.
    """
    if hasattr(os, "pidfd_open"):
        try:
            return os.pidfd_open(pid)
        except ProcessLookupError:
            raise
        except OSError:  # an old kernel, or a filter
            return -1
    if sys.platform == "darwin":
        queue = select.kqueue()
        event = select.kevent(
            pid, select.KQ_FILTER_PROC, select.KQ_EV_ADD, fflags=select.KQ_NOTE_EXIT
        )
        queue.control([event], 0)
        _queues.append(queue)
        return queue.fileno()
    return -1


def readable(fd: int, seconds: float = 0) -> bool:
    """Whether ``fd``, any number, can be read or is at its end, within ``seconds``."""
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    return bool(poll.poll(seconds * 1000))


def uptime() -> float:
    """Seconds since the system started, the clock of `started`; 0 where that has none."""
    return time.clock_gettime(time.CLOCK_BOOTTIME) if sys.platform == "linux" else 0.0


def status(pid: int) -> list[bytes]:
    """What proc(5) says of process ``pid`` in ``stat``, after its name; [] if that is unknown."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return file.read().rpartition(b")")[2].split()
    except OSError:
        return []


def started(pid: int) -> float:
    """The `uptime` at which process ``pid`` started; 0 if that is unknown."""
    fields = status(pid)
    return int(fields[19]) / os.sysconf("SC_CLK_TCK") if fields else 0.0


def has_ended(pid: int) -> bool:
    """Whether ``pid`` is gone, or a zombie. Of the group that it led, others may be left."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        pass
    return status(pid)[:1] in ([b"Z"], [b"X"])


def write(table: int, slot: int, pid: int, grace: float) -> None:
    """Make ``pid`` the worker of ``slot``; 0 for nobody."""
    os.pwrite(table, RECORD.pack(pid, grace, uptime()), slot * RECORD.size)


def read(table: int) -> dict[int, float]:
    """The workers, and the grace of each.

    A number that another process has got since is left out: a new process started after the
    worker had registered.
    """
    data, size = b"", os.fstat(table).st_size
    while len(data) < size and (more := os.pread(table, size - len(data), len(data))):
        data += more
    records = RECORD.iter_unpack(data[: len(data) // RECORD.size * RECORD.size])
    return {pid: grace for pid, grace, since in records if pid and started(pid) <= since}


def signal_group(pid: int, number: int) -> None:
    """Signal the group of ``pid``, if any of it is left, and ``pid`` itself if it has left that."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, number)
    with contextlib.suppress(ProcessLookupError, PermissionError):
        if os.getpgid(pid) != pid:
            os.kill(pid, number)


def image(pid: int) -> list[bytes]:
    """Where the stack of ``pid`` begins (proc(5)), which is elsewhere once it has executed anew.

    [] if that is unknown, or it is about to end and has none.
    """
    return [place for place in status(pid)[25:26] if place != b"0"]


def wait_for_end(host: int, connection: int) -> None:
    """Return when ``host`` has ended; a zombie has, and one that executed another program.

    It holds the other end of ``connection``, and may also have closed every descriptor it had.
    """
    try:
        host_fd = open_exit_fd(host)
    except ProcessLookupError:
        return
    before = image(host)
    if host_fd < 0:
        while not has_ended(host):
            if readable(connection, POLLED):
                time.sleep(POLLED)  # its descriptors go first, its children a moment later
                return
        return
    poll = select.poll()
    poll.register(host_fd, select.POLLIN)
    poll.register(connection, select.POLLIN)
    while all(fd == connection for fd, _ in poll.poll()):
        # Closed by a host that ends, too: but as long as that is the parent of its children, one
        # of them may still register.
        now = image(host)
        if now and now != before:
            return
        poll.unregister(connection)


def end_workers(workers: dict[int, float]) -> None:
    """The host is gone: SIGTERM, the grace, SIGKILL."""
    now = time.monotonic()
    again = now + AGAIN
    kill_at = {pid: now + grace for pid, grace in workers.items()}
    for pid in kill_at:
        signal_group(pid, signal.SIGTERM)
    pause = SHORTEST_PAUSE
    while kill_at:
        if again <= now:
            again = math.inf
            for pid in kill_at:
                signal_group(pid, signal.SIGTERM)
        for pid in [pid for pid, when in kill_at.items() if when <= now or has_ended(pid)]:
            signal_group(pid, signal.SIGKILL)
            del kill_at[pid]
        time.sleep(max(0.0, min(pause, min(kill_at.values(), default=now) - now)))
        pause = min(2 * pause, LONGEST_PAUSE)
        now = time.monotonic()


def wait_for_hang_up(link: int, worker: int) -> None:
    """Return when ``link`` has hung up, or ``worker`` has ended."""
    try:
        worker_fd = open_exit_fd(worker)
    except ProcessLookupError:
        return
    poll = select.poll()
    poll.register(link, HUNG_UP)
    if worker_fd >= 0:
        poll.register(worker_fd, select.POLLIN)
    while not poll.poll(None if worker_fd >= 0 else POLLED * 1000):
        if has_ended(worker):
            return


def end_worker(worker: int, since: float, grace: float) -> None:
    """Its link has hung up: let it end, tell it to, and at the end of its grace kill its group.

    ``since``: when it started; another process may have its number by now.
    """
    begun = time.monotonic()
    pause = SHORTEST_PAUSE
    for number, when in (
        (signal.SIGTERM, begun + grace - min(grace / 2, LAST_WORDS)),
        (signal.SIGKILL, begun + grace),
    ):
        while (left := when - time.monotonic()) > 0 and not has_ended(worker):
            time.sleep(min(pause, left))
            pause = min(2 * pause, LONGEST_PAUSE)
        if started(worker) in (since, 0.0):
            signal_group(worker, number)


# The host blocks them until the guard has left its process group.
IGNORED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGPIPE)


def watch(connection: int, table: int, host: int) -> None:
    """Be the guard of ``host`` until its workers are gone."""
    get_ready(connection)
    wait_for_end(host, connection)
    end_workers(read(table))


def attend(connection: int, link: int, worker: int, grace: float) -> None:
    """Be the guard of one worker until it is gone, which is soon after its ``link`` has hung up."""
    since = started(worker)
    get_ready(connection)
    os.close(connection)
    wait_for_hang_up(link, worker)
    end_worker(worker, since, grace)


def get_ready(connection: int) -> None:
    """Leave the group of those that are guarded, and say so."""
    for number in IGNORED:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, IGNORED)
    with contextlib.suppress(OSError):
        os.setsid()  # a terminal's hang-up and Ctrl-C are not for us
    os.chdir("/")
    os.write(connection, b"+")  # ready: the host waits for this byte


def close_all_but(*kept: int) -> None:
    """Leave no descriptor open but 0 to 2 and ``kept``."""
    first = 3
    for fd in sorted(kept):
        os.closerange(first, fd)
        first = fd + 1
    os.closerange(first, os.sysconf("SC_OPEN_MAX"))


if __name__ == "__main__":
    first, second, pid = (int(argument) for argument in sys.argv[1:4])
    close_all_but(first, second)
    if sys.argv[4:]:
        attend(first, second, pid, float(sys.argv[4]))
    else:
        watch(first, second, pid)

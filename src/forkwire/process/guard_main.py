"""The guard: a small process of its own that outlives its host by one grace.

It is told of each worker by the worker itself, waits until the host is gone, however it went,
then sends SIGTERM to the workers' process groups and, after the grace of each or when its leader
has ended, SIGKILL. No thread or handler inside a worker could do that: a C call that keeps the
interpreter's lock runs neither.

Runs as ``python -I -S guard_main.py SOCKET HOST``: standard library only, nothing of this package.
"""

from __future__ import annotations

import array
import contextlib
import os
import resource
import select
import signal
import socket
import struct
import sys
import time

RECORD = struct.Struct("=id")  # the worker's pid, which leads its group, and its grace in seconds
GROUP = 1 << 2  # PIDFD_SIGNAL_PROCESS_GROUP, Linux 6.9
POLLED = 0.1  # seconds between looks at what has no descriptor
LATE = 1.0  # seconds after the host's end in which a worker just forked may still register


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


def signal_group(pidfd: int, number: int) -> bool:
    """Signal the process group that ``pidfd`` leads or led, if any of it is left.

    False: the kernel, or this system, cannot signal a group so.
    """
    if pidfd < 0 or not hasattr(signal, "pidfd_send_signal"):
        return False
    try:
        signal.pidfd_send_signal(pidfd, number, None, GROUP)
    except ProcessLookupError:
        pass
    except OSError:
        return False
    return True


_queues: list[object] = []  # kqueues close when they are dropped


class Group:
    """One worker and its process group."""

    def __init__(self, pid: int, grace: float, pidfd: int) -> None:
        self.pid = pid
        self.grace = grace
        self.pidfd = pidfd
        self.kill_at = 0.0

    def ended(self) -> bool:
        """Whether the leader is gone. Of the group, others may be left."""
        if self.pidfd >= 0:
            return readable(self.pidfd)
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return True
        return False

    def all_gone(self) -> bool:
        """Whether nobody is left in the group, nor its leader's status."""
        if self.pidfd >= 0:
            try:
                signal.pidfd_send_signal(self.pidfd, 0, None, GROUP)
            except ProcessLookupError:
                return True
            except OSError:  # a kernel that cannot say: of the leader, then
                return self.leader_reaped()
            return False
        try:
            os.killpg(self.pid, 0)
        except ProcessLookupError:
            return True
        except PermissionError:
            pass
        return False

    def leader_reaped(self) -> bool:
        try:
            signal.pidfd_send_signal(self.pidfd, 0)
        except ProcessLookupError:
            return True
        except OSError:
            return self.ended()
        return False

    def send(self, number: int) -> None:
        """Signal the group, by the pidfd where the kernel can: a pid may be another's by now."""
        if not signal_group(self.pidfd, number):
            with contextlib.suppress(OSError):
                os.killpg(self.pid, number)

    def close(self) -> None:
        if self.pidfd >= 0:
            os.close(self.pidfd)


class Guard:
    def __init__(self, registrations: socket.socket, host: int) -> None:
        self.registrations = registrations
        self.host = host
        self.groups: dict[int, Group] = {}
        self.deserted = False
        self.poll = select.poll()
        try:
            self.host_fd = open_exit_fd(host)
        except ProcessLookupError:
            self.host_fd = -2
        if self.host_fd >= 0:
            self.poll.register(self.host_fd, select.POLLIN)
        self.poll.register(registrations, select.POLLIN)

    def host_ended(self) -> bool:
        if self.host_fd >= 0:
            return readable(self.host_fd)
        if self.host_fd == -2 or self.deserted:
            return True
        try:
            os.kill(self.host, 0)
        except ProcessLookupError:
            return True
        except PermissionError:
            pass
        return False

    def register(self) -> None:
        """Read what workers have sent. One that is registered twice counts once."""
        room = array.array("i").itemsize
        while True:
            try:
                data, ancillary, _, _ = self.registrations.recvmsg(
                    RECORD.size, socket.CMSG_SPACE(room), socket.MSG_DONTWAIT
                )
            except BlockingIOError:
                return
            except OSError:
                data, ancillary = b"", []
            if len(data) < RECORD.size:  # nobody is left who could register
                self.deserted = True
                with contextlib.suppress(KeyError):
                    self.poll.unregister(self.registrations)
                return
            pidfd = -1
            for level, kind, content in ancillary:
                if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                    (pidfd,) = array.array("i", content[:room])
            pid, grace = RECORD.unpack(data)
            self.forget(pid)
            self.groups[pid] = Group(pid, grace, pidfd)
            if pidfd >= 0:
                self.poll.register(pidfd, select.POLLIN)

    def forget(self, pid: int) -> None:
        group = self.groups.pop(pid, None)
        if group is not None:
            self.ignore(group)
            group.close()

    def ignore(self, group: Group) -> None:
        """Its leader has ended: its descriptor would be readable for ever."""
        with contextlib.suppress(KeyError, ValueError):
            self.poll.unregister(group.pidfd)

    def without_pidfd(self) -> bool:
        return any(group.pidfd < 0 for group in self.groups.values())

    def watch_host(self) -> None:
        """Until the host ends. Workers that end before it are its own to reap."""
        while True:
            gone = []
            for pid, group in self.groups.items():
                if group.ended():
                    self.ignore(group)
                if group.all_gone():
                    gone.append(pid)
            if self.host_ended():  # looked at last: else init reaped them, and nobody the rest
                break
            for pid in gone:
                self.forget(pid)
            polled = self.host_fd == -1 or self.without_pidfd()
            self.poll.poll(POLLED * 1000 if polled else None)
            self.register()
        if self.host_fd >= 0:
            self.poll.unregister(self.host_fd)

    def end_workers(self) -> None:
        """The host is gone: SIGTERM, the grace, SIGKILL."""
        late = time.monotonic() + LATE
        told: set[int] = set()
        while True:
            self.register()
            now = time.monotonic()
            for pid, group in list(self.groups.items()):
                if pid not in told:
                    told.add(pid)
                    group.kill_at = now + group.grace
                    group.send(signal.SIGTERM)
                if group.ended() or now >= group.kill_at:
                    group.send(signal.SIGKILL)
                    self.forget(pid)
            if not self.groups and now >= late:
                return
            wake = min([group.kill_at for group in self.groups.values()], default=late)
            if now < late:
                wake = min(wake, late)
            if self.without_pidfd():
                wake = min(wake, now + POLLED)
            self.poll.poll(max(0.0, wake - now) * 1000 + 1)


# The host blocks them until the guard has left its process group.
IGNORED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGPIPE)


def watch(registrations: socket.socket, host: int) -> None:
    """Be the guard of ``host`` until its workers are gone."""
    for number in IGNORED:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, IGNORED)
    with contextlib.suppress(OSError, ValueError):  # a descriptor for each worker
        hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    with contextlib.suppress(OSError):
        os.setsid()  # a terminal's hang-up and Ctrl-C are not for us
    os.chdir("/")
    registrations.setblocking(True)
    guard = Guard(registrations, host)
    registrations.sendall(b"+")  # ready: the host waits for this byte
    guard.watch_host()
    guard.end_workers()


if __name__ == "__main__":
    connection = int(sys.argv[1])
    os.closerange(3, connection)
    os.closerange(connection + 1, os.sysconf("SC_OPEN_MAX"))
    watch(socket.socket(fileno=connection), int(sys.argv[2]))

"""Whether the kernel ended a process for lack of memory: it tells nobody, but leaves traces.

Its log names the victim, where it may be read; a control group counts its victims.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import os
import re
import sys
from typing import Final

__all__ = ["kills", "log_names"]

READ_ALL: Final = 3  # SYSLOG_ACTION_READ_ALL, syslog(2): the last of the log
READ_AT_MOST: Final = 256 * 1024  # a report of one kill, with its table of tasks, is some 10 KiB

FIRST_PID_NAMESPACE: Final = "pid:[4026531836]"  # whose numbers the log has
CLOCKS_APART: Final = 60.0  # seconds, after weeks: the log's clock is not corrected by anybody

STAMPED: Final = re.compile(rb"<\d+>\[ *(\d+\.\d+)\] .*[Oo]ut of memory.*: ?$")
COUNT: Final = re.compile(rb"^oom_kill (\d+)$", re.MULTILINE)

MOUNTED: Final = "/sys/fs/cgroup"
# Of version 2, and of version 1 with a memory controller, on a line each.
GROUP: Final = re.compile(r"^\d+:(?:|(?:[^:\n]*,)?memory(?:,[^:\n]*)?):(/[^\n]*)$", re.MULTILINE)


def kills() -> int:
    """How many victims the control group of this process has had; -1 if that cannot be known."""
    with contextlib.suppress(OSError):  # there are none, or no descriptor is left
        for path in counters():
            with open(path, "rb", buffering=0) as file:
                found = COUNT.search(file.read())
            if found:
                return int(found[1])
    return -1


@functools.cache
def counters() -> tuple[str, ...]:
    """The files that may have the count. Raises :exc:`OSError`, which is not remembered."""
    with open("/proc/self/cgroup", encoding="utf-8", errors="surrogateescape") as file:
        groups = [path.rstrip("/") for path in GROUP.findall(file.read())]
    places = [f"{MOUNTED}{path}/memory.events" for path in groups]
    places += [f"{MOUNTED}/memory{path}/memory.oom_control" for path in groups]
    return tuple(path for path in places if os.path.exists(path))


def log_names(pid: int, since: float) -> bool:
    """Whether the kernel's log says that it killed ``pid`` after ``since``, a monotonic time."""
    log, victim = kernel_log(), b"Killed process %d " % pid
    if victim not in log:  # which spares a closer look
        return False
    begins = [line.partition(victim) for line in log.splitlines()]
    stamps = [STAMPED.match(begin) for begin, found, _ in begins if found]
    return any(float(stamp[1]) > since - CLOCKS_APART for stamp in stamps if stamp)


def kernel_log() -> bytes:
    """The end of it; nothing where it may not be read, or has other numbers than we have."""
    if sys.platform != "linux":
        return b""
    try:
        if os.readlink("/proc/self/ns/pid") != FIRST_PID_NAMESPACE:
            return b""
        buffer = ctypes.create_string_buffer(READ_AT_MOST)
        size: int = ctypes.CDLL(None).klogctl(READ_ALL, buffer, READ_AT_MOST)
    except (OSError, AttributeError):
        return b""
    return ctypes.string_at(buffer, size) if size > 0 else b""

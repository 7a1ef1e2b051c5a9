"""What a child forked inside a running event loop forgets, and which descriptors are the loop's.

The loop itself is never touched: its epoll is shared with the parent. This is the one place that
knows names that asyncio, uvloop and trio do not document.
"""

from __future__ import annotations

import contextlib
import gc
import os
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, Final

from .backend import running_asyncio_loop

if TYPE_CHECKING:
    import asyncio

__all__ = [
    "call_in_run",
    "call_in_run_of",
    "forget_running_loop",
    "is_of_a_loop",
    "loop_descriptors",
    "open_descriptors",
]

LOOP_CODE: Final = frozenset({"anyio", "asyncio", "outcome", "selectors", "trio", "uvloop"})


def loop_descriptors() -> set[int]:
    """The descriptors of the event loop that runs in this thread, not those it watches."""
    found: set[int] = set()
    loop = running_asyncio_loop()
    if loop is not None:
        found |= asyncio_descriptors(loop)
    runner = getattr(trio_context(), "runner", None)
    if runner is not None:
        found |= trio_descriptors(runner)
    found.discard(-1)
    return found


def asyncio_descriptors(loop: asyncio.AbstractEventLoop) -> set[int]:
    parts = [getattr(loop, name, None) for name in ("_selector", "_ssock", "_csock")]
    found = {number for part in parts if part is not None for number in [file_number(part)]}
    if hasattr(loop, "_get_backend_id"):
        found |= uvloop_descriptors(loop)
    return found


def uvloop_descriptors(loop: Any) -> set[int]:
    """Libuv's epoll, uvloop's pair of sockets, and what libuv opened for the loop in between.

    libuv opens, in this order and at the lowest free numbers: the epoll, its io_uring, a pipe for
    signals, and the eventfd that wakes the loop. The epoll lists what it watches once the loop
    has turned; ``run`` lets it turn before it forks.
    """
    backend: int = loop._get_backend_id()
    pair = {part.fileno() for part in gc.get_referents(loop) if isinstance(part, socket.socket)}
    found = {backend, *pair}
    with contextlib.suppress(OSError):
        watched = watched_by(backend)
        eventfds = {fd for fd in watched if fd > backend and link(fd) == "anon_inode:[eventfd]"}
        wakeup = min(eventfds, default=backend)
        signals = {link(fd) for fd in watched if link(fd).startswith("pipe:")}
        for fd in range(backend + 1, wakeup):
            if link(fd) in signals or link(fd) == "anon_inode:[io_uring]":
                found.add(fd)
        found.add(wakeup)
    return found


def watched_by(epoll: int) -> set[int]:
    """The descriptors registered with ``epoll`` (proc(5), fdinfo); none on macOS."""
    lines = Path(f"/proc/self/fdinfo/{epoll}").read_text().splitlines()
    return {int(line.split()[1]) for line in lines if line.startswith("tfd:")}


def open_descriptors() -> dict[int, str]:
    """Every open descriptor and what it is (proc(5)); none on macOS."""
    with contextlib.suppress(OSError):
        return {int(name): link(int(name)) for name in os.listdir("/proc/self/fd")}
    return {}


def link(fd: int) -> str:
    try:
        return os.readlink(f"/proc/self/fd/{fd}")
    except OSError:
        return ""


def trio_descriptors(runner: Any) -> set[int]:
    io_manager = runner.io_manager
    poller = getattr(io_manager, "_epoll", None) or getattr(io_manager, "_kqueue", None)
    parts = [poller]
    for pair in (getattr(io_manager, "_force_wakeup", None), runner.entry_queue.wakeup):
        if pair is not None:
            parts += [pair.wakeup_sock, pair.write_sock]
    return {file_number(part) for part in parts if part is not None}


def file_number(part: Any) -> int:
    try:
        number: int = part.fileno()
    except (AttributeError, OSError, ValueError):  # closed, or a selector without one
        return -1
    return number


def trio_context() -> Any:
    """Trio's thread-local state, if trio was imported."""
    module: Any = sys.modules.get("trio._core._run_context")
    return getattr(module, "GLOBAL_RUN_CONTEXT", None)


def call_in_run(tell: Callable[[], None]) -> bool:
    """In a signal handler: have the loop that runs in this thread call it; False if none does.

    It raises SystemExit: that ends a run of asyncio's; of trio's it cancels the main task. Raised
    in the midst of a loop's own work it would break the loop.
    """
    runner = getattr(trio_context(), "runner", None)
    if runner is not None:
        return cancel_trio_run(runner, tell)
    loop = running_asyncio_loop()
    if loop is not None:
        loop.call_soon_threadsafe(tell)
    return loop is not None


def call_in_run_of(thread: int, tell: Callable[[], None]) -> bool:
    """The same from another thread; False also for a loop without frames: uvloop's."""
    frame = sys._current_frames().get(thread)
    while frame is not None:
        where = frame.f_globals.get("__name__"), frame.f_code.co_name
        if where == ("trio._core._run", "run"):
            return cancel_trio_run(frame.f_locals.get("runner"), tell)
        if where == ("asyncio.base_events", "run_forever"):
            frame.f_locals["self"].call_soon_threadsafe(tell)
            return True
        frame = frame.f_back
    return False


def cancel_trio_run(runner: Any, tell: Callable[[], None]) -> bool:
    if runner is None or runner.main_task is None:
        return False
    scope = runner.main_task.parent_nursery.cancel_scope

    def cancel() -> None:
        try:
            tell()
        except SystemExit:
            scope.cancel()

    runner.entry_queue.run_sync_soon(cancel)
    return True


def is_of_a_loop(frame: FrameType | None) -> bool:
    """Whether this is a loop's own code: it comes to an end, or waits for what the loop is told."""
    name = "" if frame is None else str(frame.f_globals.get("__name__"))
    return name.partition(".")[0] in LOOP_CODE


class Asleep:
    """Stands in for the sockets that wake a trio run, and would fail to."""

    def wakeup_thread_and_signal_safe(self) -> None:
        """Do nothing: there is nobody to wake."""


def forget_running_loop() -> None:
    """In the child: no loop is running in this thread, and no library thinks that one is."""
    asyncio: Any = sys.modules.get("asyncio")
    loop = running_asyncio_loop()
    if loop is not None:
        task = asyncio.current_task(loop)
        if task is not None:
            asyncio.tasks._leave_task(loop, task)
        asyncio._set_running_loop(None)
    if hasattr(asyncio, "set_event_loop"):  # it may be half imported
        asyncio.set_event_loop(None)  # also where it has seen by the pid that none is running
    context = trio_context()
    if context is not None:
        runner = getattr(context, "runner", None)
        if runner is not None:
            runner.entry_queue.wakeup = Asleep()
        context.__dict__.clear()
    sniffio: Any = sys.modules.get("sniffio")
    if sniffio is not None:
        sniffio.current_async_library_cvar.set(None)
        sniffio.thread_local.name = None
    sys.set_asyncgen_hooks(None, None)

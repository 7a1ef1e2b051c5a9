"""What a thread calls its worker with where there is no event loop, and how a call is stopped."""

from __future__ import annotations

import _thread
import math
import os
import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Final, TypeVar

from ..errors import UsageError
from .caller.blocking import BlockingCaller
from .caller.sync_calls import NOTHING
from .handle import LAST_GRACE, REPEAT, Handle
from .links.drivers import Bell
from .links.link import OutCall
from .links.poll_thread import PollDriver, PollThread
from .links.uninterrupted import Postponed, Uninterrupted

__all__ = ["SyncCaller"]

T = TypeVar("T")


class RingingCall(OutCall):
    """One whose caller sleeps until something comes for it."""

    __slots__ = ("bell",)

    def __init__(self, method: str, tree: str) -> None:
        super().__init__(0, method, tree)
        self.bell: Final = Bell()
        self.wake = self.bell.ring


class SyncCaller(BlockingCaller):
    """Calls to a worker, which can be killed. It is its own `Waiter`."""

    def __init__(self, driver: PollDriver, handle: Handle) -> None:
        super().__init__(handle.link, self)
        self._driver: Final = driver
        self._thread: Final = driver.thread
        self._handle: Final = handle
        self._pid: Final = os.getpid()

    def wait(self, ready: Callable[[], bool], until: float = math.inf) -> None:
        link = self.link
        self._driver.wait_until(lambda: ready() or link.over is not None, until)

    def send(self, function: Callable[[], T]) -> T:
        if not in_main_thread():
            return function()
        with Postponed():
            return function()

    def ours(self) -> AbstractContextManager[None]:
        return NOTHING

    def theirs(self, function: Callable[[], T]) -> T:
        return function()

    def wake(self) -> None:
        self._driver.wake()

    def check_here(self) -> None:
        if self._pid != os.getpid():
            raise UsageError(
                f"{self.link.name} belongs to process {self._pid}, which started it, not to this "
                f"one ({os.getpid()}), which inherited the handle"
            )
        if self._thread.is_current():
            raise UsageError(
                f"{self.link.name} cannot be waited for here, in the thread that reads what it "
                "says, and handles its log records: use another thread"
            )

    def new_call(self, method: str, tree: str) -> RingingCall:
        return RingingCall(method, tree)

    def sleep(self, call: OutCall, ready: Callable[[], bool], until: float) -> None:
        assert isinstance(call, RingingCall)
        call.bell.wait(ready, until)

    def drop(self, call: OutCall) -> None:
        if self._pid != os.getpid():  # inherited
            return
        self._thread.run_soon(Stopping(self._handle, self._thread, call).begin)

    def stop(self, call: OutCall) -> None:
        stopping = Stopping(self._handle, self._thread, call)
        self._thread.run_soon(stopping.begin)
        with Uninterrupted(call.wake):
            self.sleep(call, lambda: stopping.over, math.inf)


def in_main_thread() -> bool:
    return _thread.get_ident() == threading.main_thread().ident


class Stopping:
    """Has a call stopped: asks for it, interrupts, and kills after the grace.

    In the driver's thread, whatever becomes of who waits.
    """

    def __init__(self, handle: Handle, thread: PollThread, call: OutCall) -> None:
        self._handle: Final = handle
        self._thread: Final = thread
        self._call: Final = call
        self._deadline = math.inf
        self._left = False

    @property
    def over(self) -> bool:
        """Whether the call has ended, or it need not be waited for."""
        return self._call.ended or self._left

    def begin(self) -> None:
        """Ask for it."""
        call = self._call
        if not (call.ended or call.id):
            call.end()  # it was never sent
        if not call.ended:
            self._handle.link.cancel(call)
            self._deadline = time.monotonic() + self._handle.settings.grace
            self._insist()

    def _insist(self) -> None:
        call, handle = self._call, self._handle
        left = self._deadline - time.monotonic()
        if call.ended:
            handle.control.forget(call.id)
        elif left > 0:
            handle.control.cancel(call.id)
            self._thread.after(min(REPEAT, left), self._insist)
        else:
            handle.control.forget(call.id)
            self._give_up()

    def _give_up(self) -> None:
        call = self._call
        if self._handle.waits_for_another(call):
            self._left = True
            call.wake()
        else:
            self._handle.kill_for(call)
            self._thread.after(LAST_GRACE, self._kill)

    def _kill(self) -> None:
        if not self._call.ended:
            self._handle.process.kill()

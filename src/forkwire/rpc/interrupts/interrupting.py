"""How a plain function in a worker is stopped while it runs.

The host writes the call's id to a pipe, whose other end the worker has told the kernel to signal
it about (O_ASYNC). The signal's handler reads the pipe, and raises in the function if it is the one
that is meant. SIGURG is ignored by default: it harms no worker that does not listen yet.

An exception out of nowhere must not hit our own code, nor where Python would swallow it or be left
half done: an import, a ``__del__``. There it is put off, as it is where the signal comes just
before a system call that then blocks. So whoever cancels repeats it, every 50 ms or so, until the
call has ended.
"""

from __future__ import annotations

import _thread
import fcntl
import os
import signal
import struct
import sys
import threading
import time
from collections.abc import Callable
from types import FrameType
from typing import Final, ParamSpec, TypeVar

from ...errors import UsageError
from ...process import ownership, signals
from .control_pipe import ID, NUMBER, ControlPipe
from .safe_frames import entry_below, is_safe, user_frame

__all__ = ["ControlPipe", "Interrupted", "Interrupter", "Pause", "Shield", "current"]

P = ParamSpec("P")
T = TypeVar("T")

# fcntl(2); Python does not know it. To the main thread itself: sent to the process, the signal may
# go to another thread and leave a blocked main thread asleep.
F_SETOWN_EX: Final = 15
F_OWNER_TID: Final = 0

CHUNK: Final = 512 * ID.size

# Cancels of calls that have ended, or never come, are forgotten, oldest first. A pipe holds half as
# many, so that what was just read is not among them; and what is still meant is repeated.
REMEMBERED: Final = 16384

PROBE_STEPS: Final = 1000  # of bytecode, in which a handler has to run
LOOP_PATIENCE: Final = 0.04  # seconds: a repeated cancel comes later than that

_current: Interrupter | None = None


class Interrupted(BaseException):
    """Raised in a function whose caller has cancelled the call."""

    def __init__(self, call_id: int) -> None:
        super().__init__(f"call {call_id} was cancelled")
        self.call_id = call_id


class InterruptedInLoop(Interrupted, SystemExit):
    """The same in an event loop that the function runs: asyncio would keep any other to itself."""


class Interrupter:
    """The worker's side. One a process, in its main thread.

    ``hears`` is false where Python runs no signal handler by itself: 3.13, in a child forked off
    the main thread. There only what blocks is interrupted, and what has not begun.
    """

    def __init__(self, control_fd: int) -> None:
        """Take over ``control_fd``, the read end of a `ControlPipe`."""
        global _current
        if threading.current_thread() is not threading.main_thread():
            raise UsageError("signals are handled in the main thread: make the Interrupter there")
        self._fd = control_fd
        self._main = threading.get_ident()
        self._armed = 0  # the call whose code runs now and may be interrupted
        self._cancelled: dict[int, None] = {}  # in the order in which they came
        self._shields: dict[int, int] = {}  # how many of a call's are entered
        self._considering = self._missed = False
        self._asked = (0, 0.0)  # the call whose loop was told, and when
        self._handler, self._hook = self._on_signal, self._on_unraisable  # one object each
        self._previous_hook = sys.unraisablehook
        self.hears = True
        # Called, as our own code, when there are cancels of calls that do not run.
        self.on_others: Callable[[], None] | None = None
        ownership.own(control_fd)
        _current = self
        self._listen()

    def run(
        self, call_id: int, function: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs
    ) -> T:
        """Call ``function`` as call ``call_id``, a positive number.

        Raises :exc:`Interrupted` where that is cancelled. Inside another call's function only
        where that one is `paused`.
        """
        try:
            self._armed = call_id
            if call_id in self._cancelled or not self.hears:
                self._stop_early()
            return function(*args, **kwargs)
        except BaseException as error:
            self._armed = 0  # before all else: from here on nothing is interrupted
            if self._asked[0] == call_id and is_loops_way_out(error):
                raise Interrupted(call_id) from error
            raise
        finally:
            self._armed = 0

    def step(self, call_id: int, function: Callable[[], T], /) -> T:
        """The same for one step of a generator; nothing is interrupted between two."""
        try:
            self._armed = call_id
            if call_id in self._cancelled or not self.hears:
                self._stop_early()
            return function()
        finally:
            self._armed = 0

    def begin_pause(self) -> int:
        """From here on our own code runs. Answers what `end_pause` is to be given."""
        if _thread.get_ident() != self._main:
            return 0
        paused = self._armed
        self._armed = 0
        return paused

    def end_pause(self, paused: int) -> None:
        """Back to the function. Raises :exc:`Interrupted` where it was cancelled meanwhile."""
        if not paused:
            return
        self._armed = paused
        if paused in self._cancelled or not self.hears:
            self._consider(user_frame(sys._getframe(1)))

    def paused(self) -> Pause:
        """`begin_pause` and `end_pause` as a block, which has no ``yield`` in it."""
        return Pause(self)

    def shield(self) -> Shield:
        """For users' code: the call is not interrupted in this block, but on leaving it."""
        return Shield(self)

    def is_cancelled(self, call_id: int) -> bool:
        """Whether a cancel of ``call_id`` has arrived."""
        if not self.hears:
            self._consider(None)
        return call_id in self._cancelled

    def forget(self, call_id: int) -> None:
        """The call has ended."""
        self._cancelled.pop(call_id, None)
        self._shields.pop(call_id, None)

    def close(self) -> None:
        """Listen no more. Idempotent."""
        fd = self._fd
        if fd < 0:
            return
        self._leave()
        if sys.platform == "linux":
            fcntl.fcntl(fd, fcntl.F_SETFL, fcntl.fcntl(fd, fcntl.F_GETFL) & ~os.O_ASYNC)
        ownership.close(fd)

    def _listen(self) -> None:
        fd = self._fd
        self.hears = is_heard()
        signals.set_handler(NUMBER, self._handler)
        signal.siginterrupt(NUMBER, True)
        signals.pthread_sigmask(signal.SIG_UNBLOCK, (NUMBER,))
        sys.unraisablehook = self._hook
        if sys.platform == "linux":
            owner = struct.pack("ii", F_OWNER_TID, threading.get_native_id())
            fcntl.fcntl(fd, fcntl.F_SETSIG, NUMBER)
            fcntl.fcntl(fd, F_SETOWN_EX, owner)
            fcntl.fcntl(fd, fcntl.F_SETFL, fcntl.fcntl(fd, fcntl.F_GETFL) | os.O_ASYNC)
        self._consider(None)  # what was there already raised no signal

    def _leave(self) -> None:
        """No signal means anything to us any more."""
        global _current
        self._fd, self._armed = -1, 0
        self._cancelled.clear()
        if signal.getsignal(NUMBER) is self._handler:
            signals.set_handler(NUMBER, signals.SIG_DFL)
        if sys.unraisablehook is self._hook:
            sys.unraisablehook = self._previous_hook
        if _current is self:
            _current = None

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self._consider(frame)

    def _consider(self, frame: FrameType | None) -> None:
        """Read what came, and interrupt the armed call if it is meant and now is the time."""
        if self._considering:  # it interrupted itself; under a storm of signals without end
            self._missed = True
            return
        self._considering = self._missed = True
        try:
            error = None
            while self._missed and error is None:
                self._missed = False
                self._read()
                error = self._due(frame) if self._armed in self._cancelled else None
        finally:  # another handler may raise what it likes
            self._considering = False
        if error is not None:
            self._armed = 0  # once only
            try:
                raise error
            finally:
                del error  # its traceback holds this frame, and all that the function has
        if self.on_others is not None and self._armed and is_safe(frame):
            self._tell_others(self.on_others)

    def _tell_others(self, on_others: Callable[[], None]) -> None:
        """The function that runs has its thread to itself: what waits behind it is told now."""
        armed = self.begin_pause()
        try:
            on_others()
        finally:
            self._armed = armed

    def _read(self) -> None:
        """Take note of every cancel in the pipe."""
        length = CHUNK
        while length == CHUNK and self._fd >= 0:
            try:
                data = os.read(self._fd, CHUNK)
            except OSError:  # empty
                return
            length = len(data)
            for (call_id,) in ID.iter_unpack(data):
                self._cancelled[call_id] = None
            while len(self._cancelled) > REMEMBERED:
                del self._cancelled[next(iter(self._cancelled))]

    def _stop_early(self) -> None:
        """The call is about to begin."""
        call_id = self._armed
        if self.is_cancelled(call_id) and call_id not in self._shields:
            self._raise(Interrupted(call_id))

    def _due(self, frame: FrameType | None) -> Interrupted | None:
        """What to raise in the armed call, which was cancelled; None for not now."""
        call_id = self._armed
        if call_id in self._shields or not is_safe(frame):
            return None
        if self._asked[0] != call_id:
            return None if self._ask_loop(call_id) else Interrupted(call_id)
        if time.monotonic() < self._asked[1] + LOOP_PATIENCE or is_of_a_loop(frame):
            return None
        return InterruptedInLoop(call_id)  # a task does not return to the loop

    def _raise(self, error: Interrupted) -> None:
        if self._armed == error.call_id:
            self._armed = 0
            try:
                raise error
            finally:
                del error  # as above

    def _ask_loop(self, call_id: int) -> bool:
        """Have the loop that the function runs, if any, interrupt it between two tasks."""
        if "asyncio" not in sys.modules and "trio" not in sys.modules:
            return False
        from ...process import loops

        def tell() -> None:
            if call_id not in self._shields:
                self._raise(InterruptedInLoop(call_id))

        if not loops.call_in_run(tell):
            return False
        self._asked = call_id, time.monotonic()
        return True

    def _on_unraisable(self, unraisable: sys.UnraisableHookArgs) -> None:
        """Python has swallowed an exception. If it was ours: the next cancel raises it again."""
        error = unraisable.exc_value
        if not isinstance(error, Interrupted):
            self._previous_hook(unraisable)
            return
        entry = entry_below(sys._getframe(1)) if _thread.get_ident() == self._main else None
        if entry is not None and entry.f_locals["call_id"] == error.call_id:
            self._armed = error.call_id


class Pause:
    """What `Interrupter.paused` answers."""

    __slots__ = ("_interrupter", "_paused")

    def __init__(self, interrupter: Interrupter) -> None:
        self._interrupter = interrupter
        self._paused = 0

    def __enter__(self) -> None:
        self._paused = self._interrupter.begin_pause()

    def __exit__(self, *exception: object) -> None:
        self._interrupter.end_pause(self._paused)


class Shield:
    """What `Interrupter.shield` answers. Each is entered once."""

    __slots__ = ("_call_id", "_interrupter")

    def __init__(self, interrupter: Interrupter) -> None:
        self._interrupter = interrupter
        self._call_id = 0

    def __enter__(self) -> None:
        interrupter = self._interrupter
        if _thread.get_ident() == interrupter._main:
            call_id = self._call_id = interrupter._armed
            count = interrupter._shields.get(call_id, 0)
            if call_id:
                interrupter._shields[call_id] = count + 1

    def __exit__(self, *exception: object) -> None:
        call_id, interrupter = self._call_id, self._interrupter
        count = interrupter._shields.pop(call_id, 0)
        if count > 1:
            interrupter._shields[call_id] = count - 1
        elif call_id and call_id == interrupter._armed:
            interrupter._consider(user_frame(sys._getframe(1)))


def current() -> Interrupter | None:
    """The one of this process, if there is one."""
    return _current


def is_of_a_loop(frame: FrameType | None) -> bool:
    from ...process import loops

    return loops.is_of_a_loop(frame)


def is_loops_way_out(error: BaseException) -> bool:
    """Whether ``error`` is what a loop made of an interruption."""
    if isinstance(error, BaseExceptionGroup):
        return all(is_loops_way_out(part) for part in error.exceptions)
    return isinstance(error, Interrupted) or type(error).__name__ == "Cancelled"  # trio's


def is_heard() -> bool:
    """Whether a signal's handler runs during pure bytecode."""
    heard: list[int] = []
    signals.set_handler(NUMBER, lambda number, frame: heard.append(number))
    _thread.interrupt_main(signal.SIGURG)  # as if it had arrived
    for _ in range(PROBE_STEPS):
        if heard:
            break
    return bool(heard)


def _after_fork_in_child() -> None:
    """What a worker's function forks is not called, and nothing in it is interrupted."""
    if _current is not None:
        _current._leave()


os.register_at_fork(after_in_child=_after_fork_in_child)

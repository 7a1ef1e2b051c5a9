"""Orders to stop a plain function that come as messages: from a host that has no control pipe.

The thread that reads the link writes them to a control pipe of this very process. So they arrive as
a host's own do, by the signal that interrupts the function in the main thread.
"""

from __future__ import annotations

import _thread
import threading
import time
from collections.abc import Callable
from typing import Final

from .control_pipe import ControlPipe

__all__ = ["Orders"]

# An order may come where it has to be put off, and is then repeated.
REPEAT: Final = 0.05  # seconds


class Orders:
    """Those that are not carried out yet."""

    def __init__(self, control: ControlPipe) -> None:
        self._control: Final = control
        self._meant: Final[dict[int, Callable[[], bool]]] = {}
        self._lock: Final = threading.Lock()
        self._repeating = False

    def stop(self, call_id: int, is_over: Callable[[], bool]) -> None:
        """Interrupt call ``call_id``, and again until ``is_over()``. Never blocks.

        A notification, which has the number 0, is no call, and nobody can ask for its end.
        """
        if not call_id:
            return
        with self._lock:
            self._meant[call_id] = is_over
            begin, self._repeating = not self._repeating, True
        self._control.cancel(call_id)
        if begin:
            _thread.start_new_thread(self._repeat, ())

    def _repeat(self) -> None:
        while True:
            time.sleep(REPEAT)
            with self._lock:
                for call_id in [number for number, over in self._meant.items() if over()]:
                    del self._meant[call_id]
                    self._control.forget(call_id)
                if not self._meant:
                    self._repeating = False
                    return
                meant = list(self._meant)
            for call_id in meant:
                self._control.cancel(call_id)

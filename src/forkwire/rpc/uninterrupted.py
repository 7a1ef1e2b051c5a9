"""What must not be left half done in the main thread, where a signal's handler may raise any time.

Knows of no worker.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Any, Final, Self

__all__ = ["Uninterrupted"]


class Uninterrupted:
    """A block that ends before what a signal's handler raised in it is raised.

    Handlers run when their signals arrive, as ever. ``on_error`` is called, inside a handler, when
    one has raised: what is waited for had better end soon.
    """

    def __init__(self, on_error: Callable[[], None]) -> None:
        self.error: BaseException | None = None
        self._on_error: Final = on_error
        self._active = False
        self._handlers: Final[dict[int, Callable[[int, FrameType | None], Any]]] = {}

    def check(self) -> None:
        """Raise what a handler has raised so far."""
        error, self.error = self.error, None
        if error is not None:
            raise error

    def __enter__(self) -> Self:
        self._active = True
        if threading.current_thread() is threading.main_thread():
            try:
                self._replace()
            except BaseException:
                self._restore()
                raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._restore()
        self.check()

    def _replace(self) -> None:
        for number in signal.valid_signals():
            handler = signal.getsignal(number)
            if callable(handler):
                self._handlers[number] = handler
                signal.signal(number, self._handle)

    def _restore(self) -> None:
        """If one raises meanwhile, what is left of ours only passes signals on."""
        self._active = False
        for number, handler in self._handlers.items():
            if signal.getsignal(number) == self._handle:  # else it has set another
                signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        handler = self._handlers[number]
        if not self._active:
            handler(number, frame)
            return
        try:
            handler(number, frame)
        except BaseException as error:
            self.error = error
            self._on_error()

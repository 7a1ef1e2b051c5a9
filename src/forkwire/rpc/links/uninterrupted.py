"""What must not be left half done in the main thread, where a signal's handler may raise any time.

Knows of no worker.
"""

from __future__ import annotations

import _thread
import sys
import threading
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Any, Final, Self

from ...process.signals import handler_of, handlers, set_handler

__all__ = ["Postponed", "Uninterrupted"]

Handler = Callable[[int, FrameType | None], Any]


class Block:
    """Has signals that Python handles come to `_handle`; in other threads there are none."""

    __slots__ = ("_handlers",)

    def __init__(self) -> None:
        self._handlers: dict[int, Handler] = {}

    def __enter__(self) -> Self:
        if _thread.get_ident() == threading.main_thread().ident:
            self._handlers = handlers()
            try:
                for number in self._handlers:
                    set_handler(number, self._handle)
            except BaseException:
                self._restore()
                raise
        return self

    def _restore(self) -> None:
        for number, handler in self._handlers.items():
            if handler_of(number) == self._handle:  # else somebody has set another
                set_handler(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        raise NotImplementedError


class Postponed(Block):
    """A short block, at whose end handlers run whose signals came meanwhile."""

    __slots__ = ("_active", "_pending")

    def __init__(self) -> None:
        super().__init__()
        self._active = True
        self._pending: list[int] = []

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._restore()
        self._active = False
        if self._pending:
            self._run()

    def _run(self) -> None:
        """Each, also where one raises; the last error is raised."""
        number = self._pending.pop()
        try:
            if self._pending:
                self._run()
        finally:
            self._handlers[number](number, sys._getframe(2))

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self._active:
            self._pending.append(number)
        else:  # something was raised while the handlers were put back
            self._handlers[number](number, frame)


class Uninterrupted(Block):
    """A block, perhaps a long one, that ends before what a signal's handler raised is raised.

    Handlers run when their signals arrive, as ever. ``on_error`` is called, inside a handler, when
    one has raised: what is waited for had better end soon.
    """

    __slots__ = ("_active", "_on_error", "error")

    def __init__(self, on_error: Callable[[], None]) -> None:
        super().__init__()
        self.error: BaseException | None = None
        self._on_error: Final = on_error
        self._active = True

    def check(self) -> None:
        """Raise what a handler has raised so far."""
        error, self.error = self.error, None
        if error is not None:
            raise error

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._active = False
        self._restore()
        self.check()

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

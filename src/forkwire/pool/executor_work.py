"""One call of an executor: its future, what it takes, and how its answer becomes the future's.

Knows no worker and no loop.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Mapping
from concurrent.futures import Future, InvalidStateError
from concurrent.futures._base import CANCELLED_AND_NOTIFIED, RUNNING
from typing import Any, Final

from ..errors import ValueEncodeError
from ..rpc.exceptions import describing
from . import executor_service as service
from .executor_errors import NotUnpicklableError, RemoteTraceback
from .pickling import Packed, label_of, pack, unpack

__all__ = ["StoppableFuture", "Work", "answer"]

logger: Final = logging.getLogger("forkwire")


class StoppableFuture(Future[Any]):
    """One that can be cancelled while it runs: the function is stopped in its worker.

    ``on_stop``: has it stopped, from any thread; while it is in a worker.
    """

    def __init__(self) -> None:
        super().__init__()
        self.on_stop: Callable[[], None] | None = None

    def cancel(self) -> bool:
        """Cancel the call. One that runs is stopped, which may go on for a moment after this."""
        return super().cancel() or self._stop()

    def _stop(self) -> bool:
        with self._condition:
            if self._state != RUNNING:
                return False
            self._state = CANCELLED_AND_NOTIFIED
            for waiter in self._waiters:
                waiter.add_cancelled(self)
            self._condition.notify_all()
        if (stop := self.on_stop) is not None:
            stop()
        self._invoke_callbacks()  # type: ignore[attr-defined]
        return True


class Work:
    """A call that was submitted. ``context``: what travels with it, from where that was."""

    __slots__ = ("args", "context", "function", "future", "kwargs", "moves", "retries", "tries")

    def __init__(
        self,
        future: Future[Any],
        function: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        retries: int,
        context: dict[str, object] | None,
    ) -> None:
        self.future: Final = future
        self.function: Final = function
        self.args: Final = args
        self.kwargs: Final = kwargs
        self.retries = retries
        self.tries = 0
        self.moves = 0  # from a worker in which it had not begun
        self.context: Final = context

    @property
    def label(self) -> str:
        """What the function is called."""
        inner = self.args[0] if self.function is service.run_chunk else self.function
        return label_of(inner)

    def commit(self) -> bool:
        """Have the future run, as far as it is to know; False if nobody wants it any more."""
        try:
            return self.future.set_running_or_notify_cancel()
        except (RuntimeError, InvalidStateError):  # somebody else has given it a result
            return False

    def cancel(self) -> None:
        """It is not to be run."""
        with self._guarded():
            self.future.cancel()
        self.commit()

    def pack(self, *, inherited: bool) -> Packed:
        """For its worker. Raises what cannot be pickled, with what that belongs to."""
        try:
            return pack((self.function, self.args, self.kwargs), inherited=inherited)
        except Exception as error:
            error.add_note(f"forkwire: the call of {self.label} cannot be pickled")
            raise

    def settle(self, reply: list[Any]) -> None:
        """Give the future what the worker answered."""
        try:
            value = answer(reply, self.label)
        except BaseException as error:
            self.fail(error)
            return
        with self._guarded():
            self.future.set_result(value)

    def fail(self, error: BaseException) -> None:
        """It ended with ``error``."""
        with self._guarded():
            self.future.set_exception(error)

    def refused(self, error: BaseException) -> None:
        """It could not be sent, or its answer could not."""
        if isinstance(error, ValueEncodeError):  # it is pickled already, so it is too large
            error.add_note(
                f"forkwire: what {self.label} is called with goes as one message, and what it "
                "answers too: give it less at a time, or the path of a file"
            )
        self.fail(error)

    @contextlib.contextmanager
    def _guarded(self) -> Any:
        """The future may have been cancelled, and its callbacks are strangers."""
        try:
            yield
        except InvalidStateError:
            pass
        except BaseException:
            logger.exception("a callback of a future of %s raised", self.label)


def answer(reply: list[Any], label: str) -> Any:
    """The value of a reply. Raises the error that it is."""
    kind, packed, *rest = reply
    if kind == service.VALUE:
        return rebuilt(packed, f"the result of {label}")
    text, described = rest
    error = raised(packed, described, text, label)
    if kind == service.UNREAD:
        message = f"the call of {label} could not be unpickled in its worker: {brief(error)}"
        raise NotUnpicklableError(message) from error
    raise error


def rebuilt(packed: Packed, what: str) -> Any:
    """What was packed. Raises :exc:`NotUnpicklableError`."""
    try:
        return unpack(packed)
    except BaseException as error:
        raise NotUnpicklableError(f"{what} could not be unpickled: {brief(error)}") from error


def raised(packed: Packed, described: Mapping[str, object], text: str, label: str) -> BaseException:
    """What the function raised, as itself; where that cannot be, a :exc:`RemoteError`."""
    why = "it cannot be pickled"
    if packed:
        try:
            error = unpack(packed)
            if isinstance(error, BaseException):
                error.__cause__ = RemoteTraceback(f'\n"""\n{text}"""')
                return error
            why = f"it was rebuilt as a {type(error).__name__}"
        except BaseException as failed:
            why = f"it cannot be unpickled: {brief(failed)}"
    remote = describing.rebuild(described, worker="an executor's worker", method=label)
    remote.add_note(f"forkwire: this is no {described.get('type')} here, since {why}")
    return remote


def brief(error: BaseException) -> str:
    """Its type and message."""
    try:
        return f"{type(error).__name__}: {error}"
    except Exception:
        return type(error).__name__

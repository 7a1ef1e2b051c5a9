"""A call that has its worker: from then on until it has ended."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final

from .states import Need

if TYPE_CHECKING:
    from ..rpc.links.link import OutCall
    from .blame import Mark
    from .dispatch import Dispatcher
    from .members import Post

__all__ = ["Work"]

clock = time.monotonic


class Work:
    """``need``: what it was found for. ``asked``: when it was made. ``alone``: the worker was lent
    for it.
    """

    __slots__ = ("_dispatcher", "alone", "asked", "begun", "mark", "need", "post")

    def __init__(
        self,
        dispatcher: Dispatcher,
        post: Post,
        mark: Mark,
        need: Need,
        asked: float,
        *,
        alone: bool = False,
    ) -> None:
        self._dispatcher: Final = dispatcher
        self.post: Final = post
        self.mark: Final = mark
        self.need: Final = need
        self.asked: Final = asked
        self.alone: Final = alone
        self.begun: Final = clock()
        post.work.add(self)

    def ended(self, call: OutCall) -> None:
        """In any way."""
        self.post.work.discard(self)
        self._dispatcher.ended(self, call.error)
        self._free()

    def withdraw(self) -> None:
        """It was not sent."""
        self.post.work.discard(self)
        self._dispatcher.give_back(self.post, self.need)
        self._free()

    def _free(self) -> None:
        if self.alone:
            self._dispatcher.give_back(self.post, Need.ALL)

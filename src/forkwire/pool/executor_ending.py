"""The end of the interpreter: what was submitted to executors is done first.

As in concurrent.futures, before threads are joined and ``atexit`` functions run: these could not
start anything any more. Knows engines only by what it asks of them.
"""

from __future__ import annotations

import os
import threading
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from .executor_engine import Engine

__all__ = ["engines"]


class Engines:
    """Those of this process that have not ended; at its end their calls are waited for."""

    def __init__(self) -> None:
        self.exiting = False
        self.running: Final[dict[Engine, None]] = {}

    def finish(self) -> None:
        """The interpreter ends: let what was submitted be done. Ctrl-C ends it at once."""
        self.exiting = True
        for engine in list(self.running):
            if engine.pid != os.getpid():
                continue
            engine.close()
            try:
                engine.join()
            except KeyboardInterrupt:
                engine.close(cancel_pending=True)
                engine.end_workers(kill=True)
                engine.join()


engines: Final = Engines()
threading._register_atexit(engines.finish)  # type: ignore[attr-defined]

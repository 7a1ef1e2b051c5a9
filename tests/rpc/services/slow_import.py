"""A service whose import takes long, in the way that the environment says."""

from __future__ import annotations

import atexit
import ctypes
import os
import threading
import time
from pathlib import Path

if "FORKWIRE_TEST_BEGUN" in os.environ:
    Path(os.environ["FORKWIRE_TEST_BEGUN"]).write_text(str(os.getpid()))

_how = os.environ.get("FORKWIRE_TEST_IMPORT", "")
_hold = threading.Event()

if _how == "sleep":
    time.sleep(120)
elif _how == "c":
    sum(range(10**12))
elif _how == "exit":
    os._exit(7)
elif _how == "crash":
    ctypes.string_at(0)
elif _how == "raise":
    raise LookupError("no table to be found")
elif _how == "sys.exit":
    raise SystemExit("at import")
elif _how == "threads":
    threading.Thread(target=_hold.wait, name="a thread of the service", daemon=True).start()
elif _how == "stubborn thread":
    threading.Thread(target=_hold.wait, name="a thread of the service").start()
elif _how == "stubborn exit":
    atexit.register(time.sleep, 120)


def imported_in() -> list[int]:
    """The process, its parent, and that which runs the threads that the import started."""
    names = [thread.name for thread in threading.enumerate()]
    return [os.getpid(), os.getppid(), names.count("a thread of the service")]

"""A host that is killed: it starts a worker of a template, tells the pids, and waits.

Its arguments: the service, "busy" for a worker in the midst of C code, or "start" to tell before
the worker is there.
"""

from __future__ import annotations

import os
import sys
import threading
import time

from forkwire import sync
from forkwire.process import templates


def tell_template() -> None:
    """As soon as there is one."""
    while not (found := list(templates._current.values())) or not found[0].pid:
        time.sleep(0.002)
    print("template", found[0].pid, flush=True)


def main(service: str, how: str) -> None:
    print("host", os.getpid(), flush=True)
    threading.Thread(target=tell_template, daemon=True).start()
    with sync.open_worker(service, start="template", grace=0.3) as worker:
        print("worker", worker.pid, flush=True)
        if how == "busy":
            worker.notify("stuck_in_c")
        worker.call("nap_in_c", 120) if how == "nap" else time.sleep(120)


main(*sys.argv[1:])

"""The same without an event loop: `forkwire.sync` blocks instead of awaiting."""

import calc

import forkwire
from forkwire.sync import open_worker

with open_worker(calc) as worker:
    print(worker.call("add", 1, 2))
    print(list(worker.stream(calc.count, 4)))
    try:
        worker.options(timeout=0.1).call("spin")
    except TimeoutError:
        print("stopped")
    try:
        worker.call("count", 4)
    except forkwire.WrongKindError as error:
        print(error)

# Prints:
# 3
# [0, 1, 2, 3]
# stopped
# count() yields, so it is streamed, not called: use stream('count', ...)

"""`ProcessExecutor`: concurrent.futures' interface; a crash fails its own call only."""

import os

import forkwire


def area(side: int) -> int:  # of this very script, which the workers do not run again
    return side * side


def wrong(side: int) -> int:
    raise ValueError(f"{side} is wrong")


def spin() -> None:
    while True:
        pass


with forkwire.ProcessExecutor(max_workers=2, cancel_running=True) as executor:
    print(executor.submit(pow, 2, 10).result())
    print(list(executor.map(area, range(6), chunksize=2)))
    print(executor.submit(lambda: "a lambda").result())
    print(repr(executor.submit(wrong, 3).exception()))
    crashed = executor.submit(os.abort)
    try:
        crashed.result()
    except forkwire.WorkerDied as error:  # a BrokenProcessPool too
        print(error.signal_name, error.in_flight)
    print(executor.submit(area, 7).result())  # it goes on

    endless = executor.submit(spin)
    while not endless.running():
        pass
    print(endless.cancel(), endless.cancelled())  # the loop is interrupted

# Prints:
# 1024
# [0, 1, 4, 9, 16, 25]
# a lambda
# ValueError('3 is wrong')
# SIGABRT ('posix.abort',)
# 49
# True True

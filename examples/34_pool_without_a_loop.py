"""A pool without an event loop: any number of threads may call it."""

from concurrent.futures import ThreadPoolExecutor

import calc

from forkwire.sync import open_pool

with open_pool(calc, size=2) as pool:
    print(pool.call(calc.add, 1, 2))
    print(list(pool.map(calc.add, range(5), range(5))))
    with ThreadPoolExecutor() as threads:
        print(sum(threads.map(lambda n: pool.call("add", n, 1), range(10))))
    try:
        pool.options(timeout=0.1).call("spin")
    except TimeoutError:
        print("stopped")

# Prints:
# 3
# [0, 2, 4, 6, 8]
# 55
# stopped

"""Small calls and large arguments over executors: ours, concurrent.futures', loky's.

No claim is made: this shows what an executor costs that loses one call to a crash, not all. A small
call takes longer here than with concurrent.futures, whose workers take calls from a shared queue
by themselves; many of them, and those that travel together (chunksize), less so.

Bias: all have two workers, started and warm; concurrent.futures forks, loky and ours start clean
ones. "echo" goes there and back; concurrent.futures and loky copy it into the pickle. The workers
and the three threads that concurrent.futures has share the processors with this program.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, ProcessPoolExecutor
from contextlib import contextmanager
from functools import partial
from time import perf_counter
from typing import Any, Final

from _harness import Contender, Table, main, paced

from forkwire import ProcessExecutor

WORKERS: Final = 2
STANDARD: Final = "concurrent.futures"

Use = Callable[[Executor, int], None]


def one_at_a_time(executor: Executor, count: int) -> None:
    for _ in range(count):
        executor.submit(abs, 1).result()


def many_at_once(executor: Executor, count: int) -> None:
    for future in [executor.submit(abs, 1) for _ in range(count)]:
        future.result()


def in_chunks(executor: Executor, count: int) -> None:
    for _ in executor.map(abs, range(count), chunksize=100):
        pass


def echo(payload: Any, executor: Executor, count: int) -> None:
    for _ in range(count):
        executor.submit(pass_on, payload).result()


def pass_on(payload: Any) -> Any:
    return payload


def measured(make: Callable[[], Executor], use: Use, count: int) -> float:
    """Seconds a call, of a warm executor."""
    with make() as executor:
        for _ in range(2):
            list(executor.map(abs, range(4 * WORKERS)))
        start = perf_counter()
        use(executor, count)
        return (perf_counter() - start) / count


def executors() -> dict[str, Callable[[], Executor]]:
    found: dict[str, Callable[[], Executor]] = {
        STANDARD: partial(ProcessPoolExecutor, WORKERS),
        "forkwire": partial(ProcessExecutor, WORKERS),
        "forkwire (fork)": partial(ProcessExecutor, WORKERS, start="fork"),
    }
    if importlib.util.find_spec("loky") is not None:
        loky: Any = importlib.import_module("loky")
        found["loky"] = partial(loky.ProcessPoolExecutor, WORKERS)
    return found


def uses(quick: bool) -> Iterator[tuple[str, Use, int, int]]:
    """Title, use, calls, and bytes that each moves."""
    yield "one small call after the other", one_at_a_time, paced(quick, 1000), 0
    yield "many small calls at once", many_at_once, paced(quick, 4000), 0
    yield "small calls in chunks of 100", in_chunks, paced(quick, 40_000), 0
    payload = bytearray(1 << 20)
    yield "echo of 1 MiB", partial(echo, payload), paced(quick, 100), 2 * len(payload)


@contextmanager
def no_warning() -> Iterator[None]:
    """Of the fork beside our own thread, which is asked for here."""
    import warnings

    import forkwire

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", forkwire.ForkThreadsWarning)
        yield


def contender(make: Callable[[], Executor], use: Use, count: int) -> float:
    with no_warning():
        return measured(make, use, count)


def tables(quick: bool, place: str, pinned: bool) -> list[Table]:
    """One a use."""
    found = []
    for title, use, count, payload in uses(quick):
        contenders: dict[str, Contender] = {
            name: partial(contender, make, use, count) for name, make in executors().items()
        }
        found.append(Table(f"{title}, {place}", pinned, contenders, payload, baseline=STANDARD))
    return found


if __name__ == "__main__":
    main(__doc__, tables)

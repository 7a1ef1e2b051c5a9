"""A pool under load for a while, while its workers are killed: `make soak`, or by hand.

Afterwards nothing may be left: as many descriptors, processes and threads as before, memory within
what a heap grows by. Each call must have ended, with what was asked for or with the death of its
worker, and none may have run twice. The exit status says whether all of that was so.
"""

from __future__ import annotations

import argparse
import collections
import gc
import logging
import os
import sys
import tempfile
import threading
import time
from contextlib import suppress
from pathlib import Path
from random import Random
from typing import Any, Final

import anyio
import soaked
from load import Load

import forkwire

# The variable by which all processes are known that come of this one.
MARK: Final = "FORKWIRE_SOAK"

SIZE: Final = 4
CLIENTS: Final = 16

# Seconds of load before anything is measured: what is made once is made by then.
WARM_UP: Final = 3.0

# MiB that the heap may have grown by: large values were in flight, and arenas are kept.
GROWTH: Final = 48

# Seconds that what was left has to go away by itself: a process that is being reaped.
PATIENCE: Final = 5.0


def main() -> int:
    options = parsed()
    if MARK not in os.environ:  # what was there at the start of a process can be read of it
        os.environ[MARK] = str(os.getpid())
        os.execv(sys.executable, [sys.executable, *sys.argv])
    logging.getLogger("forkwire").setLevel(logging.CRITICAL)  # of deaths and retries
    name = "asyncio" if options.backend == "uvloop" else options.backend
    more = {"use_uvloop": options.backend == "uvloop"} if name == "asyncio" else {}
    with tempfile.TemporaryDirectory() as folder:
        wrong = anyio.run(soak, options, folder, backend=name, backend_options=more)
    for line in wrong:
        print("WRONG", line)
    print("failed" if wrong else "all is well")
    return bool(wrong)


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--backend", choices=["asyncio", "uvloop", "trio"], default="asyncio")
    parser.add_argument("--start", choices=["template", "fork", "exec"], default="template")
    parser.add_argument("--kills", type=float, default=0.2, help="seconds between two, as a mean")
    parser.add_argument("--seed", type=int, default=int.from_bytes(os.urandom(4), "big"))
    return parser.parse_args()


async def soak(options: argparse.Namespace, folder: str) -> list[str]:
    random = Random(options.seed)
    print(f"seed {options.seed}, {options.backend}, {options.start}, {options.seconds:g} s")
    await under_load(options, random, f"{folder}/warm", WARM_UP)
    before = await measured(options, {})
    load, statistics = await under_load(options, random, f"{folder}/marks", options.seconds)
    after = await measured(options, before)
    tell(load, statistics, before, after)
    return [*load.wrong, *lost(load), *left(before, after)]


async def under_load(
    options: argparse.Namespace, random: Random, marks: str, seconds: float
) -> tuple[Load, forkwire.PoolStatistics]:
    Path(marks).touch()
    async with forkwire.open_pool(
        soaked,
        size=SIZE,
        start=options.start,
        grace=1.0,
        restart=forkwire.Restart(intensity=10**6, backoff=0.01, longest_backoff=0.1),
        recycle=forkwire.Recycle(calls=200, age=10.0, memory="1G"),
        health=forkwire.Health(interval=1.0, timeout=2.0),
    ) as pool:
        load = Load(pool, random, marks)
        until = time.monotonic() + seconds
        async with anyio.create_task_group() as group:
            for _ in range(CLIENTS):
                group.start_soon(load.client, until)
            group.start_soon(load.killer, until, options.kills)
            group.start_soon(change, load, until, options.start != "fork")
        with anyio.fail_after(60):
            await pool.drain()
        return load, pool.statistics()


async def change(load: Load, until: float, reloads: bool) -> None:
    await load.changer(until, SIZE, reloads=reloads)


# -- what is left ---------------------------------------------------------------------------------


def lost(load: Load) -> list[str]:
    """Calls that never ended, or ran twice, or were answered and did not run."""
    wrong = []
    if load.begun != load.ended:
        wrong.append(f"begun {dict(load.begun)}, ended {dict(load.ended)}")
    ran = collections.Counter(int(line) for line in Path(load.marks).read_text().split())
    if twice := [token for token, times in ran.items() if times > 1]:
        wrong.append(f"{len(twice)} calls ran twice")
    if not load.answered <= set(ran) <= load.marked:
        wrong.append("calls were answered that did not run, or ran that were not made")
    return wrong


async def measured(options: argparse.Namespace, at_most: dict[str, int]) -> dict[str, int]:
    """How much there is of everything, once it is no more than ``at_most``, or patience ends."""
    async with forkwire.open_worker(soaked, start=options.start):
        pass  # what is left of a template that has ended is closed when another one is looked for
    end = time.monotonic() + PATIENCE
    while True:
        gc.collect()
        found = {
            "descriptors": len(os.listdir("/proc/self/fd")),
            "processes": len(relatives() | children()),
            "threads": threading.active_count(),
            "MiB": resident() >> 20,
        }
        more = [name for name, number in at_most.items() if found[name] > number]
        if not set(more) - {"MiB"} or time.monotonic() > end:
            return found
        await anyio.sleep(0.05)


def left(before: dict[str, int], after: dict[str, int]) -> list[str]:
    slack = {"MiB": GROWTH}
    wrong = [
        f"{name}: {after[name]} are left, of {number}"
        for name, number in before.items()
        if after[name] > number + slack.get(name, 0)
    ]
    if wrong:
        wrong.append(f"open: {open_files()}; below: {relatives() | children()}")
    return wrong


def open_files() -> list[str]:
    found = []
    for entry in Path("/proc/self/fd").iterdir():
        with suppress(OSError):
            found.append(f"{entry.name} {os.readlink(entry)}")
    return found


def relatives() -> set[int]:
    """All processes that came of this one, whoever is their parent now; zombies have no mark."""
    mark = f"{MARK}={os.environ[MARK]}".encode()
    found = set()
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            with suppress(OSError):
                if mark in (folder / "environ").read_bytes().split(b"\0"):
                    found.add(int(folder.name))
    return found - {os.getpid()}


def children() -> set[int]:
    """Those of which this is the parent, zombies too."""
    tasks = Path("/proc/self/task").iterdir()
    return {int(pid) for task in tasks for pid in (task / "children").read_text().split()}


def resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def tell(load: Load, statistics: Any, before: dict[str, int], after: dict[str, int]) -> None:
    print("operations", sum(load.ended.values()), dict(load.outcomes))
    print("calls", statistics.calls, "errors", statistics.errors, "killed", load.kills,
          "stopped", load.stops, "deaths", statistics.deaths, "restarts", statistics.restarts,
          "recycled", statistics.recycled, "retries", statistics.retries,
          "refused", statistics.refused)  # fmt: skip
    print(
        f"latency: median {statistics.latency.quantile(0.5) * 1e3:.1f} ms, "
        f"longest {statistics.latency.max:.2f} s; wait: "
        f"median {statistics.wait.quantile(0.5) * 1e3:.1f} ms, longest {statistics.wait.max:.2f} s"
    )
    print("before", before, "after", after)


if __name__ == "__main__":
    sys.exit(main())

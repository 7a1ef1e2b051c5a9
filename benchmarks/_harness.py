"""What the benchmark scripts share: interleaved rounds, quartiles, ratios, a table, JSON.

Every measurement runs in a fresh fork of this process, which has imported everything and runs no
event loop, so none inherits another's state. Knows nothing of what is measured.
"""

from __future__ import annotations

import argparse
import gc
import itertools
import json
import os
import platform
import statistics
import struct
import sys
import time
import traceback
from collections.abc import Callable, Coroutine
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

import anyio
import trio  # noqa: F401  imported before the forks, as is all that a measurement needs
import uvloop  # noqa: F401

__all__ = ["BASELINE", "HOSTS", "Contender", "Table", "main", "median_seconds", "on_loop", "paced"]

BASELINE: Final = "multiprocessing.Pipe"
HOSTS: Final = ("asyncio", "uvloop", "trio")
SECOND: Final = struct.Struct("=d")

Contender = Callable[[], float]
"""Measures once: seconds an operation."""


@dataclass
class Table:
    """Contenders that do the same thing in the same place; the first is compared against."""

    title: str
    pinned: bool
    contenders: dict[str, Contender]
    payload: int = 0
    """Bytes an operation moves; 0 where only the time counts."""
    baseline: str = BASELINE
    """The name of the one that is compared against."""
    seconds: dict[str, list[float]] = field(default_factory=dict)
    loads: list[float] = field(default_factory=list)

    def measure(self) -> None:
        """One round: each contender once, in turn."""
        self.loads.append(os.getloadavg()[0])
        for name, contender in self.contenders.items():
            self.seconds.setdefault(name, []).append(in_fresh_fork(contender, self.pinned))

    def rows(self) -> list[Row]:
        baseline = self.seconds[self.baseline]
        return [
            Row(
                name=name,
                median_us=statistics.median(seconds) * 1e6,
                quartiles_us=[value * 1e6 for value in quartiles(seconds)],
                times_baseline=statistics.median(ratios := ratio(baseline, seconds)),
                times_baseline_quartiles=quartiles(ratios),
                megabytes_per_second=self.payload / statistics.median(seconds) / 1e6,
            )
            for name, seconds in self.seconds.items()
        ]


@dataclass
class Row:
    name: str
    median_us: float
    quartiles_us: list[float]
    times_baseline: float
    """The baseline's time divided by this one's, round by round; the median of those."""
    times_baseline_quartiles: list[float]
    megabytes_per_second: float


def ratio(baseline: list[float], seconds: list[float]) -> list[float]:
    return [base / mine for base, mine in zip(baseline, seconds, strict=True)]


def quartiles(values: list[float]) -> list[float]:
    """The first and the third."""
    if len(values) < 2:
        return [values[0], values[0]]
    first, _, third = statistics.quantiles(values, n=4, method="inclusive")
    return [first, third]


def median_seconds(marks: list[float], operations: int) -> float:
    """Seconds an operation, from clock readings ``operations`` apart: the median stretch."""
    stretches = [after - before for before, after in itertools.pairwise(marks)]
    return statistics.median(stretches) / operations


def paced(quick: bool, full: int) -> int:
    """How often, in a ``--quick`` run or a full one."""
    return max(2, full // 20) if quick else full


def on_loop(host: str, main: Callable[[], Coroutine[Any, Any, float]]) -> float:
    """Run ``main`` on the event loop called ``host``."""
    if host == "trio":
        return anyio.run(main, backend="trio")
    return anyio.run(main, backend="asyncio", backend_options={"use_uvloop": host == "uvloop"})


def in_fresh_fork(contender: Contender, pinned: bool) -> float:
    """What ``contender`` measures in a child of its own, on one core or on all."""
    read_end, write_end = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(read_end)
        be_measured(contender, pinned, write_end)
    os.close(write_end)
    answer = os.read(read_end, SECOND.size)
    os.close(read_end)
    os.waitpid(pid, 0)
    if len(answer) != SECOND.size:
        raise SystemExit("a measurement failed: see above")
    seconds: float = SECOND.unpack(answer)[0]
    return seconds


def be_measured(contender: Contender, pinned: bool, write_end: int) -> None:
    try:
        if pinned and sys.platform == "linux":
            os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
        gc.collect()
        os.write(write_end, SECOND.pack(contender()))
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        os._exit(0)


def machine() -> dict[str, str | int]:
    return {
        "cpus": os.cpu_count() or 0,
        "kernel": f"{platform.system()} {platform.release()} {platform.machine()}",
        "python": platform.python_version(),
        "load": f"{os.getloadavg()[0]:.1f}",
        "anyio": version("anyio"),
        "uvloop": version("uvloop"),
        "trio": version("trio"),
    }


def version(package: str) -> str:
    from importlib.metadata import version as of

    return of(package)


def placements() -> tuple[tuple[str, bool], ...]:
    """Where to run: all processes on one core, and wherever the system puts them."""
    free = ("free", False)
    return (("one core", True), free) if sys.platform == "linux" else (free,)


def main(
    doc: str | None, tables: Callable[[bool, str, bool], list[Table]], rounds: int = 9
) -> None:
    """Parse the command line, measure ``tables(quick, place, pinned)``, print and save."""
    assert doc is not None
    parser = argparse.ArgumentParser(
        description=doc, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="one short round: a smoke test")
    parser.add_argument("--rounds", type=int, help=f"how many; {rounds} if not given")
    parser.add_argument("--only", default="", help="only tables with this in their title")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the numbers there")
    options = parser.parse_args()
    rounds = options.rounds or (1 if options.quick else rounds)
    facts = machine()
    print(doc.strip(), "\n")
    print(", ".join(f"{name} {value}" for name, value in facts.items()), f"; {rounds} rounds\n")
    chosen = [
        table
        for place, pinned in placements()
        for table in tables(options.quick, place, pinned)
        if options.only in table.title
    ]
    started = time.monotonic()
    for _ in range(rounds):
        for table in chosen:
            table.measure()
    for table in chosen:
        show(table)
    print(f"{time.monotonic() - started:.0f} s; load at the end {os.getloadavg()[0]:.1f}")
    if options.json:
        options.json.write_text(json.dumps(report(facts, chosen), indent=1) + "\n")


def report(facts: dict[str, str | int], tables: list[Table]) -> dict[str, Any]:
    return {
        "machine": facts,
        "tables": [
            {
                "title": table.title,
                "rows": [asdict(row) for row in table.rows()],
                "seconds": table.seconds,
                "loads": table.loads,
            }
            for table in tables
        ],
    }


def show(table: Table) -> None:
    loads = f"load {min(table.loads):.1f} to {max(table.loads):.1f}"
    width = max(map(len, table.contenders))
    print(f"{table.title} ({loads})")
    rate = "      MB/s" if table.payload else ""
    print(f"{'':{width}}  median us       quartiles{rate}   times {table.baseline}")
    for row in table.rows():
        low, high = row.quartiles_us
        rate = f"{row.megabytes_per_second:10.0f}" if table.payload else ""
        least, most = row.times_baseline_quartiles
        print(
            f"{row.name:{width}} {row.median_us:10.1f} {low:8.1f}-{high:<8.1f}{rate}"
            f"   {row.times_baseline:5.2f}  ({least:.2f}-{most:.2f})"
        )
    print()

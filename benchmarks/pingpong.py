"""One small message there and back, again and again.

Claim: on one core, with 5-byte messages on asyncio, at least 0.9 of multiprocessing.Pipe's round
trips a second.

Bias: a closed loop of one message in flight measures latency and nothing else. That is the worst
case for an event loop, which never has more than one thing to do in a turn; Pipe blocks its whole
thread, ours lets other tasks run. Each number is the median stretch of a run, so that the rare
slow round trip does not show. "Pipe" is multiprocessing's default, a socket pair; the rows with
one-way pipes and with bare system calls show the part that the kernel plays.
"""

from __future__ import annotations

from _conversations import Talk, contenders
from _harness import Table, main, paced

SIZES = {"5 bytes": 5, "1 KiB": 1024, "64 KiB": 65536}
TURNS = 50  # between two looks at the clock


def tables(quick: bool, place: str, pinned: bool) -> list[Table]:
    found = []
    for name, size in SIZES.items():
        talk = Talk(b"x" * size, b"x" * size, TURNS)
        stretches = paced(quick, 40 if size > 10_000 else 80)
        found.append(Table(f"Round trip of {name}, {place}", pinned, contenders(talk, stretches)))
    return found


if __name__ == "__main__":
    main(__doc__, tables)

"""Messages of 1 MiB: to the worker, from the worker, and there and back.

Claim: at least 3 times multiprocessing.Pipe's bytes a second.

Bias: the payload is one bytes object that both sides have in memory from the start, and nobody
looks into what arrives: measured are copying, and how often a process has to be woken for it. To
and from the worker, the sender goes on for 8 messages before it waits for the other side; in the
echo one message is in flight. Bytes are counted once a message. "Pipe" is multiprocessing's
default, a socket pair; the row with one-way pipes shows how much of the difference that is.
"""

from __future__ import annotations

from _conversations import Talk, contenders
from _harness import Table, main, paced

SIZE = 1024 * 1024
BATCH = 8
WAYS = {
    "to the worker": Talk(b"x" * SIZE, b"taken", 1, sent=BATCH),
    "from the worker": Talk(b"send", b"x" * SIZE, 1, answered=BATCH),
    "there and back": Talk(b"x" * SIZE, b"x" * SIZE, BATCH),
}


def tables(quick: bool, place: str, pinned: bool) -> list[Table]:
    return [
        Table(f"1 MiB {way}, {place}", pinned, contenders(talk, paced(quick, 20)), payload=SIZE)
        for way, talk in WAYS.items()
    ]


if __name__ == "__main__":
    main(__doc__, tables, rounds=7)

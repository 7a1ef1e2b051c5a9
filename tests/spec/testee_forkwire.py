"""``testee_forkwire.py LIMIT READS``: the library's blocking front as a testee for run.py."""

from __future__ import annotations

import itertools
import sys

from forkwire import EndOfFile, InputChannel, OutputChannel, sync
from forkwire.errors import NegativeSizeError, SizeLimitError

EDGE, INSIDE, NEGATIVE, TOO_LARGE = 0, 3, 4, 5


def echo(inp: InputChannel, out: OutputChannel, kind: str) -> EndOfFile | None:
    """Echo one item, or answer the end."""
    if kind == "m":
        message = sync.read_message(inp)
        if isinstance(message, EndOfFile):
            return message
        sync.write_message(out, message)
        return None
    number = sync.read_int(inp)
    if isinstance(number, EndOfFile):
        return number
    sync.write_int(out, number)
    sync.write_message(out, b"%d" % number)
    return None


def main(limit: int, reads: str) -> int:
    """Echo until an end; the exit status names it."""
    inp = InputChannel.from_fd(0, max_message_size=limit)
    out = OutputChannel.from_fd(1)
    try:
        for kind in itertools.cycle(reads):
            if end := echo(inp, out, kind):
                return INSIDE if end.truncated else EDGE
    except NegativeSizeError:
        return NEGATIVE
    except SizeLimitError:
        return TOO_LARGE
    return EDGE


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), sys.argv[2]))

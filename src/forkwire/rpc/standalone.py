"""``python -m forkwire serve``: a service in an interpreter of its own, started by any host.

The descriptors of the two pipes are in the environment (protocol-spec/3-calls.md).
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Mapping, Sequence
from typing import Final, NoReturn, get_args

from ..errors import ForkwireError, UsageError
from ..process import child
from ..process.backend import BackendName
from ..process.cancelling import Termination, listen_in_plain_code
from ..process.channels import InputChannel, OutputChannel
from .interrupts.control_pipe import ControlPipe
from .programs import CONTROL, FDS
from .serving import Start, serve
from .telling.output import print_at_once

__all__ = ["main"]

USAGE: Final = 2  # exit status
HELP: Final = """\
usage: forkwire serve SERVICE [--threads N] [--backend asyncio|uvloop|trio]

Serve calls to SERVICE, a module or module:name, over the pipes whose descriptors the environment
variable FORKWIRE_FDS names ("3,4" unless set). Meant to be started by a host:

    open_worker(command=["python", "-m", "forkwire", "serve", "statistics"])
"""


def main(arguments: Sequence[str]) -> NoReturn:
    """Serve, and end this process."""
    termination = Termination()
    status = 1
    try:
        listen_in_plain_code(termination, on_main_thread=True)
        print_at_once()
        start = start_of(arguments)
        input_, output_ = channels(os.environ.get(FDS, "3,4"))
        with contextlib.closing(input_), contextlib.closing(output_):
            serve(input_, output_, start)
        status = 0
    except UsageError as error:
        print(f"forkwire serve: {error}\n\n{HELP}", end="", file=sys.stderr)
        status = USAGE
    except BaseException as error:
        if not (isinstance(error, SystemExit) or termination.explains(error)):
            child.report(error, main)
    finally:
        child.leave(status, termination)


def start_of(arguments: Sequence[str]) -> Start:
    """What the command line says. Raises :exc:`UsageError`."""
    options: dict[str, str] = {"--threads": "1", "--backend": "asyncio"}
    names: list[str] = []
    words = iter(arguments)
    for word in words:
        name, equals, value = word.partition("=")
        if name in options:
            options[name] = value if equals else next(words, "")
        elif word.startswith("-"):
            raise UsageError(f"there is no option {word}")
        else:
            names.append(word)
    if len(names) != 1:
        raise UsageError("name one service")
    threads, backend = options["--threads"], options["--backend"]
    if not threads.isdecimal() or not int(threads):
        raise UsageError(f"--threads is a number, not {threads!r}")
    if backend not in get_args(BackendName):
        raise UsageError(f"--backend is one of {', '.join(get_args(BackendName))}")
    return Start(
        names[0],
        names[0],
        "trio" if backend == "trio" else "uvloop" if backend == "uvloop" else "asyncio",
        int(threads),
        control_of(os.environ),
        ask_log_level=True,
    )


def control_of(environment: Mapping[str, str]) -> ControlPipe | None:
    """The pipe by which a host of ours interrupts functions, if it gave us one."""
    number = environment.get(CONTROL, "")
    return ControlPipe.inherited(int(number)) if number.isdecimal() else None


def channels(numbers: str) -> tuple[InputChannel, OutputChannel]:
    """Raises :exc:`UsageError` where there is no host."""
    try:
        input_fd, output_fd = (int(number) for number in numbers.split(","))
        for fd in (input_fd, output_fd):
            os.set_inheritable(fd, False)
        return InputChannel.from_fd(input_fd), OutputChannel.from_fd(output_fd)
    except (ValueError, OSError, ForkwireError) as error:
        raise UsageError(
            f"no host has started this: {FDS}={numbers!r} names no two pipes ({error})"
        ) from None

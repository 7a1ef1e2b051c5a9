"""``python -m forkwire serve``: a service in an interpreter of its own, started by any host.

The descriptors of the two pipes are in the environment, or they are stdin and stdout
(protocol-spec/3-calls.md). What a host of ours sees to with a fork, a guard and a control pipe is
done from here where there is none: on another machine, or beside a host in another language.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, NoReturn, get_args

from ..errors import ForkwireError, UsageError
from ..process import child, descriptors, guard
from ..process.backend import BackendName
from ..process.cancelling import Termination, listen_in_plain_code
from ..process.channels import InputChannel, OutputChannel
from ..process.worker import DEFAULT_GRACE, LONGEST_GRACE
from ..wire.framing import MAX_PAYLOAD_SIZE
from .initializing import unpack
from .interrupts.control_pipe import ControlPipe
from .links.link import Limits
from .programs import CONTROL, FDS, GIVEN
from .serving import Start, serve
from .telling.output import print_at_once

__all__ = ["main"]

USAGE: Final = 2  # exit status
HELP: Final = """\
usage: forkwire serve SERVICE [--stdio] [--threads N] [--grace SECONDS]
                              [--backend asyncio|uvloop|trio]

Serve calls to SERVICE, a module or module:name, over the pipes whose descriptors the environment
variable FORKWIRE_FDS names ("3,4" unless set), or with --stdio over stdin and stdout; what is
printed goes to stderr then. It ends within the grace (2 seconds) after its host has gone, whatever
it does. Meant to be started by a host:

    open_worker(command=["python", "-m", "forkwire", "serve", "statistics"])
    open_worker(command=["ssh", "host", "python -m forkwire serve statistics --stdio"], stdio=True)
"""


def main(arguments: Sequence[str]) -> NoReturn:
    """Serve, and end this process."""
    termination = Termination()
    status = 1
    try:
        listen_in_plain_code(termination, on_main_thread=True)
        print_at_once()
        options = options_of(arguments)
        input_, output_ = take_stdio() if options.stdio else channels(os.environ.get(FDS, "3,4"))
        with contextlib.closing(input_), contextlib.closing(output_):
            control = control_of(os.environ)
            if control is None:
                control = be_on_our_own(input_.fileno(), options.grace)
            start = start_of(options, control, given_in(os.environ))
            for name in (FDS, CONTROL, GIVEN):  # not for what is started from here
                os.environ.pop(name, None)
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


@dataclass(frozen=True, slots=True)
class Options:
    """What the command line says."""

    service: str
    stdio: bool
    threads: int
    backend: BackendName
    grace: float


def options_of(arguments: Sequence[str]) -> Options:
    """Raises :exc:`UsageError`."""
    options = {"--threads": "1", "--backend": "asyncio", "--grace": f"{DEFAULT_GRACE:g}"}
    names: list[str] = []
    stdio = False
    words = iter(arguments)
    for word in words:
        name, equals, value = word.partition("=")
        if name in options:
            options[name] = value if equals else next(words, "")
        elif word == "--stdio":
            stdio = True
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
    loop: BackendName = (
        "trio" if backend == "trio" else "uvloop" if backend == "uvloop" else "asyncio"
    )
    return Options(names[0], stdio, int(threads), loop, seconds_of(options["--grace"]))


def seconds_of(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds <= LONGEST_GRACE:
        raise UsageError(f"--grace is a number of seconds, 0 or more, not {text!r}")
    return seconds


def start_of(options: Options, control: ControlPipe, given: Mapping[str, Any]) -> Start:
    """``given``: what a host of ours has said, and wants as it is."""
    initializer, initargs = unpack(given.get("packed"))
    sys.argv[:] = given.get("argv", sys.argv)
    return Start(
        options.service,
        given.get("label", options.service),
        given.get("backend", options.backend),
        options.threads,
        control,
        ask_log_level=True,
        limits=Limits(given.get("limit", MAX_PAYLOAD_SIZE)),
        initializer=initializer,
        initargs=initargs,
    )


def given_in(environment: Mapping[str, str]) -> Mapping[str, Any]:
    number = environment.get(GIVEN, "")
    if not number.isdecimal():
        return {}
    with open(int(number), "rb") as file:
        given: Mapping[str, Any] = json.load(file)
    return given


def be_on_our_own(link: int, grace: float) -> ControlPipe:
    """No host of ours is beside: see to our end, and to interrupting functions, from here."""
    with contextlib.suppress(PermissionError):  # it leads a session, and so a group
        os.setpgid(0, 0)
    guard.guard_this(link, grace)
    return ControlPipe.of_this_process()


def control_of(environment: Mapping[str, str]) -> ControlPipe | None:
    """The pipe by which a host of ours interrupts functions, if it gave us one."""
    number = environment.get(CONTROL, "")
    return ControlPipe.inherited(int(number)) if number.isdecimal() else None


def take_stdio() -> tuple[InputChannel, OutputChannel]:
    """Speak over what is stdin and stdout now, and have neither be that any more.

    On descriptors of our own nothing that is printed reaches them, not by C code either: 0 is empty
    from here on, and 1 is stderr. Raises :exc:`UsageError` where no host is there.
    """
    if os.isatty(0) or os.isatty(1):
        raise UsageError("stdin and stdout are a terminal, and no host that has started this")
    try:
        input_fd, output_fd = descriptors.lifted(0, 1)
    except OSError as error:
        raise UsageError(f"there is no stdin and stdout to speak over ({error})") from None
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, 0)
    try:
        os.dup2(2, 1)
    except OSError:  # there is no stderr
        os.dup2(null, 1)
        os.dup2(null, 2)
    if null > 2:
        os.close(null)
    return channels(f"{input_fd},{output_fd}")


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

"""Workers that are programs of their own: executed, with the two pipes on descriptors 3 and 4.

Or on 0 and 1, where nothing else gets through: ssh and its like connect those only.
"""

from __future__ import annotations

import fcntl
import os
import signal
import struct
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from ..errors import PeerError, UsageError
from ..process.channels import InputChannel, OutputChannel
from .links.link import Link
from .serving import Start

__all__ = ["FDS", "Program", "execute"]

# Where a program finds the numbers of its descriptors: what it reads from, what it writes to
# (protocol-spec/3-calls.md).
FDS: Final = "FORKWIRE_FDS"
CONTROL: Final = "FORKWIRE_CONTROL_FD"
GIVEN: Final = "FORKWIRE_GIVEN_FD"  # what a host of ours has to say beside the command line

# A greeting names what is offered, and has no reason to be larger; text read as a size has.
LARGEST_GREETING: Final = 16 * 1024 * 1024  # bytes

# In a fresh interpreter: nothing is imported before it looks where this one does.
PROGRAM: Final = (
    "import sys; end = sys.argv.index('--'); sys.path[:] = sys.argv[end + 1 :]; "
    "from forkwire.rpc.standalone import main; main(sys.argv[1:end])"
)

BEYOND: Final = 10  # above what is dealt out
NONBLOCKING: Final = 5  # the control pipe


@dataclass(frozen=True, slots=True)
class Program:
    """What to execute."""

    arguments: tuple[str, ...]
    controlled: bool = False  # it takes the control pipe too
    stdio: bool = False  # it speaks over its stdin and stdout

    @classmethod
    def of(cls, command: object, *, stdio: bool = False) -> Program:
        """Raises :exc:`UsageError` for what is no command, or not there."""
        if isinstance(command, (str, bytes)) or not isinstance(command, Sequence) or not command:
            raise UsageError(
                'command is a list of the program and its arguments, ["node", "plugin.mjs"], not '
                f"{command!r}"
            )
        import shutil  # which takes others along, and is for hosts

        arguments = tuple(os.fspath(part) for part in command)
        if shutil.which(arguments[0]) is None:
            raise UsageError(f"there is no program {arguments[0]!r} that could be run")
        return cls(arguments, stdio=stdio)

    def expect(self, link: Link) -> None:
        """Before the greeting: what is printed first on stdin and stdout is a size of gigabytes."""
        if self.stdio:
            link.source.decoder.restrict(LARGEST_GREETING)

    def explain(self, error: BaseException) -> None:
        """Add to ``error``, with which it failed to greet, what the reason may be."""
        if self.stdio and isinstance(error, PeerError):
            size = getattr(error, "size", None)
            begins = f" (it begins with {struct.pack('=i', size)!r})" if size else ""
            error.add_note(
                f"what {self.arguments[0]} prints on its stdout breaks the session{begins}. With "
                "ssh that is also what a shell prints at login: `ssh host true` has to print "
                "nothing"
            )

    @classmethod
    def serving(cls, name: str, threads: int) -> Program:
        """A fresh interpreter, started as this one was, that serves what has that name."""
        from ..process.template import interpreter_flags, sys_path  # which is for hosts too

        path, _ = sys_path()
        python = (sys.executable, *interpreter_flags(), "-c", PROGRAM)
        return cls((*python, name, "--threads", str(threads), "--", *path), controlled=True)


def execute(input_: InputChannel, output: OutputChannel, start: Start) -> None:
    """Become the program. In the forked child."""
    program = start.target
    assert isinstance(program, Program)
    environment = dict(os.environ)
    for name in (FDS, CONTROL, GIVEN):  # a host may itself be a worker
        environment.pop(name, None)
    ends = [input_.fileno(), output.fileno()]
    if not program.stdio:
        environment[FDS] = "3,4"
    if program.controlled and start.control is not None:
        ends += [start.control.child_fd, file_of(start.given)]
        environment |= {CONTROL: "5", GIVEN: "6"}
    for number in (signal.SIGTERM, signal.SIGPIPE):
        signal.signal(number, signal.SIG_DFL)
    keep(ends, 0 if program.stdio else 3)
    os.execvpe(program.arguments[0], program.arguments, environment)


def file_of(data: bytes) -> int:
    """A file without a name, to be read from its beginning."""
    if hasattr(os, "memfd_create"):
        fd = os.memfd_create("forkwire", os.MFD_CLOEXEC)
    else:
        import tempfile

        with tempfile.TemporaryFile() as file:
            fd = os.dup(file.fileno())
    with open(fd, "wb", closefd=False) as file:
        file.write(data)
    os.lseek(fd, 0, os.SEEK_SET)
    return fd


def keep(ends: Sequence[int], first: int) -> None:
    """Have ``ends``, blocking as programs expect them, on descriptors ``first`` and following."""
    copies = [fcntl.fcntl(end, fcntl.F_DUPFD_CLOEXEC, BEYOND) for end in ends]
    for number, copy in enumerate(copies, first):
        os.set_blocking(copy, number != NONBLOCKING)
        os.dup2(copy, number, inheritable=True)

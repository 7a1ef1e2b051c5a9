"""The commands and their options: what is typed. What they do is in modules of their own."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
from collections.abc import Sequence
from typing import Annotated, Final

from cyclopts import App, CycloptsError, Parameter, Token
from cyclopts.types import ExistingDirectory
from cyclopts.validators import Number

from ..process.backend import BackendName
from ..process.worker import DEFAULT_GRACE
from .running import USAGE, complain, guarded
from .terminal import open_console

__all__ = ["app", "run"]

FEWEST: Final = 2  # the demo kills one
MOST: Final = 64

app = App(
    name="forkwire",
    help="Worker processes you can await.",
    version=lambda: importlib.metadata.version("forkwire"),
    help_format="plaintext",
)


def run() -> int:
    """Run the command that ``sys.argv`` names; answer its exit status."""
    return guarded(parse_and_call)


def parse_and_call() -> int:
    try:
        command, bound, _ = app.parse_args(
            console=open_console(), exit_on_error=False, print_error=False
        )
    except CycloptsError as error:
        return complain(f"{error} (see forkwire --help)", USAGE)
    return command(*bound.args, **bound.kwargs) or 0


def whole(kind: object, tokens: Sequence[Token]) -> int:
    """A whole number; left alone, cyclopts rounds others."""
    text = tokens[0].value
    try:
        return int(text)
    except ValueError:
        raise ValueError(f"{text} is no whole number") from None


@app.command
def demo(
    *,
    workers: Annotated[
        int | None, Parameter(converter=whole, validator=Number(gte=FEWEST, lte=MOST))
    ] = None,
    backend: BackendName = "asyncio",
    folder: ExistingDirectory | None = None,
) -> int:
    """Workers digest the standard library, count words in texts, are cancelled and killed.

    Parameters
    ----------
    workers
        How many, 2 to 64; unless given, one for each processor, 2 to 4.
    backend
        The event loop that this side runs on.
    folder
        Take the files in this folder instead.
    """
    if importlib.util.find_spec(backend) is None:
        return complain(missing(backend), USAGE)
    from .demo_show import show

    return show(workers or min(max(os.cpu_count() or 1, FEWEST), 4), backend, folder)


@app.command
def describe(service: str, /) -> int:
    """Show what a service offers: its functions, their signatures and docs.

    Parameters
    ----------
    service
        A module, or a class, object or function in one as module:name.
    """
    from .calling import describe

    return describe(service, open_console())


@app.command
def call(
    service: str,
    method: str,
    /,
    *arguments: Annotated[str, Parameter(allow_leading_hyphen=True)],
    backend: BackendName = "asyncio",
    timeout: Annotated[float | None, Parameter(validator=Number(gt=0))] = None,
    traceback: Annotated[bool, Parameter(negative="")] = False,
) -> int:
    """Start a worker of a service, call one of its functions, print what it answers as JSON.

    forkwire call statistics quantiles '[1, 2, 4]' n=2

    Each argument is one JSON value, NAME=VALUE a keyword argument.
    What a function yields is printed item by item, each on a line.

    Parameters
    ----------
    service
        A module, or a class, object or function in one as module:name.
    method
        The name of the function.
    arguments
        JSON values; put options before them.
    backend
        The event loop, here and of the worker's async functions.
    timeout
        Seconds; then the function is stopped.
    traceback
        Where it raises, show where in the worker that was.
    """
    if importlib.util.find_spec(backend) is None:
        return complain(missing(backend), USAGE)
    from .calling import call

    return call(
        service, method, arguments, backend=backend, timeout=timeout, show_traceback=traceback
    )


@app.command(name="map")
def map_(
    function: str,
    /,
    *files: str,
    workers: Annotated[
        int | None, Parameter(converter=whole, validator=Number(gte=1, lte=MOST))
    ] = None,
    backend: BackendName = "asyncio",
    timeout: Annotated[float | None, Parameter(validator=Number(gt=0))] = None,
    content: Annotated[bool, Parameter(negative="")] = False,
    stdin: Annotated[bool, Parameter(negative="")] = False,
    unordered: Annotated[bool, Parameter(negative="")] = False,
    traceback: Annotated[bool, Parameter(negative="")] = False,
) -> int:
    """Call a function once for each file, over a pool of workers, with a progress bar.

    forkwire map os.path:getsize *.py

    Each answer is a line of JSON, {"file": ..., "result": ...}, in the order of the files.
    A file that fails is told on stderr, and the others go on; the exit status is 1 then.

    Parameters
    ----------
    function
        MODULE:FUNCTION; it is called with a file's name.
    files
        Their names.
    workers
        How many; one for each processor unless given.
    backend
        The event loop, here and of the workers' async functions.
    timeout
        Seconds for one file; then the function is stopped.
    content
        Call the function with what is in the file, as bytes, instead of its name.
    stdin
        Take names from standard input too, one a line.
    unordered
        Print an answer as soon as it is there.
    traceback
        Where the function raises, show where in the worker that was.
    """
    if importlib.util.find_spec(backend) is None:
        return complain(missing(backend), USAGE)
    if not (files or stdin):
        return complain("name files to call it for, or --stdin", USAGE)
    from .mapping import Job, map_files

    job = Job(function, files, stdin, workers, timeout, content, not unordered, traceback)
    return map_files(job, backend)


@app.command
def serve(
    service: str,
    /,
    *,
    stdio: Annotated[bool, Parameter(negative="")] = False,
    threads: Annotated[int, Parameter(converter=whole, validator=Number(gte=1))] = 1,
    grace: Annotated[float, Parameter(validator=Number(gte=0))] = DEFAULT_GRACE,
    backend: BackendName = "asyncio",
) -> int:
    """Be a worker of a service: started by a host, over the pipes that FORKWIRE_FDS names.

    Parameters
    ----------
    service
        A module, or a class, object or function in one as module:name.
    stdio
        Over stdin and stdout instead, as ssh connects them; prints go to stderr.
    threads
        How many plain functions may run at a time.
    grace
        Seconds that it has to end in once its host is gone.
    backend
        The event loop of async functions.
    """
    raise AssertionError("forkwire.__main__ does it without this module")


def missing(backend: str) -> str:
    return f'{backend} is missing: pip install "forkwire[{backend}]"'

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
    """Workers digest the standard library, then one of them is killed.

    Parameters
    ----------
    workers
        How many, 2 to 64; unless given, one for each processor, 2 to 4.
    backend
        The event loop that this side runs on.
    folder
        Digest the files in this folder instead.
    """
    if importlib.util.find_spec(backend) is None:
        return complain(f'{backend} is missing: pip install "forkwire[{backend}]"', USAGE)
    from .demo_show import show

    return show(workers or min(max(os.cpu_count() or 1, FEWEST), 4), backend, folder)

"""Output for people: colours and a bar on a terminal, plain lines anywhere else."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    TaskProgressColumn,
)

__all__ = ["PlainConsole", "counted", "megabytes", "open_console", "printable", "progress"]

REDRAW: Final = 0.1  # seconds
QUARTERS: Final = 4


class PlainConsole(Console):
    """A console that leaves a closed output to the caller, instead of leaving the program."""

    def on_broken_pipe(self) -> None:
        raise BrokenPipeError


def open_console() -> Console:
    """Standard output; control codes only to a terminal, colours not where NO_COLOR says so."""
    is_terminal = sys.stdout is not None and sys.stdout.isatty()
    return PlainConsole(force_terminal=is_terminal, highlight=False, markup=False, emoji=False)


@contextmanager
def progress(console: Console, total: int) -> Iterator[Callable[[int], None]]:
    """Show how much of ``total`` bytes is done; call what this answers with each further part."""
    if console.is_terminal and not console.is_dumb_terminal:
        columns = (BarColumn(None), TaskProgressColumn(), DownloadColumn())
        # No thread of its own draws the bar: forking and threads do not go together.
        with Progress(*columns, console=console, expand=True, auto_refresh=False) as bar:
            task = bar.add_task("", total=total)
            yield redrawing(bar, lambda count: bar.update(task, advance=count))
    else:
        yield quarterly(console, total)


@contextmanager
def counted(console: Console, total: int | None) -> Iterator[Callable[[int], None]]:
    """On a terminal, show how many of ``total`` are done, None: of as many as there are."""
    if not console.is_terminal or console.is_dumb_terminal:
        yield lambda count: None
        return
    columns = (BarColumn(None), TaskProgressColumn(), MofNCompleteColumn())
    with Progress(*columns, console=console, expand=True, auto_refresh=False) as bar:
        task = bar.add_task("", total=total)
        yield redrawing(bar, lambda count: bar.update(task, advance=count))


def redrawing(bar: Progress, update: Callable[[int], None]) -> Callable[[int], None]:
    drawn = 0.0

    def advance(count: int) -> None:
        nonlocal drawn
        update(count)
        now = time.monotonic()
        if now - drawn > REDRAW:
            drawn = now
            bar.refresh()

    return advance


def quarterly(console: Console, total: int) -> Callable[[int], None]:
    done = said = 0

    def advance(count: int) -> None:
        nonlocal done, said
        done += count
        quarter = QUARTERS * done // max(total, 1)
        if quarter > said:
            said = quarter
            console.print(f"{100 * quarter // QUARTERS:3} % of {megabytes(total)}")

    return advance


def megabytes(size: float) -> str:
    return f"{size / 1e6:,.1f} MB"


def printable(text: object) -> str:
    """``text``, with what a terminal would not show as it is written as an escape."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in str(text))

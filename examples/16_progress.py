"""A handler tells how far it is; here that moves a bar. Needs rich, as in forkwire[cli]."""

import hashlib

import anyio
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

import forkwire
from forkwire.sync import current_call


def digest(rounds: int) -> str:
    """A plain function, so `current_call` of `forkwire.sync`, which blocks."""
    value = b""
    for done in range(1, rounds + 1):
        value = hashlib.sha256(value * 1000).digest()
        current_call().progress(done, rounds, f"round {done}")
    return value.hex()[:8]


async def main() -> None:
    columns = TextColumn("{task.description}"), BarColumn(20), MofNCompleteColumn()
    # No thread of its own draws the bar: forking and threads do not go together.
    with Progress(*columns, auto_refresh=False) as bar:
        task = bar.add_task("", total=None)

        def show(done: float, total: float | None, text: str) -> None:
            bar.update(task, completed=done, total=total, description=text, refresh=True)

        async with forkwire.open_worker(digest) as worker:
            result = await worker.options(on_progress=show).call("digest", 40)
    print(result)


anyio.run(main)

# Prints:
# round 40 ━━━━━━━━━━━━━━━━━━━━ 40/40
# fafb6870

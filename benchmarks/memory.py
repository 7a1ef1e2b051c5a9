"""What fifty workers need of memory that they do not share.

Claim: with a host that has something in its memory, workers of a template need less than those of
multiprocessing's fork: it is not in the template, and what is there is never collected.

Bias: what is measured is Private and Pss of /proc/PID/smaps_rollup (proc(5)), in MiB a worker, in
the order: answered one call; then made some garbage, so that the collector has run. Ours has more
to it than a loop over a Pipe, and so a worker that has done nothing needs more. "with data": the
host holds a table of a million entries, which forked workers share as long as nobody touches it,
and the collector does. Linux only.
"""

from __future__ import annotations

import argparse
import importlib
import multiprocessing
import statistics
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Final

import _service

from forkwire import sync
from forkwire.rpc.settings import StartMethod

ROUNDS: Final = 20_000  # of work
Ask = Callable[..., Any]


def of(pid: int) -> tuple[float, float]:
    """Private and proportional, MiB."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]
    sizes = {
        name: int(rest.split()[0]) for name, _, rest in (line.partition(":") for line in lines)
    }
    private = sizes["Private_Clean"] + sizes["Private_Dirty"]
    return private / 1024, sizes["Pss"] / 1024


@contextmanager
def process(method: str, modules: list[str]) -> Iterator[tuple[int, Ask]]:
    context: Any = multiprocessing.get_context(method)
    ours, theirs = context.Pipe()
    child = context.Process(target=_service.answer, args=(theirs,))
    child.start()
    theirs.close()

    def ask(name: str, *args: int) -> Any:
        ours.send((name, args))
        return ours.recv()

    yield child.pid, ask
    ours.send(None)
    child.join()
    ours.close()


@contextmanager
def worker(method: StartMethod, modules: list[str]) -> Iterator[tuple[int, Ask]]:
    with sync.open_worker(_service, start=method, preload=modules) as opened:
        yield opened.pid, opened.call


def measure(start: Any, count: int) -> list[float]:
    """Private and Pss after one call, and after some work."""
    found: list[float] = []
    with ExitStack() as stack:
        workers = [stack.enter_context(start()) for _ in range(count)]
        for method, number in (("add", (1, 2)), ("work", (ROUNDS,))):
            for _, ask in workers:
                ask(method, *number)
            sizes = [of(pid) for pid, _ in workers]
            found += [statistics.mean(size[kind] for size in sizes) for kind in (0, 1)]
    return found


CONTENDERS: Final[dict[str, Callable[[list[str]], Any]]] = {
    "multiprocessing, fork": lambda modules: process("fork", modules),
    "forkwire, template": lambda modules: worker("template", modules),
    "forkwire, fork": lambda modules: worker("fork", modules),
}


def main() -> None:
    assert __doc__ is not None
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a few workers: a smoke test")
    quick = parser.parse_args().quick
    if sys.platform != "linux":
        sys.exit("this reads /proc")
    count = 3 if quick else 50
    print(__doc__.strip(), "\n")
    table: list[Any] = []
    for modules, entries in (([], 0), (["numpy"], 0), ([], 10_000 if quick else 1_000_000)):
        for name in modules:
            importlib.import_module(name)
        table[:] = [[number] for number in range(entries)]
        print(f"{count} workers, {modules[0] if modules else 'with data' if entries else 'small'}")
        for name, start in CONTENDERS.items():
            sizes = measure(lambda start=start, modules=modules: start(modules), count)
            print(f"  {name:24}" + "".join(f"{size:8.2f}" for size in sizes))


if __name__ == "__main__":
    main()

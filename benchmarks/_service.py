"""A service, and what `multiprocessing` runs in its place. Imports next to nothing."""

from __future__ import annotations

from typing import Any


def add(a: int, b: int) -> int:
    return a + b


def work(rounds: int) -> int:
    """Make garbage, as programs do: enough for several collections of all generations."""
    kept: list[Any] = []
    for number in range(rounds):
        kept.append([number, {"number": number}])
        if len(kept) > 1000:
            kept.clear()
    return rounds


def answer(connection: Any) -> None:
    """What a worker does for `multiprocessing`: calls until there are none."""
    while request := connection.recv():
        name, args = request
        connection.send(add(*args) if name == "add" else work(*args))

"""A worker that a template forks: what is imported for all of them, and what each one runs.

Runs over there. What is sent to it is plain data, made by `starting`.
"""

from __future__ import annotations

import importlib
import logging
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from ..process import descriptors
from ..process.backend import BackendName
from ..process.channels import InputChannel, OutputChannel
from ..wire.framing import frame
from ..wire.messages import Call, Goodbye, Hello, array_of
from . import importing
from .data import codec
from .handlers.service import Service
from .initializing import unpack
from .interrupts import interrupting
from .interrupts.control_pipe import ControlPipe
from .links.link import Limits
from .serving import Start, serve
from .telling import logs
from .telling.log_records import Data

__all__ = ["LOOP_MODULES", "play", "prepare", "work"]

KEPT: Final = 1000  # records that imports log; more would drown what matters

# What anyio imports when it runs one.
LOOP_MODULES: Final[dict[BackendName, tuple[str, ...]]] = {
    "asyncio": ("anyio._backends._asyncio",),
    "uvloop": ("anyio._backends._asyncio", "uvloop"),
    "trio": ("trio", "anyio._backends._trio"),
}


@dataclass(slots=True)
class Prepared:
    """What all workers of a template have in common. ``said``: logged by the imports."""

    service: Service | None
    said: list[Data]


def prepare(argument: Any, log_level: int, tell: Callable[[str], None]) -> Prepared:
    """In the template: import what the host asked for, the service, and the loop that it needs.

    A service that cannot be imported is left out: each worker finds out by itself, and says so.
    """
    name, preload, backend = argument
    said: list[Data] = []
    bridge = logs.install(keep_in(said), log_level, lambda: None)
    try:
        for module in preload:
            tell(module)
            quietly(importing.for_workers, module)
        kept = len(said)
        tell(name)
        service: Service | None = quietly(Service.of, name)
        if service is None:
            del said[kept:]
    finally:
        bridge.uninstall()
    if service is not None:
        for module in LOOP_MODULES[backend] if service.has_async else ():
            quietly(importlib.import_module, module)
        quietly(service.warm_up)
    return Prepared(service, said)


def keep_in(records: list[Data]) -> Callable[[Data], bool]:
    def keep(record: Data) -> bool:
        if len(records) < KEPT:
            records.append(record)
        return len(records) < KEPT

    return keep


def quietly(function: Callable[..., Any], *arguments: str) -> Any:
    try:
        return function(*arguments)
    except BaseException:
        return None


def work(input_: InputChannel, output: OutputChannel, given: Any) -> None:
    """In the worker. ``given``: what `prepare` answered (None: nothing), what `starting` sent,
    whether this is the template's first worker, and the control pipe.
    """
    prepared, request, first, control = given
    reseed()
    for name, level in request["levels"].items():
        logging.getLogger(name).setLevel(level)
    initializer, initargs = unpack(request["packed"])
    start = Start(
        (prepared and prepared.service) or request["service"],
        request["label"],
        request["backend"],
        request["threads"],
        ControlPipe.inherited(control),
        request["log_level"],
        limits=Limits(*request["limits"]),
        initializer=initializer,
        initargs=initargs,
        said=prepared.said if prepared and first else (),
    )
    serve(input_, output, start)


def play() -> tuple[Callable[[InputChannel, OutputChannel, Any], None], bytes]:
    """What a spare worker rehearses with: `rehearse`, and all that its host will ever say."""
    said = Hello({"protocol": [1]}), Call(1, "rehearsed", [7]), Goodbye(None)
    frames = [frame(codec.encode(array_of(each))[0]) for each in said]
    return rehearse, b"".join(bytes(part) for parts in frames for part in parts)


def rehearse(input_: InputChannel, output: OutputChannel, nothing: Any) -> None:
    """Be greeted, answer a call, and leave."""
    reader, writer = descriptors.make_pipe()
    try:
        control = ControlPipe.inherited(reader)
        service = {"rehearsed": rehearsed}
        start = Start(service, "rehearsal", "asyncio", 1, control, logging.WARNING)
        serve(input_, output, start)
    finally:
        interrupter = interrupting.current()
        if interrupter is not None:
            interrupter.close()
        for handler in logging.getLogger().handlers:
            if isinstance(handler, logs.Bridge):
                handler.uninstall()
        os.close(writer)


def rehearsed(number: int) -> int:
    return number


def reseed() -> None:
    """Python's own generator does it after a fork, numpy's would be the same in every worker."""
    random: Any = sys.modules.get("numpy.random")
    if random is not None:
        random.seed()

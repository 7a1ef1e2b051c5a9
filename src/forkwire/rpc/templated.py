"""A worker that a template forks: what is imported for all of them, and what each one runs.

Runs over there. What is sent to it is plain data, made by `starting`.
"""

from __future__ import annotations

import base64
import importlib
import sys
from collections.abc import Callable
from typing import Any, Final

from ..process.backend import BackendName
from ..process.channels import InputChannel, OutputChannel
from .data import codec
from .handlers.service import Service
from .interrupts.control_pipe import ControlPipe
from .links.link import Limits
from .serving import Start, serve

__all__ = ["LOOP_MODULES", "prepare", "work"]

# What anyio imports when it runs one.
LOOP_MODULES: Final[dict[BackendName, tuple[str, ...]]] = {
    "asyncio": ("anyio._backends._asyncio",),
    "uvloop": ("anyio._backends._asyncio", "uvloop"),
    "trio": ("trio", "anyio._backends._trio"),
}


def prepare(argument: Any, tell: Callable[[str], None]) -> Service | None:
    """In the template: import what the host asked for, the service, and the loop that it needs.

    Answers the service; None where it cannot be imported, which each worker then finds out.
    """
    name, preload, backend = argument
    for module in preload:
        tell(module)
        quietly(importlib.import_module, module)
    tell(name)
    service: Service | None = quietly(Service.of, name)
    if service is not None:
        for module in LOOP_MODULES[backend] if service.has_async else ():
            quietly(importlib.import_module, module)
        quietly(service.warm_up)
    return service


def quietly(function: Callable[..., Any], *arguments: str) -> Any:
    try:
        return function(*arguments)
    except BaseException:
        return None


def work(input_: InputChannel, output: OutputChannel, given: Any) -> None:
    """In the worker."""
    service, request, control = given
    reseed()
    body, attachments = request["initargs"]
    initargs = codec.decode(decoded(body), [decoded(each) for each in attachments])
    start = Start(
        service or request["service"],
        request["label"],
        request["backend"],
        request["threads"],
        ControlPipe.inherited(control),
        request["log_level"],
        limits=Limits(request["limit"]),
        initializer=request["initializer"],
        initargs=initargs,
    )
    serve(input_, output, start)


def decoded(text: str) -> bytes:
    return base64.b64decode(text)


def reseed() -> None:
    """Python's own generator does it after a fork, numpy's would be the same in every worker."""
    random: Any = sys.modules.get("numpy.random")
    if random is not None:
        random.seed()

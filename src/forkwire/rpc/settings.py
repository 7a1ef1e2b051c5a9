"""How to start a worker of a service: checked, and the same with a loop and without one."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import NoneType
from typing import Any, Final, Literal, TypedDict, get_args

from ..errors import UsageError
from ..process.backend import BackendName
from ..process.worker import DEFAULT_GRACE, check_options
from ..wire.framing import MAX_PAYLOAD_SIZE
from .handlers.service import Service
from .importing import check_not_importing
from .initializing import Initializer, Packed, pack
from .links.link import Limits
from .programs import Program
from .references import no_template, reference_of

__all__ = ["START_TIMEOUT", "Settings", "StartMethod", "WorkerOptions", "settings_of"]

# A service that takes longer to import is hung, or had better say so with start_timeout=.
START_TIMEOUT: Final = 60.0

LEAST_MESSAGE: Final = 4096  # bytes

StartMethod = Literal["template", "fork", "exec"]


class WorkerOptions(TypedDict, total=False):
    """What `open_worker` takes beside the service, for what starts several in the same way."""

    command: list[str] | None
    stdio: bool
    host: object
    start: StartMethod | None
    threads: int
    preload: Sequence[str]
    initializer: str | Callable[..., object] | None
    initargs: Sequence[object]
    name: str | None
    grace: float
    start_timeout: float
    backend: BackendName | None
    max_message_size: int
    close_fds: bool
    logging: bool


@dataclass(frozen=True, slots=True)
class Settings:
    """How to start a worker; `open_worker` says what each means.

    ``service``: what is served, as far as its code is here. ``host``: what is offered to it.
    """

    start: StartMethod
    target: object
    label: str
    service: Service | None
    preload: tuple[str, ...]
    host: Service | None
    threads: int
    initializer: Initializer | None
    initargs: tuple[object, ...]
    packed: Packed | None  # both, where they are not inherited
    grace: float
    start_timeout: float
    backend: BackendName | None
    close_fds: bool
    logging: bool
    limits: Limits


def settings_of(
    service: object = None,
    *,
    command: list[str] | None = None,
    stdio: bool = False,
    host: object = None,
    start: StartMethod | None = None,
    threads: int = 1,
    preload: Sequence[str] = (),
    initializer: str | Callable[..., object] | None = None,
    initargs: Sequence[object] = (),
    name: str | None = None,
    grace: float = DEFAULT_GRACE,
    start_timeout: float = START_TIMEOUT,
    backend: BackendName | None = None,
    max_message_size: int = MAX_PAYLOAD_SIZE,
    close_fds: bool = False,
    logging: bool = True,
) -> Settings:
    """Raises :exc:`UsageError` for what can never work."""
    if (service is None) == (command is None):
        raise UsageError(
            'open_worker() takes a service, open_worker("calc"), or a program to run, '
            'open_worker(command=["node", "plugin.mjs"])'
        )
    if stdio and command is None:
        raise UsageError(
            "stdio=True is for programs, open_worker(command=[...], stdio=True): a worker of a "
            "service has pipes of its own, and its stdout is free to be printed to"
        )
    check_options(grace, backend, max_message_size)
    check_others({"start": start, "threads": threads, "start_timeout": start_timeout, "name": name})
    if max_message_size < LEAST_MESSAGE:
        raise UsageError(
            f"max_message_size is {LEAST_MESSAGE} bytes at least, not {max_message_size}: a "
            "greeting has to fit"
        )
    local = None if service is None or isinstance(service, str) else Service.of(service)
    if command is not None and start == "template":
        raise UsageError("a program is executed: start= is how to start a service")
    if initializer is not None and command is not None:
        raise UsageError("initializer= is for services: a program has its own way to begin")
    given = tuple(initargs)
    method = start or default_method(service, local, initializer, given)
    packed = None if method == "fork" else pack(initializer, given)
    if command is not None:
        target: object = Program.of(command, stdio=stdio)
    elif method == "exec":
        target = Program.serving(named(service, local), threads)
    elif method == "template":
        check_template()
        for each in preload:
            check_not_importing(each)
        target = named(service, local)
    else:
        target = local or service
    return Settings(
        start=method,
        target=target,
        label=name or name_of(service, local, command),
        service=local,
        preload=tuple(preload),
        host=None if host is None else Service.of(host),
        threads=threads,
        initializer=initializer,
        initargs=given,
        packed=packed,
        grace=grace,
        start_timeout=start_timeout,
        backend=backend,
        close_fds=close_fds,
        logging=logging,
        limits=Limits(max_message_size),
    )


def default_method(
    service: object, local: Service | None, initializer: Initializer | None, initargs: Any
) -> StartMethod:
    """What can only be inherited implies a fork."""
    if service is None or no_template() or reference_of(service, local) is None:
        return "fork"
    try:
        pack(initializer, initargs)
    except UsageError:
        return "fork"
    return "template"


def check_template() -> None:
    """Raises :exc:`UsageError` where there can be none."""
    reason = no_template()
    if reason:
        raise UsageError(f'start="template" is not to be had: {reason}. Use start="fork"')


def named(service: object, local: Service | None) -> str:
    """What a fresh interpreter imports. Raises :exc:`UsageError` for what it could not."""
    found = reference_of(service, local)
    if found is None:
        raise UsageError(
            f"{local.name if local else service!r} can only be inherited: a fresh interpreter "
            'cannot import it. Use start="fork", or give a module'
        )
    check_not_importing(found.partition(":")[0])
    return found


def check_others(given: Mapping[str, Any]) -> None:
    start, threads, timeout = given["start"], given["threads"], given["start_timeout"]
    if start not in (None, *get_args(StartMethod)):
        raise UsageError(f'start is "template", "fork" or "exec", not {start!r}')
    if not isinstance(threads, int) or threads < 1:
        raise UsageError(f"threads is how many functions may run at a time, not {threads!r}")
    if not isinstance(timeout, (int, float)) or not timeout > 0:
        raise UsageError(f"start_timeout is a number of seconds above 0, not {timeout!r}")
    if not isinstance(given["name"], (str, NoneType)):
        raise UsageError(f"name is a text that stands in logs and errors, not {given['name']!r}")


def name_of(service: object, local: Service | None, command: list[str] | None) -> str:
    if command is not None:
        return os.path.basename(command[0])
    return local.name if local is not None else str(service)

"""Starting a worker by any method, and the handle of it: as steps, for both fronts."""

from __future__ import annotations

import json
import sys
from typing import Final

from ..process import templates
from ..process.backend import Backend, BackendName
from ..process.steps import Steps
from ..process.template import Recipe, Template, sys_path
from ..process.template_start import as_start_error, start_from_template
from ..process.worker import ProcessWorker, start_worker
from .caller.offers import Offers
from .handle import Handle, open_control
from .initializing import Packed
from .interrupts.control_pipe import ControlPipe
from .programs import Program, execute
from .serving import Start, serve
from .settings import Settings
from .telling import logs, output
from .templated import LOOP_MODULES

__all__ = ["set_template_aside", "start"]

WORK: Final = "forkwire.rpc.templated:work"
PREPARE: Final = "forkwire.rpc.templated:prepare"

PLAY: Final = "forkwire.rpc.templated:play"


def start(settings: Settings, offers: Offers, backend: Backend) -> Steps[Handle]:
    """Start the worker. Raises :exc:`WorkerStartError`; nothing is left then."""
    control = open_control()
    try:
        if settings.start == "template":
            process = yield from from_template(settings, control, backend)
        else:
            process = forked(settings, control, backend)
    except OSError as error:
        control.close()
        raise as_start_error(error) from error
    except BaseException:
        control.close()
        raise
    control.started(process.pid)
    return Handle(settings, offers, control, process)


def forked(settings: Settings, control: ControlPipe, backend: Backend) -> ProcessWorker:
    name = settings.backend or backend.name
    given = Start(
        settings.target,
        settings.label,
        name,
        settings.threads,
        control,
        logs.host_level() if settings.logging else None,
        limits=settings.limits,
        initializer=settings.initializer,
        initargs=settings.initargs,
    )
    options = output.capturing(
        name, settings.grace, settings.limits.message, close_fds=settings.close_fds
    )
    if isinstance(settings.target, Program):
        options.executes = True
        options.capture_stdout = not settings.target.stdio
        given.given = for_interpreter(given, settings.packed)
    control.lend()
    return start_worker(
        execute if options.executes else serve,
        given,
        options,
        label=output.label(settings.label),
        sinks=output.sinks(trusted=settings.limits.trusted),
        backend=backend,
    )


def for_interpreter(start: Start, packed: Packed | None) -> bytes:
    """What its command line does not say."""
    given = {
        "label": start.name,
        "backend": start.backend,
        "limit": start.limits.message,
        "packed": packed,
        "argv": sys.argv,
    }
    return json.dumps(given).encode()


def from_template(
    settings: Settings, control: ControlPipe, backend: Backend
) -> Steps[ProcessWorker]:
    name = settings.backend or backend.name
    options = output.capturing(
        name, settings.grace, settings.limits.message, close_fds=settings.close_fds
    )
    request = {
        "service": settings.target,
        "label": settings.label,
        "backend": name,
        "threads": settings.threads,
        "log_level": logs.host_level() if settings.logging else None,
        "levels": logs.levels_of_loggers() if settings.logging else {},
        "limits": (settings.limits.message, settings.limits.calls),
        "packed": settings.packed,
    }
    return start_from_template(
        recipe_of(settings, name),
        request,
        [control.child_fd],
        options,
        seconds=settings.start_timeout,
        label=output.label(settings.label),
        sinks=output.sinks(trusted=settings.limits.trusted),
        backend=backend,
    )


def recipe_of(settings: Settings, backend: BackendName) -> Recipe:
    path, folder = sys_path()
    return Recipe(
        label=str(settings.target),
        work=WORK,
        base=LOOP_MODULES[backend],
        imports=(),
        prepare=PREPARE,
        argument=(settings.target, settings.preload, backend),
        executable=sys.executable,
        path=path,
        folder=folder,
        hint=logs.host_level(),
        rehearse=PLAY,
    )


def set_template_aside(settings: Settings, backend: BackendName) -> Template | None:
    """The next worker is forked from a template that imports the service's code anew.

    The one that there was until now, if there was one.
    """
    return templates.set_aside(recipe_of(settings, settings.backend or backend))

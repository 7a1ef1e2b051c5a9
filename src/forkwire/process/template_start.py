"""Starting a worker from a template: wait until that is ready, ask, and wait for the answer.

Written as steps, for a loop and for a thread alike. Whatever ends them early leaves nothing behind.
"""

from __future__ import annotations

import errno
import functools
import time
from collections.abc import Callable, Sequence
from typing import Any, Final

from ..errors import WorkerStartError
from . import guard, reaping, templates
from .backend import Backend
from .fork import Options
from .stderr import Sink
from .steps import Steps, Wait
from .template import Recipe, Template
from .template_child import TemplateChild
from .worker import ProcessWorker

__all__ = ["as_start_error", "start_from_template"]

# A template may end, idle or killed, just as it is asked.
ATTEMPTS: Final = 4

FULL: Final = frozenset({errno.EAGAIN, errno.ENOBUFS})
GONE: Final = frozenset({errno.EPIPE, errno.ECONNRESET, errno.ENOTCONN, errno.EBADF})
PAUSE: Final = 0.02  # seconds, until a template may have taken some requests


def start_from_template(
    recipe: Recipe,
    request: Any,
    fds: Sequence[int],
    options: Options,
    *,
    seconds: float,
    label: str,
    sinks: tuple[Sink, Sink],
    backend: Backend,
) -> Steps[ProcessWorker]:
    """A worker that runs the recipe's ``work``, with ``request`` (plain data) and ``fds``.

    The rest is as for `start_worker`. Raises :exc:`WorkerStartError`, also when it takes longer
    than ``seconds``.
    """
    until = time.monotonic() + seconds
    for _ in range(ATTEMPTS):
        source = yield from ready(recipe, until, seconds)
        guard.ensure_guard()
        reaping.reap_deserted()
        worker = make(options, backend, sinks)
        source.workers.add(worker._child)
        worker._child.when_ended(functools.partial(source.workers.discard, worker._child))
        try:
            if (yield from ask(source, worker, request, fds, options, until)):
                worker._launch(label, backend)
                return worker
        except OSError as error:
            worker._discard()
            raise as_start_error(error) from error
        except BaseException:
            worker._discard()
            raise
        worker._discard()
    raise WorkerStartError(
        errno.ECHILD,
        f"a worker could not be started: its template process ended {ATTEMPTS} times as it was "
        'asked for one. Look at what it wrote to stderr, or use start="exec"',
    )


def make(options: Options, backend: Backend, sinks: tuple[Sink, Sink]) -> ProcessWorker:
    try:
        return ProcessWorker(options, backend, sinks, TemplateChild)
    except OSError as error:
        raise as_start_error(error) from error


def as_start_error(error: OSError) -> WorkerStartError:
    """The same, as what the start of a worker failed of."""
    if isinstance(error, WorkerStartError):
        return error
    return WorkerStartError(error.errno, f"a worker could not be started: {error.strerror}")


def ready(recipe: Recipe, until: float, seconds: float) -> Steps[Template]:
    """A template that is ready to fork; a bare one where preloading makes that impossible."""
    while True:
        found = templates.get(recipe)
        while found.threads is None and not found.is_gone:
            if time.monotonic() >= until:
                templates.drop(found)
                raise WorkerStartError(
                    errno.ETIMEDOUT,
                    f"no worker could be started within {seconds:g} seconds: its template process "
                    f"was importing {found.stage or 'Python'} (give it more with start_timeout=)",
                )
            yield Wait(found.fileno(), until)
        if found.threads == []:
            templates.is_ready(found)
            return found
        if found.retired:  # by somebody who waited for it as well
            continue
        if found.bare:
            templates.drop(found)
            raise WorkerStartError(
                errno.ECHILD,
                "a template process could not be started: it ended before it was ready. Look at "
                'what it wrote to stderr, or use start="exec"',
            )
        templates.without_preload(found, why_not(found))


def why_not(found: Template) -> str:
    label = found.recipe.label
    if found.threads:
        return (
            f"importing {label} starts threads ({', '.join(found.threads)}), which no fork can "
            "follow: its workers import it themselves, each anew. Start threads when they are "
            "needed, not at import"
        )
    return (
        f"a template process ended while it was importing {found.stage or label}, and so did the "
        f"next: the workers of {label} import it themselves"
    )


def ask(
    source: Template,
    worker: ProcessWorker,
    request: Any,
    fds: Sequence[int],
    options: Options,
    until: float,
) -> Steps[bool]:
    """Whether it was forked; False: the template has ended. Raises :exc:`OSError`."""
    child, ends = worker._child, worker._ends
    assert isinstance(child, TemplateChild)
    message = {
        "arg": request,
        "slot": child.slot,
        "backend": options.backend,
        "grace": options.grace,
        "limit": options.max_message_size,
        "close_fds": options.close_fds,
        "captures": (ends.child_stdout >= 0, ends.child_stderr >= 0),
    }
    captured = [fd for fd in (ends.child_stdout, ends.child_stderr) if fd >= 0]
    theirs = [ends.child_input, ends.child_output, ends.table, *captured, *fds]
    theirs.append(child.theirs.fileno())
    if not (yield from send(lambda: source.request(message, theirs), until)):
        templates.let_go_of(source)
        return False
    child.requested()
    ends.close_theirs()
    while (answered := child.answered()) is None:
        if time.monotonic() >= until:
            templates.let_go_of(source)
            raise OSError(errno.ETIMEDOUT, "its template process did not answer in time")
        yield Wait(child.fileno(), until)
    return answered


def send(request: Callable[[], None], until: float) -> Steps[bool]:
    """Whether there is somebody who takes it. Raises :exc:`OSError`."""
    while True:
        try:
            request()
        except OSError as error:
            if error.errno in GONE:
                return False
            if error.errno not in FULL or time.monotonic() >= until:
                raise
        else:
            return True
        yield Wait(-1, min(until, time.monotonic() + PAUSE))

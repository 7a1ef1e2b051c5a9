"""A service that looks at its context, for the tests of what travels with calls."""

from __future__ import annotations

import contextvars
from collections.abc import AsyncIterator, Iterator
from typing import Any

import anyio

from forkwire import current_call, propagate, sync

request = propagate(contextvars.ContextVar[str]("request"), "tests.carrying.request")
private = contextvars.ContextVar[str]("private")


def context_here() -> list[str | None]:
    return [request.get(None), private.get(None)]


async def context_later() -> list[str | None]:
    await anyio.lowlevel.checkpoint()
    return context_here()


def contexts() -> Iterator[list[str | None]]:
    yield context_here()
    request.set("changed by the generator")
    yield context_here()


async def contexts_later() -> AsyncIterator[list[str | None]]:
    yield context_here()
    request.set("changed by the generator")
    yield context_here()


_noted: list[str | None] = []


def note_context() -> None:
    _noted.append(request.get(None))


async def note_context_later() -> None:
    _noted.append(request.get(None))


def noted() -> list[str | None]:
    return list(_noted)


def set_context(value: str) -> None:
    request.set(value)
    private.set(value)


def ask_host(value: str | None = None) -> Any:
    if value is not None:
        request.set(value)
    return sync.current_call().host.call("context_of_host")


async def ask_host_later(value: str | None = None) -> Any:
    if value is not None:
        request.set(value)
    return await current_call().host.call("context_of_host")


def through_host(value: str) -> Any:
    """The host calls back, while this waits for it."""
    request.set(value)
    private.set(value)
    return sync.current_call().host.call("call_back")

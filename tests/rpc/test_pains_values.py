"""What users of other libraries suffer from errors, values and pickle between processes."""

from __future__ import annotations

import copyreg
import dataclasses
import datetime
import pickle
import sys
import threading
from pathlib import Path
from typing import Any, NoReturn

import pytest

from forkwire import RemoteError, ValueEncodeError

from .services import suffering
from .support_pains import (
    nothing_left_behind,  # noqa: F401
    sync_worker_of,
    worker_of,
)

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.usefixtures("nothing_left_behind"),
    pytest.mark.timeout(30),
    pytest.mark.skipif(sys.platform != "linux", reason="reads /proc"),
]


# -- errors -----------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["fail_needing_two", "fail_needing_two_later"])
async def test_an_exception_that_cannot_be_rebuilt_arrives(method: str) -> None:
    """Elsewhere one whose constructor wants more hangs or breaks the pool; here it is an error.

    With its type's name, its text and where it was raised; the worker goes on.
    """
    async with worker_of() as worker:
        with pytest.raises(RemoteError) as caught:
            await worker.call(method)
        error = caught.value
        assert error.message == "404: not there"
        assert error.type_name.endswith("suffering.NeedsTwo")
        assert method in error.traceback
        assert method in str(error)
        assert await worker.call("add", 1, 2) == 3


def test_an_exception_that_cannot_be_rebuilt_arrives_without_a_loop() -> None:
    """The same, blocking."""
    with sync_worker_of() as worker:
        with pytest.raises(RemoteError, match="404: not there"):
            worker.call("fail_needing_two")
        assert worker.call("add", 1, 2) == 3


async def test_an_exception_that_cannot_be_imported_arrives() -> None:
    """Elsewhere a class that is defined in a function cannot be unpickled; here it is named."""
    async with worker_of() as worker:
        with pytest.raises(RemoteError, match="nobody can import it") as caught:
            await worker.call("fail_locally")
        assert caught.value.type_name.endswith("Local")


async def test_a_group_of_exceptions_arrives_as_one() -> None:
    """Elsewhere groups lose their parts or cannot be rebuilt; here ``except*`` takes them."""
    async with worker_of() as worker:
        with pytest.raises(ExceptionGroup) as caught:
            await worker.call("fail_in_a_group")
        first, second = caught.value.exceptions
        assert isinstance(first, ValueError)
        assert isinstance(second, RemoteError)
        assert second.message == "1: two"


async def test_causes_and_notes_arrive() -> None:
    """Elsewhere a cause that cannot be pickled takes the error with it; here all are there."""
    async with worker_of() as worker:
        with pytest.raises(RemoteError, match="1: no key") as caught:
            await worker.call("fail_with_a_cause")
        cause = caught.value.__cause__
        assert isinstance(cause, KeyError)
        assert "look in the drawer" in cause.__notes__


# -- values that cannot be sent ---------------------------------------------------------------


@pytest.mark.parametrize("method", ["answer_a_lock", "answer_a_lock_later"])
async def test_a_result_that_cannot_be_sent_is_an_error_that_names_it(method: str) -> None:
    """Elsewhere the caller waits for ever; here the error says where in the result it is."""
    async with worker_of() as worker:
        with pytest.raises(ValueEncodeError) as caught:
            await worker.call(method)
        assert "$['rows'][1]['lock']" in str(caught.value)
        assert "_thread.lock" in str(caught.value)
        assert await worker.call("add", 1, 2) == 3


def test_a_result_that_cannot_be_sent_is_an_error_without_a_loop() -> None:
    """The same, blocking."""
    with sync_worker_of() as worker:
        with pytest.raises(ValueEncodeError, match="lock"):
            worker.call("answer_a_lock")
        assert worker.call("add", 1, 2) == 3


async def test_an_item_that_cannot_be_sent_ends_its_stream() -> None:
    """Elsewhere the iterator over results hangs at it; here it raises, after what was before it."""
    async with worker_of() as worker:
        stream = worker.stream("yield_a_lock")
        assert await anext(stream) == 1
        with pytest.raises(ValueEncodeError, match="lock"):
            await anext(stream)
        assert await worker.call("add", 1, 2) == 3


async def test_an_argument_that_cannot_be_sent_is_refused_here() -> None:
    """Elsewhere a feeder thread fails out of sight and the call hangs; here the caller is told."""
    async with worker_of() as worker:
        sent = worker.statistics().bytes_sent
        with pytest.raises(ValueEncodeError, match="lock"):
            await worker.call("echo", {"deep": [threading.Lock()]})
        assert worker.statistics().bytes_sent == sent
        assert await worker.call("add", 1, 2) == 3


# -- pickle -----------------------------------------------------------------------------------


async def test_nothing_of_a_peer_is_unpickled(tmp_path: Path) -> None:
    """Elsewhere a worker that was taken over runs code in its parent; here objects do not travel.

    What says how it is to be rebuilt is refused as a result, an argument, an item of an
    exception's args; the exception itself arrives as text.
    """
    exploded = tmp_path / "exploded"
    bomb = suffering.Bomb(str(exploded))
    async with worker_of() as worker:
        with pytest.raises(ValueEncodeError, match="Bomb"):
            await worker.call("answer_a_bomb", str(exploded))
        with pytest.raises(ValueEncodeError, match="Bomb"):
            await worker.call("echo", bomb)
        with pytest.raises(RemoteError, match="a bomb") as caught:
            await worker.call("fail_with_a_bomb", str(exploded))
        assert not isinstance(caught.value, suffering.BombError)
        packed = pickle.dumps(bomb)
        assert await worker.call("echo", packed) == packed
    assert not exploded.exists()
    pickle.loads(packed)
    assert exploded.exists()  # it would have


async def test_pickle_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """Elsewhere every value goes through it; here both sides work where it refuses everything."""

    def refuse(*args: object, **kwargs: object) -> NoReturn:
        raise AssertionError("pickled")

    for name in ("dump", "dumps", "load", "loads", "Pickler", "Unpickler"):
        monkeypatch.setattr(pickle, name, refuse)
    monkeypatch.setattr(copyreg, "_reconstructor", refuse)
    async with worker_of() as worker:
        value = {"a": [1, 2.5, None, b"x" * 100_000, "é"], "b": datetime.date(2020, 1, 2)}
        assert await worker.call("echo", value) == value
        assert await worker.call("echo_later", value) == value
        with pytest.raises(RemoteError):
            await worker.call("fail_with_a_cause")
        with pytest.raises(RemoteError):
            await worker.call("fail_needing_two_later")


async def test_a_fresh_worker_does_not_even_import_pickle() -> None:
    """Elsewhere it is the first thing that a worker does; here there is nothing to call."""
    async with worker_of("sys_modules_service", start="exec") as worker:
        found = await worker.call("modules")
    assert "cbor2" in found
    assert not {"pickle", "_pickle", "cloudpickle", "multiprocessing"} & set(found)


@pytest.fixture(autouse=True)
def a_service_in_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "sys_modules_service.py").write_text(
        "import sys\ndef modules() -> list[str]:\n    return sorted(sys.modules)\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))


# -- types ------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Order:
    number: int
    at: datetime.datetime
    lines: tuple[str, ...] = ()


def confirm(order: Order, *, copies: int = 1) -> list[Order]:
    assert type(order) is Order
    return [dataclasses.replace(order, number=order.number + n) for n in range(copies)]


async def test_values_keep_their_types() -> None:
    """Elsewhere a remote call answers something like a dict, or Any; here what is annotated."""
    order = Order(7, datetime.datetime(2020, 1, 2, tzinfo=datetime.UTC), ("tea", "milk"))
    async with worker_of({"confirm": confirm}) as worker:
        found = await worker.call(confirm, order, copies=2)
    assert found == [order, dataclasses.replace(order, number=8)]
    assert type(found[0]) is Order
    assert type(found[0].lines) is tuple


async def test_a_wrong_argument_is_named() -> None:
    """Elsewhere it fails deep in the handler, or not at all; here the argument's path is told."""
    wrong: Any = {"number": "seven", "at": "2020-01-02T00:00:00Z"}
    async with worker_of({"confirm": confirm}) as worker:
        with pytest.raises(TypeError, match=r"(?s)int.*str.*number|number.*int.*str"):
            await worker.call("confirm", wrong)

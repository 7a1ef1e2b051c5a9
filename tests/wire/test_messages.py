"""The table of messages: what each may hold, and what a message of a later version is."""

from __future__ import annotations

import contextlib
import dataclasses
from typing import Any, Final, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from forkwire.errors import ProtocolError
from forkwire.wire import messages
from forkwire.wire.messages import (
    CALLEE_MESSAGES,
    CALLER_MESSAGES,
    CARRIERS,
    LARGEST_ID,
    LARGEST_TEXT,
    TABLE,
    Call,
    Credit,
    Hello,
    Ignored,
    Known,
    Notify,
    Progress,
    Unknown,
    array_of,
    parse,
)

ERROR: Final = {"code": -32000, "message": "no"}

# One of each, as an array.
ONE_OF_EACH: Final[list[list[Any]]] = [
    [0, {"protocol": [1]}],
    [1, 1, "add", [1, 2], {"c": 3}, {"credit": 2}],
    [2, "add", [1], {"c": 3}, {"tree": "t"}],
    [3, 1, None],
    [4, 1, ERROR],
    [5, 1],
    [6, 1, "item"],
    [7, 1, 1],
    [8, 1, 0.5, None, "text"],
    [9, {"message": "hello"}],
    [10, 0],
    [11, 0],
    [12, None],
    [13, [0, 5]],
    [14, 1, 0, "item"],
    [15, 1, 0, ERROR],
    [16, 1, 0, 0],
]

JUNK: Final = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary(),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(), inner, max_size=5),
    max_leaves=10,
)


def test_the_table_has_every_message() -> None:
    """Each class has a row, under its own type, with a check for each field."""
    assert {kind for kind, _, _ in TABLE.values()} == set(get_args(Known))
    assert list(TABLE) == list(range(17))
    for number, (kind, checks, optional) in TABLE.items():
        assert number == kind.TYPE
        assert len(checks) == len(dataclasses.fields(kind))
        assert optional == (2 if kind in (Call, Notify) else 0)
    assert {kind.__name__ for kind in get_args(Known)} <= set(messages.__all__)


def test_every_message_about_a_call_has_a_sender() -> None:
    """Whatever carries an id but the call itself is the caller's or the callee's."""
    about = {
        kind
        for kind, _, _ in TABLE.values()
        if "id" in {field.name for field in dataclasses.fields(kind)} and kind is not Call
    }
    assert {*CALLER_MESSAGES, *CALLEE_MESSAGES} == about
    assert not {*CALLER_MESSAGES} & {*CALLEE_MESSAGES}


def test_carriers() -> None:
    """What holds values may have attachments, and nothing else (C-20)."""
    assert {TABLE[number][0].__name__ for number in CARRIERS} == {
        "Call",
        "Notify",
        "Result",
        "Error",
        "Item",
        "Send",
    }


@pytest.mark.parametrize("array", ONE_OF_EACH, ids=lambda array: TABLE[array[0]][0].__name__)
def test_round_trip(array: list[Any]) -> None:
    """What is parsed is made into the same array again."""
    message: Any = parse(array)
    assert type(message) is TABLE[array[0]][0]
    assert array_of(message) == array


@pytest.mark.parametrize("array", ONE_OF_EACH, ids=lambda array: TABLE[array[0]][0].__name__)
def test_number_of_fields(array: list[Any]) -> None:
    """One field more is a fault, and one less where it may not be left off (C-2)."""
    with pytest.raises(ProtocolError, match="fields"):
        parse([*array, None])
    if array[0] not in (Call.TYPE, Notify.TYPE):
        with pytest.raises(ProtocolError, match="fields"):
            parse(array[:-1])


@pytest.mark.parametrize("array", ONE_OF_EACH, ids=lambda array: TABLE[array[0]][0].__name__)
def test_wrong_fields(array: list[Any]) -> None:
    """A field of another kind is a fault that names message and field (C-2)."""
    kind = TABLE[array[0]][0]
    for index, field in enumerate(dataclasses.fields(kind)):
        if field.name == "value":
            continue
        for wrong in (object(), b"1", True, -1, 2**64, "x" * (LARGEST_TEXT + 1), {1: 2}, [None]):
            if array[0] == 8 and field.name == "done" and wrong == 2**64:
                continue
            if (field.name == "args" and wrong == [None]) or (
                field.name == "total" and type(wrong) is int
            ):
                continue
            changed = list(array)
            changed[index + 1] = wrong
            with pytest.raises(ProtocolError, match=f"{kind.__name__} .*{field.name!r}"):
                parse(changed)


@pytest.mark.parametrize("head", [[1, 1, "f", []], [2, "f", []]])
def test_fields_that_may_be_left_off(head: list[Any]) -> None:
    """Keyword arguments and meta of a call may be left off, which is the same as empty."""
    assert parse(head) == parse([*head, {}]) == parse([*head, {}, {}])
    assert array_of(parse([*head, {}, {}])) == head  # type: ignore[arg-type]
    assert array_of(parse([*head, {"a": 1}, {}])) == [*head, {"a": 1}]  # type: ignore[arg-type]
    assert array_of(parse([*head, {}, {"tree": "t"}])) == [*head, {}, {"tree": "t"}]  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "meta",
    [
        {"timeout": "soon"},
        {"timeout": True},
        {"timeout": None},
        {"credit": -1},
        {"credit": 2**31},
        {"credit": 1.0},
        {"credit": None},
        {"credit": True},
        {"progress": 1},
        {"tree": b"t"},
        {"context": []},
        {"context": {1: 2}},
        {1: 2},
    ],
)
def test_wrong_meta(meta: dict[Any, Any]) -> None:
    """A key of meta that is known has the kind of value that calls.cddl says."""
    with pytest.raises(ProtocolError, match="meta"):
        parse([1, 1, "f", [], {}, meta])


def test_unknown_keys_are_ignored() -> None:
    """In every map of the protocol's own (C-4)."""
    grease = {"x-grease": [1, {"a": None}]}
    parse([0, {"protocol": [4000, 1], "limits": grease, **grease}])
    parse([1, 1, "f", [], {}, grease])
    parse([4, 1, {**ERROR, **grease}])
    parse([12, {**ERROR, **grease}])
    parse([9, grease])


@pytest.mark.parametrize(
    "about",
    [
        {},
        {"protocol": []},
        {"protocol": 1},
        {"protocol": [True]},
        {"protocol": [1.0]},
        {"protocol": [-1]},
        {"protocol": [1], "limits": None},
        {"protocol": [1], "limits": {"message": -1}},
        {"protocol": [1], "limits": {"message": 2**31}},
        {"protocol": [1], "limits": {"message": True}},
        {"protocol": [1], "limits": {"calls": "many"}},
        {"protocol": [1], "limits": {"calls": -1}},
        {"protocol": [1], 2: 3},
    ],
)
def test_wrong_greetings(about: dict[Any, Any]) -> None:
    """A greeting says its versions; limits are numbers."""
    with pytest.raises(ProtocolError, match="about"):
        parse([0, about])


@pytest.mark.parametrize(
    "error",
    [
        {},
        {"code": 1},
        {"message": ""},
        {"code": "1", "message": ""},
        {"code": True, "message": ""},
        {"code": 1, "message": b""},
    ],
)
def test_wrong_errors(error: dict[str, Any]) -> None:
    """An error has a code and a message, wherever it stands."""
    for array in ([4, 1, error], [12, error], [15, 1, 0, error]):
        with pytest.raises(ProtocolError, match="error"):
            parse(array)


def test_numbers_at_their_edges() -> None:
    """Ids go to 2**53 - 1, credit to 2**31 - 1, attachments to 4096, names to 4096 characters."""
    assert parse([5, LARGEST_ID]).id == LARGEST_ID  # type: ignore[union-attr]
    assert parse([7, 1, 2**31 - 1]) == Credit(1, 2**31 - 1)
    parse([13, [0] * 4096])
    parse([1, 1, "\N{GRINNING FACE}" * LARGEST_TEXT, []])
    parse([8, 1, 10**400, 10**400, "x" * LARGEST_TEXT])
    for array in (
        [5, 0],
        [5, LARGEST_ID + 1],
        [5, 1.0],
        [7, 1, 0],
        [7, 1, 2**31],
        [16, 1, 0, 2**31],
        [13, []],
        [13, [0] * 4097],
        [13, [2**53]],
        [1, 1, "", []],
        [1, 1, "x" * (LARGEST_TEXT + 1), []],
        [8, 1, -1, None, ""],
        [8, 1, -0.5, None, ""],
    ):
        with pytest.raises(ProtocolError):
            parse(array)


@pytest.mark.parametrize(
    "thing", [None, 1, "1", {}, {0: 1}, [], (10, 1), [None], [True], [1.0], ["1"], [-1], [[10, 1]]]
)
def test_what_is_no_message(thing: object) -> None:
    """A message is an array with its type, an unsigned integer, first (C-1)."""
    with pytest.raises(ProtocolError, match="array"):
        parse(thing)


@pytest.mark.parametrize("number", [*range(17, 24), 24, 26, 2**53, 2**70])
def test_one_way_messages_of_later_versions(number: int) -> None:
    """They are ignored, whatever they hold (C-40, C-41)."""
    for rest in ([], [None], ["x", {}], [1, 2, 3]):
        assert parse([number, *rest]) == Ignored(number)


@pytest.mark.parametrize("number", [25, 27, 2**53 + 1])
def test_requests_of_later_versions(number: int) -> None:
    """They have an id (C-41)."""
    assert parse([number, 7, "anything"]) == Unknown(number, 7)
    for rest in ([], ["7"], [0], [True], [2**53]):
        with pytest.raises(ProtocolError, match="without an id"):
            parse([number, *rest])


@given(st.lists(JUNK) | JUNK)
def test_junk(thing: object) -> None:
    """Whatever was decoded is a message, or a fault of the peer's: never another error."""
    with contextlib.suppress(ProtocolError):
        parse(thing)


@given(st.integers(0, 20), st.lists(JUNK, max_size=6))
def test_junk_with_a_type(number: int, rest: list[object]) -> None:
    """The same for what looks like a message."""
    try:
        message = parse([number, *rest])
    except ProtocolError:
        return
    if isinstance(message, Hello):
        assert message.about["protocol"]
    if isinstance(message, Progress):
        assert not message.done < 0

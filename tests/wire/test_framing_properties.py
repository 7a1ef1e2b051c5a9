"""Framing against a model: any stream, cut anywhere, asked for anything, gives the same answers."""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any, Literal

from hypothesis import given, settings
from hypothesis import strategies as st

from forkwire import NegativeSizeError, SizeLimitError
from forkwire.wire.framing import BUFFER_SIZE, SMALL, Buffer, Decoder, EndOfFile, encode_int, frame

Question = Literal["message", "int"]
Step = int | Question  # so many bytes arrive, or something is asked
Answer = Any


class Model:
    """Section "Reading" of the specification, in the plainest words."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.held = b""
        self.eof = False
        self.final: Answer = None

    def ask(self, question: Question) -> Answer:
        if self.final is None:
            return self.answer_int() if question == "int" else self.answer_message()
        return self.final

    def answer_int(self) -> Answer:
        if len(self.held) < 4:
            return self.end()
        return struct.unpack("=i", self.take(4))[0]

    def answer_message(self) -> Answer:
        if len(self.held) < 4:
            return self.end()
        size = struct.unpack("=i", self.held[:4])[0]
        if size < 0:
            self.final = ("negative", size)
        elif size > self.limit:
            self.final = ("too-large", size, self.limit)
        elif len(self.held) < 4 + size:
            return self.end()
        else:
            return self.take(4 + size)[4:]
        return self.final

    def end(self) -> Answer:
        if self.eof:
            self.final = EndOfFile(truncated=bool(self.held))
        return self.final

    def take(self, count: int) -> bytes:
        taken, self.held = self.held[:count], self.held[count:]
        return taken


def answer(decoder: Decoder, question: Question) -> Answer:
    try:
        return decoder.next_int() if question == "int" else decoder.next_message()
    except NegativeSizeError as error:
        return ("negative", error.size)
    except SizeLimitError as error:
        return ("too-large", error.size, error.limit)


def scatter(decoder: Decoder, data: Buffer) -> None:
    """What ``os.readv`` does: fill the buffers one after the other, as far as the data goes."""
    rest = memoryview(data)
    while True:
        count = 0
        for buffer in decoder.buffers():
            part = rest[: len(buffer)]
            buffer[: len(part)] = part
            rest = rest[len(part) :]
            count += len(part)
        decoder.received(count)
        if not rest:
            break


LARGE = [size + more for size in (SMALL, BUFFER_SIZE - 4, BUFFER_SIZE) for more in (-1, 0, 1)]
sizes = st.one_of(st.integers(0, 20), st.integers(0, 1000), st.sampled_from([*LARGE, 150_000]))
payloads = sizes.map(lambda size: (b"\x01\x00\x00\x00\x02\xff" * (size // 6 + 1))[:size])
items = st.one_of(
    payloads.map(lambda payload: b"".join(frame(payload))),
    st.integers(-(2**31), 2**31 - 1).map(encode_int),
    st.sampled_from([-1, -(2**31), 2**31 - 1, 100_001, 5]).map(encode_int),
    st.binary(max_size=7),
)
streams = st.lists(items, max_size=8).map(b"".join)
cuts = st.one_of(st.integers(1, 9), st.integers(1, 400_000))
questions: st.SearchStrategy[Question] = st.sampled_from(["message", "message", "int"])
steps = st.lists(st.one_of(cuts, questions), max_size=30)
limits = st.sampled_from([0, 10, 100_000, 2**31 - 1])
arrivals: st.SearchStrategy[Callable[[Decoder, Buffer], None]] = st.sampled_from(
    [scatter, lambda decoder, data: decoder.feed(data)]
)


@settings(max_examples=400, deadline=None)
@given(streams, steps, st.lists(questions, max_size=12), limits, arrivals)
def test_the_decoder_agrees_with_the_model(
    stream: bytes,
    steps: list[Step],
    last: list[Question],
    limit: int,
    arrive: Callable[[Decoder, Buffer], None],
) -> None:
    """Questions of both kinds, asked at any time, between bytes that arrive in any pieces."""
    decoder, model = Decoder(limit), Model(limit)

    def ask(question: Question) -> None:
        expected = model.ask(question)
        ready = decoder.int_ready() if question == "int" else decoder.message_ready()
        if not isinstance(model.final, tuple):  # after a refusal nobody waits
            assert ready == (expected is not None)
        assert answer(decoder, question) == expected

    def receive(data: bytes) -> None:
        arrive(decoder, data)
        model.held += data

    for step in steps:
        if not isinstance(step, int):
            ask(step)
        elif part := stream[:step]:
            stream = stream[step:]
            receive(part)
    if stream:
        receive(stream)
    decoder.received(0)
    model.eof = True
    for question in last:
        ask(question)
    ask("message")
    assert decoder.at_end


@settings(max_examples=200, deadline=None)
@given(st.lists(payloads, max_size=10), st.lists(cuts, max_size=20), arrivals)
def test_what_is_sent_arrives(
    sent: list[bytes], cuts: list[int], arrive: Callable[[Decoder, Buffer], None]
) -> None:
    """However the stream is cut up, the messages that come out are those that went in."""
    stream = b"".join(part for payload in sent for part in frame(payload))
    decoder, got = Decoder(), []
    for cut in [*cuts, *cuts, len(stream)]:
        part, stream = stream[:cut], stream[cut:]
        if part:
            arrive(decoder, part)
        while (item := decoder.next_message()) is not None:
            got.append(item)
    decoder.feed(b"")
    assert got == sent
    assert decoder.pending == 0
    assert decoder.next_message() == EndOfFile(truncated=False)


@given(st.lists(st.integers(-(2**31), 2**31 - 1)))
def test_integers_that_are_sent_arrive(sent: list[int]) -> None:
    """Every 32-bit integer survives the trip."""
    decoder = Decoder(0)
    decoder.feed(b"".join(map(encode_int, sent)))
    assert [decoder.next_int() for _ in sent] == sent

"""One conversation, held over each kind of pipe: what pingpong.py and bulk.py measure.

A stretch is what lies between two looks at the clock: ``turns`` times, the host says ``sent``
messages and the child ``answered`` ones.
"""

from __future__ import annotations

import multiprocessing
import os
from dataclasses import dataclass
from functools import partial
from time import perf_counter
from typing import Any, Final

from _harness import BASELINE, HOSTS, Contender, median_seconds, on_loop

from forkwire import EndOfFile, InputChannel, OutputChannel, read_message, run, sync, write_message

__all__ = ["Talk", "contenders"]

FORK: Final = multiprocessing.get_context("fork")


@dataclass(frozen=True)
class Talk:
    question: bytes
    answer: bytes
    turns: int
    sent: int = 1
    answered: int = 1

    @property
    def payloads(self) -> int:
        """Messages of a stretch that count; the small ones of the other direction do not."""
        return self.turns * max(self.sent, self.answered)


# -- forkwire ---------------------------------------------------------------------------------


def plain_worker(inp: InputChannel, out: OutputChannel, talk: Talk) -> None:
    if talk.sent == talk.answered:
        for message in sync.messages(inp):
            sync.write_message(out, message)
        return
    while True:
        for _ in range(talk.sent):
            if isinstance(sync.read_message(inp), EndOfFile):
                return
        for _ in range(talk.answered):
            sync.write_message(out, talk.answer)


async def async_worker(inp: InputChannel, out: OutputChannel, talk: Talk) -> None:
    if talk.sent == talk.answered:
        while not isinstance(message := await read_message(inp), EndOfFile):
            await write_message(out, message)
        return
    while True:
        for _ in range(talk.sent):
            if isinstance(await read_message(inp), EndOfFile):
                return
        for _ in range(talk.answered):
            await write_message(out, talk.answer)


async def ours(worker_function: Any, talk: Talk, stretches: int) -> float:
    marks = []
    async with await run(worker_function, talk) as worker:
        inp, out, question = worker.input_channel, worker.output_channel, talk.question
        for _ in range(stretches):
            if talk.sent == talk.answered:
                for _ in range(talk.turns):
                    await write_message(out, question)
                    await read_message(inp)
            else:
                for _ in range(talk.turns):
                    for _ in range(talk.sent):
                        await write_message(out, question)
                    for _ in range(talk.answered):
                        await read_message(inp)
            marks.append(perf_counter())
    return median_seconds(marks, talk.payloads)


# -- multiprocessing.Pipe ---------------------------------------------------------------------


def pipe_child(inp: Any, out: Any, talk: Talk) -> None:
    if talk.sent == talk.answered:
        while True:
            out.send_bytes(inp.recv_bytes())
    while True:
        for _ in range(talk.sent):
            inp.recv_bytes()
        for _ in range(talk.answered):
            out.send_bytes(talk.answer)


def pipe(duplex: bool, talk: Talk, stretches: int) -> float:
    inp, out, child_inp, child_out = pipe_ends(duplex)
    child = FORK.Process(target=pipe_child, args=(child_inp, child_out, talk), daemon=True)
    child.start()
    marks, question = [], talk.question
    for _ in range(stretches):
        if talk.sent == talk.answered:
            for _ in range(talk.turns):
                out.send_bytes(question)
                inp.recv_bytes()
        else:
            for _ in range(talk.turns):
                for _ in range(talk.sent):
                    out.send_bytes(question)
                for _ in range(talk.answered):
                    inp.recv_bytes()
        marks.append(perf_counter())
    child.kill()
    child.join()
    return median_seconds(marks, talk.payloads)


def pipe_ends(duplex: bool) -> tuple[Any, Any, Any, Any]:
    """The host's input and output, then the child's."""
    if duplex:
        host_end, child_end = FORK.Pipe()
        return host_end, host_end, child_end, child_end
    child_inp, out = FORK.Pipe(duplex=False)
    inp, child_out = FORK.Pipe(duplex=False)
    return inp, out, child_inp, child_out


# -- bare system calls: both sides know the sizes, there is no frame and no event loop ----------


def read_exactly(fd: int, size: int) -> bytes:
    data = os.read(fd, min(size, 65536))
    if len(data) in (0, size):
        return data
    parts, missing = [data], size - len(data)
    while missing and (data := os.read(fd, min(missing, 65536))):
        parts.append(data)
        missing -= len(data)
    return b"".join(parts)


def write_all(fd: int, data: bytes) -> None:
    count = os.write(fd, data)
    rest = memoryview(data)[count:] if count < len(data) else None
    while rest:
        rest = rest[os.write(fd, rest) :]


def bare_child(inp: int, out: int, talk: Talk) -> None:
    size = len(talk.question)
    while True:
        for _ in range(talk.sent):
            if not read_exactly(inp, size):
                return
        for _ in range(talk.answered):
            write_all(out, talk.answer)


def bare(talk: Talk, stretches: int) -> float:
    child_inp, out = os.pipe()
    inp, child_out = os.pipe()
    if os.fork() == 0:
        os.close(out)
        bare_child(child_inp, child_out, talk)
        os._exit(0)
    os.close(child_inp)
    marks, size = [], len(talk.answer)
    for _ in range(stretches):
        for _ in range(talk.turns):
            for _ in range(talk.sent):
                write_all(out, talk.question)
            for _ in range(talk.answered):
                read_exactly(inp, size)
        marks.append(perf_counter())
    os.close(out)
    os.wait()
    return median_seconds(marks, talk.payloads)


def contenders(talk: Talk, stretches: int) -> dict[str, Contender]:
    found: dict[str, Contender] = {
        BASELINE: partial(pipe, True, talk, stretches),
        "multiprocessing.Pipe(duplex=False)": partial(pipe, False, talk, stretches),
        "os.read, os.write": partial(bare, talk, stretches),
    }
    for host in HOSTS:
        for kind, function in (("plain", plain_worker), ("async", async_worker)):
            found[f"forkwire, {host}, {kind} worker"] = partial(
                on_loop, host, partial(ours, function, talk, stretches)
            )
    return found

"""A hundred thousand calls in a forked child, cancelled at random instants."""

from __future__ import annotations

import contextlib
import os
import random
import struct
import sys
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from typing import NoReturn

import pytest

from forkwire.rpc.interrupts.interrupting import ControlPipe, Interrupted, Interrupter

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="counts in /proc")

CALLS = 100_000
WINDOW = 64  # calls that are sent ahead
INNER = 1 << 32  # added to the id of a call that is made inside another

ANSWER = struct.Struct("=QQB")
RESULT, STOPPED, NOT_BEGUN, INNER_STOPPED = range(4)


class InnerStopped(Exception):
    """A call inside another was interrupted, and that other one was not."""

    def __init__(self, call_id: int) -> None:
        super().__init__(call_id)
        self.call_id = call_id


class Work:
    """What is called: short functions of many kinds. Each answers thrice its call's id."""

    def __init__(self, interrupter: Interrupter) -> None:
        self.interrupter = interrupter
        self.entered = self.left = 0
        self.broken_blocks = 0
        self.kinds: list[Callable[[int], int]] = [
            self.nothing,
            self.loop,
            self.blocks,
            self.shielded,
            self.swallowing_little,
            self.finalised,
            self.asleep,
            self.nested,
        ]

    def nothing(self, n: int) -> int:
        return n * 3

    def loop(self, n: int) -> int:
        total = 0
        for _ in range(100):
            total += n
        return n * 3

    def blocks(self, n: int) -> int:
        held: list[int] = []
        try:
            try:
                held.append(n)
            finally:
                held.append(n)
        finally:
            total = n * 3
        return total

    def shielded(self, n: int) -> int:
        with self.interrupter.shield():
            self.entered += 1
            for _ in range(20):
                pass
            self.left += 1
        return n * 3

    def swallowing_little(self, n: int) -> int:
        for _ in range(10):
            with contextlib.suppress(Exception):
                int("no number")
        return n * 3

    def finalised(self, n: int) -> int:
        work = self

        class Thing:
            def __del__(self) -> None:
                work.entered += 1
                for _ in range(20):
                    pass
                work.left += 1

        for _ in range(2):
            Thing()
        return n * 3

    def asleep(self, n: int) -> int:
        time.sleep(0)
        return sum([n, n, n])

    def nested(self, n: int) -> int:
        with self.interrupter.paused():
            self.entered += 1
            try:
                third = self.interrupter.run(n + INNER, self.loop, n)
            except Interrupted as error:
                raise InnerStopped(error.call_id) from None
            finally:
                self.left += 1
                self.interrupter.forget(n + INNER)
        assert third == n * 3
        return third

    def items(self, n: int) -> Iterator[int]:
        yield from (n, n, n)


class Child:
    """Reads ids, answers each. All of it but the work would die of a stray exception."""

    def __init__(self, requests: int, answers: int, control: int) -> None:
        self.requests, self.answers = requests, answers
        self.interrupter = Interrupter(control)
        self.work = Work(self.interrupter)
        self.out = bytearray()

    def serve(self) -> None:
        descriptors, threads = os.listdir("/proc/self/fd"), os.listdir("/proc/self/task")
        while data := os.read(self.requests, 8 * WINDOW):
            for (call_id,) in struct.iter_unpack("=Q", data):
                self.out += self.answer(call_id)
                if len(self.out) > 8 * ANSWER.size:
                    self.flush()
            self.flush()
        assert self.work.entered == self.work.left, "a shield, a pause or a __del__ was cut"
        assert os.listdir("/proc/self/fd") == descriptors
        assert os.listdir("/proc/self/task") == threads
        assert not self.interrupter._shields

    def answer(self, call_id: int) -> bytes:
        try:
            if call_id % 9 == 8:
                value = self.stream(call_id)
            else:
                function = self.work.kinds[call_id % 9]
                value = self.interrupter.run(call_id, function, call_id)
            kind = RESULT
        except Interrupted as error:
            kind, value = STOPPED if has_begun(error) else NOT_BEGUN, error.call_id
        except InnerStopped as error:
            kind, value = INNER_STOPPED, error.call_id
        assert self.interrupter._armed == 0
        self.interrupter.forget(call_id)
        return ANSWER.pack(call_id, value, kind)

    def stream(self, call_id: int) -> int:
        generator = self.work.items(call_id)
        total = 0
        try:
            while True:
                total += self.interrupter.step(call_id, generator.__next__)
        except StopIteration:
            return total

    def flush(self) -> None:
        os.write(self.answers, self.out)
        self.out.clear()


def has_begun(error: Interrupted) -> bool:
    """Whether the function had, when it was interrupted."""
    frames = [frame.f_code.co_name for frame, _ in traceback.walk_tb(error.__traceback__)]
    return "_stop_early" not in frames


def be_child(requests: int, answers: int, control: int) -> NoReturn:
    status = 1
    try:
        Child(requests, answers, control).serve()
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(status)


class Hammer:
    """The host: sends calls, and cancels those around the one that runs."""

    def __init__(self, pipe: ControlPipe, requests: int, answers: int, seed: int) -> None:
        self.pipe, self.requests, self.answers = pipe, requests, answers
        self.random = random.Random(seed)
        self.sent = self.answered = 0
        self.cancelled: set[int] = set()
        self.seen: Counter[int] = Counter()
        self.rest = b""

    def run(self, calls: int) -> None:
        while self.answered < calls:
            if self.sent - self.answered < WINDOW // 2:
                self.send(min(WINDOW // 2, calls - self.sent))
            self.cancel()
            for _ in range(self.random.randrange(40)):
                pass
            self.receive()

    def send(self, count: int) -> None:
        ids = range(self.sent + 1, self.sent + count + 1)
        os.write(self.requests, struct.pack(f"={count}Q", *ids))
        self.sent += count

    def cancel(self) -> None:
        near = self.answered + self.random.choice((-5, 0, 1, 1, 2, 2, 3, 4, 5, 6, 8, 12, 40))
        call_id = max(near, 1) + self.random.choice((0, 0, 0, INNER))
        self.cancelled.add(call_id)
        self.pipe.cancel(call_id)

    def receive(self) -> None:
        try:
            data = os.read(self.answers, 4096)
        except BlockingIOError:
            return
        assert data, "the child died"
        self.rest += data
        whole = len(self.rest) // ANSWER.size * ANSWER.size
        for call_id, value, kind in ANSWER.iter_unpack(self.rest[:whole]):
            self.check(call_id, value, kind)
        self.rest = self.rest[whole:]

    def check(self, call_id: int, value: int, kind: int) -> None:
        assert call_id == self.answered + 1, "an answer is missing, or was given twice"
        self.answered += 1
        self.seen[kind] += 1
        if kind == RESULT:
            assert value == 3 * call_id
        else:
            meant = call_id + INNER if kind == INNER_STOPPED else call_id
            assert value == meant, "a call got another's interruption"
            assert meant in self.cancelled, "interrupted, but nobody asked for it"


def hammer(calls: int, seed: int) -> Counter[int]:
    """Answers how the calls ended."""
    before, threads = set(os.listdir("/proc/self/fd")), set(threading.enumerate())
    pipe = ControlPipe()
    (request_end, requests), (answers, answer_end) = os.pipe(), os.pipe()
    control = pipe.lend()
    pid = os.fork()
    if pid == 0:
        os.close(requests)
        os.close(answers)
        be_child(request_end, answer_end, control)
    pipe.started(pid)
    os.close(request_end)
    os.close(answer_end)
    os.set_blocking(answers, False)
    run = Hammer(pipe, requests, answers, seed)
    try:
        run.run(calls)
    finally:
        os.close(requests)
        _, status = os.waitpid(pid, 0)
        os.close(answers)
        pipe.close()
    assert status == 0
    assert set(os.listdir("/proc/self/fd")) == before
    assert threads.issuperset(threading.enumerate())  # an earlier test's may have ended meanwhile
    return run.seen


def test_no_answer_is_lost_doubled_or_unasked() -> None:
    """Each of 100,000 calls ends once, in order, and only those that were cancelled so."""
    seen = hammer(CALLS, seed=random.randrange(1 << 30))

    assert seen.total() == CALLS
    assert min(seen[RESULT], seen[STOPPED] + seen[NOT_BEGUN]) > CALLS // 200
    assert min(seen[STOPPED], seen[NOT_BEGUN], seen[INNER_STOPPED]) > 0

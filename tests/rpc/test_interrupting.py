"""Stopping a plain function: each test in a forked child, over a real control pipe."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import importlib
import importlib.util
import os
import pickle
import queue
import re
import select
import signal
import socket
import subprocess
import sys
import threading
import time
import warnings
import weakref
import zlib
from collections.abc import Callable, Generator, Iterator
from typing import Any, NoReturn, Self

import anyio
import pytest

import forkwire.sync
from forkwire import InputChannel, OutputChannel, UsageError, read_message, run
from forkwire.process import cancelling, ownership
from forkwire.rpc.interrupts import interrupting, safe_frames
from forkwire.rpc.interrupts.interrupting import ControlPipe, Interrupted, Interrupter

REPEAT = 0.05  # seconds between cancels of one call
LONG = 60  # seconds; nothing here takes as long

Tell = Callable[[object], None]
Body = Callable[[Interrupter, Tell], object]


class Child:
    """A forked child that runs ``body``; what that tells, and at last how it ended, is received."""

    def __init__(self, body: Body) -> None:
        self.pipe = ControlPipe()
        self.reader, writer = os.pipe()
        control = self.pipe.lend()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # a test may have threads
            self.pid = os.fork()
        if self.pid == 0:
            os.close(self.reader)
            be_child(body, control, writer)
        os.close(writer)
        self.pipe.started(self.pid)
        self.received = b""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)
        os.close(self.reader)
        self.pipe.close()

    def receive(self, timeout: float = LONG) -> Any:
        """What it told next; None for nothing yet."""
        while b"\n" not in self.received:
            if not select.select([self.reader], [], [], timeout)[0]:
                return None
            data = os.read(self.reader, 65536)
            assert data, "the child died"
            self.received += data
        line, self.received = self.received.split(b"\n", 1)
        return pickle.loads(bytes.fromhex(line.decode()))

    def receive_while_cancelling(self, *call_ids: int) -> Any:
        """The same; the calls are cancelled, as a host does it, until then."""
        while True:
            for call_id in call_ids:
                self.pipe.cancel(call_id)
            told = self.receive(REPEAT)
            if told is not None:
                return told


def be_child(body: Body, control: int, writer: int) -> NoReturn:
    def tell(what: object) -> None:
        os.write(writer, pickle.dumps(what).hex().encode() + b"\n")

    try:
        tell(outcome(lambda: body(Interrupter(control), tell)))
    finally:
        os._exit(0)


def outcome(function: Callable[[], object]) -> object:
    """What it answers, or the name of what it raises."""
    try:
        return function()
    except Interrupted as error:
        return ["Interrupted", error.call_id]
    except BaseException as error:
        return [type(error).__name__, str(error)]


def stop(function: Callable[[Interrupter, Tell], object], *, call_id: int = 1) -> Any:
    """Cancel ``function`` once it told something; answers how its call ended."""

    def body(interrupter: Interrupter, tell: Tell) -> object:
        return outcome(lambda: interrupter.run(call_id, function, interrupter, tell))

    with Child(body) as child:
        assert child.receive() == "running"
        return child.receive_while_cancelling(call_id)


# -- what is stopped ------------------------------------------------------------------------------


def spin() -> None:
    while True:
        pass


def receive() -> None:
    a, b = socket.socketpair()
    with a, b:
        a.recv(1)


def wait_for_lock() -> None:
    lock = threading.Lock()
    with lock:
        lock.acquire()


def wait_for_condition() -> None:
    condition = threading.Condition()
    with condition:
        condition.wait()


def backtrack() -> None:
    re.match(r"(a?){40}(a){40}$|(a|aa)+$", "a" * 60 + "b")


def read_pipe() -> None:
    reader, writer = os.pipe()
    os.read(reader, 1)
    os.close(writer)


@contextlib.contextmanager
def slow_to_enter() -> Iterator[None]:
    time.sleep(LONG)
    yield


def enter_slowly() -> None:
    with slow_to_enter():
        pass


@contextlib.contextmanager
def nothing() -> Iterator[None]:
    yield


@nothing()
def decorated() -> None:
    spin()


def wait_for_thread() -> None:
    thread = threading.Thread(target=time.sleep, args=[LONG], daemon=True)
    thread.start()
    thread.join()


def recurse(depth: int = 900) -> None:
    if depth:
        recurse(depth - 1)
    else:
        spin()


async def spin_in_task() -> None:
    async def task() -> None:
        spin()

    await asyncio.gather(asyncio.create_task(task()), asyncio.sleep(LONG))


STOPPED: dict[str, Callable[[], object]] = {
    "loop": spin,
    "sleep": lambda: time.sleep(LONG),
    "recv": receive,
    "read": read_pipe,
    "lock": wait_for_lock,
    "condition": wait_for_condition,
    "queue": lambda: queue.Queue[int]().get(),
    "simple queue": lambda: queue.SimpleQueue[int]().get(),
    "thread": wait_for_thread,
    "subprocess": lambda: subprocess.run(["sleep", str(LONG)], check=False),
    "re": backtrack,
    "pow": lambda: pow(3, 10**9),
    "select": lambda: select.select([], [], [], LONG),
    "recursion": recurse,
    "enter": enter_slowly,
    "decorator": decorated,
    "asyncio": lambda: asyncio.run(asyncio.sleep(LONG)),
    "asyncio task": lambda: asyncio.run(spin_in_task()),
}


@pytest.mark.parametrize("name", sorted(STOPPED))
def test_what_runs_or_blocks_is_stopped(name: str) -> None:
    """The caller of a cancelled function has its worker back, whatever that function does."""

    def function(interrupter: Interrupter, tell: Tell) -> object:
        tell("running")
        return STOPPED[name]()

    started = time.monotonic()
    assert stop(function) == ["Interrupted", 1]
    assert time.monotonic() - started < LONG / 4


@pytest.mark.parametrize("what", ["asleep", "busy"])
def test_a_loop_that_the_function_runs_is_stopped(
    anyio_backend: tuple[str, dict[str, Any]], what: str
) -> None:
    """Between two tasks, or where one never returns to the loop; it ends as a cancelled call."""
    backend, options = anyio_backend
    pytest.importorskip("trio" if backend == "trio" else "uvloop")

    async def main() -> None:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(anyio.sleep, LONG)
            await anyio.sleep(0)
            spin() if what == "busy" else await anyio.sleep(LONG)

    def function(interrupter: Interrupter, tell: Tell) -> None:
        threading.Timer(REPEAT, tell, ["running"]).start()
        anyio.run(main, backend=backend, backend_options=options)

    assert stop(function) == ["Interrupted", 1]


def test_c_code_that_keeps_the_interpreter_is_stopped_when_it_returns() -> None:
    """Nothing runs in the worker until then; nothing of the function after it."""

    def function(interrupter: Interrupter, tell: Tell) -> None:
        tell("running")
        sum(range(10**7))
        zlib.compress(bytes(10**7))
        spin()

    assert stop(function) == ["Interrupted", 1]


def test_except_exception_does_not_stop_it() -> None:
    """A function that survives all ordinary exceptions is still stopped."""

    def function(interrupter: Interrupter, tell: Tell) -> None:
        tell("running")
        while True:
            with contextlib.suppress(Exception):
                time.sleep(LONG)

    assert stop(function) == ["Interrupted", 1]


def test_except_base_exception_wins_and_is_interrupted_once() -> None:
    """The call then ends as the function says, however often it is cancelled."""

    def function(interrupter: Interrupter, tell: Tell) -> object:
        try:
            tell("running")
            spin()
        except BaseException as error:
            time.sleep(4 * REPEAT)
            return ["survived", type(error).__name__, interrupter.is_cancelled(1)]
        return None

    assert stop(function) == ["survived", "Interrupted", True]


def test_cleanup_is_done() -> None:
    """``finally`` runs to its end: a call is interrupted only once."""

    def function(interrupter: Interrupter, tell: Tell) -> None:
        try:
            tell("running")
            spin()
        finally:
            time.sleep(4 * REPEAT)
            tell("cleaned up")

    assert stop(function) == "cleaned up"


# -- where it waits -------------------------------------------------------------------------------


def busy(seconds: float) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        pass


def finalised(tell: Tell) -> None:
    class Thing:
        def __del__(self) -> None:
            tell("running")
            busy(4 * REPEAT)
            tell("whole")

    Thing()


def test_a_del_is_finished() -> None:
    """In there Python would swallow the exception: it comes after."""

    def body(interrupter: Interrupter, tell: Tell) -> object:
        def function() -> None:
            finalised(tell)
            spin()

        return outcome(lambda: interrupter.run(1, function))

    with Child(body) as child:
        assert child.receive() == "running"
        assert child.receive_while_cancelling(1) == "whole"
        assert child.receive_while_cancelling(1) == ["Interrupted", 1]


def in_weakref(callback: Callable[[], None]) -> None:
    thing = threading.Event()
    reference = weakref.ref(thing, lambda _: callback())
    del thing
    assert reference() is None


def in_gc(callback: Callable[[], None]) -> None:
    def run(phase: str, info: dict[str, int]) -> None:
        if phase == "start":
            callback()

    gc.callbacks.append(run)
    gc.collect()
    gc.callbacks.remove(run)


@pytest.mark.parametrize("call_back", [in_weakref, in_gc])
def test_what_python_swallows_is_raised_again(
    call_back: Callable[[Callable[[], None]], None],
) -> None:
    """In a callback of weakref or gc it is lost, without a word; the next cancel counts."""

    def function(interrupter: Interrupter, tell: Tell) -> None:
        def callback() -> None:
            tell("running")
            spin()

        call_back(callback)
        spin()

    assert stop(function) == ["Interrupted", 1]


def test_what_was_swallowed_later_and_elsewhere_interrupts_nothing() -> None:
    """An interruption that code kept and lost after its call does not hit the next."""

    def body(interrupter: Interrupter, tell: Tell) -> object:
        kept: list[BaseException] = []

        class Thing:
            def __del__(self) -> None:
                raise kept[0]

        def keep() -> None:
            try:
                tell("running")
                spin()
            except BaseException as error:
                kept.append(error)

        interrupter.run(1, keep)
        Thing()
        between = interrupter._armed
        interrupter.run(2, Thing)
        return [between, interrupter.run(2, lambda: interrupter._armed), interrupter._armed]

    with Child(body) as child:
        assert child.receive() == "running"
        assert child.receive_while_cancelling(1) == [0, 2, 0]


MODULES = ("_pydecimal", "email", "html", "json", "unittest", "xml")


def test_an_import_is_finished() -> None:
    """Whenever the cancel comes, no module is left half imported."""

    def load() -> None:
        for name in ("_pydecimal", "email.mime.text", "json", "unittest.mock", "xml.dom.minidom"):
            importlib.import_module(name)

    def forget() -> None:
        for name in [name for name in sys.modules if name.partition(".")[0] in MODULES]:
            del sys.modules[name]

    def function() -> None:
        load()
        spin()

    def half_imported(whole: dict[str, set[str]]) -> list[str]:
        return [
            name
            for name, module in sys.modules.items()
            if name in whole and not whole[name] <= vars(module).keys()
        ]

    def body(interrupter: Interrupter, tell: Tell) -> object:
        load()
        whole = {
            name: {key for key in vars(module) if f"{name}.{key}" not in sys.modules}
            for name, module in sys.modules.items()
            if name.partition(".")[0] in MODULES
        }
        ends: list[object] = []
        for call_id in range(1, 21):
            forget()
            tell("running")
            ends.append(outcome(lambda: interrupter.run(call_id, function)))  # noqa: B023
            assert not half_imported(whole)
        return ends

    with Child(body) as child:
        assert child.receive() == "running"
        for call_id in range(1, 21):
            busy(call_id / 1000)
            told = child.receive_while_cancelling(call_id)
            assert told == "running" or call_id == 20
        assert told == [["Interrupted", call_id] for call_id in range(1, 21)]


IMPORTS_NUMPY = """
import sys
from forkwire.rpc.interrupts.interrupting import Interrupted, Interrupter
interrupter = Interrupter(int(sys.argv[1]))
print(flush=True)
try:
    interrupter.run(1, lambda: __import__("numpy"))
except Interrupted:
    pass
import numpy
print(numpy.arange(4).sum())
"""


@pytest.mark.parametrize("delay", [0.0, 0.01, 0.03, 0.05, 0.08])
def test_numpy_is_imported_whole(delay: float) -> None:
    """Also in a worker that is a program of its own."""
    pytest.importorskip("numpy")
    pipe = ControlPipe()
    command = [sys.executable, "-c", IMPORTS_NUMPY, str(pipe.child_fd)]
    with subprocess.Popen(
        command, pass_fds=[pipe.child_fd], stdout=subprocess.PIPE, text=True
    ) as process:
        pipe.started(process.pid)
        assert process.stdout is not None
        process.stdout.readline()
        time.sleep(delay)
        pipe.cancel(1)
        assert process.stdout.read() == "6\n"
    pipe.close()


def test_locks_of_the_standard_library_are_given_back() -> None:
    """A queue is usable after calls that were interrupted in it."""

    def body(interrupter: Interrupter, tell: Tell) -> object:
        things: queue.Queue[int] = queue.Queue()

        def use() -> None:
            while True:
                things.put(1)
                things.get()

        stuck = 0
        for call_id in range(1, 101):
            tell("running")
            outcome(lambda: interrupter.run(call_id, use))  # noqa: B023
            stuck += things.mutex.locked()
        return stuck

    with Child(body) as child:
        for call_id in range(1, 101):
            told = child.receive() if call_id == 1 else child.receive_while_cancelling(call_id - 1)
            assert told == "running"
        assert child.receive_while_cancelling(100) == 0


# -- our own code ---------------------------------------------------------------------------------


@pytest.mark.parametrize("block", ["paused", "shield"])
def test_a_pause_and_a_shield_are_left_before_it_comes(block: str) -> None:
    """Inside nothing is interrupted, on leaving it is."""

    def body(interrupter: Interrupter, tell: Tell) -> object:
        def function() -> None:
            with getattr(interrupter, block)():
                tell("running")
                busy(4 * REPEAT)
                tell("whole")
            tell("too far")

        return outcome(lambda: interrupter.run(1, function))

    with Child(body) as child:
        assert child.receive() == "running"
        assert child.receive_while_cancelling(1) == "whole"
        assert child.receive() == ["Interrupted", 1]


def test_shields_may_be_inside_each_other() -> None:
    """The outermost counts."""

    def body(interrupter: Interrupter, tell: Tell) -> object:
        def function() -> None:
            with interrupter.shield():
                with interrupter.shield():
                    tell("running")
                    busy(2 * REPEAT)
                busy(2 * REPEAT)
                tell("whole")
            tell("too far")

        return outcome(lambda: interrupter.run(1, function))

    with Child(body) as child:
        assert child.receive() == "running"
        assert child.receive_while_cancelling(1) == "whole"
        assert child.receive() == ["Interrupted", 1]


def test_a_shield_lasts_from_one_step_to_the_next() -> None:
    """A generator that yields in a shield goes on until it has left it."""

    def body(interrupter: Interrupter, tell: Tell) -> object:
        def items() -> Iterator[int]:
            with interrupter.shield():
                yield 1
                yield 2
            yield 3

        step = items().__next__
        seen = [interrupter.run(9, step)]
        tell("running")
        while not interrupter.is_cancelled(9):
            time.sleep(0)
        return [*seen, *(outcome(lambda: interrupter.step(9, step)) for _ in range(2))]

    with Child(body) as child:
        assert child.receive() == "running"
        assert child.receive_while_cancelling(9) == [1, 2, ["Interrupted", 9]]


def test_a_shield_that_outlives_its_call_protects_and_exposes_nothing() -> None:
    """Left by the collector after its call's end, it does not make our own code interruptible."""

    def body(interrupter: Interrupter, tell: Tell) -> object:
        def items() -> Generator[int, None, None]:
            with interrupter.shield():
                yield 1

        generator = items()
        interrupter.step(1, generator.__next__)
        generator.close()
        return [interrupter._armed, interrupter._shields]

    with Child(body) as child:
        assert child.receive() == [0, {}]


def test_calls_inside_calls_each_have_their_own_interruption() -> None:
    """Of a hundred, the innermost is stopped at once, one further out when it runs again."""

    def body(interrupter: Interrupter, tell: Tell) -> object:
        ended: list[object] = []

        def level(n: int) -> None:
            if n == 100:
                tell("running")
                spin()
            with interrupter.paused():
                ended.append(outcome(lambda: interrupter.run(n + 1, level, n + 1)))

        ended.append(outcome(lambda: interrupter.run(1, level, 1)))
        return ended

    with Child(body) as child:
        assert child.receive() == "running"
        child.pipe.cancel(50)
        assert child.receive(4 * REPEAT) is None
        ended = child.receive_while_cancelling(100)
    assert ended[0] == ["Interrupted", 100]
    assert ended[50] == ["Interrupted", 50]
    assert ended[1:50] == [None] * 49
    assert ended[51:] == [None] * 49


def test_a_pause_in_another_thread_does_not_concern_the_call() -> None:
    """The function's own threads may call us too."""

    def function(interrupter: Interrupter, tell: Tell) -> None:
        def elsewhere() -> None:
            with interrupter.paused(), interrupter.shield():
                tell("running")
                time.sleep(LONG)

        threading.Thread(target=elsewhere, daemon=True).start()
        spin()

    assert stop(function) == ["Interrupted", 1]


# -- which call -----------------------------------------------------------------------------------


def test_a_call_that_has_not_begun_never_does() -> None:
    """Its cancel was there before it."""

    def body(interrupter: Interrupter, tell: Tell) -> object:
        tell("running")
        while not interrupter.is_cancelled(3):
            time.sleep(0)

        def told(n: int) -> object:
            return outcome(lambda: interrupter.run(n, tell, n))

        return [told(n) for n in (2, 3, 4)]

    with Child(body) as child:
        assert child.receive() == "running"
        child.pipe.cancel(3)
        assert child.receive() == 2
        assert child.receive() == 4
        assert child.receive() == [None, ["Interrupted", 3], None]


def test_a_cancel_from_before_there_was_a_listener_counts() -> None:
    """What is in the pipe at the start raised no signal."""
    pipe = ControlPipe()
    pipe.cancel(1)
    try:
        interrupter = Interrupter(os.dup(pipe.child_fd))
        assert interrupter.is_cancelled(1)
        assert not interrupter.is_cancelled(2)
        interrupter.close()
    finally:
        pipe.close()


def test_other_calls_are_not_concerned() -> None:
    """A cancel of what has ended, or is yet to come, interrupts nothing."""

    def body(interrupter: Interrupter, tell: Tell) -> object:
        interrupter.run(1, int)
        tell("running")
        interrupter.run(2, busy, 6 * REPEAT)
        return "whole"

    with Child(body) as child:
        assert child.receive() == "running"
        assert child.receive_while_cancelling(1, 3) == "whole"


def test_steps_of_a_generator_are_interrupted_and_none_follows() -> None:
    """Between two of them nothing is; then the next is not made."""

    def body(interrupter: Interrupter, tell: Tell) -> object:
        def items() -> Iterator[int]:
            yield 1
            with contextlib.suppress(BaseException):
                tell("running")
                spin()
            yield 2
            tell("too far")

        step = items().__next__
        return [outcome(lambda: interrupter.step(5, step)) for _ in range(3)]

    with Child(body) as child:
        assert child.receive() == "running"
        assert child.receive_while_cancelling(5) == [1, 2, ["Interrupted", 5]]


def test_cancels_without_a_call_do_not_add_up() -> None:
    """The oldest of a great many are forgotten."""

    def body(interrupter: Interrupter, tell: Tell) -> object:
        tell("running")
        while not interrupter.is_cancelled(100_000):
            time.sleep(0)
        interrupter.forget(100_000)
        return [len(interrupter._cancelled), interrupter.is_cancelled(100_000)]

    with Child(body) as child:
        assert child.receive() == "running"
        for call_id in range(1, 100_001):
            child.pipe.cancel(call_id)
        count, forgotten = child.receive_while_cancelling(100_000)
        assert count <= interrupting.REMEMBERED
        assert not forgotten or count > 0


def test_signals_without_a_cancel_do_nothing() -> None:
    """A storm of them, from another thread, slows calls down at most."""

    def body(interrupter: Interrupter, tell: Tell) -> object:
        main, over = threading.get_ident(), False

        def storm() -> None:
            while not over:
                signal.pthread_kill(main, signal.SIGURG)
                time.sleep(0)

        thread = threading.Thread(target=storm)
        thread.start()
        results = [interrupter.run(n, sum, range(100)) for n in range(1, 5001)]
        over = True
        thread.join()
        return set(results)

    with Child(body) as child:
        assert child.receive() == {4950}


# -- beside others --------------------------------------------------------------------------------


@pytest.mark.parametrize("block", ["paused", "shield", "nothing"])
def test_sigterm_ends_it_in_any_case(block: str) -> None:
    """What ends the worker is not what a pause or a shield keeps away."""

    def body(interrupter: Interrupter, tell: Tell) -> object:
        cancelling.listen_in_plain_code(cancelling.Termination(), on_main_thread=True)

        def function() -> None:
            with nothing() if block == "nothing" else getattr(interrupter, block)():
                tell("running")
                spin()

        return [outcome(lambda: interrupter.run(1, function)), interrupter._armed]

    with Child(body) as child:
        assert child.receive() == "running"
        os.kill(child.pid, signal.SIGTERM)
        assert child.receive() == [["Terminated", "143"], 0]


def test_what_waits_in_the_base_layer_is_interrupted() -> None:
    """A function may talk over channels of its own."""

    def function(interrupter: Interrupter, tell: Tell) -> None:
        from forkwire.process import waiting

        waiting.wake_on_signals()
        reader, _ = os.pipe()
        tell("running")
        waiting.wait_blocking(reader, select.POLLIN, waiting.this_threads_waker())

    assert stop(function) == ["Interrupted", 1]


def test_what_a_function_forks_is_on_its_own() -> None:
    """A cancel is for the worker: its own child is not interrupted, and has no handler."""

    def body(interrupter: Interrupter, tell: Tell) -> object:
        def function() -> object:
            pid = os.fork()
            if pid == 0:
                tell("running")
                with interrupter.paused():
                    busy(4 * REPEAT)
                default = signal.getsignal(signal.SIGURG) is signal.SIG_DFL
                os._exit(0 if default and interrupting.current() is None else 1)
            with interrupter.paused():
                return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

        outcomes = [outcome(lambda: interrupter.run(1, function))]
        with contextlib.suppress(ChildProcessError):
            outcomes.append(os.waitstatus_to_exitcode(os.wait()[1]))
        return outcomes

    with Child(body) as child:
        assert child.receive() == "running"
        assert child.receive_while_cancelling(1) in ([["Interrupted", 1]], [["Interrupted", 1], 0])


def test_a_child_forked_off_the_main_thread_says_whether_it_hears() -> None:
    """Python 3.13 runs no handler there by itself: what blocks, or has not begun, is stopped."""

    def body(interrupter: Interrupter, tell: Tell) -> object:
        tell("running")
        asleep = outcome(lambda: interrupter.run(1, time.sleep, LONG))
        while not interrupter.is_cancelled(2):
            time.sleep(0)
        return [interrupter.hears, asleep, outcome(lambda: interrupter.run(2, spin))]

    children: list[Child] = []
    thread = threading.Thread(target=lambda: children.append(Child(body)))
    thread.start()
    thread.join()
    with children[0] as child:
        assert child.receive() == "running"
        hears, *ends = child.receive_while_cancelling(1, 2)
    assert hears == (sys.version_info < (3, 13))
    assert ends == [["Interrupted", 1], ["Interrupted", 2]]


def answer_until_terminated(
    input_channel: InputChannel, output_channel: OutputChannel, pipe: ControlPipe
) -> None:
    interrupter = Interrupter(pipe.child_fd)
    for call_id in range(1, 10):
        try:
            interrupter.run(call_id, time.sleep, LONG)
        except Interrupted as error:
            forkwire.sync.write_message(output_channel, str(error).encode())


@pytest.mark.anyio
@pytest.mark.parametrize("close_fds", [False, True])
async def test_a_worker_of_the_base_layer_is_interrupted_and_terminated(close_fds: bool) -> None:
    """The two ways to stop it do not get in each other's way."""
    pipe = ControlPipe()
    pipe.lend()
    async with await run(answer_until_terminated, pipe, close_fds=close_fds) as worker:
        pipe.started(worker.pid)
        for call_id in (1, 2, 3):
            answer: object = None
            while answer is None:
                pipe.cancel(call_id)
                with anyio.move_on_after(REPEAT):
                    answer = await read_message(worker.input_channel)
            assert answer == f"call {call_id} was cancelled".encode()
        worker.terminate()
    assert worker.returncode == -signal.SIGTERM
    pipe.close()


# -- its beginning and end ------------------------------------------------------------------------


def test_it_is_for_the_main_thread() -> None:
    """Elsewhere no signal is handled."""
    errors: list[BaseException] = []

    def make() -> None:
        try:
            Interrupter(-1)
        except UsageError as error:
            errors.append(error)

    thread = threading.Thread(target=make)
    thread.start()
    thread.join()
    assert "main thread" in str(errors[0])


def test_closing_takes_everything_back() -> None:
    """The descriptor, the handler and the hook."""
    pipe = ControlPipe()
    hook, before = sys.unraisablehook, signal.getsignal(signal.SIGURG)
    fd = os.dup(pipe.child_fd)
    interrupter = Interrupter(fd)
    assert interrupting.current() is interrupter
    interrupter.close()
    interrupter.close()
    assert interrupting.current() is None
    assert sys.unraisablehook is hook
    assert signal.getsignal(signal.SIGURG) == before
    assert fd not in ownership._owned
    with pytest.raises(OSError):
        os.fstat(fd)
    pipe.cancel(1)
    pipe.close()


def test_a_full_pipe_loses_no_cancel() -> None:
    """What has no room is written later; the host never waits."""
    pipe = ControlPipe()
    for call_id in range(1, 20_001):
        pipe.cancel(call_id)
    seen: set[int] = set()
    while data := read_some(pipe.child_fd):
        seen.update(int.from_bytes(data[i : i + 8], sys.byteorder) for i in range(0, len(data), 8))
        pipe.flush()
    assert seen == set(range(1, 20_001))
    pipe.close()


def read_some(fd: int) -> bytes:
    try:
        return os.read(fd, 4096)
    except BlockingIOError:
        return b""


def test_a_cancel_that_waits_is_dropped_with_its_call() -> None:
    """The host forgets a call that has ended."""
    pipe = ControlPipe()
    for call_id in range(1, 20_001):
        pipe.cancel(call_id)
    for call_id in range(1, 20_001):
        pipe.forget(call_id)
    assert not pipe._waiting
    pipe.close()


def test_a_worker_that_has_ended_is_not_cancelled() -> None:
    """Neither a pipe without a reader nor one that was closed is an error."""
    pipe = ControlPipe()
    pipe.started(0)
    pipe.cancel(1)
    assert not pipe._waiting
    pipe.close()
    pipe.close()
    pipe.cancel(2)


def test_the_hosts_end_is_in_no_child() -> None:
    """And the worker's end only in the one it was lent to."""
    pipe = ControlPipe()
    assert {pipe.child_fd, pipe._fd} <= ownership._owned.keys()
    assert pipe.fileno() == pipe.lend() == pipe.child_fd
    assert pipe.child_fd not in ownership._owned
    pipe.close()
    assert pipe._fd == pipe.child_fd == -1


def test_the_rules_name_modules_that_are_there() -> None:
    """A module that was moved would be taken for the user's code, or ours for unfinished."""
    named = [safe_frames.INTERRUPTING, safe_frames.WAITING, safe_frames.BELL[0]]
    for name in [*named, *(module.rstrip(".") for module in safe_frames.CALLING)]:
        assert importlib.util.find_spec(name) is not None

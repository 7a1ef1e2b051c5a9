"""Programs written with OCaml's Lwt_io, in both roles, against both of our fronts."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Final, NamedTuple

import anyio
import pytest

from forkwire import (
    EndOfFile,
    InputChannel,
    OutputChannel,
    ProcessWorkerIPCError,
    WriteOk,
    read_message,
    run,
    sync,
    write_message,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

HERE: Final = Path(__file__).parent
BUILD: Final = HERE / "_build"
PROGRAMS: Final = (
    "echo_child",
    "echo_parent",
    "faults_child",
    "prover_child",
    "prover_parent",
    "self_test",
)
FRONTS: Final = ("blocking", "asyncio", "uvloop", "trio")
DEADLINE: Final = 50.0

# Around nothing, the size's own width, a pipe's capacity, and far above.
SIZES: Final = (0, 1, 3, 4, 5, 65_531, 65_535, 65_536, 65_537, 1_048_576, 1_048_577)
MESSAGES: Final = [(bytes(range(251)) * (size // 251 + 1))[:size] for size in SIZES]

GREETING: Final = b"0 Ready"
QUERIES: Final = 10_000
INT32_MIN: Final = -(2**31)
INT32_MAX: Final = 2**31 - 1

Answer = tuple[int | EndOfFile, bytes | EndOfFile, bytes | EndOfFile]

# `make peers` has just built them: there, a missing one fails instead of being skipped.
REQUIRED: Final = os.environ.get("FORKWIRE_PEERS") == "required"

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.peers,
    pytest.mark.skipif(
        not REQUIRED and not all((BUILD / program).exists() for program in PROGRAMS),
        reason="the OCaml peers are not built: run `make peers` (see tests/peers/README.md)",
    ),
]


class Peer(NamedTuple):
    """A running program and our ends of the channels to it."""

    input_channel: InputChannel
    output_channel: OutputChannel
    process: subprocess.Popen[bytes]


@contextmanager
def started(
    *command: str | Path, standard: int | None = None, pass_fds: tuple[int, ...] = ()
) -> Iterator[subprocess.Popen[bytes]]:
    """A program that is waited for at the end, or killed where the test failed."""
    with subprocess.Popen(command, stdin=standard, stdout=standard, pass_fds=pass_fds) as process:
        try:
            yield process
        except BaseException:
            process.kill()
            raise


@contextmanager
def ocaml_child(program: str, *arguments: str) -> Iterator[Peer]:
    """An OCaml program that speaks over its stdin and stdout."""
    with started(BUILD / program, *arguments, standard=subprocess.PIPE) as process:
        input_channel = InputChannel.from_fd(taken(process.stdout))
        output_channel = OutputChannel.from_fd(taken(process.stdin))
        yield Peer(input_channel, output_channel, process)


def taken(stream: IO[bytes] | None) -> int:
    """A descriptor of our own for a pipe that Popen opened."""
    assert stream is not None
    with stream:
        return os.dup(stream.fileno())


@contextmanager
def ocaml_child_over_sockets(program: str) -> Iterator[Peer]:
    """An OCaml program that speaks over two sockets, whose numbers are its arguments."""
    our_input, its_output = socket.socketpair()
    its_input, our_output = socket.socketpair()
    theirs = (its_input.fileno(), its_output.fileno())
    with started(BUILD / program, *map(str, theirs), pass_fds=theirs) as process:
        its_input.close()
        its_output.close()
        input_channel = InputChannel.from_fd(our_input.detach())
        output_channel = OutputChannel.from_fd(our_output.detach())
        yield Peer(input_channel, output_channel, process)


# --- Echo: we are the parent


async def send_all(out: OutputChannel) -> None:
    for message in MESSAGES:
        assert isinstance(await write_message(out, message), WriteOk)


async def converse(inp: InputChannel, out: OutputChannel) -> None:
    """Every message there and back, one by one and then all in flight."""
    for message in MESSAGES:
        assert isinstance(await write_message(out, message), WriteOk)
        assert await read_message(inp) == message
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(send_all, out)
        assert [await read_message(inp) for _ in MESSAGES] == MESSAGES


async def finish(inp: InputChannel, out: OutputChannel) -> None:
    """Close, and see that the child has no more to say."""
    await out.aclose()
    assert await read_message(inp) == EndOfFile()
    await inp.aclose()


async def test_messages_come_back_from_an_ocaml_child() -> None:
    """Messages of 0 bytes to 1 MiB come back whole, in order, and the child sees our end."""
    with anyio.fail_after(DEADLINE), ocaml_child("echo_child") as child:
        await converse(child.input_channel, child.output_channel)
        await finish(child.input_channel, child.output_channel)
    assert child.process.returncode == 0


async def test_messages_come_back_over_sockets() -> None:
    """Sockets carry the same messages as pipes."""
    with anyio.fail_after(DEADLINE), ocaml_child_over_sockets("echo_child") as child:
        await converse(child.input_channel, child.output_channel)
        await finish(child.input_channel, child.output_channel)
    assert child.process.returncode == 0


def send_all_blocking(out: OutputChannel) -> None:
    for message in MESSAGES:
        sync.write_message(out, message)
    out.close()


def test_messages_come_back_to_the_blocking_front() -> None:
    """A thread that writes and one that reads have all messages in flight at once."""
    with ocaml_child("echo_child") as child:
        sending = threading.Thread(target=send_all_blocking, args=(child.output_channel,))
        sending.start()
        echoes = list(sync.messages(child.input_channel))
        sending.join()
        child.input_channel.close()
    assert echoes == MESSAGES
    assert child.process.returncode == 0


# --- Echo: we are the child


def assert_converses(parent: str, child: str, front: str) -> None:
    """Let an OCaml parent converse with one of our children: it exits 0 if all was right."""
    ours = [sys.executable, "-W", "error", str(HERE / child), front]
    ended = subprocess.run(
        [BUILD / parent, *ours], capture_output=True, check=False, timeout=DEADLINE
    )
    assert (ended.returncode, ended.stderr) == (0, b"")


@pytest.mark.parametrize("front", FRONTS)
def test_our_child_echoes_to_an_ocaml_parent(front: str) -> None:
    """An OCaml parent gets every message back from each of our fronts, and exit status 0."""
    assert_converses("echo_parent", "echo_child.py", front)


# --- The prover: we are the parent


def query_id(index: int) -> int:
    """All that an int32 holds: both ends of it, and the numbers around zero."""
    return {0: INT32_MIN, QUERIES - 1: INT32_MAX}.get(index, index - QUERIES // 2)


def query(index: int) -> bytes:
    """What cannot be proved starts with "!"."""
    mark = "!" if index % 10 == 3 else ""
    return f"{mark}query {index} {'x' * (index % 257)}".encode()


def expected_answer(index: int) -> Answer:
    question = query(index)
    if question.startswith(b"!"):
        return query_id(index), b"ERR", b"cannot prove " + question
    return query_id(index), b"OK", question[::-1]


EXPECTED: Final = [expected_answer(index) for index in range(QUERIES)]


async def ask_all(out: OutputChannel) -> None:
    """Write every query without waiting for an answer."""
    await write_message(out, GREETING)
    for index in range(QUERIES):
        await out.write_int(query_id(index))
        await write_message(out, query(index))


async def hear(inp: InputChannel) -> Answer:
    return await inp.read_int(), await read_message(inp), await read_message(inp)


async def prove_all(inp: InputChannel, out: OutputChannel) -> None:
    """Every query in flight, every answer in its turn."""
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(ask_all, out)
        assert [await hear(inp) for _ in range(QUERIES)] == EXPECTED


async def test_an_ocaml_prover_answers_in_order() -> None:
    """Ten thousand queries in flight are answered in order, bare ids, OK and ERR alike."""
    with anyio.fail_after(DEADLINE), ocaml_child("prover_child") as child:
        await prove_all(child.input_channel, child.output_channel)
        await finish(child.input_channel, child.output_channel)
    assert child.process.returncode == 0


def ask_all_blocking(out: OutputChannel) -> None:
    sync.write_message(out, GREETING)
    for index in range(QUERIES):
        sync.write_int(out, query_id(index))
        sync.write_message(out, query(index))
    out.close()


def hear_blocking(inp: InputChannel) -> Answer:
    return sync.read_int(inp), sync.read_message(inp), sync.read_message(inp)


def test_an_ocaml_prover_answers_the_blocking_front() -> None:
    """The blocking front writes in one thread and reads the same answers in another."""
    with ocaml_child("prover_child") as child:
        asking = threading.Thread(target=ask_all_blocking, args=(child.output_channel,))
        asking.start()
        answers = [hear_blocking(child.input_channel) for _ in range(QUERIES)]
        asking.join()
        assert sync.read_int(child.input_channel) == EndOfFile()
        child.input_channel.close()
    assert answers == EXPECTED
    assert child.process.returncode == 0


# --- The prover: we are the child


@pytest.mark.parametrize("front", FRONTS)
def test_our_child_proves_for_an_ocaml_parent(front: str) -> None:
    """An OCaml parent gets ten thousand answers in order from each of our fronts."""
    assert_converses("prover_parent", "prover_child.py", front)


# --- A forked worker that becomes an OCaml program


# The runner's own threads, such as trio's when it is a guest of pytest's loop, share no lock with
# a worker that execs at once.
forks = pytest.mark.filterwarnings("ignore::forkwire.ForkThreadsWarning")


async def become(inp: InputChannel, out: OutputChannel, program: str) -> None:
    """Turn this worker into ``program``, with the worker's channels for its stdin and stdout."""
    os.dup2(inp.fileno(), 0)
    os.dup2(out.fileno(), 1)
    os.execv(BUILD / program, [program])


@forks
async def test_a_worker_that_execs_ocaml_echoes() -> None:
    """The channels of `run` outlive an exec, and closing them ends the program with status 0."""
    with anyio.fail_after(DEADLINE):
        async with await run(become, "echo_child") as worker:
            await converse(worker.input_channel, worker.output_channel)
            await finish(worker.input_channel, worker.output_channel)
            assert await worker.wait() == 0
    assert worker.returncode == 0


@forks
async def test_a_worker_that_execs_ocaml_proves() -> None:
    """The prover's dialogue works over the channels of `run`, and leaving the block ends it."""
    with anyio.fail_after(DEADLINE):
        async with await run(become, "prover_child") as worker:
            await prove_all(worker.input_channel, worker.output_channel)
    assert worker.returncode == 0


@forks
async def test_terminate_ends_a_worker_that_execs_ocaml() -> None:
    """No signal mask or handler of ours keeps SIGTERM from a program that a worker became."""
    with anyio.fail_after(DEADLINE):
        async with await run(become, "echo_child", grace=DEADLINE) as worker:
            await converse(worker.input_channel, worker.output_channel)
            worker.terminate()
            assert await worker.wait() == -15


# --- Ends and faults


async def close_all(peer: Peer) -> None:
    await peer.output_channel.aclose()
    await peer.input_channel.aclose()


@pytest.mark.parametrize(
    ("fault", "truncated"),
    [("silent", False), ("half-a-size", True), ("size-only", True), ("half-a-payload", True)],
)
async def test_the_end_says_where_it_fell(fault: str, truncated: bool) -> None:
    """An OCaml child that breaks off is an end of file, truncated inside a message."""
    with anyio.fail_after(DEADLINE), ocaml_child("faults_child", fault) as child:
        assert await read_message(child.input_channel) == EndOfFile(truncated=truncated)
        await close_all(child)


async def test_a_negative_size_is_an_error() -> None:
    """A size below zero, as Lwt_io writes it, raises."""
    with anyio.fail_after(DEADLINE), ocaml_child("faults_child", "negative-size") as child:
        with pytest.raises(ProcessWorkerIPCError):
            await read_message(child.input_channel)
        await close_all(child)


async def test_a_bare_integer_may_be_negative() -> None:
    """The same four bytes are the number -1 where a bare integer is read."""
    with anyio.fail_after(DEADLINE), ocaml_child("faults_child", "negative-size") as child:
        assert await child.input_channel.read_int() == -1
        await close_all(child)


async def test_a_write_to_an_ended_child_is_an_end_of_file() -> None:
    """Once the OCaml child is gone, a write answers EndOfFile and raises nothing."""
    with anyio.fail_after(DEADLINE), ocaml_child("faults_child", "silent") as child:
        child.process.wait(DEADLINE)
        assert isinstance(await write_message(child.output_channel, b"too late"), EndOfFile)
        await close_all(child)


async def test_ocaml_takes_our_truncated_message_for_its_end() -> None:
    """Lwt_io answers End_of_file when we close after a size without its payload."""
    with anyio.fail_after(DEADLINE), ocaml_child("echo_child") as child:
        await child.output_channel.write_int(10)
        await finish(child.input_channel, child.output_channel)
    assert child.process.returncode == 0


# --- The OCaml side alone


@pytest.mark.parametrize("dialogue", ["echo", "prover", "sigterm"])
def test_ocaml_agrees_with_itself(dialogue: str) -> None:
    """The re-created module passes both dialogues, and its SIGTERM, with a forked OCaml worker."""
    subprocess.run([BUILD / "self_test", dialogue], check=True, timeout=DEADLINE)

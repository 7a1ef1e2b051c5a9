"""Whatever is printed or read on descriptors 0 to 2, the messages are untouched."""

from __future__ import annotations

import subprocess
import sys

import pytest

from .test_run_support import PRELUDE, program

NOISE = """
from forkwire.process import guard

def noise():
    print("printed")
    sys.stdout.flush() if sys.stdout else None
    print("printed", file=sys.stderr)
    for fd in (1, 2):
        try:
            os.write(fd, b"raw\\n")
        except OSError:
            pass
    libc = ctypes.CDLL(None)
    libc.printf(b"from C\\n")
    libc.fflush(None)
    subprocess.run(["sh", "-c", "echo from a subprocess; echo and its stderr >&2"])
    try:
        os.read(0, 10)
    except OSError:
        pass
    print("more", end="")

def plain(inp, out, arg):
    assert min(inp.fileno(), out.fileno()) > 2
    noise()
    for message in sync.messages(inp):
        noise()
        sync.write_message(out, message.upper())

async def asynchronous(inp, out, arg):
    assert min(inp.fileno(), out.fileno()) > 2
    noise()
    async for message in inp:
        noise()
        await write_message(out, message.upper())

async def main():
    for f in (plain, asynchronous):
        async with await run(f, None) as worker:
            assert min(worker.input_channel.fileno(), worker.output_channel.fileno()) > 2
            assert min(guard._connection, guard._table) > 2
            for message in (b"hello", b"x" * 100_000):
                await write_message(worker.output_channel, message)
                assert await read_message(worker.input_channel) == message.upper()
        assert worker.returncode == 0, worker

"""


@pytest.mark.parametrize("host", ["asyncio", "trio"])
def test_output_cannot_corrupt_the_messages(host: str) -> None:
    """print, os.write, C's printf, a subprocess and reads of stdin leave the messages alone."""
    done = program(NOISE + f"anyio.run(main, backend={host!r})", stdin=subprocess.DEVNULL)
    assert done.returncode == 0, done.stderr
    for text in ("printed", "raw", "from C", "from a subprocess"):
        assert done.stdout.count(text + "\n") == 6
    assert done.stdout.count("more") == 6
    assert done.stderr.count("and its stderr\n") == 6


@pytest.mark.parametrize("closed", ["0", "1", "2", "0 1 2"])
@pytest.mark.parametrize("host", ["asyncio", "trio"])  # libuv itself aborts
def test_no_channel_gets_the_number_of_a_standard_descriptor(host: str, closed: str) -> None:
    """With 0, 1 or 2 closed in the host, its messages, and the guard's, go elsewhere."""
    script = f"""
async def close_and_run():
    for fd in map(int, sys.argv[1].split()):
        os.close(fd)
        setattr(sys, ("stdin", "stdout", "stderr")[fd], None)
    await main()

try:
    anyio.run(close_and_run, backend={host!r})
except BaseException as error:
    os._exit(98)
os._exit(97)
"""
    done = program(NOISE + script, closed, stdin=subprocess.DEVNULL)
    assert done.returncode == 97, done.stderr


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_started_by_a_shell_that_closed_them(closed: str) -> None:
    """The interpreter itself began without them: so did its loop, and the guard."""
    source = PRELUDE + NOISE + "anyio.run(main)\nos._exit(97)"
    command = ["sh", "-c", f'exec "$@" {closed}', "sh", sys.executable, "-c", source]
    done = subprocess.run(command, capture_output=True, text=True, timeout=40)
    assert done.returncode == 97, done.stderr

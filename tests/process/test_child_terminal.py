"""Workers at a terminal. Each test runs a program in a terminal of its own."""

from __future__ import annotations

import contextlib
import os
import pty
import select
import signal
import sys
import termios
import textwrap
import time
from collections.abc import Iterator

import pytest

from .test_run_support import PRELUDE

DEADLINE = 30.0


class Terminal:
    """The keyboard and the screen of a program."""

    def __init__(self, fd: int, pid: int) -> None:
        self.fd = fd
        self.pid = pid
        self.text = ""

    def read_until(self, wanted: str) -> str:
        """What appears up to and with ``wanted``; an empty one: up to the end."""
        deadline = time.monotonic() + DEADLINE
        while not (wanted and wanted in self.text):
            assert time.monotonic() < deadline, self.text
            if not select.select([self.fd], [], [], 1)[0]:
                continue
            try:
                self.text += os.read(self.fd, 65536).decode().replace("\r\n", "\n")
            except OSError:  # EIO: everybody left the terminal
                assert not wanted, self.text
                break
        return self.text

    def press(self, key: str) -> None:
        os.write(self.fd, key.encode())

    def close(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def status(self) -> int:
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])


@contextlib.contextmanager
def terminal(source: str, tostop: bool = False) -> Iterator[Terminal]:
    """Run a script as the leader of a session, whose terminal we hold the other end of."""
    leader, follower = pty.openpty()
    if tostop:
        modes = termios.tcgetattr(follower)
        modes[3] |= termios.TOSTOP
        termios.tcsetattr(follower, termios.TCSANOW, modes)
    name = os.ttyname(follower)
    boot = (
        "import os, sys; os.setsid(); fd = os.open(sys.argv[1], os.O_RDWR); "
        "[os.dup2(fd, n) for n in (0, 1, 2)]; os.close(fd); "
        "os.execv(sys.executable, [sys.executable, '-W', 'error', '-c', sys.argv[2]])"
    )
    arguments = [sys.executable, "-S", "-c", boot, name, PRELUDE + textwrap.dedent(source)]
    pid = os.posix_spawn(sys.executable, arguments, {**os.environ, "NO_COLOR": "1"})
    screen = Terminal(leader, pid)
    try:
        screen.read_until("ready\n")
        os.close(follower)
        yield screen
    finally:
        with contextlib.suppress(ProcessLookupError, ChildProcessError):
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
        screen.close()


CTRL_C = """
def plain(inp, out, arg):
    sync.write_message(out, b"")
    time.sleep(60)

def reader(inp, out, arg):
    sync.write_message(out, b"")
    sync.read_message(inp)

async def asynchronous(inp, out, arg):
    await write_message(out, b"")
    await anyio.sleep_forever()

async def main():
    workers = [await run(f, None, grace=0.2) for f in (plain, reader, asynchronous)]
    try:
        for worker in workers:
            await read_message(worker.input_channel)
        print("ready")
        await anyio.sleep_forever()
    finally:
        with anyio.CancelScope(shield=True):
            for worker in workers:
                await worker.aclose()
        print([worker.returncode for worker in workers])
"""


@pytest.mark.parametrize("host", ["asyncio", "uvloop", "trio"])
def test_ctrl_c_ends_the_host_and_the_host_ends_the_workers(host: str) -> None:
    """No worker prints a traceback; the program's own KeyboardInterrupt is all there is."""
    options = {"uvloop": "backend_options={'use_uvloop': True}"}.get(host, f"backend={host!r}")
    source = f"""
{CTRL_C}
try:
    anyio.run(main, {options})
except KeyboardInterrupt:
    print("interrupted")
    sys.exit(130)
"""
    with terminal(source) as screen:
        screen.press("\x03")
        text = screen.read_until("")
        assert screen.status() == 130
    assert text.replace("^C", "") == "ready\n[-15, 0, -15]\ninterrupted\n"


def test_ctrl_c_in_a_program_that_handles_nothing() -> None:
    """One traceback, the host's."""
    with terminal(CTRL_C + "anyio.run(main)") as screen:
        screen.press("\x03")
        text = screen.read_until("")
        assert screen.status() in (-signal.SIGINT, 1, 130)
    assert "[-15, 0, -15]" in text
    assert text.rstrip().endswith("KeyboardInterrupt")
    assert "in plain" not in text
    assert "in reader" not in text
    assert "in asynchronous" not in text


def test_ctrl_c_that_the_host_ignores_does_not_reach_the_workers() -> None:
    """Three times, and the worker still answers."""
    source = """
    def f(inp, out, arg):
        for message in sync.messages(inp):
            sync.write_message(out, message)

    async def main():
        async with await run(f, None) as worker:
            print("ready")
            for number in b"123":
                assert await anyio.to_thread.run_sync(input) == ""
                await write_message(worker.output_channel, b"still here %c" % number)
                print(await read_message(worker.input_channel))
        print(worker.returncode)

    signal.signal(signal.SIGINT, lambda number, frame: None)
    anyio.run(main)
    """
    with terminal(source) as screen:
        for number in "123":
            screen.press("\x03\n")
            screen.read_until(f"still here {number}")
        assert screen.read_until("").endswith("0\n")
        assert screen.status() == 0


@pytest.mark.parametrize("how", ["sys.stdin.readline()", "os.read(0, 1)", "input()"])
def test_a_worker_that_reads_the_terminal_does_not_stop(how: str) -> None:
    """It is in the terminal's background: the read fails, and the worker goes on."""
    source = f"""
    def f(inp, out, arg):
        try:
            {how}
        except (OSError, EOFError):
            sync.write_message(out, b"refused")

    async def main():
        print("ready")
        async with await run(f, None, grace=20) as worker:
            with anyio.fail_after(15):
                assert await read_message(worker.input_channel) == b"refused"
        print("status", worker.returncode)

    anyio.run(main)
    """
    with terminal(source) as screen:
        assert screen.read_until("").endswith("status 0\n")


def test_a_worker_that_prints_does_not_stop() -> None:
    """Where the terminal stops background writers (stty tostop), its output appears."""
    source = """
    def f(inp, out, arg):
        print("from the worker", flush=True)
        os.write(2, b"and its stderr\\n")

    async def main():
        print("ready")
        async with await run(f, None, grace=20) as worker:
            with anyio.fail_after(15):
                await worker.wait()
        print("status", worker.returncode)

    anyio.run(main)
    """
    with terminal(source, tostop=True) as screen:
        text = screen.read_until("")
    assert text == "ready\nfrom the worker\nand its stderr\nstatus 0\n"


def test_the_workers_go_when_the_terminal_does() -> None:
    """Closing the window ends the host, and with it every worker."""
    source = """
    def f(inp, out, pipe):
        sync.write_message(out, b"")
        time.sleep(60)

    async def main():
        async with await run(f, None) as worker:
            await read_message(worker.input_channel)
            print(worker.pid, "ready")
            await anyio.sleep_forever()

    anyio.run(main)
    """
    with terminal(source) as screen:
        worker = int(screen.text.split()[0])
        gone = os.pidfd_open(worker)
        screen.close()
        assert screen.status() == -signal.SIGHUP
        assert select.select([gone], [], [], DEADLINE)[0]
        os.close(gone)

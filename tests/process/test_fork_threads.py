"""Forking beside other threads, and from threads that do not live long."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys

import pytest

from .test_run_support import PRELUDE, program

QUIET = ("-W", "error", "-W", "ignore::RuntimeWarning")

WARNED = """
import warnings

def idle(inp, out, arg):
    sync.read_message(inp)

async def start():
    async with await run(idle, None):
        pass

def warned(times=1):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(times):
            anyio.run(start, backend=sys.argv[1])
    for warning in caught:
        print(warning.category.__name__, os.path.basename(warning.filename), warning.message)

release = threading.Event()
"""


@pytest.mark.parametrize("host", ["asyncio", "trio"])
def test_a_fork_beside_threads_warns_once_and_names_them(host: str) -> None:
    """One ForkThreadsWarning at the caller's line; CPython's own is not seen."""
    done = program(
        WARNED
        + """
warned()
threads = [threading.Thread(target=release.wait, name=name) for name in ("first", "second")]
for thread in threads:
    thread.start()
warned(3)
release.set()
for thread in threads:
    thread.join()
""",
        host,
    )
    assert done.stderr == ""
    (line,) = done.stdout.splitlines()
    assert line.startswith("ForkThreadsWarning <string> forking while other threads run")
    assert "'first' at " in line
    assert "'second' at " in line
    assert 'Use start="template"' in line


@pytest.mark.parametrize("host", ["asyncio", "trio", "none"])
def test_the_warning_names_the_line_that_opens_a_worker(host: str) -> None:
    """However many of our own functions are in between."""
    done = program(
        """
import forkwire, math, warnings

release = threading.Event()
threading.Thread(target=release.wait).start()

async def start():
    async with forkwire.open_worker(math, start="fork"):  # this line
        pass

def start_without():
    with sync.open_worker(math, start="fork"):  # this line
        pass

with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    if sys.argv[1] == "none":
        start_without()
    else:
        anyio.run(start, backend=sys.argv[1])
release.set()
(warning,) = caught
print(warning.filename, warning.lineno)
""",
        host,
    )
    assert done.stderr == ""
    name, line = done.stdout.split()
    assert name == "<string>"
    source = done.args[-2] if isinstance(done.args, list) else ""
    assert source.splitlines()[int(line) - 1].endswith("# this line")


def test_many_threads_are_counted() -> None:
    """Only the first few are named."""
    done = program(
        WARNED
        + """
threads = [threading.Thread(target=release.wait, name=f"<{n}>") for n in range(12)]
for thread in threads:
    thread.start()
warned()
release.set()
""",
        "asyncio",
    )
    assert done.stderr == ""
    assert done.stdout.count("'<") == 8
    assert "4 more" in done.stdout


@pytest.mark.skipif(sys.platform != "linux", reason="only /proc knows of them")
def test_threads_that_python_does_not_know_of_are_counted() -> None:
    """One that C code started has no name here."""
    done = program(
        WARNED
        + """
libc = ctypes.CDLL(None)
libc.pause.restype = ctypes.c_int
handle = ctypes.c_ulong()
assert libc.pthread_create(ctypes.byref(handle), None, libc.pause, None) == 0
warned()
os._exit(0)
""".replace("os._exit(0)", "sys.stdout.flush()\nos._exit(0)"),
        "asyncio",
    )
    assert done.stderr == ""
    assert "(1 not started by Python)" in done.stdout


def test_as_an_error_the_warning_is_raised_before_the_fork() -> None:
    """Nothing is left open, and the next call works."""
    done = program(
        """
        async def main():
            before = os.listdir("/proc/self/fd")
            try:
                await run(lambda inp, out, arg: None, None)
            except ForkThreadsWarning as error:
                print("refused")
            assert os.listdir("/proc/self/fd") == before
            async with await run(lambda inp, out, arg: sync.write_message(out, b"ok"), None) as w:
                print(await read_message(w.input_channel))

        release = threading.Event()
        thread = threading.Thread(target=release.wait)
        thread.start()
        anyio.run(main)
        release.set()
        """
    )
    assert (done.stdout, done.stderr) == ("refused\nb'ok'\n", "")


@pytest.mark.parametrize("host", ["asyncio", "trio"])
def test_a_worker_outlives_the_thread_that_forked_it(host: str) -> None:
    """PR_SET_PDEATHSIG would fire at the thread's end; the handle goes on in another loop."""
    done = program(
        """
        def plain(inp, out, arg):
            for message in sync.messages(inp):
                sync.write_message(out, message)

        async def asynchronous(inp, out, arg):
            async for message in inp:
                await write_message(out, message)

        async def start():
            workers.extend([await run(plain, None), await run(asynchronous, None)])

        async def use():
            for worker in workers:
                async with worker:
                    for _ in range(20):
                        await write_message(worker.output_channel, b"hello")
                        assert await read_message(worker.input_channel) == b"hello"
                print(worker.returncode)

        workers = []
        tid = []
        def forking():
            tid.append(threading.get_native_id())
            anyio.run(start, backend=sys.argv[1])
        thread = threading.Thread(target=forking)
        thread.start()
        thread.join()
        while os.path.exists(f"/proc/self/task/{tid[0]}"):  # the kernel's end of it
            time.sleep(0.001)
        anyio.run(use, backend=sys.argv[1])
        """,
        host,
        options=QUIET,
    )
    assert (done.stdout, done.stderr) == ("0\n0\n", "")


HOST = """
def descend():
    child = os.fork()
    if child == 0:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        time.sleep(300)

def plain(inp, out, how):
    descend()
    sync.write_message(out, b"ready")
    if how == "sleeps":
        time.sleep(300)
    elif how == "loops":
        while True:
            pass
    elif how == "in C":
        sum(range(10**12))
    else:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        time.sleep(300)

async def asynchronous(inp, out, arg):
    descend()
    await write_message(out, b"ready")
    await anyio.sleep_forever()

async def main():
    workers = [await run(plain, how, grace=0.5) for how in HOWS]
    workers.append(await run(asynchronous, None, grace=0.5))
    for worker in workers:
        await read_message(worker.input_channel)
    os.write(1, b"ready")
    await anyio.sleep_forever()

HOWS = sys.argv[2:]
if sys.argv[1] == "main":
    anyio.run(main)
else:
    thread = threading.Thread(target=anyio.run, args=(main,))
    thread.start()
    thread.join()
"""


@pytest.mark.parametrize("thread", ["main", "another"])
def test_a_host_that_is_killed_leaves_no_worker_and_no_descendant(thread: str) -> None:
    """SIGKILL, whatever the workers do, from whatever thread they were forked."""
    hows = ("sleeps", "loops", "in C", "ignores")
    command = [sys.executable, *QUIET, "-c", PRELUDE + HOST, thread, *hows]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as host:
        assert host.stdout is not None
        fd = host.stdout.fileno()
        assert os.read(fd, 100) == b"ready"
        host.send_signal(signal.SIGKILL)
        assert select.select([fd], [], [], 20)[0]
        assert os.read(fd, 100) == b""  # all who held its stdout are gone

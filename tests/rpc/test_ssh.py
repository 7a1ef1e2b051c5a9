"""Workers over a real ssh, to an sshd of this user's own on the loopback: `make ssh`."""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from forkwire import open_worker
from forkwire import sync as blocking
from forkwire.sync import SyncWorker

from .support_sync import is_running, path_with_services, until
from .test_stdio import guards_of, in_a_thread, written

SSHD: Final = shutil.which("sshd", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")

REQUIRED: Final = os.environ.get("FORKWIRE_SSH") == "required"

pytestmark = [
    pytest.mark.ssh,
    pytest.mark.anyio,
    pytest.mark.skipif(
        not REQUIRED and (SSHD is None or not shutil.which("ssh")), reason="needs sshd and ssh"
    ),
]

CONFIG: Final = """
HostKey {folder}/host_key
AuthorizedKeysFile {folder}/key.pub
PidFile none
StrictModes no
UsePAM no
PasswordAuthentication no
PermitRootLogin prohibit-password
"""
OPTIONS: Final = ("BatchMode=yes", "StrictHostKeyChecking=no", "UserKnownHostsFile=/dev/null",
                  "LogLevel=ERROR", "IdentitiesOnly=yes")  # fmt: skip


@pytest.fixture(scope="module")
def ssh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[str]]:
    """The command that gets to the server, which has keys and a port of its own."""
    folder = tmp_path_factory.mktemp("sshd")
    for name in ("host_key", "key"):
        command = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / name)]
        subprocess.run(command, check=True)
    (folder / "config").write_text(CONFIG.format(folder=folder))
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    if os.getuid() == 0:
        Path("/run/sshd").mkdir(exist_ok=True)  # where it shuts itself in
    assert SSHD is not None
    server = subprocess.Popen(
        [SSHD, "-D", "-e", "-f", str(folder / "config"), "-p", str(port),
         "-o", "ListenAddress=127.0.0.1"]
    )  # fmt: skip
    try:
        until(lambda: answers(port) or server.poll() is not None)
        options = [word for option in OPTIONS for word in ("-o", option)]
        yield ["ssh", *options, "-i", str(folder / "key"), "-p", str(port), "127.0.0.1"]
    finally:
        server.terminate()
        server.wait()


def answers(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port)).close()
    except ConnectionRefusedError:
        return False
    return True


def serving(service: str) -> str:
    """What runs there, where the environment is not ours."""
    serve = [sys.executable, "-m", "forkwire", "serve", service, "--stdio", "--grace=0.5"]
    return shlex.join(["env", f"PYTHONPATH={path_with_services()}", *serve])


def opened(ssh: list[str]) -> SyncWorker:
    return blocking.open_worker(command=[*ssh, serving("far:PLAIN")], stdio=True)


async def test_calls_over_ssh(ssh: list[str]) -> None:
    """From each of the loops, with arguments and results larger than its windows."""
    async with open_worker(command=[*ssh, serving("plain")], stdio=True) as worker:
        assert await worker.call("add", 1, 2) == 3
        assert [n async for n in worker.stream("count", 100)] == list(range(100))
        assert len(await worker.call("echo", b"x" * 5_000_000)) == 5_000_000
    assert worker.returncode == 0


def test_prints_over_ssh(ssh: list[str], capfd: pytest.CaptureFixture[str]) -> None:
    """They come out at the host's stderr."""
    with opened(ssh) as worker:
        assert worker.call("prints") == ""
        assert worker.call("add", 1, 2) == 3
    said = capfd.readouterr()
    assert said.out == ""
    assert "] by C\n" in said.err


@pytest.mark.parametrize("how", ["sleeps", "computes"])
def test_a_cancel_over_ssh(how: str, ssh: list[str], tmp_path: Path) -> None:
    """The function stops, the worker stays."""
    with opened(ssh) as worker:
        with pytest.raises(TimeoutError):
            worker.options(timeout=0.2).call(how, str(tmp_path / "begun"))
        assert worker.call("stopped") == 1


@pytest.mark.parametrize("how", ["sleeps", "in_c", "ignores", "descends"])
@pytest.mark.parametrize("who", ["ssh", "sshd"])
def test_a_connection_that_is_killed(how: str, who: str, ssh: list[str], tmp_path: Path) -> None:
    """At either end: nothing is left there."""
    begun = tmp_path / "begun"
    with opened(ssh) as worker:
        pid = worker.call("pid")
        in_a_thread(worker, how, str(begun))
        last = written(begun)
        if who == "ssh":
            worker.kill()
        else:
            os.kill(session_of(pid), signal.SIGKILL)
        until(lambda: not (is_running(pid) or is_running(last) or guards_of(pid)))
        until(lambda: worker.returncode is not None)


def session_of(pid: int) -> int:
    """The sshd that ``pid`` descends from, perhaps through a shell."""
    while True:
        status = Path(f"/proc/{pid}/stat").read_text()
        pid = int(status.rpartition(")")[2].split()[1])
        if Path(f"/proc/{pid}/comm").read_text().startswith("sshd"):
            return pid


def test_an_orderly_end_over_ssh(ssh: list[str], tmp_path: Path) -> None:
    """Notifications run, and no process is left."""
    with opened(ssh) as worker:
        pid = worker.call("pid")
        worker.notify("note", str(tmp_path / "done"))
    assert (tmp_path / "done").exists()
    assert worker.returncode == 0
    until(lambda: not (is_running(pid) or guards_of(pid)))

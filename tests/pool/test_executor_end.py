"""What becomes of an executor's calls and workers when its program forks, or ends."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

import forkwire
from forkwire import ProcessExecutor

from . import support_executor as there


def run_script(source: str, *arguments: object, status: int = 0) -> tuple[str, str]:
    """What a program prints to stdout and to stderr."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", textwrap.dedent(source), *map(str, arguments)],
        capture_output=True, text=True, timeout=50, check=False,
    )  # fmt: skip
    assert done.returncode == status, done.stderr
    return done.stdout, done.stderr


@pytest.mark.parametrize("ending", ["", "executor.shutdown(wait=False)", "del executor"])
@pytest.mark.parametrize("start", ["template", "exec", "fork"])
def test_the_end_of_a_program_waits_for_its_calls(ending: str, start: str) -> None:
    """None is lost, also of those that had not begun; nothing hangs."""
    output, errors = run_script(f"""
        import time, forkwire
        executor = forkwire.ProcessExecutor(2, start={start!r})
        def done(future): print("done", future.result(), flush=True)
        for n in range(5):
            executor.submit(pow, n, 2).add_done_callback(done)
        {ending}
        print("end of the script", flush=True)
    """)
    assert sorted(output.splitlines()) == sorted(
        ["end of the script", *(f"done {n * n}" for n in range(5))]
    )
    assert errors == ""


def test_the_end_stops_nothing_that_runs(tmp_path: Path) -> None:
    """A call that takes its time has it."""
    run_script("""
        import sys, time, pathlib, forkwire
        executor = forkwire.ProcessExecutor(1)
        def slow(path): time.sleep(0.5); pathlib.Path(path).touch()
        executor.submit(slow, sys.argv[1])
    """, tmp_path / "written")  # fmt: skip
    assert (tmp_path / "written").exists()


def test_no_calls_when_the_interpreter_ends() -> None:
    """In concurrent.futures' words."""
    output, _ = run_script("""
        import atexit, forkwire
        executor = forkwire.ProcessExecutor(1)
        executor.submit(int).result()
        @atexit.register
        def late():
            try: executor.submit(int)
            except RuntimeError as error: print(error)
    """)
    assert "cannot schedule new futures after" in output


def test_an_error_at_the_end_of_a_program_hangs_nothing() -> None:
    """The workers are gone with it."""
    output, errors = run_script("""
        import os, forkwire
        executor = forkwire.ProcessExecutor(2)
        print(executor.submit(os.getpid).result(), flush=True)
        raise SystemExit("enough")
    """, status=1)  # fmt: skip
    assert errors == "enough\n"
    assert not os.path.exists(f"/proc/{output.strip()}")


def test_exit_without_cleanup_leaves_no_worker() -> None:
    """Not even os._exit does."""
    output, _ = run_script("""
        import os, time, forkwire
        executor = forkwire.ProcessExecutor(1)
        print(executor.submit(os.getpid).result(), flush=True)
        executor.submit(time.sleep, 60)
        os._exit(0)
    """)
    pid = int(output)
    there.until(lambda: not os.path.exists(f"/proc/{pid}") or zombie(pid))


def zombie(pid: int) -> bool:
    try:
        return ") Z " in Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return True


def test_a_fork_of_the_host_harms_nothing(tmp_path: Path) -> None:
    """Here it goes on; in the child it says whose it is, and its end ends nothing."""
    report = tmp_path / "report"
    with ProcessExecutor(1) as executor:
        pid = executor.submit(os.getpid).result()
        child = os.fork()
        if child == 0:
            try:
                executor.submit(int)
            except BaseException as error:
                report.write_text(f"{type(error).__name__} {error}")
            executor.shutdown()
            del executor
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0
        assert executor.submit(os.getpid).result() == pid
    expected = f"UsageError this executor belongs to process {os.getpid()}"
    assert report.read_text().startswith(expected)


def test_a_child_that_ends_as_programs_do_ends_nothing() -> None:
    """With the functions that run at the end of an interpreter."""
    output, errors = run_script("""
        import os, sys, forkwire
        executor = forkwire.ProcessExecutor(1)
        pid = executor.submit(os.getpid).result()
        child = os.fork()
        if child == 0:
            sys.exit(0)
        os.waitpid(child, 0)
        print(executor.submit(os.getpid).result() == pid)
    """)
    assert (output, errors) == ("True\n", "")


def test_ctrl_c_at_the_end_ends_it() -> None:
    """When the end of a program waits for calls, Ctrl-C is heard, and leaves no worker."""
    process = subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", textwrap.dedent("""
            import os, signal, time, forkwire
            signal.signal(signal.SIGINT, signal.default_int_handler)
            executor = forkwire.ProcessExecutor(1)
            print(executor.submit(os.getpid).result(), flush=True)
            executor.submit(time.sleep, 600)
        """)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout is not None
    worker = int(process.stdout.readline())
    there.until(lambda: waits_at_its_end(process.pid) or process.poll() is not None)
    process.send_signal(2)
    process.communicate(timeout=there.LIMIT)
    assert not os.path.exists(f"/proc/{worker}") or zombie(worker)


def waits_at_its_end(pid: int) -> bool:
    """Whether its main thread sleeps, after all that it printed."""
    state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    return state == "S"


def test_it_is_nobodys_module_until_it_is_used() -> None:
    """``import forkwire`` brings neither multiprocessing nor concurrent.futures' processes."""
    output, _ = run_script("""
        import sys, forkwire
        print([n for n in ("multiprocessing", "concurrent.futures.process", "cloudpickle", "joblib")
               if n in sys.modules])
        forkwire.ProcessExecutor
        print([n for n in ("cloudpickle", "joblib") if n in sys.modules])
    """)
    assert output == "[]\n[]\n"


def test_a_worker_imports_little() -> None:
    """Nothing that only the host needs; multiprocessing is for its key."""
    unwanted = ["trio", "uvloop", "numpy", "cloudpickle", "concurrent.futures.process",
                "forkwire.pool.executor", "forkwire.rpc.worker"]  # fmt: skip
    with ProcessExecutor(1, start="exec") as executor:
        found = executor.submit(there.loaded, unwanted).result()
    assert found == []


def test_names_are_public() -> None:
    """As documented."""
    assert forkwire.ProcessExecutor is ProcessExecutor
    assert "ProcessExecutor" in forkwire.__all__

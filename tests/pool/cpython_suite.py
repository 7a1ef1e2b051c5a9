"""Runs CPython's own tests of ``ProcessPoolExecutor`` against `ProcessExecutor`.

    python tests/pool/cpython_suite.py [-v] [NAME_PART...]

Prints one line of JSON: how many ran, were skipped by CPython itself, were left out here, and what
failed. What is left out is in `LEFT_OUT`, each with its reason. Needs an interpreter that ships
``test.test_concurrent_futures`` as a package (3.12 and later, where the tests are installed).
"""

from __future__ import annotations

import concurrent.futures
import faulthandler
import fnmatch
import functools
import importlib
import json
import os
import re
import signal
import sys
import time
import unittest
import warnings
from typing import Any, cast

import forkwire
import forkwire.pool.executor as ours

PACKAGE = "test.test_concurrent_futures"
MODULES = (
    "test_as_completed", "test_deadlock", "test_init", "test_process_pool", "test_shutdown",
    "test_wait",
)  # fmt: skip

NO_PROCESSES = "not about processes"

# Patterns of names, and why.
LEFT_OUT = {
    "*ProcessPool*.test_killed_child": (
        "asserts that one dead worker breaks the executor: ours goes on"
    ),
    "*ProcessPool*.test_max_tasks_per_child_defaults_to_spawn_context": (
        "looks at _mp_context, which is not made here"
    ),
    "*ProcessPool*.test_python_finalization_error": (
        "mocks the second thread of CPython's executor: ours starts one"
    ),
    "*ProcessPool*.test_gh105829_should_not_deadlock_if_wakeup_pipe_full": (
        "mocks _ExecutorManagerThread and _ThreadWakeup"
    ),
    "*ProcessPool*.test_saturation": (
        "counts _processes right after submit: workers start in the background here"
    ),
    "*ProcessPool*Shutdown*.test_processes_terminate": "the same",
    "ProcessPoolSpawnFailingInitializerTest.*": (
        "a multiprocessing.Queue among the initargs can only be inherited: use start='fork', or a "
        "manager's queue"
    ),
    "ProcessPoolForkserverFailingInitializerTest.*": "the same",
    "FailingInitializerResourcesTest.*": "the same",
    "*ThreadPool*": NO_PROCESSES,
}

# A test that takes longer hangs.
LIMIT = 120

SUBSTITUTED = f"""\
import sys; sys.path.insert(0, {os.path.dirname(os.path.abspath(__file__))!r})
import cpython_suite; cpython_suite.substitute()
"""


class Process:
    """What tests want of a ``multiprocessing.Process``."""

    def __init__(self, pid: int) -> None:
        self.pid = pid

    def terminate(self) -> None:
        os.kill(self.pid, signal.SIGTERM)

    def join(self) -> None:
        """Fails the test if it does not end."""
        end = time.monotonic() + 30
        while os.path.exists(f"/proc/{self.pid}"):
            assert time.monotonic() < end, f"{self.pid} goes on"
            time.sleep(0.01)


class Queue:
    """There is none to join."""

    def join_thread(self) -> None: ...


class ProcessPoolExecutor(ours.ProcessExecutor):
    """Ours, with the private attributes that the tests look at."""

    _call_queue = Queue()

    @property
    def _processes(self) -> dict[int, Process]:
        while (found := self.statistics()).starting:
            time.sleep(0.01)
        return {pid: Process(pid) for pid in found.pids}

    @property
    def _executor_manager_thread(self) -> Any:
        return self._engine.thread


def substitute() -> None:
    """Have ``concurrent.futures.ProcessPoolExecutor`` be ours."""
    concurrent.futures.ProcessPoolExecutor = ProcessPoolExecutor  # type: ignore[assignment,misc]
    # With "fork" it forks beside other threads, as CPython's does: ours says so.
    warnings.simplefilter("ignore", forkwire.ForkThreadsWarning)


def run_script(original: Any, *args: Any, **options: Any) -> Any:
    """A script of the tests, with ours; prints of workers come with the worker's name here."""
    flag, code = args
    status, output, errors = original(flag, SUBSTITUTED + code, **options)
    return status, re.sub(rb"^\[executor \d+\] ", b"", output), errors


def why_left_out(test: unittest.TestCase) -> str | None:
    name = ".".join(test.id().split(".")[-2:])
    return next((why for part, why in LEFT_OUT.items() if fnmatch.fnmatchcase(name, part)), None)


def tests_of(suite: Any) -> Any:
    for item in suite:
        if isinstance(item, unittest.TestSuite):
            yield from tests_of(item)
        else:
            yield item


class Result(unittest.TextTestResult):  # type: ignore[type-arg,unused-ignore]
    """Ends the run where a test hangs."""

    def startTest(self, test: unittest.TestCase) -> None:  # noqa: N802
        super().startTest(test)
        faulthandler.dump_traceback_later(LIMIT, exit=True)


def main(arguments: list[str]) -> int:
    substitute()
    parts = [word for word in arguments if not word.startswith("-")]
    chosen = unittest.TestSuite()
    left_out: list[str] = []
    for name in MODULES:
        module: Any = importlib.import_module(f"{PACKAGE}.{name}")
        if name == "test_shutdown":  # runs scripts
            module.assert_python_ok = functools.partial(run_script, module.assert_python_ok)
        for test in tests_of(unittest.defaultTestLoader.loadTestsFromModule(module)):
            if parts and not any(part in test.id() for part in parts):
                continue
            if (why := why_left_out(test)) is None:
                chosen.addTest(test)
            elif why != NO_PROCESSES:
                left_out.append(test.id())
    runner = unittest.TextTestRunner(
        verbosity=2 if "-v" in arguments else 1,
        resultclass=cast("Any", Result),
        stream=sys.stderr,
    )
    result = runner.run(chosen)
    print(json.dumps({
        "ran": result.testsRun - len(result.skipped),
        "skipped": sorted({why for _, why in result.skipped}),
        "left_out": len(left_out),
        "failed": [test.id() for test, _ in result.failures + result.errors],
    }))  # fmt: skip
    return 0 if result.wasSuccessful() else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

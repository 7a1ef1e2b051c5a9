"""A backend for joblib: ``forkwire.register_joblib()``, then ``parallel_config("forkwire")``.

The only importer of joblib. One executor is kept between the calls of ``Parallel``, since starting
workers and importing numpy in each of them takes longer than many a call. While one is in use no
other backend has it, so that a ``Parallel`` in another thread can fail, and end it, alone.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from typing import Any, Final

from joblib import cpu_count, register_parallel_backend
from joblib.parallel import AutoBatchingMixin, ParallelBackendBase, SequentialBackend

from joblib._parallel_backends import FallbackToBackend  # isort: skip

from .executor import ProcessExecutor
from .executor_service import set_environment

__all__ = ["NAME", "ForkwireBackend", "register"]

NAME: Final = "forkwire"

# What `parallel_config(...)` may hand on to the executor.
OPTIONS: Final = frozenset(
    (
        "grace",
        "logging",
        "max_tasks_per_child",
        "mp_context",
        "preload",
        "retries",
        "start",
        "start_timeout",
    )
)


def register(*, default: bool) -> None:
    """What :func:`forkwire.register_joblib` does."""
    register_parallel_backend(NAME, ForkwireBackend, make_default=default)


class ForkwireBackend(AutoBatchingMixin, ParallelBackendBase):  # type: ignore[misc]
    """Runs joblib's batches in an executor."""

    supports_retrieve_callback = True
    supports_inner_max_num_threads = True

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self._executor: ProcessExecutor | None = None
        self._key: object = None
        self._users = 0  # generators may take turns

    def configure(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, n_jobs: int = 1, parallel: Any = None, prefer: str | None = None,
        require: str | None = None, **options: Any,
    ) -> int:  # fmt: skip
        """Find an executor; how many workers there are."""
        count = self.effective_n_jobs(n_jobs)
        if count == 1:
            raise FallbackToBackend(SequentialBackend(nesting_level=self.nesting_level))
        self.parallel = parallel
        given = {**getattr(self, "backend_kwargs", {}), **options}
        self._options = {name: value for name, value in given.items() if name in OPTIONS}
        self._find(count, self._prepare_worker_env(n_jobs=count))
        self._users += 1
        return count

    def _find(self, workers: int, environment: Mapping[str, str]) -> None:
        key = (workers, dict(environment), self._options, os.getpid())
        if self._users and self._key == key and is_usable(self._executor):
            return
        self._key = key
        self._executor = kept.take(key) or ProcessExecutor(
            workers,
            initializer=set_environment,
            initargs=(dict(environment),),
            name="joblib",
            **self._options,
        )

    def effective_n_jobs(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, n_jobs: int | None
    ) -> int:
        """As many workers as are asked for; negative numbers count from that of processors."""
        if n_jobs == 0:
            raise ValueError("n_jobs == 0 in Parallel has no meaning")
        if n_jobs is None:
            return 1
        return max(cpu_count() + 1 + n_jobs, 1) if n_jobs < 0 else n_jobs

    def submit(
        self, func: Callable[[], Any], callback: Callable[[Future[Any]], Any] | None = None
    ) -> Future[Any]:
        """Have a batch run."""
        assert self._executor is not None
        future = self._executor.submit(func)
        if callback is not None:
            future.add_done_callback(callback)
        return future

    def retrieve_result_callback(self, out: Future[Any]) -> Any:
        """What became of a batch."""
        return out.result()

    def terminate(self) -> None:
        """The end of a ``Parallel``; the workers wait for the next."""
        self._users = max(0, self._users - 1)
        if not self._users and self._executor is not None and is_usable(self._executor):
            kept.give_back(self._key, self._executor)
        self.reset_batch_stats()

    def abort_everything(self, ensure_ready: bool = True) -> None:
        """Something failed, or nobody wants the rest: end the workers with what they do."""
        if self._executor is not None:
            self._executor.kill_workers()
        if ensure_ready:
            self._users = max(0, self._users - 1)
            self.configure(n_jobs=self.parallel.n_jobs, parallel=self.parallel, **self._options)


class Kept:
    """The executor that was used last, for whoever wants the same again."""

    def __init__(self) -> None:
        self._lock: Final = threading.Lock()
        self._key: object = None
        self._executor: ProcessExecutor | None = None

    def take(self, key: object) -> ProcessExecutor | None:
        """The one that is kept, if it is such a one. Nobody else has it then."""
        with self._lock:
            if self._key != key or not is_usable(self._executor):
                return None
            found, self._executor = self._executor, None
            return found

    def give_back(self, key: object, executor: ProcessExecutor) -> None:
        """Keep it instead of the one that is kept."""
        with self._lock:
            old, self._executor, self._key = self._executor, executor, key
        if old is not None and old is not executor:
            old.shutdown(wait=False)


def is_usable(executor: ProcessExecutor | None) -> bool:
    """Whether it takes calls."""
    return executor is not None and not executor._broken and not executor._engine.closing


kept: Final = Kept()

"""joblib and scikit-learn over workers of ours."""

from __future__ import annotations

import os
import threading
import warnings
from collections.abc import Iterator
from typing import Any

import joblib
import numpy as np
import pytest
from sklearn.datasets import load_iris
from sklearn.model_selection import GridSearchCV
from sklearn.svm import SVC

import forkwire
from forkwire.pool import joblib_backend

from . import support_executor as there

forkwire.register_joblib()


@pytest.fixture(autouse=True)
def backend() -> Iterator[None]:
    """Two workers."""
    with joblib.parallel_config(backend="forkwire", n_jobs=2):
        yield


@pytest.fixture(scope="module", autouse=True)
def ended() -> Iterator[None]:
    """The executor that is kept is not left to other tests."""
    yield
    kept, joblib_backend.kept._executor = joblib_backend.kept._executor, None
    if kept is not None:
        kept.shutdown()


def test_results_come_in_order() -> None:
    """From other processes, of any function."""
    found = joblib.Parallel()(joblib.delayed(lambda n: n * n)(n) for n in range(50))
    assert found == [n * n for n in range(50)]
    pids = set(joblib.Parallel()(joblib.delayed(os.getpid)() for _ in range(20)))
    assert pids
    assert os.getpid() not in pids


def test_the_workers_are_kept() -> None:
    """Between one `Parallel` and the next."""
    joblib.Parallel()(joblib.delayed(int)() for _ in range(4))
    before = joblib_backend.kept._executor
    joblib.Parallel()(joblib.delayed(int)() for _ in range(4))
    assert joblib_backend.kept._executor is before


def hold_and_square(begun: str, go: str, number: int) -> int:
    there.hold(begun, go)
    return there.square(number)


@pytest.mark.parametrize("workers", [2, 3])
def test_one_in_another_thread_fails_alone(workers: int, tmp_path: Any) -> None:
    """With as many workers, or others: the first one goes on, and hands out more calls."""
    begun, go = tmp_path / "begun", tmp_path / "go"
    found: list[Any] = []

    def first() -> None:
        with joblib.parallel_config(backend="forkwire", n_jobs=2):
            job = joblib.delayed(hold_and_square)
            options: Any = {"batch_size": 1}
            found.extend(joblib.Parallel(**options)(job(begun, go, n) for n in range(30)))

    thread = threading.Thread(target=first)
    thread.start()
    there.until(begun.exists)
    with pytest.raises(ValueError, match="x"):
        joblib.Parallel(n_jobs=workers)(joblib.delayed(there.fail)("x") for _ in range(4))
    found_here = joblib.Parallel(n_jobs=workers)(joblib.delayed(there.square)(n) for n in range(3))
    go.touch()
    thread.join(there.LIMIT)
    assert found_here == [0, 1, 4]
    assert found == [n * n for n in range(30)]


def test_two_generators_take_turns() -> None:
    """Of one backend, which is theirs until both are done."""
    job = joblib.delayed(there.square)
    one: Any = joblib.Parallel(return_as="generator")(job(n) for n in range(9))
    other: Any = joblib.Parallel(return_as="generator")(job(n) for n in range(20))
    pairs = list(zip(one, other, strict=False))
    assert pairs == [(n * n, n * n) for n in range(9)]
    assert list(other) == [n * n for n in range(9, 20)]


def test_an_error_comes_back_and_the_next_goes_on() -> None:
    """As itself."""
    with pytest.raises(ValueError, match="x"):
        joblib.Parallel()(joblib.delayed(there.fail)("x") for _ in range(4))
    assert joblib.Parallel()(joblib.delayed(there.square)(n) for n in range(3)) == [0, 1, 4]


def test_a_death_comes_back_and_the_next_goes_on() -> None:
    """With its story."""
    with pytest.raises(forkwire.WorkerDied, match="SIGKILL"):
        joblib.Parallel()(joblib.delayed(there.crash)() for _ in range(2))
    assert joblib.Parallel()(joblib.delayed(there.square)(n) for n in range(3)) == [0, 1, 4]


def test_options_are_handed_on(tmp_path: Any) -> None:
    """Those of the executor, where the backend is chosen."""
    with joblib.parallel_config(backend="forkwire", n_jobs=2, retries=1):
        found = joblib.Parallel()([joblib.delayed(there.crash_once)(str(tmp_path / "flag"))])
    assert found == ["at last"]


@pytest.mark.parametrize(("inner", "expected"), [(3, "3"), (1, "1")])
def test_libraries_are_told_how_many_threads_to_use(inner: int, expected: str) -> None:
    """As joblib's own backend does, before they are imported."""
    with joblib.parallel_config(backend="forkwire", n_jobs=2, inner_max_num_threads=inner):
        found = joblib.Parallel()(joblib.delayed(os.getenv)("OMP_NUM_THREADS") for _ in range(2))
    assert found == [expected] * 2


def test_large_arrays_travel() -> None:
    """Beside joblib's batches, which hold them."""
    data = np.arange(300_000.0)
    found = joblib.Parallel()(joblib.delayed(np.sum)(data + n) for n in range(4))
    assert found == [float(np.sum(data + n)) for n in range(4)]


def nested(count: int) -> list[int]:
    found: Any = joblib.Parallel(n_jobs=2)(joblib.delayed(there.square)(n) for n in range(count))
    return list(found)


def test_parallel_may_be_nested() -> None:
    """The inner one runs in the worker."""
    assert joblib.Parallel()(joblib.delayed(nested)(n) for n in range(3)) == [[], [0], [0, 1]]


def test_results_as_they_are_made() -> None:
    """A generator, left early."""
    parallel = joblib.Parallel(return_as="generator")
    found: Any = parallel(joblib.delayed(there.square)(n) for n in range(9))
    assert next(found) == 0
    assert next(found) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # joblib's, of what is not used
        found.close()
    assert joblib.Parallel()(joblib.delayed(there.square)(n) for n in range(3)) == [0, 1, 4]


def test_one_job_is_done_here() -> None:
    """No worker for it."""
    with joblib.parallel_config(backend="forkwire", n_jobs=1):
        assert joblib.Parallel()(joblib.delayed(os.getpid)() for _ in range(2)) == [os.getpid()] * 2


@pytest.mark.slow
def test_a_grid_search_of_scikit_learn() -> None:
    """The same as without workers."""
    x, y = load_iris(return_X_y=True)
    grid = {"C": [0.1, 1, 10]}
    there_ = GridSearchCV(SVC(), grid, n_jobs=2).fit(x, y)
    here = GridSearchCV(SVC(), grid, n_jobs=1).fit(x, y)
    assert there_.best_params_ == here.best_params_
    assert np.allclose(there_.cv_results_["mean_test_score"], here.cv_results_["mean_test_score"])

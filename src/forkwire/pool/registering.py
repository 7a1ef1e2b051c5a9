"""How joblib is told of us.

Apart from the backend itself, since joblib takes numpy along, and that threads of its own.
"""

from __future__ import annotations

__all__ = ["register_joblib"]


def register_joblib(*, default: bool = False) -> None:
    """Have joblib know the backend ``"forkwire"``; ``default``: and use it unless told otherwise.

    ``with joblib.parallel_config(backend="forkwire", n_jobs=4)`` then runs all that is parallel
    by joblib, scikit-learn too, in workers of a :class:`forkwire.ProcessExecutor`. Its options
    (``retries``, ``start``, ``grace``, ``start_timeout``, ``max_tasks_per_child``) may be given
    there. Raises ImportError where joblib is not installed.
    """
    from .joblib_backend import register

    register(default=default)

"""The base layer: pipes, channels, and functions that run in forked workers."""

import os

if os.name != "posix":
    raise ImportError("Forkwire needs fork and pipes: use Linux or macOS (on Windows, WSL)")

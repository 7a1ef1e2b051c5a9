"""The ``forkwire`` command, also ``python -m forkwire``. Needs the extra ``cli``."""

from __future__ import annotations

import signal
import sys

EXTRA = {"cyclopts", "rich"}
HELP = {"--help", "-h"}


def main() -> int:
    """Run the command line; answer its exit status."""
    if sys.argv[1:2] == ["serve"] and HELP.isdisjoint(sys.argv):  # a worker, which imports little
        from .rpc.standalone import main as serve

        serve(sys.argv[2:])
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # ends us, until a command listens for it
    try:
        from .cli.app import run
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package not in EXTRA:
            raise
        print(f'forkwire: {package} is missing: pip install "forkwire[cli]"', file=sys.stderr)
        return 2
    return run()


if __name__ == "__main__":
    sys.exit(main())

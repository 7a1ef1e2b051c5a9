"""A worker on another machine: `python 29_over_ssh.py HOST`, where forkwire and calc.py are.

Without HOST a stand-in for ssh runs it here. Calls, streams, cancellation and prints are as ever.
"""

import shlex
import sys
from pathlib import Path

import anyio

import forkwire

HERE = Path(__file__).parent
FAR_SHELL = [sys.executable, str(HERE / "far_shell.py"), "here"]
SERVE = "-m forkwire serve calc --stdio --grace 1"


async def main() -> None:
    if sys.argv[1:]:
        command = ["ssh", sys.argv[1], f"python3 {SERVE}"]
    else:
        command = [*FAR_SHELL, f"cd {shlex.quote(str(HERE))} && {sys.executable} {SERVE}"]
    async with forkwire.open_worker(command=command, stdio=True, name="far") as worker:
        print(await worker.call("add", 1, 2))
        print([n async for n in worker.stream("count", 4)])
        with anyio.move_on_after(0.2) as scope:
            await worker.call("spin")
        print("stopped there:", scope.cancelled_caught)
        print("and still of use:", await worker.call("add", 3, 4))


anyio.run(main)

# Prints:
# 3
# [0, 1, 2, 3]
# stopped there: True
# and still of use: 7

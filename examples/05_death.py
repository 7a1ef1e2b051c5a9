"""A worker that crashes in C: its channel ends, and the host learns how it died."""

import ctypes

import anyio

from forkwire import InputChannel, OutputChannel, WorkerDied, read_message, run


def crash(inp: InputChannel, out: OutputChannel, address: int) -> None:
    ctypes.string_at(address)  # a segmentation fault


async def main() -> None:
    async with await run(crash, 0, capture_stderr=True) as worker:  # and it is passed on to ours
        print(await read_message(worker.input_channel))
        print("returncode", await worker.wait())
    try:
        worker.check_returncode()
    except WorkerDied as died:  # worker.died is the same, as a value
        print(died.signal_name, "-", died.reason)
        print(died.native_stack.splitlines()[0])
        print("it names the function:", "in crash" in died.native_stack)


anyio.run(main)

# Prints:
# EndOfFile(truncated=False)
# returncode -11
# SIGSEGV - was ended by SIGSEGV
# Fatal Python error: Segmentation fault
# it names the function: True

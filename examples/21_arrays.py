"""Arrays of numpy go as they are, beside the message, and come back as arrays. Needs numpy.

numpy has started threads, so the worker is a fresh interpreter, not a fork of this one.
"""

import anyio
import numpy as np

import forkwire


async def main() -> None:
    async with forkwire.open_worker("numpy.linalg", start="exec") as worker:
        print(await worker.call("inv", np.array([[2.0, 0.0], [0.0, 4.0]])))
        inverse = await worker.call("inv", 2 * np.eye(500))
        print(inverse.shape, inverse.dtype, inverse[0, 0])


anyio.run(main)

# Prints:
# [[0.5  0.  ]
#  [0.   0.25]]
# (500, 500) float64 0.5

"""One worker of a pool for a block alone, and one call to all of them."""

import anyio

import forkwire


class Session:
    def __init__(self) -> None:
        self.user = "nobody"

    def sign_in(self, name: str) -> None:
        self.user = name

    def who(self) -> str:
        return self.user


async def main() -> None:
    async with forkwire.open_pool(Session, size=2) as pool:
        print(len(await pool.broadcast("sign_in", "guest")), "signed in")
        async with pool.worker(fresh=True) as worker:  # replaced afterwards
            await worker.call("sign_in", "ada")
            print(await worker.call("who"), "here,", await pool.call("who"), "elsewhere")
        print(pool.statistics().recycled, "replaced")


anyio.run(main)

# Prints:
# 2 signed in
# ada here, guest elsewhere
# 1 replaced

"""An instance is a service with state: inherited as it is, whatever it holds, and kept there."""

import atexit
import sqlite3

import anyio

import forkwire


class Index:
    """Its table, of whatever size, is not sent: the worker has a copy of this process."""

    def __init__(self, words: list[str]) -> None:
        self.lengths = {word: len(word) for word in words}
        self.asked = 0

    def length(self, word: str) -> int | None:
        self.asked += 1
        return self.lengths.get(word)

    def statistics(self) -> dict[str, int]:
        return {"words": len(self.lengths), "asked": self.asked}


class Notes:
    """A class is made in the worker: for what must not be shared, such as a connection."""

    def __init__(self) -> None:
        self._database = sqlite3.connect(":memory:")
        atexit.register(self._database.close)  # when the worker ends
        self._database.execute("create table notes (text)")

    def add(self, text: str) -> int:
        self._database.execute("insert into notes values (?)", (text,))
        return int(self._database.execute("select count(*) from notes").fetchone()[0])


async def main() -> None:
    index = Index(["fork", "wire"])
    async with forkwire.open_worker(index) as worker:
        print(await worker.call("length", "fork"), await worker.call("length", "spoon"))
        print(await worker.call("statistics"), "- here:", index.asked)
    async with forkwire.open_worker(Notes) as worker:
        print(await worker.call("add", "one"), await worker.call("add", "two"))


anyio.run(main)

# Prints:
# 4 None
# {'words': 2, 'asked': 2} - here: 0
# 1 2

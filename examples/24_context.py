"""A context variable that travels with every call, such as the request that is being served."""

import contextvars

import anyio

import forkwire

request = forkwire.propagate(contextvars.ContextVar("request", default="none"))


def whose() -> str:
    return request.get()


async def main() -> None:
    async with forkwire.open_worker(whose) as worker:

        async def serve(name: str) -> None:
            request.set(name)
            answers[name] = await worker.call(whose)

        answers: dict[str, str] = {}
        async with anyio.create_task_group() as tasks:
            for name in ("alice", "bob"):
                tasks.start_soon(serve, name)
        print(sorted(answers.items()))
        print(await worker.call(whose))


anyio.run(main)

# Prints:
# [('alice', 'alice'), ('bob', 'bob')]
# none

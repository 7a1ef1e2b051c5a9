"""What a handler raises is raised here: the builtin that it was, with the remote traceback."""

import os

import anyio

import forkwire


class Account:
    def __init__(self) -> None:
        self.balance = 100

    def withdraw(self, amount: int) -> int:
        if amount > self.balance:
            raise ValueError(f"only {self.balance} left")
        self.balance -= amount
        return self.balance

    def crash(self) -> None:
        os._exit(3)


async def main() -> None:
    async with forkwire.open_worker(Account) as worker:
        print(await worker.call("withdraw", 30))
        try:
            await worker.call("withdraw", 80)
        except ValueError as error:
            print(isinstance(error, forkwire.RemoteError), error.args)
            print(str(error).splitlines()[-2].strip())  # the end of the remote traceback
        for name, argument in ("withdrow", 1), ("withdraw", "much"), ("withdraw", print):
            try:
                await worker.call(name, argument)
            except forkwire.CallError as error:  # nothing was run
                print(f"{type(error).__name__}: {str(error)[:68]}")
        try:
            await worker.call("crash")
        except forkwire.WorkerDied as died:
            print(died.reason, "-", *died.in_flight)


anyio.run(main)

# Prints:
# 70
# True ('only 70 left',)
# raise ValueError(f"only {self.balance} left")
# MethodNotFoundError: Account offers no 'withdrow'; did you mean 'withdraw'?
# InvalidArgumentsError: withdraw(amount: int) -> int: amount: expected int, got str
# ValueEncodeError: cannot send $.args[0]: builtin_function_or_method has no encoding: c
# ended with exit status 3 - crash (call 4)

"""A process of its own for `test_processes`: says on its output what it has done, and works as it was told.

python worker.py spend FILE     spends all there is together with one other process, prints what it got as JSON
python worker.py stream FILE    counts up and books attempts without end, prints each number once it is acknowledged
"""

import asyncio
import json
import sys
from dataclasses import asdict, replace
from pathlib import Path

from headgate.adapters.sqlite.stores import open_database
from headgate.testing.exercises.ledger import an_attempt
from headgate.testing.exercises.levels import add_one, read
from headgate.testing.exercises.shared_limits import spend_all


def say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


async def spend(path: Path) -> None:
    async with open_database(path) as stores:
        await add_one(stores.levels, "arrived")
        while (await read(stores.levels, "arrived"))["arrived"] != (2,):  # noqa: ASYNC110 - the other is a process
            await asyncio.sleep(0)  # both are awake before either spends
        spent = await asyncio.gather(*(spend_all(stores.levels) for _ in range(4)))
        say(json.dumps([asdict(worker) for worker in spent]))


async def stream(path: Path) -> None:
    async with open_database(path) as stores:

        async def book() -> None:
            while True:
                number = await add_one(stores.levels, "count")
                await stores.ledger.begin(an_attempt(number))
                if number % 2:
                    await stores.ledger.finish(replace(an_attempt(number), state="done", cost_micro_usd=number))
                say(str(number))

        await asyncio.gather(*(book() for _ in range(8)))


if __name__ == "__main__":
    asyncio.run({"spend": spend, "stream": stream}[sys.argv[1]](Path(sys.argv[2])))

"""One worker of `headgate serve --workers N`: the gateway, on connections that another process accepts.

One rule: it lives as long as the process that started it: when that has gone, or says so (SIGTERM), it drains and ends.
What it goes by comes from there, not from the file, which may have changed meanwhile.

Run as `python -m headgate.cli.worker NUMBER WORKERS MESSAGES CONNECTIONS`, the last two being inherited sockets.
"""

import asyncio
import itertools
import signal
import socket
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import msgspec

from headgate.adapters.allocator import keep_freed_memory
from headgate.adapters.server import App, run
from headgate.adapters.switchboard import MIDDLE, Switchboard, UnansweredError
from headgate.cli.main import exit_code_of
from headgate.cli.reloading import Reloading
from headgate.cli.serving import calm_garbage_collection, gateway_of
from headgate.compose import House, open_house, read_config
from headgate.core.errors import CallerError, HeadgateError
from headgate.core.pool import Breaker
from headgate.core.scheduling import Scheduling
from headgate.gateway.together import Together, answers_of, streams_of
from headgate.runtime.manager import Manager

CHANGE_WITHIN_S = 40.0
"""How long the others are waited for until something is changed in all of them, or in none."""


class Begin(msgspec.Struct):
    """What a worker begins with: what the others go by."""

    path: str | None
    text: str | None
    host: str
    port: int
    scheduling: Scheduling | None = None


class Worker:
    """A worker's part in what all do together."""

    def __init__(self, me: int, workers: int, board: Switchboard) -> None:
        """Be one of so many; `board` is connected to the process that started them."""
        self.me = me
        self.others: Sequence[int] = [each for each in range(1, workers + 1) if each != me]
        self._board = board
        self._changes = itertools.count(1)
        self._reloading: asyncio.Task[list[str]] | None = None
        self._decision: asyncio.Future[None] | None = None

    async def ask(self, worker: int, word: str, body: Any) -> Any:
        """Ask another worker."""
        return await self._board.ask(worker, word, body)

    def follow(self, worker: int, word: str, body: Any) -> AbstractAsyncContextManager[AsyncIterator[Any]]:
        """Follow what another worker tells."""
        return self._board.follow(worker, word, body)

    async def change_scheduler(self, change: Callable[[], Awaitable[bool]]) -> None:
        """Change this worker's scheduler while nobody else changes anything, and let the others go by it."""
        which, scheduling = [self.me, next(self._changes)], None
        try:
            await self._board.ask(MIDDLE, "begin a change", which, within_s=CHANGE_WITHIN_S, or_never=True)
        except BaseException:
            self._board.tell(MIDDLE, "end a change", [*which, None])  # the word to begin may be on its way
            raise
        try:
            if await change():
                scheduling = msgspec.to_builtins(self._manager.scheduling)
        finally:
            await self._board.ask(MIDDLE, "end a change", [*which, scheduling], within_s=CHANGE_WITHIN_S)

    async def reload(self) -> list[str]:
        """Let all workers read the configuration again, or none."""
        changed: list[str] = await self._board.ask(MIDDLE, "reload", within_s=CHANGE_WITHIN_S)
        return changed

    def serve(self, house: House, gateway: App, reloading: Reloading) -> App:
        """Answer the others for a house, and give what is to be served."""
        self._manager: Manager = house.manager
        health = house.manager.pool.health

        async def prepare(text: str | None) -> Any:
            return await self._prepare(reloading, text)

        async def forget_keys(_body: None) -> bool:
            house.manager.keys.forget()
            return True

        async def schedule(scheduling: Any) -> bool:
            house.manager.set_scheduling(msgspec.convert(scheduling, Scheduling))
            return True

        async def circuit(told: Any) -> bool:
            account, model, breaker = told
            health.hear(account, model, None if breaker is None else msgspec.convert(breaker, Breaker))
            return True

        async def circuits(_body: None) -> Any:
            return msgspec.to_builtins(health.open_circuits())

        async def here(_body: None) -> bool:
            return True

        def tell(account: str, model: str, breaker: Breaker | None) -> None:
            told = [account, model, None if breaker is None else msgspec.to_builtins(breaker)]
            for other in self.others:
                self._board.tell(other, "circuit", told)

        health.on_changed = tell
        self._board.answers |= {
            "prepare": prepare,
            "decide": self._decide,
            "forget keys": forget_keys,
            "schedule": schedule,
            "circuit": circuit,
            "circuits": circuits,
            "here": here,
            **answers_of(gateway),
        }
        self._board.streams |= streams_of(gateway)
        return Together(gateway, self)

    async def hear_circuits(self) -> None:
        """Take up which accounts the others leave alone."""
        for other in self.others:
            try:
                told = await self._board.ask(other, "circuits")
            except (UnansweredError, CallerError):  # it has nothing to tell yet, as all that begin together
                continue
            for account, model, breaker in told:
                self._manager.pool.health.hear(account, model, msgspec.convert(breaker, Breaker))

    async def _prepare(self, reloading: Reloading, text: str | None) -> Any:
        """Make a reload ready to be put in force; give what it will change and who goes next then."""
        if self._reloading is not None:
            await self._decide(go=False)
        ready: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._decision = decision = asyncio.get_running_loop().create_future()

        async def agree(changed: list[str], scheduling: Scheduling) -> None:
            ready.set_result([changed, msgspec.to_builtins(scheduling)])
            await decision  # it comes for certain: the process that makes it ends this one with itself

        self._reloading = task = asyncio.create_task(reloading.reload(text, agree), name="reload with the others")
        await asyncio.wait((ready, task), return_when=asyncio.FIRST_COMPLETED)
        if not ready.done():
            self._reloading = None
            await task  # it raises why
        return ready.result()

    async def _decide(self, go: bool) -> list[str]:  # noqa: FBT001 - a message has one body
        """Put in force what is ready, or drop it; give what is to be told of it."""
        task, self._reloading = self._reloading, None
        if task is None or self._decision is None:
            return []
        if go:
            self._decision.set_result(None)
            return await task
        self._decision.set_exception(CallerError("another worker could not go by it; nothing was changed"))
        await asyncio.gather(task, return_exceptions=True)
        return []


async def work(me: int, workers: int, messages: socket.socket, connections: socket.socket) -> None:
    """Serve until the process that started this one says so, or has gone."""
    stopped = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stopped.set)
    board = Switchboard(me, {})
    board.on_lost = lambda _peer: stopped.set()
    await board.connect(MIDDLE, messages)
    begin = msgspec.convert(await board.ask(MIDDLE, "what to begin with", me), Begin)
    config = read_config(None if begin.path is None else Path(begin.path), text=begin.text)
    async with open_house(config, warm=True) as house:
        if begin.scheduling is not None:
            house.manager.set_scheduling(begin.scheduling)
        worker, reloading = Worker(me, workers, board), Reloading(house)
        async with gateway_of(
            house, begin.host, begin.port,
            around=lambda gateway: worker.serve(house, gateway, reloading),
            reloading=reloading, reload=worker.reload, handed=connections,
        ) as server:  # fmt: skip
            await worker.hear_circuits()
            calm_garbage_collection()
            await board.ask(MIDDLE, "ready", me, within_s=CHANGE_WITHIN_S)
            await stopped.wait()
            await asyncio.gather(house.manager.drain(), server.stop(config.server.drain_s))
    board.close()


def main(arguments: Sequence[str]) -> int:
    """Run a worker and give its exit code."""
    # A terminal sends these to all of a job's processes; the one that started this one decides.
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    me, workers, messages, connections = map(int, arguments)
    keep_freed_memory()
    try:
        run(work(me, workers, socket.socket(fileno=messages), socket.socket(fileno=connections)))
    except HeadgateError as error:
        print(f"headgate: worker {me}: {error}", file=sys.stderr)  # noqa: T201 - as the command does
        return exit_code_of(error)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

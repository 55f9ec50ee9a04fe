"""What the tests of a fleet need: jobs in memory, agents that do what they are told, desks that count."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

from headgate.core.errors import StoreError
from headgate.core.jobs import Claimed, Event, Job, step
from headgate.ports import Desk, Ended, Run
from headgate.runtime.fleet import Fleet, FleetEvent, FleetRules
from headgate.testing.virtual_time import VirtualClock

RUN = "run-1"


class JobsInMemory:
    """A job store whose steps take a moment, as a real one's do, and which fails while `refuses` says so.

    What a step changed can be claimed before the one who asked for it hears of it, as in a database.
    """

    def __init__(self, jobs: Sequence[Job]) -> None:
        self.kept = list(jobs)
        self.refuses = False
        self.passes_to_answer = 3
        self.steps: list[Event] = []

    def refuse(self) -> None:
        self.refuses = True

    def accept(self) -> None:
        self.refuses = False

    async def add_run(self, run: Run, jobs: Sequence[Job]) -> None:
        raise NotImplementedError

    async def claim(self, run: str, owner: str, now_s: float, lease_until_s: float, most: int) -> list[Job]:
        await self._answer()
        claimed = []
        for job in self.kept:
            after, effects = step(job, Claimed(owner, lease_until_s), now_s)
            if effects and len(claimed) < most:
                self.kept[job.index] = after
                claimed.append(after)
        return claimed

    async def step(self, run: str, index: int, event: Event, now_s: float) -> Job:
        await self._answer()
        self.steps.append(event)
        after, _effects = step(self.kept[index], event, now_s)
        self.kept[index] = after
        for _ in range(self.passes_to_answer * (index % 5)):  # some answers overtake others
            await asyncio.sleep(0)
        return after

    async def jobs(self, run: str) -> list[Job]:
        await self._answer()
        return list(self.kept)

    async def runs(self) -> list[Run]:
        raise NotImplementedError

    async def delete_run(self, run: str, now_s: float) -> bool:
        raise NotImplementedError

    async def _answer(self) -> None:
        await asyncio.sleep(0)
        if self.refuses:
            raise StoreError("the database is locked")


Work = Callable[[Job, Desk], Awaitable[Ended]]


@dataclass
class ScriptedAgent:
    """Does what its script does, and remembers who was at work together."""

    script: Work
    at_work: set[str] = field(default_factory=set)
    most_at_work: int = 0
    begun: list[tuple[str, int]] = field(default_factory=list)
    cancelled: list[str] = field(default_factory=list)

    async def work(self, job: Job, desk: Desk) -> Ended:
        assert job.name not in self.at_work, "one job, two agents"
        self.begun.append((job.name, job.attempt))
        self.at_work.add(job.name)
        self.most_at_work = max(self.most_at_work, len(self.at_work))
        try:
            return await self.script(job, desk)
        except asyncio.CancelledError:
            self.cancelled.append(job.name)
            raise
        finally:
            self.at_work.discard(job.name)


@dataclass
class Stage:
    """A fleet with everything around it, under the test's hand."""

    store: JobsInMemory
    agent: ScriptedAgent
    clock: VirtualClock
    alive: set[str] = field(default_factory=set)
    events: list[FleetEvent] = field(default_factory=list)
    open_desks: int = 0

    def fleet(self, owner: str = "runner-1", rules: FleetRules | None = None) -> Fleet:
        self.alive.add(owner)
        return Fleet(
            RUN,
            store=self.store,
            agent=self.agent,
            desks=self.desk,
            clock=self.clock,
            owner=owner,
            owner_is_alive=self.alive.__contains__,
            rules=rules or FleetRules(agents=3, lease_s=30),
            listen=self.events.append,
            jitter=lambda: 1.0,
        )

    @asynccontextmanager
    async def desk(self, job: Job) -> AsyncIterator[Desk]:
        self.open_desks += 1
        try:
            yield Desk("http://127.0.0.1:1", f"hg-secret-{job.index}", Path("/nowhere"))
        finally:
            self.open_desks -= 1

    def kinds(self) -> list[str]:
        return [event.kind for event in self.events]

    def states(self) -> list[str]:
        return [job.state for job in self.store.kept]


def stage(count: int, script: Work, *, most_attempts: int = 3) -> Stage:
    jobs = [Job(RUN, index, f"job-{index}", "{}", most_attempts=most_attempts) for index in range(count)]
    return Stage(JobsInMemory(jobs), ScriptedAgent(script), VirtualClock())


async def ten_seconds(job: Job, desk: Desk) -> Ended:
    await asyncio.sleep(10)
    return Ended("well done", exit_code=0)


async def for_ever(job: Job, desk: Desk) -> Ended:
    await asyncio.Event().wait()
    raise AssertionError("nothing sets it")

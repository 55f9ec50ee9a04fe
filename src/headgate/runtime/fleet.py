"""The fleet: a bounded number of agents work through the jobs of a run, whatever ends a process on the way.

One rule: a job changes only in the store, by the core's table, so that what is on disk is true at any instant; an
attempt that lost its lease changes nothing. It knows neither commands nor HTTP: an agent works, its desk says where.
"""

import asyncio
import random
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Literal, TypeVar

from headgate.core.errors import StoreError
from headgate.core.jobs import FINAL, Beat, Event, Failed, GivenBack, Job, JobState, OwnerDied, Reopened, Succeeded
from headgate.ports import Agent, Clock, Ended, JobStore
from headgate.runtime.fleet_rules import Desks, FleetEnd, FleetEvent, FleetRules
from headgate.runtime.unbroken import unbroken, work_or_end

__all__ = ["Fleet", "FleetEnd", "FleetEvent", "FleetRules", "free_of_the_dead", "reopen_failed"]

_T = TypeVar("_T")

_PAUSE_S = 1.0
_ERROR_CHARACTERS = 2_000


@dataclass(slots=True, eq=False)
class _Attempt:
    """A claimed job in this process. It is cooling until its back-off is over, then has or waits for a place.

    It is `recorded` from the moment on in which its end is being written: the store may hand its job out again before
    this process hears that it is.
    """

    job: Job
    delay_s: float
    follows: asyncio.Task[None] | None = None
    task: asyncio.Task[None] | None = None
    cooling: bool = False
    at_work: bool = False
    recorded: bool = False
    lost: bool = False
    told_to_end: bool = False

    def end(self) -> None:
        """Tell it to end, once: a second cancellation would break off the ending itself."""
        if self.task is not None and not self.told_to_end:
            self.told_to_end = True
            self.task.cancel()


def _nobody(event: FleetEvent) -> None:
    del event


def _never(key: str) -> None:
    del key


class Fleet:
    """Works through one run, once. `drain`, `stop` and `interrupt` are called from the event loop's thread.

    `owner` names this runner and no other, ever; `owner_is_alive` tells of the name in a job's row whether its runner
    still lives. `hopeless` is told the key of an attempt that failed and says why another would fail too, or None.
    `listen` is called for every event, must be quick and must not raise. `jitter` gives 0 to 1.
    """

    def __init__(
        self,
        run: str,
        *,
        store: JobStore,
        agent: Agent,
        desks: Desks,
        clock: Clock,
        owner: str,
        owner_is_alive: Callable[[str], bool],
        rules: FleetRules | None = None,
        hopeless: Callable[[str], str | None] = _never,
        listen: Callable[[FleetEvent], None] = _nobody,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        self._run = run
        self._store = store
        self._agent = agent
        self._desks = desks
        self._clock = clock
        self._owner = owner
        self._owner_is_alive = owner_is_alive
        self._rules = rules or FleetRules()
        self._hopeless = hopeless
        self._listen = listen
        self._jitter = jitter
        self._places = asyncio.Semaphore(self._rules.agents)
        self._attempts: dict[int, _Attempt] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._ready_s: dict[int, float] = {}
        self._known: dict[int, tuple[tuple[int, int], JobState]] = {}
        self._counts: Counter[JobState] = Counter()
        self._changed = asyncio.Event()
        self._failure: BaseException | None = None
        self._draining = False
        self._stopping = False

    async def run(self) -> FleetEnd:
        """Work until no job is left, or until it is told to drain or stop. Leaves no task and no agent behind.

        Cancelled, it does what `stop` does and raises the cancellation then.

        Raises:
            StoreError: The database cannot be used any more; agents were ended, jobs are as the database has them.
        """
        beats = asyncio.create_task(self._beat(), name=f"heartbeat of {self._owner}")
        beats.add_done_callback(self._note_failure)
        try:
            await self._look_at_others()
            await self._work_through()
        except asyncio.CancelledError:
            self.stop()
            raise
        finally:
            await unbroken(self._clear(beats))
        self._raise_failure()
        why: Literal["finished", "drained", "stopped"] = "finished"
        if self._open:
            why = "stopped" if self._stopping else "drained"
        counts = self._counts
        return FleetEnd(why, counts["queued"], counts["running"], counts["done"], counts["failed"])

    def drain(self) -> None:
        """Claim no more, and end when the agents that are at work have ended."""
        if not self._draining:
            self._draining = True
            self._listen(FleetEvent("draining"))
            self._changed.set()

    def stop(self) -> None:
        """End the agents that are at work, and give their jobs back."""
        self.drain()
        if not self._stopping:
            self._stopping = True
            self._listen(FleetEvent("stopping"))
            self._changed.set()

    def interrupt(self) -> None:
        """What Ctrl-C means: the first drains, the second stops."""
        if self._draining:
            self.stop()
        else:
            self.drain()

    @property
    def counts(self) -> dict[JobState, int]:
        """How many jobs are in which state, as this runner knows; what others finish it learns when it is idle."""
        return {state: self._counts[state] for state in ("queued", "running", "done", "failed")}

    @property
    def _open(self) -> int:
        return self._counts["queued"] + self._counts["running"]

    async def _work_through(self) -> None:
        while not self._stopping:
            self._raise_failure()
            self._changed.clear()
            timeout_s = self._rules.lease_s
            if self._draining:
                self._send_home()
                if not self._attempts:
                    return
            else:
                await unbroken(self._claim())
                if not self._attempts:
                    if not self._open:
                        return
                    timeout_s = await self._look_at_others()
            with suppress(TimeoutError):
                async with asyncio.timeout(timeout_s):
                    await self._changed.wait()

    def _send_home(self) -> None:
        for attempt in self._attempts.values():
            if not attempt.at_work:
                attempt.end()

    async def _claim(self) -> None:
        while True:
            cooling = sum(attempt.cooling for attempt in self._attempts.values())
            free = self._rules.agents - (len(self._attempts) - cooling)
            if free <= 0 or cooling >= self._rules.most_cooling or self._stopping:
                return
            now_s = self._clock.now_s()
            lease_until_s = now_s + self._rules.lease_s
            jobs = await self._patiently(
                lambda now_s=now_s, until_s=lease_until_s, most=free: self._store.claim(  # type: ignore[misc]  # mypy infers no types for a lambda's defaults
                    self._run, self._owner, now_s, until_s, most
                )
            )
            for job in jobs:
                self._start(job)
            if len(jobs) < free:
                return

    def _start(self, job: Job) -> None:
        before = self._attempts.pop(job.index, None)
        if before is not None and not before.recorded:
            # After a leap of the clock this process may claim what it is itself at work on: that attempt is void.
            self._lose(before)
        self._learn(job)
        delay_s = max(0.0, self._ready_s.pop(job.index, 0.0) - asyncio.get_running_loop().time())
        attempt = _Attempt(job, delay_s, None if before is None else before.task, cooling=delay_s > 0)
        attempt.task = asyncio.create_task(self._attend(attempt), name=f"{job.run} {job.name} attempt {job.attempt}")
        attempt.task.add_done_callback(lambda task: self._left(attempt, task))
        self._tasks.add(attempt.task)
        self._attempts[job.index] = attempt

    def _left(self, attempt: _Attempt, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if self._attempts.get(attempt.job.index) is attempt:
            del self._attempts[attempt.job.index]
        self._note_failure(task)

    async def _attend(self, attempt: _Attempt) -> None:
        """One attempt from its claim to its record."""
        job = attempt.job
        ended: Ended | None = None
        with suppress(asyncio.CancelledError):
            await asyncio.sleep(attempt.delay_s)
            attempt.cooling = False
            if attempt.follows is not None:
                await asyncio.wait({attempt.follows})
            async with self._places:
                if not self._draining:
                    attempt.at_work = True
                    self._listen(FleetEvent("started", job))
                    ended = await work_or_end(self._work(job))
        if attempt.lost:
            return
        attempt.recorded = True
        await unbroken(self._record(job, ended))

    async def _work(self, job: Job) -> Ended:
        ended: Ended | None = None
        key = ""
        try:
            async with asyncio.timeout(self._rules.most_s) as bound, self._desks(job) as desk:
                key = desk.key
                ended = await self._agent.work(job, desk)
        except Exception as error:  # noqa: BLE001 - a task's boundary: whatever an agent raises is how its attempt ended
            detail = _fit_text(f"{type(error).__name__}: {error}", key)[:_ERROR_CHARACTERS]
            if ended is not None:
                self._listen(FleetEvent("desk_not_cleared", job, detail=detail))
            elif bound.expired():
                ended = Ended(error=f"took longer than the {self._rules.most_s:g} s that an attempt may take")
            else:
                ended = Ended(error=detail)
        if ended.error is not None and ended.retryable and (why := self._hopeless(key)) is not None:
            ended = replace(ended, error=f"{why} (the agent then ended with: {ended.error})", retryable=False)
        return Ended(
            _fit_text(ended.output, key)[-self._rules.output_characters :],
            ended.exit_code,
            None if ended.error is None else _fit_text(ended.error, key)[:_ERROR_CHARACTERS],
            ended.retryable,
        )

    async def _record(self, job: Job, ended: Ended | None) -> None:
        """Keep how an attempt ended; None: it was told to end before it had."""
        event: Event
        delay_s = self._back_off_s(job.attempt)
        if ended is None:
            event = GivenBack(job.attempt)
        elif ended.error is None:
            event = Succeeded(job.attempt, ended.output, ended.exit_code)
        else:
            event = Failed(job.attempt, ended.error, ended.output, ended.exit_code, ended.retryable)
            # Before the step: once it is in the store the job can be claimed, also before this process hears of it.
            self._ready_s[job.index] = asyncio.get_running_loop().time() + delay_s
        after = await self._step(job, event)
        overtaken = isinstance(event, Succeeded) and after.state != "done"
        if overtaken or after.attempt != job.attempt or after.state == "running":
            self._ready_s.pop(job.index, None)
            self._listen(FleetEvent("superseded", after))
        elif ended is None:
            self._listen(FleetEvent("given_back", after))
        elif after.state == "queued":
            self._listen(FleetEvent("retried", after, delay_s))
        else:
            self._ready_s.pop(job.index, None)
            self._listen(FleetEvent("ended", after))

    def _back_off_s(self, attempt: int) -> float:
        # Doubling, spread over its upper half: jobs that failed together (a provider's outage) do not return together.
        most_s = min(self._rules.most_retry_s, self._rules.first_retry_s * 2.0 ** min(attempt - 1, 60))
        return most_s * (0.5 + 0.5 * self._jitter())

    async def _beat(self) -> None:
        """Renew every lease, at a third of its length: two beats may fail before anyone takes a job away."""
        while True:
            await asyncio.sleep(self._rules.lease_s / 3)
            for attempt in list(self._attempts.values()):
                until_s = self._clock.now_s() + self._rules.lease_s
                after = await self._step(attempt.job, Beat(attempt.job.attempt, until_s))
                # What is recorded has ended: no wonder that it does not run any more; of what is lost it was said.
                over = attempt.recorded or attempt.lost
                if not over and (after.attempt != attempt.job.attempt or after.state != "running"):
                    self._listen(FleetEvent("superseded", after))
                    self._lose(attempt)

    def _lose(self, attempt: _Attempt) -> None:
        attempt.lost = True
        attempt.end()

    async def _look_at_others(self) -> float:
        """Count the jobs, free those of dead runners, and give the seconds after which to look again."""
        jobs = await self._patiently(lambda: self._store.jobs(self._run))
        for job in jobs:
            self._learn(job)
        now_s = self._clock.now_s()
        look_again_s = self._rules.lease_s / 3 if self._open else 0.0
        for job in jobs:
            if job.state == "queued":
                look_again_s = min(look_again_s, _PAUSE_S)
            if job.state != "running" or job.index in self._attempts:
                continue
            if job.owner is None or self._owner_is_alive(job.owner):
                look_again_s = min(look_again_s, max(_PAUSE_S, job.lease_until_s - now_s))
                continue
            after = await self._step(job, OwnerDied(job.attempt))
            if after.state == "queued":
                self._listen(FleetEvent("taken_over", after))
            look_again_s = 0.0
        return look_again_s

    async def _step(self, job: Job, event: Event) -> Job:
        after = await self._patiently(lambda: self._store.step(self._run, job.index, event, self._clock.now_s()))
        self._learn(after)
        return after

    def _learn(self, job: Job) -> None:
        """Count a job in the state that the store gave, unless a later one is known: answers may overtake each other.

        The number of its attempt only grows. Within an attempt a job runs first, then ends or is queued, and what had
        failed may be queued again.
        """
        place = (job.attempt, 0 if job.state == "running" else 1 if job.state in FINAL else 2)
        known = self._known.get(job.index)
        if known is not None:
            if place <= known[0]:
                return
            self._counts[known[1]] -= 1
        self._known[job.index] = (place, job.state)
        self._counts[job.state] += 1

    async def _patiently(self, ask: Callable[[], Awaitable[_T]]) -> _T:
        """Ask the store again for a while: a database that is locked for a moment must not end the work of hours."""
        loop = asyncio.get_running_loop()
        give_up_s = loop.time() + self._rules.patience_s
        while True:
            try:
                return await ask()
            except StoreError as error:
                if self._stopping or self._failure is not None or loop.time() >= give_up_s:
                    raise
                self._listen(FleetEvent("store_troubled", detail=str(error)))
            await asyncio.sleep(_PAUSE_S)

    def _note_failure(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and task.exception() is not None and self._failure is None:
            self._failure = task.exception()
        self._changed.set()

    def _raise_failure(self) -> None:
        if self._failure is not None:
            raise self._failure

    async def _clear(self, beats: asyncio.Task[None]) -> None:
        """End every attempt within the bound, keeping their leases until then; then end the heartbeat."""
        for attempt in self._attempts.values():
            attempt.end()
        if self._tasks:
            _, stuck = await asyncio.wait(self._tasks, timeout=self._rules.end_within_s)
            for task in stuck:
                self._listen(FleetEvent("not_ended", detail=task.get_name()))
        beats.cancel()
        await asyncio.wait({beats})


async def reopen_failed(store: JobStore, run: str, more_attempts: int, clock: Clock) -> int:
    """Queue the failed jobs of a run again, each for up to so many attempts; gives how many there were."""
    failed = [job for job in await store.jobs(run) if job.state == "failed"]
    for job in failed:
        await store.step(run, job.index, Reopened(job.attempt, more_attempts), clock.now_s())
    return len(failed)


async def free_of_the_dead(store: JobStore, run: str, owner_is_alive: Callable[[str], bool], clock: Clock) -> None:
    """Take the jobs of a run away from runners that are known to be dead, as the next runner would."""
    for job in await store.jobs(run):
        if job.state == "running" and job.owner is not None and not owner_is_alive(job.owner):
            await store.step(run, job.index, OwnerDied(job.attempt), clock.now_s())


def _fit_text(text: str, key: str) -> str:
    """Take the agent's key out of what is kept. It is not bounded before that: half a key would be overlooked."""
    # A database's text ends at a NUL for some of its readers.
    text = text.replace("\0", "\N{REPLACEMENT CHARACTER}")
    return text.replace(key, "[the agent's key]") if key else text

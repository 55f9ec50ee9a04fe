"""Ports: what Headgate needs from the world, as Protocols of at most six methods.

One rule: a port speaks the words of the core; how a database, a provider or a clock does it stays in its adapter.
Every port has an exercise suite in `headgate.testing.exercises` that each adapter passes.
"""

from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, TypeVar

from headgate.core.bounds import Reach
from headgate.core.jobs import Event, Job
from headgate.core.ledger import Attempt, UsageGroup, UsageQuery
from headgate.core.notices import Notices
from headgate.core.retries import Failure
from headgate.core.usage import Usage

T = TypeVar("T")

Record = tuple[Any, ...]
"""What a level store keeps under a name: a level (whole numbers) or a reservation; what JSON can say."""

Step = Callable[[Mapping[str, Record]], tuple[Mapping[str, Record | None], T]]
"""Records by name in; changed records (None deletes) and a result out. Pure: a conflict may call it again."""

SaysNothing = Callable[[str, Record, float], bool]
"""Whether a record may be deleted: its name, the record, and for how many seconds at least nobody has changed it (0
where a store does not know). Pure, as a step."""

Headers = Sequence[tuple[bytes, bytes]]


class Clock(Protocol):
    """Wall time."""

    def now_s(self) -> float:
        """Give seconds since the epoch."""
        ...


class LevelStore(Protocol):
    """Keeps the levels of limits and the holds on them."""

    def transact(self, names: Iterable[str], step: Step[T]) -> Awaitable[T]:
        """Run `step` on the named records and keep what it changed, atomically and alone, over all processes.

        Names without a record are absent from the mapping, which may hold others beside the named ones; a step may also
        write names it did not ask for. What it returned is durable against kill -9 when it is given. An exception of
        the step changes nothing and is raised.

        A store that commits by the tick queues it now, so that what else is asked of it before anybody waits is kept
        with it, or not at all.
        """
        ...

    async def names(self, prefix: str) -> list[str]:
        """Give the names of all records that begin with `prefix`, sorted."""
        ...

    async def forget(self, says_nothing: SaysNothing, most: int) -> bool:
        """Delete those of the next `most` records that say nothing; True at the end, after which it begins anew."""
        ...

    async def wait_changed(self) -> None:
        """Return when another process has changed a record since the last call; never if there is no other."""
        ...

    async def close(self) -> None:
        """Close it; what was returned by `transact` stays."""
        ...


class LedgerStore(Protocol):
    """Keeps one row per attempt, for years."""

    def begin(self, attempt: Attempt, when: Callable[[], bool] | None = None) -> Awaitable[bool]:
        """Keep an attempt in flight; durable against kill -9 when it is given.

        `when` is asked once all that was queued before is done, and again when it has to be done again: with a no
        nothing is kept, and False given.
        """
        ...

    def finish(self, attempt: Attempt) -> Awaitable[bool]:
        """Complete the row of an attempt in flight (or lost) by its outcome; False if it was final already.

        `attempt` is what was begun, with what has become of it: usage, cost and its version, state, model served,
        status, error type, the provider's id, times of first byte and end, and whether it was sent.
        """
        ...

    async def in_flight(self, after: Attempt | None = None) -> list[Attempt]:
        """Give attempts that are in flight or lost and not reconciled, oldest first, at most 10,000.

        With `after`, those that come after it: by the time of their admission, then by their ids.
        """
        ...

    async def usage(self, query: UsageQuery) -> list[UsageGroup]:
        """Sum rows; from roll-ups by hour where whole hours are asked."""
        ...

    async def attempts(self, run: str | None, most: int = 1_000_000) -> list[Attempt]:
        """Give the rows of a run (None: of all calls) in the order of their admission, the newest if there are more."""
        ...


class JobStore(Protocol):
    """Keeps the jobs of runs."""

    async def add_run(self, run: "Run", jobs: Sequence[Job]) -> None:
        """Keep a new run with its jobs, all or none."""
        ...

    async def claim(self, run: str, owner: str, now_s: float, lease_until_s: float, most: int) -> list[Job]:
        """Claim up to `most` jobs of a run that are queued or whose lease is over, lowest index first."""
        ...

    async def step(self, run: str, index: int, event: Event, now_s: float) -> Job:
        """Apply an event to a job by the core's table, atomically; give the job after it."""
        ...

    async def jobs(self, run: str) -> list[Job]:
        """Give all jobs of a run by index."""
        ...

    async def runs(self) -> "list[Run]":
        """Give all runs, newest first."""
        ...

    async def delete_run(self, run: str, now_s: float) -> bool:
        """Delete a run with its jobs, all or none; True if it is gone, False if a lease on one of its jobs runs."""
        ...


@dataclass(frozen=True, slots=True)
class Run:
    """A fleet's run: what it was started with, so that it can be resumed. `settings` is JSON text without keys."""

    id: str
    created_s: float
    settings: str


@dataclass(frozen=True, slots=True)
class HashedKey:
    """A key that Headgate hands out, as it is stored: `digest` is the SHA-256 of the secret part.

    `limits` is the JSON text of the key's own limits in the configuration's words, `scopes` of what it is attributed to
    (team, run, agent, tags). `fleet` marks the keys that a fleet makes for its agents and ends with them; `parent` is
    the id of the key that such a one was made under: it has that key's name and limits, and ends with it at the latest.
    From `revoked_s` on it lets nobody in.
    """

    id: str
    name: str
    digest: bytes
    created_s: float
    limits: str = "[]"
    scopes: str = "{}"
    expires_s: float | None = None
    revoked_s: float | None = None
    fleet: bool = False
    parent: str | None = None


class KeyStore(Protocol):
    """Keeps the keys that Headgate hands out, hashed."""

    async def add(self, keys: Sequence[HashedKey]) -> None:
        """Keep new keys, all or none; raises CallerError if an id is taken."""
        ...

    async def find(self, key_id: str) -> HashedKey | None:
        """Give a key by its public id."""
        ...

    async def all(self) -> list[HashedKey]:
        """Give every key that is not a fleet's own, oldest first."""
        ...

    async def revoke(self, key_id: str, at_s: float) -> bool:
        """End a key at an instant, now or to come; False if there is none or it ends no later already."""
        ...

    async def prune_fleet(self, parent: str | None, now_s: float) -> int:
        """Forget every fleet's keys that have ended; give how many are in force under a parent (None: under none)."""
        ...


@dataclass(frozen=True, slots=True)
class Cost:
    """A price in micro-dollars, rounded up, and the version of the price list; None where the price is unknown."""

    micro_usd: int | None
    version: str | None


class Prices(Protocol):
    """Knows what tokens cost, and how many a model can use at the most."""

    def cost(self, model: str, usage: Usage, at_s: float) -> Cost:
        """Price a usage at a time."""
        ...

    def reach(self, model: str) -> Reach:
        """Give a model's context window and longest answer, as far as they are known."""
        ...


@dataclass(slots=True)
class Passage:
    """How far an attempt has come; a provider that does not say leaves it, and the attempt counts as sent."""

    sent: bool = True


@dataclass(frozen=True, slots=True)
class Request:
    """A call on its way to a provider: the bytes a client sent, and what must be known of them.

    A provider that can tell notes in `passage`, from `send` on, whether something may have left. `is_streamed` says
    whether the body asks for a stream, where somebody has read that (None: nobody has). With `upload` the body is what
    that gives, once, while it comes in, and `body` is empty.
    """

    method: str
    target: str
    headers: Headers
    body: bytes
    call_id: str
    passage: Passage = field(default_factory=Passage, compare=False, repr=False)
    is_streamed: bool | None = None
    upload: "Upload | None" = field(default=None, compare=False, repr=False)


class Upload(Protocol):
    """A request's body that is sent while it comes in; it can be taken once."""

    @property
    def length(self) -> int | None:
        """Its size in bytes, if that is known before."""
        ...

    @property
    def is_begun(self) -> bool:
        """Whether something of it was taken: it cannot be sent again."""
        ...

    def __aiter__(self) -> AsyncIterator[bytes]:
        """Give its bytes as they come; what this raises ends the call."""
        ...


class Answer(Protocol):
    """A provider's answer while it is read. Iterating gives the body's bytes for the client as they arrive."""

    @property
    def status(self) -> int:
        """The HTTP status."""
        ...

    @property
    def headers(self) -> Headers:
        """The provider's headers, without those that belong to one connection."""
        ...

    @property
    def failure(self) -> Failure | None:
        """Why the call failed, for a status of an error or an error told in a stream."""
        ...

    @property
    def usage(self) -> Usage | None:
        """What was told so far; `reported` is False while or where it is read from the bytes seen."""
        ...

    @property
    def output_seen_tokens(self) -> int:
        """At least so much output went by, told or not."""
        ...

    @property
    def model_served(self) -> str | None:
        """The model that answered, once told."""
        ...

    @property
    def provider_request(self) -> str | None:
        """The provider's id of the request."""
        ...

    def notices(self, now_s: float) -> Notices:
        """Read what the headers say of limits, when they came at `now_s`; costs nothing where nobody asks."""
        ...

    def __aiter__(self) -> AsyncIterator[bytes]:
        """Iterate over the body."""
        ...


@dataclass(frozen=True, slots=True)
class Fate:
    """What became of a call whose process died: what the provider counted; `arrived` is False if it never saw it."""

    usage: Usage
    arrived: bool = True
    provider_request: str | None = None


class Provider(Protocol):
    """One account at a provider."""

    def send(self, request: Request) -> AbstractAsyncContextManager[Answer]:
        """Send a call; entered when the head of the answer is there. Leaving early cancels the call upstream.

        Raises:
            ProviderError: with the attribute `failure` when there is no answer.
        """
        ...

    async def look_up(self, call_id: str) -> Fate | None:
        """Ask what became of a call of a process that died; None where the provider cannot say.

        Raises:
            ProviderError: it could not be asked now.
        """
        ...


@dataclass(frozen=True, slots=True)
class Desk:
    """Where an agent works on one attempt: the gateway it calls, with a key of its own, and a folder of the job's own.

    `gateway` is the address without a path or a slash at its end; all of an attempt's calls are attributed by `key`.
    `environment` is what a process is given beside that. The folder need not exist; it is the same for every attempt.
    """

    gateway: str
    key: str = field(repr=False)
    folder: Path
    environment: Mapping[str, str] = field(default_factory=dict)

    @property
    def anthropic_base_url(self) -> str:
        """What Anthropic's clients are given: they append `/v1` themselves."""
        return self.gateway

    @property
    def openai_base_url(self) -> str:
        """What OpenAI's clients are given."""
        return f"{self.gateway}/v1"


@dataclass(frozen=True, slots=True)
class Ended:
    """How an attempt ended: well if `error` is None. `output` is the tail of what the agent said."""

    output: str = ""
    exit_code: int | None = None
    error: str | None = None
    retryable: bool = True


class Agent(Protocol):
    """Works on jobs."""

    async def work(self, job: Job, desk: Desk) -> Ended:
        """Work on one attempt of a job until it has ended.

        When it is cancelled it first ends what it started, within a bound of its own. What it raises counts as an
        attempt that failed and may be tried again.
        """
        ...

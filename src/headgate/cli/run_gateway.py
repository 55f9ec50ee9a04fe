"""The gateway of a run as its runner uses it: keys for the agents, what goes on, and the books at the end.

One rule: whoever runs a fleet, shows it or reports on it does not know whether the gateway is in this process or
elsewhere. What is shown of the figures is `reporting`'s affair.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol, cast

from headgate.cli.last_words import LastWords
from headgate.cli.progress import LimitRow, UsageRow, WaitingRow
from headgate.cli.report import LimitShown
from headgate.compose import House
from headgate.core.jobs import Job
from headgate.core.ledger import Attempt, GroupBy, UsageQuery
from headgate.core.limits import Limit, Rate
from headgate.gateway.limits_now import limits_json
from headgate.gateway.queue_now import queue_json
from headgate.gateway.run_books import LimitMet, limits_met
from headgate.gateway.usage import usage_json
from headgate.runtime.fleet import FleetRules
from headgate.runtime.keys import Holder

KEY_LIFE_S = FleetRules().most_s + 3_600.0
"""How long an attempt's key lasts at the most: longer than an attempt, and not for ever after a runner was killed."""

SHOWN_KINDS = ("account", "team", "run", "tag")
"""Limits of each key, agent or session by itself are many and short-lived: the table of agents shows what they cost."""

GROUPS: tuple[GroupBy, ...] = ("account", "model", "run", "state")


@dataclass(frozen=True, slots=True)
class LentKey:
    """A key of one attempt."""

    id: str
    secret: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class RunNow:
    """What a run's gateway does now. `refused` counts the provider's 429s, None where nobody counts them."""

    limits: Sequence[LimitRow] = ()
    waiting: Sequence[WaitingRow] = ()
    usage: Sequence[UsageRow] = ()
    refused: int | None = None


@dataclass(frozen=True, slots=True)
class RunBooks:
    """Every row of the ledger that is the run's, and the limits that they met."""

    calls: Sequence[Attempt] = ()
    limits: Sequence[LimitShown] = ()


class RunGateway(Protocol):
    """The gateway of one run; `url` is its address without a path."""

    @property
    def url(self) -> str:
        """Where agents find it."""
        ...

    async def lend_key(self, job: Job) -> LentKey:
        """Give a key for one attempt of a job: all that is called with it is the agent's."""
        ...

    async def end_key(self, key: LentKey) -> None:
        """End a key; one that cannot be ended now ends by itself within `KEY_LIFE_S`."""
        ...

    def refused_for_good(self, secret: str) -> str | None:
        """Give what the bearer of a key was told when its last call was refused for good; None if unknown or not."""
        ...

    async def now(self) -> RunNow:
        """Say what goes on, or went on moments ago."""
        ...

    def look_anew(self) -> None:
        """Let the next look see what is there then."""
        ...

    async def books(self) -> RunBooks:
        """Give all that the report needs of the gateway's books."""
        ...


class OwnGateway:
    """The `RunGateway` in this process."""

    def __init__(self, house: House, run: str, url: str, last_words: LastWords | None = None) -> None:
        """Speak for `run` to the manager of `house`, whose gateway is served at `url`, and listened to by this."""
        self.url = url
        self._last_words = last_words or LastWords()
        self._manager = house.manager
        self._run = run

    async def lend_key(self, job: Job) -> LentKey:
        """Give a key for one attempt of a job."""
        holder = Holder(job.run, job.name, f"{job.run}/{job.index}.{job.attempt}")
        (new,) = await self._manager.keys.lend(None, [holder], KEY_LIFE_S)
        return LentKey(new.stored.id, new.secret)

    async def end_key(self, key: LentKey) -> None:
        """End a key."""
        await self._manager.keys.revoke(key.id)

    def refused_for_good(self, secret: str) -> str | None:
        """Give what the bearer of a key was told when its last call was refused for good."""
        return self._last_words.to(secret)

    async def now(self) -> RunNow:
        """Say what goes on."""
        groups = await self._manager.usage(UsageQuery(GROUPS, only=(("run", self._run),)))
        views = [view for view in await self._manager.limits() if is_shown(view.scope, self._run)]
        # What is shown may come from an older gateway: its rows have fewer fields for certain.
        return RunNow(
            limits=cast(Sequence[LimitRow], limits_json(views)["limits"]),
            waiting=queue_json(self._manager.queue())["waiting"],
            usage=cast(Sequence[UsageRow], usage_json(groups, GROUPS)["groups"]),
            refused=self._manager.refused_by_providers,
        )

    def look_anew(self) -> None:
        """Do nothing: every look does."""

    async def books(self) -> RunBooks:
        """Give the run's rows and limits."""
        calls = await self._manager.attempts(self._run)
        return RunBooks(calls, shown_limits(await limits_met(self._manager, calls), calls, self._run))


def shown_limits(
    met: Sequence[LimitMet], calls: Sequence[Attempt], run: str, key: str | None = None
) -> list[LimitShown]:
    """Choose the limits that a report shows: those of a run's own kinds, and each that refused one of its calls.

    A rate of a class of models that was learned beside one over all models says nothing where it allows as much.
    """
    refusing = {call.error_type for call in calls if call.state == "refused"}
    over_all = {
        (limit.scope, limit.dimension, limit.period_s): limit.amount
        for each in met
        if isinstance(limit := each.limit, Rate) and limit.models is None
    }

    def says_something(limit: Limit) -> bool:
        if not isinstance(limit, Rate) or limit.models is None:
            return True
        return limit.amount < over_all.get((limit.scope, limit.dimension, limit.period_s), limit.amount + 1)

    return [
        LimitShown(each.limit, each.counting, each.used)
        for each in met
        if (is_shown(each.limit.scope, run, key) and says_something(each.limit)) or each.limit.name in refusing
    ]


def is_shown(scope: str, run: str, key: str | None = None) -> bool:
    """Whether a limit of this scope is shown for a run whose agents all work under one `key`, or each with its own."""
    kind, _, name = scope.partition("|")[0].partition(":")
    return (kind in SHOWN_KINDS and (kind != "run" or name == run)) or (kind == "key" and name == key)

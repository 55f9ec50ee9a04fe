"""The figures of a run: sums by agent and the use of each limit, from the ledger's rows.

One rule: a figure has one definition, here, whether a table, a page or JSON shows it. Series over time are beside it.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Literal

from headgate.adapters.tasks import folder_name
from headgate.cli.report.levels import (
    Charge,
    LevelUse,
    Span,
    charges_of,
    ended_s,
    level_use,
    pauses,
    seconds_of,
)
from headgate.core.jobs import Job
from headgate.core.ledger import Attempt
from headgate.core.limits import Gauge, Limit
from headgate.core.scopes import scope_name
from headgate.core.usage import Counting
from headgate.runtime.monitor import per_of

__all__ = [
    "AgentFigures",
    "LimitFigures",
    "LimitShown",
    "ProviderCount",
    "RunFigures",
    "RunReport",
    "figures_of",
]


@dataclass(frozen=True, slots=True)
class LimitShown:
    """A limit that calls of the run met, and how its provider counts.

    `used` is what the level says at the end, by whomever; for a budget that is what was spent of it.
    """

    limit: Limit
    counting: Counting = "anthropic"
    used: int | None = None


@dataclass(frozen=True, slots=True)
class ProviderCount:
    """What a simulated provider counted by itself: the ledger is compared with it."""

    served: int
    refused: int
    input_tokens: int
    output_tokens: int


@dataclass(frozen=True, slots=True)
class RunReport:
    """All that a report is made of: every job of the run, every row of the ledger that carries its name.

    `why` is how the fleet ended; a report that is asked for earlier says unfinished. `what` says in a few words what
    the agents did.
    """

    run: str
    jobs: Sequence[Job]
    calls: Sequence[Attempt]
    limits: Sequence[LimitShown] = ()
    provider: ProviderCount | None = None
    simulated: bool = False
    why: Literal["finished", "drained", "stopped", "unfinished"] = "finished"
    what: str = ""


@dataclass(slots=True)
class AgentFigures:
    """One agent: its job, and the sums of its calls. `prompt_tokens` counts cached input too.

    `folder` is the name of its own among the agents' folders, None where it has no job.
    """

    name: str
    state: str = "-"
    attempts: int = 0
    exit_code: int | None = None
    error: str | None = None
    folder: str | None = None
    calls: int = 0
    failed_calls: int = 0
    refused_calls: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0
    cost_micro_usd: int = 0
    unknown_cost: int = 0
    wait_s: float = 0.0
    longest_wait_s: float = 0.0
    started_s: float | None = None
    ended_s: float | None = None
    paused_s: float = 0.0

    @property
    def took_s(self) -> float:
        """From its first sign of life to its last, without the time in which no runner lived."""
        if self.started_s is None or self.ended_s is None:
            return 0.0
        return max(0.0, self.ended_s - self.started_s - self.paused_s)

    def add(self, call: Attempt) -> None:
        """Count a call; one that Headgate did not admit was never one of the provider's."""
        self._lived(call.queued_s, ended_s(call))
        if call.state == "refused":
            self.refused_calls += 1
            return
        self.calls += 1
        self.failed_calls += call.state not in ("done", "reconciled")
        self.prompt_tokens += call.usage.prompt_tokens
        self.cached_tokens += call.usage.cache_read_tokens
        self.output_tokens += call.usage.output_tokens
        if call.cost_micro_usd is None:
            self.unknown_cost += 1
        else:
            self.cost_micro_usd += call.cost_micro_usd
        self.wait_s += call.wait_s
        self.longest_wait_s = max(self.longest_wait_s, call.wait_s)

    def of(self, job: Job) -> None:
        """Take over what the job says."""
        self.state, self.attempts, self.exit_code, self.error = job.state, job.attempt, job.exit_code, job.error
        self.folder = folder_name(job)
        if job.state == "done":
            self.error = None
        if job.started_s is not None:
            self._lived(job.started_s, job.started_s if job.ended_s is None else job.ended_s)

    def _lived(self, from_s: float, to_s: float) -> None:
        self.started_s = from_s if self.started_s is None else min(self.started_s, from_s)
        self.ended_s = to_s if self.ended_s is None else max(self.ended_s, to_s)


@dataclass(frozen=True, slots=True)
class LimitFigures:
    """How far a limit was used by the run. Shares are of 1; None where there was nothing to measure."""

    scope: str
    models: str | None
    dimension: str
    kind: str
    amount: int
    per: str
    used: int
    use: LevelUse
    level_used: int | None
    charges: Sequence[Charge] = field(repr=False)
    limit: Limit = field(repr=False)


@dataclass(frozen=True, slots=True)
class RunFigures:
    """The figures of a run. `sent` has the calls that were admitted, `waits_s` the wait of each, sorted."""

    report: RunReport
    began_s: float
    ended_s: float
    agents: Sequence[AgentFigures]
    total: AgentFigures
    limits: Sequence[LimitFigures]
    sent: Sequence[Attempt]
    waits_s: Sequence[float]
    states: dict[str, int]
    estimated_calls: int
    pauses: Sequence[Span] = ()

    @property
    def elapsed_s(self) -> float:
        """From the first call or job to the last, interruptions included."""
        return self.ended_s - self.began_s

    @property
    def paused_s(self) -> float:
        """The time in which no runner lived."""
        return seconds_of(self.pauses, Span(self.began_s, self.ended_s))

    @property
    def took_s(self) -> float:
        """How long the run was at work."""
        return self.elapsed_s - self.paused_s

    def wait_quantile_s(self, share: float) -> float:
        """Give the wait that `share` of the calls did not exceed."""
        if not self.waits_s:
            return 0.0
        return self.waits_s[min(len(self.waits_s) - 1, int(share * len(self.waits_s)))]


def figures_of(report: RunReport) -> RunFigures:
    """Compute everything that is shown, in the time of the calls times the scopes that each has."""
    agents: list[AgentFigures] = []
    by_name: dict[str, AgentFigures] = {}
    for job in report.jobs:
        agents.append(AgentFigures(job.name))
        agents[-1].of(job)
        # The ledger has a name as it stands in a scope; of agents that are called alike there, the first has the calls.
        by_name.setdefault(scope_name(job.name), agents[-1])
    total = AgentFigures("total")
    by_scope: dict[str, list[Attempt]] = {}
    for call in report.calls:
        name = scope_name(call.scopes.agent or "")
        if name not in by_name:
            by_name[name] = AgentFigures(call.scopes.agent or "(no agent)")
            agents.append(by_name[name])
        by_name[name].add(call)
        total.add(call)
        for scope in call.scopes.path() if call.state != "refused" else ():
            by_scope.setdefault(scope, []).append(call)
    total.attempts = sum(agent.attempts for agent in agents)
    starts = [agent.started_s for agent in agents if agent.started_s is not None]
    ends = [agent.ended_s for agent in agents if agent.ended_s is not None]
    sent = [call for call in report.calls if call.state != "refused"]
    still = pauses(sent)
    for agent in agents:
        if still and agent.started_s is not None and agent.ended_s is not None:
            agent.paused_s = seconds_of(still, Span(agent.started_s, agent.ended_s))
    states = dict.fromkeys(("done", "failed", "running", "queued"), 0)
    for job in report.jobs:
        states[job.state] += 1
    return RunFigures(
        report=report,
        began_s=min(starts, default=0.0),
        ended_s=max(ends, default=0.0),
        agents=agents,
        total=total,
        limits=[_limit_figures(shown, by_scope.get(shown.limit.scope, ())) for shown in report.limits],
        sent=sent,
        waits_s=sorted(call.wait_s for call in sent),
        states=states,
        estimated_calls=sum(not call.usage.reported for call in sent),
        pauses=still,
    )


def _limit_figures(shown: LimitShown, calls: Iterable[Attempt]) -> LimitFigures:
    limit = shown.limit
    met = [call for call in calls if limit.models is None or fnmatchcase(call.model, limit.models)]
    charges = charges_of(met, limit, shown.counting)
    return LimitFigures(
        scope=limit.scope,
        models=limit.models,
        dimension=limit.dimension,
        kind=limit.kind,
        amount=limit.amount,
        per=per_of(limit),
        used=round(sum(charge.units for charge in charges)) if not isinstance(limit, Gauge) else len(met),
        use=level_use(limit, charges, met),
        level_used=shown.used,
        charges=charges,
        limit=limit,
    )

"""Monitor: what is limited, what waits and what was used, as people and programs ask for it.

One rule: a question changes nothing. The shapes are those of the control API; times are seconds since the epoch.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from headgate.core import quota
from headgate.core.adaptive import amount_at
from headgate.core.instants import to_ns, to_s
from headgate.core.limits import Gauge, Limit, Rate, Rolling, Window
from headgate.core.planning import Part
from headgate.core.quota import Wait
from headgate.core.scopes import lane_of
from headgate.core.set_aside import Closure, untaken, without
from headgate.ports import Clock, LevelStore
from headgate.runtime.admission import Admission
from headgate.runtime.announced import PREFIX as ANNOUNCED_PREFIX
from headgate.runtime.lanes import Waiting
from headgate.runtime.learned import LearnedLimits
from headgate.runtime.limit_news import ALERT_PREFIX
from headgate.runtime.reservations import HOLD_PREFIX
from headgate.runtime.rules import Rules
from headgate.runtime.telling import describe

MOST_LIMITS = 5_000
"""Limits shown at once; patterns such as `agent:*` make one for each agent that ever called."""
_NO_LEVELS = (HOLD_PREFIX, ALERT_PREFIX, ANNOUNCED_PREFIX)
_SHORT_LIVED = ("agent:", "session:")


@dataclass(frozen=True, slots=True)
class LimitView:
    """One limit now: `amount` per `per`; of a rate at most `burst` can be used at once, and `free` now.

    `set_aside` is what planned reservations keep of it now, and `free` what all others have beside that.
    `pending` is the part of `used` that was held for calls that were lost and that nobody has settled yet.
    `amount` is what is configured; where nothing is, what was learned (`configured` is False). `learned` is the amount
    that the provider was found to give, by `learned_from` (header, 429, latency, plan, start) since `learned_since_s`,
    another amount or state since `learned_changed_s`, and to `learned_models` where that is a part of the limit's;
    nothing is let through until `closed_until_s`.
    `hold` says of a window what it holds of calls: "bound", "likely", or "guarded" where it ends streams.
    """

    name: str
    scope: str
    models: str | None
    dimension: str
    kind: str
    amount: int
    per: str
    burst: int
    used: int
    held: int
    free: int
    resets_s: float | None
    pending: int = 0
    set_aside: int = 0
    configured: bool = True
    learned: int | None = None
    learned_from: str | None = None
    learned_since_s: float | None = None
    learned_changed_s: float | None = None
    learned_models: str | None = None
    closed_until_s: float | None = None
    hold: str | None = None

    @property
    def share(self) -> float:
        """The share in use, 0 to 1 (above 1 in debt)."""
        return (self.used + self.held) / self.burst if self.burst else 1.0


@dataclass(frozen=True, slots=True)
class WaitView:
    """One call that waits; `until_s` is None for all but a lane's first, and when only a settlement can let it go.

    `reason` says in words what places it where it is, under the lane's policy.
    """

    call: str
    lane: str
    limit: str
    account: str | None
    key: str | None
    run: str | None
    agent: str | None
    session: str | None
    model: str
    since_s: float
    deadline_s: float
    until_s: float | None
    policy: str
    reason: str


class Monitor:
    """Reads levels and lanes."""

    def __init__(
        self, store: LevelStore, admission: Admission, rules: Rules, learned: LearnedLimits, clock: Clock
    ) -> None:
        """Read from these."""
        self._store = store
        self._admission = admission
        self._rules = rules
        self._learned = learned
        self._planned = admission.planned
        self._clock = clock

    async def limits(self) -> list[LimitView]:
        """Give every limit that is configured, learned or in use, by name."""
        kept = [name for name in await self._store.names("") if not name.startswith(_NO_LEVELS)]
        limits = {limit.name: limit for limit in self._rules.standing()}
        kept.sort(key=lambda name: name.startswith(_SHORT_LIVED))  # these are many, and the first to be left out
        limits.update({limit.name: limit for limit in self._rules.named(kept[:MOST_LIMITS])})
        limits.update({limit.name: limits.get(limit.name, limit) for limit in self._learned.bounds()})
        chosen = [limits[name] for name in sorted(limits)]
        views = await self._read(chosen)
        return [view for view in views if not any(_says_the_same(view, other) for other in views)]

    def queue(self) -> list[WaitView]:
        """Give every call that waits, lane by lane, first to go first."""
        views = []
        heads: set[str] = set()
        for waiting in self._admission.waiting():
            ticket, wait = waiting.ticket, waiting.wait
            is_head = lane_of(wait.limit) not in heads
            heads.add(lane_of(wait.limit))
            views.append(
                WaitView(
                    call=ticket.attempt,
                    lane=lane_of(wait.limit),
                    limit=wait.limit.name,
                    account=ticket.scopes.account,
                    key=ticket.scopes.key,
                    run=ticket.scopes.run,
                    agent=ticket.scopes.agent,
                    session=ticket.scopes.session,
                    model=ticket.model,
                    since_s=ticket.queued_s,
                    deadline_s=ticket.deadline_s,
                    until_s=_until_s(wait) if is_head else None,
                    policy=waiting.lane.policy if waiting.lane is not None else "",
                    reason=self._reason(waiting),
                )
            )
        return views

    def _reason(self, waiting: Waiting) -> str:
        place = self._admission.lanes.reason(waiting)
        limit = waiting.wait.limit
        return f"{describe(limit)}; {place}" if isinstance(limit, Closure) else place

    async def _read(self, limits: Sequence[Limit]) -> list[LimitView]:
        await self._planned.refresh()
        in_force = self._rules.in_force(limits)
        of_limit: dict[str, list[Part]] = {}
        for part in self._planned.parts_of(in_force):
            of_limit.setdefault(part.parent.name, []).append(part)
        parts = (part.limit.name for parts in of_limit.values() for part in parts)
        names = [*(limit.name for limit in limits), *parts]
        records = await self._store.transact(
            names, lambda found: ({}, {name: found[name] for name in names if name in found})
        )
        now_s = self._clock.now_s()
        views = []
        now_ns = to_ns(now_s)
        for limit, now in zip(limits, in_force, strict=True):
            reading, learned = quota.read(now, records, now_s), self._told_of(limit, now_s)
            aside = untaken(of_limit.get(now.name, ()), records, now_ns)
            to_others = None if learned.get("closed_until_s") else without(now, aside)
            views.append(
                LimitView(
                    name=limit.name,
                    scope=limit.scope,
                    models=limit.models,
                    dimension=limit.dimension,
                    kind=limit.kind,
                    amount=limit.amount,
                    per=per_of(limit),
                    burst=now.burst if isinstance(now, Rate) else now.amount,
                    used=reading.used,
                    held=reading.held,
                    free=0 if to_others is None else quota.read(to_others, records, now_s).free,
                    resets_s=to_s(reading.resets_ns) if reading.resets_ns is not None else None,
                    set_aside=aside,
                    pending=now.pending(records.get(now.name), now_ns) if isinstance(now, Window | Rolling) else 0,
                    configured=self._rules.configured(limit.name) is not None,
                    hold=_hold(now),
                    **learned,
                )
            )
        return views

    def _told_of(self, limit: Limit, now_s: float) -> dict[str, Any]:
        """Give what was learned of a limit: of its own level, or of the tightest of the models that it is over."""
        found = self._learned.over(limit)
        if found is None:
            return {}
        key, learned = found
        return {
            "learned": amount_at(learned, now_s) or None,
            "learned_from": learned.source,
            "learned_since_s": learned.since_s,
            "learned_changed_s": learned.moved_s,
            "learned_models": key.models if key.models != (limit.models or "") else None,
            "closed_until_s": learned.closed_until_s if learned.closed_until_s > now_s else None,
        }


def _says_the_same(learned: LimitView, over: LimitView) -> bool:
    """Whether what was learned of a class of models says no more than a configured limit over it, beside it stands."""
    return (
        not learned.configured
        and over.configured
        and (learned.scope, learned.dimension, learned.kind, learned.per)
        == (over.scope, over.dimension, over.kind, over.per)
        and (over.models is None or fnmatchcase(learned.models or "", over.models))
        and learned.amount >= over.amount
        and learned.used + learned.held <= over.used + over.held
        and learned.closed_until_s is None
    )


def _until_s(wait: Wait) -> float | None:
    """Give when a call goes at the latest; None where only a call that ends can let it go."""
    # Slots are held until their calls end: the instant of such a wait is when the leases would, which are renewed.
    needs_an_end = isinstance(wait.limit, Gauge) and wait.earliest_s < wait.until_s
    return None if needs_an_end or wait.until_s == float("inf") else wait.until_s


def per_of(limit: Limit) -> str:
    """Say over what a limit's amount is meant: `60s` (a rate), `rolling-3600s`, `day`, `lifetime`, `at once`."""
    match limit:
        case Rate():
            return f"{limit.period_s}s"
        case Rolling():
            return f"rolling-{limit.period_s}s"
        case Window():
            return limit.span.name
        case Gauge():
            return "at once"


def _hold(limit: Limit) -> str | None:
    if not isinstance(limit, Window | Rolling):
        return None
    return "guarded" if limit.ends_streams else "likely" if limit.holds_likely else "bound"

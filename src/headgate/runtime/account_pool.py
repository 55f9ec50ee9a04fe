"""The accounts of one owner as one pool: which serves a call, by what this process knows of each at that moment.

One rule: a choice costs no look into the store: it goes by the levels that the last admissions here left, and the
admission itself is exact whatever was chosen. How to choose is the core's (`core.pool`).
"""

import math
from collections import OrderedDict, deque
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

from headgate.core import quota, set_aside
from headgate.core.accounts import Account, accounts_for
from headgate.core.amounts import Amounts, Demand
from headgate.core.instants import NS_PER_S
from headgate.core.limits import Level, Limit, Rate, Window
from headgate.core.pool import CLOSED, Breaker, Choice, Option, choose
from headgate.core.quota import Admitted, Refused
from headgate.core.retries import Failure
from headgate.core.scheduling import Standing
from headgate.core.scopes import Scopes
from headgate.core.set_aside import NO_PLANS, Plans
from headgate.core.spans import OpenedByUse
from headgate.core.usage import Dialect
from headgate.ports import Clock

MOST_SESSIONS = 50_000
MOST_CIRCUITS = 10_000
MOST_CHOICES = 200
"""Choices that are remembered, to be asked why."""

LimitsFor = Callable[[Scopes, str], tuple[Limit, ...]]
PlansFor = Callable[[Sequence[Limit], Scopes, str], Plans]
"""What a call meets beside its limits: reservations and maintenance."""

_SIDE_OF_PROVIDER = ("overloaded", "server", "connection", "limited")


@dataclass(frozen=True, slots=True)
class Asked:
    """A call that looks for an account: what it would use where its prompt cache is (`demand`), and elsewhere."""

    dialect: Dialect
    model: str
    scopes: Scopes
    demand: Demand
    standing: Standing

    def demand_at(self, *, is_warm: bool) -> Demand:
        """Give what it asks of an account that has its prompt cache, or has not."""
        cold = self.standing.cold
        return self.demand if is_warm or cold is None else self.demand._replace(expected=cold)


class AccountPool:
    """Chooses, remembers who has whose prompt cache, and who is ill."""

    def __init__(
        self,
        accounts: Sequence[Account],
        limits_for: LimitsFor,
        seen: Mapping[str, Level],
        waiting_s: Callable[[Sequence[Limit], Limit | None], float],
        clock: Clock,
        plans_for: PlansFor = lambda _limits, _scopes, _model: NO_PLANS,
    ) -> None:
        """Read levels from `seen` and queues from `waiting_s` (seconds of their limits that waiting calls take)."""
        self._accounts = tuple(accounts)
        self._limits_for = limits_for
        self._seen = seen
        self._waiting_s = waiting_s
        self._clock = clock
        self._plans_for = plans_for
        self._homes: OrderedDict[tuple[str, str], str] = OrderedDict()
        self._circuits: OrderedDict[tuple[str, str], Breaker] = OrderedDict()
        self.choices: deque[tuple[float, str, Choice]] = deque(maxlen=MOST_CHOICES)

    def only(self, dialect: Dialect, model: str) -> str | None:
        """Give the account that serves a model, if there is but one.

        Raises:
            UnknownModelError: no account serves the model.
        """
        able = accounts_for(self._accounts, dialect, model)
        return able[0].name if len(able) == 1 else None

    def choose(self, asked: Asked, avoid: Collection[str] = ()) -> tuple[Choice, bool]:
        """Choose for a call, not one of `avoid` if another can; gives whether its prompt cache, if any, is there.

        Raises:
            UnknownModelError: no account serves the model.
        """
        able = accounts_for(self._accounts, asked.dialect, asked.model)
        home = self._homes.get(_home_of(asked)) if asked.scopes.session is not None else None
        now_s = self._clock.now_s()
        options = [self._option(account, asked, home, avoid, now_s) for account in able]
        choice = choose(options, now_s) or Choice(able[0].name, "none can ever serve it; the first says why")
        self.choices.append((now_s, asked.model, choice))
        key = (choice.account, asked.model)
        self._circuits[key] = self._circuits.get(key, CLOSED).tried(now_s)
        return choice, home in (None, choice.account)

    def succeeded(self, asked_model: str, scopes: Scopes) -> None:
        """Remember that an account answered: its circuit closes, and the session's prompt cache is there."""
        account = scopes.account or ""
        self._circuits.pop((account, asked_model), None)
        if scopes.session is not None:
            self._homes[scopes.session, asked_model] = account
            self._homes.move_to_end((scopes.session, asked_model))
            if len(self._homes) > MOST_SESSIONS:
                self._homes.popitem(last=False)

    def failed(self, account: str, model: str, failure: Failure) -> None:
        """Count a failure; only the provider's side makes an account ill."""
        key = (account, model)
        before = self._circuits.get(key, CLOSED)
        if failure.kind in _SIDE_OF_PROVIDER:
            after_s = failure.retry_after_s if failure.kind == "limited" else None
            self._circuits[key] = before.failed(self._clock.now_s(), after_s)
            self._circuits.move_to_end(key)
            if len(self._circuits) > MOST_CIRCUITS:
                self._circuits.popitem(last=False)
        elif before is not CLOSED:
            self._circuits[key] = before.gave_up()

    def gave_up(self, account: str, model: str) -> None:
        """Remember that a call ended without a word of the provider's side."""
        key = (account, model)
        if key in self._circuits:
            self._circuits[key] = self._circuits[key].gave_up()

    def has_another(self, avoid: Collection[str], dialect: Dialect, model: str) -> bool:
        """Whether an account beside these serves a model."""
        able = accounts_for(self._accounts, dialect, model)
        return any(account.name not in avoid for account in able)

    def closed_s(self, account: str, model: str) -> float:
        """Give for how long an account is left alone for a model, after failures or because its provider said so."""
        until_s = self._circuits.get((account, model), CLOSED).open_until_s
        return 0.0 if until_s is None else max(0.0, until_s - self._clock.now_s())

    def _option(self, account: Account, asked: Asked, home: str | None, avoid: Collection[str], now_s: float) -> Option:
        scopes = asked.scopes._replace(account=account.name)
        limits = self._limits_for(scopes, asked.model)
        is_warm = home == account.name
        demand = asked.demand_at(is_warm=home is None or is_warm)
        planned = self._plans_for(limits, scopes, asked.model)
        outcome = set_aside.admit(limits, self._seen, demand, now_s, plans=planned)
        own = [limit for limit in limits if limit.scope == f"account:{account.name}"]
        readings = [(limit, quota.read(limit, self._seen, now_s)) for limit in own]
        plans = [
            _plan_share(limit, reading.used + reading.held, reading.resets_ns, now_s)
            for limit, reading in readings
            if isinstance(limit, Window) and isinstance(limit.span, OpenedByUse)
        ]
        circuit = self._circuits.get((account.name, asked.model), CLOSED)
        return Option(
            account.name,
            wait_s=math.inf if isinstance(outcome, Refused) else self._wait_s(outcome, limits, now_s),
            cost_s=_cost_s(own, demand.expected),
            price_micro_usd=demand.expected.micro_usd,
            behind=min((elapsed - used for elapsed, used in plans), default=0.0),
            headroom=min((reading.free / _depth(limit) for limit, reading in readings), default=1.0),
            over_soft_ceiling=any(used > account.soft_ceiling for _elapsed, used in plans),
            is_warm=is_warm,
            closed_until_s=circuit.open_until_s if circuit.state(now_s) == "open" else None,
            refused=f"it can never serve the call: {outcome.limit.name}" if isinstance(outcome, Refused) else None,
            failed_before=account.name in avoid,
        )

    def _wait_s(self, outcome: Admitted | quota.Wait, limits: Sequence[Limit], now_s: float) -> float:
        if isinstance(outcome, Admitted):
            return self._waiting_s(limits, None)
        return max(0.0, outcome.earliest_s - now_s) + self._waiting_s(limits, outcome.limit)


def _home_of(asked: Asked) -> tuple[str, str]:
    return asked.scopes.session or "", asked.model


def _plan_share(limit: Window, used: int, resets_ns: int | None, now_s: float) -> tuple[float, float]:
    """Give which part of a plan window has passed, and which part of it is used; one that is not open has not begun."""
    assert isinstance(limit.span, OpenedByUse)
    if resets_ns is None:
        return 0.0, used / limit.amount
    left_s = max(0.0, resets_ns / NS_PER_S - now_s)
    return 1.0 - min(1.0, left_s / limit.span.period_s), used / limit.amount


def _cost_s(limits: Sequence[Limit], amounts: Amounts) -> float:
    costs = ((amounts[limit.place] or 0) * limit.period_s / limit.amount for limit in limits if isinstance(limit, Rate))
    return max(costs, default=0.0)


def _depth(limit: Limit) -> int:
    return limit.burst if isinstance(limit, Rate) else max(1, limit.amount)

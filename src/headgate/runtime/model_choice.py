"""The model that a call is sent with: the facts that the owner's model rules ask for, as this process knows them now.

One rule: nothing is held and nothing promised: a choice goes by the levels at that moment, and the admission of what
was chosen is exact whatever they become. Which rule fits, and when a conversation stays with one that does not, is the
core's (`core.model_rules`); without rules this costs nothing.
"""

import math
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from functools import cached_property

from headgate.core import quota, set_aside
from headgate.core.accounts import Account
from headgate.core.estimates import Estimate, Estimator
from headgate.core.instants import NS_PER_S
from headgate.core.limits import Level, Limit, Rolling, Window
from headgate.core.model_rules import (
    Asking,
    Delay,
    Kept,
    Left,
    ModelChoice,
    ModelRule,
    RuledOut,
    choose_model,
    may_fit,
    stay,
)
from headgate.core.quota import Refused, Wait
from headgate.core.scopes import Scopes, fit
from headgate.core.set_aside import Closure
from headgate.core.usage import Usage
from headgate.ports import Clock, LevelStore, Prices
from headgate.runtime.account_pool import AccountPool
from headgate.runtime.asking import demand_of, estimate_of, size_of
from headgate.runtime.grants import Call
from headgate.runtime.planning import Maintenance, PlannedReservations
from headgate.runtime.rules import Rules
from headgate.runtime.telling import describe

_NO_BUDGET = Left(1.0)
_NO_ACCOUNT = Delay(math.inf, is_refused=True)

MOST_KEPT = 20_000
"""Conversations that a rule has changed and that are remembered, those that were forgotten longest first."""

_Conversation = tuple[str | None, ...]


@dataclass(frozen=True, slots=True)
class ModelChoosing:
    """Applies the owner's model rules to calls."""

    rules: Sequence[ModelRule]
    accounts: Sequence[Account]
    limits: Rules
    levels: LevelStore
    planned: PlannedReservations
    maintenance: Maintenance
    pool: AccountPool
    waiting_s: Callable[[Sequence[Limit], Limit | None], float | None]
    prices: Prices
    estimator: Estimator
    clock: Clock
    kept: OrderedDict[_Conversation, Kept] = field(default_factory=OrderedDict)

    async def choose(self, call: Call) -> ModelChoice | RuledOut:
        """Give what becomes of a call; one that may not degrade stays as it is.

        Where a rule asks how far limits are used, they are read from the store, once for the call.
        """
        if not self.rules or not call.may_degrade:
            return ModelChoice(call.model)
        now_s, scopes = self.clock.now_s(), fit(call.scopes)
        asking = Asking(call.model, scopes.path(), call.max_output_tokens)
        rules = [rule for rule in self.rules if may_fit(rule, asking, now_s)]
        conversation = _conversation(scopes, call.model)
        kept = self.kept.get(conversation) if conversation is not None else None
        asked = rules if kept is None else [*rules, kept.rule]
        if not asked:
            return ModelChoice(call.model)
        levels: Mapping[str, Level] = {}
        if any(rule.asks_limits for rule in asked):
            models = {call.model, *(rule.use for rule in asked if rule.use is not None)}
            levels = await self._read(call, scopes, models)
        facts = _Facts(self, call, scopes, levels, now_s)
        chosen = choose_model(rules, asking, facts, now_s)
        if kept is not None and (same := stay(kept, chosen, asking, facts, now_s)) is not chosen:
            return same
        if conversation is not None and isinstance(chosen, ModelChoice):
            self._keep(conversation, chosen, now_s)
        return chosen

    def _keep(self, conversation: _Conversation, chosen: ModelChoice, now_s: float) -> None:
        """Remember a choice that a rule made anew for a conversation."""
        self.kept.pop(conversation, None)
        if chosen.is_changed:
            rule = next(rule for rule in self.rules if rule.name == chosen.rule)
            self.kept[conversation] = Kept(rule, now_s)
            if len(self.kept) > MOST_KEPT:
                self.kept.popitem(last=False)

    def met(self, call: Call, scopes: Scopes, model: str) -> list[tuple[Account, tuple[Limit, ...]]]:
        """Give each account that serves a model to the call, and the limits that it would meet there."""
        able = [account for account in self.accounts if account.dialect == call.dialect and account.serves(model)]
        return [(account, self.limits.limits_for(scopes._replace(account=account.name), model)) for account in able]

    async def _read(self, call: Call, scopes: Scopes, models: Iterable[str]) -> Mapping[str, Level]:
        met = [limit for model in models for _account, limits in self.met(call, scopes, model) for limit in limits]
        names = list(dict.fromkeys(limit.name for limit in self.planned.with_parts(met)))
        return await self.levels.transact(
            names, lambda found: ({}, {name: found[name] for name in names if name in found})
        )


def _conversation(scopes: Scopes, model: str) -> _Conversation | None:
    """Name a conversation of whoever calls; None where the call is none of one."""
    if scopes.session is None:
        return None
    return scopes.key, scopes.run, scopes.session, scopes.agent, model


@dataclass(frozen=True)
class _Facts:
    """What is known of one call now (`core.model_rules.Facts`)."""

    here: ModelChoosing
    call: Call
    scopes: Scopes
    levels: Mapping[str, Level]
    now_s: float

    def input_tokens(self) -> int:
        return self._estimate.input_tokens

    def effort(self) -> str | None:
        return None if self.call.effort is None else self.call.effort()

    def left(self, scopes: str | None) -> Left:
        """Give what is left at the account where most is: the call may go there."""
        met = self.here.met(self.call, self.scopes, self.call.model)
        left = (self._left(limits, scopes) for _account, limits in met)
        return max(left, key=lambda each: each.part, default=_NO_BUDGET)

    def delay(self, model: str) -> Delay:
        """Give how long the call would wait at the account that could serve it soonest, behind those that wait."""
        met = self.here.met(self.call, self.scopes, model)
        delays = (self._delay(model, account, limits) for account, limits in met)
        return min(delays, key=lambda each: each.wait_s, default=_NO_ACCOUNT)

    def can_take(self, model: str) -> bool:
        if not self.here.met(self.call, self.scopes, model):
            return False
        reach = self.here.prices.reach(model)
        stated = self.call.max_output_tokens
        if reach.max_output_tokens is not None and stated is not None and stated > reach.max_output_tokens:
            return False
        return reach.context_window is None or self.input_tokens() <= reach.context_window

    def cached_part(self, model: str) -> float:
        size = size_of(replace(self.call, model=model))
        # OpenAI's models write their prompt cache unasked, and do not say so.
        return self.here.estimator.cached_part(size, self.now_s, unasked=self.call.dialect == "openai")

    def cost_micro_usd(self, model: str) -> int | None:
        usage = Usage(self._estimate.input_tokens, output_tokens=self._estimate.output_tokens)
        return self.here.prices.cost(model, usage, self.now_s).micro_usd

    @cached_property
    def _estimate(self) -> Estimate:
        return estimate_of(self.call, self.here.estimator, self.now_s)

    def _left(self, limits: Sequence[Limit], scopes: str | None) -> Left:
        scarcest = _NO_BUDGET
        for limit in self.here.limits.in_force(limits):
            is_asked = scopes is None or fnmatchcase(limit.scope.partition("|")[0], scopes)
            if isinstance(limit, Window | Rolling) and is_asked:
                reading = quota.read(limit, self.levels, self.now_s)
                resets_s = None if reading.resets_ns is None else reading.resets_ns / NS_PER_S
                if reading.free / limit.amount < scarcest.part:
                    scarcest = Left(reading.free / limit.amount, resets_s, describe(limit))
        return scarcest

    def _delay(self, model: str, account: Account, limits: Sequence[Limit]) -> Delay:
        here, call = self.here, replace(self.call, model=model)
        estimate = estimate_of(call, here.estimator, self.now_s)
        asked = demand_of(call, estimate, here.prices, self.now_s)
        path = self.scopes._replace(account=account.name).path()
        plans = here.planned.met(limits, path, here.maintenance.met(path, model))
        outcome = set_aside.admit(here.limits.in_force(limits), self.levels, asked, self.now_s, plans=plans)
        if isinstance(outcome, Refused) or (isinstance(outcome, Wait) and math.isinf(outcome.earliest_s)):
            return Delay(math.inf, describe(outcome.limit), is_refused=True)
        binding = outcome.limit if isinstance(outcome, Wait) else None
        # What nobody knows is not waited for: a rule must not fire by a guess.
        wait_s, binds, is_refused = here.waiting_s(limits, binding) or 0.0, "", False
        if isinstance(outcome, Wait):
            wait_s, binds = wait_s + max(0.0, outcome.earliest_s - self.now_s), describe(outcome.limit)
            is_refused = isinstance(outcome.limit, Closure) and outcome.limit.refuses
        elif wait_s > 0:
            longest = max(limits, key=lambda limit: here.waiting_s((limit,), None) or 0.0)
            binds = f"{describe(longest)}, behind those that wait already"
        closed_s = here.pool.closed_s(account.name, model)
        if closed_s > wait_s:
            return Delay(closed_s, f"account {account.name}, which is left alone after failures", is_refused)
        return Delay(wait_s, binds, is_refused)

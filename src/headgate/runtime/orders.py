"""Orders: what an owner may change while a manager runs, and what has to be done to levels before that.

One rule: a rate drains at its old pace until it is changed and at its new one from then on; all else that levels count
does not depend on amounts.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice

from headgate.core.instants import to_ns
from headgate.core.limits import Rate
from headgate.core.model_rules import ModelRule
from headgate.core.retries import RetryRule
from headgate.core.scheduling import Scheduling
from headgate.core.scopes import LimitRule
from headgate.ports import Clock, LevelStore, Record
from headgate.runtime.planning import MaintenanceRule
from headgate.runtime.rules import Rules, bound, rule_level

PIECE = 500
"""Levels brought up to date in one transaction."""


@dataclass(frozen=True, slots=True)
class Orders:
    """What an owner may change while a manager runs."""

    rules: Sequence[LimitRule]
    retries: RetryRule = field(default_factory=RetryRule)
    scheduling: Scheduling = field(default_factory=Scheduling)
    maintenance: Sequence[MaintenanceRule] = ()
    model_rules: Sequence[ModelRule] = ()


async def at_once() -> None:
    """Wait for nobody: what is ready is put in force."""


def raised(before: Sequence[LimitRule], after: Sequence[LimitRule]) -> list[LimitRule]:
    """Give the rules that allow more than they did."""
    amounts = {rule_level(rule): rule.template.amount for rule in before}
    return [rule for rule in after if rule.template.amount > amounts.get(rule_level(rule), rule.template.amount)]


async def bring_rates_up_to_date(store: LevelStore, rules: Rules, to_come: Sequence[LimitRule], clock: Clock) -> None:
    """Let the rates whose pace is about to change drain at their old one until now.

    Raises:
        StoreError: the store cannot be used; nothing was counted anew.
    """
    paces = {rule_level(rule): rule.template.amount for rule in to_come}
    changing = [
        rule
        for rule in rules.all_configured()
        if isinstance(rule.template, Rate) and paces.get(rule_level(rule), rule.template.amount) != rule.template.amount
    ]
    if not changing:
        return
    found = ((name, bound(changing, name)) for name in await store.names(""))
    rates = ((name, rate) for name, rate in found if isinstance(rate, Rate))
    while piece := dict(islice(rates, PIECE)):

        def step(
            records: Mapping[str, Record], piece: Mapping[str, Rate] = piece
        ) -> tuple[Mapping[str, Record | None], None]:
            now_ns = to_ns(clock.now_s())
            return {name: rate.drained(records[name], now_ns) for name, rate in piece.items() if name in records}, None

        await store.transact(list(piece), step)

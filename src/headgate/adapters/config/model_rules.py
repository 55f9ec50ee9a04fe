"""Model rules as people write them: `[[model_rule]]`, what must hold of a call, and the one thing that is done then.

One rule: a rule that could never do anything is told, with its line; whether it fits a call is the core's to say.
"""

import re
from collections.abc import Mapping, Sequence
from datetime import UTC, tzinfo
from fnmatch import fnmatchcase
from typing import Literal

from headgate.adapters.config.limits import read_models, read_timezone, scope_among, scope_pattern
from headgate.adapters.config.tables import Reader, Table, Unfit, choice, number, text, whole
from headgate.adapters.config.values import name
from headgate.core.accounts import Account
from headgate.core.model_rules import STICKY_S, Between, Effort, ModelRule

__all__ = ["read_model_rule"]

WEEK_S = 7 * 86_400
MOST_TOKENS = 1_000_000_000

_EFFORTS: Mapping[str, Effort] = {"low": "low", "medium": "medium", "high": "high"}
_THEN: Mapping[str, Literal["wait", "refuse"]] = {"wait": "wait", "refuse": "refuse"}
_SPAN = re.compile(r"([01]\d|2[0-3]):([0-5]\d)-([01]\d|2[0-3]):([0-5]\d)")
_WILDCARD = re.compile(r"[*?]")
_UTC: tzinfo = UTC

_model = text(r"[^\s\[\]*?]{1,200}", 'the name of a model such as "claude-haiku-4-5", not a pattern')


def read_model_rule(table: Table, number_of_rule: int, accounts: Sequence[Account]) -> ModelRule:
    """Read one entry; without a name of its own it is called by its number."""
    tokens = whole(1, MOST_TOKENS)
    zone = table.take("timezone", read_timezone, _UTC)
    models = read_models(table)
    rule = ModelRule(
        name=table.take("name", name, str(number_of_rule)),
        models=models,
        scope=table.take("scope", _scope, None),
        max_input_tokens=table.take("max_input_tokens", tokens, None),
        max_output_tokens=table.take("max_output_tokens", tokens, None),
        between=table.take("between", _between(zone), None),
        budget_below=table.take("budget_below", number(0.001, 1, "a part of a budget such as 0.2"), None),
        budget_of=table.take("budget_of", scope_among([each.name for each in accounts]), None),
        wait_over_s=table.take("wait_over_s", number(0, WEEK_S, "a number of seconds such as 30"), None),
        use=table.take("use", _served_by(accounts, models), None),
        effort=table.take("effort", choice(_EFFORTS), None),
        then=table.take("then", choice(_THEN), None),
        sticky_s=table.take("sticky_s", number(0, WEEK_S, "a number of seconds such as 300"), STICKY_S),
    )
    changes = [word for word in ("use", "effort") if table.has(word)]
    if not changes and not table.has("then"):
        table.problem(None, "does nothing; expected use, effort, or then")
    elif changes and table.has("then"):
        table.problem("then", f"a rule does one thing, and this one has {changes[0]}; write another rule after it")
    elif table.has("then") and table.has("sticky_s"):
        table.problem("sticky_s", "changes nothing beside then; it is for rules with use or effort")
    if rule.use is not None and rule.use == rule.models and rule.effort is None:
        table.problem("use", "changes nothing: it is what models has; expected another model, or effort beside it")
    for word, needed in (("timezone", "between"), ("budget_of", "budget_below")):
        if table.has(word) and not table.has(needed):
            table.problem(word, f"changes nothing without {needed}")
    table.close()
    return rule


def _between(zone: tzinfo) -> Reader[Between]:
    def read(value: object) -> Between:
        found = _SPAN.fullmatch(value) if isinstance(value, str) else None
        if found is None:
            raise Unfit('expected two times of day such as "22:00-06:00"')
        from_hour, from_minute, to_hour, to_minute = map(int, found.groups())
        span = Between((from_hour * 60 + from_minute) * 60, (to_hour * 60 + to_minute) * 60, zone)
        if span.begins_s == span.ends_s:
            raise Unfit("expected two different times; a rule for the whole day needs none")
        return span

    return read


def _scope(value: object) -> str:
    scope = scope_pattern(value)
    if scope.startswith("account:"):
        raise Unfit("the account is chosen after the model; expected another scope such as key:ci or tag:kind=simple")
    return scope


def _served_by(accounts: Sequence[Account], models: str | None) -> Reader[str]:
    """Read a model that calls for `models` can be sent with: an account of the same dialect serves it."""

    def read(value: object) -> str:
        model = _model(value)
        serving = [account for account in accounts if account.serves(model)]
        if not serving:
            known = "; ".join(f"{each.name} ({', '.join(each.models)})" for each in accounts) or "none"
            raise Unfit(f"no account serves it; configured: {known}")
        if models is None:
            return model
        spoken = {account.dialect for account in serving}
        beside = (account for account in accounts if account.dialect in spoken)
        if not any(_may_overlap(models, glob) for account in beside for glob in account.models):
            raise Unfit(
                f"calls for {models} go to no {' or '.join(sorted(spoken))} account; expected a model that is served "
                "where they go"
            )
        return model

    return read


def _may_overlap(one: str, other: str) -> bool:
    """Whether a model may match both patterns, as far as what stands before their first wildcards tells."""
    if not _WILDCARD.search(one) or not _WILDCARD.search(other):
        return fnmatchcase(one, other) or fnmatchcase(other, one)
    first, second = (_WILDCARD.split(each, 1)[0] for each in (one, other))
    return first.startswith(second) or second.startswith(first)

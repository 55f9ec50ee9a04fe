"""Budget tree: a child's budget comes out of its parents', so one that is larger than a parent's can never be had.

One rule: only what is certainly wrong is a conflict: the child's window must lie within one window of the parent's.
Where a rule stands in a file is not known here.
"""

from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import NamedTuple

from headgate.core.limits import Limit, Rolling, Window
from headgate.core.scopes import LimitRule
from headgate.core.spans import Calendar, Fixed, Lifetime, OpenedByUse

_WITHIN = {
    "hour": ("hour", "day", "week", "month"),
    "day": ("day", "week", "month"),
    "week": ("week",),
    "month": ("month",),
}


class Conflict(NamedTuple):
    """A child's budget is above what its parents (one, or every account together) allow."""

    child: LimitRule
    parents: tuple[LimitRule, ...]
    allowed: int


def conflicts(
    rules: Sequence[LimitRule], parents: Mapping[str, Iterable[str]], accounts: Sequence[str]
) -> list[Conflict]:
    """Give every budget that is above a parent's.

    `parents` has the scopes whose limits all calls of a scope meet too (`key:ci`: `team:x`). Every scope's calls meet
    an account's limits; where there are several accounts, their budgets add up, if each has one.
    """
    budgets = [rule for rule in rules if isinstance(rule.template, Window | Rolling)]
    found: list[Conflict] = []
    for child in budgets:
        if child.scope.startswith("account:"):
            continue
        for scope in _parents_of(child.scope, parents):
            parent = _bound(budgets, scope, child)
            if parent is not None and child.template.amount > parent.template.amount:
                found.append(Conflict(child, (parent,), parent.template.amount))
        of_accounts = [_bound(budgets, f"account:{name}", child) for name in accounts]
        bounds = tuple(rule for rule in of_accounts if rule is not None)
        allowed = sum(rule.template.amount for rule in bounds)
        if bounds and len(bounds) == len(of_accounts) and child.template.amount > allowed:
            found.append(Conflict(child, bounds, allowed))
    return found


def _parents_of(scope: str, parents: Mapping[str, Iterable[str]]) -> list[str]:
    """Give the parents of a scope, and those of every scope that a pattern stands for."""
    return sorted({above for name, all_above in parents.items() if fnmatchcase(name, scope) for above in all_above})


def _bound(budgets: Sequence[LimitRule], scope: str, child: LimitRule) -> LimitRule | None:
    """Give the smallest budget of a scope that bounds a child's."""
    bounding = [
        rule
        for rule in budgets
        if fnmatchcase(scope, rule.scope) and not _is_replaced(rule, budgets, scope) and _bounds(rule, child)
    ]
    return min(bounding, key=lambda rule: rule.template.amount, default=None)


def _is_replaced(rule: LimitRule, budgets: Sequence[LimitRule], scope: str) -> bool:
    """Whether a pattern's budget gives way to one that the scope has by name."""
    return rule.scope != scope and any(
        other.scope == scope
        and other.template.dimension == rule.template.dimension
        and other.template.models == rule.template.models
        and _span(other.template) == _span(rule.template)
        for other in budgets
    )


def _bounds(parent: LimitRule, child: LimitRule) -> bool:
    above, below = parent.template, child.template
    if above.dimension != below.dimension or above.models not in (None, below.models):
        return False
    return _lies_within(below, above)


def _lies_within(below: Limit, above: Limit) -> bool:
    """Whether each window of the one lies within one window of the other."""
    if _span(below) == _span(above):
        return True
    if isinstance(above, Rolling):
        length_s = _longest_s(below)
        return length_s is not None and length_s <= above.period_s
    assert isinstance(above, Window)
    match above.span:
        case Lifetime():
            return True
        case Calendar(unit, zone):
            span = below.span if isinstance(below, Window) else None
            return isinstance(span, Calendar) and span.zone == zone and unit in _WITHIN[span.unit]
        case _:
            return False


def _longest_s(limit: Limit) -> int | None:
    """Give how long one window lasts; None where that varies. A day of 25 hours is no day of any other limit."""
    match limit:
        case Rolling(period_s=period_s) | Window(span=Fixed(period_s) | OpenedByUse(period_s)):
            return period_s
        case Window(span=Calendar("hour")):
            return 3600
        case _:
            return None


def _span(limit: Limit) -> object:
    return ("rolling", limit.period_s) if isinstance(limit, Rolling) else getattr(limit, "span", None)

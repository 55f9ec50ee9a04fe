"""What answers tell of rates and plans: which rates are meant, what must be used of them, which windows are spent.

One rule: of what is told only what is certain is taken for true; what follows for a limit is `adaptive`'s.
"""

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import NamedTuple

from headgate.core.amounts import Dimension
from headgate.core.notices import DAY_S, MINUTE_S, Notices, PlanNotice, RateNotice
from headgate.core.retries import Failure

NOT_PER_MINUTE_S = 600.0
"""What is told to take longer than this is no matter of a minute: its bucket is full again after one."""

RESET_ROUNDED_S = 1.0
"""Resets are told in whole seconds, rounded either way."""

_DAY_TOLERANCE = 0.01
_ORDINARY = ("", "project")
_SHALLOW = 0.8


def told_rates(
    notices: Notices, now_s: float, daily: Mapping[Dimension, int] | None = None
) -> dict[tuple[Dimension, int], RateNotice]:
    """Give what is told of the ordinary tier's rates: one for each dimension and period in seconds, the tighter of two.

    `daily` has the limits by the day that are known, for a bucket that is full says nothing of its period.
    """
    told: dict[tuple[Dimension, int], RateNotice] = {}
    for notice in notices.rates:
        period_s = _period_s(notice, now_s, (daily or {}).get(notice.dimension))
        if notice.tier not in _ORDINARY or period_s is None:
            continue
        key = notice.dimension, period_s
        told[key] = notice if key not in told else _tighter(notice, told[key])
    if ("input_tokens", MINUTE_S) in told or ("output_tokens", MINUTE_S) in told:
        told.pop(("tokens", MINUTE_S), None)  # Anthropic's sum of the two, or the tighter of them
    return told


def told_windows(notices: Notices, now_s: float) -> dict[Dimension, float | None]:
    """Give the limits that are neither by the minute nor refilled over a day, and until when they are spent, if so."""
    return {
        notice.dimension: notice.resets_s if notice.remaining == 0 else None
        for notice in notices.rates
        if notice.tier in _ORDINARY and _period_s(notice, now_s) is None
    }


def _period_s(notice: RateNotice, now_s: float, daily: int | None = None) -> int | None:
    """Give a rate's period, which nobody tells: what is missing comes back until the reset, so the whole takes this.

    None where it is neither a minute nor a day: such a limit is no bucket that refills, but a window that ends at its
    reset. One that happens to have as much of its day left as of its amount is taken for a bucket for that moment.
    """
    if notice.limit is None or notice.remaining is None or notice.resets_s is None:
        return MINUTE_S
    resets_in_s = notice.resets_s - now_s
    missing = notice.limit - notice.remaining
    # What remains was rounded down and may be old by a part of a unit; the reset was rounded as well.
    longest_missing, least_missing = missing + notice.rounded_to, missing - notice.rounded_to
    shortest_s = notice.limit * max(0.0, resets_in_s - RESET_ROUNDED_S) / max(1, longest_missing)
    longest_s = notice.limit * (resets_in_s + RESET_ROUNDED_S) / least_missing if least_missing > 0 else math.inf
    may_be_day = shortest_s <= DAY_S * (1 + _DAY_TOLERANCE) and longest_s >= DAY_S * (1 - _DAY_TOLERANCE)
    may_be_day = may_be_day and missing >= 0  # else one of the two is wrong
    if may_be_day and daily == notice.limit:
        return DAY_S
    if shortest_s <= NOT_PER_MINUTE_S:
        return MINUTE_S
    if may_be_day and least_missing <= 0 and resets_in_s <= MINUTE_S + RESET_ROUNDED_S:
        return MINUTE_S  # a window of a minute that one call has used tells the same, and is far more common
    return DAY_S if may_be_day else None


def depth_of(notice: RateNotice, now_s: float) -> int | None:
    """Give what a provider's bucket of a rate by the minute holds, where it is clearly less than a minute's amount.

    Until its reset comes back what is missing from it, so with what remains it is full.
    """
    if notice.limit is None or notice.remaining is None or notice.resets_s is None:
        return None
    depth = notice.remaining + (notice.resets_s - now_s) * notice.limit / MINUTE_S
    return math.ceil(depth) if 0 < depth < _SHALLOW * notice.limit else None


def spent_at_least(notice: RateNotice, amount: int, period_s: int, now_s: float, depth: float = 1.0) -> tuple[int, int]:
    """Give what must be used of `amount` if a notice is right: for certain, and at most, for it was rounded.

    What is left at the provider is left here too, whatever the two limits are. But a provider's bucket may be less deep
    than a period: no more is missing from it than comes back until it is full again, nor than its `depth`, a share of
    the amount, which is the better word where it is less than the reset's rounding.
    """
    if notice.remaining is None:
        return 0, 0
    rounding = notice.rounded_to // 2
    deep = math.ceil(amount * depth)
    used = deep - min(notice.remaining, deep)
    if notice.resets_s is not None:
        full_in_s = max(0.0, notice.resets_s - now_s) + RESET_ROUNDED_S
        used = min(used, math.ceil(full_in_s * amount / period_s))
    # What remains is told in whole units: of a bucket of a few the part that is not told matters.
    certain = used - max(rounding, 1 if depth < 1 else 0)
    return max(0, certain), min(amount, used + rounding)


LASTED_S = 5.0
_FOLLOWED_SHARE = 2


class Gap(NamedTuple):
    """By how much a level is not what its provider says, at the least since an instant."""

    since_s: float
    least: int


def lasting(found: Gap | None, gap: int, now_s: float) -> tuple[Gap | None, int]:
    """Follow a gap between a level and what a provider says; give by how much it is to be closed now.

    By half of what it was at each look for 5 s: what one answer tells may be older than what was admitted meanwhile,
    and of calls on their way nobody knows how much of their use it holds.
    """
    if gap <= 0:
        return None, 0
    if found is None:
        return Gap(now_s, gap), 0
    found = Gap(found.since_s, min(found.least, gap))
    if now_s - found.since_s < LASTED_S:
        return found, 0
    return None, -(-found.least // _FOLLOWED_SHARE)


LONGEST_PLAN_S = 31 * DAY_S
"""No plan is known to be counted over more than a month."""

MOST_SHARE_ALLOWED = 1.5
"""A window that allows calls is not used further than that: such a share is a percentage, or no share at all."""


def believed_plans(notices: Notices, now_s: float) -> Notices:
    """Give notices with the plan windows that can be true, as far as they can: the rest is as if it were not told."""
    if not notices.plans:
        return notices
    plans = [_believed_plan(plan, now_s) for plan in notices.plans if 0 < plan.period_s <= LONGEST_PLAN_S]
    return replace(notices, plans=tuple(plans))


def _believed_plan(plan: PlanNotice, now_s: float) -> PlanNotice:
    if plan.resets_s is not None and plan.resets_s - now_s > plan.period_s + MINUTE_S:
        plan = replace(plan, resets_s=None)
    if plan.status == "allowed" and (plan.used_share or 0) > MOST_SHARE_ALLOWED:
        plan = replace(plan, used_share=None)
    return plan


def spent_plans(notices: Notices, *, overage_allowed: bool) -> list[PlanNotice]:
    """Give the plan windows that are spent: those that say so, and those that are used up, beyond which is overage.

    None where the owner allows overage and the provider grants it.
    """
    overage = notices.overage
    billed = overage is not None and overage.in_use is True
    if overage_allowed and overage is not None and (billed or overage.status in ("allowed", "warning")):
        return []
    spent = [plan for plan in notices.plans if plan.status == "rejected" or (plan.used_share or 0) >= 1]
    if billed and not spent and notices.plans:
        spent = [max(notices.plans, key=lambda plan: plan.used_share or 0)]
    return spent


def named_rates(
    told: Mapping[tuple[Dimension, int], RateNotice],
    windows: Mapping[Dimension, float | None],
    failure: Failure,
) -> list[tuple[Dimension, int]]:
    """Give the rates that a 429 names: in its words, else as those of which nothing is left; none if it says nothing.

    A wait of more than ten minutes is about a day, whatever the words: a bucket of a minute is full again after one.
    """
    is_long = (failure.retry_after_s or 0.0) > NOT_PER_MINUTE_S
    if failure.dimension is not None:
        return [(failure.dimension, DAY_S if is_long else failure.period_s)]
    empty = [key for key, notice in told.items() if notice.remaining == 0 and (not is_long or key[1] == DAY_S)]
    empty += [(each, DAY_S) for each, until_s in windows.items() if until_s is not None]
    return empty or ([("requests", DAY_S)] if is_long else [])


def _tighter(one: RateNotice, other: RateNotice) -> RateNotice:
    known = [limit for limit in (one.limit, other.limit) if limit]
    left = [remaining for remaining in (one.remaining, other.remaining) if remaining is not None]
    limit, remaining = min(known, default=None), min(left, default=None)
    for notice in (one, other):
        if (notice.limit, notice.remaining) == (limit, remaining):
            return notice
    return replace(one, limit=limit, remaining=remaining, resets_s=None)  # the reset of neither is that of both

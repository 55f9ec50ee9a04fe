"""What Anthropic's headers tell of its limits: rates of an API account, windows of a subscription plan.

One rule: any header may be absent, malformed or lie; what is not understood is left out.
Sources: Anthropic, "Rate limits" and "Fast mode" (November 2026) for the rates; the `unified` headers of plans are
undocumented and named as clients read them (wire.md section 2).
"""

import re
from collections.abc import Mapping

from headgate.adapters.providers.header_values import MOST_RATE_RESET_S, Clocks, amount, lower_case, share, word
from headgate.core.amounts import Dimension
from headgate.core.notices import (
    DAY_S,
    HOUR_S,
    NO_NOTICES,
    Notices,
    OverageNotice,
    PlanNotice,
    PlanStatus,
    RateNotice,
)
from headgate.ports import Headers

__all__ = ["read_notices"]

_RATES = b"anthropic-ratelimit-"
_UNIFIED = b"anthropic-ratelimit-unified-"
# Tiers beside the ordinary one, each with limits of its own.
_TIERS = ((_RATES, ""), (b"anthropic-priority-", "priority"), (b"anthropic-fast-", "fast"))
# `tokens` is the tighter of the two others, or of a workspace's own.
_DIMENSIONS: tuple[tuple[bytes, Dimension], ...] = (
    (b"requests", "requests"),
    (b"input-tokens", "input_tokens"),
    (b"output-tokens", "output_tokens"),
    (b"tokens", "tokens"),
)
_TOKENS_ROUNDED_TO = 1000

_WINDOW = re.compile(rb"([1-9][0-9]{0,2}[hd](?:_[a-z0-9_]{1,32})?)-(?:status|utilization|reset|surpassed-threshold)")
_UNITS_S = {b"h": HOUR_S, b"d": DAY_S}
_STATUS: Mapping[bytes, PlanStatus] = {b"allowed": "allowed", b"allowed_warning": "warning", b"rejected": "rejected"}
_YES_OR_NO: Mapping[bytes, bool] = {b"true": True, b"false": False}
_CLAIMS: Mapping[bytes, int] = {b"five_hour": 5 * HOUR_S, b"seven_day": 7 * DAY_S}


def read_notices(headers: Headers, now_s: float) -> Notices:
    """Read what an answer that came at `now_s` says of limits; NO_NOTICES if it says nothing.

    Amounts are requests and tokens per minute, shares 0 to 1. A rate's reset (RFC 3339) is when it is full again, a
    window's (seconds since the epoch) when it ends; one that is past, or further away than the window is long, is
    ignored.
    """
    named = lower_case(headers)
    clocks = Clocks.read(named, now_s)
    rates = _rates(named, clocks)
    unified = {name.removeprefix(_UNIFIED): value for name, value in named.items() if name.startswith(_UNIFIED)}
    if not unified:
        return Notices(rates) if rates else NO_NOTICES
    return Notices(
        rates,
        _plans(unified, clocks),
        plan_status=_STATUS.get(unified.get(b"status", b"")),
        binding=word(unified.get(b"representative-claim")),
        overage=_overage(unified, clocks),
    )


def _rates(named: Mapping[bytes, bytes], clocks: Clocks) -> tuple[RateNotice, ...]:
    rates = []
    for prefix, tier in _TIERS:
        for label, dimension in _DIMENSIONS:
            start = prefix + label
            limit, remaining = amount(named.get(start + b"-limit")), amount(named.get(start + b"-remaining"))
            resets_s = clocks.at_date(named.get(start + b"-reset"), MOST_RATE_RESET_S)
            if limit is not None or remaining is not None or resets_s is not None:
                rounded_to = 1 if dimension == "requests" else _TOKENS_ROUNDED_TO
                rates.append(RateNotice(dimension, limit, remaining, resets_s, tier, rounded_to))
    return tuple(rates)


def _plans(unified: Mapping[bytes, bytes], clocks: Clocks) -> tuple[PlanNotice, ...]:
    """Read every window: `5h`, `7d`, and those of some models only, such as `7d_opus`."""
    labels = dict.fromkeys(found[1] for name in unified if (found := _WINDOW.fullmatch(name)) is not None)
    plans = [_plan(label, unified, clocks) for label in labels]
    # Some answers tell only the window that binds, and without its figures.
    claimed_s = _CLAIMS.get(unified.get(b"representative-claim", b""))
    if claimed_s is not None and not any(plan.period_s == claimed_s and not plan.models for plan in plans):
        resets_s = clocks.at_epoch(unified.get(b"reset"), claimed_s)
        plans.append(PlanNotice(claimed_s, resets_s=resets_s, status=_STATUS.get(unified.get(b"status", b""))))
    return tuple(plans)


def _plan(label: bytes, unified: Mapping[bytes, bytes], clocks: Clocks) -> PlanNotice:
    length, _, models = label.partition(b"_")
    period_s = int(length[:-1]) * _UNITS_S[length[-1:]]
    return PlanNotice(
        period_s,
        used_share=share(unified.get(label + b"-utilization")),
        resets_s=clocks.at_epoch(unified.get(label + b"-reset"), period_s),
        status=_STATUS.get(unified.get(label + b"-status", b"")),
        warned_share=share(unified.get(label + b"-surpassed-threshold")),
        models=models.decode("ascii"),
    )


def _overage(unified: Mapping[bytes, bytes], clocks: Clocks) -> OverageNotice | None:
    told = {name: value for name, value in unified.items() if name.startswith(b"overage-")}
    if not told:
        return None
    return OverageNotice(
        status=_STATUS.get(told.get(b"overage-status", b"")),
        in_use=_YES_OR_NO.get(told.get(b"overage-in-use", b"").lower()),
        used_share=share(told.get(b"overage-utilization")),
        resets_s=clocks.at_epoch(told.get(b"overage-reset"), MOST_RATE_RESET_S),
        refused_because=word(told.get(b"overage-disabled-reason")),
    )

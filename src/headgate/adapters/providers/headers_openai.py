"""What OpenAI's headers tell of its limits, those of Azure and of compatible servers, and Codex' plan windows.

One rule: any header may be absent, malformed or lie; what is not understood is left out.
Sources: OpenAI, "Rate limits", and Azure's use of the same names (wire.md section 3, November 2026); the `x-codex`
headers are undocumented and named as the Codex CLI reads them (wire.md section 1).
"""

import re
from collections.abc import Mapping
from itertools import product

from headgate.adapters.providers.header_values import MOST_RATE_RESET_S, Clocks, amount, lower_case, share
from headgate.core.amounts import Dimension
from headgate.core.notices import DAY_S, HOUR_S, NO_NOTICES, Notices, PlanNotice, RateNotice
from headgate.ports import Headers

__all__ = ["read_notices"]

_DIMENSIONS: tuple[tuple[bytes, Dimension], ...] = ((b"requests", "requests"), (b"tokens", "tokens"))
_PARTS = (b"limit", b"remaining", b"reset")
_TIERS = ((b"", ""), (b"project-", "project"))

# `x-codex-primary-...` is what all models share, `x-codex-<name>-primary-...` what some have for themselves.
_SLOT = re.compile(
    rb"(x-codex-(?:([a-z0-9_]{1,32})-)?(?:primary|secondary))-(?:used-percent|window-minutes|reset-at|reset-after-seconds)"
)
_KNOWN_PERIODS_S = (5 * HOUR_S, 7 * DAY_S)
_PERIOD_TOLERANCE_S = 180
"""A window of 5 hours has been told as 299 minutes; the Codex CLI allows for three."""
_MOST_WINDOW_MINUTES = 366 * 24 * 60
_PERCENT = 100.0


def read_notices(headers: Headers, now_s: float) -> Notices:
    """Read what an answer that came at `now_s` says of limits; NO_NOTICES if it says nothing.

    Amounts are requests and tokens per minute, or per day where that is tighter. A rate's reset is a duration
    (`6m0s`), at whose end it is full again. Codex tells a share in percent, a window's length in minutes and its end
    in seconds since the epoch or from now; a window is known by its length, for which slot it stands in has changed.
    """
    named = lower_case(headers)
    clocks = Clocks.read(named, now_s)
    rates, plans = _rates(named, clocks), _plans(named, clocks)
    return Notices(rates, plans) if rates or plans else NO_NOTICES


def _rates(named: Mapping[bytes, bytes], clocks: Clocks) -> tuple[RateNotice, ...]:
    rates = []
    for (infix, tier), (label, dimension) in product(_TIERS, _DIMENSIONS):
        told = {part: named.get(b"x-ratelimit-%b-%b%b" % (part, infix, label)) for part in _PARTS}
        limit, remaining = amount(told[b"limit"]), amount(told[b"remaining"])
        if not limit:
            # Azure writes -1 or 0 for what it does not know; nothing is granted nowhere, and what is left of it says
            # something only if it is something (wire.md section 3).
            limit, remaining = None, remaining or None
        resets_s = clocks.after(told[b"reset"], MOST_RATE_RESET_S)
        if limit is not None or remaining is not None or resets_s is not None:
            rates.append(RateNotice(dimension, limit, remaining, resets_s, tier))
    return tuple(rates)


def _plans(named: Mapping[bytes, bytes], clocks: Clocks) -> tuple[PlanNotice, ...]:
    slots = {found[1]: found[2] for name in named if (found := _SLOT.fullmatch(name)) is not None}
    plans = []
    for slot, models in slots.items():
        period_s = _period_s(amount(named.get(slot + b"-window-minutes")))
        if period_s is None:
            continue
        resets_s = clocks.at_epoch(named.get(slot + b"-reset-at"), period_s)
        if resets_s is None:
            resets_s = clocks.after(named.get(slot + b"-reset-after-seconds"), period_s)
        used_share = share(named.get(slot + b"-used-percent"), whole=_PERCENT)
        plans.append(PlanNotice(period_s, used_share, resets_s, models=(models or b"").decode("ascii")))
    return tuple(plans)


def _period_s(minutes: int | None) -> int | None:
    """Give a window's length; without one, or with none at all, nobody knows which window is meant."""
    if not minutes or minutes > _MOST_WINDOW_MINUTES:
        return None
    told_s = minutes * 60
    return next((known_s for known_s in _KNOWN_PERIODS_S if abs(known_s - told_s) <= _PERIOD_TOLERANCE_S), told_s)

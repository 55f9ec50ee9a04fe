"""Learned limits as limits: what was learned of a key, as the rate, gauge or window that calls meet.

One rule: the level is named as if the limit were configured, so that both are one level.
"""

from collections.abc import Sequence
from dataclasses import replace

from headgate.core.adaptive import MOST_AMOUNT, Key, Learned
from headgate.core.levels import ceil_div
from headgate.core.limits import Gauge, Limit, Rate, Window
from headgate.core.spans import Fixed, OpenedByUse

SLOTS, PLAN = "slots", "plan"
"""What is learned beside dimensions (`Key.what`)."""

_CHARGED_AT_START = ("requests", "tokens")

_RESERVE_S = 10
"""So many seconds of a rate are kept from going at once, as of what is configured: jitter must not overflow it."""
_TOLD_RESERVE_S = 2
"""Less of what is charged when it is sent: what remains of it is told with each answer, and levels follow that."""
_MOST_RESERVED = 5
"""Of a shallow bucket a fifth at the most is kept: a reserve deeper than the bucket would let calls go one by one."""
_REFUSED_BURST_S = 10
"""Of what a 429 taught only so much goes at once: nobody said how deep the provider's bucket is."""


def learned_rate(key: Key, learned: Learned, amount: int) -> Rate:
    """Give the limit that what was learned makes, where nothing is configured by its name."""
    at_start = key.dimension in _CHARGED_AT_START
    if learned.source == "429":
        burst = learned.refused_at * _REFUSED_BURST_S // key.period_s  # not of what it grew to: growing is no burst
    else:
        reserve_s = _TOLD_RESERVE_S if at_start else _RESERVE_S
        depth = int(amount * learned.depth)
        burst = depth - min(ceil_div(amount * reserve_s, key.period_s), depth // _MOST_RESERVED)
    return Rate(
        rate_name(key),
        key.scope,
        key.dimension,
        amount,
        key.period_s,
        max(1, burst),
        key.models,
        # What was learned makes a call wait; it never says that one can never go.
        largest=MOST_AMOUNT if at_start else None,
        charged_at_start=at_start,
    )


def lowered(configured: Rate, learned: Rate) -> Rate:
    """Give a configured rate as far as what was learned allows; its level goes on, and so does what it refuses."""
    if learned.amount >= configured.amount and learned.burst >= configured.burst:
        return configured
    largest = (configured.largest or configured.burst) if configured.charged_at_start else None
    amount, burst = min(configured.amount, learned.amount), min(configured.burst, learned.burst)
    return replace(configured, amount=amount, burst=burst, largest=largest)


def learned_slots(key: Key, amount: int) -> Gauge:
    """Give the bound on calls at once that trouble has taught."""
    return Gauge(f"{key.scope} {key.models or '*'} slots gauge", key.scope, "slots", amount, key.models or None)


def closed_window(key: Key, until_ns: int, configured: Window | None = None) -> Window:
    """Give a window that its provider has closed: the configured one, or one that counts nothing else."""
    if configured is not None:
        return replace(configured, closed_until_ns=until_ns)
    span = OpenedByUse(key.period_s) if key.what == PLAN else Fixed(key.period_s)
    name = f"{key.scope} {key.models or '*'} {key.dimension} {span.name}"
    return Window(name, key.scope, key.dimension, MOST_AMOUNT, span, key.models or None, closed_until_ns=until_ns)


def rate_name(key: Key) -> str:
    """Name the level of a learned rate: as it would be named if it were configured."""
    return f"{key.scope} {key.models} {key.what} rate-{key.period_s}s"


def rates_over(limits: Sequence[Limit], key: Key) -> list[Rate]:
    """Give the rates of a key's dimension and period that its account's calls meet."""
    return [
        limit
        for limit in limits
        if isinstance(limit, Rate)
        and limit.dimension == key.what
        and limit.scope == key.scope
        and limit.period_s == key.period_s
    ]

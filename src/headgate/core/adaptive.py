"""Learned limits: what headers, 429s and slow answers teach about a provider that nobody configured, or who changed.

One rule: to the pessimistic side at once, to the optimistic side slowly, and never above what was configured.
Where what is learned is kept, and when it is looked for, is the runtime's affair (decision 0014).
"""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

from headgate.core.amounts import DIMENSIONS, Amounts, Dimension
from headgate.core.limits import Gauge, Limit, Rate, Window
from headgate.core.notices import Notices, PlanNotice, RateNotice
from headgate.core.spans import OpenedByUse

MINUTE_S = 60
"""What providers sell rates over. None says its period; whoever means a day is found out (`_is_per_minute`)."""

Source = Literal["header", "429", "latency", "plan"]

LEAST_AMOUNTS: dict[Dimension, int] = {"requests": 1}
LEAST_TOKENS = 1_000
"""No provider sells fewer tokens a minute: less is a header that lies, and one call would be in debt for an hour."""

MOST_AMOUNT = 100_000_000
"""What is told above this limits nobody; and a level of it stays within 63 bits."""

MOST_CLOSED_S = 3_600.0
"""A rate is closed for an hour at the most: what is told beyond that is tried again with one call an hour."""

RAISE_EVERY_S = 5.0
_RAISED_SHARE = 2
"""A told rise is followed by half of what is left of it, this often: a doubled limit is within 5 % after 25 s."""

CUT = 0.7
REGROW_S = 30.0
"""CUBIC (RFC 9438: cut to 0.7, back at the old rate after K). K is fixed here instead of the constant C: what refuses
is a bucket of a minute, whatever its size. With 30 s the limit is used to 99 % with two 429s a minute (row B6)."""
_LEAST_MEASURED = 5
_UNMEASURED = 60
"""Where hardly a call was admitted before the first 429, a call a second is where the search begins."""

_PROBE_FACTOR = 2
"""Beyond the old rate it grows to twice what is really admitted at most: what nobody asks for proves nothing."""

FORGOTTEN_S = 86_400.0
REFUSALS_FORGOTTEN_S = 3_600.0

_PER_DAY_ABOVE_S = 600.0

# "claude-opus-4-1-20250805": all of a family's models of one major version share a pool (wire.md section 2).
_CLAUDE = re.compile(r"(claude-(?:[a-z]+-\d|\d(?:-\d)?-[a-z]+))(?:[-@.\[].*)?")
_UNFIT = re.compile(r"[^\w.:@/#+=-]", re.ASCII)
_MOST_POOL_CHARS = 100

_BURST_NUMERATOR, _BURST_DENOMINATOR = 5, 6  # of what is told, as of what is configured: jitter must not overflow it
_REFUSED_BURST_DIVISOR = 6
"""Of what a 429 taught only ten seconds go at once: nobody said how deep the provider's bucket is."""


class Key(NamedTuple):
    """What something is learned of: an account's pool of models, in one dimension, or a plan's length in seconds."""

    account: str
    pool: str
    what: str

    @property
    def scope(self) -> str:
        """The account as a scope."""
        return f"account:{self.account}"


@dataclass(frozen=True, slots=True)
class Learned:
    """What is known of one limit.

    `amount` is what the last header told, as far as it was followed, or what a 429 left; `refused_at` is the rate at
    which that came (0: it was no 429), `cut_s` when its growth begins. `moved_s` is when `amount` last changed.
    """

    amount: int
    source: Source
    since_s: float
    heard_s: float
    moved_s: float
    refused_at: int = 0
    cut_s: float = 0.0
    closed_until_s: float = 0.0

    def is_old(self, now_s: float) -> bool:
        """Whether nothing has been heard of it for so long that it says nothing."""
        kept_s = REFUSALS_FORGOTTEN_S if self.source in ("429", "latency") else FORGOTTEN_S
        return now_s > max(self.heard_s, self.closed_until_s) + kept_s


def model_class(model: str) -> str:
    """Give the pool of models that share a provider's limits, as a glob: a Claude family, else the model itself."""
    found = _CLAUDE.fullmatch(model)
    return f"{found[1]}*" if found is not None else _UNFIT.sub("_", model)[:_MOST_POOL_CHARS]


# -- headers -------------------------------------------------------------------------------------------------------


RESET_ROUNDED_S = 1.0
"""Resets are told in whole seconds, rounded either way."""


def told_rates(notices: Notices, now_s: float) -> dict[Dimension, RateNotice]:
    """Give what is told of the ordinary pool's rates by the minute, one for each dimension, the tighter of two."""
    told: dict[Dimension, RateNotice] = {}
    for notice in notices.rates:
        if notice.pool not in ("", "project") or not _is_per_minute(notice, now_s):
            continue
        other = told.get(notice.dimension)
        told[notice.dimension] = notice if other is None else _tighter(notice, other)
    if "input_tokens" in told or "output_tokens" in told:
        told.pop("tokens", None)  # Anthropic's sum of the two, or the tighter of them
    return told


def heard(learned: Learned | None, limit: int | None, dimension: Dimension, now_s: float) -> Learned | None:
    """Take up a limit that a header tells: less at once, more by half of the rise every RAISE_EVERY_S."""
    if limit is None or not 0 < limit <= MOST_AMOUNT:
        return learned
    limit = max(limit, _least(dimension))
    if learned is None:
        return Learned(limit, "header", now_s, now_s, now_s)
    now = amount_at(learned, now_s)
    amount = now
    if limit < now:
        amount = limit
    elif limit > now and now_s - learned.moved_s >= RAISE_EVERY_S:
        amount = now + -((now - limit) // _RAISED_SHARE)
    if amount == now and learned.source == "header":
        return learned if now_s - learned.heard_s < MINUTE_S else replace(learned, heard_s=now_s)
    since_s = learned.since_s if learned.source == "header" else now_s
    return Learned(amount, "header", since_s, now_s, now_s, closed_until_s=learned.closed_until_s)


def spent_at_least(notice: RateNotice, amount: int, now_s: float) -> tuple[int, int]:
    """Give what must be used of `amount` a minute if a notice is right: for certain, and at most, for it was rounded.

    What is left at the provider is left here too, whatever the two limits are. But a provider's bucket may be less deep
    than a minute: no more is missing from it than comes back until it is full again.
    """
    if notice.remaining is None:
        return 0, 0
    rounding = notice.rounded_to // 2
    used = amount - min(notice.remaining, amount)
    if notice.resets_s is not None:
        full_in_s = max(0.0, notice.resets_s - now_s) + RESET_ROUNDED_S
        used = min(used, math.ceil(full_in_s * amount / MINUTE_S))
    return max(0, used - rounding), min(amount, used + rounding)


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


def _is_per_minute(notice: RateNotice, now_s: float) -> bool:
    """Whether a notice is not about a day: what is missing comes back in `resets_s`, so the whole takes its period."""
    if notice.limit is None or notice.remaining is None or notice.resets_s is None:
        return True
    missing_at_most = notice.limit - notice.remaining + notice.rounded_to
    resets_in_s = notice.resets_s - now_s - 1.0  # told in whole seconds, rounded up
    return missing_at_most <= 0 or notice.limit * resets_in_s <= _PER_DAY_ABOVE_S * missing_at_most


def _tighter(one: RateNotice, other: RateNotice) -> RateNotice:
    known = [limit for limit in (one.limit, other.limit) if limit]
    left = [remaining for remaining in (one.remaining, other.remaining) if remaining is not None]
    return replace(one, limit=min(known, default=None), remaining=min(left, default=None))


# -- 429s ----------------------------------------------------------------------------------------------------------


def named_dimensions(told: dict[Dimension, RateNotice], by_words: Dimension | None) -> tuple[Dimension, ...]:
    """Give the dimensions that a 429 names: in its words, else as those of which nothing is left."""
    if by_words is not None:
        return (by_words,)
    return tuple(dimension for dimension, notice in told.items() if notice.remaining == 0)


def refused(
    learned: Learned | None, admitted: int, dimension: Dimension, sent_s: float, now_s: float, ceiling: int | None
) -> Learned:
    """Take up a 429 where no header tells the limit: to 0.7 of what was really admitted in the last period.

    A call that was sent before the last cut proves nothing new.
    """
    if learned is not None and (learned.source == "header" or sent_s <= learned.cut_s):
        return replace(learned, heard_s=now_s)
    least = _least(dimension)
    refused_at = admitted
    if admitted < least * _LEAST_MEASURED:  # that says nothing of a rate: half as many could have been refused too
        before = amount_at(learned, now_s) if learned is not None else ceiling or least * _UNMEASURED
        refused_at = max(admitted, before)
    if ceiling is not None:
        refused_at = min(refused_at, ceiling)
    amount = max(least, math.floor(refused_at * CUT))
    closed_until_s = 0.0 if learned is None else learned.closed_until_s
    return Learned(amount, "429", now_s, now_s, now_s, refused_at, now_s, closed_until_s)


def closed(learned: Learned, until_s: float, now_s: float) -> Learned:
    """Close a rate until an instant, an hour at the most; a curve grows from then on."""
    until_s = max(learned.closed_until_s, min(until_s, now_s + MOST_CLOSED_S))
    cut_s = learned.cut_s if learned.cut_s < now_s else until_s
    return replace(learned, closed_until_s=until_s, heard_s=now_s, cut_s=cut_s)


def amount_at(learned: Learned, now_s: float, admitted: int | None = None) -> int:
    """Give the amount in force: of a 429 it grows, to `admitted` times 2 at most once it is past where it was."""
    if learned.source != "429":
        return learned.amount
    since_s = max(0.0, now_s - learned.cut_s)
    share = 1 + (1 - CUT) * ((since_s - REGROW_S) / REGROW_S) ** 3
    amount = math.floor(learned.refused_at * share)
    if admitted is not None:
        amount = min(amount, max(learned.refused_at, _PROBE_FACTOR * admitted))
    return max(learned.amount, min(amount, MOST_AMOUNT))


class Meter:
    """Counts what a provider admitted, in the last minute and since the last refusal; in pieces of 5 s."""

    PIECE_S = 5.0
    PIECES = 12
    _LEAST_S = 10.0
    _LEAST_COUNT = 5

    def __init__(self, now_s: float) -> None:
        """Start with nothing."""
        self._pieces: list[tuple[int, list[int]]] = []
        self._totals = [0] * len(DIMENSIONS)
        self._refused: dict[int, tuple[float, int]] = {}
        self._began_s = now_s

    def add(self, amounts: Amounts, now_s: float) -> None:
        """Count what a call was charged."""
        piece = int(now_s // self.PIECE_S)
        if not self._pieces or self._pieces[-1][0] != piece:
            self._pieces.append((piece, [0] * len(DIMENSIONS)))
            del self._pieces[: -self.PIECES - 1]
        counts = self._pieces[-1][1]
        for place, units in enumerate(amounts):
            if units:
                counts[place] += units
                self._totals[place] += units

    def admitted(self, dimension: Dimension, now_s: float) -> int:
        """Give what a minute admits, by the last eleven pieces and what there is of the one that runs."""
        place = DIMENSIONS.index(dimension)
        first = int(now_s // self.PIECE_S) - self.PIECES + 1
        count = sum(counts[place] for piece, counts in self._pieces if piece >= first)
        return round(count * MINUTE_S / (now_s - first * self.PIECE_S))

    def refused(self, dimension: Dimension, now_s: float) -> int:
        """Give what a minute admits, measured at a refusal.

        Between two refusals an empty bucket was filled and emptied once: what went through is what it was given. The
        first one only knows the last minute, in which a full bucket was emptied too.
        """
        place = DIMENSIONS.index(dimension)
        rate = self.admitted(dimension, now_s)
        before = self._refused.get(place)
        if before is not None:
            passed_s, count = now_s - before[0], self._totals[place] - before[1]
            if passed_s < self._LEAST_S:
                return rate
            if count >= self._LEAST_COUNT:
                rate = min(rate, round(count * MINUTE_S / passed_s)) or rate
        self._refused[place] = (now_s, self._totals[place])
        return rate


# -- limits of what was learned ------------------------------------------------------------------------------------


def learned_rate(key: Key, dimension: Dimension, learned: Learned, amount: int) -> Rate:
    """Give the limit that what was learned makes, where nothing is configured by its name."""
    burst = amount * _BURST_NUMERATOR // _BURST_DENOMINATOR
    if learned.source == "429":
        burst = amount // _REFUSED_BURST_DIVISOR
    return Rate(
        rate_name(key),
        key.scope,
        dimension,
        amount,
        MINUTE_S,
        max(1, burst),
        key.pool,
        # What was learned makes a call wait; it never says that one can never go.
        largest=MOST_AMOUNT if _is_charged_at_start(dimension) else None,
        charged_at_start=_is_charged_at_start(dimension),
    )


def lowered(configured: Rate, learned: Rate) -> Rate:
    """Give a configured rate as far as what was learned allows; its level goes on, and so does what it refuses."""
    if learned.amount >= configured.amount:
        return configured
    largest = (configured.largest or configured.burst) if configured.charged_at_start else None
    return replace(configured, amount=learned.amount, burst=min(configured.burst, learned.burst), largest=largest)


def learned_slots(key: Key, amount: int) -> Gauge:
    """Give the bound on calls at once that trouble has taught."""
    return Gauge(f"{key.scope} {key.pool} slots gauge", key.scope, "slots", amount, key.pool)


def closed_window(key: Key, period_s: int, until_ns: int, configured: Window | None) -> Window:
    """Give a plan window that its provider has closed: the configured one, or one that counts nothing else."""
    if configured is not None:
        return replace(configured, closed_until_ns=until_ns)
    span = OpenedByUse(period_s)
    name = f"{key.scope} {key.pool or '*'} requests {span.name}"
    return Window(name, key.scope, "requests", MOST_AMOUNT, span, key.pool or None, closed_until_ns=until_ns)


def rate_name(key: Key) -> str:
    """Name the level of a learned rate: as it would be named if it were configured."""
    return f"{key.scope} {key.pool} {key.what} rate-{MINUTE_S}s"


def rates_over(limits: Sequence[Limit], scope: str, dimension: Dimension) -> list[Rate]:
    """Give the rates by the minute that an account's calls meet in a dimension."""
    return [
        limit
        for limit in limits
        if isinstance(limit, Rate)
        and limit.dimension == dimension
        and limit.scope == scope
        and limit.period_s == MINUTE_S
    ]


def _least(dimension: Dimension) -> int:
    return LEAST_AMOUNTS.get(dimension, LEAST_TOKENS)


def _is_charged_at_start(dimension: Dimension) -> bool:
    return dimension in ("requests", "tokens")


# -- concurrency ---------------------------------------------------------------------------------------------------

_TOLERATED = 2.0
"""How much slower than the best an answer may begin: prompts differ in length, and a queue at the provider is more."""
_LEAST_GRADIENT = 0.5
_SMOOTHING = 0.2
_BEST_DRIFT = 1.005
"""A best time that never comes again is forgotten by half a percent an answer."""
_CALM_S = 60.0
_CALM_FACTOR = 2.0


@dataclass(frozen=True, slots=True)
class Concurrency:
    """How many calls at once a provider in trouble bears: shrunk by trouble, grown back by answers (gradient).

    Source: Netflix' concurrency-limits, "Gradient2": limit x best / recent + sqrt(limit), once a round trip.
    """

    slots: float
    since_s: float
    halved_s: float
    best_s: float = math.inf
    recent_s: float = 0.0
    began_at: float = 1.0

    @property
    def amount(self) -> int:
        """The slots as a limit has them."""
        return max(1, math.floor(self.slots))


def troubled(found: Concurrency | None, in_flight: int, sent_s: float, now_s: float) -> Concurrency:
    """Halve the slots at most once a round trip: a call that was sent before the last time proves nothing new."""
    if found is None:
        slots = max(1.0, in_flight / 2)
        return Concurrency(slots, now_s, now_s, began_at=max(1.0, float(in_flight)))
    if sent_s <= found.halved_s:
        return found
    return replace(found, slots=max(1.0, min(found.slots, float(in_flight)) / 2), halved_s=now_s)


def answered(found: Concurrency, first_byte_s: float, in_flight: int, now_s: float) -> Concurrency | None:
    """Follow how fast an answer began; None when there was no trouble for so long that no bound is needed."""
    best_s = min(found.best_s * _BEST_DRIFT, max(first_byte_s, 1e-6))
    recent_s = first_byte_s if not found.recent_s else found.recent_s + _SMOOTHING * (first_byte_s - found.recent_s)
    gradient = min(1.0, max(_LEAST_GRADIENT, _TOLERATED * best_s / max(recent_s, 1e-6)))
    slots = found.slots
    if gradient < 1.0:
        slots -= 1.0 - gradient
    elif in_flight >= slots / 2:  # what nobody asks for proves nothing
        slots += 1.0 / math.sqrt(slots)
    slots = max(1.0, slots)
    if now_s - found.halved_s > _CALM_S and slots >= _CALM_FACTOR * found.began_at:
        return None
    return replace(found, slots=slots, best_s=best_s, recent_s=recent_s)

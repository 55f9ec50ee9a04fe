"""Learned limits: what headers, 429s and slow answers teach about a provider that nobody configured, or who changed.

One rule: to the pessimistic side at once, to the optimistic side slowly, and never above what was configured.
Where what is learned is kept, and when it is looked for, is the runtime's affair (decision 0014).
"""

import math
import re
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

from headgate.core.amounts import DIMENSIONS, Dimension
from headgate.core.meter import Measured
from headgate.core.notices import DAY_S, MINUTE_S

Source = Literal["header", "429", "latency", "plan", "start"]
"""What taught it; `start` bounds calls at once while something that was closed opens again."""

LEAST_AMOUNTS: dict[Dimension, int] = {"requests": 1}
LEAST_TOKENS = 1_000
"""No provider sells fewer tokens a minute: less is a header that lies, and one call would be in debt for an hour."""

MOST_AMOUNT = 100_000_000
"""What is told above this limits nobody; and a level of it stays within 63 bits."""

MOST_CLOSED_S = DAY_S + 3_600.0
"""What is told to be closed for longer is not believed: no rate takes more than a day, even one of 25 hours."""

UNBELIEVED_CLOSED_S = 3_600.0
"""So often what is not believed is tried again, with one call."""

RAISE_EVERY_S = 5.0
_RAISED_SHARE = 2
"""A told rise is followed by half of what is left of it, this often: a doubled limit is within 5 % after 16 s."""
_WHOLE = 0.95

DOUBTED_S = 600.0
"""A told limit below which a provider refused is believed again so long after the last 429."""

_KEPT_S: dict[Source, float] = {"header": DAY_S, "plan": DAY_S, "429": 3_600.0, "latency": 3_600.0, "start": 600.0}
"""How long what is learned says something when nothing more is heard of it."""

# "claude-opus-4-1-20250805": all of a family's models of one major version are one class (wire.md section 2).
_CLAUDE = re.compile(r"(claude-(?:[a-z]+-\d|\d(?:-\d)?-[a-z]+))(?:[-@.\[].*)?")
_UNFIT = re.compile(r"[^\w.:@/#+=-]", re.ASCII)
_MOST_CLASS_CHARS = 100


class Key(NamedTuple):
    """What something is learned of: an account's class of models (empty: all), in one dimension and period.

    `what` is a dimension, "slots" (which have no period) or "plan": a window of a subscription, of `period_s`.
    """

    account: str
    models: str
    what: str
    period_s: int = MINUTE_S

    @property
    def scope(self) -> str:
        """The account as a scope."""
        return f"account:{self.account}"

    @property
    def dimension(self) -> Dimension:
        """The dimension in which calls meet it: of a plan each call."""
        return next((each for each in DIMENSIONS if each == self.what), "requests")


@dataclass(frozen=True, slots=True)
class Learned:
    """What is known of one limit.

    `amount` is what the last header told, as far as it was followed, or what a 429 left; 0 where nothing is known but
    that it is closed. `refused_at` is the rate at which a 429 came (0: none did), `measured` whether that was what went
    through since the one before, `cut_s` when its growth begins. `moved_s` is when it last changed. `depth` is the
    share of `amount` that the provider's bucket holds. `told` is what headers tell of a rate that 429s showed to be
    less (0: they tell nothing): it is not gone above, nor followed while 429s are recent.
    """

    amount: int
    source: Source
    since_s: float
    heard_s: float
    moved_s: float
    refused_at: int = 0
    cut_s: float = 0.0
    closed_until_s: float = 0.0
    measured: bool = False
    depth: float = 1.0
    told: int = 0

    def is_old(self, now_s: float) -> bool:
        """Whether it says nothing any more: it is open again, or nothing has been heard of it for too long."""
        if not self.amount:
            return now_s >= self.closed_until_s
        return now_s > max(self.heard_s, self.closed_until_s) + _KEPT_S[self.source]


def model_class(model: str) -> str:
    """Give the class of models that share a provider's limits, as a glob: a Claude family, else the model itself."""
    found = _CLAUDE.fullmatch(model)
    return f"{found[1]}*" if found is not None else _UNFIT.sub("_", model)[:_MOST_CLASS_CHARS]


# -- headers -------------------------------------------------------------------------------------------------------


def heard(
    learned: Learned | None, limit: int | None, dimension: Dimension, now_s: float, depth: float | None = None
) -> Learned | None:
    """Take up a told limit and its depth: less at once, more by half of the rise every RAISE_EVERY_S."""
    if limit is None or not 0 < limit <= MOST_AMOUNT or (learned is not None and not learned.amount):
        return learned
    limit = max(limit, _least(dimension))
    if learned is not None and learned.told and now_s - learned.cut_s < DOUBTED_S:
        return replace(learned, told=limit) if limit < learned.told else learned
    if learned is None:
        return Learned(limit, "header", now_s, now_s, now_s, depth=depth or 1.0)
    may_rise = now_s - learned.moved_s >= RAISE_EVERY_S
    now = amount_at(learned, now_s)
    amount, deep = now, learned.depth
    if limit < now:
        amount = limit
    elif limit > now and may_rise:
        amount = now + -((now - limit) // _RAISED_SHARE)
    if depth is not None:
        if depth < deep:
            deep = depth
        elif may_rise and (deep := deep + (depth - deep) / _RAISED_SHARE) > _WHOLE:
            deep = 1.0
    if (amount, deep) == (now, learned.depth) and learned.source == "header":
        return learned if now_s - learned.heard_s < MINUTE_S else replace(learned, heard_s=now_s)
    since_s = learned.since_s if learned.source == "header" else now_s
    return Learned(amount, "header", since_s, now_s, now_s, closed_until_s=learned.closed_until_s, depth=deep)


# -- 429s ----------------------------------------------------------------------------------------------------------

CUT = 0.7
REGROW_S = 30.0
"""CUBIC (RFC 9438: cut to 0.7, back at the old rate after K, then probing beyond). K is fixed here instead of the
constant C: what refuses is a bucket of a minute, whatever its size (row B6)."""

STEADY_CUT = 0.95
_STEADY = 0.1
"""What was measured twice within a tenth is the limit: a smaller cut then leaves less of it unused."""

DUE_S = 45.0
DOUBLED_S = 15.0
"""The next 429 is due after two K. Where it does not come the limit has grown, and the rate doubles in this time; so it
does from the first cut on, for the first 429 measures nothing."""

_MOST_DOUBLINGS = 20.0
_LEAST_MEASURED = 5
_UNMEASURED = 60
"""Where hardly a call was admitted before the first 429, a call a second is where the search begins."""

_PROBE_FACTOR = 2
"""Beyond the old rate it grows to twice what is really admitted at most: what nobody asks for proves nothing."""


def refused(
    learned: Learned | None,
    measured: Measured,
    dimension: Dimension,
    sent_s: float,
    now_s: float,
    ceiling: int | None,
    told: int = 0,
) -> Learned:
    """Take up a 429 where no header tells the limit, or only one (`told`) that is not it: to a part of what went.

    A call that was sent before the last cut proves nothing new.
    """
    if learned is not None and (learned.source == "header" or sent_s <= learned.cut_s):
        return replace(learned, heard_s=now_s)
    refused_at, is_measured = _refused_at(learned, measured, dimension, now_s, ceiling)
    if ceiling is not None:
        refused_at = min(refused_at, ceiling)
    if told:
        refused_at = min(refused_at, told)
    cut = CUT
    if learned is not None and learned.measured and is_measured and _is_near(refused_at, learned.refused_at):
        cut = STEADY_CUT
    amount = max(_least(dimension), math.floor(refused_at * cut))
    closed_until_s = 0.0 if learned is None else learned.closed_until_s
    return Learned(amount, "429", now_s, now_s, now_s, refused_at, now_s, closed_until_s, is_measured, told=told)


def closed(learned: Learned, until_s: float, now_s: float) -> Learned:
    """Close until an instant that can be believed, or for an hour; a curve grows from then on."""
    until_s = max(learned.closed_until_s, believed_s(until_s, now_s))
    cut_s = learned.cut_s if learned.cut_s < now_s else until_s
    return replace(learned, closed_until_s=until_s, heard_s=now_s, cut_s=cut_s)


def believed_s(until_s: float, now_s: float) -> float:
    """Give until when something is closed that is told to be so until `until_s`."""
    return until_s if until_s <= now_s + MOST_CLOSED_S else now_s + UNBELIEVED_CLOSED_S


def amount_at(learned: Learned, now_s: float, admitted: int | None = None) -> int:
    """Give the amount in force: of a 429 it grows, to `admitted` times 2 at most once it is past where it was."""
    if learned.source != "429" or not learned.amount:
        return learned.amount
    since_s = max(0.0, now_s - learned.cut_s)
    amount, doubling_s = float(learned.amount), 2 * since_s
    if learned.measured:
        cut = 1 - learned.amount / max(1, learned.refused_at)
        amount = learned.refused_at * (1 + cut * ((min(since_s, DUE_S) - REGROW_S) / REGROW_S) ** 3)
        doubling_s = max(0.0, since_s - DUE_S)
    grown = math.floor(amount * 2 ** min(_MOST_DOUBLINGS, doubling_s / DOUBLED_S))
    if admitted is not None:
        grown = min(grown, max(learned.refused_at, _PROBE_FACTOR * admitted))
    return min(max(learned.amount, grown), learned.told or MOST_AMOUNT)


def _refused_at(
    learned: Learned | None, measured: Measured, dimension: Dimension, now_s: float, ceiling: int | None
) -> tuple[int, bool]:
    """Give the rate at which a 429 came, and whether it was measured."""
    if measured.since_refusal is not None:
        if learned is None or now_s - learned.cut_s <= DUE_S:
            return measured.since_refusal, True
        # The limit has grown meanwhile: what went through since then is less than it is now.
        return max(measured.since_refusal, math.floor(CUT * measured.recent)), True
    in_force = None if learned is None else amount_at(learned, now_s, measured.recent)
    if measured.minute >= _least(dimension) * _LEAST_MEASURED:
        return measured.minute if in_force is None else min(measured.minute, in_force), False
    # That says nothing of a rate: half as many could have been refused too.
    guess = in_force or ceiling or _least(dimension) * _UNMEASURED
    return max(measured.minute, guess), False


def _is_near(rate: int, other: int) -> bool:
    return abs(rate - other) <= _STEADY * other


def _least(dimension: Dimension) -> int:
    return LEAST_AMOUNTS.get(dimension, LEAST_TOKENS)

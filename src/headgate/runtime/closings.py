"""Closings: what a 429 teaches of limits, and what it closes until when.

One rule: a 429 closes the dimension and period that it names and nothing else, until the instant it was told. What
it says of a rate is the core's (`core/adaptive.py`).
"""

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import NamedTuple

from headgate.core import adaptive, told
from headgate.core.adaptive import Key, Learned
from headgate.core.amounts import DIMENSIONS, Dimension
from headgate.core.instants import to_ns
from headgate.core.learned_limits import SLOTS, rates_over
from headgate.core.limits import Rate
from headgate.core.meter import Measured
from headgate.core.notices import DAY_S, MINUTE_S, Notices, RateNotice
from headgate.core.retries import LEAST_TOLD_S, Failure, least_wait_s
from headgate.runtime.learned import LearnedLimits
from headgate.runtime.traffic import MOST_TRAFFICS, Closing, Sent, Traffic

UNTOLD_S = 1.0
"""How long a limit that was told is closed by a 429 that says no time: another limit than the one that was told."""
MOST_UNTOLD_S = 10.0

AGAIN_S = 120.0
DOUBTS = 3
"""A told rate that refuses again in this time, so many calls in all, and was not told to be spent, is another than the
one that is told. Two may be chance: another limit than that, or a trouble of the provider's own."""

UNTOLD_DAY_S = 600.0
"""How long a day's limit is closed by a 429 that says no time; then one call tries again."""


LEAST_MEASURED = 20
FEW_MEASURED, FEW_MEASURED_S = 5, 5.0
"""A rate is measured from one 429 to the next by so many calls; by few if it took that long."""
MOST_MEASURED_S = 600.0
NEWER_S = 0.001


class Cut(NamedTuple):
    """A 429 that cut a rate: what was known before, what was known of the rate then, and how it closed its level."""

    key: Key
    before: Learned | None
    measured: Measured
    sent: Sent
    at_s: float
    ceiling: int | None
    closing: Closing
    told: int = 0
    """What headers tell of it, which is not true."""
    first_s: float | None = None
    """The first of the 429s before it since which too little went through to measure the rate."""

    @property
    def since_s(self) -> float:
        """Since when it is to be counted what all processes were admitted."""
        if self.before is None or self.before.source != "429":
            return self.at_s - MINUTE_S
        return max(self.before.moved_s if self.first_s is None else self.first_s, self.at_s - MOST_MEASURED_S)


class Closings:
    """Takes up the 429s of one process."""

    def __init__(self, limits: LearnedLimits) -> None:
        """Keep what they teach in `limits`."""
        self._limits = limits
        self._cuts: dict[Key, Cut] = {}
        self._unmeasured_since: dict[Key, float] = {}
        self._doubted: dict[Key, tuple[float, int]] = {}
        """When a rate refused last although headers told that something was left of it, and how many calls by then."""

    def take_cuts(self, traffic: Traffic) -> list[Cut]:
        """Give the cuts of a traffic that are to be measured; each is given once."""
        keys = [key for key in self._cuts if key[:2] == (traffic.account, traffic.models)]
        return [self._cuts.pop(key) for key in keys]

    def take_up(
        self,
        sent: Sent,
        rates: Mapping[tuple[Dimension, int], RateNotice],
        notices: Notices,
        failure: Failure,
        now_s: float,
    ) -> list[Closing]:
        """Learn from a 429; give the levels to close. A window that it closes is in force at once."""
        least_s = least_wait_s(sent.traffic.count_refusal(sent.at_s, now_s))
        told_s = failure.retry_after_s
        if told_s is not None:
            failure = replace(failure, retry_after_s=max(told_s, least_s))
            if told_s < LEAST_TOLD_S:
                told_s = None  # who tells 0 s tells nothing: it would be asked again, and refuse, ten times a minute
        windows = told.told_windows(notices, now_s)
        named = told.named_rates(rates, windows, failure) or self._met(sent)
        if not any(sent.asks(dimension) for dimension, _period_s in named):
            # What the call asks nothing of never makes it wait: it would be sent again at once, and refused.
            dimension, period_s = max(named, key=lambda each: each[1])
            named = [*named, ("requests", period_s)]
            windows = {"requests": windows.get(dimension), **windows}
        closings: list[Closing] = []
        for dimension, period_s in named:
            if period_s == DAY_S:
                closings += self._refused_for_the_day(sent, dimension, windows.get(dimension), failure, now_s, least_s)
            else:
                notice = rates.get((dimension, period_s))
                closings.append(self._refused(sent, dimension, notice, told_s, least_s, now_s))
        return closings

    def grow(self, traffic: Traffic, now_s: float) -> None:
        """Let what 429s taught grow as far as it was used."""
        for key in self.taught(traffic):
            admitted = traffic.recent(key.dimension, now_s)
            self._limits.keep(key, self._limits.known[key], bounds=True, admitted=admitted)

    def taught(self, traffic: Traffic) -> list[Key]:
        """Give the rates that 429s taught of a traffic."""
        keys = [traffic.key(each) for each in DIMENSIONS]
        return [key for key in keys if (found := self._limits.known.get(key)) and found.source == "429"]

    def measured(self, cut: Cut, requests: int) -> Closing | None:
        """Measure a cut by the requests that all processes were admitted; give its level to close by that."""
        key, known = cut.key, self._limits.known.get(cut.key)
        if known is None or known.moved_s != cut.at_s:
            return None
        passed_s = cut.at_s - cut.since_s
        units = requests * cut.sent.traffic.meter.a_request(key.dimension, cut.at_s, cut.closing.units)
        rate = max(1, round(units * MINUTE_S / passed_s))
        found = cut.measured
        if cut.before is None or cut.before.source != "429":
            found = found._replace(minute=rate)
        elif requests >= LEAST_MEASURED or (requests >= FEW_MEASURED and passed_s >= FEW_MEASURED_S):
            found = found._replace(since_refusal=rate)
        again = adaptive.refused(cut.before, found, key.dimension, cut.sent.at_s, cut.at_s, cut.ceiling, cut.told)
        if again.measured:
            self._unmeasured_since.pop(key, None)
        elif key in self._unmeasured_since or len(self._unmeasured_since) < MOST_TRAFFICS:
            self._unmeasured_since.setdefault(key, cut.at_s)
        newer_s = cut.at_s + NEWER_S  # than what the 429 itself told other processes
        again = replace(
            again, moved_s=newer_s, heard_s=known.heard_s, cut_s=known.cut_s, closed_until_s=known.closed_until_s
        )
        self._limits.keep(key, again, bounds=True, admitted=cut.sent.traffic.recent(key.dimension, cut.at_s))
        return cut.closing

    def _refused(
        self,
        sent: Sent,
        dimension: Dimension,
        notice: RateNotice | None,
        retry_after_s: float | None,
        least_s: float,
        now_s: float,
    ) -> Closing:
        """Learn from a 429 in one rate by the minute; give the level to close, what is to fit then, and when."""
        traffic = sent.traffic
        key, units = traffic.key(dimension), sent.units(dimension)
        ceiling = self._limits.ceiling(key, rates_over(sent.limits, key))
        before = self._limits.known.get(key)
        told = 0 if before is None else before.told
        if before is not None and before.source == "header" and self._is_untrue(key, before, sent, notice, now_s):
            told, before = before.amount, None
        elif told and notice is not None and notice.limit is not None:
            told = max(told, min(notice.limit, adaptive.MOST_AMOUNT))
        found = Measured(traffic.meter.admitted(dimension, now_s), traffic.recent(dimension, now_s))
        learned = adaptive.refused(before, found, dimension, sent.at_s, now_s, ceiling, told)
        if retry_after_s is None:
            retry_after_s = UNTOLD_S
            if learned.source == "429":
                retry_after_s = min(MOST_UNTOLD_S, units * MINUTE_S / learned.amount)
        retry_after_s = max(retry_after_s, least_s)
        is_cut = learned.source == "429" and learned.moved_s == now_s
        learned = adaptive.closed(learned, now_s + retry_after_s, now_s)
        self._limits.keep(key, learned, bounds=True, admitted=found.recent)
        until_ns = to_ns(min(now_s + retry_after_s, learned.closed_until_s))
        closing = Closing(key, units, until_ns, exactly=learned.source == "429", asked=sent.asked)
        if is_cut:
            if before is None or before.source != "429" or before.measured:
                self._unmeasured_since.pop(key, None)
            first_s = self._unmeasured_since.get(key)
            self._cuts.setdefault(key, Cut(key, before, found, sent, now_s, ceiling, closing, told, first_s))
        return closing

    def _is_untrue(self, key: Key, known: Learned, sent: Sent, notice: RateNotice | None, now_s: float) -> bool:
        """Whether what headers tell of a rate is not what refuses: again, and with enough left as they say."""
        if notice is not None and notice.remaining is not None:
            place = DIMENSIONS.index(key.dimension)
            most = max(sent.units(key.dimension), sent.asked.at_most[place] or 0)
            if notice.remaining < most + notice.rounded_to // 2:
                self._doubted.pop(key, None)
                return False
        before_s, refused = self._doubted.get(key, (-math.inf, 0))
        is_new = not sent.at_s <= before_s <= now_s  # else it was on its way then, and proves no more than that one
        is_again = abs(now_s - max(before_s, known.closed_until_s)) <= AGAIN_S
        refused = refused + 1 if is_again and refused else 1
        self._doubted[key] = now_s if is_new else before_s, refused
        if len(self._doubted) > MOST_TRAFFICS:
            del self._doubted[next(iter(self._doubted))]
        return is_new and is_again and refused >= DOUBTS

    def _refused_for_the_day(
        self, sent: Sent, dimension: Dimension, ends_s: float | None, failure: Failure, now_s: float, least_s: float
    ) -> list[Closing]:
        """Close what is spent for the day, a rate or a window, until the told instant; nothing follows for a minute."""
        key = sent.traffic.key(dimension, DAY_S)
        until_s = ends_s or now_s + UNTOLD_DAY_S
        if failure.retry_after_s is not None:
            until_s = now_s + failure.retry_after_s
        until_s = adaptive.believed_s(max(until_s, now_s + least_s), now_s)
        learned = self._limits.known.get(key)
        if learned is None or not learned.amount:
            self._limits.close(key, "429", until_s, now_s)
            return []
        self._limits.keep(key, adaptive.closed(learned, until_s, now_s), bounds=True)
        return [Closing(key, sent.units(dimension), to_ns(until_s), asked=sent.asked)]

    def _met(self, sent: Sent) -> list[tuple[Dimension, int]]:
        """Give the rates by the minute that are configured or learned: a 429 that names none is of these."""
        scope = sent.traffic.key("").scope
        met = [limit.dimension for limit in sent.limits if isinstance(limit, Rate) and limit.scope == scope]
        learned = [each for each in DIMENSIONS if each != SLOTS and sent.traffic.key(each) in self._limits.known]
        return [(each, MINUTE_S) for each in dict.fromkeys([*met, *learned])] or [("requests", MINUTE_S)]

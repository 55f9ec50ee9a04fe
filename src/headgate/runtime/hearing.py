"""Hearing: what headers tell of limits is taken up, and what of levels must be corrected for it.

One rule: nothing is written here; levels are read as the last admission of this process left them. What follows from
what was told is the core's (`core/told.py`, `core/adaptive.py`).
"""

from collections.abc import Callable, Iterable, Mapping

from headgate.core import adaptive, told
from headgate.core.accounts import Account
from headgate.core.adaptive import Key, Learned
from headgate.core.amounts import DIMENSIONS, Demand, Dimension
from headgate.core.instants import to_ns
from headgate.core.learned_limits import PLAN, rates_over
from headgate.core.limits import Level, Rate
from headgate.core.notices import DAY_S, MINUTE_S, Notices, RateNotice
from headgate.runtime.learned import LearnedLimits
from headgate.runtime.traffic import Correction, Sent, Traffic

SAMPLE_EVERY_S = 0.1

_GUESSED: tuple[Dimension, ...] = ("input_tokens", "output_tokens", "tokens")
"""What calls on their way may use more of than they hold."""
_GUESSED_PLACES = tuple(DIMENSIONS.index(dimension) for dimension in _GUESSED)

_NOT_SAMPLED: Mapping[Key, int] = {}


class Hearing:
    """Takes up what the headers of one process's answers tell."""

    def __init__(
        self,
        limits: LearnedLimits,
        seen: Mapping[str, Level],
        accounts: Iterable[Account],
        restate: Callable[[], None],
    ) -> None:
        """Keep what is told in `limits`; `seen` has levels as they were last seen, `restate` puts less in force."""
        self._limits = limits
        self._seen = seen
        self._overage = {account.name for account in accounts if account.overage}
        self._restate = restate
        self.correcting: set[Key] = set()
        """Keys whose levels are being corrected: what is read of them is old."""
        self._gaps: dict[tuple[Key, str], told.Gap] = {}
        self._unheld: dict[str, list[int]] = {}

    def began(self, traffic: Traffic, asked: Demand, now_s: float) -> Mapping[Key, int]:
        """Count what a call may use beyond its hold; give what is used of its learned rates, of one call in a while.

        What its answer tells can be held against that, whatever was admitted since.
        """
        self._count_unheld(traffic.account, asked, 1)
        begun = traffic.begun
        for place, units in enumerate(asked.expected):
            if units:
                begun[place] += units
        if not self._limits.bounding or abs(now_s - traffic.sampled_s) < SAMPLE_EVERY_S:
            return _NOT_SAMPLED
        traffic.sampled_s = now_s
        keys = [traffic.key(each, period_s) for each in DIMENSIONS for period_s in (MINUTE_S, DAY_S)]
        return {key: self._used(self._limits.rate(key), now_s) for key in keys if self._follows_headers(key)}

    def ended(self, traffic: Traffic, asked: Demand) -> None:
        """Count that all that a call used is charged."""
        self._count_unheld(traffic.account, asked, -1)

    def forget(self, key: Key) -> None:
        """Keep nothing of a key of which nothing is known any more."""
        for which in ("lacking", "ease"):
            self._gaps.pop((key, which), None)

    def rates(self, traffic: Traffic, notices: Notices, now_s: float) -> Mapping[tuple[Dimension, int], RateNotice]:
        """Give what is told of rates, as far as it is understood."""
        if not notices.rates:
            return {}
        known = {each: self._limits.known.get(traffic.key(each, DAY_S)) for each in DIMENSIONS}
        daily = {each: learned.amount for each, learned in known.items() if learned is not None}
        return told.told_rates(notices, now_s, daily)

    def take_up(self, sent: Sent, notices: Notices, now_s: float) -> list[Correction]:
        """Take up all that an answer tells; give what levels must be corrected to."""
        if notices.plans:
            self._close_plans(sent, notices, now_s)
        if not notices.rates:
            return []
        for dimension, until_s in told.told_windows(notices, now_s).items():
            self._take_up_window(sent.traffic.key(dimension, DAY_S), until_s, now_s)
        rates = self.rates(sent.traffic, notices, now_s)
        found = [self._take_up_rate(sent, notice, period_s, now_s) for (_, period_s), notice in rates.items()]
        return [each for each in found if each is not None]

    def is_plan_spent(self, traffic: Traffic, notices: Notices, now_s: float) -> bool:
        """Whether one of the plan windows that an answer tells of is closed."""
        keys = [_plan_key(traffic, plan.period_s, plan.models) for plan in notices.plans]
        found = [self._limits.known.get(key) for key in keys]
        return any(learned is not None and learned.closed_until_s > now_s for learned in found)

    # -- rates -------------------------------------------------------------------------------------------------------

    def _take_up_rate(self, sent: Sent, notice: RateNotice, period_s: int, now_s: float) -> Correction | None:
        """Take up one rate; give what its level must be corrected to."""
        key = sent.traffic.key(notice.dimension, period_s)
        over = rates_over(sent.limits, key)
        ceiling = self._limits.ceiling(key, over)
        before = self._limits.known.get(key)
        if before is not None and not before.amount:
            return None  # it is closed, and that is the newer word
        learned = adaptive.heard(before, notice.limit, notice.dimension, now_s, _depth(notice, period_s, now_s))
        if learned is not None and learned is not before:
            bounds = ceiling is None or learned.amount < ceiling or learned.depth < 1
            self._limits.keep(key, learned, bounds=bounds)
            if period_s == DAY_S and before is None:
                self._forget_misread(sent.traffic.key(notice.dimension), learned.amount)
        if period_s == MINUTE_S and notice.limit and None not in (notice.remaining, notice.resets_s):
            # Were there a rate of that amount by the day, it would have been heard as that.
            self._forget_misread(sent.traffic.key(notice.dimension, DAY_S), notice.limit)
        bounds = key in self._limits.bounding
        if bounds and learned is not before:
            self._restate()
        watched = self._limits.rate(key) if bounds else min(over, key=lambda rate: rate.amount, default=None)
        if watched is None or key in self.correcting:
            return None
        fell = before is not None and learned is not None and learned.amount < before.amount
        return self._correction(sent, key, notice, watched, now_s, fell=fell)

    def _correction(
        self, sent: Sent, key: Key, notice: RateNotice, watched: Rate, now_s: float, *, fell: bool
    ) -> Correction | None:
        bounds = key in self._limits.bounding
        amount = (self._limits.amount(key) if bounds else None) or watched.amount
        learned = self._limits.known.get(key)
        depth = 1.0 if learned is None else learned.depth
        certain, at_most = told.spent_at_least(notice, amount, key.period_s, now_s, depth)
        reading = watched.read(self._seen.get(watched.name), to_ns(now_s))
        in_use = reading.used + reading.held
        # Our own calls on their way may have used more than they hold, and it is charged when they tell.
        unheld = self._unheld_of(sent.traffic.account)[DIMENSIONS.index(notice.dimension)]
        if certain - unheld > in_use:
            if not bounds:  # others spend what is configured for more than this traffic
                known = learned or Learned(watched.amount, "header", now_s, now_s, now_s)
                self._limits.keep(key, known, bounds=True)
            begun = sent.traffic.begun_of(notice.dimension)
            return Correction(key, at_most - unheld, amount if fell else None, 0, sent.traffic, begun)
        if not bounds or notice.remaining is None:
            return Correction(key, 0, amount) if bounds and fell else None
        lacking = self._lasting(key, "lacking", certain - in_use, now_s)
        # Where a level was fuller than was told both when the call left and now, nothing that came between explains it.
        before = sent.used.get(key)
        # For a minute what a 429 has closed stays as it closed it: what remains was no reason to go on.
        if learned is not None and now_s - learned.closed_until_s < MINUTE_S:
            before = None
        ease = 0 if before is None else self._lasting(key, "ease", min(before, reading.used) - at_most, now_s)
        if not fell and not lacking and not ease:
            return None
        return Correction(key, in_use + lacking if lacking else 0, amount if fell else None, ease)

    def _lasting(self, key: Key, which: str, gap: int, now_s: float) -> int:
        """Give by how much a level is to follow what is told of it, for it was not so all the time."""
        found, by = told.lasting(self._gaps.pop((key, which), None), gap, now_s)
        if found is not None:
            self._gaps[key, which] = found
        return by

    def _used(self, rate: Rate, now_s: float) -> int:
        return rate.read(self._seen.get(rate.name), to_ns(now_s)).used

    def _follows_headers(self, key: Key) -> bool:
        learned = self._limits.known.get(key)
        return (
            key in self._limits.bounding and learned is not None and learned.source == "header" and learned.amount > 0
        )

    def _count_unheld(self, account: str, asked: Demand, sign: int) -> None:
        unheld = self._unheld_of(account)
        expected, at_most = asked.expected, asked.at_most
        for place in _GUESSED_PLACES:
            more = (at_most[place] or 0) - (expected[place] or 0)
            if more > 0:
                unheld[place] += sign * more

    def _unheld_of(self, account: str) -> list[int]:
        found = self._unheld.get(account)
        if found is None:
            found = self._unheld[account] = [0] * len(DIMENSIONS)
        return found

    # -- windows -----------------------------------------------------------------------------------------------------

    def _forget_misread(self, key: Key, amount: int) -> None:
        """Forget a rate that was taken for one by the other period: a bucket that is full says nothing of its own."""
        learned = self._limits.known.get(key)
        if learned is not None and learned.source == "header" and learned.amount == amount:
            self._limits.forget(key)

    def _take_up_window(self, key: Key, until_s: float | None, now_s: float) -> None:
        """Close a window that is spent until it ends; what was taken for a rate by the day is none."""
        learned = self._limits.known.get(key)
        if learned is not None and learned.amount and learned.source == "header":
            self._limits.forget(key)
        if until_s is not None:
            self._limits.close(key, "header", adaptive.believed_s(until_s, now_s), now_s)

    def _close_plans(self, sent: Sent, notices: Notices, now_s: float) -> None:
        """Close the plan windows that are spent until they are reset."""
        for plan in told.spent_plans(notices, overage_allowed=sent.traffic.account in self._overage):
            if plan.resets_s is not None:
                key = _plan_key(sent.traffic, plan.period_s, plan.models)
                self._limits.close(key, "plan", plan.resets_s, now_s)


def _depth(notice: RateNotice, period_s: int, now_s: float) -> float | None:
    """Give the share of a minute's amount that a provider's bucket holds; None if nothing was told of it."""
    if period_s != MINUTE_S or notice.limit is None or notice.remaining is None or notice.resets_s is None:
        return None
    depth = told.depth_of(notice, now_s)
    return 1.0 if depth is None else depth / notice.limit


def _plan_key(traffic: Traffic, period_s: int, models: str) -> Key:
    return Key(traffic.account, traffic.models if models else "", PLAN, period_s)

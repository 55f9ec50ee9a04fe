"""What was learned of limits: kept for this process, told to the rules, and shared with others through the store.

One rule: what is in force is rebuilt whole from what is known, so nothing learned outlives its reason. Records are
small, and written only when they change noticeably; one that cannot be read says nothing.
"""

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import astuple, replace
from math import isfinite
from typing import get_args

from headgate.core.adaptive import MOST_AMOUNT, Key, Learned, Source, amount_at
from headgate.core.amounts import DIMENSIONS
from headgate.core.instants import to_ns
from headgate.core.learned_limits import (
    PLAN,
    SLOTS,
    closed_window,
    learned_rate,
    learned_slots,
    lowered,
    rate_name,
)
from headgate.core.limits import Gauge, Limit, Rate, Window
from headgate.core.notices import DAY_S, MINUTE_S
from headgate.core.spans import Fixed, OpenedByUse
from headgate.ports import Clock, LevelStore, Record
from headgate.runtime.rules import Rules

log = logging.getLogger("headgate.learning")

LEARNED_PREFIX = "learned/"

MOST_LEARNED = 1_000
"""Limits learned at once, of all accounts and pools; the oldest news leaves first."""

MOST_PERIOD_S = 366 * DAY_S

NOTICEABLE = 0.05
"""A change of an amount by less is not written."""

LEAST_STEP_S = 10.0
"""A clock that was set back by less is left alone."""

GROWN = 0.02
"""A growing amount is not put in force for less."""


class LearnedLimits:
    """The learned limits of one process; `known` is all that is known, `bounding` what of it bounds calls."""

    def __init__(self, store: LevelStore, clock: Clock, rules: Rules) -> None:
        """Start with nothing."""
        self._store = store
        self._clock = clock
        self._rules = rules
        self.known: dict[Key, Learned] = {}
        self.bounding: set[Key] = set()
        self.newly_closed: set[Key] = set()
        """Windows that were closed, here or elsewhere, and that nobody has taken notice of."""
        self.on_forget: Callable[[Key], None] | None = None
        """Called with each key that is forgotten: what else is kept of it goes too."""
        self._ceilings: dict[Key, int] = {}
        self._admitted: dict[Key, int] = {}
        self._limits: dict[str, Limit] = {}
        self._written: dict[Key, Learned] = {}

    def rate(self, key: Key) -> Rate:
        """Give the rate in force that a key's level has; only for one that bounds or is configured by that name."""
        limit = self._limits.get(rate_name(key)) or self._rules.configured(rate_name(key))
        assert isinstance(limit, Rate), key
        return limit

    def coming(self, key: Key) -> Rate:
        """Give the rate that a key has once all that is known is in force: what is closed for it is closed whole."""
        limit = self._limit(key)
        return limit if isinstance(limit, Rate) else self.rate(key)

    def ceiling(self, key: Key, limits: Iterable[Rate]) -> int | None:
        """Give the least that is configured over a key, of the rates that a call met."""
        name = rate_name(key)
        own = self._rules.configured(name) is None
        amounts = [rate.amount for rate in limits if not (own and rate.name == name)]
        if amounts:
            self._ceilings[key] = min(amounts)
        else:
            self._ceilings.pop(key, None)
        return min(amounts, default=None)

    def keep(self, key: Key, learned: Learned, *, bounds: bool, admitted: int | None = None) -> bool:
        """Keep what was learned; `bounds` puts it in force. Whether that is news for the calls that wait."""
        self.known[key] = learned
        if admitted is not None:
            self._admitted[key] = admitted
        if len(self.known) > MOST_LEARNED:
            self.forget(min(self.known, key=lambda each: self.known[each].heard_s))
        if bounds:
            self.bounding.add(key)
        return key in self.bounding

    def close(self, key: Key, source: Source, until_s: float, now_s: float) -> None:
        """Let a window be closed until an instant."""
        known = self.known.get(key)
        if (
            known is not None
            and abs(known.closed_until_s - until_s) <= 1
            and not known.closed_until_s <= now_s < until_s
        ):
            return
        since_s = now_s if known is None else known.since_s
        self.keep(key, Learned(0, source, since_s, now_s, now_s, closed_until_s=until_s), bounds=True)
        self.newly_closed.add(key)
        log.warning(
            "%s %s: %s of %d s is spent until %.0f", key.scope, key.models or "*", key.what, key.period_s, until_s
        )

    def set_back(self, by_s: float) -> None:
        """Let what was learned be as old as it is, after the clock was set back by so much."""
        for key, learned in self.known.items():
            self.known[key] = learned.set_back(by_s)

    def forget(self, key: Key) -> None:
        """Know nothing of a key any more."""
        for table in (self.known, self._ceilings, self._admitted):
            table.pop(key, None)
        self.bounding.discard(key)
        if self.on_forget is not None:
            self.on_forget(key)

    def forget_ceilings(self) -> None:
        """Know nothing of what is configured over the keys until calls meet it again: they meet it itself as well."""
        self._ceilings.clear()

    def restate(self, *, growth: bool = True) -> list[Limit]:
        """Put in force what bounds now, without `growth` only what is less; give the limits that changed."""
        before = self._limits
        limits: dict[str, Limit] = {}
        for key in self.bounding:
            limit = self._limit(key)
            if limit is None:
                continue
            old = before.get(limit.name)
            waits = not growth or (self.known[key].source == "429" and _is_near(old, limit))
            limits[limit.name] = _no_more(old, limit) if old is not None and waits else limit
        changed = [limit for name, limit in limits.items() if before.get(name) != limit]
        changed += [limit for name, limit in before.items() if name not in limits]
        if changed:
            self._limits = limits
            self._rules.learn(limits)
        return changed

    def amount(self, key: Key) -> int | None:
        """Give the amount that a key's limit has now."""
        learned = self.known.get(key)
        if learned is None:
            return None
        amount = amount_at(learned, self._clock.now_s(), self._admitted.get(key))
        ceiling = self._ceilings.get(key)
        return amount if ceiling is None else min(amount, ceiling)

    def bounds(self) -> list[Limit]:
        """Give the limits that are in force because something was learned."""
        return list(self._limits.values())

    def over(self, limit: Limit) -> tuple[Key, Learned] | None:
        """Give what was learned of a limit's own level, or else the least of the models that it is over."""
        found: tuple[Key, Learned] | None = None
        for key, learned in self.known.items():
            if key.scope != limit.scope or (key.what, key.period_s) != _what(limit):
                continue
            if limit.models is not None and limit.models not in ("*", key.models) and key.models:
                continue
            if key.models == (limit.models or ""):
                return key, learned
            if found is None or learned.amount < found[1].amount:
                found = key, learned
        return found

    # -- in the store ------------------------------------------------------------------------------------------------

    def unwritten(self) -> dict[str, Record | None]:
        """Give the records that differ noticeably from what was written, and count them as written."""
        records: dict[str, Record | None] = {}
        for key in self.bounding:
            learned, written = self.known[key], self._written.get(key)
            if written is None or _differs(learned, written):
                self._written[key] = learned
                records[_record_name(key)] = astuple(learned)
        for key in [key for key in self._written if key not in self.bounding]:
            del self._written[key]
            records[_record_name(key)] = None
        return records

    def not_written(self, records: Mapping[str, Record | None]) -> None:
        """Take back that records were written: the store could not keep them."""
        for name in records:
            key = _key(name)
            if key is not None:
                self._written.pop(key, None)

    async def take_up(self) -> None:
        """Take up what this and other processes wrote; the newer word counts, a later closing in any case.

        Records that are too old count as written, so that whoever writes next deletes them.
        """
        names = await self._store.names(LEARNED_PREFIX)
        for first in range(0, len(names), MOST_LEARNED):
            await self._take_up(names[first : first + MOST_LEARNED])

    async def _take_up(self, names: Sequence[str]) -> None:
        records = await self._store.transact(names, lambda found: ({}, {name: found.get(name) for name in names}))
        now_s = self._clock.now_s()
        for name, record in records.items():
            key, told = _key(name), _read(record)
            if key is None or told is None:
                continue
            if (ahead_s := told.moved_s - now_s) > LEAST_STEP_S:  # the clock was set back since
                told = told.set_back(ahead_s)
            known = self.known.get(key)
            if told.is_old(now_s):
                if known is None:
                    self._written[key] = told
                continue
            if known is None and len(self.known) >= MOST_LEARNED:
                continue
            self._written[key] = told
            if known is None or told.moved_s > known.moved_s or told.closed_until_s > known.closed_until_s + 1:
                if not told.amount and (known is None or told.closed_until_s > known.closed_until_s + 1):
                    self.newly_closed.add(key)
                self.known[key] = told
                self.bounding.add(key)

    def drop_old(self) -> None:
        """Forget what nobody has heard of for long, and plans that are open again."""
        now_s = self._clock.now_s()
        for key, learned in list(self.known.items()):
            if learned.is_old(now_s):
                self.forget(key)

    def _limit(self, key: Key) -> Limit | None:
        """Give the limit of what was learned: a configured one of the same level as far as it goes now, or its own."""
        learned = self.known[key]
        if key.what == SLOTS:
            slots = learned_slots(key, learned.amount)
            given = self._rules.configured(slots.name)
            return slots if given is None or given.amount > slots.amount else None
        if not learned.amount:
            window = closed_window(key, to_ns(learned.closed_until_s))
            given = self._rules.configured(window.name)
            return closed_window(key, to_ns(learned.closed_until_s), given) if isinstance(given, Window) else window
        amount = self.amount(key)
        assert amount is not None, key
        rate = learned_rate(key, learned, min(amount, MOST_AMOUNT))
        given = self._rules.configured(rate.name)
        return lowered(given, rate) if isinstance(given, Rate) else rate


def _what(limit: Limit) -> tuple[str, int] | None:
    """Give what is learned about a limit of this kind, and over which period, in a key's words."""
    match limit:
        case Rate():
            return limit.dimension, limit.period_s
        case Window(span=OpenedByUse(period_s)):
            return PLAN, period_s
        case Window(span=Fixed(period_s, 0)):
            return limit.dimension, period_s
        case Gauge():
            return SLOTS, MINUTE_S
        case _:
            return None


def _no_more(old: Limit, new: Limit) -> Limit:
    """Give a limit as far as it allows no more than it did."""
    if isinstance(old, Rate) and isinstance(new, Rate):
        amount, burst = min(old.amount, new.amount), min(old.burst, new.burst)
        return old if (amount, burst) == (old.amount, old.burst) else replace(new, amount=amount, burst=burst)
    return old if old.amount < new.amount else new


def _is_near(old: Limit | None, new: Limit) -> bool:
    """Whether a limit grew by so little that the old one may stand."""
    return old is not None and new.amount < old.amount * (1 + GROWN)


def _differs(one: Learned, other: Learned) -> bool:
    return (
        abs(one.amount - other.amount) > NOTICEABLE * other.amount
        or one.source != other.source
        or abs(one.closed_until_s - other.closed_until_s) > 1
        or one.refused_at != other.refused_at
        or one.depth != other.depth
        or one.told != other.told
        or one.heard_s > other.heard_s + 3_600
    )


def _record_name(key: Key) -> str:
    return f"{LEARNED_PREFIX}{key.account} {key.models or '*'} {key.what} {key.period_s}"


def _key(name: str) -> Key | None:
    try:
        account, models, what, period = name.removeprefix(LEARNED_PREFIX).split(" ")
        period_s = int(period)
    except ValueError:
        return None
    known = (what in DIMENSIONS or what == PLAN) and 0 < period_s <= MOST_PERIOD_S
    return Key(account, "" if models == "*" else models, what, period_s) if known else None


def _read(record: Record | None) -> Learned | None:
    """Read a record, of whatever version wrote it."""
    try:
        learned = Learned(*(record or ()))
        fit = 0 <= learned.amount <= MOST_AMOUNT and 0 < learned.depth <= 1 and learned.source in get_args(Source)
        times = (learned.since_s, learned.heard_s, learned.moved_s, learned.cut_s, learned.closed_until_s)
        return (
            learned
            if fit and min(learned.refused_at, learned.told) >= 0 and all(isfinite(each) for each in times)
            else None
        )
    except TypeError:
        return None

"""What was learned of limits: kept for this process, told to the rules, and shared with others through the store.

One rule: what is in force is rebuilt whole from what is known, so nothing learned outlives its reason. Records are
small, and written only when they change noticeably; one that cannot be read says nothing.
"""

from collections.abc import Iterable, Mapping
from dataclasses import astuple
from math import isfinite

from headgate.core import adaptive
from headgate.core.adaptive import (
    MOST_AMOUNT,
    Key,
    Learned,
    amount_at,
    closed_window,
    learned_rate,
    learned_slots,
    lowered,
    rate_name,
)
from headgate.core.amounts import DIMENSIONS, Dimension
from headgate.core.instants import to_ns
from headgate.core.limits import Gauge, Limit, Rate, Window
from headgate.core.spans import OpenedByUse
from headgate.ports import Clock, LevelStore, Record
from headgate.runtime.rules import Rules

LEARNED_PREFIX = "learned/"

MOST_LEARNED = 1_000
"""Limits learned at once, of all accounts and pools; the oldest news leaves first."""

NOTICEABLE = 0.05
"""A change of an amount by less is not written, nor a growing one put in force."""

SLOTS, PLAN = "slots", "plan-"


class LearnedLimits:
    """The learned limits of one process; `known` is all that is known, `bounding` what of it bounds calls."""

    def __init__(self, store: LevelStore, clock: Clock, rules: Rules) -> None:
        """Start with nothing."""
        self._store = store
        self._clock = clock
        self._rules = rules
        self.known: dict[Key, Learned] = {}
        self.bounding: set[Key] = set()
        self._ceilings: dict[Key, int] = {}
        self._admitted: dict[Key, int] = {}
        self._limits: dict[str, Limit] = {}
        self._written: dict[Key, Learned] = {}

    def rate(self, key: Key) -> Rate:
        """Give the rate in force that a key's level has; only for one that bounds or is configured by that name."""
        limit = self._limits.get(rate_name(key)) or self._rules.configured(rate_name(key))
        assert isinstance(limit, Rate), key
        return limit

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

    def forget(self, key: Key) -> None:
        """Know nothing of a key any more."""
        for table in (self.known, self._ceilings, self._admitted):
            table.pop(key, None)
        self.bounding.discard(key)

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
            limits[limit.name] = old if old is not None and waits and old.amount < limit.amount else limit
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
        """Give what was learned of a limit's own level, or else the least of the pools that it is configured over."""
        found: tuple[Key, Learned] | None = None
        for key, learned in self.known.items():
            if key.scope != limit.scope or key.what != _what(limit):
                continue
            if limit.models is not None and limit.models not in ("*", key.pool) and key.pool:
                continue
            if key.pool == (limit.models or ""):
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
        """Take up what this and other processes wrote; the newer word counts, a later closing in any case."""
        names = (await self._store.names(LEARNED_PREFIX))[:MOST_LEARNED]
        records = await self._store.transact(names, lambda found: ({}, {name: found.get(name) for name in names}))
        now_s = self._clock.now_s()
        for name, record in records.items():
            key, told = _key(name), _read(record)
            if key is None or told is None or told.is_old(now_s):
                continue
            known = self.known.get(key)
            self._written[key] = told
            if known is None or told.moved_s > known.moved_s or told.closed_until_s > known.closed_until_s + 1:
                self.known[key] = told
                self.bounding.add(key)

    def drop_old(self) -> None:
        """Forget what nobody has heard of for long, and plans that are open again."""
        now_s = self._clock.now_s()
        for key, learned in list(self.known.items()):
            if learned.is_old(now_s) or (learned.source == "plan" and now_s >= learned.closed_until_s):
                self.forget(key)

    def _limit(self, key: Key) -> Limit | None:
        """Give the limit of what was learned: a configured one of the same level as far as it goes now, or its own."""
        learned = self.known[key]
        if key.what == SLOTS:
            slots = learned_slots(key, learned.amount)
            given = self._rules.configured(slots.name)
            return slots if given is None or given.amount > slots.amount else None
        if key.what.startswith(PLAN):
            period_s = int(key.what.removeprefix(PLAN).removesuffix("s"))
            window = closed_window(key, period_s, to_ns(learned.closed_until_s), None)
            given = self._rules.configured(window.name)
            if isinstance(given, Window):
                window = closed_window(key, period_s, to_ns(learned.closed_until_s), given)
            return window
        amount = self.amount(key)
        assert amount is not None, key
        rate = learned_rate(key, _dimension(key), learned, min(amount, MOST_AMOUNT))
        given = self._rules.configured(rate.name)
        return lowered(given, rate) if isinstance(given, Rate) else rate


def _what(limit: Limit) -> str | None:
    """Give what is learned about a limit of this kind, in a key's words."""
    match limit:
        case Rate(period_s=adaptive.MINUTE_S):
            return limit.dimension
        case Window(span=OpenedByUse(period_s)):
            return f"{PLAN}{period_s}s"
        case Gauge():
            return SLOTS
        case _:
            return None


def _dimension(key: Key) -> Dimension:
    return next(dimension for dimension in DIMENSIONS if dimension == key.what)


def _is_near(old: Limit | None, new: Limit) -> bool:
    """Whether a limit grew by so little that the old one may stand."""
    return old is not None and new.amount < old.amount * (1 + NOTICEABLE)


def _differs(one: Learned, other: Learned) -> bool:
    return (
        abs(one.amount - other.amount) > NOTICEABLE * other.amount
        or one.source != other.source
        or abs(one.closed_until_s - other.closed_until_s) > 1
        or one.refused_at != other.refused_at
        or one.heard_s > other.heard_s + 3_600
    )


def _record_name(key: Key) -> str:
    return f"{LEARNED_PREFIX}{key.account} {key.pool or '*'} {key.what}"


def _key(name: str) -> Key | None:
    try:
        account, pool, what = name.removeprefix(LEARNED_PREFIX).split(" ")
    except ValueError:
        return None
    known = what in DIMENSIONS or what == SLOTS or (what.startswith(PLAN) and what[len(PLAN) : -1].isdecimal())
    return Key(account, "" if pool == "*" else pool, what) if known else None


def _read(record: Record | None) -> Learned | None:
    """Read a record, of whatever version wrote it."""
    try:
        learned = Learned(*(record or ()))
        fit = 0 < learned.amount <= MOST_AMOUNT and learned.source in ("header", "429", "latency", "plan")
        times = (learned.since_s, learned.heard_s, learned.moved_s, learned.cut_s, learned.closed_until_s)
        return learned if fit and learned.refused_at >= 0 and all(isfinite(each) for each in times) else None
    except TypeError:
        return None

"""Limit news: a window that is half, four fifths or nearly used is warned of, and limits that were learned are told.

One rule: each threshold is warned of once in a window, by whichever process sees it first: what was warned of stands
beside the level in the store. Nothing is looked at unless something was settled, and no call waits for it.
"""

import asyncio
import logging
from collections.abc import Mapping, Sequence

from headgate.core.alerts import Alert, alerts_due, said_after_a_raise
from headgate.core.errors import StoreError
from headgate.core.instants import to_s
from headgate.core.limits import Limit, Rolling, Window
from headgate.core.planning import amount_in_words
from headgate.core.scopes import LimitRule
from headgate.ports import Clock, LevelStore, Record
from headgate.runtime.feed import Feed
from headgate.runtime.rules import Rules, bound
from headgate.runtime.telling import describe

log = logging.getLogger("headgate.limits")

ALERT_PREFIX = "alert/"
"""Before the name of a level: the record of what was warned of, which is forgotten with levels of its kind."""

LOOK_EVERY_S = 3.0
NOTICEABLE = 0.05
"""A learned amount that differs by less from the one that was told last is not told: it may move with every answer."""

MOST_TO_LOOK_AT = 5_000
"""Windows looked at once; those beyond are when they are settled again."""


class LimitNews:
    """Watches the windows and budgets that this process settles."""

    def __init__(self, store: LevelStore, rules: Rules, clock: Clock, feed: Feed) -> None:
        """Look at the levels of this store, and tell the log and the feed."""
        self._store = store
        self._rules = rules
        self._clock = clock
        self._feed = feed
        self._to_look_at: dict[str, Window | Rolling] = {}
        self._settled = asyncio.Event()
        self._told: dict[str, Limit] = {}

    def settled(self, limits: Sequence[Limit]) -> None:
        """Look at these limits soon: a call that met them was settled."""
        for limit in limits:
            if isinstance(limit, Window | Rolling) and len(self._to_look_at) < MOST_TO_LOOK_AT:
                self._to_look_at[limit.name] = limit
                self._settled.set()

    async def watch(self) -> None:
        """Look again and again, LOOK_EVERY_S apart, when something was settled."""
        while True:
            await self._settled.wait()
            await asyncio.sleep(LOOK_EVERY_S)
            try:
                await self.look()
            except StoreError as error:
                log.warning("thresholds were not looked at, the next settlement tries again: %s", error)

    async def look(self) -> None:
        """Look at what was settled since the last time, and warn of the thresholds that were passed."""
        by_name, self._to_look_at = self._to_look_at, {}
        self._settled.clear()
        if not by_name:
            return
        in_force = [limit for limit in self._rules.met(tuple(by_name.values())) if isinstance(limit, Window | Rolling)]

        def step(records: Mapping[str, Record]) -> tuple[dict[str, Record | None], list[Alert]]:
            return _alerts(in_force, records, self._clock.now_s())

        due = await self._store.transact([*by_name, *(ALERT_PREFIX + name for name in by_name)], step)
        now = {limit.name: limit for limit in in_force}
        for alert in due:
            self._warn(now[alert.limit], alert)

    async def raised(self, rules: Sequence[LimitRule]) -> None:
        """Let the thresholds of limits that have more now be warned of again, as far as they are not past them."""
        names = [name.removeprefix(ALERT_PREFIX) for name in await self._store.names(ALERT_PREFIX)]
        limits = [limit for name in names if isinstance(limit := bound(rules, name), Window | Rolling)]

        def step(records: Mapping[str, Record]) -> tuple[dict[str, Record | None], None]:
            now_s = self._clock.now_s()
            said = {limit.name: records.get(ALERT_PREFIX + limit.name) for limit in limits}
            return {
                ALERT_PREFIX + limit.name: said_after_a_raise(limit, records.get(limit.name), before, now_s)
                for limit in limits
                if (before := said[limit.name]) is not None
            }, None

        if limits:
            await self._store.transact([each for name in names for each in (name, ALERT_PREFIX + name)], step)

    def learned(self, before: Mapping[str, Limit], after: Mapping[str, Limit]) -> None:
        """Tell what was learned of limits: a new one, one that is not in force any more, a noticeably other amount."""
        if not self._feed.is_followed:
            self._told.clear()
            return
        self._told = {name: self._told.get(name, limit) for name, limit in before.items()}
        for name in before.keys() | after.keys():
            old, new = self._told.get(name), after.get(name)
            limit = new or old
            if limit is not None and not _is_alike(old, new):
                if new is not None:
                    self._told[name] = new
                self._feed.tell(
                    "limit",
                    what="learned",
                    limit=name,
                    scope=limit.scope,
                    dimension=limit.dimension,
                    amount=None if new is None else new.amount,
                    before=None if old is None else old.amount,
                )

    def _warn(self, limit: Limit, alert: Alert) -> None:
        is_money = alert.dimension == "micro_usd"
        used = amount_in_words(alert.dimension, alert.used) if is_money else f"{alert.used:,}"
        log.warning("past %d %%: %s of %s used", alert.threshold_percent, used, describe(limit))
        self._feed.tell(
            "limit",
            what="threshold",
            limit=alert.limit,
            scope=alert.scope,
            dimension=alert.dimension,
            percent=alert.threshold_percent,
            used=alert.used,
            amount=alert.amount,
            resets_at=None if alert.resets_ns is None else to_s(alert.resets_ns),
        )


def _is_alike(old: Limit | None, new: Limit | None) -> bool:
    """Whether two learned limits differ by nothing that is worth an event."""
    if old is None or new is None or type(old) is not type(new):
        return old is new
    if isinstance(old, Window) and isinstance(new, Window) and old.closed_until_ns != new.closed_until_ns:
        return False
    return abs(new.amount - old.amount) < NOTICEABLE * old.amount or new.amount == old.amount


def _alerts(
    limits: Sequence[Limit], records: Mapping[str, Record], now_s: float
) -> tuple[dict[str, Record | None], list[Alert]]:
    """Give what is to be kept as said, and the alerts that are due."""
    said = {limit.name: record for limit in limits if (record := records.get(ALERT_PREFIX + limit.name)) is not None}
    due, remembered = alerts_due(limits, records, said, now_s)
    changed = {
        ALERT_PREFIX + limit.name: remembered.get(limit.name)
        for limit in limits
        if remembered.get(limit.name) != said.get(limit.name)
    }
    return changed, due

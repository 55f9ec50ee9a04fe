"""Plan shares: how much of their plans' windows accounts have used, as their providers said last.

One rule: a share counts until its window's end, and is of the calls before the answer that told it; nothing is stored.
A process hears of what others spent with its next answer from that account; until then an account that nobody here asks
falls behind its line as time passes, and is asked.
"""

from collections import OrderedDict
from collections.abc import Iterable

from headgate.core.adaptive import model_class
from headgate.core.notices import PlanNotice
from headgate.core.pace import PlanShare
from headgate.ports import Clock

MOST_SHARES = 1_000


class PlanShares:
    """What was told, by account, pool of models and length."""

    def __init__(self, clock: Clock) -> None:
        """Know nothing."""
        self._clock = clock
        self._told: OrderedDict[tuple[str, str, int], PlanShare] = OrderedDict()

    def hear(self, account: str, pool: str, plans: Iterable[PlanNotice]) -> None:
        """Take up what an answer for a pool of models said."""
        now_s = self._clock.now_s()
        for plan in plans:
            if plan.used_share is not None:
                key = (account, pool if plan.models else "", plan.period_s)
                resets_s = plan.resets_s
                before = self._told.get(key)
                if resets_s is None and before is not None and (before.resets_s or 0.0) > now_s:
                    resets_s = before.resets_s
                self._told[key] = PlanShare(plan.period_s, plan.used_share, resets_s, key[1] or None, now_s)
                self._told.move_to_end(key)
        while len(self._told) > MOST_SHARES:
            self._told.popitem(last=False)

    def of(self, account: str, model: str | None = None) -> list[PlanShare]:
        """Give the windows of an account that are not over, for a model or (None) all."""
        if not self._told:
            return []
        now_s = self._clock.now_s()
        pools = None if model is None else ("", model_class(model))
        return [
            share
            for (name, pool, period_s), share in self._told.items()
            if name == account
            and (pools is None or pool in pools)
            and now_s < (share.resets_s if share.resets_s is not None else (share.told_s or 0.0) + period_s)
        ]

"""Admitted: when a simulation's calls were let through, which learning asks a ledger for.

One rule: it counts and keeps nothing else, and only what learning looks back on.
"""

from bisect import bisect_left

from headgate.core.ledger import UsageGroup, UsageQuery
from headgate.runtime.closings import MOST_MEASURED_S

_MOST_KEPT = 100_000


class Admitted:
    """Counts calls by account and model."""

    def __init__(self) -> None:
        """Start with none."""
        self._sent_s: dict[tuple[str, str], list[float]] = {}

    def count(self, account: str, model: str, at_s: float) -> None:
        """Count a call that its provider let through."""
        sent_s = self._sent_s.setdefault((account, model), [])
        sent_s.append(at_s)
        if len(sent_s) > _MOST_KEPT:  # what is older is asked for no more, but where calls are very many
            del sent_s[: max(_MOST_KEPT // 2, bisect_left(sent_s, at_s - MOST_MEASURED_S))]

    async def usage(self, query: UsageQuery) -> list[UsageGroup]:
        """Sum as a ledger does: the requests of each model of the accounts that are asked for."""
        asked = dict(query.only).get("account")
        found = []
        for (account, model), sent_s in self._sent_s.items():
            if asked in (None, account):
                first = 0 if query.since_s is None else bisect_left(sent_s, query.since_s)
                last = len(sent_s) if query.until_s is None else bisect_left(sent_s, query.until_s)
                found.append(UsageGroup({"model": model, "state": "done"}, requests=max(0, last - first)))
        return found

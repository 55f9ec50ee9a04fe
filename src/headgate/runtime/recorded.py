"""Recorded: what the ledger says was used in a scope, in the dimensions that limits count.

One rule: the sums are the ledger's, and each account's are charged by its own provider's formula. A scope by which the
ledger keeps no sums (a tag) has none: None, never 0.
"""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from fnmatch import fnmatchcase
from typing import NamedTuple, get_args

from headgate.core.adaptive import model_class
from headgate.core.amounts import Dimension
from headgate.core.ledger import GroupBy, UsageGroup, UsageQuery
from headgate.core.scopes import SCOPE_KINDS, Scopes
from headgate.core.usage import CHARGES, Counting, Usage
from headgate.ports import LedgerStore

Only = tuple[tuple[GroupBy, str], ...]

_OF_SCOPE: dict[str, GroupBy] = {field: field for field in get_args(GroupBy) if field in SCOPE_KINDS}


class Units(NamedTuple):
    """What was used; `unknown` calls have no known price and are not in `known` micro-dollars."""

    known: int
    unknown: int
    attempts: int


class Recorded:
    """Reads the ledger; `countings` says how each account's provider counts."""

    def __init__(self, ledger: LedgerStore, countings: Mapping[str, Counting]) -> None:
        """Read from this ledger."""
        self._ledger = ledger
        self._countings = countings

    async def groups(
        self, only: Only | None, since_s: float, until_s: float, by: tuple[GroupBy, ...] = ()
    ) -> list[UsageGroup]:
        """Give the sums by model and account, and by what else is asked; none for a scope without sums."""
        if only is None:
            return []
        return await self._ledger.usage(UsageQuery((*by, "model", "account"), since_s, until_s, only))

    def units(self, groups: Sequence[UsageGroup], dimension: Dimension, models: str | None = None) -> Units:
        """Add up what counts in a dimension, of one class of models or of all."""
        known = unknown = attempts = 0
        for group in groups:
            if models is None or _is_of(group.group["model"] or "", models):
                known += self._charged(group, dimension)
                unknown += group.unknown_cost if dimension == "micro_usd" else 0
                attempts += group.attempts
        return Units(known, unknown, attempts)

    def _charged(self, group: UsageGroup, dimension: Dimension) -> int:
        if dimension == "requests":
            return group.requests
        usage = Usage(
            input_tokens=group.input_tokens,
            cache_read_tokens=group.cache_read_tokens,
            cache_write_5m_tokens=group.cache_write_tokens,
            output_tokens=group.output_tokens,
        )
        counting = self._countings.get(group.group["account"] or "", "anthropic")
        return getattr(CHARGES[counting](usage, group.cost_micro_usd), dimension) or 0


def only_of(scope: str) -> Only | None:
    """Give the ledger's filter for a scope in words, which may be claimed (`session:8c1f|key:ci`); None without one."""
    pairs = [word.partition(":") for word in scope.split("|")]
    if any(kind not in _OF_SCOPE for kind, _, _value in pairs):
        return None
    return tuple((_OF_SCOPE[kind], value) for kind, _, value in pairs)


def only_of_kind(scopes: Scopes, model: str) -> Only:
    """Give the filter for all calls for a model of agents of these scopes."""
    named = ((field, getattr(scopes, kind)) for kind, field in _OF_SCOPE.items())
    return (("model", model), *((field, value) for field, value in named if value is not None))


def hour_start_s(hour: str) -> int:
    """Give the beginning of an hour as the ledger names it (2026-11-20T19:00Z)."""
    return int(datetime.strptime(hour, "%Y-%m-%dT%H:%MZ").replace(tzinfo=UTC).timestamp())


def _is_of(model: str, models: str) -> bool:
    """Whether a model is of a class: a glob of a rule, or the class of a learned limit."""
    return fnmatchcase(model, models) or model_class(model) == models

"""The tables `[scheduler]` and `[[lane]]`: who goes next among the calls that wait.

One rule: what can be said here is what `core.scheduling` means; a policy, a scope or a weight that cannot be is told
with its line and what is allowed.
"""

from collections.abc import Mapping, Sequence
from typing import get_args

from headgate.adapters.config.document import Document
from headgate.adapters.config.limits import scope_among
from headgate.adapters.config.tables import Reader, Table, Unfit, boolean, choice, number
from headgate.adapters.config.values import model_glob
from headgate.core.scheduling import POLICIES, LaneRule, Scheduling
from headgate.core.scopes import ScopeKind

__all__ = ["MOST_WEIGHT", "read_scheduling", "weight"]

MOST_WEIGHT = 1_000.0

weight: Reader[float] = number(1 / MOST_WEIGHT, MOST_WEIGHT, "a weight such as 2 or 0.5; 1 is ordinary")

_POLICY = choice({name: name for name in POLICIES})
_SHARERS: tuple[ScopeKind, ...] = tuple(kind for kind in get_args(ScopeKind) if kind not in ("account", "tag"))


def read_scheduling(document: Document, accounts: Sequence[str], *, new_weights: bool = True) -> Scheduling:
    """Read both tables; a lane of an account is one of these. `new_weights`: they must be such as count."""
    default = Scheduling()
    table = document.table("scheduler")
    scheduling = Scheduling(
        policy=table.take("policy", _POLICY, default.policy),
        share_by=table.take("share_by", _share_by, default.share_by),
        weights=table.take("weights", _weights, {}),
        warm_up=table.take("warm_up", boolean, default.warm_up),
        lanes=tuple(_read_lane(lane, accounts) for lane in document.tables("lane")),
    )
    table.close()
    for sharer in scheduling.weights if new_weights else ():
        kind = sharer.partition(":")[0]
        if kind not in scheduling.share_by:
            shared = ", ".join(scheduling.share_by)
            table.problem("weights", f'"{sharer}" would count for nothing, for share_by is {shared}; add {kind} to it')
    first: dict[tuple[object, object], Table] = {}
    for lane, rule in zip(document.tables("lane"), scheduling.lanes, strict=True):
        earlier = first.setdefault((rule.scope, rule.models), lane)
        if earlier is not lane and rule.scope != "*":  # which stands for one that cannot be used
            where = document.problems.in_line(earlier.path)
            lane.problem(None, f"never counts: an earlier one{where} has the same scope and models; keep one of both")
    return scheduling


def _read_lane(table: Table, accounts: Sequence[str]) -> LaneRule:
    rule = LaneRule(
        scope=table.take("scope", scope_among(accounts), "*", required=True),
        models=table.take("models", model_glob, "*"),
        policy=table.take("policy", _POLICY, "fifo", required=True),
    )
    table.close()
    return rule


def _share_by(value: object) -> tuple[ScopeKind, ...]:
    expected = f"expected a list of {', '.join(_SHARERS)}: the first that a call has is whom its share is counted for"
    if not isinstance(value, list) or not value:
        raise Unfit(expected)
    kinds: list[ScopeKind] = []
    for index, entry in enumerate(value):
        kind = next((each for each in _SHARERS if each == entry), None)
        if kind is None:
            raise Unfit(expected, inside=(index,))
        if kind in kinds:
            raise Unfit("stands there twice; expected each once", inside=(index,))
        kinds.append(kind)
    return tuple(kinds)


def _weights(value: object) -> Mapping[str, float]:
    if not isinstance(value, dict):
        raise Unfit('expected weights such as { "key:ci" = 2, "team:search" = 0.5 }')
    weights: dict[str, float] = {}
    for sharer, entry in value.items():
        kind, colon, name = sharer.partition(":")
        if kind not in _SHARERS or not colon or not name or "*" in name:
            raise Unfit(f"expected one sharer such as key:ci; kinds: {', '.join(_SHARERS)}", inside=(sharer,))
        try:
            weights[sharer] = weight(entry)
        except Unfit as unfit:
            raise Unfit(str(unfit), inside=(sharer,)) from None
    return weights

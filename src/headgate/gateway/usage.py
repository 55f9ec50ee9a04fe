"""Usage over the control API: what was used and what it cost, summed as it is asked for.

One rule: a question changes nothing. The sums are the ledger's.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Annotated, TypedDict, cast, get_args

from msgspec import Meta

from headgate.core.errors import CallerError
from headgate.core.ledger import GroupBy, UsageGroup, UsageQuery
from headgate.gateway.asked import Asked
from headgate.gateway.operations import MicroUsd, Operation, Parameter
from headgate.gateway.parameters import instant_s, parameters, rfc3339
from headgate.ports import Clock

USAGE_PATH = "/api/v1/usage"

_FILTERS: tuple[GroupBy, ...] = tuple(name for name in get_args(GroupBy) if name not in ("hour", "day"))
_TIME = "30m, 12h, 7d (so long ago), a time with its offset, or seconds since the epoch"


class Sums(TypedDict):
    """Sums over attempts."""

    requests: int
    input_tokens: Annotated[int, Meta(description="Uncached, as Anthropic counts.")]
    output_tokens: int
    cache_read_tokens: int
    cache_write_tokens: int
    reasoning_tokens: int
    cost_micro_usd: MicroUsd
    unknown_cost: Annotated[int, Meta(description="Calls whose price nobody knows; they are not in the cost.")]
    estimated: int
    failed: int
    wait_ms: int
    attempts: int
    refused: int


class UsageGroupTold(Sums, total=False):
    """The sums of one group, with a field for each name of `group_by`; null where its calls say none."""

    account: str | None
    key: str | None
    team: str | None
    run: str | None
    agent: str | None
    session: str | None
    model: str | None
    asked_model: str | None
    rule: str | None
    endpoint: str | None
    state: str | None
    hour: str | None
    day: str | None


class UsageTold(TypedDict):
    """What was used, in groups and in all."""

    groups: list[UsageGroupTold]
    total: Sums


SUMS = tuple(Sums.__annotations__)


async def tell_usage(asked: Asked) -> UsageTold:
    """Answer `GET /api/v1/usage`.

    Raises:
        CallerError: a parameter cannot be understood.
    """
    query = _query(asked.words, asked.manager.clock)
    query = replace(query, only=(*query.only, *asked.view.only))
    return usage_json(await asked.manager.usage(query), query.group_by)


def usage_query(text: str, clock: Clock) -> UsageQuery:
    """Give the query of a URL's parameters: `group_by=model,key`, `since=7d`, `run=a1b2c3`.

    Raises:
        CallerError: a parameter is unknown or its value cannot be understood.
    """
    return _query(parameters(text, [each.name for each in TELL_USAGE.parameters]), clock)


def _query(found: Mapping[str, str], clock: Clock) -> UsageQuery:
    groups = tuple(name for name in found.get("group_by", "").split(",") if name)
    for name in groups:
        if name not in get_args(GroupBy):
            raise CallerError(f"group_by={name[:50]!r}: expected some of {', '.join(get_args(GroupBy))}")
    since_s, until_s = (instant_s(found.get(word), clock) for word in ("since", "until"))
    if since_s is not None and until_s is not None and since_s >= until_s:
        raise CallerError(
            f"since={found['since'][:50]} is {rfc3339(since_s)} and until={found['until'][:50]} is {rfc3339(until_s)}, "
            "which is not later: expected a beginning before the end (30m is so long ago)"
        )
    return UsageQuery(
        group_by=groups,  # type: ignore[arg-type]  # checked against GroupBy's own words above
        since_s=since_s,
        until_s=until_s,
        only=tuple((name, found[name]) for name in _FILTERS if name in found),
    )


def usage_json(groups: Sequence[UsageGroup], group_by: Sequence[str]) -> UsageTold:
    """Give usage in the control API's shape: one field per group, its sums, and the total."""
    # Which names a group has is known as it is asked, and not before.
    rows = [cast(UsageGroupTold, {name: group.group.get(name) for name in group_by} | _sums(group)) for group in groups]
    total = {name: sum(getattr(group, name) for group in groups) for name in SUMS}
    return {"groups": rows, "total": cast(Sums, total)}


def _sums(group: UsageGroup) -> dict[str, int]:
    return {name: getattr(group, name) for name in SUMS}


TELL_USAGE = Operation(
    tell_usage,
    UsageTold,
    "What was used and what it cost",
    (
        Parameter("group_by", "Sums for each of these.", Annotated[list[GroupBy], Meta(min_length=1)], example="model"),
        Parameter("since", f"Calls admitted from then on: {_TIME}.", example="7d"),
        Parameter("until", f"Calls admitted before then: {_TIME}."),
        *(Parameter(name, f"Only calls of this {name.replace('_', ' ')}.") for name in _FILTERS),
    ),
)

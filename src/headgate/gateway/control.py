"""The control API: usage, limits and queue as JSON.

One rule: a question changes nothing, and a key's bearer sees its own and nobody else's.
"""

import re
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any, get_args
from urllib.parse import parse_qs

import msgspec

from headgate.core.errors import CallerError
from headgate.core.ledger import GroupBy, UsageGroup, UsageQuery
from headgate.core.scopes import Scopes
from headgate.gateway.callers import Caller
from headgate.gateway.exchange import HttpExchange
from headgate.ports import Clock
from headgate.runtime.manager import Manager
from headgate.runtime.monitor import LimitView, WaitView

PATHS = ("/api/v1/usage", "/api/v1/limits", "/api/v1/queue")

_SPAN = re.compile(r"(\d{1,6})([smhdw])")
_LATEST_S = 253_402_300_799.0  # the year 9999, the last that RFC 3339 can write
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800}
SUMS = (
    "requests",
    "input_tokens",
    "output_tokens",
    "cache_read_tokens",
    "cache_write_tokens",
    "reasoning_tokens",
    "cost_micro_usd",
    "unknown_cost",
    "estimated",
    "failed",
    "wait_ms",
)


async def answer_control(exchange: HttpExchange, manager: Manager, caller: Caller, own_scopes: Scopes) -> None:
    """Answer one of `PATHS` to a caller who was identified; a key's bearer sees the limits of its `own_scopes`.

    Raises:
        CallerError: a parameter cannot be understood.
    """
    shape: dict[str, Any]
    match exchange.path:
        case "/api/v1/usage":
            query = usage_query(exchange.query.decode("ascii", "replace"), manager.clock)
            if caller.key is not None:
                query = replace(query, only=(*query.only, ("key", caller.key.name)))
            shape = usage_json(await manager.usage(query), query.group_by)
        case "/api/v1/limits":
            own = None if caller.key is None else set(own_scopes.path())
            shape = limits_json([view for view in await manager.limits() if own is None or view.scope in own])
        case _:
            name = None if caller.key is None else caller.key.name
            shape = queue_json([view for view in manager.queue() if name is None or view.key == name])
    await exchange.answer(200, [(b"content-type", b"application/json")], msgspec.json.encode(shape))


def usage_query(text: str, clock: Clock) -> UsageQuery:
    """Give the query of a URL's parameters: `group_by=model,key`, `since=7d`, `until=2026-11-01T00:00:00Z`.

    Raises:
        CallerError: a parameter is unknown or its value cannot be understood.
    """
    try:
        parameters = {name: values[-1] for name, values in parse_qs(text, max_num_fields=20).items()}
    except ValueError as error:
        raise CallerError("more than 20 parameters; known are group_by, since and until") from error
    unknown = sorted(parameters.keys() - {"group_by", "since", "until"})
    if unknown:
        raise CallerError(f"unknown parameter {unknown[0][:50]!r}; known are group_by, since and until")
    groups = tuple(name for name in parameters.get("group_by", "").split(",") if name)
    for name in groups:
        if name not in get_args(GroupBy):
            raise CallerError(f"group_by={name[:50]!r}: expected some of {', '.join(get_args(GroupBy))}")
    return UsageQuery(
        group_by=groups,  # type: ignore[arg-type]  # checked against GroupBy's own words above
        since_s=instant_s(parameters.get("since"), clock),
        until_s=instant_s(parameters.get("until"), clock),
    )


def instant_s(text: str | None, clock: Clock) -> float | None:
    """Give the instant that `7d` (so long ago), an RFC 3339 time or seconds since the epoch name.

    Raises:
        CallerError: it is none of these.
    """
    if text is None or not text:
        return None
    if _SPAN.fullmatch(text) is not None:
        return clock.now_s() - span_s(text)
    try:
        seconds = float(text)
    except ValueError:
        try:
            moment = datetime.fromisoformat(text)
        except ValueError:
            raise CallerError(
                f"{text[:50]!r} is no time: write 30m, 12h, 7d, 2026-11-01T00:00:00Z or seconds since the epoch"
            ) from None
        return (moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)).timestamp()
    if not 0 <= seconds <= _LATEST_S:
        raise CallerError(f"{text[:50]!r} is no time: seconds since the epoch lie between 0 and {_LATEST_S:.0f}")
    return seconds


def span_s(text: str) -> int:
    """Give the seconds that `30m`, `12h` or `7d` name.

    Raises:
        CallerError: it is not of that form.
    """
    span = _SPAN.fullmatch(text)
    if span is None:
        raise CallerError(f"{text[:50]!r} is no length of time: write 30s, 15m, 12h, 7d or 2w")
    return int(span[1]) * _SECONDS[span[2]]


def usage_json(groups: Sequence[UsageGroup], group_by: Sequence[str]) -> dict[str, Any]:
    """Give usage in the control API's shape: one field per group, its sums, and the total."""
    rows = [{**{name: group.group.get(name) for name in group_by}, **_sums(group)} for group in groups]
    return {"groups": rows, "total": {name: sum(getattr(group, name) for group in groups) for name in SUMS}}


def limits_json(views: Sequence[LimitView]) -> dict[str, Any]:
    """Give limits in the control API's shape."""
    return {
        "limits": [
            {
                "name": view.name,
                "scope": view.scope,
                "models": view.models,
                "dimension": view.dimension,
                "kind": view.kind,
                "amount": view.amount,
                "per": view.per,
                "burst": view.burst,
                "used": view.used,
                "held": view.held,
                "free": view.free,
                "share": round(view.share, 4),
                "resets_at": rfc3339(view.resets_s),
            }
            for view in views
        ]
    }


def queue_json(views: Sequence[WaitView]) -> dict[str, Any]:
    """Give the queue in the control API's shape: the lanes with their heads, and every call that waits."""
    lanes: dict[str, dict[str, Any]] = {}
    for view in views:
        lane = lanes.setdefault(
            view.lane,
            {"lane": view.lane, "waiting": 0, "limit": view.limit, "head_until": rfc3339(view.until_s)},
        )
        lane["waiting"] += 1
    waiting = [
        {
            "call_id": view.call,
            "lane": view.lane,
            "limit": view.limit,
            "account": view.account,
            "key": view.key,
            "run": view.run,
            "agent": view.agent,
            "session": view.session,
            "model": view.model,
            "since": rfc3339(view.since_s),
            "deadline": rfc3339(view.deadline_s),
            "until": rfc3339(view.until_s),
        }
        for view in views
    ]
    return {"lanes": list(lanes.values()), "waiting": waiting}


def rfc3339(seconds: float | None) -> str | None:
    """Give an instant as RFC 3339 with milliseconds."""
    if seconds is None:
        return None
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _sums(group: UsageGroup) -> dict[str, int]:
    return {name: getattr(group, name) for name in SUMS}

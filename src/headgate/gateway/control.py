"""The control API: which path is answered by what, and the questions of what is used, limited, waiting and recorded.

One rule: a question changes nothing. What a key's bearer may see is `asked.View`'s affair; orders have a file each.
"""

import asyncio
import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, get_args
from urllib.parse import unquote

import msgspec

from headgate.core.errors import CallerError
from headgate.core.instants import to_ns, to_s
from headgate.core.ledger import Attempt, GroupBy, UsageGroup, UsageQuery
from headgate.core.scopes import fit, scope_name
from headgate.core.set_aside import Closure
from headgate.gateway.accounts import ACCOUNTS_PATH, tell_accounts
from headgate.gateway.asked import Asked, Reload, View
from headgate.gateway.budgets import BUDGETS_PATH, tell_budgets
from headgate.gateway.callers import Caller, KeyScopes, own_scopes
from headgate.gateway.events import EVENTS_PATH, stream_events
from headgate.gateway.exchange import HttpExchange
from headgate.gateway.lending import end_key, lend_keys
from headgate.gateway.outlook import CAPACITY_PATH, FORECAST_PATH, tell_capacity, tell_forecast
from headgate.gateway.parameters import count, instant_s, parameters, rfc3339, scopes_wanted
from headgate.gateway.reloading import RELOAD_PATH, reload
from headgate.gateway.reserving import RESERVATIONS_PATH, end_reservation, make_reservation, tell_reservations
from headgate.gateway.run_books import MOST_ROWS, attempt_json, limit_json, limits_met
from headgate.gateway.steering import MOST_CHANGE_BYTES, SCHEDULER_PATH, change_scheduling, show_scheduling
from headgate.ports import Clock
from headgate.runtime.manager import Manager
from headgate.runtime.monitor import LimitView, WaitView

_HEADERS = [(b"content-type", b"application/json"), (b"cache-control", b"no-store")]
_FILTERS: tuple[GroupBy, ...] = tuple(name for name in get_args(GroupBy) if name not in ("hour", "day"))
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
    "attempts",
    "refused",
)

Answer = Callable[[Asked], Awaitable[dict[str, Any]]]


def methods_of(path: str) -> tuple[str, ...]:
    """Give the methods that a path of the control API takes; none if it is not one."""
    found = _route(path)
    return () if found is None else found[0].methods


async def answer_control(
    exchange: HttpExchange,
    manager: Manager,
    caller: Caller,
    keys: Mapping[str, KeyScopes],
    reload_config: Reload | None = None,
) -> None:
    """Answer a caller who was identified, at a path and with a method that `methods_of` has.

    `keys` is what the configuration says of keys, by name; `reload_config` reads it again.

    Raises:
        CallerError: what was sent cannot be understood, or is not the caller's to ask.
    """
    found = _route(exchange.path)
    assert found is not None, "the caller asked methods_of"
    route, named = found
    view = View(caller, fit(own_scopes(caller, keys)))
    method = "GET" if exchange.method == "HEAD" else exchange.method
    shape = await route.answers[method](Asked(exchange, manager, caller, view, named, keys, reload_config))
    makes = method == "POST" and route.path != RELOAD_PATH
    await exchange.answer(201 if makes else 200, _HEADERS, msgspec.json.encode(shape))


async def _usage(asked: Asked) -> dict[str, Any]:
    query = usage_query(asked.text, asked.manager.clock)
    query = replace(query, only=(*query.only, *asked.view.only))
    return usage_json(await asked.manager.usage(query), query.group_by)


async def _limits(asked: Asked) -> dict[str, Any]:
    is_wanted = scopes_wanted(asked.parameters("scope").get("scope", ""))
    views = [each for each in await asked.manager.limits() if is_wanted(each.scope)]
    closures = [each for each in asked.manager.maintenance() if each.scope == "*" or is_wanted(each.scope)]
    return limits_json(
        [each for each in views if asked.view.has_limit(each.scope)],
        [each for each in closures if each.scope == "*" or asked.view.has_limit(each.scope)],
        asked.manager.clock.now_s(),
    )


async def _queue(asked: Asked) -> dict[str, Any]:
    asked.parameters()
    return queue_json([each for each in asked.manager.queue() if asked.view.has_call(each)])


async def _events(asked: Asked) -> dict[str, Any]:
    asked.parameters()
    await stream_events(asked.exchange, asked.manager, asked.view.has_event)


async def _show_scheduler(asked: Asked) -> dict[str, Any]:
    asked.parameters()
    return show_scheduling(asked.manager)


async def _change_scheduler(asked: Asked) -> dict[str, Any]:
    asked.parameters()
    return change_scheduling(asked.manager, asked.caller, await asked.exchange.body(MOST_CHANGE_BYTES))


async def _run_limits(asked: Asked) -> dict[str, Any]:
    asked.parameters()
    met = await limits_met(asked.manager, await _calls_of_run(asked), asked.view.has_limit)
    return {"limits": [limit_json(each) for each in met]}


async def _run_attempts(asked: Asked) -> dict[str, Any]:
    words = asked.parameters("after", "most")
    after, most = count(words, "after", 0), count(words, "most", MOST_ROWS, least=1)
    calls = await _calls_of_run(asked)
    page = calls[after : after + min(most, MOST_ROWS)]
    more = after + len(page) < len(calls) and bool(page)
    # A page is tens of milliseconds of work, for which no stream should stand still.
    rows = await asyncio.to_thread(lambda: [attempt_json(call) for call in page])
    return {"attempts": rows, "next": after + len(page) if more else None}


async def _calls_of_run(asked: Asked) -> list[Attempt]:
    # A run of which the caller has no call answers as one that there is not: names are nobody else's affair.
    run = scope_name(unquote(asked.named["run"]))
    return [call for call in await asked.manager.attempts(run) if asked.view.has_call(call.scopes)]


def usage_query(text: str, clock: Clock) -> UsageQuery:
    """Give the query of a URL's parameters: `group_by=model,key`, `since=7d`, `run=a1b2c3`.

    Raises:
        CallerError: a parameter is unknown or its value cannot be understood.
    """
    found = parameters(text, ("group_by", "since", "until", *_FILTERS))
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


def usage_json(groups: Sequence[UsageGroup], group_by: Sequence[str]) -> dict[str, Any]:
    """Give usage in the control API's shape: one field per group, its sums, and the total."""
    rows = [{**{name: group.group.get(name) for name in group_by}, **_sums(group)} for group in groups]
    return {"groups": rows, "total": {name: sum(getattr(group, name) for group in groups) for name in SUMS}}


def limits_json(views: Sequence[LimitView], closures: Sequence[Closure] = (), now_s: float = 0.0) -> dict[str, Any]:
    """Give limits and maintenance windows in the control API's shape."""
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
                "set_aside": view.set_aside,
                "share": round(view.share, 4),
                "resets_at": rfc3339(view.resets_s),
                "configured": view.configured,
                "learned": view.learned,
                "learned_from": view.learned_from,
                "learned_since": rfc3339(view.learned_since_s),
                "learned_models": view.learned_models,
                "closed_until": rfc3339(view.closed_until_s),
                "hold": view.hold,
            }
            for view in views
        ],
        "maintenance": [
            {
                "cron": each.cron,
                "scope": each.scope,
                "models": each.models,
                "from": rfc3339(to_s(each.begins_ns)),
                "until": rfc3339(to_s(each.ends_ns)),
                "action": "refuse" if each.refuses else "hold",
                "lasts": each.is_in_force(to_ns(now_s)),
            }
            for each in closures
        ],
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
            "policy": view.policy,
            "reason": view.reason,
        }
        for view in views
    ]
    return {"lanes": list(lanes.values()), "waiting": waiting}


def _sums(group: UsageGroup) -> dict[str, int]:
    return {name: getattr(group, name) for name in SUMS}


@dataclass(frozen=True, slots=True)
class _Route:
    """A path as people write it, its variable words in capitals, and what answers each method."""

    path: str
    answers: Mapping[str, Answer]

    @property
    def methods(self) -> tuple[str, ...]:
        return (*self.answers, "HEAD") if "GET" in self.answers and self.path != EVENTS_PATH else tuple(self.answers)


_ROUTES = (
    _Route("/api/v1/usage", {"GET": _usage}),
    _Route("/api/v1/limits", {"GET": _limits}),
    _Route("/api/v1/queue", {"GET": _queue}),
    _Route(ACCOUNTS_PATH, {"GET": tell_accounts}),
    _Route(FORECAST_PATH, {"GET": tell_forecast}),
    _Route(CAPACITY_PATH, {"GET": tell_capacity}),
    _Route(BUDGETS_PATH, {"GET": tell_budgets}),
    _Route(RESERVATIONS_PATH, {"GET": tell_reservations, "POST": make_reservation}),
    _Route(f"{RESERVATIONS_PATH}/ID", {"DELETE": end_reservation}),
    _Route(EVENTS_PATH, {"GET": _events}),
    _Route(SCHEDULER_PATH, {"GET": _show_scheduler, "PUT": _change_scheduler}),
    _Route(RELOAD_PATH, {"POST": reload}),
    _Route("/api/v1/keys", {"POST": lend_keys}),
    _Route("/api/v1/keys/ID", {"DELETE": end_key}),
    _Route("/api/v1/runs/RUN/attempts", {"GET": _run_attempts}),
    _Route("/api/v1/runs/RUN/limits", {"GET": _run_limits}),
)
PATHS = tuple(route.path for route in _ROUTES)
"""All of them, as people write them."""

_WORDS = {"ID": r"(?P<id>[0-9a-f]{1,64})", "RUN": r"(?P<run>[^/]{1,600})"}


def _pattern(path: str) -> re.Pattern[str]:
    return re.compile("/".join(_WORDS.get(part, part) for part in path.split("/")))


_PATTERNS = [(_pattern(route.path), route) for route in _ROUTES]


def _route(path: str) -> tuple[_Route, dict[str, str]] | None:
    """Give what is served at a path, with the words that stand for its variable ones."""
    matches = ((route, pattern.fullmatch(path)) for pattern, route in _PATTERNS)
    return next(((route, match.groupdict()) for route, match in matches if match is not None), None)

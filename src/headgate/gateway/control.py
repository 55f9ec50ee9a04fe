"""The control API: usage, limits, queue and a run's books as JSON, and the keys of fleets that run elsewhere.

One rule: a question changes nothing, and a key's bearer sees its own and nobody else's: what was called with the key
and with those that were made under it.
"""

import asyncio
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Annotated, Any, get_args
from urllib.parse import parse_qs, unquote

import msgspec

from headgate.core.errors import CallerError
from headgate.core.ledger import GroupBy, UsageGroup, UsageQuery
from headgate.core.scopes import MOST_NAME_CHARS, SCOPE_KINDS, Scopes, fit, is_own, scope_name
from headgate.gateway.callers import Caller
from headgate.gateway.exchange import HttpExchange
from headgate.gateway.run_books import MOST_ROWS, attempt_json, limit_json, limits_met
from headgate.gateway.steering import MOST_CHANGE_BYTES, SCHEDULER_PATH, change_scheduling, show_scheduling
from headgate.ports import Clock
from headgate.runtime.keys import MOST_LENT_S, Holder
from headgate.runtime.manager import Manager
from headgate.runtime.monitor import LimitView, WaitView

QUESTIONS = ("/api/v1/usage", "/api/v1/limits", "/api/v1/queue")
KEYS_PATH = "/api/v1/keys"
PATHS = (*QUESTIONS, KEYS_PATH, SCHEDULER_PATH, "/api/v1/runs/RUN/attempts", "/api/v1/runs/RUN/limits")
"""All of them, as people write them."""

MOST_KEYS_AT_ONCE = 100
MOST_WISH_BYTES = 128 * 1024

_HEADERS = [(b"content-type", b"application/json"), (b"cache-control", b"no-store")]
_KEY_PATH = re.compile(r"/api/v1/keys/(?P<id>[0-9a-f]{1,64})")
_RUN_PATH = re.compile(r"/api/v1/runs/(?P<run>[^/]{1,600})/(?P<what>attempts|limits)")
_FILTERS: tuple[GroupBy, ...] = ("account", "key", "team", "run", "agent", "session", "model", "endpoint", "state")
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
    "attempts",
)


class NothingThereError(CallerError):
    """What the path names is not there, or not the caller's."""


class KeysWish(msgspec.Struct, forbid_unknown_fields=True):
    """What is asked of `POST /api/v1/keys`: a key for each of these agents of a run."""

    run: Annotated[str, msgspec.Meta(min_length=1, max_length=MOST_NAME_CHARS)]
    agents: Annotated[
        list[Annotated[str, msgspec.Meta(min_length=1, max_length=MOST_NAME_CHARS)]],
        msgspec.Meta(max_length=MOST_KEYS_AT_ONCE),
    ]
    expires_in_s: Annotated[float, msgspec.Meta(gt=0, le=MOST_LENT_S)] = 3_600.0


def methods_of(path: str) -> tuple[str, ...]:
    """Give the methods that a path of the control API takes; none if it is not one."""
    if path == KEYS_PATH:
        return ("POST",)
    if path == SCHEDULER_PATH:
        return ("GET", "HEAD", "PUT")
    if _KEY_PATH.fullmatch(path) is not None:
        return ("DELETE",)
    return ("GET", "HEAD") if path in QUESTIONS or _RUN_PATH.fullmatch(path) is not None else ()


async def answer_control(exchange: HttpExchange, manager: Manager, caller: Caller, own_scopes: Scopes) -> None:
    """Answer a caller who was identified, at a path and with a method that `methods_of` has.

    A key's bearer sees the limits of its `own_scopes`, and the calls of the key and of those made under it.

    Raises:
        CallerError: what was sent cannot be understood, or is not the caller's to ask.
    """
    view = _View(caller, fit(own_scopes))
    text = exchange.query.decode("ascii", "replace")
    status, shape = 200, None
    if exchange.path == KEYS_PATH:
        status, shape = 201, await _lend(manager, caller, await exchange.body(MOST_WISH_BYTES))
    elif (key := _KEY_PATH.fullmatch(exchange.path)) is not None:
        shape = await _take_back(manager, caller, key["id"])
    elif (asked := _RUN_PATH.fullmatch(exchange.path)) is not None:
        shape = await _books(manager, view, scope_name(unquote(asked["run"])), asked["what"], text)
    elif exchange.path == SCHEDULER_PATH and exchange.method == "PUT":
        shape = change_scheduling(manager, caller, await exchange.body(MOST_CHANGE_BYTES))
    elif exchange.path == SCHEDULER_PATH:
        shape = show_scheduling(manager)
    elif exchange.path == "/api/v1/usage":
        query = usage_query(text, manager.clock)
        query = replace(query, only=(*query.only, *view.only))
        shape = usage_json(await manager.usage(query), query.group_by)
    elif exchange.path == "/api/v1/limits":
        kinds = _scope_kinds(text)
        views = [each for each in await manager.limits() if each.scope.partition(":")[0] in kinds]
        shape = limits_json([each for each in views if view.has_limit(each.scope)])
    else:
        shape = queue_json([each for each in manager.queue() if view.has_call(each)])
    await exchange.answer(status, _HEADERS, msgspec.json.encode(shape))


@dataclass(frozen=True, slots=True)
class _View:
    """What a caller may see."""

    caller: Caller
    own: Scopes

    @property
    def only(self) -> tuple[tuple[GroupBy, str], ...]:
        """Give what a call's scopes must say, to be the caller's: those of a child, or of a key with its children."""
        if self.caller.key is None:
            return ()
        said: tuple[tuple[GroupBy, str | None], ...] = (
            ("key", self.own.key),
            ("run", self.own.run),
            ("agent", self.own.agent),
        )
        return tuple((kind, value) for kind, value in said if value is not None)

    def has_call(self, scopes: Scopes | WaitView) -> bool:
        return all(getattr(scopes, kind) == value for kind, value in self.only)

    def has_limit(self, scope: str) -> bool:
        if self.caller.key is None:
            return True
        # A child's siblings have their scopes under the same key: those are the parent's to see, not the child's.
        return is_own(scope, self.own) if self.caller.key.parent is None else scope in self.own.path()


async def _lend(manager: Manager, caller: Caller, body: bytes) -> dict[str, Any]:
    try:
        wish = msgspec.json.decode(body, type=KeysWish)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise CallerError(
            f'{error}; expected {{"run": "...", "agents": ["..."], "expires_in_s": 3600}} with at most '
            f"{MOST_KEYS_AT_ONCE} agents, {MOST_NAME_CHARS} characters a name and {MOST_LENT_S:.0f} s"
        ) from error
    run = scope_name(wish.run)
    holders = [Holder(run, scope_name(agent), scope_name(f"{run}/{agent}")) for agent in wish.agents]
    made = await manager.keys.lend(caller.key, holders, wish.expires_in_s)
    keys = [
        {
            "id": key.stored.id,
            "name": key.stored.name,
            "run": run,
            "agent": agent,
            "key": key.secret,
            "expires_at": rfc3339(key.stored.expires_s),
        }
        for agent, key in zip(wish.agents, made, strict=True)
    ]
    return {"under": None if caller.key is None else caller.key.name, "keys": keys}


async def _take_back(manager: Manager, caller: Caller, key_id: str) -> dict[str, Any]:
    if not await manager.keys.take_back(key_id, caller.key):
        raise NothingThereError(f"no fleet's key {key_id!r} of yours is in force; it may have ended already")
    return {"id": key_id, "ended": True}


async def _books(manager: Manager, view: _View, run: str, what: str, text: str) -> dict[str, Any]:
    # A run of which the caller has no call answers as one that there is not: names are nobody else's affair.
    calls = [call for call in await manager.attempts(run) if view.has_call(call.scopes)]
    if what == "limits":
        _parameters(text, ())
        return {"limits": [limit_json(met) for met in await limits_met(manager, calls, view.has_limit)]}
    parameters = _parameters(text, ("after", "most"))
    after, most = (_count(parameters, name, default) for name, default in (("after", 0), ("most", MOST_ROWS)))
    most = min(most, MOST_ROWS)
    page = calls[after : after + most]
    more = after + len(page) < len(calls) and bool(page)
    # A page is tens of milliseconds of work, for which no stream should stand still.
    rows = await asyncio.to_thread(lambda: [attempt_json(call) for call in page])
    return {"attempts": rows, "next": after + len(page) if more else None}


def usage_query(text: str, clock: Clock) -> UsageQuery:
    """Give the query of a URL's parameters: `group_by=model,key`, `since=7d`, `run=a1b2c3`.

    Raises:
        CallerError: a parameter is unknown or its value cannot be understood.
    """
    parameters = _parameters(text, ("group_by", "since", "until", *_FILTERS))
    groups = tuple(name for name in parameters.get("group_by", "").split(",") if name)
    for name in groups:
        if name not in get_args(GroupBy):
            raise CallerError(f"group_by={name[:50]!r}: expected some of {', '.join(get_args(GroupBy))}")
    return UsageQuery(
        group_by=groups,  # type: ignore[arg-type]  # checked against GroupBy's own words above
        since_s=instant_s(parameters.get("since"), clock),
        until_s=instant_s(parameters.get("until"), clock),
        only=tuple((name, parameters[name]) for name in _FILTERS if name in parameters),
    )


def _parameters(text: str, known: Sequence[str]) -> dict[str, str]:
    expected = f"known are {', '.join(known)}" if known else "this path takes none"
    try:
        parameters = {name: values[-1] for name, values in parse_qs(text, max_num_fields=20).items()}
    except ValueError as error:
        raise CallerError(f"more than 20 parameters; {expected}") from error
    unknown = sorted(parameters.keys() - set(known))
    if unknown:
        raise CallerError(f"unknown parameter {unknown[0][:50]!r}; {expected}")
    return parameters


def _scope_kinds(text: str) -> tuple[str, ...]:
    kinds = tuple(kind for kind in _parameters(text, ("scope",)).get("scope", "").split(",") if kind)
    for kind in kinds:
        if kind not in SCOPE_KINDS:
            raise CallerError(f"scope={kind[:50]!r}: expected some of {', '.join(SCOPE_KINDS)}")
    return kinds or SCOPE_KINDS


def _count(parameters: Mapping[str, str], name: str, default: int) -> int:
    text = parameters.get(name, str(default))
    if not (text.isascii() and text.isdigit() and len(text) <= 9):  # noqa: PLR2004 - more than any run has rows
        raise CallerError(f"{name}={text[:50]!r}: expected a whole number")
    return int(text)


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
            "policy": view.policy,
            "reason": view.reason,
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

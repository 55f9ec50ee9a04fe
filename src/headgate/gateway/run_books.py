"""A run's books over the control API: its rows of the ledger, and the limits that they met, written and read back.

One rule: both directions are here, so that a runner elsewhere reads exactly what the gateway wrote, and a key's bearer
sees its own calls.
"""

import asyncio
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from datetime import UTC
from typing import TYPE_CHECKING, Annotated, Any, TypedDict, get_type_hints
from urllib.parse import unquote
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import msgspec
from msgspec import Meta

from headgate.core.errors import CallerError
from headgate.core.ledger import Attempt
from headgate.core.limits import Gauge, Limit, Rate, Rolling, Window
from headgate.core.scopes import Scopes, scope_name
from headgate.core.spans import Calendar, Fixed, Lifetime, OpenedByUse, Span
from headgate.core.usage import Counting, Usage
from headgate.gateway.asked import Asked
from headgate.gateway.operations import Operation, Parameter
from headgate.gateway.parameters import MOST_COUNTED, count
from headgate.runtime.manager import Manager
from headgate.runtime.monitor import per_of

RUN_PATH = "/api/v1/runs/RUN"

MOST_ROWS = 5_000
"""Rows in one answer: about 4 MB."""

# The owner is a process of the gateway's machine, and nobody else's affair.
_PLAIN = tuple(field.name for field in fields(Attempt) if field.name not in {"owner", "scopes", "usage"})

if not TYPE_CHECKING:
    # The types of the row's parts are those of the ledger's own, said here as JSON has them.
    ScopesTold = TypedDict("ScopesTold", get_type_hints(Scopes))
    UsedTold = TypedDict("UsedTold", get_type_hints(Usage))
    _HINTS = get_type_hints(Attempt)
    AttemptTold = TypedDict(
        "AttemptTold", {**{name: _HINTS[name] for name in _PLAIN}, "scopes": ScopesTold, "usage": UsedTold}
    )
else:
    AttemptTold = dict[str, Any]


class AttemptsTold(TypedDict):
    """Rows of the ledger in the order of their admission; `next` is where to go on, null at the end."""

    attempts: list[AttemptTold]
    next: int | None


class LimitMetTold(TypedDict):
    """A limit that calls of the run met; `used` where it is the asker's to know."""

    name: str
    scope: str
    models: str | None
    dimension: str
    kind: str
    amount: int
    per: str
    burst: int
    counting: Counting
    used: int | None


class LimitsMetTold(TypedDict):
    """The limits that the run's calls met, by name."""

    limits: list[LimitMetTold]


_SPAN = re.compile(r"(?P<manner>every|plan)-(?P<period_s>\d+)s(?:\+(?P<anchor_s>\d+))?")
_CALENDAR = re.compile(r"(?P<unit>hour|day|week|month)(?:@(?P<zone>.+))?")
_PERIOD = re.compile(r"(?:rolling-)?(\d+)s")


@dataclass(frozen=True, slots=True)
class LimitMet:
    """A limit that calls of a run met, and how an account counts on which they did.

    `used` is what its level says now, by whomever; None where that is not the asker's to know, or there is no level.
    """

    limit: Limit
    counting: Counting
    used: int | None = None


async def tell_attempts(asked: Asked) -> AttemptsTold:
    """Answer `GET /api/v1/runs/RUN/attempts`.

    Raises:
        CallerError: a parameter cannot be understood.
    """
    after, most = count(asked.words, "after", 0), count(asked.words, "most", MOST_ROWS, least=1)
    calls = await _calls_of_run(asked)
    page = calls[after : after + min(most, MOST_ROWS)]
    more = after + len(page) < len(calls) and bool(page)
    # A page is tens of milliseconds of work, for which no stream should stand still.
    rows = await asyncio.to_thread(lambda: [attempt_json(call) for call in page])
    return {"attempts": rows, "next": after + len(page) if more else None}


async def tell_limits_met(asked: Asked) -> LimitsMetTold:
    """Answer `GET /api/v1/runs/RUN/limits`."""
    met = await limits_met(asked.manager, await _calls_of_run(asked), asked.view.has_limit)
    return {"limits": [limit_json(each) for each in met]}


async def _calls_of_run(asked: Asked) -> list[Attempt]:
    # A run of which the caller has no call answers as one that there is not: names are nobody else's affair.
    run = scope_name(unquote(asked.named["run"]))
    return [call for call in await asked.manager.attempts(run) if asked.view.has_call(call.scopes)]


async def limits_met(
    manager: Manager, calls: Sequence[Attempt], may_see: Callable[[str], bool] = lambda _scope: True
) -> list[LimitMet]:
    """Give the limits that calls met, by name; how much is used only of the scopes that the asker `may_see`."""
    used = {view.name: view.used for view in await manager.limits()}
    countings: dict[str | None, Counting] = {account.name: account.counts for account in manager.accounts}
    met: dict[str, LimitMet] = {}
    for scopes, model in {(call.scopes, call.model) for call in calls}:
        counting = countings.get(scopes.account, "anthropic")
        for limit in manager.limits_met(scopes, model):
            if limit.name not in met:
                met[limit.name] = LimitMet(limit, counting, used.get(limit.name) if may_see(limit.scope) else None)
    return [met[name] for name in sorted(met)]


def attempt_json(attempt: Attempt) -> AttemptTold:
    """Give a row of the ledger as the control API has it: the words of `Attempt`, times in seconds since the epoch."""
    row = {name: getattr(attempt, name) for name in _PLAIN}
    return {**row, "scopes": attempt.scopes._asdict(), "usage": attempt.usage._asdict()}


def attempt_of(row: Mapping[str, Any]) -> Attempt:
    """Read a row back; its owner is empty.

    Raises:
        CallerError: it is no such row.
    """
    try:
        known = {name: row[name] for name in _PLAIN}
        scopes, usage = ([row[name][part] for part in kind._fields] for name, kind in _TUPLES)
        return msgspec.convert({**known, "owner": "", "scopes": scopes, "usage": usage}, Attempt)
    except (KeyError, TypeError, msgspec.ValidationError) as error:
        raise CallerError(
            f"this is no row of a ledger as this Headgate knows it: {error}; are both of one version?"
        ) from (error)


def limit_json(met: LimitMet) -> LimitMetTold:
    """Give a limit that was met as the control API has it."""
    limit = met.limit
    return {
        "name": limit.name,
        "scope": limit.scope,
        "models": limit.models,
        "dimension": limit.dimension,
        "kind": limit.kind,
        "amount": limit.amount,
        "per": per_of(limit),
        "burst": limit.burst if isinstance(limit, Rate) else limit.amount,
        "counting": met.counting,
        "used": met.used,
    }


def limit_of(row: Mapping[str, Any]) -> LimitMet:
    """Read a limit back, as far as a report needs it: not how calls are held against it.

    Raises:
        CallerError: it is no such limit.
    """
    try:
        return LimitMet(_limit(row), row["counting"], row["used"])
    except (KeyError, TypeError, ValueError) as error:
        raise CallerError(f"this is no limit as this Headgate knows it: {error}; are both of one version?") from error


def _limit(row: Mapping[str, Any]) -> Limit:
    name, scope, models, dimension, amount, per = (row[each] for each in _LIMIT_WORDS)
    period = _PERIOD.fullmatch(per)
    match row["kind"]:
        case "gauge":
            return Gauge(name, scope, dimension, amount, models)
        case "rate" if period is not None:
            return Rate(name, scope, dimension, amount, int(period[1]), row["burst"], models)
        case "window" if period is not None:
            return Rolling(name, scope, dimension, amount, int(period[1]), models)
        case "window":
            return Window(name, scope, dimension, amount, _span(per), models)
        case kind:
            raise ValueError(f"kind {kind!r} per {per!r}")


_TUPLES = (("scopes", Scopes), ("usage", Usage))
_LIMIT_WORDS = ("name", "scope", "models", "dimension", "amount", "per")


def _span(name: str) -> Span:
    if name == Lifetime().name:
        return Lifetime()
    calendar, other = _CALENDAR.fullmatch(name), _SPAN.fullmatch(name)
    if calendar is not None:
        try:
            zone = ZoneInfo(calendar["zone"]) if calendar["zone"] else UTC
        except (ZoneInfoNotFoundError, OSError) as error:
            raise ValueError(f"time zone {calendar['zone']!r} is not known here") from error
        return Calendar(calendar["unit"], zone)  # type: ignore[arg-type]  # one of the pattern's own words
    if other is None:
        raise ValueError(f"span {name!r}")
    period_s = int(other["period_s"])
    return OpenedByUse(period_s) if other["manner"] == "plan" else Fixed(period_s, int(other["anchor_s"] or 0))


TELL_ATTEMPTS = Operation(
    tell_attempts,
    AttemptsTold,
    "A run's rows of the ledger",
    (
        Parameter("after", "How many rows to leave out.", Annotated[int, Meta(ge=0, le=MOST_COUNTED)]),
        Parameter("most", f"How many to give, {MOST_ROWS} at most.", Annotated[int, Meta(ge=1, le=MOST_COUNTED)]),
    ),
)
TELL_LIMITS_MET = Operation(tell_limits_met, LimitsMetTold, "The limits that they met")

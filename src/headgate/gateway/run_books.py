"""A run's books over the control API: its rows of the ledger, and the limits that they met, written and read back.

One rule: both directions are here, so that a runner elsewhere reads exactly what the gateway wrote. Who may see what is
`control`'s affair.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from datetime import UTC
from typing import Any
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import msgspec

from headgate.core.errors import CallerError
from headgate.core.ledger import Attempt
from headgate.core.limits import Gauge, Limit, Rate, Rolling, Window
from headgate.core.scopes import Scopes
from headgate.core.spans import Calendar, Fixed, Lifetime, OpenedByUse, Span
from headgate.core.usage import Counting, Usage
from headgate.runtime.manager import Manager
from headgate.runtime.monitor import per_of

MOST_ROWS = 5_000
"""Rows in one answer: about 4 MB."""

# The owner is a process of the gateway's machine, and nobody else's affair.
_PLAIN = tuple(field.name for field in fields(Attempt) if field.name not in {"owner", "scopes", "usage"})

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


def attempt_json(attempt: Attempt) -> dict[str, Any]:
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


def limit_json(met: LimitMet) -> dict[str, Any]:
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

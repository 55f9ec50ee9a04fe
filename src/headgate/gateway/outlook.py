"""Outlook: what windows and budgets will have used at their end, and how many more agents can start now.

One rule: a question changes nothing, and a key's bearer hears of its own limits; the one that binds it is told to it by
name, as a refusal would, whosever it is. The arithmetic is `runtime.forecasting`'s.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, NotRequired, TypedDict

import msgspec
from msgspec import Meta

from headgate.core.accounts import Account
from headgate.core.capacity import Capacity, Light, closed, doubted
from headgate.core.errors import CallerError, UnknownModelError
from headgate.core.scopes import Scopes, fit
from headgate.core.wording import span_text
from headgate.gateway.asked import Asked
from headgate.gateway.callers import KeyScopes
from headgate.gateway.operations import SCOPE, Instant, Operation, Parameter, Unanswered
from headgate.gateway.parameters import rfc3339, scopes_wanted
from headgate.ports import HashedKey
from headgate.runtime.forecasting import ForecastView
from headgate.runtime.keys import in_force
from headgate.runtime.manager import Manager
from headgate.runtime.monitor import LimitView

FORECAST_PATH, CAPACITY_PATH = "/api/v1/forecast", "/api/v1/capacity"

MOST_PROJECTED = 200
"""Windows in one answer, the fullest first: one that nobody asked for yet takes up to 100 ms."""


class ForecastTold(TypedDict):
    """What one window will have used at `projected_to`: between `low` and `high` in 80 of 100 cases."""

    name: str
    scope: str
    models: str | None
    dimension: str
    per: str
    amount: int
    used: int
    projected_to: Instant
    resets_at: Instant | None
    expected: int | None
    low: int
    high: int | None
    runs_out_at: Instant | None
    runs_out_earliest_at: Instant | None
    assumed: str
    experts: Annotated[dict[str, float], Meta(description="How much each method weighed.")]


class ForecastsTold(TypedDict):
    """The fullest windows, and how many more there are."""

    at: Instant
    forecasts: list[ForecastTold]
    left_out: int


class AgentsUnderLimit(TypedDict):
    """How many more agents one limit allows."""

    limit: str
    agents: int


class AccountCapacity(TypedDict):
    """How many more agents can start now on one account; null where that is not known or nothing bounds them."""

    account: str
    agents: int | None
    light: Light
    binding: str | None
    changes_at: Instant | None
    by_limit: list[AgentsUnderLimit]
    closed: Annotated[str | None, Meta(description="Why the account does not serve.")]
    assumed: str


class CapacityTold(TypedDict):
    """How many more agents can start now, on each account that serves the model."""

    model: str
    key: str | None
    capacity: list[AccountCapacity]
    unanswered: NotRequired[Unanswered]


async def tell_forecast(asked: Asked) -> ForecastsTold:
    """Answer `GET /api/v1/forecast`.

    Raises:
        CallerError: a parameter cannot be understood.
    """
    is_wanted = scopes_wanted(asked.words.get("scope", ""))
    chosen, left_out = windows_of(
        await asked.manager.limits(), lambda scope: is_wanted(scope) and asked.view.has_limit(scope)
    )
    forecasts = await asked.manager.forecasting.forecasts(chosen)
    return forecast_json(forecasts, left_out, asked.manager.clock.now_s())


async def tell_capacity(asked: Asked) -> CapacityTold:
    """Answer `GET /api/v1/capacity`: one row for each account that serves the model.

    Raises:
        CallerError: no model is named, or an account, a key or a model that is not there.
    """
    words = asked.words
    if not words.get("model"):
        raise CallerError("capacity needs to know the model: ?model=claude-sonnet-4-5")
    bearer = asked.caller.key
    if bearer is None:
        scopes = await scopes_of_key(asked.manager, words.get("key"), asked.keys)
    elif words.get("key", bearer.name) == bearer.name:
        scopes = _scopes_of(bearer.name, bearer, asked.keys)
    else:
        raise CallerError(f"key={words['key'][:50]!r}: a key's bearer may ask for its own alone, {bearer.name!r}")
    found = await capacities(asked.manager, scopes, words["model"], words.get("account"))
    return capacity_json(words["model"], scopes.key, found, asked.view.has_limit)


def windows_of(views: Sequence[LimitView], is_wanted: Callable[[str], bool]) -> tuple[list[LimitView], int]:
    """Give the windows and budgets of the scopes that are wanted, at most MOST_PROJECTED, and how many are left out."""
    windows = [each for each in views if each.kind == "window" and is_wanted(each.scope)]
    windows.sort(key=lambda each: -each.share)
    return windows[:MOST_PROJECTED], len(windows[MOST_PROJECTED:])


def forecast_json(forecasts: Sequence[ForecastView], left_out: int, now_s: float) -> ForecastsTold:
    """Give forecasts in the control API's shape."""
    return {
        "at": rfc3339(now_s),
        "forecasts": [
            {
                "name": view.name,
                "scope": view.scope,
                "models": view.models,
                "dimension": view.dimension,
                "per": view.per,
                "amount": view.amount,
                "used": view.used,
                "projected_to": rfc3339(view.projected_to_s),
                "resets_at": rfc3339(view.resets_s),
                "expected": view.expected,
                "low": view.low,
                "high": view.high,
                "runs_out_at": rfc3339(view.runs_out_s),
                "runs_out_earliest_at": rfc3339(view.runs_out_earliest_s),
                "assumed": view.assumed,
                "experts": {name: round(weight, 4) for name, weight in view.experts},
            }
            for view in forecasts
        ],
        "left_out": left_out,
    }


async def capacities(
    manager: Manager, scopes: Scopes, model: str, account: str | None
) -> list[tuple[Account, Capacity]]:
    """Say for each account that serves a model (or for one) how many more agents of these scopes can start now.

    Raises:
        CallerError: there is no such account.
        UnknownModelError: no account serves the model, or not this one.
    """
    named = [each for each in manager.accounts if account in (None, each.name)]
    if not named:
        known = ", ".join(each.name for each in manager.accounts) or "none"
        raise CallerError(f"account={(account or '')[:50]!r}: there is no such account; configured: {known}")
    serving = [each for each in named if each.serves(model)]
    if not serving:
        served = "; ".join(f"{each.name} ({', '.join(each.models)})" for each in named)
        raise UnknownModelError(f"no account serves model {model[:200]!r}; configured: {served}")
    views = await manager.limits()
    waiting = Counter(each.limit for each in manager.queue())
    told = []
    for each in serving:
        found = await manager.forecasting.capacity(views, scopes._replace(account=each.name), model, waiting)
        told.append((each, await _as_it_serves(manager, each.name, model, found)))
    return told if manager.knows(model) else [(each, doubted(capacity, model)) for each, capacity in told]


async def _as_it_serves(manager: Manager, account: str, model: str, told: Capacity) -> Capacity:
    """Give no capacity for an account that does not serve, as its circuit says here or the ledger elsewhere."""
    now_s = manager.clock.now_s()
    circuit = manager.pool.health.circuit(account, model)
    if circuit.open_until_s is not None:
        why = f"the account is left alone after {circuit.why or 'failures'}"
        if circuit.open_until_s > now_s:
            return closed(told, why, circuit.open_until_s)
        return closed(told, f"{why}, and has not served again yet: one call tries it", None)
    failed, within_s = await manager.forecasting.failing(account, model)
    return closed(told, f"all {failed} calls of the last {span_text(within_s)} failed there", None) if failed else told


async def scopes_of_key(manager: Manager, name: str | None, configured: Mapping[str, KeyScopes]) -> Scopes:
    """Give what calls with a key belong to by its name, as the configuration and the key itself say; None: no key's.

    Raises:
        CallerError: there is no such key.
    """
    if name is None:
        return Scopes()
    now_s = manager.clock.now_s()
    keys = [key for key in await manager.keys.all() if in_force(key, now_s)]
    stored = next((key for key in keys if key.name == name), None)
    if stored is None and name not in configured:
        known = ", ".join(sorted({key.name for key in keys} | configured.keys())) or "none"
        raise CallerError(f"key={name[:50]!r}: there is no such key in force; there are: {known}")
    return _scopes_of(name, stored, configured)


async def scopes_of_keys(manager: Manager, configured: Mapping[str, KeyScopes]) -> list[Scopes]:
    """Give what calls belong to with each key that is configured or in force, but for those of fleets' agents."""
    now_s = manager.clock.now_s()
    stored = {key.name: key for key in await manager.keys.all() if in_force(key, now_s) and not key.fleet}
    return [_scopes_of(name, stored.get(name), configured) for name in sorted(stored.keys() | configured.keys())]


def _scopes_of(name: str, stored: HashedKey | None, configured: Mapping[str, KeyScopes]) -> Scopes:
    owner = configured.get(name, KeyScopes())
    said = msgspec.json.decode(stored.scopes, type=KeyScopes) if stored is not None else KeyScopes()
    claimed = ("run", "agent") if stored is not None and stored.parent is not None else ()
    tags = tuple(sorted({**said.tags, **owner.tags}.items()))
    return fit(Scopes(key=name, team=owner.team or said.team, run=said.run, tags=tags, claimed=claimed))


def capacity_json(
    model: str,
    key: str | None,
    found: Sequence[tuple[Account, Capacity]],
    may_see: Callable[[str], bool] = lambda _scope: True,
) -> CapacityTold:
    """Give capacities in the control API's shape."""
    return {
        "model": model,
        "key": key,
        "capacity": [
            {
                "account": account.name,
                "agents": told.agents,
                "light": told.light,
                "binding": told.binding,
                "changes_at": rfc3339(told.changes_s),
                "by_limit": [
                    {"limit": name, "agents": agents}
                    for name, agents in told.by_limit
                    if name == told.binding or may_see(name.partition(" ")[0])
                ],
                "closed": told.closed,
                "assumed": told.assumed,
            }
            for account, told in found
        ],
    }


TELL_FORECAST = Operation(
    tell_forecast, ForecastsTold, "What windows will have used at their end, when they run out", (SCOPE,)
)
TELL_CAPACITY = Operation(
    tell_capacity,
    CapacityTold,
    "How many more agents can start now",
    (
        Parameter("model", "The model that the agents call.", required=True, example="claude-sonnet-4-5"),
        Parameter("account", "One account; without it every one that serves the model."),
        Parameter("key", "The Headgate key that they call with; a key's bearer asks for its own."),
    ),
    fails=(404,),
)

"""Accounts: how each of the pool is, what it has left, and why the last calls went where they went.

One rule: a question changes nothing, and tells no key. A key's bearer hears which accounts there are and whether they
serve; limits, plans and circuits are the owner's, and calls and choices are shown to whom they belong.
"""

from collections.abc import Sequence
from typing import Annotated, Literal, NotRequired, TypedDict

from msgspec import Meta

from headgate.core.accounts import Account
from headgate.core.errors import CallerError
from headgate.core.ledger import GroupBy, UsageGroup, UsageQuery
from headgate.core.pace import PlanShare
from headgate.core.pool import Breaker
from headgate.gateway.asked import Asked, View
from headgate.gateway.operations import Instant, Operation, Parameter, Unanswered
from headgate.gateway.parameters import rfc3339
from headgate.runtime.account_pool import Chosen
from headgate.runtime.health import ALL_MODELS
from headgate.runtime.manager import Manager
from headgate.runtime.monitor import LimitView

ACCOUNTS_PATH = "/api/v1/accounts"

LATELY_S = 3_600.0
MOST_SHOWN = 50
"""Choices, and of each account limits and circuits, in one answer."""

Health = Literal["ok", "ill", "trying", "out"]


class CircuitTold(TypedDict):
    """Why an account, or one of its models, is left alone; `model` is null where it is all of them."""

    model: str | None
    state: str
    failures: int
    until: Instant | None
    why: str | None


class HeadroomTold(TypedDict):
    """What is free of one limit of an account."""

    limit: str
    models: str | None
    dimension: str
    per: str
    free_share: float
    free: int
    amount: int
    learned: int | None
    learned_from: str | None
    resets_at: Instant | None
    closed_until: Instant | None


class PlanWindowTold(TypedDict):
    """A plan window beside an even pace towards its reset."""

    period_s: int
    models: str | None
    used: float
    line: float | None
    behind: float | None
    resets_at: Instant | None
    told_at: Instant | None


class LatelyTold(TypedDict):
    """The calls of the last hour."""

    requests: int
    failed: int
    refused: int


class HealthTold(TypedDict):
    """How an account is, and why; null where nobody serves."""

    health: Health | None
    why: str | None
    circuits: list[CircuitTold] | None


class AccountTold(HealthTold):
    """One account; a key's bearer hears nothing of its headroom, plans and circuits."""

    account: str
    provider: str
    models: list[str]
    overage: bool
    soft_ceiling: float
    headroom: list[HeadroomTold]
    plans: list[PlanWindowTold]
    in_flight: int
    lately: LatelyTold


class OtherTold(TypedDict):
    """An account that was not chosen."""

    account: str
    why: str


class ChoiceTold(TypedDict):
    """Why a call went where it went."""

    at: Instant
    call_id: str
    model: str
    account: str
    why: str
    left: Annotated[str | None, Meta(description="The account that the call waited for before.")]
    others: list[OtherTold]


class AccountsTold(TypedDict):
    """The accounts, and the last choices among them; null where nobody serves."""

    at: Instant
    accounts: list[AccountTold]
    choices: list[ChoiceTold] | None
    unanswered: NotRequired[Unanswered]


async def tell_accounts(asked: Asked) -> AccountsTold:
    """Answer `GET /api/v1/accounts`.

    Raises:
        CallerError: there is no such account.
    """
    return await accounts_json(asked.manager, asked.view, asked.words.get("account"))


async def accounts_json(
    manager: Manager, view: View | None = None, wanted: str | None = None, *, lives: bool = True
) -> AccountsTold:
    """Give the accounts in the control API's shape, all or one; without a `view` everything.

    A manager that does not serve (`lives` is False) knows nothing of health and choices: they are None then.

    Raises:
        CallerError: there is no such account.
    """
    named = [each for each in manager.accounts if wanted in (None, each.name)]
    if not named:
        known = ", ".join(each.name for each in manager.accounts) or "none"
        raise CallerError(f"account={(wanted or '')[:50]!r}: there is no such account; configured: {known}")
    now_s = manager.clock.now_s()
    only = view.only if view is not None else ()
    in_flight = await _by_account(manager, UsageQuery(("account",), only=(*only, ("state", "in_flight"))))
    lately = await _by_account(manager, UsageQuery(("account",), now_s - LATELY_S, only=only))
    sees_all = view is None or view.caller.key is None
    limits = await manager.limits() if sees_all else []
    rows: list[AccountTold] = []
    for account in named:
        own = [each for each in limits if each.scope == f"account:{account.name}"]
        used = lately.get(account.name, UsageGroup({}))
        on_way = in_flight.get(account.name, UsageGroup({}))
        rows.append(
            {
                "account": account.name,
                "provider": account.provider,
                "models": list(account.models),
                "overage": account.overage,
                "soft_ceiling": account.soft_ceiling,
                **_health_json(manager, account, now_s, lives=lives, sees_all=sees_all),
                "headroom": _headroom_json(own) if sees_all else [],
                "plans": _plans_json(manager, account, own, now_s) if sees_all else [],
                "in_flight": on_way.attempts,
                "lately": {"requests": used.requests, "failed": used.failed, "refused": used.refused},
            }
        )
    chosen = [each for each in reversed(manager.pool.choices) if view is None or view.has_call(each.scopes)]
    about = [each for each in chosen if wanted is None or wanted in _accounts_of(each)]
    return {
        "at": rfc3339(now_s),
        "accounts": rows,
        "choices": [_choice_json(each) for each in about[:MOST_SHOWN]] if lives else None,
    }


async def _by_account(manager: Manager, query: UsageQuery) -> dict[str | None, UsageGroup]:
    field: GroupBy = "account"
    return {group.group[field]: group for group in await manager.usage(query)}


def _health_json(manager: Manager, account: Account, now_s: float, *, lives: bool, sees_all: bool) -> HealthTold:
    """Say how an account is (`ok`, `ill`, `trying`, or `out` until its owner acts), and why."""
    if not lives:
        return {"health": None, "why": None, "circuits": None}
    circuits = manager.pool.health.circuits_of(account.name)
    circuits.sort(key=lambda each: (each[1].open_until_s is None, each[0]))
    worst = next((each for each in circuits if each[1].open_until_s is not None), None)
    return {
        "health": "ok" if worst is None else _word(worst[1], now_s),
        "why": None if worst is None else _why(*worst, now_s),
        "circuits": [
            {
                "model": None if model == ALL_MODELS else model,
                "state": circuit.state(now_s),
                "failures": circuit.failures,
                "until": rfc3339(circuit.open_until_s),
                "why": circuit.why or None,
            }
            for model, circuit in circuits[: MOST_SHOWN if sees_all else 0]
        ],
    }


def _word(circuit: Breaker, now_s: float) -> Health:
    if circuit.is_out:
        return "out"
    is_tried = circuit.open_until_s is not None and now_s >= circuit.open_until_s
    return "trying" if is_tried else "ill"


def _why(model: str, circuit: Breaker, now_s: float) -> str:
    if circuit.is_out and model == ALL_MODELS:
        what = f"its provider refuses its key ({circuit.why})"
    elif circuit.is_out:
        what = f"its provider does not let it serve ({circuit.why})"
    else:
        what = f"it is left alone after {circuit.why or 'failures'}"
    left_s = (circuit.open_until_s or now_s) - now_s
    return f"{what}; tried again in {left_s:.0f} s" if left_s > 0 else f"{what}; the next call tries it"


def _headroom_json(limits: Sequence[LimitView]) -> list[HeadroomTold]:
    """Give what is free of each limit as a part of it, the scarcest first."""
    shares = [(each.free / each.burst if each.burst else 0.0, each) for each in limits]
    shares.sort(key=lambda each: (each[0], each[1].name))
    return [
        {
            "limit": each.name,
            "models": each.models,
            "dimension": each.dimension,
            "per": each.per,
            "free_share": round(share, 4),
            "free": each.free,
            "amount": each.amount,
            "learned": each.learned,
            "learned_from": each.learned_from,
            "resets_at": rfc3339(each.resets_s),
            "closed_until": rfc3339(each.closed_until_s),
        }
        for share, each in shares[:MOST_SHOWN]
    ]


def _plans_json(manager: Manager, account: Account, limits: Sequence[LimitView], now_s: float) -> list[PlanWindowTold]:
    """Give the plan windows, as they are configured and as the provider tells them, with an even pace beside them."""
    shares = [
        PlanShare(int(each.per[len("plan-") : -1]), (each.used + each.held) / each.amount, each.resets_s, each.models)
        for each in limits
        if each.per.startswith("plan-") and each.amount and each.configured
    ]
    return [
        {
            "period_s": each.period_s,
            "models": each.models,
            "used": round(each.used, 4),
            "line": _rounded(each.line(now_s)),
            "behind": _rounded(each.behind(now_s)),
            "resets_at": rfc3339(each.resets_s),
            "told_at": rfc3339(each.told_s),
        }
        for each in (*shares, *manager.plan_shares.of(account.name))[:MOST_SHOWN]
    ]


def _choice_json(chosen: Chosen) -> ChoiceTold:
    return {
        "at": rfc3339(chosen.at_s),
        "call_id": chosen.call,
        "model": chosen.model,
        "account": chosen.choice.account,
        "why": chosen.choice.why,
        "left": chosen.left,
        "others": [{"account": account, "why": why} for account, why in chosen.choice.others],
    }


def _accounts_of(chosen: Chosen) -> set[str]:
    return {chosen.choice.account, *(account for account, _why in chosen.choice.others)}


def _rounded(share: float | None) -> float | None:
    return None if share is None else round(share, 4)


TELL_ACCOUNTS = Operation(
    tell_accounts,
    AccountsTold,
    "How the accounts are, and why the last calls went where they went",
    (Parameter("account", "One of them, by its name; without it all."),),
)

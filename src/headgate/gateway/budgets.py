"""Budgets: how much of every window and budget is used, held, pending, set aside and free, and which of them are spent.

One rule: spent is what is used or pending. What is held for calls on their way mostly comes back, so that neither a
check nor a warning counts it.
"""

from collections.abc import Callable, Sequence
from typing import Annotated, TypedDict

from msgspec import Meta

from headgate.core.alerts import Use, Verdict, check
from headgate.gateway.asked import Asked
from headgate.gateway.operations import SCOPE, Instant, Operation
from headgate.gateway.parameters import rfc3339, scopes_wanted
from headgate.runtime.monitor import LimitView

BUDGETS_PATH = "/api/v1/budgets"

_ENDING = ("run:", "agent:", "session:")


class BudgetTold(TypedDict):
    """One window or budget; but for debt, what is used, held, pending, set aside and free is all of it."""

    name: str
    scope: str
    models: str | None
    dimension: str
    per: str
    amount: int
    used: int
    held: int
    pending: Annotated[int, Meta(description="Held for calls whose process died, until they are settled.")]
    free: int
    set_aside: int
    share: float
    spent: bool
    resets_at: Instant | None
    hold: str | None


class BudgetsTold(TypedDict):
    """Every window and budget."""

    at: Instant
    budgets: list[BudgetTold]


async def tell_budgets(asked: Asked) -> BudgetsTold:
    """Answer `GET /api/v1/budgets`.

    Raises:
        CallerError: a parameter cannot be understood.
    """
    is_wanted = scopes_wanted(asked.words.get("scope", ""))
    views = budgets_of(await asked.manager.limits(), lambda scope: is_wanted(scope) and asked.view.has_limit(scope))
    return budgets_json(views, asked.manager.clock.now_s())


def budgets_of(views: Sequence[LimitView], is_wanted: Callable[[str], bool]) -> list[LimitView]:
    """Give the windows and budgets of the scopes that are wanted."""
    return [each for each in views if each.kind == "window" and is_wanted(each.scope)]


def standing(views: Sequence[LimitView]) -> list[LimitView]:
    """Leave out what never resets and belongs to a run, an agent or a session: it ends with what it was given to."""
    return [each for each in views if not (each.per == "lifetime" and each.scope.startswith(_ENDING))]


def verdict(views: Sequence[LimitView], at_percent: int = 100) -> Verdict:
    """Say how budgets stand: which are spent, and which are used to so many percent."""
    return check([Use(each.name, each.used, each.held, each.amount) for each in views], at_percent)


def budgets_json(views: Sequence[LimitView], now_s: float) -> BudgetsTold:
    """Give budgets in the control API's shape; but for debt, what is used, held, pending, set aside and free is all."""
    spent = {use.limit for use in verdict(views).spent}
    return {
        "at": rfc3339(now_s),
        "budgets": [
            {
                "name": view.name,
                "scope": view.scope,
                "models": view.models,
                "dimension": view.dimension,
                "per": view.per,
                "amount": view.amount,
                "used": view.used - view.pending,
                "held": view.held,
                "pending": view.pending,
                "free": view.free,
                "set_aside": view.set_aside,
                "share": spent_share(view),
                "spent": view.name in spent,
                "resets_at": rfc3339(view.resets_s),
                "hold": view.hold,
            }
            for view in views
        ],
    }


def spent_share(view: LimitView) -> float:
    """Give the share that is used or pending, 0 to 1 (above 1 in debt)."""
    return round(view.used / view.amount, 4) if view.amount else 1.0


TELL_BUDGETS = Operation(tell_budgets, BudgetsTold, "What is left of windows and budgets", (SCOPE,))

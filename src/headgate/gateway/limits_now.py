"""Limits over the control API: every limit now, with what is used, held and free, and the maintenance windows.

One rule: a question changes nothing, and a key's bearer sees its own.
"""

from collections.abc import Sequence
from typing import Annotated, Literal, TypedDict

from msgspec import Meta

from headgate.core.instants import to_ns, to_s
from headgate.core.set_aside import Closure
from headgate.gateway.asked import Asked
from headgate.gateway.operations import SCOPE, Instant, Operation
from headgate.gateway.parameters import rfc3339, scopes_wanted
from headgate.runtime.monitor import LimitView

LIMITS_PATH = "/api/v1/limits"


class LimitTold(TypedDict):
    """One limit now; `used`, `held`, `free` and `set_aside` are of `burst`, the most that can be used at once."""

    name: str
    scope: str
    models: str | None
    dimension: str
    kind: Annotated[str, Meta(description="rate, window or gauge")]
    amount: int
    per: str
    burst: int
    used: int
    held: int
    free: int
    set_aside: int
    share: float
    resets_at: Instant | None
    configured: bool
    learned: int | None
    learned_from: Annotated[str | None, Meta(description="header, 429, latency, plan or start")]
    learned_since: Instant | None
    learned_changed: Instant | None
    learned_models: str | None
    closed_until: Instant | None
    hold: Annotated[str | None, Meta(description="bound or likely, of a window")]


MaintenanceTold = TypedDict(
    "MaintenanceTold",
    {
        "cron": str,
        "scope": str,
        "models": str | None,
        "from": Instant,
        "until": Instant,
        "action": Literal["hold", "refuse"],
        "lasts": bool,
    },
)
"""A maintenance window that lasts, or else comes next."""


class LimitsTold(TypedDict):
    """Every limit now, and the maintenance windows."""

    limits: list[LimitTold]
    maintenance: list[MaintenanceTold]


async def tell_limits(asked: Asked) -> LimitsTold:
    """Answer `GET /api/v1/limits`.

    Raises:
        CallerError: a parameter cannot be understood.
    """
    is_wanted = scopes_wanted(asked.words.get("scope", ""))
    views = [each for each in await asked.manager.limits() if is_wanted(each.scope)]
    closures = [each for each in asked.manager.maintenance() if each.scope == "*" or is_wanted(each.scope)]
    return limits_json(
        [each for each in views if asked.view.has_limit(each.scope)],
        [each for each in closures if each.scope == "*" or asked.view.has_limit(each.scope)],
        asked.manager.clock.now_s(),
    )


def limits_json(views: Sequence[LimitView], closures: Sequence[Closure] = (), now_s: float = 0.0) -> LimitsTold:
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
                "learned_changed": rfc3339(view.learned_changed_s),
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


TELL_LIMITS = Operation(tell_limits, LimitsTold, "Every limit now", (SCOPE,))

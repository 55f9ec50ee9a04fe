"""Notices: what a provider's answer says of its limits, as plain values.

One rule: a notice says only what was told and can be true; what was absent, impossible or not understood is None.
What follows from a notice is not decided here. Instants are seconds since the epoch on this machine's clock.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from headgate.core.amounts import Dimension
from headgate.core.limits import Limit, Window
from headgate.core.spans import OpenedByUse

MINUTE_S = 60
HOUR_S = 3600
DAY_S = 24 * HOUR_S

PlanStatus = Literal["allowed", "warning", "rejected"]


@dataclass(frozen=True, slots=True)
class RateNotice:
    """One of a provider's rates: what it grants per period, what is left of it, and when it is full again.

    `tier` tells rates of one dimension apart: empty for the ordinary one, else the provider's word for it ("priority",
    "fast", "project"). No provider says the period. `remaining` was rounded to a multiple of `rounded_to` before it was
    told, so the truth may be half of that less.
    """

    dimension: Dimension
    limit: int | None = None
    remaining: int | None = None
    resets_s: float | None = None
    tier: str = ""
    rounded_to: int = 1


@dataclass(frozen=True, slots=True)
class PlanNotice:
    """One window of a subscription plan, known by its length.

    `models` is empty for the window that all models share, else the provider's word for the models it is for.
    `used_share` is 0 to 1, above 1 in overage. `warned_share` is the share whose passing the provider pointed out.
    """

    period_s: int
    used_share: float | None = None
    resets_s: float | None = None
    status: PlanStatus | None = None
    warned_share: float | None = None
    models: str = ""


@dataclass(frozen=True, slots=True)
class OverageNotice:
    """What happens beyond a plan: whether calls would be billed, whether they are now, and why they would not be."""

    status: PlanStatus | None = None
    in_use: bool | None = None
    used_share: float | None = None
    resets_s: float | None = None
    refused_because: str | None = None


@dataclass(frozen=True, slots=True)
class Notices:
    """All that one answer says of limits.

    `binding` is the provider's word for the plan window that decides. `retry_after_s` is how long a refused call was
    told to wait; like everything here it is known as soon as the head of the answer is.
    """

    rates: tuple[RateNotice, ...] = ()
    plans: tuple[PlanNotice, ...] = ()
    plan_status: PlanStatus | None = None
    binding: str | None = None
    overage: OverageNotice | None = None
    retry_after_s: float | None = None

    def plan_ends_s(self, period_s: int) -> float | None:
        """Give when the plan window of a length that all models share ends, if it was told."""
        for plan in self.plans:
            if plan.period_s == period_s and not plan.models:
                return plan.resets_s
        return None


NO_NOTICES = Notices()


def plan_windows_of(limits: Iterable[Limit]) -> list[tuple[Window, int]]:
    """Give the plan windows of an account among the limits that a call meets, each with its length in seconds.

    Only those: a key, a run or a tag may spend on many accounts, and their windows are the owner's, not a provider's.
    """
    return [
        (limit, limit.span.period_s)
        for limit in limits
        if isinstance(limit, Window) and isinstance(limit.span, OpenedByUse) and limit.scope.startswith("account:")
    ]

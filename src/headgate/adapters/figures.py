"""What one attempt adds to the sums of the ledger, and how groups are named.

One rule: every ledger store counts by this, so that all of them give the same sums. Hours and days are UTC's.
"""

import math
from datetime import UTC, datetime
from typing import NamedTuple

from headgate.core.errors import CallerError
from headgate.core.ledger import Attempt, AttemptState, GroupBy, UsageGroup

OPEN_STATES: frozenset[AttemptState] = frozenset({"in_flight", "lost"})
"""An attempt that is not final: it counts at its estimate, and `finish` may still replace it."""

HOUR_S = 3600
HOURS_PER_DAY = 24
_HOUR_FORMAT = "%Y-%m-%dT%H:00Z"
_DAY_FORMAT = "%Y-%m-%d"


class Figures(NamedTuple):
    """Sums, in the order and by the names of `UsageGroup`."""

    requests: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    cache_read_tokens: int = 0
    cache_write_tokens: int = 0
    reasoning_tokens: int = 0
    cost_micro_usd: int = 0
    unknown_cost: int = 0
    estimated: int = 0
    failed: int = 0
    wait_ms: int = 0
    attempts: int = 0
    refused: int = 0


NO_FIGURES = Figures()


def figures_of(attempt: Attempt) -> Figures:
    """Give what one attempt adds to the sums."""
    uncached, read, write_5m, write_1h, output, reasoning, reported = attempt.usage
    cost, state = attempt.cost_micro_usd, attempt.state
    # In the order of the fields: names would take twice as long, on the way of every call.
    return Figures(
        1 if attempt.sent else 0,
        uncached,
        output,
        read,
        write_5m + write_1h,
        reasoning,
        cost or 0,
        1 if cost is None else 0,
        1 if state in OPEN_STATES or not reported else 0,
        1 if state == "failed" else 0,
        wait_ms(attempt),
        1,
        1 if state == "refused" else 0,
    )


def add(some: Figures, more: Figures) -> Figures:
    """Add sums."""
    return Figures(*(one + other for one, other in zip(some, more, strict=True)))


def wait_ms(attempt: Attempt) -> int:
    """Give the wait in whole milliseconds: whole numbers add up the same in every order."""
    return round(attempt.wait_s * 1000)


def hour_of(instant_s: float) -> int:
    """Give the whole hours from the epoch to an instant."""
    return math.floor(instant_s) // HOUR_S


def hour_text(hour: int) -> str:
    """Name an hour, as in 2026-11-20T19:00Z."""
    return datetime.fromtimestamp(hour * HOUR_S, UTC).strftime(_HOUR_FORMAT)


def day_text(day: int) -> str:
    """Name a day, as in 2026-11-20."""
    return datetime.fromtimestamp(day * HOURS_PER_DAY * HOUR_S, UTC).strftime(_DAY_FORMAT)


def hours_named(field: GroupBy, text: str) -> tuple[int, int]:
    """Give the hours from (included) and to (not included) that the name of an hour or a day stands for.

    Raises:
        CallerError: it is no such name.
    """
    form, hours, example = (
        (_HOUR_FORMAT, 1, "2026-11-20T19:00Z") if field == "hour" else (_DAY_FORMAT, HOURS_PER_DAY, "2026-11-20")
    )
    try:
        start = datetime.strptime(text, form).replace(tzinfo=UTC)
    except ValueError:
        start = None
    if start is None or start.strftime(form) != text:
        raise CallerError(f"{text!r} is no {field}; write it as {example}")
    first = hour_of(start.timestamp())
    return first, first + hours


def group_of(values: tuple[str | None, ...], group_by: tuple[GroupBy, ...], figures: Figures) -> UsageGroup:
    """Give the sums of one group as the ledger answers them."""
    return UsageGroup(dict(zip(group_by, values, strict=True)), *figures)


def in_order(groups: list[UsageGroup]) -> list[UsageGroup]:
    """Sort groups by the values that name them, what has none first."""
    return sorted(groups, key=lambda group: [(value is not None, value or "") for value in group.group.values()])

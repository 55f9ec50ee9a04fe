"""Telling: what the caller of a call that cannot go is told.

One rule: the limit that binds, how much it is, and the way out; never a promise that may not hold.
"""

from datetime import UTC

from headgate.core.errors import BudgetError, DeadlineError, UnpricedError
from headgate.core.limits import Limit, Rate, Rolling, Window
from headgate.core.model_rules import RuledOut
from headgate.core.planning import amount_in_words
from headgate.core.quantiles import RARE_SAMPLES
from headgate.core.quota import Refused, Wait
from headgate.core.set_aside import Closure
from headgate.core.spans import Calendar, Fixed, Lifetime, OpenedByUse
from headgate.core.wording import scope_text, span_text
from headgate.runtime.lanes import Lane, Ticket, Waiting, asks_of

LATE_BY = 0.25
"""A call is told at once that it will be late when it would be by more than this part of its way: that is a guess."""


def too_late(ticket: Ticket, wait: Wait, now_s: float, ahead: int = 0) -> DeadlineError:
    """Give the error of a call that cannot go before its deadline, and when it could."""
    waited_s = max(0.0, now_s - ticket.queued_s)
    allowed_s = ticket.deadline_s - ticket.queued_s
    if wait.earliest_s < wait.until_s:
        # The later instant is when the leases end of what is held: calls on their way settle long before that.
        retry_after_s, when = max(1.0, wait.earliest_s - now_s), "when calls on their way settle"
    else:
        retry_after_s = max(0.0, wait.until_s - now_s)
        when = f"in {retry_after_s:.3f} s at the latest"
    if ahead:
        # How long those before it take is not known: each of them needs the limit that binds too.
        retry_after_s = max(1.0, retry_after_s)
        when = f"after {ahead} others that came before it, and not before {retry_after_s:.3f} s"
    return DeadlineError(
        f"limit reached: {describe(wait.limit)}{_set_aside(wait)}; the call waited {waited_s:.3f} s of the "
        f"{allowed_s:.3f} s it may, and would be admitted {when}",
        limit=wait.limit.name,
        retry_after_s=retry_after_s,
    )


def _set_aside(wait: Wait) -> str:
    """Say what reservations keep of a limit: who reads what is used of it finds it far from reached."""
    if not wait.aside:
        return ""
    return f", of which planned reservations keep {amount_in_words(wait.limit.dimension, wait.aside)}"


def late_for(ticket: Ticket, wait: Wait, now_s: float) -> DeadlineError | None:
    """Say when a call could go that cannot before its deadline, or not while maintenance refuses it."""
    closed = isinstance(wait.limit, Closure) and wait.limit.refuses
    return too_late(ticket, wait, now_s) if wait.earliest_s > ticket.deadline_s or closed else None


def too_late_in_lane(waiting: Waiting, now_s: float) -> DeadlineError:
    """Give the error of a call whose deadline has come while it waited."""
    lane = waiting.lane
    first = lane.head(now_s) if lane is not None else None
    wait = waiting.wait if first is None else first.wait
    ahead = 0 if lane is None or first is waiting else sum(1 for other in lane if other.order < waiting.order)
    return too_late(waiting.ticket, wait, now_s, ahead)


def late_behind(lane: Lane, waiting: Waiting, now_s: float) -> DeadlineError | None:
    """Say when a call can go at the earliest with those before it, if that is too late for it."""
    ticket, limit, place = waiting.ticket, waiting.wait.limit, waiting.place
    if not isinstance(limit, Rate):
        before = None if (alike := lane.alike(ticket)) is None else alike.before(asks_of(ticket))
        # Who is before it asks for no more of the same limits.
        return late_for(ticket, before.wait, now_s) if before is not None and ticket.route is None else None
    if place is None or len(lane) == 1:
        return None
    left_s = max(0.0, ticket.deadline_s - now_s)
    if lane.waiting_cost_s <= left_s:
        return None
    head = lane.head(now_s)
    if head is None or head is waiting or head.place is None:
        return None
    head_s = max(0.0, head.wait.earliest_s - now_s)
    wait_s = head_s + lane.line.cost_ahead_s(place) - head.place.cost_s + place.cost_s
    if wait_s <= left_s * (1 + LATE_BY):
        return None
    return DeadlineError(
        f"limit reached: {describe(limit)}; the call may wait for {left_s:.3f} s, and behind the "
        f"{len(lane) - 1} that wait already it could run in about {wait_s:.3f} s",
        limit=limit.name,
        retry_after_s=wait_s,
    )


def never_fits(refused: Refused, ticket: Ticket) -> BudgetError | UnpricedError:
    """Give the error of a call that can never go."""
    limit = refused.limit
    if refused.asked is None:
        return UnpricedError(
            f"no price is known for model {ticket.model!r}, so it cannot be held to {describe(limit)}; "
            "give it one with [[price]] in the configuration"
        )
    asked, free = amount_in_words(limit.dimension, refused.asked), amount_in_words(limit.dimension, refused.free)
    had, way_out = f"at most {free} can be had", "ask for less (max_tokens, a shorter prompt) or raise the limit"
    if isinstance(limit, Window) and isinstance(limit.span, Lifetime) and refused.free <= 0:
        had, way_out = (
            f"at most {free} can be had: the rest is spent or held for calls on their way, and it never resets",
            "raise the limit",
        )
    elif limit.dimension == "requests":
        way_out = "raise the limit"
    message = (
        f"limit reached: {describe(limit)}; the call may use {asked}, and {had}; "
        f"{way_out}{_of_the_likely(limit, ticket)}"
    )
    return BudgetError(message, limit=limit.name, retry_after_s=None)


def _of_the_likely(limit: Limit, ticket: Ticket) -> str:
    """Say why a limit that is to hold what is likely holds the bound still."""
    if not limit.holds_likely or ticket.asked.likely is not None:
        return ""
    return f"; what is likely is held once {RARE_SAMPLES} answers of {ticket.model!r} have been seen"


def ruled_out_in_words(ruled: RuledOut, model: str) -> str:
    """Say that a model rule turned a call down, why, and the way out."""
    why = f": {ruled.why}" if ruled.why else ""
    again = "" if ruled.retry_after_s is None else f"come again in {span_text(max(1.0, ruled.retry_after_s))}, or "
    return f"model rule {ruled.rule} turns calls like this for {model} down{why}; {again}have its owner change the rule"


def describe(limit: Limit) -> str:
    """Name a limit for people: how much of what, over what time, and where."""
    models = f" ({limit.models})" if limit.models else ""
    if isinstance(limit, Closure):
        whose = "all calls" if limit.scope == "*" else scope_text(limit.scope)
        return f'maintenance "{limit.cron}" for {whose}{models}'
    return f"{amount_in_words(limit.dimension, limit.amount)} {_over(limit)} for {scope_text(limit.scope)}{models}"


def _over(limit: Limit) -> str:
    match limit:
        case Rate(period_s=60):
            return "per minute"
        case Rate():
            return f"per {span_text(limit.period_s)}"
        case Rolling():
            return f"in any {span_text(limit.period_s)}"
        case Window(span=Lifetime()):
            return "in all"
        case Window(span=Calendar(unit, zone)):
            return f"per {unit}" if zone is UTC else f"per {unit} ({zone})"
        case Window(span=Fixed(period_s)):
            return f"per {span_text(period_s)} (fixed)"
        case Window(span=OpenedByUse(period_s)):
            return f"per {span_text(period_s)} (plan)"
        case _:
            return "at once"

"""Planned reservations: capacity of a limit set aside for a scope between two instants, over the control API.

One rule: what cannot be honoured is refused with the reason and what would be possible; nothing is promised that a
limit does not have. Only an administrator sets aside or gives back; a key's bearer sees its own.
"""

import secrets
from decimal import Decimal
from typing import Annotated, Literal, TypedDict

import msgspec

from headgate.core.amounts import MICRO_USD_PER_USD
from headgate.core.errors import CallerError
from headgate.core.limits import Limit
from headgate.core.planning import Denied, Plan, Wanted, unfit_holder
from headgate.core.scopes import MOST_NAME_CHARS
from headgate.core.wording import level_text
from headgate.gateway.asked import Asked, NothingThereError
from headgate.gateway.operations import SCOPE, Instant, Operation
from headgate.gateway.parameters import coming_s, rfc3339, scopes_wanted
from headgate.runtime.manager import Manager
from headgate.runtime.planning import PlanView, choose_limit

RESERVATIONS_PATH = "/api/v1/reservations"

MOST_WISH_BYTES = 16 * 1024
MOST_AMOUNT = 10**15
_MOST_LEVEL_CHARS = 600

_Instant = str | int | float


class ReservationWish(msgspec.Struct, forbid_unknown_fields=True, rename={"from_": "from"}):
    """What is asked of `POST /api/v1/reservations`.

    `limit` is the name of the limit to carve out of, or `of` its scope and `dimension` what it counts, where that is
    one. `amount` is in the limit's units, `usd` in dollars. `from_` is now without being said.
    """

    scope: Annotated[str, msgspec.Meta(min_length=1, max_length=MOST_NAME_CHARS)]
    until: _Instant
    from_: _Instant | None = None
    limit: Annotated[str, msgspec.Meta(max_length=_MOST_LEVEL_CHARS)] | None = None
    of: Annotated[str, msgspec.Meta(max_length=MOST_NAME_CHARS)] | None = None
    dimension: Annotated[str, msgspec.Meta(max_length=40)] | None = None
    amount: Annotated[int, msgspec.Meta(extra_json_schema={"minimum": 1, "maximum": MOST_AMOUNT})] | None = None
    usd: Decimal | None = None


PlanTold = TypedDict(
    "PlanTold",
    {
        "id": str,
        "scope": str,
        "limit": str,
        "dimension": str,
        "amount": int,
        "from": Instant,
        "until": Instant,
    },
)


class ReservationMade(PlanTold):
    """A reservation that is kept: that much is certain to fit from `certain_from` on."""

    kind: str
    at_once: int
    certain_from: Instant


class ReservationTold(PlanTold):
    """A reservation; `short` says why it cannot be kept in full."""

    kind: str | None
    at_once: int
    used: int
    held: int
    free: int
    filling: int
    short: str | None


class ReservationsTold(TypedDict):
    """The reservations that stand."""

    reservations: list[ReservationTold]


class ReservationCancelled(TypedDict):
    """A reservation that was given back."""

    id: str
    scope: str
    limit: str
    cancelled: Literal[True]


class NotHonouredError(CallerError):
    """The reservation cannot be honoured; the message says why, and what would be possible."""


async def tell_reservations(asked: Asked) -> ReservationsTold:
    """Answer `GET /api/v1/reservations`.

    Raises:
        CallerError: a parameter cannot be understood.
    """
    is_wanted = scopes_wanted(asked.words.get("scope", ""))
    views = await asked.manager.reservations()
    return reservations_json(
        [each for each in views if is_wanted(each.plan.scope) and asked.view.has_limit(each.plan.scope)]
    )


async def make_reservation(asked: Asked) -> ReservationMade:
    """Answer `POST /api/v1/reservations`.

    Raises:
        CallerError: what was sent cannot be understood, or cannot be honoured.
    """
    body = await asked.exchange.body(MOST_WISH_BYTES)
    try:
        wish = msgspec.json.decode(body, type=ReservationWish)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise CallerError(
            f'{error}; expected such as {{"scope": "run:nightly", "of": "account:main", "dimension": "output_tokens", '
            '"amount": 500000, "from": "2026-12-01T22:00:00Z", "until": "2026-12-02T02:00:00Z"}'
        ) from error
    return await reserve(asked.manager, wish)


async def end_reservation(asked: Asked) -> ReservationCancelled:
    """Answer `DELETE /api/v1/reservations/ID`.

    Raises:
        NothingThereError: there is none of this id, or it is over.
    """
    return await cancel(asked.manager, asked.named["id"])


async def reserve(manager: Manager, wish: ReservationWish) -> ReservationMade:
    """Set capacity aside; give the reservation in the control API's shape.

    Raises:
        CallerError: the wish cannot be understood.
        NotHonouredError: it cannot be honoured.
    """
    unfit = unfit_holder(wish.scope)
    if unfit is not None:
        raise NotHonouredError(unfit)
    if wish.limit is not None and (wish.of is not None or wish.dimension is not None):
        raise CallerError("say which limit by `limit`, its name, or by `of` and `dimension`; not by both")
    limit = choose_limit(await manager.limits_kept(), name=wish.limit, scope=wish.of, dimension=wish.dimension)
    if isinstance(limit, Denied):
        raise NotHonouredError(limit.reason)
    from_s = coming_s("now" if wish.from_ is None else str(wish.from_), manager.clock)
    until_s = coming_s(str(wish.until), manager.clock)
    wanted = Wanted(secrets.token_hex(4), wish.scope, _units(wish, limit), int(from_s), int(until_s))
    outcome = await manager.reserve(wanted, limit)
    if isinstance(outcome, Denied):
        raise NotHonouredError(outcome.reason)
    return {
        **_plan_json(outcome.plan, limit.dimension),
        "kind": limit.kind,
        "at_once": outcome.at_once,
        "certain_from": rfc3339(outcome.certain_s),
    }


async def cancel(manager: Manager, plan_id: str) -> ReservationCancelled:
    """Give back what is left of a reservation.

    Raises:
        NothingThereError: there is none of this id, or it is over.
    """
    cancelled = await manager.cancel_reservation(plan_id)
    if cancelled is None:
        raise NothingThereError(f"no reservation {plan_id[:64]!r} stands; it may be over or cancelled already")
    return {"id": cancelled.id, "scope": cancelled.scope, "limit": cancelled.limit, "cancelled": True}


def reservations_json(views: list[PlanView]) -> ReservationsTold:
    """Give reservations in the control API's shape."""
    return {
        "reservations": [
            {
                **_plan_json(each.plan, each.dimension),
                "kind": each.kind,
                "at_once": each.at_once,
                "used": each.used,
                "held": each.held,
                "free": each.free,
                "filling": each.filling,
                "short": each.short,
            }
            for each in views
        ]
    }


def _plan_json(plan: Plan, dimension: str) -> PlanTold:
    return {
        "id": plan.id,
        "scope": plan.scope,
        "limit": plan.limit,
        "dimension": dimension,
        "amount": plan.units,
        "from": rfc3339(plan.from_s),
        "until": rfc3339(plan.until_s),
    }


def _units(wish: ReservationWish, limit: Limit) -> int:
    is_money = limit.dimension == "micro_usd"
    if (wish.amount is None) == (wish.usd is None):
        raise CallerError("say how much: `usd` of a budget in dollars, else `amount`; one of them")
    if wish.usd is None:
        assert wish.amount is not None, "one of them is there"
        if not 1 <= wish.amount <= MOST_AMOUNT:
            raise CallerError(f"amount={str(wish.amount)[:40]}: expected a whole number from 1 to {MOST_AMOUNT:,}")
        return wish.amount
    if not is_money:
        counted = limit.dimension.replace("_", " ")
        raise CallerError(f"{level_text(limit.name)} counts {counted}, not dollars: say `amount`")
    if not (wish.usd.is_finite() and 0 < wish.usd <= MOST_AMOUNT // MICRO_USD_PER_USD):
        raise CallerError(f"usd={str(wish.usd)[:40]}: expected a number of dollars above 0, such as 20 or 0.45")
    units = wish.usd * MICRO_USD_PER_USD
    if units != int(units):
        raise CallerError(
            f"usd={str(wish.usd)[:40]}: expected millionths of a dollar at the smallest, such as 0.000001"
        )
    return int(units)


TELL_RESERVATIONS = Operation(tell_reservations, ReservationsTold, "Capacity set aside for a time", (SCOPE,))
MAKE_RESERVATION = Operation(
    make_reservation,
    ReservationMade,
    "Set capacity aside for a time",
    takes=ReservationWish,
    fails=(404,),
    only_admin="set capacity aside",
    makes=True,
)
END_RESERVATION = Operation(
    end_reservation, ReservationCancelled, "Give it back", fails=(404,), only_admin="cancel a reservation"
)

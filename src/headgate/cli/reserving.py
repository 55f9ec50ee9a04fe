"""`headgate reserve`: set capacity aside for a run or key and a time to come, list that, and give it back.

One rule: it goes through the store, so it works beside a running gateway, whose next call knows of it. What cannot be
honoured is refused with the reason.
"""

from collections.abc import Mapping
from datetime import UTC, datetime
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import Any

from headgate.cli.questions import ask, print_json
from headgate.cli.tables import print_table
from headgate.cli.wording import amount_text, level_text
from headgate.core.errors import CallerError
from headgate.gateway.reserving import ReservationWish, cancel, reservations_json, reserve
from headgate.runtime.manager import Manager


def create_reservation(config_path: Path | None, wish: ReservationWish, *, as_json: bool) -> None:
    """Set capacity aside and print what was.

    Raises:
        CallerError: the wish cannot be understood, or cannot be honoured.
    """
    made = ask(config_path, lambda manager, _config: reserve(manager, wish), changes=True)
    if as_json:
        print_json(made)
        return
    amount = amount_text(made["dimension"], made["amount"])
    spread = " for all of that time, evenly" if made["kind"] == "rate" else ""
    _say(
        f"{made['id']}: {amount} of {level_text(made['limit'])} set aside for {made['scope']} "
        f"from {_at(made['from'])} until {_at(made['until'])}{spread}"
    )
    if made["kind"] == "rate":
        at_once = amount_text(made["dimension"], made["at_once"])
        is_late = made["certain_from"] > made["from"]
        since = f" from {_at(made['certain_from'])} on, when its bucket has filled" if is_late else ""
        _say(f"up to {at_once} at once are certain to fit{since}; a larger call goes the common way")


def list_reservations(config_path: Path | None, *, as_json: bool) -> None:
    """Print every reservation that is not over."""
    shape = ask(config_path, lambda manager, _config: _read(manager))
    if as_json:
        print_json(shape)
        return
    columns = ["id", "for", "of", "amount", "at once", "used", "free", "from (UTC)", "until (UTC)", "held", "filling"]
    rows = [
        [
            row["id"],
            row["scope"],
            level_text(row["limit"]),
            *(amount_text(row["dimension"], row[word]) for word in ("amount", "at_once", "used", "free")),
            *(_at(row[word]) for word in ("from", "until")),
            *(amount_text(row["dimension"], row[word]) for word in ("held", "filling")),
        ]
        for row in shape["reservations"]
    ]
    if rows:
        print_table(columns, rows, names=3)
        for row in shape["reservations"]:
            if row["short"] is not None:
                _say(f"{row['id']} cannot be kept in full: {row['short']}")
    else:
        _say("nothing is reserved")


def cancel_reservation(config_path: Path | None, plan_id: str, *, as_json: bool) -> None:
    """Give back what is left of a reservation.

    Raises:
        NothingThereError: there is none of this id, or it is over.
    """
    cancelled = ask(config_path, lambda manager, _config: cancel(manager, plan_id))
    if as_json:
        print_json(cancelled)
    else:
        _say(f"cancelled {plan_id}: what was left of it is everybody's again")


def dollars(text: str | None) -> Decimal | None:
    """Read an amount of dollars.

    Raises:
        CallerError: it is none.
    """
    if text is None:
        return None
    try:
        return Decimal(text)
    except InvalidOperation as error:
        raise CallerError(f"--usd {text!r}: expected a number of dollars, such as 20 or 0.45") from error


async def _read(manager: Manager) -> Mapping[str, Any]:
    return reservations_json(await manager.reservations())


def _at(instant: str) -> str:
    return f"{datetime.fromisoformat(instant).astimezone(UTC):%Y-%m-%d %H:%M}"


def _say(line: str) -> None:
    print(line)  # noqa: T201 - what was asked for

"""The commands `headgate reserve ...` and their options.

One rule: nothing heavy is imported before one runs; what they do is `reserving`'s.
"""

from typing import Annotated

import typer

from headgate.cli.options import ConfigOption, JsonOption, whole

reserve_app = typer.Typer(help="Capacity set aside for a run or key and a time to come.")


@reserve_app.command("create")
def reserve_create(
    scope: Annotated[str, typer.Argument(help="For whom: run:nightly, key:ci, team:search, ...")],
    config: ConfigOption = None,
    *,
    until: Annotated[str, typer.Option(help="Its end: 2h (from now), or a time such as 2026-12-01T22:00:00Z.")],
    start: Annotated[str, typer.Option("--from", help="Its beginning, in the same words.")] = "now",
    of: Annotated[
        str | None, typer.Option(help="The scope of the limit that it is carved out of: account:main.")
    ] = None,
    dimension: Annotated[str | None, typer.Option(help="What that limit counts: output_tokens, micro_usd, ...")] = None,
    limit: Annotated[str | None, typer.Option(help="Or that limit by its name, as `limits --json` has it.")] = None,
    amount: Annotated[
        int | None, typer.Option(parser=whole("--amount"), metavar="N", help="How many units of it.")
    ] = None,
    usd: Annotated[str | None, typer.Option(metavar="DOLLARS", help="Or how many dollars.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Set so many tokens, requests or dollars aside; refused with the reason where that cannot be honoured."""
    from headgate.cli.reserving import create_reservation, dollars  # noqa: PLC0415 - heavy
    from headgate.gateway.reserving import ReservationWish  # noqa: PLC0415 - heavy

    wish = ReservationWish(scope, until, start, limit, of, dimension, amount, dollars(usd))
    create_reservation(config, wish, as_json=as_json)


@reserve_app.command("list")
def reserve_list(config: ConfigOption = None, *, as_json: JsonOption = False) -> None:
    """List what is set aside, and what was used of it."""
    from headgate.cli.reserving import list_reservations  # noqa: PLC0415 - heavy

    list_reservations(config, as_json=as_json)


@reserve_app.command("cancel")
def reserve_cancel(
    reservation: Annotated[str, typer.Argument(help="Its id, as `reserve list` has it.")],
    config: ConfigOption = None,
    *,
    as_json: JsonOption = False,
) -> None:
    """Give back what is left of one."""
    from headgate.cli.reserving import cancel_reservation  # noqa: PLC0415 - heavy

    cancel_reservation(config, reservation, as_json=as_json)

"""The command `headgate accounts` and its options.

One rule: nothing heavy is imported before it runs; what it prints is `account_table`'s.
"""

from typing import Annotated

import typer

from headgate.cli.options import ConfigOption, JsonOption


def accounts(
    config: ConfigOption = None,
    gateway: Annotated[
        str | None,
        typer.Option(metavar="URL", help="The gateway to ask, instead of the configured address; key: HEADGATE_KEY."),
    ] = None,
    *,
    as_json: JsonOption = False,
) -> None:
    """Show how each account is, what it has left, and why the last calls went where they went."""
    from headgate.cli.account_table import show_accounts  # noqa: PLC0415 - heavy

    show_accounts(config, gateway, as_json=as_json)

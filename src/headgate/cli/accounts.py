"""The command `headgate accounts` and its options.

One rule: nothing heavy is imported before it runs; what it prints is `account_table`'s.
"""

from pathlib import Path
from typing import Annotated

import typer


def accounts(
    config: Annotated[
        Path | None,
        typer.Option("--config", help="The configuration; without it ./headgate.toml, else the environment."),
    ] = None,
    gateway: Annotated[
        str | None,
        typer.Option(metavar="URL", help="The gateway to ask, instead of the configured address; key: HEADGATE_KEY."),
    ] = None,
    *,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout, nothing else.")] = False,
) -> None:
    """Show how each account is, what it has left, and why the last calls went where they went."""
    from headgate.cli.account_table import show_accounts  # noqa: PLC0415 - heavy

    show_accounts(config, gateway, as_json=as_json)

"""`headgate accounts`: how each account is, what it has left, and why the last calls went where they went.

One rule: it asks the gateway that runs, which alone knows health and choices; where none answers it reads the store and
says what it could not know. It changes nothing.
"""

import asyncio
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from headgate.adapters.config import Config
from headgate.cli.questions import ask, print_json
from headgate.cli.running_gateway import address_of, ask_gateway
from headgate.cli.tables import print_table
from headgate.cli.wording import limit_text, per_text, share_text
from headgate.compose import read_config
from headgate.core.errors import CallerError
from headgate.gateway.accounts import ACCOUNTS_PATH, accounts_json
from headgate.runtime.manager import Manager

MOST_CHOICES = 10


def show_accounts(config_path: Path | None, gateway: str | None, *, as_json: bool) -> None:
    """Print the accounts as the gateway at `gateway` (or the configured address) knows them, or as the store does.

    Raises:
        CallerError: the gateway that was named does not answer.
    """
    config = read_config(config_path, credentials=False)
    if gateway is None and config.server.port == 0:
        told, why_not = None, "the configuration leaves the gateway's port to the system; name it with --gateway URL"
    else:
        told, why_not = asyncio.run(ask_gateway(gateway or address_of(config), config, ACCOUNTS_PATH, "accounts"))
    if told is not None and gateway is None and not _is_ours(told, config):
        told, why_not = None, f"the gateway at {address_of(config)} has other accounts"
    if told is None and gateway is not None:
        raise CallerError(f"--gateway {gateway}: {why_not}")
    if told is None:

        async def read(manager: Manager, _config: Config) -> Mapping[str, Any]:
            return await accounts_json(manager, lives=False)

        told = ask(config_path, read)
        print(f"headgate: health and choices are not known: {why_not}", file=sys.stderr)  # noqa: T201 - beside the answer
    if as_json:
        print_json(told)
    else:
        _show(told)


def _is_ours(told: Mapping[str, Any], config: Config) -> bool:
    return [each["account"] for each in told["accounts"]] == [each.account.name for each in config.accounts]


def _show(told: Mapping[str, Any]) -> None:
    columns = ["account", "serves", "scarcest", "health", "free", "in flight", "last hour", "failed", "plan"]
    rows = []
    for each in told["accounts"]:
        scarcest = each["headroom"][0] if each["headroom"] else None
        rows.append(
            [
                f"{each['account']} ({each['provider']})",
                ", ".join(each["models"]),
                "-" if scarcest is None else _limit(scarcest),
                each["health"] or "?",
                "-" if scarcest is None else share_text(scarcest["free_share"]),
                f"{each['in_flight']:,}",
                f"{each['lately']['requests']:,}",
                f"{each['lately']['failed']:,}",
                _plan_text(each["plans"]),
            ]
        )
    print_table(columns, rows, names=3)
    for each in told["accounts"]:
        if each["why"] is not None:
            _say(f"{each['account']}: {each['why']}")
    for choice in (told["choices"] or [])[:MOST_CHOICES]:
        others = "; ".join(f"not {other['account']}: {other['why']}" for other in choice["others"])
        left = "" if choice["left"] is None else f" (it waited for {choice['left']})"
        _say(f"{choice['at'][11:19]} {choice['model']} -> {choice['account']}{left}: {choice['why']}; {others}")


def _limit(row: dict[str, Any]) -> str:
    scope = str(row["limit"]).split(" ", 1)[0]
    return limit_text(scope, row["models"], row["dimension"]).removeprefix(f"{scope} ") + per_text(row["per"])


def _plan_text(plans: list[dict[str, Any]]) -> str:
    """Say of the plan window that is the furthest ahead of its line where it stands."""
    known = [each for each in plans if each["behind"] is not None]
    if not known:
        return "-" if not plans else f"{share_text(max(each['used'] for each in plans))} used"
    worst = min(known, key=lambda each: each["behind"])
    where = "behind" if worst["behind"] >= 0 else "ahead of"
    window = per_text(f"{worst['period_s']}s").removeprefix("/")
    return f"{window}: {share_text(worst['used'])} used, {share_text(abs(worst['behind']))} {where} its line"


def _say(line: str) -> None:
    print(line)  # noqa: T201 - what was asked for

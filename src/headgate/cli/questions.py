"""`headgate usage` and `headgate limits`: what was used, and what is left.

One rule: they read the store, so they work beside a running gateway and without one, and change nothing.
"""

import asyncio
import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlencode

from headgate.adapters.config import Config
from headgate.cli.tables import print_table
from headgate.cli.wording import amount_text, limit_text, per_text, usd_text
from headgate.compose import WallClock, open_house, read_config
from headgate.gateway.control import limits_json, usage_json, usage_query
from headgate.runtime.manager import Manager

T = TypeVar("T")


def show_usage(config_path: Path | None, by: str, since: str | None, until: str | None, *, as_json: bool) -> None:
    """Print sums of the ledger.

    Raises:
        CallerError: a field or a time cannot be understood.
    """
    words = {"group_by": by, "since": since, "until": until}
    query = usage_query(urlencode({name: word for name, word in words.items() if word}), WallClock())
    groups = ask(config_path, lambda manager, _config: manager.usage(query))
    shape = usage_json(groups, query.group_by)
    if as_json:
        print_json(shape)
        return
    columns = [*query.group_by, "requests", "input", "output", "cost", "waited", "cache read", "cache write"]
    total = [*("total" if not index else "" for index in range(len(query.group_by))), *_usage_cells(shape["total"])]
    rows = [[*(str(row[name] or "-") for name in query.group_by), *_usage_cells(row)] for row in shape["groups"]]
    print_table(columns, [*rows, total] if query.group_by else [total], names=len(query.group_by))


def show_limits(config_path: Path | None, *, as_json: bool) -> None:
    """Print every limit that is configured or in use."""

    async def read(manager: Manager, _config: Config) -> dict[str, Any]:
        return limits_json(await manager.limits(), manager.maintenance(), manager.clock.now_s())

    shape = ask(config_path, read)
    if as_json:
        print_json(shape)
        return
    columns = ["limit", "amount", "used", "free", "resets", "held", "learned"]
    rows = [
        [
            limit_text(view["scope"], view["models"], view["dimension"]),
            amount_text(view["dimension"], view["amount"]) + per_text(view["per"]),
            *(amount_text(view["dimension"], view[name]) for name in ("used", "free")),
            (view["resets_at"] or "-").removesuffix("Z").replace("T", " ").split(".")[0],
            amount_text(view["dimension"], view["held"]),
            _learned_text(view),
        ]
        for view in shape["limits"]
    ]
    if all(view["learned_from"] is None for view in shape["limits"]):
        columns, rows = columns[:-1], [row[:-1] for row in rows]
    if rows:
        print_table(columns, rows, names=1)
    else:
        print("no limits are configured")  # noqa: T201 - the answer
    for each in shape["maintenance"]:
        if each["lasts"]:
            what = "are refused" if each["action"] == "refuse" else "wait"
            whose = "all calls" if each["scope"] == "*" else f"calls of {each['scope']}"
            models = "" if each["models"] is None else f" for {each['models']}"
            print(f"maintenance: {whose}{models} {what} until {each['until'][:16].replace('T', ' ')}")  # noqa: T201 - the answer


def _learned_text(view: dict[str, Any]) -> str:
    """Say what was learned of a limit, from what, and until when nothing goes."""
    if view["learned_from"] is None:
        return "-"
    amount = "" if view["learned"] is None else f"{amount_text(view['dimension'], view['learned'])} by "
    closed = "" if view["closed_until"] is None else f", closed until {view['closed_until'][11:19]}"
    return f"{amount}{view['learned_from']}{closed}"


def ask(config_path: Path | None, question: Callable[[Manager, Config], Awaitable[T]]) -> T:
    """Give the answer of a manager over the configured store, which cleans up nothing and renews nothing."""

    async def run() -> T:
        async with open_house(read_config(config_path, credentials=False), start=False) as house:
            return await question(house.manager, house.config)

    return asyncio.run(run())


def _usage_cells(sums: dict[str, Any]) -> list[str]:
    requests, given, written, read, cached = (
        f"{sums[name]:,}"
        for name in ("requests", "input_tokens", "output_tokens", "cache_read_tokens", "cache_write_tokens")
    )
    unknown = f" + {sums['unknown_cost']} unknown" if sums["unknown_cost"] else ""
    cost = usd_text(sums["cost_micro_usd"]) + unknown
    return [requests, given, written, cost, f"{sums['wait_ms'] / 1000:,.1f} s", read, cached]


def print_json(shape: dict[str, Any]) -> None:
    """Print an answer as programs read it."""
    print(json.dumps(shape))  # noqa: T201 - the answer

"""`headgate usage` and `headgate limits`: what was used, and what is left.

One rule: they read the store, so they work beside a running gateway and without one, and change nothing.
"""

import asyncio
import json
import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlencode

from headgate.adapters.config import Config
from headgate.cli.known_scopes import say_unknown
from headgate.cli.stores import differences, say_in_force, say_store
from headgate.cli.tables import print_table
from headgate.cli.wording import (
    amount_text,
    hold_text,
    learned_text,
    limit_text,
    per_text,
    usd_text,
    why_learned_text,
)
from headgate.compose import WallClock, configs_in_force, open_house, read_config
from headgate.core.errors import CallerError
from headgate.core.ledger import UsageGroup
from headgate.gateway.limits_now import limits_json
from headgate.gateway.parameters import scopes_wanted
from headgate.gateway.usage import SUMS, usage_json, usage_query
from headgate.runtime.manager import Manager

T = TypeVar("T")

_USAGE_COLUMNS = ("requests", "attempts", "uncached input", "output", "cost", "waited", "cache reads", "cache writes")
# As `RunGateway.lend_key` names them: the run, its job, the attempt.
_FLEET_KEY = re.compile(r"[0-9a-f]{6}/\d+\.\d+")
# A smaller number is no instant that anybody means, but a span without its unit.
_FIRST_INSTANT_S = 100_000_000


def show_usage(
    config_path: Path | None,
    by: str,
    since: str | None,
    until: str | None,
    *,
    fleet_keys: bool = False,
    as_json: bool = False,
) -> None:
    """Print sums of the ledger; a fleet's own keys are one line, unless `fleet_keys` asks for each.

    Raises:
        CallerError: a field or a time cannot be understood.
    """
    for option, word in (("--since", since), ("--until", until)):
        if word is not None and word.isdigit() and int(word) < _FIRST_INSTANT_S:
            raise CallerError(f"{option} {word}: {word} of what? write {word}d for days, {word}h for hours")
    words = {"group_by": by, "since": since, "until": until}
    query = usage_query(urlencode({name: word for name, word in words.items() if word}), WallClock())

    async def read(manager: Manager, config: Config) -> tuple[Sequence[UsageGroup], str]:
        return await manager.usage(query), str(config.store.path)

    groups, store = ask(config_path, read)
    if as_json:
        print_json({**usage_json(groups, query.group_by), "store": store})
        return
    if "key" in query.group_by and not fleet_keys:
        groups = _without_fleet_keys(groups)
    shape = usage_json(groups, query.group_by)
    names = len(query.group_by)
    columns = [*query.group_by, *_USAGE_COLUMNS]
    total = [*("total" if not index else "" for index in range(names)), *_usage_cells(shape["total"])]
    rows = [[*(str(row[name] or "-") for name in query.group_by), *_usage_cells(row)] for row in shape["groups"]]
    rows = [*rows, total] if names else [total]
    tried = columns.index("attempts")
    if all(row[tried] == row[tried - 1] for row in rows):
        # Tries that reached no provider are no requests; where there are none, one column says both.
        columns, rows = _without(tried, columns), [_without(tried, row) for row in rows]
    print_table(columns, rows, names=names)


def show_limits(config_path: Path | None, scope: str = "", *, as_json: bool) -> None:
    """Print every limit that is configured or in use, of the scopes that are asked for.

    Raises:
        CallerError: there is no such kind of scope, or no such account.
    """
    is_wanted = scopes_wanted(scope)

    async def read(manager: Manager, config: Config) -> dict[str, Any]:
        found = await manager.limits()
        await say_unknown(scope, manager, config, found)
        views = [each for each in found if is_wanted(each.scope)]
        closures = [each for each in manager.maintenance() if each.scope == "*" or is_wanted(each.scope)]
        shape = limits_json(views, closures, manager.clock.now_s())
        return {**shape, "store": str(config.store.path)}

    shape = ask(config_path, read)
    if as_json:
        print_json(shape)
        return
    aside = any(view["set_aside"] for view in shape["limits"])
    counts = ("used", "free", "set_aside") if aside else ("used", "free")
    nothing_learned = all(view["learned_from"] is None for view in shape["limits"])
    columns = [
        "limit",
        "configured",
        *([] if nothing_learned else ["learned", "why"]),
        "used",
        "free",
        *(["set aside"] if aside else []),
        "resets",
        "held",
    ]
    rows = [
        [
            limit_text(view["scope"], view["models"], view["dimension"]),
            _configured_text(view),
            *([] if nothing_learned else [learned_text(view) or "-", why_learned_text(view) or "-"]),
            *(amount_text(view["dimension"], view[name]) for name in counts),
            (view["resets_at"] or "-").removesuffix("Z").replace("T", " ").split(".")[0],
            amount_text(view["dimension"], view["held"]),
        ]
        for view in shape["limits"]
    ]
    if rows:
        print_table(columns, rows, names=1)
    else:
        print(f"no limits are configured or in use for {scope or 'any scope'}")  # noqa: T201 - the answer
    for each in shape["maintenance"]:
        if each["lasts"]:
            what = "are refused" if each["action"] == "refuse" else "wait"
            whose = "all calls" if each["scope"] == "*" else f"calls of {each['scope']}"
            models = "" if each["models"] is None else f" for {each['models']}"
            print(f"maintenance: {whose}{models} {what} until {each['until'][:16].replace('T', ' ')}")  # noqa: T201 - the answer


def _configured_text(view: dict[str, Any]) -> str:
    """Say what is configured: the ceiling of what was learned."""
    if not view["configured"]:
        return "learned only"
    return amount_text(view["dimension"], view["amount"]) + per_text(view["per"]) + hold_text(view["hold"])


def ask(config_path: Path | None, question: Callable[[Manager, Config], Awaitable[T]], *, changes: bool = False) -> T:
    """Give the answer of a manager over the configured store, which cleans up nothing and renews nothing.

    A store that is not there is made only for an order, which `changes` something.

    Where a gateway runs, it is asked of what that goes by; that the file says something else by now is said.
    """
    return ask_each(config_path, question, changes=changes)[0]


def ask_each(
    config_path: Path | None, question: Callable[[Manager, Config], Awaitable[T]], *, changes: bool = False
) -> list[T]:
    """Give the answer as `ask` does, and after it those of other gateways that go by something else."""

    async def run() -> list[T]:
        async with open_house(config, start=False, make=changes) as house:
            running = await configs_in_force(house)
            news = [(said, in_force, differences(in_force, config)) for said, in_force in running]
            others = {said.text: in_force for said, in_force, changed in news if changed}
            goes_by_file = not news or any(not changed for _said, _in_force, changed in news)
            answers = [await question(house.manager, config)] if goes_by_file else []
        for said, _in_force, changed in news:
            say_in_force(said, config.path, changed, is_shown=not goes_by_file)
        for in_force in others.values():
            async with open_house(in_force, start=False) as house:
                answers.append(await question(house.manager, in_force))
        return answers

    config = read_config(config_path, credentials=False)
    answers = asyncio.run(run())
    say_store(config, config_path)
    return answers


def _without_fleet_keys(groups: Sequence[UsageGroup]) -> list[UsageGroup]:
    """Fold the keys that fleets made for their agents into one: they are one for each attempt of each job."""
    folded: dict[tuple[str | None, ...], UsageGroup] = {}
    for group in groups:
        named = dict(group.group)
        if _FLEET_KEY.fullmatch(named["key"] or ""):
            named["key"] = "(keys of fleets)"
        before = folded.get(tuple(named.values()), UsageGroup(named))
        sums = {name: getattr(before, name) + getattr(group, name) for name in SUMS}
        folded[tuple(named.values())] = replace(before, **sums)
    return list(folded.values())


def _without(place: int, row: Sequence[str]) -> list[str]:
    return [*row[:place], *row[place + 1 :]]


def _usage_cells(sums: Mapping[str, Any]) -> list[str]:
    requests, attempts, given, written, read, cached = (
        f"{sums[name]:,}"
        for name in ("requests", "attempts", "input_tokens", "output_tokens", "cache_read_tokens", "cache_write_tokens")
    )
    unknown = f" + {sums['unknown_cost']} unknown" if sums["unknown_cost"] else ""
    cost = usd_text(sums["cost_micro_usd"]) + unknown
    return [requests, attempts, given, written, cost, f"{sums['wait_ms'] / 1000:,.1f} s", read, cached]


def print_json(shape: Mapping[str, Any]) -> None:
    """Print an answer as programs read it."""
    print(json.dumps(shape))  # noqa: T201 - the answer

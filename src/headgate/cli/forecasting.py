"""`headgate forecast` and `headgate capacity`: when windows run out, and how many more agents can start now.

One rule: they read the store, so they work beside a running gateway and without one, and change nothing. What is not
known is said so, with what was assumed.
"""

from collections.abc import Sequence
from pathlib import Path

from rich.text import Text

from headgate.adapters.config import Config
from headgate.cli.known_scopes import say_unknown
from headgate.cli.questions import ask, print_json
from headgate.cli.reloading import said_of_keys
from headgate.cli.tables import open_console, print_table
from headgate.cli.wording import amount_text, level_text, span_text
from headgate.core.accounts import Account
from headgate.core.capacity import Capacity, Light
from headgate.core.forecast import BAND
from headgate.core.scopes import Scopes
from headgate.gateway.outlook import (
    capacities,
    capacity_json,
    forecast_json,
    scopes_of_key,
    windows_of,
)
from headgate.gateway.parameters import scopes_wanted
from headgate.runtime.forecasting import ForecastView
from headgate.runtime.manager import Manager

_STYLES: dict[Light, str] = {"green": "bold green", "yellow": "bold yellow", "red": "bold red"}


def show_forecast(config_path: Path | None, scope: str, *, as_json: bool) -> None:
    """Print every window and budget as it will be at its end, those that run out first.

    Raises:
        CallerError: there is no such kind of scope, or no such account.
    """
    is_wanted = scopes_wanted(scope)

    async def read(manager: Manager, config: Config) -> tuple[list[ForecastView], int, float]:
        found = await manager.limits()
        await say_unknown(scope, manager, config, found)
        chosen, left_out = windows_of(found, is_wanted)
        return await manager.forecasting.forecasts(chosen), left_out, manager.clock.now_s()

    forecasts, left_out, now_s = ask(config_path, read)
    if as_json:
        print_json(forecast_json(forecasts, left_out, now_s))
        return
    if not forecasts:
        _say(f"no window or budget is configured or in use for {scope or 'any scope'}")
        return
    forecasts.sort(key=lambda each: (each.runs_out_s or float("inf"), each.runs_out_earliest_s or float("inf")))
    columns = ["limit", "runs out", "used", "at its end", f"{BAND:.0%} band", "amount", "resets in"]
    print_table(columns, [_forecast_cells(each, now_s) for each in forecasts], names=2)
    if left_out:
        _say(f"and {left_out} windows that are less full; --scope account,key narrows it down")
    _say_assumed([(level_text(each.name), each.assumed) for each in forecasts])


def show_capacity(config_path: Path | None, model: str, account: str | None, key: str | None, *, as_json: bool) -> None:
    """Print for each account that serves a model how many more agents can start now, and what binds them.

    Raises:
        CallerError: there is no such account, key or model.
    """

    async def read(manager: Manager, config: Config) -> tuple[list[tuple[Account, Capacity]], float, Scopes]:
        scopes = await scopes_of_key(manager, key, said_of_keys(config))
        return await capacities(manager, scopes, model, account), manager.clock.now_s(), scopes

    found, now_s, _scopes = ask(config_path, read)
    if as_json:
        print_json(capacity_json(model, key, found))
        return
    console = open_console()
    for served_by, told in found:
        light = Text.assemble((told.light, _STYLES[told.light]), f"  {served_by.name}: {capacity_text(told, now_s)}")
        console.print(light)
    rows = {level_text(limit): f"{agents:,}" for _account, told in found for limit, agents in told.by_limit}
    if rows:
        print_table(["limit", "more agents"], [list(row) for row in rows.items()], names=1)
    _say_assumed([(served_by.name, told.assumed) for served_by, told in found if told.agents is not None])


def runs_out_text(view: ForecastView, now_s: float) -> str:
    """Say in words when a window runs out, and how long before it resets."""
    if view.runs_out_s is not None and view.runs_out_s <= now_s:
        return "now: spent"
    if view.runs_out_s is not None:
        before = "" if view.resets_s is None else f", {span_text(view.resets_s - view.runs_out_s)} before it resets"
        return f"in {span_text(view.runs_out_s - now_s)}{before}"
    if view.expected is None:
        return "not known yet"
    until = "before it resets" if view.resets_s is not None else f"within {span_text(view.projected_to_s - now_s)}"
    if view.runs_out_earliest_s is not None:
        return f"not {until}; at worst in {span_text(max(0.0, view.runs_out_earliest_s - now_s))}"
    return f"not {until}"


def capacity_text(told: Capacity, now_s: float) -> str:
    """Say in words how many more agents can start, what binds them and when that changes."""
    if told.agents is None:
        return f"no number can be given: {told.assumed}"
    more = f"{told.agents:,} more {'agent' if told.agents == 1 else 'agents'} can start now"
    if told.closed is not None:
        again = "" if told.changes_s is None else f", for another {span_text(told.changes_s - now_s)}"
        return f"no more agents can start now; {told.closed}{again}"
    changes = "" if told.changes_s is None else f", which changes in {span_text(told.changes_s - now_s)}"
    binding = "nothing" if told.binding is None else level_text(told.binding)
    return f"{more}; {binding} binds{changes}"


def _forecast_cells(view: ForecastView, now_s: float) -> list[str]:
    def amount(units: int | None) -> str:
        return "?" if units is None else amount_text(view.dimension, units)

    return [
        level_text(view.name),
        runs_out_text(view, now_s),
        amount(view.used),
        amount(view.expected),
        f"{amount(view.low)} - {amount(view.high)}",
        amount(view.amount),
        "-" if view.resets_s is None else span_text(max(0.0, view.resets_s - now_s)),
    ]


def _say_assumed(said: Sequence[tuple[str, str]]) -> None:
    """Print each assumption once, with what it was made for where they differ."""
    by_text: dict[str, list[str]] = {}
    for name, assumed in said:
        by_text.setdefault(assumed, []).append(name)
    console = open_console()
    for assumed, names in by_text.items():
        whose = "" if len(by_text) == 1 else f" for {', '.join(names)}"
        console.print(Text(f"assumed{whose}: {assumed}", style="dim"))


def _say(line: str) -> None:
    print(line)  # noqa: T201 - what was asked for

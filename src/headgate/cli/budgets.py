"""`headgate budget`: what is left of windows and budgets, for people, and for scripts by its exit code.

One rule: it reads the store and changes nothing; with `--check` it ends with 75 when something is spent, and says what.
"""

from collections.abc import Sequence
from pathlib import Path

from headgate.adapters.config import Config
from headgate.cli.known_scopes import check_scopes, say_unknown, scopes_there_are
from headgate.cli.questions import ask_each, print_json
from headgate.cli.tables import print_table
from headgate.cli.wording import amount_text, hold_text, level_text, share_text, span_text
from headgate.compose import WallClock
from headgate.core.errors import CallerError, LimitError
from headgate.gateway.budgets import budgets_json, budgets_of, spent_share, standing, verdict
from headgate.gateway.parameters import scopes_wanted
from headgate.runtime.manager import Manager
from headgate.runtime.monitor import LimitView

_MOST_NAMED = 5


def show_budgets(config_path: Path | None, scope: str, at_percent: int | None, *, check: bool, as_json: bool) -> None:
    """Print every window and budget; with `check`, judge them too.

    Raises:
        CallerError: there is no such kind of scope, a percentage is given and no check asked for, or a check is asked
            for and a scope fits nothing that there is.
        LimitError: with `check`: something is spent, or used to so many percent.
    """
    if at_percent is not None and not check:
        raise CallerError(f"--at {at_percent} is for --check: give both")
    is_wanted = scopes_wanted(scope)

    async def read(manager: Manager, config: Config) -> list[LimitView]:
        found = await manager.limits()
        if not check:
            await say_unknown(scope, manager, config, found)
        else:
            words = [word for word in scope.split(",") if ":" in word]
            check_scopes(words, await scopes_there_are(manager, config, found))
        return budgets_of(found, is_wanted)

    views, *elsewhere = ask_each(config_path, read)
    now_s = WallClock().now_s()
    if as_json:
        print_json(budgets_json(views, now_s))
    elif views:
        aside = any(view.set_aside for view in views)
        columns = ["budget", "share", "used", "free", *(["set aside"] if aside else []), "amount", "resets in"]
        print_table([*columns, "held", "pending"], [_cells(view, now_s, aside=aside) for view in views], names=1)
    else:
        print(f"no window or budget is configured or in use for {scope or 'any scope'}")  # noqa: T201 - the answer
    if check:
        for each in (views, *elsewhere):
            _judge(each if scope else standing(each), 100 if at_percent is None else at_percent, now_s)


def _judge(views: Sequence[LimitView], at_percent: int, now_s: float) -> None:
    found = verdict(views, at_percent)
    if not found.limited:
        return
    by_name = {view.name: view for view in views}
    limited = [by_name[use.limit] for use in (*found.spent, *(use for use in found.past if use not in found.spent))]
    said = [_said_of(view, now_s) for view in limited[:_MOST_NAMED]]
    more = f"; and {len(limited) - _MOST_NAMED} more" if len(limited) > _MOST_NAMED else ""
    waits = [max(0.0, view.resets_s - now_s) for view in limited if view.resets_s is not None]
    raise LimitError("; ".join(said) + more, limit=limited[0].name, retry_after_s=max(waits, default=None))


def _said_of(view: LimitView, now_s: float) -> str:
    state = "spent" if view.used >= view.amount else f"{share_text(spent_share(view))} used"
    used, amount = (amount_text(view.dimension, units) for units in (view.used, view.amount))
    resets = "never resets" if view.resets_s is None else f"resets in {_resets_in(view, now_s)}"
    return f"{level_text(view.name)} is {state}: {used} of {amount}, {resets}"


def _cells(view: LimitView, now_s: float, *, aside: bool) -> list[str]:
    def amount(units: int) -> str:
        return amount_text(view.dimension, units)

    return [
        level_text(view.name),
        share_text(spent_share(view)),
        amount(view.used - view.pending),
        amount(view.free),
        *([amount(view.set_aside)] if aside else []),
        amount(view.amount) + hold_text(view.hold),
        _resets_in(view, now_s),
        amount(view.held),
        amount(view.pending),
    ]


def _resets_in(view: LimitView, now_s: float) -> str:
    return "-" if view.resets_s is None else span_text(max(0.0, view.resets_s - now_s))

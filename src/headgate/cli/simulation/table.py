"""The comparison as a table for people and as JSON for programs.

One rule: a row is one figure, written the same way in the terminal and on the page; a column is a scenario.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from headgate.cli.simulation.told import failures_told, is_refilled, learned_text, limit_told
from headgate.cli.tables import print_table
from headgate.cli.wording import count_text, duration_text, limit_text, per_text, share_text, span_text, usd_text
from headgate.sim.figures import AccountUse, Figures, LearnedLimit, LimitUse, RefusedBy, Spread
from headgate.sim.simulation import Simulated

__all__ = [
    "Comparison",
    "as_object",
    "cost_of_program",
    "curve_of",
    "limits_by_use",
    "print_comparison",
    "rows_of",
    "shown_limits",
    "uses_of",
]

LIMITS_SHOWN = 6
REFUSALS_SHOWN = 6
ACCOUNTS_SHOWN = 6
_CLASSES = ("interactive", "batch")

Row = tuple[str, list[str]]


@dataclass(frozen=True, slots=True)
class Comparison:
    """Scenarios side by side; `truth` says in words what the providers were like, where that was not as configured."""

    title: str
    speed: float
    seed: int
    columns: Sequence[Simulated]
    truth: str = ""

    @property
    def subtitle(self) -> str:
        """What all columns have in common, beside the workload."""
        faster = "" if self.speed == 1 else f"{self.speed:g} times as fast, "
        scales = dict.fromkeys(column.scenario.agents for column in self.columns)
        many = "" if list(scales) == [1] else f"{' and '.join(f'{scale:g}' for scale in scales)} times the agents, "
        return f"{many}{faster}seed {self.seed}" + (f"; {self.truth}" if self.truth else "")

    @property
    def alike(self) -> list[str]:
        """Say which scenarios came out the same to the last figure: in plots one line hides the other."""
        told: list[str] = []
        for number, column in enumerate(self.columns):
            first = next((each for each in self.columns[:number] if each.figures == column.figures), None)
            if first is not None:
                told.append(f"{column.scenario.name}: the same in every figure as {first.scenario.name}")
        return told


def print_comparison(comparison: Comparison) -> None:
    """Print the table on stdout."""
    rows = [[name, *cells] for name, cells in rows_of(comparison.columns)]
    names = [column.scenario.name for column in comparison.columns]
    print(f"{comparison.title}, {comparison.subtitle}")  # noqa: T201 - the answer
    print_table(["", *names], rows, names=1)
    for told in comparison.alike:
        print(told)  # noqa: T201 - the answer


def as_object(comparison: Comparison) -> dict[str, Any]:
    """Give everything, in the words of `sim.figures`."""
    return {
        "workload": comparison.title,
        "speed": comparison.speed,
        "seed": comparison.seed,
        "providers": comparison.truth,
        "scenarios": [
            {"name": column.scenario.name, **asdict(column.scenario), "figures": asdict(column.figures)}
            for column in comparison.columns
        ],
    }


def rows_of(columns: Sequence[Simulated]) -> Iterator[Row]:
    """Give the rows; one that has nothing to say in any column is left out."""
    figures = [column.figures for column in columns]
    for name, cell in _ROWS:
        yield from _said(name, [cell(each) for each in figures])
        if cell is _refused:
            yield from _refusals(figures)
        elif cell is _longest_wait:
            yield from _priorities(figures)
    for use in shown_limits(columns):
        name = limit_text(use.scope, use.models, use.dimension) + per_text(use.per)
        same = [_find(each.limits, use) for each in figures]
        yield f"{name}: used while calls waited", [_share(each, "while_waiting") for each in same]
        yield f"{name}: used overall", [_share(each, "overall") for each in same]
    yield from _learned(figures)
    yield from _accounts(figures)


def _said(name: str, cells: list[str]) -> Iterator[Row]:
    if any(cell != "-" for cell in cells):
        yield name, cells


def _refusals(figures: Sequence[Figures]) -> Iterator[Row]:
    """Say which limit refused, how often and from when on."""
    names = _most(((each.limit, each.calls) for of in figures for each in of.refusals), REFUSALS_SHOWN)
    for name in names:
        found = [next((each for each in of.refusals if each.limit == name), None) for of in figures]
        yield f"  by {limit_told(name)}", [_refusal_text(each) for each in found]
        yield "    from", ["-" if each is None else span_text(each.first_s) for each in found]


def _refusal_text(refusal: RefusedBy | None) -> str:
    if refusal is None:
        return "-"
    many = f" ({refusal.scopes} of them)" if refusal.scopes > 1 else ""
    if is_refilled(refusal.limit):
        return f"{refusal.calls:,} too late{many}"
    # Not how full it was at the first refusal: that is with what was only held, and reads as if it were spent.
    spent = "" if refusal.most_spent is None else f" with {share_text(refusal.most_spent)} spent"
    return f"{refusal.calls:,}{spent}{many}"


def _priorities(figures: Sequence[Figures]) -> Iterator[Row]:
    """Say how long calls of each priority waited, where they differ."""
    names = dict.fromkeys(name for each in figures for name in each.waits_by_priority)
    if len(names) < 2:  # noqa: PLR2004 - of one there is nothing to tell apart
        return
    for name in sorted(names, key=int, reverse=True):
        for part in ("p50_s", "p90_s"):
            spreads = [each.waits_by_priority.get(name) for each in figures]
            cells = [_seconds(None if spread is None else getattr(spread, part)) for spread in spreads]
            yield f"wait at priority {name}, {part.removesuffix('_s')}", cells


def _learned(figures: Sequence[Figures]) -> Iterator[Row]:
    """Say what was known of limits at the end that nobody configured so."""
    keys = dict.fromkeys((each.account, each.models, each.what) for of in figures for each in of.learned)
    for key in list(keys)[:LIMITS_SHOWN]:
        found: list[LearnedLimit | None] = [
            next((each for each in of.learned if (each.account, each.models, each.what) == key), None) for of in figures
        ]
        name = next(learned_text(each) for each in found if each is not None)
        yield f"learned: {name}", ["-" if each is None else f"{each.amount:,} ({each.source})" for each in found]


def _accounts(figures: Sequence[Figures]) -> Iterator[Row]:
    """Say what each account did, where there are several, and what went wrong with it."""
    names = _most(((each.account, each.served) for of in figures for each in of.accounts), ACCOUNTS_SHOWN)
    for name in names:
        found: list[AccountUse | None] = [
            next((each for each in of.accounts if each.account == name), None) for of in figures
        ]
        if len(names) > 1:
            yield (
                f"account {name}: served, from the cache",
                ["-" if each is None else f"{each.served:,}, {share_text(each.cache_hits)}" for each in found],
            )
        yield from _said(
            f"account {name}: failed attempts",
            ["-" if each is None else failures_told(each.failures) for each in found],
        )
        yield from _said(
            f"account {name}: left alone after failures",
            ["-" if not each or not each.pauses else f"{each.pauses} x, {span_text(each.paused_s)}" for each in found],
        )


def _most(counted: Iterable[tuple[str, int]], most: int) -> list[str]:
    """Give the names that were counted most in any column, the first first."""
    highest: dict[str, int] = {}
    for name, count in counted:
        highest[name] = max(count, highest.get(name, 0))
    chosen = sorted(highest, key=lambda name: -highest[name])[:most]
    return [name for name in highest if name in chosen]


def _seconds(seconds: float | None) -> str:
    return "-" if seconds is None else duration_text(seconds)


def _spread(kind: str, name: str, part: str) -> Callable[[Figures], str]:
    def cell(figures: Figures) -> str:
        spread: Spread = getattr(figures, kind)[name]
        return _seconds(getattr(spread, part))

    return cell


def _waits() -> Iterator[tuple[str, Callable[[Figures], str]]]:
    for name in _CLASSES:
        for part in ("p50", "p90", "p99"):
            yield f"wait of {name} calls, {part}", _spread("waits", name, f"{part}_s")


def _optional(value: float | None, text: Callable[[float], str]) -> str:
    return "-" if value is None else text(value)


def cost_of_program(figures: Figures) -> int | None:
    """Give what a finished program cost, with its share of those that did not finish; None where it is not known."""
    done = figures.programs["all"].count
    return round(figures.cost_micro_usd / done) if done and not figures.unknown_cost else None


def _cost_of_program(figures: Figures) -> str:
    cost = cost_of_program(figures)
    return "-" if cost is None else usd_text(cost)


def _count(count: int) -> str:
    return f"{count:,}" if count else "-"


def _refused(figures: Figures) -> str:
    return f"{figures.refused:,}"


def _longest_wait(figures: Figures) -> str:
    return duration_text(figures.longest_wait_s)


def _warmed(figures: Figures) -> str:
    return f"{figures.warmed:,}, {duration_text(figures.warming_s / figures.warmed)}" if figures.warmed else "-"


_ROWS: tuple[tuple[str, Callable[[Figures], str]], ...] = (
    ("calls offered", lambda each: f"{each.offered:,}"),
    ("served", lambda each: f"{each.served:,}"),
    ("refused", _refused),
    ("failed for good", lambda each: _count(each.failed)),
    ("waiting, under way at the end", lambda each: f"{each.waiting:,}, {each.under_way:,}"),
    ("429s from the provider", lambda each: f"{each.answered_429:,}"),
    ("other failures of the provider", lambda each: _count(each.provider_failures)),
    ("tried again", lambda each: _count(each.retries)),
    *_waits(),
    ("longest wait", _longest_wait),
    ("waited for a shared prompt to be cached, mean", _warmed),
    ("programs done", lambda each: f"{each.programs['all'].count:,}"),
    ("programs given up", lambda each: f"{each.programs_given_up:,}"),
    ("a program took, mean", _spread("programs", "all", "mean_s")),
    ("a program took, p50", _spread("programs", "all", "p50_s")),
    ("a program took, p90", _spread("programs", "all", "p90_s")),
    ("served share of a sharer, least", lambda each: _optional(each.least_served, share_text)),
    ("served shares, Jain's index", lambda each: _optional(each.jain, lambda value: f"{value:.3f}")),
    ("behind the most served, mean", lambda each: _optional(each.behind_mean, share_text)),
    ("cost", lambda each: usd_text(each.cost_micro_usd, each.unknown_cost)),
    ("cost of a program", _cost_of_program),
    ("input read from the cache", lambda each: _optional(each.cache_hits, share_text)),
    ("uncached input of a program", lambda each: _optional(each.uncached_per_program, count_text)),
)


def shown_limits(columns: Sequence[Simulated]) -> list[LimitUse]:
    """Choose the limits that were used furthest in any scenario, in the order of the configuration."""
    every: dict[tuple[str, str | None, str, str], tuple[float, LimitUse]] = {}
    for column in columns:
        for use in column.figures.limits:
            furthest = max(use.overall or 0.0, use.while_waiting or 0.0)
            known = every.get(_key(use))
            every[_key(use)] = (max(furthest, known[0] if known else 0.0), known[1] if known else use)
    ranked = sorted(every.values(), key=lambda pair: -pair[0])[:LIMITS_SHOWN]
    chosen = {_key(use) for _, use in ranked}
    return [use for key, (_, use) in every.items() if key in chosen]


def limits_by_use(columns: Sequence[Simulated]) -> list[LimitUse]:
    """Give the limits that are shown, the one that was used furthest in any scenario first."""

    def furthest(use: LimitUse) -> float:
        found = [_find(column.figures.limits, use) for column in columns]
        return max((each.overall or 0.0 for each in found if each is not None), default=0.0)

    return sorted(shown_limits(columns), key=furthest, reverse=True)


def curve_of(figures: Figures, wanted: LimitUse) -> list[float | None]:
    """Give how far a limit was used at each look; nothing where it was not met."""
    curves = zip(figures.series.limits.values(), figures.limits, strict=True)
    return next((curve for curve, use in curves if _key(use) == _key(wanted)), [])


def uses_of(figures: Figures, shown: Sequence[LimitUse]) -> list[LimitUse | None]:
    """Give how these limits were used in one scenario, None where one was not met."""
    return [_find(figures.limits, use) for use in shown]


def _find(limits: Sequence[LimitUse], wanted: LimitUse) -> LimitUse | None:
    return next((use for use in limits if _key(use) == _key(wanted)), None)


def _key(use: LimitUse) -> tuple[str, str | None, str, str]:
    return use.scope, use.models, use.dimension, use.per


def _share(use: LimitUse | None, name: str) -> str:
    share: float | None = None if use is None else getattr(use, name)
    return share_text(share)

"""The comparison as a table for people and as JSON for programs.

One rule: a row is one figure, written the same way in the terminal and on the page; a column is a scenario.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from headgate.cli.tables import print_table
from headgate.cli.wording import count_text, duration_text, limit_text, per_text, share_text, usd_text
from headgate.sim.figures import Figures, LimitUse, Spread
from headgate.sim.simulation import Simulated

__all__ = ["Comparison", "as_object", "print_comparison", "rows_of"]

LIMITS_SHOWN = 6
_CLASSES = ("interactive", "batch")

Row = tuple[str, list[str]]


@dataclass(frozen=True, slots=True)
class Comparison:
    """Scenarios side by side."""

    title: str
    speed: float
    seed: int
    columns: Sequence[Simulated]


def print_comparison(comparison: Comparison) -> None:
    """Print the table on stdout."""
    rows = [[name, *cells] for name, cells in rows_of(comparison.columns)]
    names = [column.scenario.name for column in comparison.columns]
    faster = "" if comparison.speed == 1 else f", {comparison.speed:g} times as fast"
    print(f"{comparison.title}{faster}, seed {comparison.seed}")  # noqa: T201 - the answer
    print_table(["", *names], rows, names=1)


def as_object(comparison: Comparison) -> dict[str, Any]:
    """Give everything, in the words of `sim.figures`."""
    return {
        "workload": comparison.title,
        "speed": comparison.speed,
        "seed": comparison.seed,
        "scenarios": [
            {"name": column.scenario.name, **asdict(column.scenario), "figures": asdict(column.figures)}
            for column in comparison.columns
        ],
    }


def rows_of(columns: Sequence[Simulated]) -> Iterator[Row]:
    """Give the rows; one that has nothing to say in any column is left out."""
    figures = [column.figures for column in columns]
    for name, cell in _ROWS:
        cells = [cell(each) for each in figures]
        if any(each != "-" for each in cells):
            yield name, cells
    for use in _shown(figures):
        name = limit_text(use.scope, use.models, use.dimension) + per_text(use.per)
        same = [_find(each.limits, use) for each in figures]
        yield f"{name}: used while calls waited", [_share(each, "while_waiting") for each in same]
        yield f"{name}: used overall", [_share(each, "overall") for each in same]


def _spread(kind: str, name: str, part: str) -> Callable[[Figures], str]:
    def cell(figures: Figures) -> str:
        spread: Spread = getattr(figures, kind)[name]
        seconds: float | None = getattr(spread, part)
        return "-" if seconds is None else duration_text(seconds)

    return cell


def _waits() -> Iterator[tuple[str, Callable[[Figures], str]]]:
    for name in _CLASSES:
        for part in ("p50", "p90", "p99"):
            yield f"wait of {name} calls, {part}", _spread("waits", name, f"{part}_s")


def _optional(value: float | None, text: Callable[[float], str]) -> str:
    return "-" if value is None else text(value)


def _cost_per_program(figures: Figures) -> str:
    done = figures.programs["all"].count
    return usd_text(round(figures.cost_micro_usd / done)) if done and not figures.unknown_cost else "-"


_ROWS: tuple[tuple[str, Callable[[Figures], str]], ...] = (
    ("calls offered", lambda each: f"{each.offered:,}"),
    ("served", lambda each: f"{each.served:,}"),
    ("refused: too late, or over a budget", lambda each: f"{each.refused:,}"),
    ("waiting, under way at the end", lambda each: f"{each.waiting:,}, {each.under_way:,}"),
    ("429s from the provider", lambda each: f"{each.answered_429:,}"),
    *_waits(),
    ("longest wait", lambda each: duration_text(each.longest_wait_s)),
    ("programs done", lambda each: f"{each.programs['all'].count:,}"),
    ("programs given up", lambda each: f"{each.programs_given_up:,}"),
    ("a program took, mean", _spread("programs", "all", "mean_s")),
    ("a program took, p50", _spread("programs", "all", "p50_s")),
    ("a program took, p90", _spread("programs", "all", "p90_s")),
    ("served share of a sharer, least", lambda each: _optional(each.least_served, share_text)),
    ("served shares, Jain's index", lambda each: _optional(each.jain, lambda value: f"{value:.3f}")),
    ("behind the most served, mean", lambda each: _optional(each.behind_mean, share_text)),
    ("cost", lambda each: usd_text(each.cost_micro_usd, each.unknown_cost)),
    ("cost of a program", _cost_per_program),
    ("input read from the cache", lambda each: _optional(each.cache_hits, share_text)),
    ("uncached input of a program", lambda each: _optional(each.uncached_per_program, count_text)),
)


def _shown(figures: Sequence[Figures]) -> list[LimitUse]:
    """Choose the limits that were used furthest in any scenario, in the order of the configuration."""
    every: dict[tuple[str, str | None, str, str], tuple[float, LimitUse]] = {}
    for each in figures:
        for use in each.limits:
            furthest = max(use.overall or 0.0, use.while_waiting or 0.0)
            known = every.get(_key(use))
            every[_key(use)] = (max(furthest, known[0] if known else 0.0), known[1] if known else use)
    ranked = sorted(every.values(), key=lambda pair: -pair[0])[:LIMITS_SHOWN]
    chosen = {_key(use) for _, use in ranked}
    return [use for key, (_, use) in every.items() if key in chosen]


def _find(limits: Sequence[LimitUse], wanted: LimitUse) -> LimitUse | None:
    return next((use for use in limits if _key(use) == _key(wanted)), None)


def _key(use: LimitUse) -> tuple[str, str | None, str, str]:
    return use.scope, use.models, use.dimension, use.per


def _share(use: LimitUse | None, name: str) -> str:
    share: float | None = None if use is None else getattr(use, name)
    return share_text(share)

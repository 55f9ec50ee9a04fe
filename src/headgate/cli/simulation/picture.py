"""The comparison as one picture (PNG): matplotlib, which the extra `headgate[plot]` brings.

One rule: it shows what the page shows, for where a page cannot be opened; it is drawn without a display.
"""

import io
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from textwrap import wrap
from typing import Any

from headgate.cli.simulation.page import limit_in_words, use_share
from headgate.cli.simulation.table import (
    Comparison,
    cost_of_program,
    curve_of,
    limits_by_use,
    shown_limits,
    uses_of,
)
from headgate.cli.wording import count_text, duration_text, share_text, usd_text
from headgate.core.errors import CallerError
from headgate.sim.figures import Figures, LimitUse
from headgate.sim.simulation import Simulated

__all__ = ["check_picture", "write_picture"]

_WIDTH_INCHES, _ROW_INCHES, _INCHES_PER_BAR = 16.0, 3.4, 0.17
_DOTS_PER_INCH = 110
_LEAST_WAIT_S = 0.01
_WAITS_S = {
    0.01: "no wait",
    0.1: "0.1 s",
    1: "1 s",
    10: "10 s",
    60: "1 min",
    600: "10 min",
    3_600: "1 h",
    36_000: "10 h",
}
_COLORS = 10
"""Then they come again, with dashed lines."""

_NAME_CHARACTERS = 34
_TITLE_CHARACTERS = 70
_HEAD_CHARACTERS = 180
_MOST_IN_MINUTES_S = 6 * 3_600.0


def check_picture(path: Path) -> None:
    """Return if pictures can be drawn, under such a name.

    Raises:
        CallerError: matplotlib is not installed, or the name is of something else.
    """
    if path.suffix.lower() != ".png":
        raise CallerError(f"--png {path}: it is written as PNG; expected a name that ends in .png")
    if find_spec("matplotlib") is None:
        raise CallerError("--png needs matplotlib: pip install 'headgate[plot]', or use --html")


def write_picture(comparison: Comparison, path: Path) -> None:
    """Draw the picture, whole or not at all.

    Raises:
        CallerError: it cannot be written.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # noqa: PLC0415 - an extra, and heavy
    from matplotlib.figure import Figure as Canvas  # noqa: PLC0415 - as above

    columns = comparison.columns
    limits = shown_limits(columns)
    by_use = limits_by_use(columns)
    scarcest, others = by_use[0] if by_use else None, by_use[1:]
    pairs = (len(others) + 1) // 2
    groups = (len(limits), *[1] * pairs, 1, 2, 7)
    rows_inches = [max(_ROW_INCHES, _INCHES_PER_BAR * (len(columns) + 1) * each + 0.6) for each in groups]
    size = (_WIDTH_INCHES, sum(rows_inches) + 1.0)
    canvas = Canvas(figsize=size, dpi=_DOTS_PER_INCH, layout="constrained")
    FigureCanvasAgg(canvas)
    head = [comparison.title, *wrap(comparison.subtitle, _HEAD_CHARACTERS), *comparison.alike]
    canvas.suptitle("\n".join(head), x=0.01, ha="left", fontsize=11)
    axes = canvas.subplots(len(groups), 2, height_ratios=rows_inches)
    _bars(
        axes[0][0],
        "use of each limit while calls waited (overall, where none did)",
        columns,
        [(limit_in_words(limit), _use_of(at, limits)) for at, limit in enumerate(limits)],
        share_text,
        whole=1.0,
    )
    _plot_use(axes[0][1], columns, scarcest)
    for at in range(2 * pairs):
        axis = axes[1 + at // 2][at % 2]
        if at < len(others):
            _plot_use(axis, columns, others[at])
        else:
            axis.set_axis_off()
    below = axes[1 + pairs :]
    _plot_waits(below[0][0], comparison, "interactive")
    _plot_waits(below[0][1], comparison, "batch")
    _plot_waiting(below[1][0], columns)
    programs = [("half up to", _program("p50_s")), ("nine of ten up to", _program("p90_s"))]
    _bars(below[1][1], "time that a program took", columns, programs, duration_text)
    _plot_done_wrong_and_fair(below[2][0], columns)
    _plot_cost(below[2][1], columns)
    canvas.legend(
        *below[1][0].get_legend_handles_labels(), loc="outside lower left", ncols=4, fontsize=9, frameon=False
    )
    drawn = io.BytesIO()
    canvas.savefig(drawn, format="png", metadata={"Software": None})
    try:
        path.write_bytes(drawn.getvalue())
    except OSError as error:
        raise CallerError(f"--png {path}: it cannot be written: {error.strerror or error}") from error


_Part = tuple[str, Callable[[Figures], float | None]]


def _use_of(at: int, limits: Sequence[Any]) -> Callable[[Figures], float | None]:
    def share(figures: Figures) -> float | None:
        use = uses_of(figures, limits)[at]
        return None if use is None else use_share(use)

    return share


def _program(part: str) -> Callable[[Figures], float | None]:
    def seconds(figures: Figures) -> float | None:
        found: float | None = getattr(figures.programs["all"], part)
        return found

    return seconds


def _style(number: int, curves: Sequence[Any] = ()) -> dict[str, Any]:
    """Give the line of a scenario; one that a later one of the same curve hides is wider, so that its edge is seen."""
    same = curves[number + 1 :].count(curves[number]) if curves else 0
    return {"color": f"C{number % _COLORS}", "ls": "-" if number < _COLORS else "--", "lw": 1.4 + 2.4 * same}


def _hours_or_minutes(columns: Sequence[Simulated]) -> tuple[str, float]:
    """Give the unit in which the time is told, and how many seconds it has."""
    longest_s = max((each.figures.series.at_s[-1] for each in columns if each.figures.series.at_s), default=0.0)
    return ("minutes", 60.0) if longest_s < _MOST_IN_MINUTES_S else ("hours", 3_600.0)


def label_text(name: str) -> str:
    """Give a name in at most two lines that fit beside bars; of a longer one its middle is left out."""
    lines = wrap(name, _NAME_CHARACTERS, break_on_hyphens=False)
    if len(lines) > 2:  # noqa: PLR2004 - lines that have room beside a bar
        half = _NAME_CHARACTERS - 1
        lines = [f"{name[:half].rstrip()}…", f"…{name[-half:].lstrip()}"]
    return "\n".join(lines)


def _begin(axis: Any, title: str) -> None:
    axis.set_title("\n".join(wrap(title, _TITLE_CHARACTERS)), loc="left", fontsize=10)
    axis.grid(alpha=0.25)
    axis.tick_params(labelsize=8)
    for side in ("top", "right"):
        axis.spines[side].set_visible(False)


def _plot_use(axis: Any, columns: Sequence[Simulated], limit: LimitUse | None) -> None:
    if limit is None:
        _begin(axis, "no limit is configured")
        return
    unit, unit_s = _hours_or_minutes(columns)
    _begin(axis, f"use of {limit_in_words(limit)}, % over {unit}")
    curves = [curve_of(column.figures, limit) for column in columns]
    for number, column in enumerate(columns):
        percents = [None if each is None else each * 100 for each in curves[number]]
        at = [at_s / unit_s for at_s in column.figures.series.at_s]
        axis.plot(at[: len(percents)], percents, **_style(number, curves))
    axis.axhline(100, color="grey", lw=0.8, ls=":")
    axis.set_ylim(0, None)


def _plot_waiting(axis: Any, columns: Sequence[Simulated]) -> None:
    unit, unit_s = _hours_or_minutes(columns)
    _begin(axis, f"calls waiting, over {unit}")
    curves = [column.figures.series.waiting for column in columns]
    for number, column in enumerate(columns):
        at = [at_s / unit_s for at_s in column.figures.series.at_s]
        axis.plot(at, curves[number], label=column.scenario.name, **_style(number, curves))
    axis.set_ylim(0, None if any(map(any, curves)) else 1)


def _plot_waits(axis: Any, comparison: Comparison, kind: str) -> None:
    _begin(axis, f"waits of {kind} calls: % of them that wait so long at the most")
    axis.set_xlim(0, 100)
    longest_s = 0.0
    curves = [column.figures.wait_curve[kind] for column in comparison.columns]
    for number, curve in enumerate(curves):
        axis.plot(range(len(curve)), [max(each, _LEAST_WAIT_S) for each in curve], **_style(number, curves))
        longest_s = max(longest_s, *curve, 0.0)
    if not any(column.figures.wait_curve[kind] for column in comparison.columns):
        axis.text(50, 0.5, "none", ha="center")
        return
    axis.set_yscale("log")
    axis.set_ylim(_LEAST_WAIT_S * 0.9, max(1.0, longest_s) * 1.3)
    shown = {at_s: text for at_s, text in _WAITS_S.items() if at_s <= max(1.0, longest_s) * 1.3}
    axis.set_yticks(list(shown), list(shown.values()))
    axis.minorticks_off()


def _plot_done_wrong_and_fair(axis: Any, columns: Sequence[Simulated]) -> None:
    counted: list[_Part] = [
        ("calls served", lambda each: each.served),
        ("programs done", lambda each: each.programs["all"].count),
        ("429s from the provider", lambda each: each.answered_429),
        ("other failures of the provider", lambda each: each.provider_failures or None),
        ("calls refused", lambda each: each.refused or None),
    ]
    fair: list[_Part] = [
        ("served share, least served", lambda each: each.least_served),
        ("Jain's index", lambda each: each.jain),
    ]
    parts = [part for part in counted if any(part[1](column.figures) is not None for column in columns)]
    most = {name: max((of(column.figures) or 0.0 for column in columns), default=0.0) or 1.0 for name, of in parts}
    lengths: list[_Part] = [(name, _scaled(of, most[name])) for name, of in parts] + fair
    texts = dict(parts)

    def told(name: str, figures: Figures) -> str:
        if name in texts:
            return f"{texts[name](figures) or 0:,.0f}"
        value = dict(fair)[name](figures)
        return "-" if value is None else f"{value:.3f}" if name == "Jain's index" else share_text(value)

    _bars(axis, "what was done, what went wrong, and fairness", columns, lengths, None, whole=1.0, told=told)


def _scaled(of: Callable[[Figures], float | None], most: float) -> Callable[[Figures], float | None]:
    return lambda figures: (of(figures) or 0.0) / most


def _plot_cost(axis: Any, columns: Sequence[Simulated]) -> None:
    parts: list[_Part] = [
        ("cost in all", lambda each: each.cost_micro_usd),
        ("cost of a program", cost_of_program),
        ("input read from the cache", lambda each: each.cache_hits),
        ("uncached input of a program", lambda each: each.uncached_per_program),
    ]
    most = {name: max((of(column.figures) or 0.0 for column in columns), default=0.0) or 1.0 for name, of in parts}
    most["input read from the cache"] = 1.0

    def told(name: str, figures: Figures) -> str:
        value = dict(parts)[name](figures)
        if value is None:
            return "-"
        if name == "input read from the cache":
            return share_text(value)
        if name == "cost in all":
            return usd_text(round(value), figures.unknown_cost)
        return usd_text(round(value)) if name == "cost of a program" else count_text(value)

    lengths: list[_Part] = [(name, _scaled(of, most[name])) for name, of in parts]
    _bars(axis, "cost and prompt cache", columns, lengths, None, whole=1.0, told=told)


def _bars(
    axis: Any,
    title: str,
    columns: Sequence[Simulated],
    parts: Sequence[_Part],
    text: Callable[[float], str] | None,
    *,
    whole: float | None = None,
    told: Callable[[str, Figures], str] | None = None,
) -> None:
    """Draw a group of bars for each part, in it one for each scenario, from the top."""
    _begin(axis, title)
    axis.grid(visible=False)
    places, names = [], []
    place = longest = 0.0
    for name, of in parts:
        places.append(place + (len(columns) - 1) / 2)
        names.append(label_text(name))
        for number, column in enumerate(columns):
            length = of(column.figures)
            longest = max(longest, length or 0.0)
            label = "-" if length is None else text(length) if text is not None else ""
            if told is not None:
                label = told(name, column.figures)
            bar = axis.barh(place, length or 0.0, height=0.82, color=_style(number)["color"])
            axis.bar_label(bar, labels=[f" {label}"], fontsize=8)
            place += 1
        place += 0.8
    axis.set_yticks(places, names)
    axis.set_ylim(place - 0.6, -0.8)
    axis.set_xlim(0, (whole or longest or 1.0) * 1.18)  # room for the figures at the ends
    axis.set_xticks([])
    axis.spines["bottom"].set_visible(False)

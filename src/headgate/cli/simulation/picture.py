"""The comparison as one picture (PNG): matplotlib, which the extra `headgate[plot]` brings.

One rule: it shows what the page shows, for where a page cannot be opened; it is drawn without a display.
"""

import io
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from headgate.cli.simulation.page import limit_in_words, scarcest
from headgate.cli.simulation.table import Comparison
from headgate.core.errors import CallerError

__all__ = ["check_picture", "write_picture"]

_SIZE_INCHES = (13.0, 9.5)
_DOTS_PER_INCH = 110
_LEAST_WAIT_S = 0.01


def check_picture() -> None:
    """Return if pictures can be drawn.

    Raises:
        CallerError: matplotlib is not installed.
    """
    if find_spec("matplotlib") is None:
        raise CallerError("--png needs matplotlib: pip install 'headgate[plot]', or use --html")


def write_picture(comparison: Comparison, path: Path) -> None:
    """Draw the picture, whole or not at all.

    Raises:
        CallerError: it cannot be written.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # noqa: PLC0415 - an extra, and heavy
    from matplotlib.figure import Figure  # noqa: PLC0415 - as above

    figure = Figure(figsize=_SIZE_INCHES, dpi=_DOTS_PER_INCH, layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(f"{comparison.title}, seed {comparison.seed}")
    axes = figure.subplots(3, 2)
    _plot_use(axes[0][0], comparison)
    _plot_waiting(axes[0][1], comparison)
    _plot_waits(axes[1][0], comparison, "interactive")
    _plot_waits(axes[1][1], comparison, "batch")
    _plot_programs(axes[2][0], comparison)
    _plot_cost(axes[2][1], comparison)
    figure.legend(*axes[0][1].get_legend_handles_labels(), loc="outside lower center", ncols=4, fontsize=9)
    drawn = io.BytesIO()
    figure.savefig(drawn, format="png", metadata={"Software": None})
    try:
        path.write_bytes(drawn.getvalue())
    except OSError as error:
        raise CallerError(f"--png {path}: it cannot be written: {error.strerror or error}") from error


def _plot_use(axis: Any, comparison: Comparison) -> None:
    name, use = scarcest(comparison.columns)
    for column in comparison.columns:
        series = column.figures.series
        shares = series.limits.get(name, [])
        axis.plot(
            [at_s / 60 for at_s in series.at_s], [None if each is None else each * 100 for each in shares], lw=1.3
        )
    axis.axhline(100, color="grey", lw=0.8, ls="--")
    title = "no limit is configured" if use is None else f"use of {limit_in_words(use)}, %"
    axis.set(title=title, xlabel="minutes", ylim=(0, None))
    axis.grid(alpha=0.25)


def _plot_waiting(axis: Any, comparison: Comparison) -> None:
    for column in comparison.columns:
        series = column.figures.series
        axis.plot([at_s / 60 for at_s in series.at_s], series.waiting, lw=1.3, label=column.scenario.name)
    axis.set(title="calls waiting", xlabel="minutes", ylim=(0, None))
    axis.grid(alpha=0.25)


def _plot_waits(axis: Any, comparison: Comparison, kind: str) -> None:
    axis.set(title=f"waits of {kind} calls", xlabel="% of the calls wait up to", xlim=(0, 100))
    axis.grid(alpha=0.25)
    drawn = False
    for column in comparison.columns:
        curve = column.figures.wait_curve[kind]
        axis.plot(range(len(curve)), [max(each, _LEAST_WAIT_S) for each in curve], lw=1.3)
        drawn = drawn or bool(curve)
    if drawn:
        axis.set_yscale("log")
        axis.set_ylabel("seconds")
    else:
        axis.text(50, 0.5, "none", ha="center")


def _plot_programs(axis: Any, comparison: Comparison) -> None:
    names = [column.scenario.name for column in comparison.columns]
    places = list(range(len(names)))
    for offset, part in ((-0.2, "p50_s"), (0.2, "p90_s")):
        spreads = [column.figures.programs["all"] for column in comparison.columns]
        heights = [getattr(spread, part) or 0.0 for spread in spreads]
        bars = axis.bar([place + offset for place in places], heights, width=0.36, label=part.removesuffix("_s"))
        axis.bar_label(bars, fmt="%.0f", fontsize=8)
    axis.set(title="seconds that a program took", xticks=places)
    axis.set_xticklabels(names, fontsize=8, rotation=20 if len(names) > 4 else 0)  # noqa: PLR2004 - beyond, they touch
    axis.legend(fontsize=8)


def _plot_cost(axis: Any, comparison: Comparison) -> None:
    names = [column.scenario.name for column in comparison.columns]
    places = list(range(len(names)))
    heights = [column.figures.uncached_per_program or 0.0 for column in comparison.columns]
    bars = axis.bar(places, heights, width=0.6, color="tab:purple")
    dollars = [f"${column.figures.cost_micro_usd / 1e6:,.2f}" for column in comparison.columns]
    done = [column.figures.programs["all"].count for column in comparison.columns]
    told = [f"{count:,} done\n{cost}" for count, cost in zip(done, dollars, strict=True)]
    axis.bar_label(bars, labels=told, fontsize=8)
    axis.set(title="uncached input tokens of a program; programs done, cost in all", xticks=places)
    axis.set_ylim(0, max([*heights, 1.0]) * 1.25)
    axis.set_xticklabels(names, fontsize=8, rotation=20 if len(names) > 4 else 0)  # noqa: PLR2004 - beyond, they touch

"""The report as one HTML page that needs no network: figures, plots and every agent, light and dark.

One rule: whatever came from outside (names, errors) goes in escaped, or as data that the script shows as text.
"""

import html
import json
import os
import tempfile
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.resources import files
from pathlib import Path
from typing import Any

from headgate.cli.report.figures import AgentFigures, LimitFigures, RunFigures
from headgate.cli.report.logs import log_of
from headgate.cli.report.series import LimitSeries, Series, series_of
from headgate.cli.wording import (
    amount_text,
    count_text,
    duration_text,
    limit_text,
    per_text,
    share_text,
    told_text,
    usd_text,
)

__all__ = ["page_of", "write_page"]

_HERE = "headgate.cli.report"
_MOST_AGENTS = 20_000
_MOST_LIMITS = 500
_ERROR_CHARACTERS = 300
_USES = ("use while calls waited", "average use", "highest level")


def write_page(figures: RunFigures, path: Path) -> None:
    """Write the page into the run's folder, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, unfinished = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(page_of(figures, path.parent))
        Path(unfinished).replace(path)
    except OSError:
        Path(unfinished).unlink(missing_ok=True)
        raise


def page_of(figures: RunFigures, folder: Path | None = None) -> str:
    """Give the page; with the run's `folder`, in which it will lie, it leads to the logs of what failed."""
    report = figures.report
    what = f"{report.what} · " if report.what else ""
    began = datetime.fromtimestamp(figures.began_s, UTC).strftime("began %Y-%m-%d %H:%M:%S UTC")
    took = duration_text(figures.took_s)
    if figures.paused_s:
        took += f" of work in {duration_text(figures.elapsed_s)}"
    when = f"{report.why} after {took} · {began}" if figures.began_s else "not begun"
    parts = {
        "TITLE": html.escape(f"Headgate: {report.run}"),
        "HEADING": html.escape(report.run),
        "SUBTITLE": html.escape(f"{what}{when}"),
        "TILES": "".join(_tiles(figures)),
        "NOTES": "".join(f'<p class="note">{html.escape(note)}</p>' for note in _notes(figures)),
        "LIMITS": _limits(figures.limits, report.run),
        "FOOTER": "Made by Headgate from its ledger. Plots by uPlot.",
        "LICENCE": _file("vendor/uplot-LICENSE").replace("--", "- -"),
        "STYLE": _file("vendor/uplot-1.6.32.min.css") + _file("page.css"),
        "DATA": _script_safe(json.dumps(_data(figures, series_of(figures), folder), ensure_ascii=False)),
        "UPLOT": _file("vendor/uplot-1.6.32.min.js"),
        "SCRIPT": _file("page.js"),
    }
    # One pass from left to right: a marker inside what was put in is left alone.
    pieces = _file("page.html").split("%%")
    return "".join(parts[piece] if number % 2 else piece for number, piece in enumerate(pieces))


def _file(name: str) -> str:
    return files(_HERE).joinpath(name).read_text(encoding="utf-8")


def _script_safe(text: str) -> str:
    """Keep JSON from ending the script element that it stands in."""
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _tiles(figures: RunFigures) -> list[str]:
    states, total, provider = figures.states, figures.total, figures.report.provider
    jobs = sum(states.values())
    tiles = [
        _tile(f"{states['done']} / {jobs}", "jobs done", "good" if states["done"] == jobs else ""),
        _tile(str(states["failed"]), "failed", "bad" if states["failed"] else ""),
        _tile(duration_text(figures.took_s), "at work"),
        _tile(count_text(total.calls), "calls"),
        _tile(count_text(total.prompt_tokens), "prompt tokens"),
        _tile(count_text(total.output_tokens), "output tokens"),
        _tile(usd_text(total.cost_micro_usd, total.unknown_cost), "cost"),
        _tile(duration_text(figures.wait_quantile_s(0.5)), "waited, half of the calls up to"),
        _tile(duration_text(figures.wait_quantile_s(0.95)), "waited, 95 % up to"),
    ]
    if provider is not None:
        tiles.append(_tile(str(provider.refused), "429s from the provider", "bad" if provider.refused else "good"))
    return tiles


def _tile(figure: str, word: str, kind: str = "") -> str:
    return f'<div class="tile"><b class="{kind}">{html.escape(figure)}</b><span>{html.escape(word)}</span></div>'


def _notes(figures: RunFigures) -> list[str]:
    report, notes = figures.report, []
    if report.simulated:
        notes.append("This run used the simulated provider: nothing was spent, costs are what a real one would charge.")
    if report.provider is not None:
        counted = report.provider
        notes.append(
            f"The provider itself counted {counted.served:,} calls served, {counted.refused:,} refused, "
            f"{counted.input_tokens:,} prompt tokens and {counted.output_tokens:,} output tokens."
        )
    if figures.estimated_calls:
        notes.append(f"{figures.estimated_calls:,} calls told no usage; they count as estimated.")
    if figures.total.unknown_cost:
        notes.append(
            f"The price of {figures.total.unknown_cost:,} calls is not known; costs are at least what is shown."
        )
    return notes


def _limits(limits: Sequence[LimitFigures], run: str) -> str:
    if not limits:
        return "<p>No limit was configured.</p>"
    names = ("limit", "amount", "used by this run", "used by all", *_USES)
    head = "".join(f'<th class="{"word" if name == "limit" else ""}">{name}</th>' for name in names)
    ranked = sorted(limits, key=lambda limit: -(limit.use.highest or 0.0))
    rows = "".join(_limit_row(limit, run) for limit in ranked[:_MOST_LIMITS])
    more = f"<p>and {len(ranked) - _MOST_LIMITS} more</p>" if len(ranked) > _MOST_LIMITS else ""
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>{more}'


def _limit_row(limit: LimitFigures, run: str) -> str:
    highest = min(1.0, limit.use.highest or 0.0)
    meter = f'<span class="meter"><i style="width:{highest * 100:.1f}%"></i></span>'
    by_all = limit.level_used if limit.kind == "window" else None
    cells = (
        f"{amount_text(limit.dimension, limit.amount)}{per_text(limit.per)}",
        "-" if limit.kind == "gauge" else amount_text(limit.dimension, limit.used),
        "-" if by_all is None else amount_text(limit.dimension, by_all),
        share_text(limit.use.while_waiting),
        share_text(limit.use.average),
        share_text(limit.use.highest),
    )
    name = html.escape(limit_text(limit.scope, limit.models, limit.dimension, run))
    shown = [f"<td>{html.escape(cell)}</td>" for cell in cells]
    shown[-1] = shown[-1].replace("<td>", f"<td>{meter}")
    return f'<tr><td class="word">{name}</td>{"".join(shown)}</tr>'


def _data(figures: RunFigures, series: Series, folder: Path | None) -> dict[str, Any]:
    total = figures.total
    in_dollars = figures.total.cost_micro_usd > 0
    dearest = sorted(figures.agents, key=lambda agent: -_weight(agent, in_dollars=in_dollars))[:_MOST_AGENTS]
    return {
        "elapsed_s": round(figures.elapsed_s, 1),
        "smooth_s": series.smooth_s,
        "x": series.bins.middles_s() if figures.elapsed_s else [],
        "pauses": [[round(at_s - figures.began_s, 3) for at_s in pause] for pause in series.pauses],
        "whole": _whole(figures, series),
        "working": _rounded(series.working),
        "waiting": _rounded(series.waiting),
        "calling": _rounded(series.calling),
        "mean_wait_s": _rounded(series.mean_wait_s),
        "longest_wait_s": _rounded(series.longest_wait_s),
        "limits": [
            {
                "label": f"{limit_text(each.limit.scope, each.limit.models, each.limit.dimension, figures.report.run)}"
                f"{per_text(each.limit.per)}",
                "shares": _rounded(each.shares),
                "whole": _whole_of_limit(each),
            }
            for each in series.limits
        ],
        "wait_labels": [*(f"≤{edge:g}s" for edge in series.wait_edges_s), f">{series.wait_edges_s[-1]:g}s"],
        "wait_counts": series.wait_counts if figures.total.calls else [],
        "costs": {
            "in_dollars": in_dollars,
            "names": [agent.name for agent in dearest] if figures.total.calls else [],
            "values": [_weight(agent, in_dollars=in_dollars) for agent in dearest],
            "texts": [_weight_text(agent, in_dollars=in_dollars) for agent in dearest],
            "total": f"{_weight_text(total, in_dollars=in_dollars)} in all",
        },
        "agents": [_agent(agent, folder, figures.report.run) for agent in figures.agents[:_MOST_AGENTS]],
    }


def _weight(agent: AgentFigures, *, in_dollars: bool) -> int:
    return agent.cost_micro_usd if in_dollars else agent.prompt_tokens + agent.output_tokens


def _weight_text(agent: AgentFigures, *, in_dollars: bool) -> str:
    if in_dollars:
        return usd_text(agent.cost_micro_usd, agent.unknown_cost)
    return count_text(_weight(agent, in_dollars=False))


def _whole(figures: RunFigures, series: Series) -> dict[str, str]:
    """Say of each series what it was over the whole run: what its legend shows while nobody points at the plot."""
    total = figures.total

    def mean(values: Sequence[float]) -> str:
        return f"{sum(values) * series.bins.step_s / figures.took_s:.1f} on average" if figures.took_s else "-"

    return {
        "working": mean(series.working),
        "waiting": mean(series.waiting),
        "calling": mean(series.calling),
        "mean_wait_s": duration_text(total.wait_s / total.calls) if total.calls else "-",
        "longest_wait_s": duration_text(total.longest_wait_s),
        "calls": f"{count_text(total.calls)} in all",
    }


def _whole_of_limit(series: LimitSeries) -> str:
    if series.limit.use.average is None:
        return f"{share_text(series.shares[-1])} at the end"
    return f"{share_text(series.limit.use.average)} on average"


def _agent(agent: AgentFigures, folder: Path | None, run: str) -> dict[str, Any]:
    log = log_of(folder, agent) if folder is not None else None
    return {
        "name": agent.name,
        "state": agent.state,
        "tries": agent.attempts,
        "error": None if agent.error is None else told_text(agent.error, run)[:_ERROR_CHARACTERS],
        "log": None if folder is None or log is None else log.relative_to(folder).as_posix(),
        "calls": agent.calls,
        "prompt": agent.prompt_tokens,
        "cached": agent.cached_tokens,
        "output": agent.output_tokens,
        "cost": agent.cost_micro_usd,
        "cost_text": usd_text(agent.cost_micro_usd, agent.unknown_cost),
        "wait_s": round(agent.wait_s, 3),
        "longest_s": round(agent.longest_wait_s, 3),
        "took_s": round(agent.took_s, 3),
    }


def _rounded(values: Sequence[float | None]) -> list[float | None]:
    return [None if value is None else round(value, 4) for value in values]

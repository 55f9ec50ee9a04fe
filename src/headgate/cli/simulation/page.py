"""The comparison as one HTML page that needs no network: figures and plots, light and dark.

One rule: what came from outside goes in escaped, or as data that the script shows as text. Style and plots are those of
a run's report.
"""

import html
import json
import os
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from headgate.cli.simulation.table import (
    Comparison,
    cost_of_program,
    curve_of,
    limits_by_use,
    rows_of,
    shown_limits,
    uses_of,
)
from headgate.cli.wording import limit_text, per_text
from headgate.core.errors import CallerError
from headgate.sim.figures import Figures, LimitUse
from headgate.sim.simulation import Simulated

__all__ = ["limit_in_words", "page_of", "use_share", "write_page"]

_LONG_CHARACTERS = 14
NO_BREAK = "\u00a0"

_HERE, _REPORT = "headgate.cli.simulation", "headgate.cli.report"


def write_page(comparison: Comparison, path: Path) -> None:
    """Write the page, whole or not at all.

    Raises:
        CallerError: it cannot be written.
    """
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        try:
            unfinished.write_text(page_of(comparison), encoding="utf-8")  # its mode is as of any file of its owner's
            unfinished.replace(path)
        except OSError:
            unfinished.unlink(missing_ok=True)
            raise
    except OSError as error:
        raise CallerError(f"--html {path}: it cannot be written: {error.strerror or error}") from error


def page_of(comparison: Comparison) -> str:
    """Give the page."""
    parts = {
        "TITLE": html.escape(f"Headgate: {comparison.title}"),
        "HEADING": html.escape(comparison.title),
        "SUBTITLE": html.escape(f"simulated, {comparison.subtitle}"),
        "ALIKE": "".join(f'<p class="alike">{html.escape(told)}</p>' for told in comparison.alike),
        "TABLE": _table(comparison.columns),
        "LICENCE": _file(_REPORT, "vendor/uplot-LICENSE").replace("--", "- -"),
        "STYLE": _file(_REPORT, "vendor/uplot-1.6.32.min.css") + _file(_REPORT, "page.css") + _file(_HERE, "page.css"),
        "DATA": _script_safe(json.dumps(_data(comparison.columns))),
        "UPLOT": _file(_REPORT, "vendor/uplot-1.6.32.min.js"),
        "SCRIPT": _file(_HERE, "page.js"),
    }
    # One pass from left to right: a marker inside what was put in is left alone.
    pieces = _file(_HERE, "page.html").split("%%")
    return "".join(parts[piece] if number % 2 else piece for number, piece in enumerate(pieces))


def limit_in_words(use: LimitUse) -> str:
    """Name a limit."""
    return limit_text(use.scope, use.models, use.dimension) + per_text(use.per)


def _table(columns: Sequence[Simulated]) -> str:
    heads = "".join(f"<th>{html.escape(column.scenario.name)}</th>" for column in columns)
    rows = ""
    for name, cells in rows_of(columns):
        shown = "".join(map(_cell, cells))
        kind = "word part" if name.startswith(" ") else "word"
        rows += f'<tr><td class="{kind}">{html.escape(name.strip())}</td>{shown}</tr>'
    return f'<table><thead><tr><th class="word"></th>{heads}</tr></thead><tbody>{rows}</tbody></table>'


def _cell(text: str) -> str:
    kind = ' class="long"' if len(text) > _LONG_CHARACTERS else ""
    return f"<td{kind}>{html.escape(text.replace(' %', NO_BREAK + '%'))}</td>"


def _data(columns: Sequence[Simulated]) -> dict[str, Any]:
    shown, by_use = shown_limits(columns), limits_by_use(columns)
    return {
        "plotted": [limit_in_words(use) for use in by_use],
        "limits": [limit_in_words(use) for use in shown],
        "scenarios": [
            {
                "name": column.scenario.name,
                **_series(column.figures),
                "uses": [curve_of(column.figures, use) for use in by_use],
                "limits": [None if use is None else use_share(use) for use in uses_of(column.figures, shown)],
                **_totals(column.figures),
            }
            for column in columns
        ],
    }


def _series(figures: Figures) -> dict[str, Any]:
    series = figures.series
    return {
        "at_s": series.at_s,
        "waiting": series.waiting,
        "served": series.served_per_minute,
        "failures": series.failures_per_minute,
        "interactive": figures.wait_curve["interactive"],
        "batch": figures.wait_curve["batch"],
    }


def _totals(figures: Figures) -> dict[str, Any]:
    return {
        "answered_429": figures.answered_429,
        "provider_failures": figures.provider_failures,
        "served_calls": figures.served,
        "programs_done": figures.programs["all"].count,
        "refused": figures.refused,
        "failed": figures.failed,
        "programs": [figures.programs["all"].p50_s, figures.programs["all"].p90_s],
        "least_served": figures.least_served,
        "jain": figures.jain,
        "behind": figures.behind_mean,
        "cost": figures.cost_micro_usd,
        "unknown_cost": figures.unknown_cost,
        "cost_of_program": cost_of_program(figures),
        "cache_hits": figures.cache_hits,
        "uncached": figures.uncached_per_program,
    }


def use_share(use: LimitUse) -> float | None:
    """Give how far a limit was used while calls waited, or overall where none did."""
    return use.overall if use.while_waiting is None else use.while_waiting


def _file(package: str, name: str) -> str:
    return files(package).joinpath(name).read_text(encoding="utf-8")


def _script_safe(text: str) -> str:
    """Keep JSON from ending the script element that it stands in."""
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")

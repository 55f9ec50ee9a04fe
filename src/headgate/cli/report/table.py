"""The report on the terminal and as JSON.

One rule: however many agents there were, it fits a screen or two; the page and the JSON have all of them.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from headgate.cli.report.figures import AgentFigures, LimitFigures, RunFigures
from headgate.cli.report.logs import log_of, shown_path
from headgate.cli.wording import (
    amount_text,
    count_text,
    duration_text,
    limit_text,
    per_text,
    share_text,
    usd_text,
)

__all__ = ["as_json", "print_report"]

_AGENTS_SHOWN = 20
_LIMITS_SHOWN = 12
_FAILURES_SHOWN = 10
_ERROR_CHARACTERS = 200
# What a narrow terminal can do without: the page and the JSON have it.
_WIDE_CELLS = 100
_LEAST_NAME_CELLS = 12
_ONLY_WHERE_WIDE = frozenset({"tries", "longest", "cached"})
_STATE_STYLES = {"done": "green", "failed": "red", "running": "cyan"}


def print_report(figures: RunFigures, console: Console, *, page: str | None = None, folder: Path | None = None) -> None:
    """Print agents, limits and totals; `page` is where the page lies, `folder` the run's, which else is the page's."""
    if folder is None and page is not None:
        folder = Path(page).parent
    console.print()
    console.print(_agents_table(figures, console.width))
    for text in _failures(figures.agents, folder):
        console.print(text, soft_wrap=True)
    if figures.limits:
        console.print()
        console.print(_limits_table(figures))
    console.print()
    for text in _closing(figures):
        console.print(text, soft_wrap=True)
    if page is not None:
        console.print(Text.assemble(("report ", "dim"), shown_path(Path(page))), soft_wrap=True)


def as_json(figures: RunFigures, folder: Path | None = None) -> dict[str, Any]:
    """Give the whole report as JSON has it; what is unknown is null. With the run's `folder`, where the logs are."""
    report, total = figures.report, figures.total
    return {
        "run": report.run,
        "why": report.why,
        "simulated": report.simulated,
        "jobs": figures.states,
        "took_s": round(figures.took_s, 3),
        "total": _sums(total),
        "estimated_calls": figures.estimated_calls,
        "wait_s": {
            "p50": round(figures.wait_quantile_s(0.5), 3),
            "p95": round(figures.wait_quantile_s(0.95), 3),
            "longest": round(total.longest_wait_s, 3),
        },
        "limits": [
            {
                "scope": limit.scope,
                "models": limit.models,
                "dimension": limit.dimension,
                "kind": limit.kind,
                "amount": limit.amount,
                "per": limit.per,
                "used": limit.used,
                "level_used": limit.level_used,
                "highest_share": _rounded(limit.use.highest),
                "average_share": _rounded(limit.use.average),
                "share_while_waiting": _rounded(limit.use.while_waiting),
            }
            for limit in figures.limits
        ],
        "provider": None
        if report.provider is None
        else {
            "served": report.provider.served,
            "refused": report.provider.refused,
            "input_tokens": report.provider.input_tokens,
            "output_tokens": report.provider.output_tokens,
        },
        "agents": [
            {
                "name": agent.name,
                "state": agent.state,
                "attempts": agent.attempts,
                "exit_code": agent.exit_code,
                "error": agent.error,
                "took_s": round(agent.took_s, 3),
                **_log(agent, folder),
                **_sums(agent),
            }
            for agent in figures.agents
        ],
    }


def _sums(agent: AgentFigures) -> dict[str, Any]:
    return {
        "requests": agent.calls,
        "failed_requests": agent.failed_calls,
        "prompt_tokens": agent.prompt_tokens,
        "cache_read_tokens": agent.cached_tokens,
        "output_tokens": agent.output_tokens,
        "cost_micro_usd": agent.cost_micro_usd,
        "unknown_cost": agent.unknown_cost,
        "wait_ms": round(agent.wait_s * 1000),
    }


def _log(agent: AgentFigures, folder: Path | None) -> dict[str, str]:
    log = log_of(folder, agent) if folder is not None else None
    return {} if log is None else {"log": str(log)}


def _rounded(share: float | None) -> float | None:
    return None if share is None else round(share, 4)


def _agents_table(figures: RunFigures, width: int) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold", show_footer=len(figures.agents) > 1)
    total = _agent_cells(figures.total)
    total["agent"], total["state"], total["took"] = Text("total"), Text(""), Text(duration_text(figures.took_s))
    columns = [name for name in total if width >= _WIDE_CELLS or name not in _ONLY_WHERE_WIDE]
    for name in columns:
        words = name in ("agent", "state")
        table.add_column(name, total[name], justify="left" if words else "right", no_wrap=True, overflow="ellipsis")
    shown = _shown(figures.agents)
    rows = [_agent_cells(agent) for agent in shown]
    # Names give way to figures: a name that is cut still tells which one it is, half a number tells a lie.
    taken = sum(2 + max(len(name), *(row[name].cell_len for row in [total, *rows])) for name in columns[1:])
    table.columns[0].max_width = max(_LEAST_NAME_CELLS, width - taken)
    for cells in rows:
        table.add_row(*(cells[name] for name in columns))
    more = len(figures.agents) - len(shown)
    if more:
        table.add_row(Text(f"and {more} more", style="dim"))
    return table


def _failures(agents: Sequence[AgentFigures], folder: Path | None) -> list[Text]:
    failed = [agent for agent in agents if agent.state == "failed" and agent.error]
    lines = []
    for agent in failed[:_FAILURES_SHOWN]:
        lines.append(Text.assemble((f"{agent.name} failed: ", "red"), (agent.error or "")[:_ERROR_CHARACTERS]))
        log = log_of(folder, agent) if folder is not None else None
        if log is not None:
            lines.append(Text.assemble(("  log ", "dim"), shown_path(log)))
    if len(failed) > _FAILURES_SHOWN:
        lines.append(Text(f"and {len(failed) - _FAILURES_SHOWN} more failed", style="red"))
    return lines


def _shown(agents: Sequence[AgentFigures]) -> list[AgentFigures]:
    """Give all agents where they are few; else those that failed and those that cost most, in their own order."""
    if len(agents) <= _AGENTS_SHOWN:
        return list(agents)
    ranked = sorted(agents, key=lambda agent: (agent.state != "failed", -agent.cost_micro_usd, -agent.prompt_tokens))
    chosen = {id(agent) for agent in ranked[:_AGENTS_SHOWN]}
    return [agent for agent in agents if id(agent) in chosen]


def _agent_cells(agent: AgentFigures) -> dict[str, Text]:
    texts = {
        "tries": str(agent.attempts),
        "calls": count_text(agent.calls),
        "tokens in": count_text(agent.prompt_tokens),
        "cached": _cached(agent),
        "out": count_text(agent.output_tokens),
        "cost": usd_text(agent.cost_micro_usd, agent.unknown_cost),
        "waited": duration_text(agent.wait_s),
        "longest": duration_text(agent.longest_wait_s),
        "took": duration_text(agent.took_s),
    }
    state = Text(agent.state, style=_STATE_STYLES.get(agent.state, ""))
    return {"agent": Text(agent.name), "state": state, **{name: Text(text) for name, text in texts.items()}}


def _cached(agent: AgentFigures) -> str:
    return share_text(agent.cached_tokens / agent.prompt_tokens) if agent.prompt_tokens else "-"


def _limits_table(figures: RunFigures) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("limit", min_width=20, overflow="fold")
    for name in ("amount", "used", "fullest", "average", "while\nwaiting"):
        table.add_column(name, justify="right", no_wrap=True)
    ranked = sorted(figures.limits, key=lambda limit: -(limit.use.highest or 0.0))
    shown = {id(limit) for limit in ranked[:_LIMITS_SHOWN]}
    for limit in figures.limits:
        if id(limit) in shown:
            table.add_row(*_limit_cells(limit))
    if len(ranked) > len(shown):
        table.add_row(Text(f"and {len(ranked) - len(shown)} more, none of them used further", style="dim"))
    return table


def _limit_cells(limit: LimitFigures) -> list[Text]:
    highest = Text(share_text(limit.use.highest))
    used = "-" if limit.kind == "gauge" else amount_text(limit.dimension, limit.used)
    if limit.kind == "window" and limit.level_used is not None and limit.level_used != limit.used:
        used += f" ({amount_text(limit.dimension, limit.level_used)} by all)"
    return [
        Text(limit_text(limit.scope, limit.models, limit.dimension)),
        Text(f"{amount_text(limit.dimension, limit.amount)}{per_text(limit.per)}"),
        Text(used),
        highest,
        Text(share_text(limit.use.average)),
        Text(share_text(limit.use.while_waiting)),
    ]


def _closing(figures: RunFigures) -> list[Text]:
    report, states, total = figures.report, figures.states, figures.total
    outcome = Text.assemble((report.run, "bold"), f"  {report.why} after {duration_text(figures.took_s)}: ")
    outcome.append(f"{states['done']} done", style="green")
    outcome.append(", ")
    outcome.append(f"{states['failed']} failed", style="red" if states["failed"] else "")
    left = states["queued"] + states["running"]
    if left:
        outcome.append(f", {left} to do (headgate resume {report.run})", style="yellow")
    waits = Text(
        f"waits: half of the calls up to {duration_text(figures.wait_quantile_s(0.5))}, "
        f"95 % up to {duration_text(figures.wait_quantile_s(0.95))}, "
        f"the longest {duration_text(total.longest_wait_s)}"
    )
    lines = [outcome, waits] if total.calls else [outcome]
    if states["failed"]:
        lines.append(Text(f"to try what failed again: headgate resume {report.run} --retry-failed"))
    if figures.estimated_calls:
        lines.append(Text(f"{figures.estimated_calls} calls told no usage: they count as estimated", style="yellow"))
    provider = report.provider
    if provider is not None:
        lines.append(
            Text.assemble(
                f"the simulated provider served {count_text(provider.served)} calls and refused ",
                (f"{provider.refused} with 429", "bold red" if provider.refused else "green"),
                f"; it counted {count_text(provider.input_tokens)} tokens in, {count_text(provider.output_tokens)} out",
            )
        )
    elif report.simulated:
        lines.append(Text("no provider key in the environment: this used the simulated provider"))
    return lines

"""The report on the terminal and as JSON.

One rule: however many agents there were, it fits a screen or two; the page and the JSON have all of them.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text

from headgate.cli.report.figures import AgentFigures, LimitFigures, RunFigures
from headgate.cli.report.logs import log_of, shown_path
from headgate.cli.tables import print_fitted
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

__all__ = ["as_json", "print_report"]

_AGENTS_SHOWN = 20
_LIMITS_SHOWN = 12
_FAILURES_SHOWN = 10
_ERROR_CHARACTERS = 200
# What matters most comes first: a narrow terminal leaves out the last ones, and says so.
_AGENT_COLUMNS = ("tries", "calls", "cost", "waited", "took", "prompt tokens", "output", "cached", "longest wait")
_LIMIT_COLUMNS = ("amount", "used", "use while\nwaiting", "average\nuse", "highest\nlevel")
_EXPLAINED = "use: of all that a limit gave in that time; highest level: of its burst, window or slots at one moment"
_INPUT_EXPLAINED = "input tokens: as the provider counts them, without what was read from its cache"
_STATE_STYLES = {"done": "green", "failed": "red", "running": "cyan"}


def print_report(
    figures: RunFigures,
    console: Console,
    *,
    page: str | None = None,
    folder: Path | None = None,
    resume: str | None = None,
    alive: bool = False,
) -> None:
    """Print agents, limits and totals.

    `page` is where the page lies, `folder` the run's, which else is the page's. `resume` is the command that goes on
    with the run, which nobody needs while it is `alive`: a runner is at work on it.
    """
    if folder is None and page is not None:
        folder = Path(page).parent
    console.print()
    _print_agents(figures, console)
    for text in _failures(figures, folder):
        console.print(text, soft_wrap=True)
    if figures.limits:
        console.print()
        _print_limits(figures, console)
    console.print()
    for text in [
        *_closing(figures),
        *_what_now(figures, resume or f"headgate resume {figures.report.run}", alive=alive),
    ]:
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
        "paused_s": round(figures.paused_s, 3),
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
        "refused_requests": agent.refused_calls,
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


def _print_agents(figures: RunFigures, console: Console) -> None:
    shown = _shown(figures.agents)
    rows = [_agent_cells(agent) for agent in shown]
    more = len(figures.agents) - len(shown)
    if more:
        rows.append([Text(f"and {more} more", style="dim"), *[Text("")] * (1 + len(_AGENT_COLUMNS))])
    if len(figures.agents) > 1:
        total = _agent_cells(figures.total)
        total[:2] = [Text("total"), Text("")]
        total[2 + _AGENT_COLUMNS.index("took")] = Text(duration_text(figures.took_s))
        rows.append(total)
    print_fitted(console, ("agent", "state", *_AGENT_COLUMNS), rows, names=2)


def _failures(figures: RunFigures, folder: Path | None) -> list[Text]:
    failed = [agent for agent in figures.agents if agent.state == "failed" and agent.error]
    lines = []
    for agent in failed[:_FAILURES_SHOWN]:
        error = told_text(agent.error or "", figures.report.run)[:_ERROR_CHARACTERS]
        lines.append(Text.assemble((f"{agent.name} failed: ", "red"), error))
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


def _agent_cells(agent: AgentFigures) -> list[Text]:
    texts = {
        "tries": str(agent.attempts),
        "calls": count_text(agent.calls),
        "cost": usd_text(agent.cost_micro_usd, agent.unknown_cost),
        "waited": duration_text(agent.wait_s),
        "took": duration_text(agent.took_s),
        "prompt tokens": count_text(agent.prompt_tokens),
        "output": count_text(agent.output_tokens),
        "cached": _cached(agent),
        "longest wait": duration_text(agent.longest_wait_s),
    }
    state = Text(agent.state, style=_STATE_STYLES.get(agent.state, ""))
    return [Text(agent.name), state, *(Text(texts[name]) for name in _AGENT_COLUMNS)]


def _cached(agent: AgentFigures) -> str:
    return share_text(agent.cached_tokens / agent.prompt_tokens) if agent.prompt_tokens else "-"


def _print_limits(figures: RunFigures, console: Console) -> None:
    ranked = sorted(figures.limits, key=lambda limit: -(limit.use.highest or 0.0))
    chosen = {id(limit) for limit in ranked[:_LIMITS_SHOWN]}
    shown = [limit for limit in figures.limits if id(limit) in chosen]
    more = len(ranked) - len(shown)
    rows = [_limit_cells(limit, figures.report.run) for limit in shown]
    last = f"and {more} more, none of them used further" if more else ""
    print_fitted(console, ("limit", *_LIMIT_COLUMNS), rows, names=1, last=last)
    console.print(Text(_EXPLAINED, style="dim"), soft_wrap=True)
    if any(limit.dimension == "input_tokens" for limit in shown):
        console.print(Text(_INPUT_EXPLAINED, style="dim"), soft_wrap=True)


def _limit_cells(limit: LimitFigures, run: str) -> list[Text]:
    used = "-" if limit.kind == "gauge" else amount_text(limit.dimension, limit.used)
    if limit.kind == "window" and limit.level_used is not None and limit.level_used != limit.used:
        used += f" ({amount_text(limit.dimension, limit.level_used)} by all)"
    return [
        Text(limit_text(limit.scope, limit.models, limit.dimension, run)),
        Text(f"{amount_text(limit.dimension, limit.amount)}{per_text(limit.per)}"),
        Text(used),
        Text(share_text(limit.use.while_waiting)),
        Text(share_text(limit.use.average)),
        Text(share_text(limit.use.highest)),
    ]


def _closing(figures: RunFigures) -> list[Text]:
    report, states, total = figures.report, figures.states, figures.total
    took = duration_text(figures.took_s)
    if figures.paused_s:
        took += f" of work in {duration_text(figures.elapsed_s)}"
    outcome = Text.assemble((report.run, "bold"), f"  {report.why} after {took}: ")
    outcome.append(f"{states['done']} done", style="green")
    outcome.append(", ")
    outcome.append(f"{states['failed']} failed", style="red" if states["failed"] else "")
    for state in ("running", "queued"):
        if states[state]:
            outcome.append(f", {states[state]} {state}", style="yellow")
    waits = Text(
        f"waits: half of the calls up to {duration_text(figures.wait_quantile_s(0.5))}, "
        f"95 % up to {duration_text(figures.wait_quantile_s(0.95))}, "
        f"the longest {duration_text(total.longest_wait_s)}"
    )
    lines = [outcome, waits] if total.calls else [outcome]
    if figures.total.refused_calls:
        lines.append(
            Text(f"{figures.total.refused_calls} calls were refused by Headgate, and not sent", style="yellow")
        )
    if figures.estimated_calls:
        lines.append(Text(f"{figures.estimated_calls} calls told no usage: they count as estimated", style="yellow"))
    provider = report.provider
    if provider is not None:
        lines.append(
            Text.assemble(
                f"the simulated provider served {count_text(provider.served)} calls and refused ",
                (f"{provider.refused} with 429", "bold red" if provider.refused else "green"),
                f"; it counted {count_text(provider.input_tokens)} prompt tokens",
                f" and {count_text(provider.output_tokens)} output tokens",
            )
        )
    elif report.simulated:
        lines.append(Text("no provider key in the environment: this used the simulated provider"))
    return lines


def _what_now(figures: RunFigures, resume: str, *, alive: bool) -> list[Text]:
    """Say how to go on; the command stands on a line of its own, to be copied whole."""
    states = figures.states
    if alive:
        return [Text("a runner is at work on it")]
    if states["queued"] or states["running"]:
        return [Text("go on with:", style="yellow"), Text(f"    {resume}")]
    if states["failed"]:
        return [Text("to try what failed again:"), Text(f"    {resume} --retry-failed")]
    return []

"""What a run shows while it goes and when it ends: snapshots for the progress, and the report.

One rule: it asks the manager, the stores and, where there is one, the simulated provider; it changes nothing.
"""

import json
from pathlib import Path

from rich.console import Console

from headgate.cli.demo.stage import Stage
from headgate.cli.progress import Snapshot
from headgate.cli.report import LimitShown, ProviderCount, RunReport, as_json, figures_of, print_report, write_page
from headgate.compose import House
from headgate.core.ledger import GroupBy, UsageQuery
from headgate.core.limits import Limit
from headgate.gateway.control import limits_json, queue_json, usage_json
from headgate.runtime.fleet import Fleet, FleetEnd

SHOWN_SCOPES = ("account:", "team:", "run:", "tag:")
"""Limits of each key, agent or session by itself are many and short-lived: the table of agents shows what they cost."""


class FleetWatch:
    """Watches one run."""

    def __init__(self, house: House, run: str, stage: Stage | None) -> None:
        """Begin with nothing to note."""
        self.house = house
        self.run = run
        self.stage = stage
        self.fleet: Fleet | None = None
        self.note = ""

    async def snapshot(self) -> Snapshot:
        """Say what the fleet and its gateway do now."""
        manager = self.house.manager
        counts: dict[str, int] = dict.fromkeys(("queued", "running", "done", "failed"), 0)
        if self.fleet is not None:
            counts.update({str(state): count for state, count in self.fleet.counts.items()})
        group_by: tuple[GroupBy, ...] = ("account", "model", "run")
        groups = await manager.usage(UsageQuery(group_by, only=(("run", self.run),)))
        views = [view for view in await manager.limits() if view.scope.startswith(SHOWN_SCOPES)]
        shown = [view for view in views if not view.scope.startswith("run:") or view.scope == f"run:{self.run}"]
        return Snapshot(
            jobs=counts,
            limits=limits_json(shown)["limits"],
            waiting=queue_json(manager.queue())["waiting"],
            usage=usage_json(groups, group_by)["groups"],
            refused=manager.refused_by_providers,
            note=self.note,
        )

    async def report(self, end: FleetEnd, what: str) -> RunReport:
        """Gather all that the report is made of."""
        calls = await self.house.stores.ledger.attempts(self.run)
        jobs = await self.house.stores.jobs.jobs(self.run)
        views = {view.name: view.used for view in await self.house.manager.limits()}
        dialects = {entry.account.name: entry.account.dialect for entry in self.house.config.accounts}
        met: dict[str, tuple[Limit, str | None]] = {}
        for scopes, model in {(call.scopes, call.model) for call in calls}:
            for limit in self.house.manager.limits_met(scopes, model):
                if limit.scope.startswith(SHOWN_SCOPES):
                    met.setdefault(limit.name, (limit, scopes.account))
        limits = [
            LimitShown(limit, dialects.get(account or "", "anthropic"), views.get(name))
            for name, (limit, account) in sorted(met.items())
        ]
        counted = await self.stage.provider_usage() if self.stage is not None else None
        provider = None
        if counted is not None:
            total = counted["total"]
            provider = ProviderCount(
                served=total["requests_served"] + total["requests_cancelled"],  # cut off by a kill, and counted
                refused=total["requests_refused"],
                input_tokens=total["input_tokens"]
                + total["cache_read_tokens"]
                + total["cache_write_5m_tokens"]
                + total["cache_write_1h_tokens"],
                output_tokens=total["output_tokens"],
            )
        simulated = self.stage is not None and self.stage.provider is not None
        return RunReport(self.run, jobs, calls, limits, provider, simulated=simulated, why=end.why, what=what)


async def report_run(
    watch: FleetWatch, end: FleetEnd, folder: Path, console: Console, *, what: str, json_too: bool
) -> None:
    """Print the report and write its page into the run's folder."""
    figures = figures_of(await watch.report(end, what))
    page = folder / "report.html"
    write_page(figures, page)
    if json_too:
        print(json.dumps({**as_json(figures), "page": str(page)}))  # noqa: T201 - the answer
    else:
        print_report(figures, console, page=str(page))

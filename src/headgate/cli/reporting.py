"""What a run shows while it goes and when it ends: snapshots for the progress, and the report.

One rule: it asks the run's gateway, the jobs and, where there is one, the simulated provider; it changes nothing.
"""

import json
from pathlib import Path

from rich.console import Console

from headgate.cli.demo.stage import Stage
from headgate.cli.progress import Snapshot
from headgate.cli.report import ProviderCount, RunReport, as_json, figures_of, print_report, write_page
from headgate.cli.run_gateway import RunBooks, RunGateway
from headgate.core.errors import CallerError, ProviderError
from headgate.ports import JobStore
from headgate.runtime.fleet import Fleet, FleetEnd


class FleetWatch:
    """Watches one run."""

    def __init__(self, gateway: RunGateway, jobs: JobStore, run: str, stage: Stage | None) -> None:
        """Begin with nothing to note."""
        self.gateway = gateway
        self.jobs = jobs
        self.run = run
        self.stage = stage
        self.fleet: Fleet | None = None
        self.note = ""
        self.missing = ""

    async def snapshot(self) -> Snapshot:
        """Say what the fleet and its gateway do now."""
        counts: dict[str, int] = dict.fromkeys(("queued", "running", "done", "failed"), 0)
        if self.fleet is not None:
            counts.update({str(state): count for state, count in self.fleet.counts.items()})
        now = await self.gateway.now()
        return Snapshot(
            jobs=counts, limits=now.limits, waiting=now.waiting, usage=now.usage, refused=now.refused, note=self.note
        )

    async def report(self, end: FleetEnd, what: str) -> RunReport:
        """Gather all that the report is made of."""
        jobs = await self.jobs.jobs(self.run)
        try:
            books = await self.gateway.books()
        except (ProviderError, CallerError) as error:
            # It went away, or the key ended. What the agents did is done, and its report is worth having all the same.
            self.missing = f"no figures of calls: {error}"
            books = RunBooks()
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
        return RunReport(
            self.run, jobs, books.calls, books.limits, provider, simulated=simulated, why=end.why, what=what
        )


async def report_run(
    watch: FleetWatch, end: FleetEnd, folder: Path, console: Console, *, what: str, resume: str, json_too: bool
) -> None:
    """Print the report and write its page into the run's folder; `resume` is the command that goes on with the run."""
    figures = figures_of(await watch.report(end, what))
    page = folder / "report.html"
    write_page(figures, page)
    if watch.missing:
        console.print(watch.missing, style="yellow", markup=False, soft_wrap=True)
    if json_too:
        print(json.dumps({**as_json(figures), "page": str(page)}))  # noqa: T201 - the answer
    else:
        print_report(figures, console, page=str(page), resume=resume)

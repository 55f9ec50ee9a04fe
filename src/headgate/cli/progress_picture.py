"""The picture of a fleet at work: from a snapshot and those before it to what is shown.

One rule: drawing asks nobody and waits for nothing; a snapshot has all that can be seen.
"""

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import NotRequired, TypedDict

from rich.console import Group, RenderableType
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from headgate.cli.wording import (
    amount_text,
    clock_text,
    count_text,
    learned_text,
    limit_text,
    per_text,
    share_text,
    usd_text,
    why_learned_text,
)

__all__ = ["History", "LimitRow", "Snapshot", "UsageRow", "WaitingRow", "line", "picture"]

_LIMITS_SHOWN = 8
_BAR_CELLS = 28
_SPEED_OVER_S = 15.0
_SNAPSHOTS_KEPT = 64
_NEARLY_SPENT = 0.8
# Before so many jobs and seconds a forecast would be a guess.
_FORECAST_FROM_JOBS = 3
_FORECAST_FROM_S = 5.0


class LimitRow(TypedDict):
    """One limit, as `/api/v1/limits` has it."""

    name: str
    scope: str
    models: str | None
    dimension: str
    kind: str
    amount: int
    per: str
    burst: int
    used: int
    held: int
    free: int
    share: float
    resets_at: str | None
    configured: NotRequired[bool]
    learned: NotRequired[int | None]
    learned_from: NotRequired[str | None]
    learned_models: NotRequired[str | None]
    closed_until: NotRequired[str | None]


class WaitingRow(TypedDict):
    """One call that waits, as `/api/v1/queue` has it; `limit` is the name of the one that binds."""

    limit: str
    agent: str | None


class UsageRow(TypedDict, total=False):
    """Sums, as `/api/v1/usage` has them; by account and model, so that speeds can be told by limit, and by state."""

    account: str | None
    model: str | None
    run: str | None
    state: str | None
    requests: int
    input_tokens: int
    output_tokens: int
    cache_read_tokens: int
    cache_write_tokens: int
    cost_micro_usd: int
    unknown_cost: int
    wait_ms: int


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What a fleet and its gateway do now. `refused` counts the provider's 429s, None where nobody counts them.

    `usage` is of this run. `note` is shown beside the bar: that the fleet drains, that figures are missing.
    """

    jobs: Mapping[str, int]
    limits: Sequence[LimitRow] = ()
    waiting: Sequence[WaitingRow] = ()
    usage: Sequence[UsageRow] = ()
    refused: int | None = None
    note: str = ""

    def total(self, name: str) -> int:
        """Sum a figure over the calls that have ended: what is thought of those under way may turn out to be less."""
        return sum(int(row.get(name) or 0) for row in self.usage if row.get("state") != "in_flight")  # type: ignore[call-overload]  # a TypedDict wants a literal name

    @property
    def under_way(self) -> int:
        """Calls that are admitted and have not ended."""
        return sum(row.get("requests", 0) for row in self.usage if row.get("state") == "in_flight")

    @property
    def ended(self) -> int:
        """Jobs that are done or failed."""
        return self.jobs.get("done", 0) + self.jobs.get("failed", 0)

    @property
    def all_jobs(self) -> int:
        """All jobs of the run."""
        return sum(self.jobs.values())


@dataclass(slots=True)
class History:
    """The last snapshots of a run, for what only two of them together tell: speeds, and when it will be over."""

    run: str
    started_s: float
    snapshots: deque[tuple[float, Snapshot]] = field(default_factory=lambda: deque(maxlen=_SNAPSHOTS_KEPT))
    first_ended: int | None = None
    highest: dict[str, float] = field(default_factory=dict)

    def add(self, snapshot: Snapshot, now_s: float) -> None:
        """Keep a snapshot, and forget those that are too old to tell a speed by."""
        if self.first_ended is None:
            self.first_ended = snapshot.ended
        self.snapshots.append((now_s, snapshot))
        while len(self.snapshots) > 2 and now_s - self.snapshots[1][0] >= _SPEED_OVER_S:  # noqa: PLR2004 - two make a speed
            self.snapshots.popleft()
        present = {row["name"] for row in snapshot.limits}
        self.highest = {name: share for name, share in self.highest.items() if name in present}
        for row in snapshot.limits:
            self.highest[row["name"]] = max(self.highest.get(row["name"], 0.0), row["share"])

    def per_second(self, limit: LimitRow) -> float | None:
        """Give how fast a rate was used lately, None where the usage cannot be told by the limit's scope."""
        if limit["kind"] != "rate" or len(self.snapshots) < 2:  # noqa: PLR2004 - as above
            return None
        (before_s, before), (now_s, now) = self.snapshots[0], self.snapshots[-1]
        then, since = _used(before.usage, limit), _used(now.usage, limit)
        if then is None or since is None or now_s <= before_s:
            return None
        return max(0, since - then) / (now_s - before_s)

    def left_s(self) -> float | None:
        """Guess the seconds until the last job ends: those at work count as half done."""
        if not self.snapshots or self.first_ended is None:
            return None
        now_s, now = self.snapshots[-1]
        gone_s = now_s - self.started_s
        ended = now.ended - self.first_ended
        if ended < _FORECAST_FROM_JOBS or gone_s < _FORECAST_FROM_S:
            return None
        half_done = now.jobs.get("running", 0) / 2
        return gone_s / (ended + half_done) * (now.jobs.get("queued", 0) + half_done)


def picture(history: History) -> RenderableType:
    """Draw the last snapshot."""
    now_s, now = history.snapshots[-1]
    parts: list[RenderableType] = [_headline(history, now, now_s), _agents(now, history.run), _spent(now)]
    if now.note:
        parts.append(Text(now.note, style="yellow"))
    if now.limits:
        parts += [Text(""), _limits(history, now)]
    return Group(*parts)


def line(history: History) -> str:
    """Write the last snapshot in one line, without the time."""
    _, now = history.snapshots[-1]
    jobs = now.jobs
    states = ", ".join(f"{jobs.get(state, 0)} {state}" for state in ("done", "failed", "running", "queued"))
    parts = [f"{now.all_jobs} jobs: {states}"]
    if now.waiting:
        limit, count = _most_binding(now, history.run)
        parts.append(f"{len(now.waiting)} calls wait, {count} of them for {limit}")
    parts.append(
        f"{count_text(now.total('requests'))} requests, {count_text(now.under_way)} under way, "
        f"{count_text(_prompt(now))} prompt tokens, "
        f"{count_text(now.total('output_tokens'))} output, "
        + usd_text(now.total("cost_micro_usd"), now.total("unknown_cost"))
    )
    if now.refused is not None:
        parts.append(f"{now.refused} x 429")
    if now.note:
        parts.append(now.note)
    return "; ".join(parts)


def _headline(history: History, now: Snapshot, now_s: float) -> RenderableType:
    grid = Table.grid(padding=(0, 1), expand=False)
    left_s = history.left_s()
    left = f"about {clock_text(left_s)} left" if left_s is not None and now.ended < now.all_jobs else ""
    grid.add_row(
        Text(history.run, style="bold"),
        ProgressBar(total=max(1, now.all_jobs), completed=now.ended, width=_BAR_CELLS, complete_style="green"),
        Text(f"{now.ended}/{now.all_jobs} jobs"),
        Text(clock_text(now_s - history.started_s), style="dim"),
        Text(left, style="dim"),
    )
    return grid


def _agents(now: Snapshot, run: str) -> Text:
    jobs = now.jobs
    waiting = len({row["agent"] for row in now.waiting}) if now.waiting else 0
    text = Text.assemble(
        ("running ", "dim"), (str(jobs.get("running", 0)), "cyan"),
        ("   waiting ", "dim"), (str(waiting), "yellow" if waiting else ""),
        ("   done ", "dim"), (str(jobs.get("done", 0)), "green"),
        ("   failed ", "dim"), (str(jobs.get("failed", 0)), "red" if jobs.get("failed") else ""),
        ("   queued ", "dim"), str(jobs.get("queued", 0)),
    )  # fmt: skip
    if now.waiting:
        limit, count = _most_binding(now, run)
        text.append(f"   ({count} for {limit})", style="yellow")
    return text


def _spent(now: Snapshot) -> Text:
    cached, prompt = now.total("cache_read_tokens"), _prompt(now)
    share = f" ({share_text(cached / prompt)} cached)" if prompt else ""
    text = Text.assemble(
        count_text(now.total("requests")), (" requests   ", "dim"),
        count_text(now.under_way), (" under way   ", "dim"),
        count_text(prompt), (f" prompt tokens{share}   ", "dim"),
        count_text(now.total("output_tokens")), (" output   ", "dim"),
        usd_text(now.total("cost_micro_usd"), now.total("unknown_cost")),
    )  # fmt: skip
    if now.refused is not None:
        text.append("   429s from the provider ", style="dim")
        text.append(str(now.refused), style="bold red" if now.refused else "green")
    return text


def _limits(history: History, now: Snapshot) -> RenderableType:
    # Chosen by their highest use so far and shown by name, so that rows do not jump about.
    ranked = sorted(now.limits, key=lambda row: (-history.highest[row["name"]], row["name"]))
    shown = sorted(ranked[:_LIMITS_SHOWN], key=lambda row: row["name"])
    table = Table.grid(padding=(0, 2), expand=False)
    table.add_column(no_wrap=True, overflow="ellipsis", max_width=44)
    table.add_column(min_width=8, max_width=_BAR_CELLS)
    table.add_column(justify="right", no_wrap=True, min_width=6)
    table.add_column(no_wrap=True, overflow="ellipsis")
    for row in shown:
        share = max(0.0, row["share"])
        spent = row["kind"] == "window" and share >= _NEARLY_SPENT
        bar = ProgressBar(
            total=1.0, completed=min(1.0, share), width=_BAR_CELLS, complete_style="yellow" if spent else "cyan"
        )
        bar.finished_style = "red" if spent else "cyan"
        table.add_row(
            _name(history, row),
            bar,
            share_text(share),
            _now(history, row),
        )
    if len(ranked) > len(shown):
        table.add_row(Text(f"and {len(ranked) - len(shown)} more limits", style="dim"))
    return table


def _name(history: History, row: LimitRow) -> Text:
    name = Text(limit_text(row["scope"], row["models"], row["dimension"], history.run))
    return name if row.get("configured", True) else name.append(" (learned)", style="dim")


def _now(history: History, row: LimitRow) -> Text:
    if not row.get("configured", True) and row.get("learned") is None:
        return Text(why_learned_text(row), style="yellow")  # a window of which nothing is known but that it is closed
    text = _in_use(history, row)
    if row.get("closed_until"):
        return text.append(f", {why_learned_text(row)}", style="yellow")
    learned = row.get("learned")
    if row.get("configured", True) and learned is not None and learned < row["amount"]:
        text.append(f", learned {learned_text(row)} ({row.get('learned_from')})", style="yellow")
    return text


def _in_use(history: History, row: LimitRow) -> Text:
    dimension = row["dimension"]
    of = f"{amount_text(dimension, row['amount'])}{per_text(row['per'])}"
    speed = history.per_second(row)
    if speed is not None:
        lately = amount_text(dimension, speed * _period_s(row))
        return Text.assemble(("now ", "dim"), (f"{lately}{per_text(row['per'])}", ""), (f", refills {of}", "dim"))
    in_use = amount_text(dimension, row["used"] + row["held"])
    return Text.assemble(of) if row["kind"] == "rate" else Text.assemble((in_use, ""), (f" of {of}", "dim"))


def _most_binding(now: Snapshot, run: str) -> tuple[str, int]:
    """Give the limit that most calls wait for, in words, and how many do."""
    counts: dict[str, int] = {}
    for row in now.waiting:
        counts[row["limit"]] = counts.get(row["limit"], 0) + 1
    name = max(counts, key=lambda each: (counts[each], each))
    words = {row["name"]: limit_text(row["scope"], row["models"], row["dimension"], run) for row in now.limits}
    return words.get(name, name), counts[name]


def _used(usage: Sequence[UsageRow], limit: LimitRow) -> int | None:
    """Sum what the limit counted of the usage; None where the groups do not tell its scope."""
    kind, _, value = limit["scope"].partition("|")[0].partition(":")  # beyond the bar: whose claimed scope it is
    total = 0
    for row in usage:
        if kind not in row or "model" not in row:
            return None
        if row.get(kind) == value and (limit["models"] is None or fnmatchcase(row["model"] or "", limit["models"])):
            total += _counted(row, limit["dimension"])
    return total


def _counted(row: UsageRow, dimension: str) -> int:
    uncached = row.get("input_tokens", 0) + row.get("cache_write_tokens", 0)
    match dimension:
        case "requests":
            return row.get("requests", 0)
        case "input_tokens":
            return uncached
        case "output_tokens":
            return row.get("output_tokens", 0)
        case "tokens":
            return uncached + row.get("cache_read_tokens", 0) + row.get("output_tokens", 0)
        case "micro_usd":
            return row.get("cost_micro_usd", 0)
    return 0


def _period_s(row: LimitRow) -> int:
    return int(row["per"].removesuffix("s")) if row["per"].endswith("s") and row["per"][:-1].isdigit() else 1


def _prompt(now: Snapshot) -> int:
    return sum(now.total(name) for name in ("input_tokens", "cache_read_tokens", "cache_write_tokens"))

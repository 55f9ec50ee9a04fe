"""Row `replay`: recorded sessions by a fleet under limits that are a third of their demand; and the same killed.

One rule: real processes and nothing left to trust: what Headgate counted is compared with the provider's own books,
call by call. The second part ends the runner with kill -9 at five random moments (seeded) and resumes it each time.
"""

import random
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.__main__ import Options, Result
from benchmarks.headgate_processes import (
    KEY_VARIABLE,
    Runner,
    ask_headgate,
    provider_process,
    wait_until_received,
)
from benchmarks.replay_books import CATEGORIES, Books, Jobs, check_jobs, compare_books, jobs_done
from benchmarks.replay_demand import Limits, Pace, Recorded, limits_for, read_sessions, unlimited_s

TITLE = "recorded sessions replayed under a third of their demand, and with kill -9; ledger against provider"
TARGET = {"answered_429": 0, "share_while_waiting": 0.90, "differences": 0, "jobs_lost": 0, "jobs_ended_twice": 0}

AGENTS = 60
SHARE_OF_DEMAND = 1 / 3
KILLS = 5
SEED = 20_261_120
PACE = Pace(first_token_s=0.08, tokens_per_second=5_000)
"""At this pace the limits, not two shared cores, are what the fleet waits for: some 90 calls a second."""

QUICK_AGENTS, QUICK_TURNS, QUICK_SESSIONS = 16, 24, 24
# Unlimited, the agents need a third of the ideal time; a machine under load needs longer.
_PATIENCE = 8


@dataclass(frozen=True, slots=True)
class Stage:
    """What both parts play on."""

    folder: Path
    sessions: Sequence[Recorded]
    agents: int
    limits: Limits
    ideal_s: float


@dataclass(frozen=True, slots=True)
class Part:
    """What one replay came to."""

    kills: int
    report: dict[str, Any]
    books: Books
    jobs: Jobs
    buckets: Sequence[dict[str, Any]]

    @property
    def binding_share(self) -> float:
        """How far the limit that binds was used while calls waited; 0 if none ever waited."""
        return max(limit["share_while_waiting"] or 0.0 for limit in self.report["limits"])

    @property
    def differences(self) -> list[str]:
        return [*self.books.differences, *self.jobs.differences]

    @property
    def met(self) -> bool:
        return (
            self.books.refused == 0
            and not self.differences
            and self.jobs.lost == 0
            and not self.jobs.ended_twice
            and (self.kills > 0 or self.binding_share >= TARGET["share_while_waiting"])
        )


def run(options: Options) -> Result:
    folder = None if options.data is None else options.data / "sessions"
    if folder is None or not folder.is_dir():
        return Result(None, None, TARGET, met=False, note="not run: --data names no folder with sessions")
    with stage(folder, quick=options.quick) as found:
        if not found.sessions:
            return Result(None, None, TARGET, met=False, note=f"not run: {folder} has no *.jsonl.gz with turns")
        show_stage(found, options)
        undisturbed = replay(found, kills=0)
        show(undisturbed, "undisturbed", options)
        killed = replay(found, kills=KILLS)
        show(killed, f"{killed.kills} x kill -9", options)
    parts = {"undisturbed": undisturbed, "killed": killed}
    return Result(
        headgate={name: figures(part) for name, part in parts.items()},
        rival=None,
        target=TARGET,
        met=all(part.met for part in parts.values()) and killed.kills == KILLS,
        note="; ".join([f"seed {SEED}", *(killed.differences + undisturbed.differences)[:5]]),
    )


@contextmanager
def stage(recordings: Path, *, quick: bool) -> Iterator[Stage]:
    """Choose the sessions and the limits; for a quick look only short sessions, in a folder of links to them."""
    with tempfile.TemporaryDirectory(prefix="headgate-replay-") as temporary:
        sessions, agents = read_sessions(recordings), AGENTS
        if quick:
            agents, recordings = QUICK_AGENTS, Path(temporary)
            sessions = [session for session in sessions if session.turns <= QUICK_TURNS][:QUICK_SESSIONS]
            for session in sessions:
                (recordings / session.path.name).symlink_to(session.path.resolve())
        if not sessions:
            yield Stage(recordings, (), agents, Limits(0, 0, 0, 0), 0.0)
            return
        limits = limits_for(sessions, agents, PACE, SHARE_OF_DEMAND)
        yield Stage(recordings, sessions, agents, limits, unlimited_s(sessions, agents, PACE) / SHARE_OF_DEMAND)


def replay(stage: Stage, *, kills: int) -> Part:
    """Run the fleet to its end, killing it on the way, and compare what is left."""
    limits = stage.limits
    with (
        tempfile.TemporaryDirectory(prefix="headgate-replay-") as temporary,
        provider_process(
            *("--sessions", str(stage.folder), "--burst-s", str(limits.burst_s)),
            *("--requests-per-minute", str(limits.requests)),
            *("--input-tokens-per-minute", str(limits.input_tokens)),
            *("--output-tokens-per-minute", str(limits.output_tokens)),
            *("--first-token-s", str(PACE.first_token_s), "--tokens-per-second", str(PACE.tokens_per_second)),
        ) as provider,
    ):
        folder = Path(temporary)
        # A second of the provider's bucket stays unused: what was admitted together may arrive together.
        write_config(folder, provider.url, limits, burst_s=limits.burst_s - 1)
        ended_before: dict[str, Any] = {}
        killed = 0
        arguments: tuple[str, ...] = ("run", str(stage.folder), "--agents", str(stage.agents))
        for at_request, pause_s in moments(stage, kills):
            with closing(Runner(folder, *arguments)) as runner:
                if not wait_until_received(provider, runner, at_request):
                    break
                time.sleep(pause_s)
                runner.kill()
            killed += 1
            ended_before |= jobs_done(folder)
            arguments = ("resume", ask_headgate(folder, "runs")["runs"][0]["run"])
        with closing(Runner(folder, *arguments)) as runner:
            report = runner.report(within_s=60 + _PATIENCE * stage.ideal_s)
        jobs = check_jobs(folder, stage.sessions, ended_before)
        return Part(killed, report, compare_books(folder, provider), jobs, provider.usage()["buckets"])


def moments(stage: Stage, kills: int) -> list[tuple[int, float]]:
    """Give random moments: after how many requests at the provider, and how long after that."""
    chooser = random.Random(SEED)
    turns = sum(session.turns for session in stage.sessions)
    requests = sorted(chooser.randrange(1, turns) for _ in range(kills))
    return [(request, chooser.uniform(0, 0.1)) for request in requests]


def write_config(folder: Path, url: str, limits: Limits, *, burst_s: int) -> None:
    (folder / "headgate.toml").write_text(f"""
[store]
url = "sqlite:///headgate.sqlite"
[[account]]
name = "main"
provider = "anthropic"
base_url = "{url}"
api_key = "env:{KEY_VARIABLE}"
reconcile = true
[[limit]]
scope = "account:main"
requests_per_minute = {limits.requests}
input_tokens_per_minute = {limits.input_tokens}
output_tokens_per_minute = {limits.output_tokens}
burst_s = {burst_s}
""")


def figures(part: Part) -> dict[str, Any]:
    return {
        "kills": part.kills,
        "calls": part.books.rows,
        "took_s": part.report["took_s"],
        "answered_429": part.books.refused,
        "share_while_waiting": part.binding_share,
        "share_of_all_offered": round(max(bucket["share_used"] for bucket in part.buckets), 4),
        "differences": len(part.differences),
        "jobs_done": part.jobs.done,
        "jobs_lost": part.jobs.lost,
        "jobs_ended_twice": len(part.jobs.ended_twice),
    }


def show_stage(stage: Stage, options: Options) -> None:
    turns, limits = sum(session.turns for session in stage.sessions), stage.limits
    options.say(
        f"    {len(stage.sessions)} sessions, {turns:,} turns, {stage.agents} agents; limits a minute: "
        f"{limits.requests:,} requests, {limits.input_tokens:,} input, {limits.output_tokens:,} output tokens, "
        f"{limits.burst_s} s deep; ideal {stage.ideal_s:.0f} s"
    )


def show(part: Part, name: str, options: Options) -> None:
    books, jobs, say = part.books, part.jobs, options.say
    say(f"    {name}: {part.report['took_s']:.0f} s, {jobs.done} sessions done in {jobs.attempts} attempts")
    ended_twice = ", ".join(jobs.ended_twice) or "none"
    say(
        f"      answered 429 by the provider: {books.refused:,}; sessions lost: {jobs.lost}, ended twice: {ended_twice}"
    )
    shares = {limit["dimension"]: limit["share_while_waiting"] for limit in part.report["limits"]}
    for bucket in part.buckets:
        waiting = shares.get(bucket["dimension"])
        told = "" if waiting is None else f", {waiting:.1%} while calls waited"
        say(f"      {bucket['dimension']:14}{bucket['share_used']:7.1%} of all that was offered{told}")
    say(f"      {'':22}{'ledger':>15}{'provider':>15}")
    sent = books.rows - books.never_arrived + books.sent_twice
    say(f"      {'requests':22}{sent:>15,}{books.received:>15,}")
    for category in CATEGORIES:
        kept, told_by_provider = books.tokens[category]
        say(f"      {category:22}{kept:>15,}{told_by_provider:>15,}")
    states = ", ".join(f"{count:,} {state}" for state, count in sorted(books.by_state.items()))
    say(f"      {books.rows:,} rows: {states}; {books.never_arrived} never left, {books.sent_twice} sent twice")
    if jobs.nearly:
        say(f"      {jobs.nearly} attempts were killed between their last call and their record, and run again")
    for difference in part.differences[:20]:
        say(f"      DIFFERS: {difference}")

"""Headgate's ledger beside the provider's own books, call by call and in all; and the jobs beside their recordings.

One rule: everything must add up exactly. With `known(row)` for the requests that the provider has under a row's id,

    received by the provider = rows - rows whose call never arrived + requests sent twice under one id
    usage of a row           = sum of the usages of known(row), in each category; so also in all

where a call never arrived only if its process was killed before it was sent: its row says `reconciled`, with no
request id of the provider's, and with no usage.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.headgate_processes import Provider, ask_headgate, select
from benchmarks.replay_demand import Recorded

CATEGORIES = (
    "input_tokens",
    "cache_read_tokens",
    "cache_write_5m_tokens",
    "cache_write_1h_tokens",
    "output_tokens",
)


@dataclass(frozen=True, slots=True)
class Books:
    """What both sides counted, and every way in which they differ."""

    rows: int
    by_state: Mapping[str, int]
    never_arrived: int
    sent_twice: int
    received: int
    refused: int
    tokens: Mapping[str, tuple[int, int]]
    differences: Sequence[str]


@dataclass(frozen=True, slots=True)
class Jobs:
    """What became of the jobs. `nearly` counts attempts that were killed between their last call and their record."""

    done: int
    lost: int
    attempts: int
    ended_twice: Sequence[str]
    nearly: int
    differences: Sequence[str]


def compare_books(folder: Path, provider: Provider) -> Books:
    """Compare once the run is over."""
    rows = select(folder, f"SELECT id, state, provider_request, {', '.join(CATEGORIES)} FROM attempts")
    counted = provider.usage()["total"]
    differences: list[str] = []
    never_arrived = sent_twice = 0
    for row in rows:
        call = provider.call(row["id"])
        requests = [] if call is None else [call, *call.get("earlier", ())]
        told = {name: sum(request["usage"][name] for request in requests) for name in CATEGORIES}
        kept = {name: row[name] for name in CATEGORIES}
        if kept != told:
            differences.append(f"call {row['id']} ({row['state']}): ledger {kept}, provider {told}")
        if call is None:
            never_arrived += 1
            if row["state"] != "reconciled" or row["provider_request"] is not None:
                differences.append(f"call {row['id']} ({row['state']}) is unknown to the provider")
        sent_twice += max(0, len(requests) - 1)
    by_state = Counter(row["state"] for row in rows)
    open_rows = by_state["in_flight"] + by_state["lost"]
    if open_rows:
        differences.append(f"{open_rows} rows are not final")
    expected = len(rows) - never_arrived + sent_twice
    if counted["requests_received"] != expected:
        differences.append(f"the provider received {counted['requests_received']} requests, the ledger says {expected}")
    tokens = {name: (sum(row[name] for row in rows), counted[name]) for name in CATEGORIES}
    differences += [f"{name}: ledger {kept}, provider {told}" for name, (kept, told) in tokens.items() if kept != told]
    differences += _against_usage(folder, len(rows) - never_arrived, tokens)
    return Books(
        rows=len(rows),
        by_state=dict(by_state),
        never_arrived=never_arrived,
        sent_twice=sent_twice,
        received=counted["requests_received"],
        refused=counted["requests_refused"],
        tokens=tokens,
        differences=differences,
    )


def check_jobs(folder: Path, sessions: Sequence[Recorded], ended_before: Mapping[str, Any]) -> Jobs:
    """Check that every session was replayed to its end once, with the usage that was recorded.

    `ended_before` has the jobs that were done at some kill, each with its attempt and its end as they stood then.
    """
    jobs = select(folder, "SELECT name, state, attempt, ended_s FROM jobs")
    by_name = {job["name"]: job for job in jobs}
    lost = [session.name for session in sessions if by_name.get(session.name, {}).get("state") != "done"]
    differences = [f"session {name} is not done" for name in lost]
    calls = _calls_of_attempts(folder)
    ended_twice, nearly = [], 0
    for name, before in ended_before.items():
        after = by_name[name]
        if (after["attempt"], after["ended_s"]) != before:
            ended_twice.append(name)
    for session in sessions:
        job = by_name.get(session.name)
        if job is None:
            continue
        whole = [number for number, done in calls.get(session.name, {}).items() if done["calls"] == session.turns]
        nearly += len([number for number in whole if number != job["attempt"]])
        last = calls.get(session.name, {}).get(job["attempt"])
        prompt = None if last is None else tuple(last[name] for name in CATEGORIES[:4])
        if prompt != session.prompt:
            differences.append(f"session {session.name}: recorded {session.prompt}, its last attempt used {prompt}")
    done = sum(job["state"] == "done" for job in jobs)
    attempts = sum(job["attempt"] for job in jobs)
    return Jobs(done, len(lost), attempts, ended_twice, nearly, differences)


def jobs_done(folder: Path) -> dict[str, tuple[int, float]]:
    """Give the jobs that are done now, with the attempt and the time that did it."""
    rows = select(folder, "SELECT name, attempt, ended_s FROM jobs WHERE state = 'done'")
    return {row["name"]: (row["attempt"], row["ended_s"]) for row in rows}


def _calls_of_attempts(folder: Path) -> dict[str, dict[int, dict[str, int]]]:
    """Sum the calls that were answered to their end, by session and by the attempt that its name carries."""
    sums = ", ".join(f"sum({name}) AS {name}" for name in CATEGORIES)
    rows = select(
        folder, f"SELECT session, count(*) AS calls, {sums} FROM attempts WHERE state = 'done' GROUP BY session"
    )
    found: dict[str, dict[int, dict[str, int]]] = {}
    for row in rows:
        name, _, attempt = row["session"].partition("#")
        found.setdefault(name, {})[int(attempt or 1)] = row
    return found


def _against_usage(folder: Path, sent: int, tokens: Mapping[str, tuple[int, int]]) -> list[str]:
    """Compare what `headgate usage` says, which sums roll-ups, with the rows."""
    told = ask_headgate(folder, "usage")["total"]
    kept = {name: ledger for name, (ledger, _provider) in tokens.items()}
    kept["cache_write_tokens"] = kept.pop("cache_write_5m_tokens") + kept.pop("cache_write_1h_tokens")
    kept["requests"] = sent
    return [f"headgate usage: {name} {told[name]}, rows {kept[name]}" for name in kept if told[name] != kept[name]]

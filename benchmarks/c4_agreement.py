"""Row C4: what `headgate simulate` says beside what a real fleet, gateway and provider do on the same workload.

One rule: the same recorded sessions, agents, configuration and pace for both. The real side are processes (a fleet over
its own gateway, a simulated provider with its own books), the other the simulator in virtual time; neither knows the
other's figures. Pauses are left out and the provider is fast, so that a run takes a minute.
"""

import tempfile
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from math import ceil
from pathlib import Path

from benchmarks.__main__ import Options, Result
from benchmarks.headgate_processes import KEY_VARIABLE, Runner, provider_process
from benchmarks.replay import write_config
from benchmarks.replay_demand import Limits, Pace, Recorded, read_sessions
from headgate.adapters.prices import GenaiPrices
from headgate.compose import read_config
from headgate.sim.figures import Figures, figures_of
from headgate.sim.provider import Pace as SimulatedPace
from headgate.sim.simulation import Circumstances, Scenario, play_scenario
from headgate.sim.traces import recordings

TITLE = "the simulator beside the real gateway on the same recorded sessions: served, use, duration, mean wait"
WITHIN = 0.05
AGENTS = 24
MINUTES_OF_DEMAND, QUICK_MINUTES = 1.8, 1.5
"""The whole demand in minutes of the limits: one is in the buckets at the start, the rest is waited for."""

BURST_S = 60
PACE = Pace(first_token_s=0.3, tokens_per_second=2_000)
MOST_TURNS, SESSIONS = 40, 48
QUICK_TURNS, QUICK_SESSIONS = 24, 30
REPORT_WITHIN_S = 240.0


@dataclass(frozen=True, slots=True)
class Told:
    """What one side says."""

    served: int
    took_s: float
    mean_wait_s: float
    use_overall: float
    use_while_waiting: float
    answered_429: int

    def figures(self) -> Mapping[str, float]:
        return {
            "served": self.served,
            "took_s": round(self.took_s, 2),
            "mean_wait_s": round(self.mean_wait_s, 3),
            "use_overall": round(self.use_overall, 4),
            "use_while_waiting": round(self.use_while_waiting, 4),
            "answered_429": self.answered_429,
        }


def run(options: Options) -> Result:
    folder = None if options.data is None else options.data / "sessions"
    if folder is None or not folder.is_dir():
        return Result(None, None, {"within": WITHIN}, met=False, note="not run: --data names no folder with sessions")
    most_turns, most = (QUICK_TURNS, QUICK_SESSIONS) if options.quick else (MOST_TURNS, SESSIONS)
    sessions = [session for session in read_sessions(folder) if session.turns <= most_turns][:most]
    if not sessions:
        return Result(None, None, {"within": WITHIN}, met=False, note=f"not run: {folder} has no short sessions")
    limits = limits_of(sessions, QUICK_MINUTES if options.quick else MINUTES_OF_DEMAND)
    with tempfile.TemporaryDirectory(prefix="headgate-agreement-") as temporary:
        chosen = link_to(sessions, Path(temporary) / "sessions")
        simulated = play_simulated(chosen, Path(temporary), limits)
        real = play_real(chosen, Path(temporary), limits)
    return compare(real, simulated, options)


def compare(real: Told, simulated: Told, options: Options) -> Result:
    ours, theirs = simulated.figures(), real.figures()
    apart = {name: abs(ours[name] / theirs[name] - 1) if theirs[name] else abs(ours[name]) for name in ours}
    for name in ours:
        both = f"simulated {ours[name]:>12,.3f}   real {theirs[name]:>12,.3f}"
        options.say(f"    {name:20}{both}   {apart[name]:6.1%} apart")
    return Result(
        headgate={"simulated": ours, "apart": {name: round(value, 4) for name, value in apart.items()}},
        rival=dict(theirs),
        target={"within": WITHIN},
        met=all(value <= WITHIN for value in apart.values()),
        note="rival: the real gateway; a machine that others use too delays it",
    )


def limits_of(sessions: Sequence[Recorded], minutes: float) -> Limits:
    """Give limits whose buckets are a minute deep, as the vendors' are."""
    requests = sum(session.turns for session in sessions)
    input_tokens = sum(session.uncached_tokens for session in sessions)
    output_tokens = sum(session.output_tokens for session in sessions)
    return Limits(ceil(requests / minutes), ceil(input_tokens / minutes), ceil(output_tokens / minutes), BURST_S)


def link_to(sessions: Sequence[Recorded], folder: Path) -> Path:
    folder.mkdir()
    for session in sessions:
        (folder / session.path.name).symlink_to(session.path.resolve())
    return folder


def play_real(sessions: Path, folder: Path, limits: Limits) -> Told:
    with provider_process(
        *("--sessions", str(sessions), "--burst-s", str(limits.burst_s)),
        *("--requests-per-minute", str(limits.requests)),
        *("--input-tokens-per-minute", str(limits.input_tokens)),
        *("--output-tokens-per-minute", str(limits.output_tokens)),
        *("--first-token-s", str(PACE.first_token_s), "--tokens-per-second", str(PACE.tokens_per_second)),
    ) as provider:
        write_config(folder, provider.url, limits, burst_s=limits.burst_s - 1)
        with closing(Runner(folder, "run", str(sessions), "--agents", str(AGENTS))) as runner:
            report = runner.report(within_s=REPORT_WITHIN_S)
        counted = provider.usage()["total"]
    total, uses = report["total"], report["limits"]
    binding = max(uses, key=lambda use: use["average_share"] or 0.0)
    return Told(
        total["requests"],
        report["took_s"],
        total["wait_ms"] / 1000 / total["requests"],
        binding["average_share"],
        binding["share_while_waiting"] or 0.0,
        counted["requests_refused"],
    )


def play_simulated(sessions: Path, folder: Path, limits: Limits) -> Told:
    write_config(folder, "http://127.0.0.1:1", limits, burst_s=limits.burst_s - 1)
    config = read_config(folder / "headgate.toml", {KEY_VARIABLE: "sk-simulated"})
    workload = recordings(sessions, agents=AGENTS, pauses=False, recorded_cache=True)
    circumstances = Circumstances(pace=SimulatedPace(PACE.first_token_s, PACE.tokens_per_second), max_wait_s=3_600.0)
    figures: Figures = figures_of(
        play_scenario(workload, config, Scenario("configured"), circumstances, GenaiPrices(config.prices))
    )
    binding = max(figures.limits, key=lambda use: use.overall or 0.0)
    return Told(
        figures.served,
        figures.took_s,
        figures.waits["all"].mean_s or 0.0,
        binding.overall or 0.0,
        binding.while_waiting or 0.0,
        figures.answered_429,
    )

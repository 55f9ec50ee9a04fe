"""Row C3: what a wait beyond the prompt cache's life costs: uncached input tokens for each finished agent program.

One rule: the same generated agents, limits and provider in virtual time (`headgate simulate`'s own driver). The rival
admits first in, first out and knows nothing of caches, as limiters do: every prompt counts as uncached until the
answer tells, and no call is preferred because its cache is about to die.
"""

from dataclasses import replace
from statistics import fmean

from benchmarks.__main__ import Options, Result
from benchmarks.simulated import config_of
from headgate.adapters.config import Config
from headgate.adapters.prices import GenaiPrices
from headgate.sim.agents import generated_agents
from headgate.sim.figures import Figures, figures_of
from headgate.sim.simulation import Circumstances, Scenario, play_scenario

TITLE = "uncached input per finished program when waits exceed the cache's life: Headgate beside any FIFO limiter"
AGENTS = 200
HOURS = 2.0
SEEDS = (1, 2, 3)
INPUT_TOKENS_PER_MINUTE = 450_000
MAX_WAIT_S = 3_600.0
POLICIES = ("fifo", "priority", "shortest", "round_robin", "fair", "program", "adaptive")
AT_MOST = 0.9
"""Clearly less: a tenth at the least."""


def run(options: Options) -> Result:
    seeds, hours = (SEEDS[:1], HOURS / 2) if options.quick else (SEEDS, HOURS)
    aware = Circumstances(max_wait_s=MAX_WAIT_S)
    blind = replace(aware, cache_boost=False, predicts_cache=False)
    unboosted = replace(aware, cache_boost=False)
    told = {"fifo, blind (rival)": over_seeds("fifo", blind, seeds, hours)}
    told["fifo, no boost"] = over_seeds("fifo", unboosted, seeds, hours)
    told |= {policy: over_seeds(policy, aware, seeds, hours) for policy in POLICIES}
    told["nobody waits"] = over_seeds(
        "fifo", aware, seeds, hours, input_tokens_per_minute=100 * INPUT_TOKENS_PER_MINUTE
    )
    options.say(f"    {AGENTS} agents, {hours:g} h, {INPUT_TOKENS_PER_MINUTE:,} input tokens a minute; seeds {seeds}")
    options.say(
        f"    {'':20}{'uncached/program':>17}{'programs':>10}{'cache hits':>12}{'p90 wait s':>12}{'x rival':>9}"
    )
    rival = told["fifo, blind (rival)"]
    for name, line in told.items():
        ratio = line["uncached_per_program"] / rival["uncached_per_program"]
        options.say(
            f"    {name:20}{line['uncached_per_program']:>17,.0f}{line['programs']:>10,.0f}{line['cache_hits']:>12.1%}"
            f"{line['wait_p90_s']:>12.0f}{ratio:>9.2f}"
        )
    ours = told["fifo"]
    target = round(AT_MOST * rival["uncached_per_program"], 1)
    return Result(
        headgate={name: told[name] for name in ("fifo, no boost", *POLICIES, "nobody waits")},
        rival=rival,
        target={"uncached_per_program": target},
        met=ours["uncached_per_program"] <= target and ours["programs"] >= rival["programs"],
        note=f"seeds {seeds}; first in, first out with the cache-deadline boost is compared with the rival",
    )


def over_seeds(
    policy: str,
    circumstances: Circumstances,
    seeds: tuple[int, ...],
    hours: float,
    *,
    input_tokens_per_minute: int = INPUT_TOKENS_PER_MINUTE,
) -> dict[str, float]:
    config = config_of(input_tokens_per_minute=input_tokens_per_minute)
    lines = [measure(policy, replace(circumstances, seed=seed), hours, config) for seed in seeds]
    return {name: round(fmean(line[name] for line in lines), 4) for name in lines[0]}


def measure(policy: str, circumstances: Circumstances, hours: float, config: Config) -> dict[str, float]:
    workload = generated_agents(AGENTS, hours * 3600, circumstances.seed)
    played = play_scenario(workload, config, Scenario(policy), circumstances, GenaiPrices())
    figures: Figures = figures_of(played)
    return {
        "uncached_per_program": figures.uncached_per_program or 0.0,
        "programs": figures.programs["all"].count,
        "cache_hits": figures.cache_hits or 0.0,
        "wait_p90_s": figures.waits["all"].p90_s or 0.0,
        "answered_429": figures.answered_429,
    }

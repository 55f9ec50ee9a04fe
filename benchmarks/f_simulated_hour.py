"""Row F: a simulated hour of 1,000 coding agents: seconds on one core.

One rule: it is `headgate simulate agents:1000:1` without its start and its tables; seconds are of this process's CPU,
for the machine may be shared. Once under limits that bind, as one plans with, and once with nothing to wait for.
"""

import time

from benchmarks.__main__ import Options, Result
from benchmarks.simulated import config_of
from headgate.adapters.prices import GenaiPrices
from headgate.sim.agents import generated_agents
from headgate.sim.figures import figures_of
from headgate.sim.simulation import Circumstances, Scenario, play_scenario

TITLE = "a simulated hour of 1,000 agents, CPU seconds on one core"
AGENTS = 1_000
TARGET_S = 10.0
LIMITS = {
    "limits bind": {
        "requests_per_minute": 4_000,
        "input_tokens_per_minute": 4_000_000,
        "output_tokens_per_minute": 800_000,
    },
    "nothing waits": {
        "requests_per_minute": 40_000,
        "input_tokens_per_minute": 40_000_000,
        "output_tokens_per_minute": 8_000_000,
    },
}


def run(options: Options) -> Result:
    prices = GenaiPrices()
    prices.load()
    told: dict[str, dict[str, float]] = {}
    for name, per_minute in LIMITS.items():
        workload = generated_agents(AGENTS, 3_600.0, seed=1)
        begun_s, begun_cpu_s = time.perf_counter(), time.process_time()
        played = play_scenario(workload, config_of(**per_minute), Scenario("fifo"), Circumstances(), prices)
        figures = figures_of(played)
        cpu_s, took_s = time.process_time() - begun_cpu_s, time.perf_counter() - begun_s
        told[name] = {
            "cpu_s": round(cpu_s, 2),
            "took_s": round(took_s, 2),
            "calls": figures.offered,
            "us_per_call": round(cpu_s * 1e6 / figures.offered, 1),
        }
        options.say(
            f"    {name:14}{cpu_s:6.1f} s CPU, {took_s:6.1f} s, {figures.offered:,} calls, "
            f"{told[name]['us_per_call']:.0f} us each, p90 wait {figures.waits['all'].p90_s} s"
        )
    return Result(
        headgate=told,
        rival=None,
        target={"cpu_s": TARGET_S},
        met=all(line["cpu_s"] < TARGET_S for line in told.values()),
        note="1,000 generated agents (headgate.sim.agents), first in, first out",
    )

"""A configuration, small traces and one scenario played: what the tests of the simulator share."""

from pathlib import Path
from typing import Any

from headgate.adapters.config import Config
from headgate.compose import read_config
from headgate.core.usage import Usage
from headgate.sim.driver import Played
from headgate.sim.provider import Pace
from headgate.sim.simulation import Circumstances, Scenario, play_scenario
from headgate.sim.workload import Program, Round, Workload, alone
from headgate.testing.scripted import FlatPrices

ACCOUNT = '[[account]]\nname = "main"\nprovider = "anthropic"\napi_key = "env:X"\n'
PACE = Pace(first_token_s=1.0, tokens_per_second=50.0)


def config(folder: Path, *entries: str, account: str = ACCOUNT) -> Config:
    path = folder / "headgate.toml"
    path.write_text(account + "".join(f"[[limit]]\n{entry}\n" for entry in entries))
    return read_config(path, credentials=False)


def calls(*rounds: Round, **facts: Any) -> Workload:
    """Give a workload of calls that come each by itself."""
    programs = [Program(f"s{number}", f"a{number}", (each,), **facts) for number, each in enumerate(rounds)]
    return Workload("calls", lambda: alone(programs), max(each.at_s for each in rounds))


def session(*rounds: Round) -> Workload:
    program = Program("s", "a", rounds)
    return Workload("session", lambda: alone([program]), 1.0)


def play(workload: Workload, configured: Config, policy: str = "fifo", **facts: Any) -> Played:
    limits = facts.pop("limits", 1.0)
    agents = facts.pop("agents", 1.0)
    circumstances = Circumstances(**{"pace": PACE, "max_wait_s": 3600.0} | facts)
    scenario = Scenario(policy, agents, limits)
    return play_scenario(workload, configured, scenario, circumstances, FlatPrices())


def uncached(usage: Usage) -> int:
    return usage.prompt_tokens - usage.cache_read_tokens

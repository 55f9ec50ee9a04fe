"""Simulations: one workload under several policies and circumstances, side by side.

One rule: every scenario plays the same workload from the same seed on a clock of its own, so a difference between two
is what was changed between them, and the same question has the same answer, byte for byte.
"""

import gc
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import product
from typing import Protocol

from headgate.adapters.config import Config
from headgate.adapters.prices import GenaiPrices
from headgate.compose import maintenance_rule
from headgate.core.errors import CallerError, UnknownModelError
from headgate.core.limits import Limit, Rate
from headgate.core.scheduling import POLICIES
from headgate.core.scopes import LimitRule
from headgate.ports import Prices
from headgate.sim.driver import Looked, Played, Stage, play
from headgate.sim.figures import Figures, figures_of
from headgate.sim.provider import CACHE_LIFE_S, Pace, Truth
from headgate.sim.workload import Workload, keyed, scaled
from headgate.testing.virtual_time import run

__all__ = [
    "CONFIGURED",
    "Circumstances",
    "Scenario",
    "Simulated",
    "play_scenario",
    "scaled_config",
    "scenarios_of",
    "simulate",
]

MOST_SCENARIOS = 64
LEAST_STEP_S = 1.0
LOOKS = 240
"""How often a simulation is looked at within the time that its workload takes by itself."""

_DAY_S = 86_400.0
MOST_PLAYED_S = 31 * _DAY_S
"""As long as a month: what is longer is a wrong date in a trace, and a gap of years is looked at step by step."""

MOST_VIRTUAL_S = 10 * 366 * 86_400.0
CONFIGURED = "configured"
"""Stands for what the configuration says of policies, lane by lane."""


@dataclass(frozen=True, slots=True)
class Circumstances:
    """What is the same in all scenarios.

    `model` None leaves it to the workload, and where that names none to a usual one. `truth` is what the providers are
    really like, whatever is configured; `keys` are those that agents work under in turn, where the workload's own are
    not meant.
    """

    model: str | None = None
    pace: Pace = field(default_factory=Pace)
    cache_life_s: float = CACHE_LIFE_S
    truth: Truth = field(default_factory=Truth)
    keys: tuple[str, ...] = ()
    max_wait_s: float | None = None
    cache_boost: bool = True
    predicts_cache: bool = True
    warm_up: bool = True
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Scenario:
    """One column of the comparison: a policy, with so many times the agents under so many times the limits."""

    policy: str
    agents: float = 1.0
    limits: float = 1.0

    @property
    def name(self) -> str:
        """What it is called in tables and plots."""
        agents = "" if self.agents == 1 else f", agents x{self.agents:g}"
        limits = "" if self.limits == 1 else f", limits x{self.limits:g}"
        return f"{self.policy}{agents}{limits}"


@dataclass(frozen=True, slots=True)
class Simulated:
    """What came of a scenario."""

    scenario: Scenario
    figures: Figures


class Progress(Protocol):
    """Hears how far a simulation is."""

    def began(self, scenario: Scenario) -> None:
        """Hear that a scenario is played now."""
        ...

    def looked(self, played_s: float, lasts_s: float, waiting: int) -> None:
        """Hear how much virtual time of it has passed, of about how much, and how many calls wait."""
        ...


def scenarios_of(policies: Sequence[str], agents: Sequence[float], limits: Sequence[float]) -> list[Scenario]:
    """Give every combination, each once.

    Raises:
        CallerError: a policy is not known, a factor cannot be, or there are too many.
    """
    for policy in policies:
        if policy not in POLICIES and policy != CONFIGURED:
            known = ", ".join((*POLICIES, CONFIGURED, "all"))
            raise CallerError(f"policy {policy!r} is not known; expected one of {known}")
    for word, factors in (("agents-scale", agents), ("limits-scale", limits)):
        for factor in factors:
            if not 0.001 <= factor <= 1000:  # noqa: PLR2004 - said in the message
                raise CallerError(f"--{word} {factor:g}: expected a factor from 0.001 to 1000")
    found = list(dict.fromkeys(Scenario(*each) for each in product(policies, agents, limits)))
    if len(found) > MOST_SCENARIOS:
        raise CallerError(f"{len(found)} scenarios; at most {MOST_SCENARIOS} are compared at once")
    return found


def simulate(
    workload: Workload,
    config: Config,
    scenarios: Sequence[Scenario],
    circumstances: Circumstances,
    *,
    speed: float = 1.0,
    prices: Prices | None = None,
    progress: "Progress | None" = None,
) -> Iterator[Simulated]:
    """Play every scenario, one after another; tells of each when it begins.

    Raises:
        CallerError: the configuration has no account for the model, or a call can never be admitted; the workload is
            too long, or a part of its agents is none.
    """
    _check_length(workload, speed)
    _check_somebody(workload, min((each.agents for each in scenarios), default=1.0))
    prices = prices or GenaiPrices(config.prices, config.windows)
    for scenario in scenarios:
        looked = None if progress is None else progress.looked
        if progress is not None:
            progress.began(scenario)
        played = play_scenario(workload, config, scenario, circumstances, prices, speed=speed, looked=looked)
        yield Simulated(scenario, figures_of(played))


def _check_length(workload: Workload, speed: float) -> None:
    lasts_s = workload.last_s / speed
    if lasts_s > MOST_PLAYED_S:
        gap = f"; {workload.longest_gap()}" if workload.longest_gap else ""
        cut = "--hours N to play its first hours, or " if workload.longest_gap else ""
        raise CallerError(
            f"{workload.title}: it goes over {lasts_s / _DAY_S:,.1f} days, and at most {MOST_PLAYED_S / _DAY_S:g} are "
            f"played{gap}; give {cut}--speed X to let its time pass faster"
        )


def _check_somebody(workload: Workload, factor: float) -> None:
    if factor < 1:  # agents need not be counted where all of them work
        agents = sum(1 for _ in workload.actors())
        if round(factor * agents) == 0:
            raise CallerError(
                f"--agents-scale {factor:g}: of {agents:,} agents or calls that is none; give more of them"
            )


def play_scenario(
    workload: Workload,
    config: Config,
    scenario: Scenario,
    circumstances: Circumstances,
    prices: Prices,
    *,
    speed: float = 1.0,
    looked: Looked | None = None,
) -> Played:
    """Play one scenario on a loop of its own."""
    config = scaled_config(config, scenario.limits)
    usual_model = _usual_model(config, circumstances.model)
    _check_names(config, circumstances)
    workload = scaled(keyed(workload, circumstances.keys), scenario.agents, speed, circumstances.seed)
    scheduling = config.scheduling
    if scenario.policy != CONFIGURED:
        scheduling = replace(scheduling, policy=scenario.policy, lanes=())
    max_wait_s = config.server.max_wait_s if circumstances.max_wait_s is None else circumstances.max_wait_s
    stage = Stage(
        config=config,
        usual_model=usual_model,
        prices=prices,
        scheduling=replace(scheduling, warm_up=scheduling.warm_up and circumstances.warm_up),
        model=circumstances.model,
        truth=circumstances.truth,
        maintenance=tuple(maintenance_rule(each) for each in config.maintenance),
        pace=circumstances.pace,
        cache_life_s=circumstances.cache_life_s,
        max_wait_s=max_wait_s,
        cache_boost=circumstances.cache_boost,
        predicts_cache=circumstances.predicts_cache,
        seed=circumstances.seed,
        looked=looked,
        step_s=max(LEAST_STEP_S, workload.last_s / LOOKS),
    )
    with _rarely_collected():
        return run(play(workload, stage), max_virtual_s=MOST_VIRTUAL_S)


@contextmanager
def _rarely_collected() -> Iterator[None]:
    """Let Python look for cycles a seventieth as often: a simulation makes hardly any, and each look walks all agents.

    A tenth of its time goes into it otherwise.
    """
    before = gc.get_threshold()
    gc.set_threshold(50_000, *before[1:])
    try:
        yield
    finally:
        gc.set_threshold(*before)


def scaled_config(config: Config, factor: float) -> Config:
    """Give the configuration with so many times of every limit, and at least one unit of each.

    Budgets in dollars stay: what is bought of a provider is another tier, not more money.
    """
    if factor == 1:
        return config
    return replace(
        config, limits=tuple(LimitRule(rule.scope, _scaled(rule.template, factor)) for rule in config.limits)
    )


def _scaled(limit: Limit, factor: float) -> Limit:
    if limit.dimension == "micro_usd":
        return limit

    def times(amount: int) -> int:
        return max(1, round(amount * factor))

    scaled_limit = replace(limit, amount=times(limit.amount))
    if isinstance(scaled_limit, Rate):
        largest = None if scaled_limit.largest is None else times(scaled_limit.largest)
        return replace(scaled_limit, burst=times(scaled_limit.burst), largest=largest)
    return scaled_limit


_USUAL_MODELS: Mapping[str, str] = {"anthropic": "claude-sonnet-4-5", "openai": "gpt-5"}


def _usual_model(config: Config, model: str | None) -> str:
    """Give the model of calls that name none: the one asked for, or what the first account that can serves.

    Raises:
        CallerError: no account serves it, or none is configured.
    """
    if not config.accounts:
        raise CallerError("the configuration has no account; write [[account]], for its limits are what is simulated")
    accounts = [each.account for each in config.accounts]
    if model is not None:
        if any(account.serves(model) for account in accounts):
            return model
        served = "; ".join(f"{account.name} ({', '.join(account.models)})" for account in accounts)
        raise UnknownModelError(f"no account serves model {model!r}; configured: {served}")
    for account in accounts:
        usual = _USUAL_MODELS[account.dialect]
        if account.serves(usual):
            return usual
    first = accounts[0]
    raise CallerError(f"account {first.name} serves {', '.join(first.models)}; name the model with --model")


def _check_names(config: Config, circumstances: Circumstances) -> None:
    """Return if every account and key that is named is configured.

    Raises:
        CallerError: one is not.
    """
    truth = circumstances.truth
    accounts = {each.account.name for each in config.accounts}
    faulty = [each.account for each in truth.outages] + [each.account for each in truth.faults]
    for name in (*truth.terms, *faulty):
        if name not in accounts and name not in (None, "*"):
            raise CallerError(f"account {name!r} is not configured; expected one of {', '.join(sorted(accounts))}")
    keys = {key.name for key in config.keys}
    for name in circumstances.keys:
        if name not in keys:
            known = ", ".join(sorted(keys)) or "none; write [[key]]"
            raise CallerError(f"--key {name}: it is not configured; configured: {known}")

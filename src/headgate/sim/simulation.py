"""Simulations: one workload under several policies and circumstances, side by side.

One rule: every scenario plays the same workload from the same seed on a clock of its own, so a difference between two
is what was changed between them, and the same question has the same answer, byte for byte.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import product

from headgate.adapters.config import Config, ConfiguredAccount
from headgate.adapters.prices import GenaiPrices
from headgate.core.errors import CallerError, UnknownModelError
from headgate.core.limits import Limit, Rate
from headgate.core.scheduling import POLICIES
from headgate.core.scopes import LimitRule
from headgate.ports import Prices
from headgate.sim.driver import Played, Stage, play
from headgate.sim.figures import Figures, figures_of
from headgate.sim.provider import CACHE_LIFE_S, Pace
from headgate.sim.workload import Workload, scaled
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

MOST_VIRTUAL_S = 10 * 366 * 86_400.0
CONFIGURED = "configured"
"""Stands for what the configuration says of policies, lane by lane."""


@dataclass(frozen=True, slots=True)
class Circumstances:
    """What is the same in all scenarios; `model` None takes the first that the account's limits name, or a usual one.

    `provider_scale`: what the account really enforces, as a part of what is configured.
    """

    model: str | None = None
    pace: Pace = field(default_factory=Pace)
    cache_life_s: float = CACHE_LIFE_S
    provider_scale: float = 1.0
    max_wait_s: float | None = None
    cache_boost: bool = True
    predicts_cache: bool = True
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
    began: Callable[[Scenario], None] = lambda _: None,
) -> Iterator[Simulated]:
    """Play every scenario, one after another; tells of each when it begins.

    Raises:
        CallerError: the configuration has no account for the model, or a call can never be admitted.
    """
    prices = prices or GenaiPrices(config.prices, config.windows)
    for scenario in scenarios:
        began(scenario)
        played = play_scenario(workload, config, scenario, circumstances, prices, speed=speed)
        yield Simulated(scenario, figures_of(played))


def play_scenario(
    workload: Workload,
    config: Config,
    scenario: Scenario,
    circumstances: Circumstances,
    prices: Prices,
    *,
    speed: float = 1.0,
) -> Played:
    """Play one scenario on a loop of its own."""
    config = scaled_config(config, scenario.limits)
    account, model = _account(config, circumstances.model)
    workload = scaled(workload, scenario.agents, speed, circumstances.seed)
    scheduling = config.scheduling
    if scenario.policy != CONFIGURED:
        scheduling = replace(scheduling, policy=scenario.policy, lanes=())
    max_wait_s = config.server.max_wait_s if circumstances.max_wait_s is None else circumstances.max_wait_s
    stage = Stage(
        config=config,
        account=account,
        model=model,
        prices=prices,
        scheduling=scheduling,
        one_model=circumstances.model is not None,
        pace=circumstances.pace,
        cache_life_s=circumstances.cache_life_s,
        provider_scale=circumstances.provider_scale,
        max_wait_s=max_wait_s,
        cache_boost=circumstances.cache_boost,
        predicts_cache=circumstances.predicts_cache,
        seed=circumstances.seed,
        step_s=max(LEAST_STEP_S, workload.last_s / LOOKS),
    )
    return run(play(workload, stage), max_virtual_s=MOST_VIRTUAL_S)


def scaled_config(config: Config, factor: float) -> Config:
    """Give the configuration with so many times of every limit, and at least one unit of each."""
    if factor == 1:
        return config
    return replace(
        config, limits=tuple(LimitRule(rule.scope, _scaled(rule.template, factor)) for rule in config.limits)
    )


def _scaled(limit: Limit, factor: float) -> Limit:
    def times(amount: int) -> int:
        return max(1, round(amount * factor))

    scaled_limit = replace(limit, amount=times(limit.amount))
    if isinstance(scaled_limit, Rate):
        largest = None if scaled_limit.largest is None else times(scaled_limit.largest)
        return replace(scaled_limit, burst=times(scaled_limit.burst), largest=largest)
    return scaled_limit


_USUAL_MODELS: Mapping[str, str] = {"anthropic": "claude-sonnet-4-5", "openai": "gpt-5"}


def _account(config: Config, model: str | None) -> tuple[ConfiguredAccount, str]:
    """Choose the first account that serves the model, or a model that the first account serves."""
    if not config.accounts:
        raise CallerError("the configuration has no account; write [[account]], for its limits are what is simulated")
    if model is None:
        for configured in config.accounts:
            usual = _USUAL_MODELS[configured.account.dialect]
            if configured.account.serves(usual):
                return configured, usual
        first = config.accounts[0]
        raise CallerError(
            f"account {first.account.name} serves {', '.join(first.account.models)}; name the model with --model"
        )
    for configured in config.accounts:
        if configured.account.serves(model):
            return configured, model
    served = "; ".join(f"{each.account.name} ({', '.join(each.account.models)})" for each in config.accounts)
    raise UnknownModelError(f"no account serves model {model!r}; configured: {served}")

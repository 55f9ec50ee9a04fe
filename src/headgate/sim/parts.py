"""What the calls of a simulation meet: the product's own parts, models of the providers, and who asks.

One rule: it only joins them; what becomes of a call is `calls`' affair.
"""

import random
from dataclasses import dataclass

from headgate.adapters.config import Timeouts
from headgate.adapters.memory import MemoryLevelStore
from headgate.core.estimates import Estimator
from headgate.core.retries import RetryRule
from headgate.core.scheduling import Standing
from headgate.core.scopes import Scopes
from headgate.core.usage import Dialect
from headgate.ports import Prices
from headgate.runtime.account_pool import AccountPool
from headgate.runtime.admission import Admission
from headgate.runtime.learning import Learning
from headgate.runtime.rules import Rules
from headgate.runtime.warming import Warming
from headgate.runtime.wishes import Wishes
from headgate.sim.admitted import Admitted
from headgate.sim.buckets import Meters, Pool
from headgate.sim.provider import ModelledProvider, Pace
from headgate.sim.tally import AccountTally, Tally
from headgate.sim.workload import Program
from headgate.testing.virtual_time import VirtualTimeLoop

__all__ = ["Parts", "Place", "Standpoint"]


@dataclass(frozen=True, slots=True)
class Place:
    """An account as the calls of one program meet it."""

    provider: ModelledProvider
    pool: Pool
    tally: AccountTally


@dataclass(frozen=True, slots=True)
class Standpoint:
    """What all calls of a program have in common; `only` is its account, where but one serves its model."""

    program: Program
    scopes: Scopes
    model: str
    dialect: Dialect
    sharer: str
    standing: Standing
    only: str | None
    places: dict[str, Place]


@dataclass(frozen=True, slots=True)
class Parts:
    """What the calls of a simulation meet on their way."""

    loop: VirtualTimeLoop
    epoch_s: float
    store: MemoryLevelStore
    rules: Rules
    admission: Admission
    learning: Learning
    admitted: Admitted
    accounts: AccountPool
    warming: Warming
    wishes: Wishes
    estimator: Estimator
    prices: Prices
    retries: RetryRule
    timeouts: Timeouts
    chooser: random.Random
    providers: dict[str, ModelledProvider]
    meters: Meters
    tally: Tally
    pace: Pace
    max_wait_s: float
    warm_up: bool

"""Traffic: what this process sends to an account's class of models, as far as learning has to know it.

One rule: bounded; of what is forgotten only the measure is lost.
"""

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from headgate.core.adaptive import Key, model_class
from headgate.core.amounts import DIMENSIONS, Demand, Dimension
from headgate.core.concurrency import Concurrency, Speed
from headgate.core.limits import Limit, Rate
from headgate.core.meter import Meter
from headgate.core.notices import MINUTE_S
from headgate.core.quota import units_of

MOST_TRAFFICS = 1_000

MOST_KEYS = 100
"""Names of what is learned that a traffic remembers."""


class Traffic:
    """One process's calls to one account and class of models."""

    __slots__ = (
        *("_keys", "account", "begun", "concurrency", "in_flight", "looked_s", "meter", "models", "others"),
        *("refusals", "refused_s", "sampled_s", "speed"),
    )

    def __init__(self, account: str, models: str) -> None:
        """Begin with nothing in flight."""
        self.account = account
        self.models = models
        self.in_flight = 0
        self.begun = [0] * len(DIMENSIONS)
        """What all calls asked of each dimension until now."""
        self.looked_s = 0.0
        self.sampled_s = 0.0
        self.meter = Meter()
        self.others = 0.0
        """The requests a minute that other processes were admitted lately."""
        self.refusals = 0
        """The 429s in a row; those of calls that were on their way together are one."""
        self.refused_s = 0.0
        self.speed = Speed()
        self.concurrency: Concurrency | None = None
        self._keys: dict[tuple[str, int], Key] = {}

    def key(self, what: str, period_s: int = MINUTE_S) -> Key:
        """Name what is learned here."""
        found = self._keys.get((what, period_s))  # of every answer some are named
        if found is None:
            if len(self._keys) >= MOST_KEYS:
                self._keys.clear()
            found = self._keys[what, period_s] = Key(self.account, self.models, what, period_s)
        return found

    def begun_of(self, dimension: Dimension) -> int:
        """Give what all calls asked of a dimension until now."""
        return self.begun[DIMENSIONS.index(dimension)]

    def count_refusal(self, sent_s: float, now_s: float) -> int:
        """Count a 429 of a call that was sent at `sent_s`; give how many there are in a row."""
        if not self.refusals or sent_s > self.refused_s:
            self.refusals, self.refused_s = self.refusals + 1, now_s
        return self.refusals

    def is_within(self, other: "Traffic") -> bool:
        """Whether it is a part of another, or that itself."""
        return self.account == other.account and other.models in ("", self.models)

    def recent(self, dimension: Dimension, now_s: float) -> int:
        """Give what a minute admits all processes, by the last 15 to 20 s."""
        of_others = self.others * self.meter.a_request(dimension, now_s, 1) if self.others else 0.0
        return round(self.meter.admitted(dimension, now_s, Meter.RECENT) + of_others)


class Sent(NamedTuple):
    """A call that was sent: where, when, under which limits, what it asked of them, and whether its answer streams.

    Of one call in a while `used` is what was used of its learned limits, itself included, when it was admitted.
    """

    traffic: Traffic
    limits: Sequence[Limit]
    asked: Demand
    at_s: float
    is_streamed: bool = True
    used: Mapping[Key, int] = {}

    def asks(self, dimension: Dimension) -> bool:
        """Whether it asks anything of a dimension."""
        return bool(getattr(self.asked.expected, dimension))

    def units(self, dimension: Dimension) -> int:
        """Give what it holds of a dimension, at least 1."""
        return max(1, getattr(self.asked.expected, dimension) or 1)


class Correction(NamedTuple):
    """What must be in use of a key's level at the least, what can be at the most (None: nobody knows), what is not.

    The least is that of when it was told: what calls of `traffic` have asked since `begun` comes on top of it.
    """

    key: Key
    least: int
    most: int | None
    ease: int = 0
    traffic: Traffic | None = None
    begun: int = 0

    @property
    def least_by_now(self) -> int:
        """What must be in use by now."""
        if self.traffic is None or not self.least:
            return self.least
        return self.least + self.traffic.begun_of(self.key.dimension) - self.begun


class Closing(NamedTuple):
    """A key's level that is to be closed: `units` fit at `until_ns`; `exactly`, whatever was counted before.

    The call that was refused `asked` for them: of a stream a level holds only what comes next.
    """

    key: Key
    units: int
    until_ns: int
    exactly: bool = False
    asked: Demand | None = None

    def held_of(self, rate: Rate) -> int:
        """Give what the level will hold when the call is tried again."""
        held = None if self.asked is None else units_of(rate, self.asked)
        return self.units if not held else min(self.units, held)


class Traffics:
    """All traffic of one process; beyond the bound the oldest is forgotten."""

    def __init__(self) -> None:
        """Start with none."""
        self._found: OrderedDict[tuple[str, str], Traffic] = OrderedDict()

    def of(self, account: str, model: str) -> Traffic:
        """Give the traffic of a model, shared by all models of its class."""
        found = self._found.get((account, model))
        return found if found is not None else self._new(account, model, model_class(model))

    def of_class(self, account: str, models: str) -> Traffic:
        """Give the traffic of a class of models; of all an account's together where it is empty."""
        found = self._found.get((account, models))
        return found if found is not None else self._new(account, models, models)

    def all(self) -> list[Traffic]:
        """Give each once."""
        return list(dict.fromkeys(self._found.values()))

    def _new(self, account: str, model: str, models: str) -> Traffic:
        traffic = self._found.get((account, models)) or Traffic(account, models)
        self._found[account, models] = self._found[account, model] = traffic
        while len(self._found) > MOST_TRAFFICS:
            self._found.popitem(last=False)
        return traffic

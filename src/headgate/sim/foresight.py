"""Foresight: what Headgate makes of a simulated call before it is sent.

One rule: the estimator and what a call asks for are the product's own; text of unknown size is taken for so many bytes
a token of its prompt. What a provider did with a prompt is learned from its answer alone.
"""

from typing import NamedTuple

from headgate.core.amounts import Demand
from headgate.core.bounds import Reach
from headgate.core.estimates import CallSize, Estimator
from headgate.core.scheduling import Standing
from headgate.core.usage import Dialect, Usage
from headgate.ports import Cost, Prices
from headgate.runtime.asking import demand_of, standing_of
from headgate.sim.workload import Round

__all__ = ["Foreseen", "Foresight"]

BYTES_PER_TOKEN = 4
_NOTHING = Cost(0, None)


class Asks(NamedTuple):
    """What a call's demand depends on (`runtime.asking.Asker`); agents let all that is new be written to the cache."""

    model: str
    dialect: Dialect
    max_output_tokens: int | None
    cache_write: str | None = "5m"


class Foreseen(NamedTuple):
    """What a call asks for and how it stands; `size` is what the estimator knew of it."""

    asked: Demand
    standing: Standing
    size: CallSize


class Unasked:
    """Prices where no limit is on money: nobody asks what a hold would cost."""

    def cost(self, model: str, usage: Usage, at_s: float) -> Cost:  # noqa: ARG002 - as `ports.Prices` has it
        """Give nothing."""
        return _NOTHING

    def reach(self, model: str) -> Reach:  # noqa: ARG002 - as `ports.Prices` has it
        """Give nothing."""
        return Reach()


class Foresight:
    """One process's estimates.

    Without `predicts_cache` every prompt is taken for uncached; without `cache_boost` no call tells until when its
    cache lives: what any limiter does that knows nothing of caches.
    """

    def __init__(self, dialect: Dialect, prices: Prices | None, *, predicts_cache: bool, cache_boost: bool) -> None:
        """Know nothing yet; `prices` is None where no limit is on money."""
        self._estimator = Estimator()
        self._dialect = dialect
        self._prices: Prices = prices or Unasked()
        self._predicts_cache = predicts_cache
        self._cache_boost = cache_boost

    def keep_longest(self) -> None:
        """Say what is likely, too."""
        self._estimator.keep_longest()

    def of(self, asked: Round, session: str, agent: str, model: str, stated: Standing, now_s: float) -> Foreseen:
        """Estimate a call that goes now."""
        text_bytes = asked.prompt_tokens * BYTES_PER_TOKEN if asked.text_bytes is None else asked.text_bytes
        size = CallSize(model, text_bytes, 0, asked.max_output_tokens, session, agent, "messages")
        estimate = self._estimator.estimate(size, now_s)
        if not self._predicts_cache:
            estimate = estimate._replace(cached_tokens=0, cold_cached_tokens=0, warm_until_s=None)
        call = Asks(model, self._dialect, asked.max_output_tokens)
        standing = stated
        if self._cache_boost:
            standing = standing_of(call, stated, estimate, self._prices, now_s)
        return Foreseen(demand_of(call, estimate, self._prices, now_s), standing, size)

    def learn(self, size: CallSize, usage: Usage, sent_s: float) -> None:
        """Learn from an answer to its end."""
        self._estimator.observe(size, usage, sent_s)

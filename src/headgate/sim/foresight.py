"""Foresight: what Headgate knows of a simulated call before it is sent, and what it makes of that.

One rule: estimates are the product's own; text of unknown size is taken for so many bytes a token of its prompt. What a
provider did with a prompt is learned from its answer alone.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

from headgate.core.bounds import PromptBound, Reach
from headgate.core.estimates import CallSize, Estimate, Estimator
from headgate.core.scheduling import Standing
from headgate.core.scopes import Scopes
from headgate.core.usage import Dialect, Usage
from headgate.core.warm_up import Mark
from headgate.ports import Cost

__all__ = ["BYTES_PER_TOKEN", "Asks", "Unasked", "estimator_of"]

BYTES_PER_TOKEN = 4
_NOTHING = Cost(0, None)


class Asks(NamedTuple):
    """As much of a `runtime.grants.Call` as is asked for; agents let all that is new be written to the cache.

    A tuple, because a call's own class takes ten times as long to make.
    """

    model: str
    dialect: Dialect
    scopes: Scopes
    text_bytes: int
    max_output_tokens: int | None
    standing: Standing
    max_wait_s: float
    cache_write: str | None = "5m"
    endpoint: str = "messages"
    media: int = 0
    input_tokens: int | None = None
    measure: Callable[[], PromptBound] | None = None
    prompt_marks: Callable[[], Sequence[Mark]] | None = None
    is_streamed: bool = True
    patience_s: float | None = None


class Unasked:
    """Prices where nobody asks what a hold would cost: no limit is on money, and one account serves."""

    def cost(self, model: str, usage: Usage, at_s: float) -> Cost:  # noqa: ARG002 - as `ports.Prices` has it
        """Give nothing."""
        return _NOTHING

    def reach(self, model: str) -> Reach:  # noqa: ARG002 - as `ports.Prices` has it
        """Give nothing."""
        return Reach()


class _Unboosted(Estimator):
    """Tells of no call until when its prompt cache lives."""

    def estimate(self, size: CallSize, now_s: float) -> Estimate:
        """Estimate a call."""
        return super().estimate(size, now_s)._replace(warm_until_s=None)


class _Blind(Estimator):
    """Takes every prompt for uncached, as any limiter does that knows nothing of caches."""

    def estimate(self, size: CallSize, now_s: float) -> Estimate:
        """Estimate a call."""
        found = super().estimate(size, now_s)
        return found._replace(cached_tokens=0, cold_cached_tokens=0, warm_until_s=None, written_tokens=0)


def estimator_of(*, predicts_cache: bool, cache_boost: bool) -> Estimator:
    """Give the product's estimator, or one that knows less of caches."""
    if not predicts_cache:
        return _Blind()
    return Estimator() if cache_boost else _Unboosted()

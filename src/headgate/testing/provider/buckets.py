"""Token buckets: the limits that the simulated provider really enforces, for one credential and one class of models.

One rule: this is the truth that Headgate is checked against, so it shares no code with `headgate.core`.
It knows neither headers nor wire formats, and never reads a clock: the time comes in.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from headgate.testing.provider.settings import ModelLimits

__all__ = ["MINUTE_S", "Bucket", "Dimension", "Pool", "Refusal"]

Dimension = Literal["requests", "input_tokens", "output_tokens", "tokens"]

MINUTE_S = 60.0
_DAY_S = 86_400.0
# Floats lose the last bits of a level that was refilled many times; a billionth of a token is not a reason to refuse.
_TOLERANCE = 1e-6


class Bucket:
    """A continuously refilled bucket of whole tokens; it may go into debt when more is drained than it holds."""

    __slots__ = (
        "_level",
        "_updated_s",
        "capacity",
        "charged_total",
        "dimension",
        "first_charge_s",
        "last_charge_s",
        "period_s",
        "rate_per_period",
    )

    def __init__(
        self, dimension: Dimension, rate_per_period: int, capacity: float, now_s: float, period_s: float = MINUTE_S
    ) -> None:
        self.dimension = dimension
        self.rate_per_period = rate_per_period
        self.period_s = period_s
        self.capacity = max(1.0, capacity)
        self.charged_total = 0
        self.first_charge_s: float | None = None
        self.last_charge_s: float | None = None
        self._level = self.capacity
        self._updated_s = now_s

    def level(self, now_s: float) -> float:
        """Give what is in the bucket; below 0 it is debt. A clock that steps back refills nothing."""
        if now_s > self._updated_s:
            refill = (now_s - self._updated_s) * self.rate_per_period / self.period_s
            self._level = min(self.capacity, self._level + refill)
            self._updated_s = now_s
        return self._level

    def wait_s(self, amount: int, now_s: float) -> float:
        """Give the time until `amount` is there: 0 if it is now, infinite if it never fits."""
        if amount > self.capacity + _TOLERANCE:
            return math.inf
        missing = amount - self.level(now_s)
        return 0.0 if missing <= _TOLERANCE else missing * self.period_s / self.rate_per_period

    def full_in_s(self, now_s: float) -> float:
        """Give the time until the bucket is full again."""
        return (self.capacity - self.level(now_s)) * self.period_s / self.rate_per_period

    def charge(self, amount: int, now_s: float) -> None:
        """Take `amount` out, into debt if need be."""
        self._level = self.level(now_s) - amount
        self.charged_total += amount
        if amount:
            if self.first_charge_s is None:
                self.first_charge_s = now_s
            self.last_charge_s = now_s

    def refund(self, amount: int, now_s: float) -> None:
        """Put `amount` back, as if it had not been charged."""
        self._level = min(self.capacity, self.level(now_s) + amount)
        self.charged_total -= amount

    def offered_total(self) -> int:
        """Give what could have been charged between the first and the last charge: a full bucket and its refill."""
        if self.first_charge_s is None or self.last_charge_s is None:
            return 0
        return int(self.capacity + (self.last_charge_s - self.first_charge_s) * self.rate_per_period / self.period_s)


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a call is answered 429: the bucket that binds longest, and for how long (infinite: it can never fit)."""

    bucket: Bucket
    requested: int
    wait_s: float

    def retry_after_s(self) -> int:
        """Give the wait in whole seconds, rounded up; what can never fit is told to wait for a full bucket."""
        wait_s = self.wait_s
        if math.isinf(wait_s):
            wait_s = self.bucket.capacity * self.bucket.period_s / self.bucket.rate_per_period
        return max(1, math.ceil(wait_s))


class Pool:
    """The buckets of one credential for one class of models; a call takes from all of them or from none."""

    __slots__ = ("buckets", "limits")

    def __init__(self, limits: ModelLimits, now_s: float) -> None:
        self.limits = limits
        self.buckets: list[Bucket] = []
        per_minute: tuple[tuple[Dimension, int | None], ...] = (
            ("requests", limits.requests_per_minute),
            ("input_tokens", limits.input_tokens_per_minute),
            ("output_tokens", limits.output_tokens_per_minute),
            ("tokens", limits.tokens_per_minute),
        )
        for dimension, rate in per_minute:
            if rate is not None:
                self.buckets.append(Bucket(dimension, rate, rate * limits.burst_s / MINUTE_S, now_s))
        if limits.requests_per_minute is not None and limits.quantum_s is not None:
            # Vendors name quantisation for requests only: a token estimate can exceed a second's share of its rate,
            # and would then never fit.
            rate = limits.requests_per_minute
            self.buckets.append(Bucket("requests", rate, rate * limits.quantum_s / MINUTE_S, now_s))
        per_day: tuple[tuple[Dimension, int | None], ...] = (
            ("requests", limits.requests_per_day),
            ("tokens", limits.tokens_per_day),
        )
        for dimension, rate in per_day:
            if rate is not None:
                self.buckets.append(Bucket(dimension, rate, rate, now_s, _DAY_S))

    def bucket(self, dimension: Dimension) -> Bucket | None:
        """Give the bucket that the headers tell about: the per-minute one, else the per-day one."""
        return next((bucket for bucket in self.buckets if bucket.dimension == dimension), None)

    def refusal(self, needed: Mapping[Dimension, int], now_s: float) -> Refusal | None:
        """Give the reason to refuse a call that needs so much, or None when everything is there."""
        binding: Refusal | None = None
        for bucket in self.buckets:
            amount = needed.get(bucket.dimension)
            if amount is None:
                continue
            wait_s = bucket.wait_s(amount, now_s)
            if wait_s > 0 and (binding is None or wait_s > binding.wait_s):
                binding = Refusal(bucket, amount, wait_s)
        return binding

    def charge(self, dimension: Dimension, amount: int, now_s: float) -> None:
        """Take `amount` from every bucket of the dimension."""
        for bucket in self.buckets:
            if bucket.dimension == dimension:
                bucket.charge(amount, now_s)

    def refund(self, dimension: Dimension, amount: int, now_s: float) -> None:
        """Put `amount` back into every bucket of the dimension."""
        for bucket in self.buckets:
            if bucket.dimension == dimension:
                bucket.refund(amount, now_s)

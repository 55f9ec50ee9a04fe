"""Asking: what a call asks of the limits, from the estimate of what it will use.

One rule: what is expected is held by rates, and what it may be at the most, at the dearest price that it may be charged
at, by budgets, or what is likely where their owner prefers that. The estimate is the core's; what each provider counts
is one of `core.usage.CHARGES`.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from headgate.core.amounts import Amounts, Demand, amounts_of, demand_made
from headgate.core.bounds import OVERHEAD_TOKENS, Most, PromptBound, Unbounded, meets_budget, most_used
from headgate.core.errors import UnboundedError
from headgate.core.estimates import CallSize, Estimate, Estimator, agent_kind, size_made
from headgate.core.limits import Limit
from headgate.core.scheduling import Standing
from headgate.core.scopes import Scopes
from headgate.core.usage import CHARGES, Counting, Dialect, Usage, tokens_at_start, usage_of
from headgate.ports import Prices
from headgate.runtime.records import made_quickly


class Asker(Protocol):
    """As much of a call as its demand depends on."""

    @property
    def model(self) -> str:
        """The model it names."""
        ...

    @property
    def dialect(self) -> Dialect:
        """In which it is written."""
        ...

    @property
    def max_output_tokens(self) -> int | None:
        """What it says of its output."""
        ...

    @property
    def cache_write(self) -> str | None:
        """The longest prompt cache that it asks to be written to."""
        ...


class Sized(Asker, Protocol):
    """As much of a call as its estimate depends on."""

    @property
    def endpoint(self) -> str:
        """Where it is sent."""
        ...

    @property
    def scopes(self) -> Scopes:
        """Whom it belongs to."""
        ...

    @property
    def text_bytes(self) -> int:
        """The size of what is sent, without media."""
        ...

    @property
    def media(self) -> int:
        """How many images and documents are sent."""
        ...

    @property
    def input_tokens(self) -> int | None:
        """The size of its prompt, if its caller has counted."""
        ...

    @property
    def measure(self) -> Callable[[], PromptBound] | None:
        """Says what bounds its prompt, where that is known better than by its size; asked only under a budget."""
        ...


def size_of(call: Sized) -> CallSize:
    """Give what the estimator has to know of a call."""
    scopes = call.scopes
    of_text = call.model, call.text_bytes, call.media, call.max_output_tokens
    return size_made((*of_text, scopes.session, scopes.agent, call.endpoint, agent_kind(scopes)))


def estimate_of(call: Sized, estimator: Estimator, now_s: float) -> Estimate:
    """Estimate a call; what its caller has counted is right."""
    estimate = estimator.estimate(size_of(call), now_s)
    if call.input_tokens is None:
        # At least one: what is not held could not be settled either.
        return estimate if estimate.input_tokens > 0 else estimate._replace(input_tokens=1)
    return estimate._replace(input_tokens=call.input_tokens, input_at_most=call.input_tokens)


def most_of(call: Sized, limits: Iterable[Limit], prices: Prices, now_s: float) -> Most | None:
    """Give the most that a call can use if it meets a budget of money, else None: nothing is looked at.

    Raises:
        UnboundedError: it meets one, and nothing bounds the call.
    """
    if not meets_budget(limits):
        return None
    if call.input_tokens is not None:
        prompt = PromptBound(0, call.input_tokens)
    elif call.measure is not None:
        prompt = call.measure()
    else:
        unknown = "a picture or document" if call.media else None
        prompt = PromptBound(call.text_bytes, OVERHEAD_TOKENS, unknown)
    most = most_used(prompt, call.max_output_tokens, prices.reach(call.model))
    if not isinstance(most, Unbounded):
        return most
    if prices.cost(call.model, Usage(1, output_tokens=1), now_s).micro_usd is None:
        return None  # refused for its price, by the limit that binds
    raise UnboundedError(
        f"a budget has to bound what this call may cost, and nothing does: {most.why}, and how far model "
        f"{call.model!r} reaches is not known; say it with context_window and max_output_tokens under [[price]] in the "
        "configuration, or state max output tokens and send what the call refers to"
    )


def demand_of(
    call: Asker,
    estimate: Estimate,
    prices: Prices,
    now_s: float,
    most: Most | None = None,
    counting: Counting | None = None,
) -> Demand:
    """Give what a call asks for: one slot, and what its provider charges for the estimate; a bound trusts no cache.

    Money is asked for `most`, if that is given: what cannot be exceeded, where the estimate's bound is only likely.
    Without `counting`, while it is not known where the call goes, it counts as its dialect's own vendor does.
    """
    counting = counting or call.dialect
    charge = CHARGES[counting]
    expected = _expected(call, estimate.warm_usage, prices, now_s, counting)
    input_at_most, output_at_most = estimate.input_at_most, estimate.output_at_most
    most_usage = usage_of((input_at_most, 0, 0, 0, output_at_most, 0, True))
    most = most or Most(input_at_most, output_at_most, 0)
    at_most = charge(most_usage, _most_micro_usd(call, most, prices, now_s))
    asked = demand_made((expected, amounts_of((*at_most[:-1], 1)), 0, None))
    if estimate.output_likely is None:
        return asked
    likely = _likely(estimate, most)
    likely_usage = Usage(estimate.input_at_most, output_tokens=estimate.output_likely)
    amounts = charge(likely_usage, _most_micro_usd(call, likely, prices, now_s))
    # What a provider charges at the start, whatever is written, is not less likely.
    return asked._replace(likely=amounts._replace(slots=1, tokens=max(amounts.tokens, expected.tokens)))


def _likely(estimate: Estimate, most: Most) -> Most:
    """Give what a call uses at the most, but for one of a thousand: what the request does not tell stays bounded."""
    assert estimate.output_likely is not None
    input_tokens = most.input_tokens
    if most.beside_text is not None:
        input_tokens = min(input_tokens, estimate.input_at_most + most.beside_text)
    return Most(input_tokens, min(most.output_tokens, estimate.output_likely))


def held_micro_usd(limits: Iterable[Limit], asked: Demand) -> int | None:
    """Give the most that one of the limits holds of a call in money; the bound where none is on money."""
    on_money = [limit.holds_likely for limit in limits if limit.dimension == "micro_usd"]
    holds_likely = asked.likely is not None and on_money and all(on_money)
    return (asked.likely if holds_likely and asked.likely is not None else asked.at_most).micro_usd


@made_quickly
@dataclass(frozen=True, slots=True)
class Question:
    """What a call asks of the limits it meets, whenever it is asked: what it will use is estimated anew each time.

    `is_warm` says that its account is the one that has its prompt cache, `is_drawn` that its answer will be charged as
    it goes by, so that of a stream rates hold only what comes next. `counting` is how its account's provider counts.
    """

    call: Sized
    estimator: Estimator
    prices: Prices
    stated: Standing
    is_warm: bool
    is_drawn: bool
    counting: Counting

    def ask(self, now_s: float, limits: Sequence[Limit], estimate: Estimate | None = None) -> tuple[Demand, Standing]:
        """Give what the call asks of the limits it meets if it goes now, and how it stands among others.

        Raises:
            UnboundedError: it meets a budget of money, and nothing bounds what it may cost.
        """
        call, prices = self.call, self.prices
        if estimate is None:
            estimate = estimate_of(call, self.estimator, now_s)
        asked = demand_of(call, estimate, prices, now_s, most_of(call, limits, prices, now_s), self.counting)
        if self.is_drawn and (pace := estimate.output_tokens_per_s):
            asked = demand_made((asked.expected, asked.at_most, pace, asked.likely))
        stated = _of_program(self.stated, estimate, asked.expected)
        if self.is_warm:
            return asked, standing_of(call, stated, estimate, prices, now_s)
        expected = _expected(call, estimate.uncached_usage, prices, now_s, self.counting)
        return asked._replace(expected=expected), stated


def _of_program(stated: Standing, estimate: Estimate, expected: Amounts) -> Standing:
    """Give a standing with what the whole program will use, where that is guessed: as many calls like this one."""
    if stated.program_tokens is None:
        return stated
    usage = estimate.likely_usage
    calls = max(1.0, stated.program_tokens / max(1, usage.prompt_tokens + usage.output_tokens))
    cost = Amounts(*(None if each is None else round(each * calls) for each in expected))  # type: ignore[arg-type]  # money may be unknown
    return replace(stated, program_cost=cost)


def standing_of(call: Asker, stated: Standing, estimate: Estimate, prices: Prices, now_s: float) -> Standing:
    """Give how a call stands among others: as it says, and with what it would use once its prompt cache has died."""
    if estimate.warm_until_s is None:
        return stated
    cold = _expected(call, estimate.cold_usage, prices, now_s, call.dialect)
    # `replace` takes three times as long.
    return Standing(
        stated.priority, stated.interactive, stated.program_tokens, stated.program_cost, estimate.warm_until_s, cold
    )


def likely_of(call: Asker, estimate: Estimate, prices: Prices, now_s: float) -> Amounts:
    """Give what a call will likely use where its conversation's prompt cache is."""
    return _expected(call, estimate.likely_usage, prices, now_s, call.dialect)


def uncached_of(call: Asker, estimate: Estimate, prices: Prices, now_s: float) -> Amounts:
    """Give what a call will use where nothing of its prompt is cached."""
    return _expected(call, estimate.uncached_usage, prices, now_s, call.dialect)


def _expected(call: Asker, usage: Usage, prices: Prices, now_s: float, counting: Counting) -> Amounts:
    likely = CHARGES[counting](usage, prices.cost(call.model, usage, now_s).micro_usd)
    requests, uncached, output, _tokens, cost, _slots = likely
    tokens = tokens_at_start(counting, likely, usage.prompt_tokens, call.max_output_tokens)
    return amounts_of((requests, uncached, output, tokens, cost, 1))


def _most_micro_usd(call: Asker, most: Most, prices: Prices, now_s: float) -> int | None:
    # Newer OpenAI models write their prompt cache unasked, at the price of Anthropic's for 5 minutes.
    cache_write = "5m" if call.dialect == "openai" else call.cache_write
    costs = [
        prices.cost(call.model, usage, now_s).micro_usd
        for usage in _dearest(cache_write, most.input_tokens, most.output_tokens)
    ]
    known = [cost for cost in costs if cost is not None]
    return max(known) if known else None


def _dearest(cache_write: str | None, tokens: int, output_tokens: int) -> tuple[Usage, ...]:
    """Give the ways in which a call may be charged: its prompt as plain input, or as the cache write it asked for."""
    plain = usage_of((tokens, 0, 0, 0, output_tokens, 0, True))
    match cache_write:
        case "1h":
            return plain, usage_of((0, 0, 0, tokens, output_tokens, 0, True))
        case "5m":
            return plain, usage_of((0, 0, tokens, 0, output_tokens, 0, True))
        case _:
            return (plain,)

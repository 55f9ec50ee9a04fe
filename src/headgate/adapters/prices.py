"""Prices of models: what a usage costs, from the price list bundled with `genai-prices` and the owner's overrides.

One rule: exact whole-number arithmetic, rounded up once at the end; a price that is not known is None, never 0.
It never touches the network or a thread: the list is the one in the installed package, as old as that is.
"""

import logging
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from fnmatch import fnmatchcase
from functools import cache, lru_cache
from typing import TYPE_CHECKING, NamedTuple, Protocol

from headgate.adapters.windows import WindowOverride, model_reach
from headgate.core.bounds import Reach
from headgate.core.usage import Usage
from headgate.ports import Cost

if TYPE_CHECKING:
    from genai_prices.types import ModelInfo, ModelPrice, Provider, TieredPrices

__all__ = ["GenaiPrices", "PriceOverride"]

logger = logging.getLogger("headgate.prices")

MOST_MODELS_KEPT = 1024
MOST_MODELS_WARNED = 1000
# Clients choose these names. The longest in the price list has 66 characters.
MOST_NAME_CHARS = 200

OVERRIDE_VERSION = "config"

# Anthropic's cache prices as multiples of its input price (wire.md section 2, November 2026).
_WRITE_5M_FACTOR = Decimal("1.25")
_WRITE_1H_FACTOR = Decimal(2)

# Prices of what a `Usage` does not count, on models where nearly every call has some of it: their cost is unknown.
_NOT_COUNTED = ("requests_kcount", "output_reasoning_mtok", "output_citation_mtok")

_UNKNOWN = Cost(None, None)
_FREE = Cost(0, None)
_COUNTED = Usage._fields.index("reported")


@dataclass(frozen=True, slots=True)
class PriceOverride:
    """An owner's price for the models that a glob matches, in USD per million tokens.

    A cache price that is left out is a multiple of the input price that no vendor is known to exceed: 1 for reads, 1.25
    and 2 for writes that live 5 minutes and 1 hour.
    """

    model: str
    input_usd_per_mtok: Decimal
    output_usd_per_mtok: Decimal
    cache_read_usd_per_mtok: Decimal | None = None
    cache_write_5m_usd_per_mtok: Decimal | None = None
    cache_write_1h_usd_per_mtok: Decimal | None = None


class _Constraint(Protocol):
    """When a price holds, as the library says it: from a date on, or between two times of the day."""

    def active(self, request_timestamp: datetime, /) -> bool: ...


class _Rates(NamedTuple):
    """Micro-dollars per token, which are USD per million tokens; None where the list has no price."""

    input: Decimal | None
    cache_read: Decimal | None
    cache_write_5m: Decimal | None
    cache_write_1h: Decimal | None
    output: Decimal | None


class _Segment(NamedTuple):
    """Rates for prompts of more than `above` tokens, as numerators over one denominator, in the order of `_Rates`."""

    above: int
    denominator: int
    numerators: tuple[int | None, ...]


class _Tariff(NamedTuple):
    """Prices that hold while `constraint` is active (None: always); segments from the largest prompts down."""

    constraint: _Constraint | None
    segments: tuple[_Segment, ...]


class _Priced(NamedTuple):
    """What a model costs: the first tariff that is active holds, and the last one always is."""

    version: str
    tariffs: tuple[_Tariff, ...]


class GenaiPrices:
    """`ports.Prices` from the bundled price list; overrides win, the first whose glob matches.

    Standard text prices only: batch and priority tiers, audio, images and searches by the provider are not in a `Usage`
    and therefore not in its cost. The first call for any model reads the list (about 0.2 s, 20 MB); each further model
    costs a look-up once, and then a price takes a few microseconds. Safe to use from several threads.
    """

    def __init__(self, overrides: Sequence[PriceOverride] = (), windows: Sequence[WindowOverride] = ()) -> None:
        # On the instance, so that its overrides and its cache die with it.
        self._find = lru_cache(maxsize=MOST_MODELS_KEPT)(self._look_up)
        self._reach = lru_cache(maxsize=MOST_MODELS_KEPT)(self._look_up_reach)
        self._warned: set[str] = set()
        self.configure(overrides, windows)

    def configure(self, overrides: Sequence[PriceOverride], windows: Sequence[WindowOverride]) -> None:
        """Let these overrides hold from now on, instead of others."""
        self._overrides = tuple((override.model, _override_priced(override)) for override in overrides)
        self._windows = tuple(windows)
        self._find.cache_clear()
        self._reach.cache_clear()
        self._warned.clear()

    def load(self) -> None:
        """Read the price list now, so that the first call does not wait for it."""
        _bundled_providers()

    def cost(self, model: str, usage: Usage, at_s: float) -> Cost:
        """Price a usage at a time; unknown models cost `Cost(None, None)` and are warned of once each.

        `model` is what a client sends: an alias, a dated id, or either of them after `provider/`; empty where a call
        has none.
        """
        if not model:  # a call of none: what it spends, if it spends, is known to nobody
            return _UNKNOWN if any(usage[:_COUNTED]) else _FREE
        priced = self._find(model) if len(model) <= MOST_NAME_CHARS else None
        if priced is None:
            self._warn_once(model)
            return _UNKNOWN
        uncached, read, write_5m, write_1h, output, _reasoning, _reported = usage
        segment = _segment_at(priced.tariffs, uncached + read + write_5m + write_1h, at_s)
        total = 0
        for tokens, numerator in zip((uncached, read, write_5m, write_1h, output), segment.numerators, strict=True):
            if not tokens:
                continue
            if numerator is None:
                self._warn_once(model)
                return _UNKNOWN
            total += tokens * numerator
        return Cost(-(-total // segment.denominator), priced.version)

    def reach(self, model: str) -> Reach:
        """Give how much a model can read and write, as far as the list, the vendors' pages and the owner say."""
        return self._reach(model) if len(model) <= MOST_NAME_CHARS else Reach()

    def _look_up_reach(self, model: str) -> Reach:
        found = _find_model(model)
        return model_reach(model, None if found is None else found.context_window, self._windows)

    def _look_up(self, model: str) -> _Priced | None:
        for pattern, priced in self._overrides:
            if fnmatchcase(model, pattern):
                return priced
        found = _find_model(model)
        return None if found is None else _bundled_priced(found)

    def _warn_once(self, model: str) -> None:
        name = model[:MOST_NAME_CHARS]
        if name in self._warned or len(self._warned) >= MOST_MODELS_WARNED:
            return
        self._warned.add(name)
        logger.warning("no price is known for model %r: its cost is unknown; a [[price]] entry can set one", name)
        if len(self._warned) == MOST_MODELS_WARNED:
            logger.warning("%d models without a price: further ones are not named", MOST_MODELS_WARNED)


def _segment_at(tariffs: tuple[_Tariff, ...], prompt_tokens: int, at_s: float) -> _Segment:
    tariff = tariffs[-1]
    if len(tariffs) > 1:
        at = datetime.fromtimestamp(at_s, UTC)
        tariff = next((each for each in tariffs if each.constraint is None or each.constraint.active(at)), tariff)
    segments = tariff.segments
    if len(segments) == 1:
        return segments[0]
    # A tier prices all tokens of the call, not only those above its threshold (genai-prices, `TieredPrices`).
    return next(segment for segment in segments if prompt_tokens > segment.above)


@cache
def _bundled_version() -> str:
    from importlib.metadata import version  # noqa: PLC0415 - brings the e-mail parser with it, 30 ms

    return f"genai-prices {version('genai-prices')}"


def _bundled_providers() -> "list[Provider]":
    # The package costs 0.2 s to import and `headgate --help` must not pay for it. The data module and not
    # `get_snapshot()`: a program that uses Headgate as a library may have started the package's auto-update, and then
    # the version that the ledger keeps would not say which prices were used.
    from genai_prices.data import providers  # noqa: PLC0415 - slow to import, see above

    return providers


def _find_model(model: str) -> "ModelInfo | None":
    """Find a model in the list.

    The library's own look-up is not used because it remembers every name it has not found, and clients choose names.
    """
    providers = _bundled_providers()
    by_id = {provider.id: provider for provider in providers}
    prefix, slash, rest = model.lower().partition("/")
    if slash and prefix in by_id and (found := by_id[prefix].find_model(rest, all_providers=providers)):
        return found
    for provider in _likely_providers(model.lower(), by_id):
        if found := provider.find_model(model):
            return found
    return None


def _likely_providers(model: str, by_id: "dict[str, Provider]") -> "Iterable[Provider]":
    """Give the providers whose price for a model is probably meant: a wrong price is worse than none.

    A resold model (Llama at one of ten hosts) has as many prices; only its owner can say which.
    """
    if "anthropic." in model:  # Bedrock's ids: us.anthropic.claude-...
        yield by_id["aws"]
    yield by_id["anthropic"]
    yield by_id["openai"]
    for provider in by_id.values():
        if provider.model_match is not None and provider.model_match.is_match(model):
            yield provider


def _bundled_priced(model: "ModelInfo") -> _Priced:
    """Compile a model's prices; the library tries conditional ones from last to first, else the first holds."""
    if isinstance(model.prices, list):
        conditional: list[tuple[_Constraint | None, ModelPrice]] = [
            (each.constraint, each.prices) for each in reversed(model.prices)
        ]
    else:
        conditional = [(None, model.prices)]
    is_claude = "claude" in model.id
    tariffs = tuple(_Tariff(constraint, _segments(price, is_claude=is_claude)) for constraint, price in conditional)
    return _Priced(_bundled_version(), tariffs)


def _override_priced(override: PriceOverride) -> _Priced:
    price = override.input_usd_per_mtok
    read, write_5m, write_1h = (
        override.cache_read_usd_per_mtok,
        override.cache_write_5m_usd_per_mtok,
        override.cache_write_1h_usd_per_mtok,
    )
    rates = _Rates(
        input=price,
        cache_read=price if read is None else read,
        cache_write_5m=price * _WRITE_5M_FACTOR if write_5m is None else write_5m,
        cache_write_1h=price * _WRITE_1H_FACTOR if write_1h is None else write_1h,
        output=override.output_usd_per_mtok,
    )
    return _Priced(OVERRIDE_VERSION, (_Tariff(None, (_segment(-1, rates),)),))


def _segments(price: "ModelPrice", *, is_claude: bool) -> tuple[_Segment, ...]:
    """Give one segment for each stretch of prompt lengths between the thresholds of the price's tiers."""
    thresholds = {-1}
    for value in vars(price).values():
        thresholds.update(tier.start for tier in getattr(value, "tiers", ()))
    return tuple(
        _segment(above, _rates_above(price, above, is_claude=is_claude)) for above in sorted(thresholds, reverse=True)
    )


def _rates_above(price: "ModelPrice", above: int, *, is_claude: bool) -> _Rates:
    """Give the rates of a price for prompts just longer than `above`.

    A category without a price of its own costs what the next wider one does, as in the library. One exception: where a
    reseller's entry has a single price for cache writes, it is the 5-minute one, and Claude's 1-hour writes cost twice
    the input.
    """
    if any(getattr(price, key) is not None for key in _NOT_COUNTED):
        return _Rates(None, None, None, None, None)
    rate_input = _at(price.input_mtok, above)
    write = _at(price.cache_write_mtok, above)
    write_5m = _at(price.cache_write_5m_mtok, above)
    write_1h = _at(price.cache_write_1h_mtok, above)
    if write_1h is None and write is not None and rate_input is not None and is_claude:
        write_1h = max(write, rate_input * _WRITE_1H_FACTOR)
    return _Rates(
        input=rate_input,
        cache_read=_first(_at(price.cache_read_mtok, above), rate_input),
        cache_write_5m=_first(write_5m, write, rate_input),
        cache_write_1h=_first(write_1h, write, rate_input),
        output=_at(price.output_mtok, above),
    )


def _at(price: "Decimal | TieredPrices | None", above: int) -> Decimal | None:
    if price is None or isinstance(price, Decimal):
        return price
    reached = [tier.price for tier in price.tiers if tier.start <= above]
    return reached[-1] if reached else price.base


def _first(*rates: Decimal | None) -> Decimal | None:
    return next((rate for rate in rates if rate is not None), None)


def _segment(above: int, rates: _Rates) -> _Segment:
    ratios = [None if rate is None else rate.as_integer_ratio() for rate in rates]
    denominator = math.lcm(*(ratio[1] for ratio in ratios if ratio is not None))
    numerators = tuple(None if ratio is None else ratio[0] * (denominator // ratio[1]) for ratio in ratios)
    return _Segment(above, denominator, numerators)

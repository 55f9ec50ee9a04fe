"""What usages cost. The rule: known prices are checked by hand, all others against the library's own arithmetic."""

import logging
import math
import subprocess
import sys
from datetime import UTC, datetime
from decimal import Decimal

import pytest
from genai_prices import Usage as TheirUsage
from genai_prices.data import providers
from genai_prices.data_snapshot import DataSnapshot, set_custom_snapshot
from hypothesis import given
from hypothesis import strategies as st

from headgate.adapters import prices as prices_module
from headgate.adapters.prices import GenaiPrices, PriceOverride
from headgate.core.usage import NO_USAGE, Usage
from headgate.ports import Cost

NOW_S = datetime(2026, 11, 1, tzinfo=UTC).timestamp()
SONNET = "claude-sonnet-4-5-20250929"  # 3 in, 0.3 read, 3.75 and 6 written, 15 out; twice that (out: 1.5) above 200k


@pytest.fixture(scope="module")
def bundled() -> GenaiPrices:
    return GenaiPrices()


def micro_usd(prices: GenaiPrices, model: str, usage: Usage, at_s: float = NOW_S) -> int | None:
    return prices.cost(model, usage, at_s).micro_usd


def test_each_category_has_its_own_price(bundled: GenaiPrices) -> None:
    usage = Usage(1000, 2000, 300, 400, 500, 100)
    assert micro_usd(bundled, SONNET, usage) == 3000 + 600 + 1125 + 2400 + 7500


def test_a_part_of_a_micro_dollar_is_a_whole_one_and_only_once(bundled: GenaiPrices) -> None:
    assert micro_usd(bundled, "gpt-4o-mini", Usage(input_tokens=1)) == 1  # 0.15
    assert micro_usd(bundled, "gpt-4o-mini", Usage(input_tokens=1, cache_read_tokens=1)) == 1  # 0.15 + 0.075
    assert micro_usd(bundled, "o3-mini", Usage(input_tokens=3000)) == 3300  # floats: 3300.0000000000005


def test_a_long_prompt_costs_more_for_all_of_its_tokens_and_cached_ones_count(bundled: GenaiPrices) -> None:
    assert micro_usd(bundled, SONNET, Usage(input_tokens=200_000, output_tokens=2)) == 600_000 + 30
    assert micro_usd(bundled, SONNET, Usage(input_tokens=200_001, output_tokens=2)) == 1_200_006 + 45
    assert micro_usd(bundled, SONNET, Usage(input_tokens=1, cache_read_tokens=200_000)) == 6 + 120_000


def test_the_price_is_the_one_of_the_call_s_time(bundled: GenaiPrices) -> None:
    million = Usage(input_tokens=1_000_000)
    cut_s = datetime(2025, 6, 10, tzinfo=UTC).timestamp()
    assert micro_usd(bundled, "o3", million, cut_s - 1) == 10_000_000
    assert micro_usd(bundled, "o3", million, cut_s) == 2_000_000


@pytest.mark.parametrize(
    ("model", "input_micro_usd"),
    [
        ("claude-sonnet-4-5", 3000),
        ("claude-sonnet-4-5-20250929[1m]", 3000),
        ("anthropic/claude-sonnet-4-5", 3000),
        ("Anthropic/Claude-Sonnet-4-5", 3000),
        ("us.anthropic.claude-sonnet-4-5-20250929-v1:0", 3300),  # Bedrock's regional endpoints cost a tenth more
        ("claude-opus-4-1@20250805", 15000),
        ("claude-3-5-haiku-latest", 800),
        ("gpt-4o-mini", 150),
        ("openai/gpt-4o-mini", 150),
        ("gpt-4o-mini-2024-07-18", 150),
        ("text-embedding-3-small", 20),
        ("gemini-2.5-flash", 300),
    ],
)
def test_models_are_known_by_the_names_that_agents_send(bundled: GenaiPrices, model: str, input_micro_usd: int) -> None:
    assert micro_usd(bundled, model, Usage(input_tokens=1000)) == input_micro_usd


def test_an_hour_s_cache_write_of_a_resold_claude_costs_twice_the_input_where_the_list_has_one_write_price(
    bundled: GenaiPrices,
) -> None:
    resold = "us.anthropic.claude-3-7-sonnet-20250219-v1:0"
    assert micro_usd(bundled, resold, Usage(cache_write_5m_tokens=1000)) == 3750
    assert micro_usd(bundled, resold, Usage(cache_write_1h_tokens=1000)) == 6000


def test_nothing_used_costs_nothing_and_says_by_which_list(bundled: GenaiPrices) -> None:
    cost = bundled.cost(SONNET, NO_USAGE, NOW_S)
    assert cost.micro_usd == 0
    assert cost.version is not None
    assert cost.version.startswith("genai-prices 0.")


@pytest.mark.parametrize("model", ["claude-unheard-of", "gpt-unheard-of", "my-model", "/", "x" * 100_000])
def test_an_unknown_model_costs_an_unknown_amount_and_is_warned_of_once(
    model: str, caplog: pytest.LogCaptureFixture
) -> None:
    prices = GenaiPrices()
    for _call in range(3):
        assert prices.cost(model, Usage(input_tokens=1), NOW_S) == Cost(None, None)
    assert [record.name for record in caplog.records] == ["headgate.prices"]
    assert repr(model[:200]) in caplog.text
    assert len(caplog.text) < 500


def test_a_name_that_is_far_too_long_is_not_kept(bundled: GenaiPrices) -> None:
    kept = bundled._find.cache_info().currsize
    assert micro_usd(bundled, "gpt-" * 100_000, NO_USAGE) is None
    assert bundled._find.cache_info().currsize == kept


def test_a_category_that_a_model_has_no_price_for_is_unknown_and_not_free(
    bundled: GenaiPrices, caplog: pytest.LogCaptureFixture
) -> None:
    assert micro_usd(bundled, "text-embedding-3-large", Usage(input_tokens=1000)) == 130
    assert micro_usd(bundled, "text-embedding-3-large", Usage(output_tokens=1)) is None
    assert (
        micro_usd(bundled, "perplexity/sonar", Usage(input_tokens=1)) is None
    )  # its fee per request is not in a Usage
    assert "text-embedding-3-large" in caplog.text


def test_a_flood_of_unknown_names_fills_neither_the_log_nor_the_memory(caplog: pytest.LogCaptureFixture) -> None:
    prices = GenaiPrices([PriceOverride("nothing", Decimal(1), Decimal(1))])
    for number in range(prices_module.MOST_MODELS_WARNED + 100):
        prices.cost(f"unknown-{number}", NO_USAGE, NOW_S)
    assert len(caplog.records) == prices_module.MOST_MODELS_WARNED + 1
    assert "further ones are not named" in caplog.records[-1].message
    assert prices._find.cache_info().maxsize == prices_module.MOST_MODELS_KEPT


def test_an_override_wins_and_the_first_that_matches_holds() -> None:
    prices = GenaiPrices(
        [
            PriceOverride("claude-sonnet-*", Decimal("2.5"), Decimal(10)),
            PriceOverride("*", Decimal(0), Decimal(0)),
        ]
    )
    assert prices.cost(SONNET, Usage(1000, 1000, 1000, 1000, 1000), NOW_S) == Cost(
        2500 + 2500 + 3125 + 5000 + 10_000, "config"
    )
    assert prices.cost("my-model", Usage(input_tokens=10**9), NOW_S) == Cost(0, "config")


def test_an_override_s_own_cache_prices_hold() -> None:
    prices = GenaiPrices(
        [PriceOverride("m", Decimal(10), Decimal(20), Decimal(1), Decimal("12.5"), Decimal("0.000001"))]
    )
    assert micro_usd(prices, "m", Usage(cache_read_tokens=10)) == 10
    assert micro_usd(prices, "m", Usage(cache_write_5m_tokens=10)) == 125
    assert micro_usd(prices, "m", Usage(cache_write_1h_tokens=1_000_001)) == 2


counts = st.integers(0, 400_000)
usages = st.builds(Usage, counts, counts, counts, counts, counts)


@given(usages, st.sampled_from([0, 1_600_000_000, 1_780_000_000, NOW_S, 2_000_000_000]), st.data())
def test_every_cost_is_the_library_s_own(usage: Usage, at_s: float, data: st.DataObject) -> None:
    provider = data.draw(st.sampled_from([each for each in providers if each.id in {"anthropic", "openai", "google"}]))
    model = data.draw(st.sampled_from(provider.models))
    segment = prices_module._segment_at(prices_module._bundled_priced(model).tariffs, usage.prompt_tokens, at_s)
    at = datetime.fromtimestamp(at_s, UTC)
    if None in segment.numerators:  # what the library counts as free is unknown here
        return
    if model.get_prices(at).cache_write_1h_mtok is None:
        usage = usage._replace(cache_write_1h_tokens=0)
        segment = prices_module._segment_at(prices_module._bundled_priced(model).tariffs, usage.prompt_tokens, at_s)
    theirs = model.calc_price(
        TheirUsage(
            input_tokens=usage.prompt_tokens,
            cache_read_tokens=usage.cache_read_tokens,
            cache_write_tokens=usage.cache_write_5m_tokens + usage.cache_write_1h_tokens,
            cache_write_1h_tokens=usage.cache_write_1h_tokens,
            output_tokens=usage.output_tokens,
        ),
        provider,
        genai_request_timestamp=at,
    )
    ours = -(-sum(n * (numerator or 0) for n, numerator in zip(usage, segment.numerators, strict=False)) // segment[1])
    assert ours == math.ceil(theirs.total_price * 10**6)


@given(usages, usages)
def test_a_call_never_costs_more_than_all_its_input_in_the_dearest_category(used: Usage, most: Usage) -> None:
    prices = GenaiPrices()
    prompt = max(used.prompt_tokens, most.prompt_tokens)
    output = max(used.output_tokens, most.output_tokens)
    one_each = (
        Usage(input_tokens=prompt, output_tokens=output),
        Usage(cache_read_tokens=prompt, output_tokens=output),
        Usage(cache_write_5m_tokens=prompt, output_tokens=output),
        Usage(cache_write_1h_tokens=prompt, output_tokens=output),
    )
    bounds = [micro_usd(prices, SONNET, usage) or 0 for usage in one_each]
    assert (micro_usd(prices, SONNET, used) or 0) <= max(bounds)


def test_it_imports_nothing_early_and_never_opens_a_socket_or_a_thread() -> None:
    code = """
import socket, sys, threading
def refuse(*args, **kwargs): raise AssertionError("a socket was opened")
socket.socket.__init__ = refuse
import headgate.adapters.prices as prices
assert "genai_prices" not in sys.modules
from headgate.core.usage import Usage
one = prices.GenaiPrices()
assert "genai_prices" not in sys.modules
one.load()
assert one.cost("claude-sonnet-4-5", Usage(input_tokens=1), 1.8e9).micro_usd == 3
assert threading.active_count() == 1
"""
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True, timeout=60)


def test_a_program_s_own_auto_update_changes_no_price(bundled: GenaiPrices) -> None:
    set_custom_snapshot(DataSnapshot(providers=[], from_auto_update=True))
    try:
        assert micro_usd(GenaiPrices(), SONNET, Usage(input_tokens=1000)) == 3000
    finally:
        set_custom_snapshot(None)


def test_warnings_go_to_the_logger_that_the_documentation_names() -> None:
    assert prices_module.logger is logging.getLogger("headgate.prices")

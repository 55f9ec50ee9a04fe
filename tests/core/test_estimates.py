"""Estimates: safe before anything is learned, close after; retries and accounts by example."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headgate.core.accounts import Account, choose_account
from headgate.core.errors import UnknownModelError
from headgate.core.estimates import CallSize, Estimator, RollingQuantile
from headgate.core.limits import Gauge, Rate
from headgate.core.retries import Failure, RetryRule, retry_delay_s
from headgate.core.scopes import LimitRule, Scopes, fit, limits_for


@given(st.lists(st.integers(0, 1000), min_size=20, max_size=200), st.sampled_from((0.5, 0.9, 0.95)))
def test_a_quantile_is_that_of_the_last_observations(values, share):
    quantile = RollingQuantile(size=50)
    for value in values:
        quantile.observe(value)
    last = sorted(values[-50:])
    found = quantile.value(share)
    rank = -(-(len(last) + 1) * share // 1)
    assert found == (last[int(rank) - 1] if rank <= len(last) else None)


def test_before_anything_is_learned_estimates_are_large_and_bounds_larger():
    estimate = Estimator().estimate(CallSize("m", 40_000, max_output_tokens=64_000))
    assert 10_000 < estimate.input_tokens <= estimate.input_at_most
    assert (estimate.output_tokens, estimate.output_at_most) == (4_096, 64_000)


def test_a_ratio_is_learned_per_model_and_outputs_by_their_95th_percentile():
    estimator = Estimator()
    for number in range(100):
        estimator.observe(CallSize("m", 40_000), 10_000, 100 + number)
    estimate = estimator.estimate(CallSize("m", 80_000, max_output_tokens=64_000))
    assert estimate.input_tokens == 20_000
    assert estimate.output_tokens == 195
    assert estimator.estimate(CallSize("m", 80_000, max_output_tokens=50)).output_tokens == 50
    assert estimator.estimate(CallSize("other", 80_000)).input_tokens > 20_000


def test_what_is_recalled_counts_as_older_than_what_was_observed():
    estimator = Estimator()
    estimator.recall("m", [1_000] * 300)
    assert estimator.estimate(CallSize("m", 400)).output_tokens == 1_000
    for _ in range(250):
        estimator.observe(CallSize("m", 400), 100, 10)
    estimator.recall("m", [2_000] * 600)
    for _ in range(249):
        estimator.observe(CallSize("m", 400), 100, 10)
    assert estimator.estimate(CallSize("m", 400)).output_tokens == 10
    estimator.recall("never", [])
    assert estimator.estimate(CallSize("never", 400)).output_tokens == 4_096


def test_a_session_is_estimated_from_its_last_answer():
    estimator = Estimator()
    estimator.observe(CallSize("m", 100_000, session="s"), 41_000, 10)
    grown = estimator.estimate(CallSize("m", 101_000, session="s"))
    assert 41_000 < grown.input_tokens <= 41_500
    compacted = estimator.estimate(CallSize("m", 10_000, session="s"))
    assert compacted.input_tokens < 10_000


def test_a_bound_does_not_trust_an_anchor_that_may_be_another_conversations():
    estimator = Estimator()
    for _ in range(30):
        estimator.observe(CallSize("m", 100_000), 25_000, 10)
    estimator.observe(CallSize("m", 400_000, session="s"), 20_000, 10)
    assert estimator.estimate(CallSize("m", 400_000, session="s")).input_at_most >= 100_000


def test_media_count_as_media_and_not_as_text():
    assert Estimator().estimate(CallSize("m", 100, media=2)).input_tokens == 40 + 3_200


@pytest.mark.parametrize(
    ("failure", "attempt", "left_s", "expected"),
    [
        (Failure("overloaded", "x", 529), 1, 60, (0.25, 0.5)),
        (Failure("overloaded", "x", 529), 3, 60, (1.0, 2.0)),
        (Failure("limited", "x", 429, retry_after_s=7), 1, 60, (7.0, 7.7)),
        (Failure("limited", "x", 429, retry_after_s=70), 1, 60, None),
        (Failure("overloaded", "x", 529), 4, 60, None),
        (Failure("rejected", "x", 400), 1, 60, None),
        (Failure("limited", "x", 429, retryable=False), 1, 60, None),
    ],
)
def test_a_failure_is_retried_when_it_is_worth_it(failure, attempt, left_s, expected):
    delays = [retry_delay_s(RetryRule(), failure, attempt, left_s, jitter) for jitter in (0.0, 0.999)]
    if expected is None:
        assert delays == [None, None]
    else:
        assert delays == pytest.approx(expected, rel=0.01)


def test_an_account_is_chosen_by_dialect_and_model():
    accounts = [Account("a", "anthropic", ("claude-opus-*",)), Account("b", "anthropic"), Account("c", "openai")]
    assert choose_account(accounts, "anthropic", "claude-opus-4-6").name == "a"
    assert choose_account(accounts, "anthropic", "claude-haiku-4-5").name == "b"
    with pytest.raises(UnknownModelError, match="set OPENAI_API_KEY"):
        choose_account(accounts[:2], "openai", "gpt-5")


def test_a_call_meets_every_limit_on_its_path_and_patterns_limit_each_by_itself():
    rules = [
        LimitRule("run:*", Gauge("", "run:*", "slots", 5)),
        LimitRule("account:a", Rate("", "account:a", "requests", 60, 60, 50, models="claude-opus-*")),
        LimitRule("tag:team=search", Gauge("", "tag:team=search", "slots", 9)),
    ]
    path = Scopes(account="a", run="r 1", tags=(("team", "search"),))
    names = [limit.name for limit in limits_for(rules, fit(path).path(), "claude-opus-4-6")]
    assert names == [
        "run:r_1 * slots gauge",
        "account:a claude-opus-* requests rate-60s",
        "tag:team=search * slots gauge",
    ]
    assert len(limits_for(rules, fit(path).path(), "claude-haiku-4-5")) == 2

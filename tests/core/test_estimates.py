"""Estimates: safe before anything is learned, close after; retries and accounts by example."""

from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headgate.core.accounts import Account, accounts_for
from headgate.core.errors import UnknownModelError
from headgate.core.estimates import CLASS_SAMPLES, NAMED_SAMPLES, CallSize, Estimator, agent_kind
from headgate.core.limits import Gauge, Rate
from headgate.core.quantiles import RollingQuantile
from headgate.core.retries import Failure, RetryRule, retry_delay_s
from headgate.core.scopes import LimitRule, Scopes, fit, limits_for
from headgate.core.usage import Usage, charge_anthropic, charge_openai

NOW_S = 1_750_000_000.0


@given(st.lists(st.integers(0, 1000), min_size=20, max_size=200), st.sampled_from((0.5, 0.9, 0.95)))
def test_a_quantile_is_that_of_the_last_observations(values, share):
    quantile = RollingQuantile(size=50)
    for value in values:
        quantile.observe(value)
    last = sorted(values[-50:])
    found = quantile.value(share)
    rank = -(-(len(last) + 1) * share // 1)
    assert found == (last[int(rank) - 1] if rank <= len(last) else None)


def used(prompt_tokens, output_tokens=10, **cache):
    return Usage(prompt_tokens - sum(cache.values()), output_tokens=output_tokens, **cache)


def observed(sizes_and_usages, **bounds):
    estimator = Estimator(**bounds)
    for size, usage in sizes_and_usages:
        estimator.observe(size, usage, NOW_S)
    return estimator


def test_before_anything_is_learned_estimates_are_large_and_bounds_larger():
    estimate = Estimator().estimate(CallSize("m", 40_000, max_output_tokens=64_000), NOW_S)
    assert 10_000 < estimate.input_tokens <= estimate.input_at_most
    assert (estimate.output_tokens, estimate.output_at_most) == (4_096, 64_000)
    assert (estimate.cached_tokens, estimate.warm_until_s) == (0, None)


def test_a_ratio_is_learned_per_model_and_outputs_by_their_95th_percentile():
    estimator = observed((CallSize("m", 40_000), used(10_000, 100 + number)) for number in range(100))
    estimate = estimator.estimate(CallSize("m", 80_000, max_output_tokens=64_000), NOW_S)
    assert estimate.input_tokens == 20_000
    assert estimate.output_tokens == 195
    assert estimator.estimate(CallSize("m", 80_000, max_output_tokens=50), NOW_S).output_tokens == 50
    assert estimator.estimate(CallSize("other", 80_000), NOW_S).input_tokens > 20_000


def test_what_is_recalled_counts_as_older_than_what_was_observed():
    estimator = Estimator()
    short = CallSize("m", 400)

    def expected():
        return estimator.estimate(CallSize("m", 400, endpoint="another"), NOW_S).output_tokens

    estimator.recall("m", [1_000] * 300)
    assert expected() == 1_000
    for _ in range(250):
        estimator.observe(short, used(100), NOW_S)
    estimator.recall("m", [2_000] * 600)
    for _ in range(249):
        estimator.observe(short, used(100), NOW_S)
    assert expected() == 10
    estimator.recall("never", [])
    assert estimator.estimate(CallSize("never", 400), NOW_S).output_tokens == 4_096


def test_a_session_is_estimated_from_its_last_answer():
    estimator = observed([(CallSize("m", 100_000, session="s"), used(41_000))])
    grown = estimator.estimate(CallSize("m", 101_000, session="s"), NOW_S)
    assert 41_000 < grown.input_tokens <= 41_500
    compacted = estimator.estimate(CallSize("m", 10_000, session="s"), NOW_S)
    assert compacted.input_tokens < 10_000
    assert estimator.estimate(CallSize("m", 101_000, session="s", agent="another"), NOW_S).input_tokens < 41_000


def test_a_bound_does_not_trust_an_anchor_that_may_be_another_conversations():
    estimator = observed([(CallSize("m", 100_000), used(25_000))] * 30)
    estimator.observe(CallSize("m", 400_000, session="s"), used(20_000), NOW_S)
    assert estimator.estimate(CallSize("m", 400_000, session="s"), NOW_S).input_at_most >= 100_000


def test_media_count_as_media_and_not_as_text():
    assert Estimator().estimate(CallSize("m", 100, media=2), NOW_S).input_tokens == 40 + 3_200


# -- output: by key, fine to coarse


@given(
    outputs=st.lists(st.integers(0, 100_000), max_size=60),
    bound=st.integers(0, 50_000),
    key=st.tuples(st.sampled_from("ab"), st.sampled_from(["", "chat"]), st.sampled_from([None, "k"])),
)
def test_no_estimate_of_output_is_above_what_the_call_allows(outputs, bound, key):
    model, endpoint, kind = key
    size = CallSize(model, 4_000, max_output_tokens=bound, endpoint=endpoint, kind=kind)
    estimate = observed((size, used(1_000, output)) for output in outputs).estimate(size, NOW_S)
    assert estimate.output_tokens <= estimate.output_at_most == bound


def named(text_bytes=4_000, endpoint="messages", kind=None):
    return CallSize("m", text_bytes, endpoint=endpoint, kind=kind)


def test_a_fine_key_speaks_once_it_has_seen_enough_and_the_next_coarser_one_until_then():
    estimator = Estimator()

    def expected(size):
        return estimator.estimate(size, NOW_S).output_tokens

    def observe(size, output, times):
        for _ in range(times):
            estimator.observe(size, used(1_000, output), NOW_S)

    estimator.recall("m", [1] * 500)
    asked = named(kind="reviewer")
    assert expected(asked) == 1, "all of the model"
    observe(named(endpoint="other"), 2, 100)
    assert expected(named(endpoint="other")) == 2
    assert expected(asked) == 2, "still all of the model, 2 among them"
    observe(named(), 3, NAMED_SAMPLES)
    assert expected(asked) == 3, "the endpoint"
    observe(named(64_000, kind="reviewer"), 4, NAMED_SAMPLES - 1)
    estimator.observe(named(), used(1_000, 5), NOW_S)
    assert expected(asked) == 4, "the endpoint, the reviewer's few among it"
    observe(named(64_000, kind="reviewer"), 4, 1)
    observe(named(), 6, 300)
    assert (expected(named()), expected(asked)) == (6, 4), "the kind, whatever others do"
    observe(asked, 7, CLASS_SAMPLES - 1)
    assert expected(named(64_000, kind="reviewer")) == 7, "the kind, mostly of another size"
    observe(named(64_000, kind="reviewer"), 8, CLASS_SAMPLES)
    assert expected(named(64_000, kind="reviewer")) == 8, "the class of sizes"
    observe(asked, 7, 1)
    assert expected(asked) == 7


@pytest.mark.parametrize("seed", range(5))
def test_on_exchangeable_calls_95_of_100_stay_under_their_estimate(seed):
    chooser = Random(seed)
    estimator, calls, under = Estimator(), 4_000, 0
    for _ in range(calls):
        size = CallSize("m", chooser.choice((300, 5_000, 90_000)), endpoint=chooser.choice(("chat", "messages")))
        output = max(1, int(chooser.lognormvariate(size.text_bytes.bit_length() / 3, 1)))
        under += output <= estimator.estimate(size, NOW_S).output_tokens
        estimator.observe(size, used(100, output), NOW_S)
    # At least 95 % in the mean, and less than 95 % + 1 / (samples + 1) where the calls are alike (Vovk et al. 2005);
    # the rest is chance: three standard errors of a share of 4,000 calls.
    assert 0.95 - 0.0104 <= under / calls <= 0.96 + 0.0104


def test_the_pace_of_output_is_learned_from_answers_that_were_streamed():
    estimator, size = Estimator(), CallSize("m", 100)

    def pace():
        return estimator.estimate(size, NOW_S).output_tokens_per_s

    estimator.observe(size, used(10, 1_000), NOW_S)  # came in one piece
    estimator.observe(size, used(10, 20), NOW_S, streamed_s=0.001)  # too short to tell
    estimator.observe(size, used(10, 1_000), NOW_S, streamed_s=0.0)
    assert pace() == 0
    estimator.observe(size, used(10, 1_000), NOW_S, streamed_s=20.0)
    assert pace() == 75, "half as fast again, while little is known"
    for streamed_s in (20.0, 25.0) * 20:
        estimator.observe(size, used(10, 1_000), NOW_S, streamed_s=streamed_s)
    assert pace() == 50
    assert estimator.estimate(CallSize("another", 100), NOW_S).output_tokens_per_s == 0


def test_what_is_remembered_is_bounded():
    estimator = Estimator(max_models=5, max_keys=7, max_sessions=9)
    estimator.keep_longest()
    for number in range(200):
        size = CallSize(f"m{number}", 2**number, session=f"s{number}", endpoint=f"e{number}", kind=f"k{number}")
        for _ in range(2):
            estimator.observe(size, used(1_000, 100, cache_read_tokens=500), NOW_S, streamed_s=2.0)
    kept = {name: len(value) for name, value in vars(estimator).items() if hasattr(value, "__len__")}
    assert kept == {"_ratios": 5, "_missed": 5, "_paces": 5, "_outputs": 7, "_longest": 7, "_anchors": 9}


@pytest.mark.parametrize(
    ("scopes", "kind"),
    [
        (Scopes(agent="worker-7"), None),
        (Scopes(agent="a41f", parent="main"), "subagent"),
        (Scopes(parent="main", tags=(("kind", "reviewer"), ("team", "x"))), "reviewer"),
    ],
)
def test_the_kind_of_an_agent_is_what_its_tag_says(scopes, kind):
    assert agent_kind(scopes) == kind


# -- the provider's prompt cache


def conversation(turns=150, missed=0, life="5m"):
    """A conversation that grows by 100 tokens a turn and reads all that was there, but for the first `missed` turns."""
    estimator, size = Estimator(), CallSize("m", 0, session="s")
    cached, prompt = 0, 10_000
    for turn in range(turns):
        read = 0 if turn <= missed else cached
        size = size._replace(text_bytes=prompt * 4)
        written = {f"cache_write_{life}_tokens": prompt - read}
        estimator.observe(size, Usage(0, read, output_tokens=20, **written), NOW_S + turn)
        cached, prompt = prompt, prompt + 100
    return estimator, size._replace(text_bytes=prompt * 4), NOW_S + turns - 1


@pytest.mark.parametrize(("life", "life_s"), [("5m", 300), ("1h", 3_600)])
def test_what_the_last_answer_left_in_the_cache_is_read_until_it_dies(life, life_s):
    estimator, size, sent_s = conversation(life=life)
    warm = estimator.estimate(size, sent_s + life_s - 1)
    assert (warm.cached_tokens, warm.cold_cached_tokens, warm.warm_until_s) == (24_900, 0, sent_s + life_s)
    assert warm.warm_usage.input_tokens == warm.input_tokens - 24_900 < 150
    assert charge_anthropic(warm.warm_usage, None).input_tokens < 150 < charge_openai(warm.warm_usage, None).tokens
    assert charge_anthropic(warm.cold_usage, None).input_tokens == warm.input_tokens
    assert warm.input_at_most > 24_900, "a bound trusts no cache"
    cold = estimator.estimate(size, sent_s + life_s)
    assert (cold.cached_tokens, cold.warm_until_s) == (0, None)
    assert cold.warm_usage == cold.cold_usage


def test_a_part_that_lives_longer_is_still_there_when_the_rest_has_died():
    estimator, size, sent_s = conversation(life="1h")
    estimator.observe(size, Usage(0, 24_900, 300, 0, 20), sent_s)
    size = size._replace(text_bytes=size.text_bytes + 400)
    warm = estimator.estimate(size, sent_s)
    assert (warm.cached_tokens, warm.cold_cached_tokens, warm.warm_until_s) == (25_200, 24_900, sent_s + 300)
    later = estimator.estimate(size, sent_s + 300)
    assert (later.cached_tokens, later.cold_cached_tokens, later.warm_until_s) == (24_900, 0, sent_s + 3_600)


def test_a_use_of_the_cache_begins_its_life_anew():
    estimator, size, sent_s = conversation()
    estimator.observe(size, Usage(100, 24_900, output_tokens=20), sent_s + 250)
    assert estimator.estimate(size, sent_s + 500).cached_tokens == 24_900


@pytest.mark.parametrize("changed", [{"text_bytes": 1_000}, {"session": "t"}, {"agent": "a"}, {"model": "n"}])
def test_nothing_is_predicted_of_another_conversation_or_one_that_was_cut(changed):
    estimator, size, sent_s = conversation()
    assert estimator.estimate(size._replace(**changed), sent_s).cached_tokens == 0


def test_no_more_is_read_from_the_cache_than_the_prompt_has():
    estimator, size, sent_s = conversation()
    estimator.observe(size._replace(media=3), Usage(0, 24_900, 4_900, output_tokens=20), sent_s)
    estimate = estimator.estimate(size, sent_s)
    assert estimate.cached_tokens == estimate.input_tokens < 29_800
    assert estimate.warm_usage.input_tokens == 1, "what is not held could not be settled either"


def test_a_cache_that_is_missed_more_often_than_once_in_a_hundred_is_not_counted_on():
    few, size, sent_s = conversation(turns=90)
    assert few.estimate(size, sent_s).cached_tokens == 0, "too few to be sure"
    bad, size, sent_s = conversation(turns=150, missed=5)
    assert bad.estimate(size, sent_s).cached_tokens == 0


@pytest.mark.parametrize(
    ("failure", "attempt", "left_s", "expected"),
    [
        (Failure("overloaded", "x", 529), 1, 60, (0.25, 0.5)),
        (Failure("overloaded", "x", 529), 3, 60, (1.0, 2.0)),
        (Failure("limited", "x", 429, retry_after_s=7), 1, 60, (0.0, 0.0)),  # its lane is closed meanwhile
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
    assert [each.name for each in accounts_for(accounts, "anthropic", "claude-opus-4-6")] == ["a", "b"]
    assert [each.name for each in accounts_for(accounts, "anthropic", "claude-haiku-4-5")] == ["b"]
    with pytest.raises(UnknownModelError, match="set OPENAI_API_KEY"):
        accounts_for(accounts[:2], "openai", "gpt-5")


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

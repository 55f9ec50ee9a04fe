"""Warm-up: for which prefix a call waits, and when it goes."""

from headgate.core.warm_up import LEAST_BYTES, Mark, WarmUp

TOOLS = Mark(1, 10_000, 300.0)
SYSTEM = Mark(2, 20_000, 3_600.0)
SHORT_TALK = Mark(3, 20_000 + LEAST_BYTES - 1, 300.0)
LONG_TALK = Mark(4, 20_000 + LEAST_BYTES, 300.0)


def test_the_first_goes_and_the_others_wait_for_the_longest_that_they_share():
    prefixes = WarmUp()
    assert prefixes.awaited("main", [TOOLS, SYSTEM], 0.0) is None
    assert prefixes.began("main", [TOOLS, SYSTEM], 0.0, 30.0) == (("main", 1), ("main", 2))
    assert prefixes.awaited("main", [TOOLS, SYSTEM, LONG_TALK], 1.0) == (("main", 2), 30.0)
    assert prefixes.awaited("main", [TOOLS], 1.0) == (("main", 1), 30.0)
    assert prefixes.awaited("other", [TOOLS, SYSTEM], 1.0) is None
    prefixes.answered("main", [TOOLS, SYSTEM], 2.0)
    assert prefixes.awaited("main", [TOOLS, SYSTEM, LONG_TALK], 2.0) is None


def test_nobody_waits_for_less_than_what_a_cache_keeps_beyond_what_is_warm():
    prefixes = WarmUp()
    prefixes.answered("main", [SYSTEM], 0.0)
    prefixes.began("main", [SYSTEM, SHORT_TALK], 1.0, 31.0)
    assert prefixes.awaited("main", [SYSTEM, SHORT_TALK], 1.0) is None
    assert prefixes.began("main", [SYSTEM, LONG_TALK], 1.0, 31.0) == (("main", 4),)
    assert prefixes.awaited("main", [SYSTEM, LONG_TALK], 1.0) == (("main", 4), 31.0)


def test_a_prefix_lives_as_long_as_its_cache_after_its_last_use():
    prefixes = WarmUp()
    prefixes.answered("main", [TOOLS, SYSTEM], 0.0)
    assert prefixes.began("main", [TOOLS, SYSTEM], 299.9, 330.0) == ()
    prefixes.answered("main", [TOOLS], 200.0)
    assert prefixes.began("main", [TOOLS, SYSTEM], 499.9, 530.0) == ()
    assert prefixes.began("main", [TOOLS, SYSTEM], 500.0, 530.0) == (("main", 1),)
    assert prefixes.began("main", [SYSTEM], 3_600.0, 3_630.0) == (("main", 2),)


def test_the_turn_of_one_that_gave_up_is_the_next_ones():
    prefixes = WarmUp()
    led = prefixes.began("main", [SYSTEM], 0.0, 30.0)
    prefixes.gave_up(led)
    assert prefixes.awaited("main", [SYSTEM], 1.0) is None
    assert prefixes.began("main", [SYSTEM], 1.0, 31.0) == led


def test_what_another_has_read_meanwhile_stays_warm_when_the_first_gives_up():
    prefixes = WarmUp()
    led = prefixes.began("main", [SYSTEM], 0.0, 30.0)
    prefixes.answered("main", [SYSTEM], 5.0)
    prefixes.gave_up(led)
    assert prefixes.began("main", [SYSTEM], 6.0, 36.0) == ()


def test_after_the_longest_wait_all_go_at_once():
    prefixes = WarmUp()
    led = prefixes.began("main", [SYSTEM], 0.0, 5.0)
    prefixes.went("main", [SYSTEM], led, 5.0)
    assert prefixes.awaited("main", [SYSTEM], 5.0) is None
    assert prefixes.began("main", [SYSTEM], 5.0, 10.0) == ()
    assert prefixes.awaited("main", [SYSTEM], 5.0) is None


def test_a_call_that_waits_for_its_admission_is_awaited_once_it_is_sent():
    prefixes = WarmUp()
    led = prefixes.began("main", [SYSTEM], 0.0, 30.0)
    assert prefixes.began("main", [SYSTEM], 31.0, 61.0) == led, "it was not sent, so nothing is warm"
    prefixes.went("main", [SYSTEM], led, 75.0)
    assert prefixes.awaited("main", [SYSTEM], 74.0) == (("main", 2), 75.0)
    prefixes.answered("main", [SYSTEM], 50.0)
    prefixes.went("main", [SYSTEM], led, 90.0)
    assert prefixes.awaited("main", [SYSTEM], 51.0) is None


def test_what_is_remembered_is_bounded_and_what_is_used_stays():
    prefixes = WarmUp(most_prefixes=3)
    for key in range(10):
        prefixes.answered("main", [SYSTEM], 0.0)
        prefixes.began("main", [Mark(100 + key, 10_000, 300.0)], 0.0, 30.0)
    awaited = [key for key in range(10) if prefixes.awaited("main", [Mark(100 + key, 10_000, 300.0)], 1.0)]
    assert awaited == [8, 9]
    assert prefixes.began("main", [SYSTEM], 1.0, 31.0) == ()

"""Model rules: which rule fits a call, and what becomes of it then."""

import math
from dataclasses import dataclass, field
from datetime import UTC, datetime
from zoneinfo import ZoneInfo

import pytest

from headgate.core.model_rules import (
    Asking,
    Between,
    Delay,
    Left,
    ModelChoice,
    ModelRule,
    RuledOut,
    choose_model,
)

NOON = datetime(2026, 11, 20, 12, 0, tzinfo=UTC).timestamp()
OPUS = Asking("claude-opus-4-6", ("key:ci", "team:search|key:ci", "tag:kind=simple"), 500)


@dataclass
class Known:
    """Facts as a test knows them; `asked` has what was asked."""

    input: int = 1_000
    reasoning: str | None = None
    part: float = 1.0
    waits: dict[str, float] = field(default_factory=dict)
    unserved: tuple[str, ...] = ()
    asked: list[str] = field(default_factory=list)

    def input_tokens(self) -> int:
        self.asked.append("input")
        return self.input

    def effort(self) -> str | None:
        return self.reasoning

    def left(self, scopes: str | None) -> Left:
        self.asked.append(f"left {scopes}")
        return Left(self.part, NOON + 60, "$5.00 per day for key:ci")

    def delay(self, model: str) -> Delay:
        self.asked.append(f"wait {model}")
        wait_s = self.waits.get(model, 0.0)
        return Delay(wait_s, "50 requests per minute for account:main", math.isinf(wait_s))

    def can_take(self, model: str) -> bool:
        return model not in self.unserved


def chosen(*rules: ModelRule, asking: Asking = OPUS, now_s: float = NOON, **facts: object) -> ModelChoice | RuledOut:
    return choose_model(rules, asking, Known(**facts), now_s)  # type: ignore[arg-type]  # the fields of Known


def haiku(**conditions: object) -> ModelRule:
    return ModelRule("small", use="claude-haiku-4-5", **conditions)  # type: ignore[arg-type]  # the fields of a rule


AS_ASKED = ModelChoice(OPUS.model)
CHANGED = ModelChoice("claude-haiku-4-5", "small", asked_model=OPUS.model)


def test_without_a_rule_a_call_stays_as_it_is():
    assert chosen() == AS_ASKED


@pytest.mark.parametrize(
    ("fits", "fails"),
    [
        ({"models": "claude-opus-*"}, {"models": "claude-sonnet-*"}),
        ({"scope": "tag:kind=simple"}, {"scope": "tag:kind=hard"}),
        ({"scope": "team:*"}, {"scope": "run:*"}),
        ({"max_input_tokens": 1_000}, {"max_input_tokens": 999}),
        ({"max_output_tokens": 500}, {"max_output_tokens": 499}),
        ({"between": Between(11 * 3600, 13 * 3600)}, {"between": Between(22 * 3600, 6 * 3600)}),
        ({"budget_below": 0.31}, {"budget_below": 0.3}),
        ({"wait_over_s": 29.0}, {"wait_over_s": 30.0}),
    ],
)
def test_each_condition_must_hold_and_all_of_them(fits, fails):
    facts = {"part": 0.3, "waits": {OPUS.model: 30.0}}
    assert chosen(haiku(**fits), **facts) == CHANGED
    assert chosen(haiku(**fails), **facts) == AS_ASKED
    assert chosen(haiku(**{**fits, **fails, "models": "nothing-*"}), **facts) == AS_ASKED


def test_an_output_that_is_not_stated_is_not_small():
    assert chosen(haiku(max_output_tokens=10**9), asking=OPUS._replace(max_output_tokens=None)) == ModelChoice(
        OPUS.model
    )


def test_the_first_rule_that_fits_decides():
    rules = (haiku(models="gpt-*"), ModelRule("keep", then="wait"), haiku())
    assert chosen(*rules) == ModelChoice(OPUS.model, "keep")


def test_a_rule_that_would_change_nothing_leaves_the_next_its_turn():
    again = ModelRule("again", use=OPUS.model)
    unserved = ModelRule("unserved", use="claude-gone")
    quiet = ModelRule("quiet", effort="low")
    assert chosen(again, unserved, quiet, haiku(), unserved=("claude-gone",)) == CHANGED


def test_a_model_that_would_wait_too_long_as_well_does_not_help():
    sonnet = ModelRule("middle", wait_over_s=30, use="claude-sonnet-4-5")
    waits = {OPUS.model: math.inf, "claude-sonnet-4-5": 31.0, "claude-haiku-4-5": 29.0}
    assert chosen(sonnet, haiku(wait_over_s=30), waits=waits) == CHANGED
    waits["claude-sonnet-4-5"] = 30.0
    assert chosen(sonnet, haiku(wait_over_s=30), waits=waits).model == "claude-sonnet-4-5"


@pytest.mark.parametrize(
    ("said", "changes"),
    [
        ("max", True),
        ("high", True),
        ("medium", True),
        ("low", False),
        ("minimal", False),
        ("odd", False),
        (None, False),
    ],
)
def test_effort_is_lowered_and_never_raised_or_added(said, changes):
    rule = ModelRule("calm", effort="low")
    expected = ModelChoice(OPUS.model, "calm", "low") if changes else AS_ASKED
    assert chosen(rule, reasoning=said) == expected


def test_a_smaller_model_and_less_effort_go_together():
    rule = ModelRule("small", use="claude-haiku-4-5", effort="low")
    assert chosen(rule, reasoning="high") == ModelChoice("claude-haiku-4-5", "small", "low", OPUS.model)
    assert chosen(rule) == CHANGED


def test_a_refusal_says_why_and_until_when():
    rule = ModelRule("full", budget_below=0.1, budget_of="run:*", wait_over_s=5, then="refuse")
    outcome = chosen(rule, part=0.04, waits={OPUS.model: 90.0})
    assert isinstance(outcome, RuledOut)
    assert (outcome.rule, outcome.retry_after_s) == ("full", 60.0)
    assert outcome.why == (
        "4.0% is left of $5.00 per day for key:ci, less than 10.0%; "
        "it would wait about 2 min for 50 requests per minute for account:main, more than 5 s"
    )
    outcome = chosen(ModelRule("never", then="refuse"))
    assert outcome == RuledOut("never", "", None)


def test_what_can_never_run_is_not_turned_down_for_waiting_too_long():
    """A rule about waiting answered `it would wait for ever` and hid the budget that was spent."""
    waits = {OPUS.model: math.inf}
    assert chosen(ModelRule("late", wait_over_s=30, then="refuse"), waits=waits) == AS_ASKED
    assert chosen(haiku(wait_over_s=30), waits=waits) == CHANGED
    assert isinstance(chosen(ModelRule("no", then="refuse"), waits=waits), RuledOut)


def test_a_long_wait_is_said_in_minutes():
    """It read `about 3.45e+03 s`."""
    outcome = chosen(ModelRule("late", wait_over_s=30, then="refuse"), waits={OPUS.model: 3_450.0})
    assert isinstance(outcome, RuledOut)
    assert outcome.why == "it would wait about 58 min for 50 requests per minute for account:main, more than 30 s"
    outcome = chosen(ModelRule("night", between=Between(11 * 3600, 20 * 3600), then="refuse"))
    assert isinstance(outcome, RuledOut)
    assert outcome.why == "for another 8 h"


def test_a_time_of_day_follows_its_clock_over_midnight():
    night = Between(22 * 3600, 6 * 3600, ZoneInfo("Europe/Berlin"))
    for hour, minute, left_s in ((20, 59, None), (21, 0, 8 * 3600), (4, 59, 60), (5, 0, None)):  # UTC, an hour behind
        at_s = datetime(2026, 11, 20, hour, minute, tzinfo=UTC).timestamp()
        assert night.left_s(at_s) == left_s


def test_what_costs_something_is_asked_last():
    facts = Known()
    rule = haiku(models="gpt-*", max_input_tokens=5, budget_below=0.5, wait_over_s=1)
    choose_model([rule], OPUS, facts, NOON)
    assert facts.asked == []

"""A conversation does not go to and fro between models at a rule's border, and down the ladder it goes at once."""

from dataclasses import dataclass, field, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headgate.core.model_rules import (
    NEARLY,
    STICKY_S,
    Asking,
    Delay,
    Kept,
    Left,
    ModelChoice,
    ModelRule,
    RuledOut,
    choose_model,
    stay,
)

NOON = 1_780_000_000.0
BIG, MIDDLE, SMALL, UNPRICED = "big", "middle", "small", "unpriced"
COSTS = {BIG: 50, MIDDLE: 30, SMALL: 10}
ASKING = Asking(BIG, ("key:ci", "session:s"), 500)
CHEAP = ModelRule("cheap", max_input_tokens=20_000, use=SMALL)
LATE = ModelRule("late", wait_over_s=30.0, use=SMALL)


@dataclass
class Conversation:
    """Facts as a test knows them, and one conversation that goes by the rules, its prompt growing where it is sent."""

    rules: tuple[ModelRule, ...]
    asking: Asking = ASKING
    input: int = 30_000
    reasoning: str | None = None
    part: float = 1.0
    waits: dict[str, float] = field(default_factory=dict)
    unserved: tuple[str, ...] = ()
    cached: dict[str, float] = field(default_factory=dict)
    kept: Kept | None = None
    now_s: float = NOON

    def input_tokens(self) -> int:
        return self.input

    def effort(self) -> str | None:
        return self.reasoning

    def left(self, scopes: str | None) -> Left:
        return Left(self.part)

    def delay(self, model: str) -> Delay:
        return Delay(self.waits.get(model, 0.0))

    def can_take(self, model: str) -> bool:
        return model not in self.unserved

    def cached_part(self, model: str) -> float:
        return self.cached.get(model, 0.0)

    def cost_micro_usd(self, model: str) -> int | None:
        return COSTS.get(model)

    def chosen(self) -> ModelChoice | RuledOut:
        return choose_model(self.rules, self.asking, self, self.now_s)

    def goes(self, **facts: object) -> str:
        """Give the model of the next call, or the rule that refuses it, and remember as `runtime.model_choice` does."""
        for name, value in facts.items():
            setattr(self, name, value)
        fresh = outcome = self.chosen()
        if self.kept is not None:
            outcome = stay(self.kept, fresh, self.asking, self, self.now_s)
        if isinstance(outcome, RuledOut):
            return f"refused by {outcome.rule}"
        if outcome is fresh:
            rule = next((rule for rule in self.rules if rule.name == fresh.rule), None)
            self.kept = Kept(rule, self.now_s) if rule is not None and fresh.is_changed else None
        self.cached[outcome.model] = 0.9
        self.now_s += 10
        return outcome.model


def test_at_the_border_of_a_size_it_stays_where_it_went():
    here = Conversation((CHEAP,))
    sizes = (19_000, 20_001, 19_999, 21_000, 19_500, 24_999)
    assert [here.goes(input=size) for size in sizes] == [SMALL] * 6


def test_one_that_has_really_grown_goes_back_at_once():
    here = Conversation((CHEAP,))
    assert [here.goes(input=size) for size in (19_000, int(20_000 * NEARLY), int(20_000 * NEARLY) + 1, 26_000)] == [
        SMALL,
        SMALL,
        BIG,
        BIG,
    ]


@pytest.mark.parametrize(
    ("rule", "below", "above"),
    [
        (replace(CHEAP, max_input_tokens=None, budget_below=0.2), {"part": 0.19}, {"part": 0.21}),
        (LATE, {"waits": {BIG: 31.0}}, {"waits": {BIG: 29.0}}),
    ],
)
def test_at_the_border_of_a_budget_or_a_wait_it_stays_until_the_rule_has_not_fitted_for_long(rule, below, above):
    here = Conversation((rule,))
    assert here.goes(**above) == BIG
    assert [here.goes(**facts) for facts in (below, above) * 50] == [SMALL] * 100
    left = [here.goes(**above) for _ in range(40)]
    assert left == [SMALL] * 22 + [BIG] * 18, "not for ever: the owner's rule has not fitted for four minutes"
    assert here.goes(**below) == SMALL


def test_who_begins_goes_by_the_rules_at_once():
    assert Conversation((LATE,)).goes(waits={BIG: 31.0}) == SMALL
    assert Conversation((LATE,)).goes(waits={BIG: 29.0}) == BIG


def test_it_goes_back_where_nothing_is_lost_by_that():
    here = Conversation((LATE,))
    assert here.goes(waits={BIG: 31.0}) == SMALL
    assert here.goes(waits={}, cached={}) == BIG, "its cache has died"
    here = Conversation((LATE,))
    assert here.goes(waits={BIG: 31.0}) == SMALL
    assert here.goes(waits={}, cached={SMALL: 0.07, BIG: 0.98}) == BIG, "a larger conversation of the same session"
    here = Conversation((LATE,))
    assert here.goes(waits={BIG: 31.0}) == SMALL
    assert here.goes(waits={}, cached={SMALL: 0.8, BIG: 0.9}) == SMALL, "about as much is cached there: it stays"


LADDER = (
    ModelRule("last", budget_below=0.05, then="refuse"),
    ModelRule("low", budget_below=0.2, use=SMALL),
    ModelRule("half", budget_below=0.5, use=MIDDLE),
)


def test_down_the_ladder_it_goes_at_once_and_up_step_by_step_it_does_not_flap():
    here = Conversation(LADDER)
    parts = {0.6: BIG, 0.49: MIDDLE, 0.51: MIDDLE, 0.19: SMALL, 0.21: SMALL, 0.51001: SMALL, 0.04: "refused by last"}
    assert [here.goes(part=part) for part in parts] == list(parts.values())
    assert here.goes(part=0.06) == SMALL


def test_a_cheaper_model_of_a_later_rule_is_not_delayed_nor_is_a_refusal():
    rules = (
        replace(LATE, use=MIDDLE),
        ModelRule("low", budget_below=0.2, use=SMALL),
        ModelRule("night", max_output_tokens=10**6, budget_below=0.3, then="refuse"),
    )
    here = Conversation(rules)
    assert here.goes(waits={BIG: 31.0}) == MIDDLE
    assert here.goes(waits={}) == MIDDLE
    assert here.goes(part=0.1) == SMALL
    assert here.goes(part=0.25) == "refused by night"


def test_where_a_price_is_not_known_nothing_is_delayed():
    here = Conversation((LATE, ModelRule("low", budget_below=0.2, use=UNPRICED)))
    assert here.goes(waits={BIG: 31.0}) == SMALL
    assert here.goes(waits={}, part=0.1) == UNPRICED


def test_a_rule_that_leaves_calls_alone_is_a_step_up():
    here = Conversation((ModelRule("modest", max_input_tokens=10_000, then="wait"), ModelRule("long", use=SMALL)))
    assert [here.goes(input=size) for size in (9_000, 10_500, 9_900, 10_500)] == [BIG, SMALL, SMALL, SMALL]


def test_what_a_call_says_of_itself_decides_at_once():
    simple = ModelRule("simple", scope="tag:kind=simple", max_output_tokens=1_000, use=SMALL)
    here = Conversation((simple,), replace_path("tag:kind=simple"))
    assert here.goes() == SMALL
    assert here.goes(asking=replace_path("tag:kind=hard")) == BIG
    assert here.goes(asking=replace_path("tag:kind=simple")) == SMALL
    assert here.goes(asking=replace_path("tag:kind=simple")._replace(max_output_tokens=1_001)) == BIG


def replace_path(tag: str) -> Asking:
    return ASKING._replace(path=(*ASKING.path, tag))


def test_a_model_that_can_not_take_the_call_any_more_or_would_wait_too_long_is_left():
    here = Conversation((CHEAP, LATE))
    assert here.goes(input=19_000) == SMALL
    assert here.goes(input=21_000, unserved=(SMALL,)) == BIG
    here = Conversation((LATE,))
    assert here.goes(waits={BIG: 31.0}) == SMALL
    assert here.goes(waits={SMALL: 31.0}) == BIG


def test_less_reasoning_is_kept_too_for_a_cache_goes_by_that():
    calm = ModelRule("calm", budget_below=0.2, effort="low")
    here = Conversation((calm,), reasoning="high")
    assert here.goes(part=0.1) == BIG
    assert here.kept is not None
    outcome = stay(here.kept, ModelChoice(BIG), ASKING, here, here.now_s)
    assert outcome == ModelChoice(BIG, "calm", "low")
    here.reasoning = "minimal"
    assert stay(here.kept, ModelChoice(BIG), ASKING, here, here.now_s) == ModelChoice(BIG), "it is never raised"


def test_of_two_rules_that_leave_the_model_the_one_with_less_reasoning_is_further_down():
    low = ModelRule("low", budget_below=0.2, effort="low")
    half = ModelRule("half", budget_below=0.5, effort="medium")
    here = Conversation((low, half), reasoning="high")
    efforts = []
    for part in (0.4, 0.19, 0.21, 0.6):
        here.goes(part=part)
        assert here.kept is not None
        efforts.append(here.kept.rule.name)
    assert efforts == ["half", "low", "low", "low"]


def test_an_owner_can_do_without():
    here = Conversation((replace(LATE, sticky_s=0.0),))
    assert [here.goes(waits={BIG: wait_s}) for wait_s in (31.0, 29.0, 31.0)] == [SMALL, BIG, SMALL]
    here = Conversation((replace(LATE, sticky_s=15.0),))
    assert [here.goes(waits={BIG: wait_s}) for wait_s in (31.0, 29.0, 29.0)] == [SMALL, SMALL, BIG]


moves = st.lists(
    st.tuples(st.sampled_from((0.04, 0.1, 0.3, 0.8)), st.sampled_from((0.0, 31.0)), st.integers(1, 30_000)),
    min_size=2,
    max_size=40,
)


@given(moves=moves, order=st.permutations((*LADDER, CHEAP, replace(LATE, use=MIDDLE))))
def test_it_is_never_less_far_down_than_the_rules_say_and_goes_up_once_in_a_while_at_the_most(moves, order):
    here = Conversation(tuple(order))
    depth = {BIG: 0, MIDDLE: 1, SMALL: 2}
    before, steps_up, since_s = 0, [], NOON
    for part, wait_s, size in moves:
        here.part, here.waits, here.input = part, {BIG: wait_s}, size
        fresh, at_s = here.chosen(), here.now_s
        went = here.goes()
        if isinstance(fresh, RuledOut):
            assert went == f"refused by {fresh.rule}"
            here.now_s += 10
            continue
        assert depth[went] >= depth[fresh.model]
        if depth[went] < before and size <= NEARLY * 20_000:
            steps_up.append(at_s - since_s)
        if went == fresh.model and fresh.is_changed:
            since_s = at_s
        before = depth[went]
    assert all(apart_s >= STICKY_S for apart_s in steps_up)

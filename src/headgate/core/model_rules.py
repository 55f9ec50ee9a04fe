"""Model rules: a smaller model, less effort or a refusal instead of what a call asks for, as its owner ordered it.

One rule: the first rule that fits decides, and each does one thing; without a rule that fits a call stays as it is.
These are two steps of the ladder (smaller model or effort, wait or refuse); a further one, such as compaction or the
batch queue, is another action here.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, tzinfo
from fnmatch import fnmatchcase
from typing import Literal, NamedTuple, Protocol

from headgate.core.wording import span_text

DAY_S = 86_400

STICKY_S = 240.0
"""For so long after it fitted last a conversation goes on with what a rule chose. A prompt cache lives a minute longer:
one that left its model for a single call comes back while its prompt is still cached there."""

NEARLY = 1.25
"""So many times its `max_input_tokens` a prompt may have meanwhile: one that has really grown goes back while it is not
much that is read anew."""

EFFORTS = ("none", "minimal", "low", "medium", "high", "xhigh", "max")
"""The vendors' words for how much a model reasons, least first (OpenAI `reasoning_effort`, Anthropic `output_config`,
2026). Each vendor knows some of them; `Effort` has those that both do."""

Effort = Literal["low", "medium", "high"]


@dataclass(frozen=True, slots=True)
class Between:
    """A time of day, from `begins_s` to before `ends_s` after midnight; one that ends before it begins spans it."""

    begins_s: int
    ends_s: int
    zone: tzinfo = UTC

    def left_s(self, now_s: float) -> float | None:
        """Give for how long it still lasts by the clock; None if it is not that time."""
        local = datetime.fromtimestamp(now_s, self.zone)
        since_s = (local.hour * 60 + local.minute) * 60 + local.second + local.microsecond / 1e6
        if (since_s - self.begins_s) % DAY_S < (self.ends_s - self.begins_s) % DAY_S:
            return (self.ends_s - since_s) % DAY_S
        return None


@dataclass(frozen=True, slots=True)
class ModelRule:
    """What must hold of a call, all of it, and the one thing that is done then; None: it does not matter.

    `models` and `scope` are globs of the model asked for and of one of the call's scopes. The call's prompt and what it
    says of its output are at most so large. `budget_below`: less than this part is left of a window or budget that it
    meets, in a scope like `budget_of` if that is said. `wait_over_s`: it would wait longer; "refuse" leaves what would
    be refused in any case to its own reason.

    It is sent with the model `use`, with no more than `effort`, or with both; or `then` says what becomes of it as it
    is: "wait" leaves it alone, whatever later rules say, and "refuse" turns it down. A conversation whose prompt is
    cached there by then goes on with what the rule chose for `sticky_s` after it fitted last.
    """

    name: str
    models: str | None = None
    scope: str | None = None
    max_input_tokens: int | None = None
    max_output_tokens: int | None = None
    between: Between | None = None
    budget_below: float | None = None
    budget_of: str | None = None
    wait_over_s: float | None = None
    use: str | None = None
    effort: Effort | None = None
    then: Literal["wait", "refuse"] | None = None
    sticky_s: float = STICKY_S

    @property
    def asks_limits(self) -> bool:
        """Whether it depends on how far limits are used."""
        return self.budget_below is not None or self.wait_over_s is not None


class Asking(NamedTuple):
    """What a call says of itself: its model, its scopes in words, and what bounds its output."""

    model: str
    path: Sequence[str]
    max_output_tokens: int | None


class Left(NamedTuple):
    """The part that is left of the scarcest budget, when that begins again, if it ever does, and its words."""

    part: float
    resets_s: float | None = None
    budget: str = "no budget"


class Delay(NamedTuple):
    """How long a call would wait, and for what, in words.

    `is_refused`: it would not wait at all but be refused, for ever or, `wait_s` from now, no longer.
    """

    wait_s: float
    binds: str = ""
    is_refused: bool = False


class Facts(Protocol):
    """What a rule may ask beside what the call says; each costs something, so it is asked late and only if needed."""

    def input_tokens(self) -> int:
        """The estimate of the prompt."""
        ...

    def effort(self) -> str | None:
        """How much reasoning the call asks for; None if it says nothing of it."""
        ...

    def left(self, scopes: str | None) -> Left:
        """What is left of the scarcest budget that the call meets, in scopes like this glob."""
        ...

    def delay(self, model: str) -> Delay:
        """How long the call would wait with a model."""
        ...

    def can_take(self, model: str) -> bool:
        """Whether there is an account for a model, and it reaches as far as the call."""
        ...

    def cached_part(self, model: str) -> float:
        """Which part of the call's prompt stands in a model's prompt cache."""
        ...

    def cost_micro_usd(self, model: str) -> int | None:
        """What the call would cost with a model; None where no price is known."""
        ...


@dataclass(frozen=True, slots=True)
class ModelChoice:
    """The model that a call is sent with, and the rule that decided so, if one did.

    `effort` is what it asks of reasoning from now on, where the rule lowers that. `asked_model` is what it asked for,
    where that is another.
    """

    model: str
    rule: str | None = None
    effort: Effort | None = None
    asked_model: str | None = None

    @property
    def is_changed(self) -> bool:
        """Whether a rule changes something of the call."""
        return self.asked_model is not None or self.effort is not None


class Kept(NamedTuple):
    """The rule whose choice a conversation goes on with, and when that rule fitted last."""

    rule: ModelRule
    fitted_s: float


@dataclass(frozen=True, slots=True)
class RuledOut:
    """A rule turns the call down; `retry_after_s` from now it may no longer, None where nobody can say."""

    rule: str
    why: str
    retry_after_s: float | None


def may_fit(rule: ModelRule, asking: Asking, now_s: float) -> bool:
    """Whether what the call says of itself, and the time of day, let a rule fit."""
    return _is_meant(rule, asking) and (rule.between is None or rule.between.left_s(now_s) is not None)


def _is_meant(rule: ModelRule, asking: Asking) -> bool:
    """Whether a rule is for calls that say this of themselves."""
    if rule.models is not None and not fnmatchcase(asking.model, rule.models):
        return False
    if rule.scope is not None and not any(fnmatchcase(each.partition("|")[0], rule.scope) for each in asking.path):
        return False
    # Unknown is not small.
    stated = math.inf if asking.max_output_tokens is None else asking.max_output_tokens
    return rule.max_output_tokens is None or stated <= rule.max_output_tokens


def choose_model(rules: Iterable[ModelRule], asking: Asking, facts: Facts, now_s: float) -> ModelChoice | RuledOut:
    """Give what becomes of a call by the first rule that fits.

    A rule that would change nothing about the call does not fit: no other model that can take it, no effort to lower,
    or, where it is about waiting, a model for which it would wait too long as well.
    """
    for rule in rules:
        if not may_fit(rule, asking, now_s) or not _holds(rule, asking, facts):
            continue
        if rule.then == "refuse":
            why, retry_after_s = _reason(rule, asking, facts, now_s)
            return RuledOut(rule.name, why, retry_after_s)
        if rule.then == "wait":
            return ModelChoice(asking.model, rule.name)
        changed = _changed(rule, asking, facts)
        if changed is not None:
            return changed
    return ModelChoice(asking.model)


def stay(
    kept: Kept, chosen: ModelChoice | RuledOut, asking: Asking, facts: Facts, now_s: float
) -> ModelChoice | RuledOut:
    """Give what becomes of a call whose conversation went by a rule before, where `choose_model` has `chosen` now.

    A conversation goes down the ladder at once: to a refusal, and from one rule's model to a cheaper one's. Up it goes
    when its rule has not fitted for `sticky_s`, or when there is no prompt cache to be lost (it has died, or much more
    of the prompt is cached there: then it was another conversation of the session). So it cannot go to and fro, for
    that would take a step up within that time. What a call says of itself (its model, its scopes, its longest answer)
    decides at once in any case.
    """
    rule = kept.rule
    if isinstance(chosen, RuledOut) or chosen.rule == rule.name or now_s >= kept.fitted_s + rule.sticky_s:
        return chosen
    if not _is_meant(rule, asking):
        return chosen
    if rule.max_input_tokens is not None and facts.input_tokens() > NEARLY * rule.max_input_tokens:
        return chosen
    same = _changed(rule, asking, facts)
    if same is None or (chosen.is_changed and _is_as_far_down(chosen, same, facts)):
        return chosen
    here, there = facts.cached_part(same.model), facts.cached_part(chosen.model)
    return same if here and here >= there / 2 else chosen


def _is_as_far_down(one: ModelChoice, other: ModelChoice, facts: Facts) -> bool:
    """Whether a choice costs no more than another; where that is unknown it does not, so that nothing is delayed."""
    cost, other_cost = facts.cost_micro_usd(one.model), facts.cost_micro_usd(other.model)
    if cost is None or other_cost is None:
        return True
    least = EFFORTS.index(one.effort or "max"), EFFORTS.index(other.effort or "max")
    return cost < other_cost or (cost == other_cost and least[0] <= least[1])


def _holds(rule: ModelRule, asking: Asking, facts: Facts) -> bool:
    if rule.max_input_tokens is not None and facts.input_tokens() > rule.max_input_tokens:
        return False
    if rule.budget_below is not None and facts.left(rule.budget_of).part >= rule.budget_below:
        return False
    if rule.wait_over_s is None:
        return True
    delay = facts.delay(asking.model)
    # What is refused does not wait: its own refusal has the limit and the way out.
    return delay.wait_s > rule.wait_over_s and not (delay.is_refused and rule.then == "refuse")


def _changed(rule: ModelRule, asking: Asking, facts: Facts) -> ModelChoice | None:
    said = facts.effort() if rule.effort is not None else None
    lowers = said in EFFORTS and EFFORTS.index(said) > EFFORTS.index(rule.effort or "max")
    effort = rule.effort if lowers else None
    if rule.use is None or rule.use == asking.model:
        return ModelChoice(asking.model, rule.name, effort) if effort is not None else None
    too_late = rule.wait_over_s is not None and facts.delay(rule.use).wait_s > rule.wait_over_s
    if too_late or not facts.can_take(rule.use):
        return None
    return ModelChoice(rule.use, rule.name, effort, asking.model)


def _reason(rule: ModelRule, asking: Asking, facts: Facts, now_s: float) -> tuple[str, float | None]:
    """Say in words why a rule that fits does, and when the first of its conditions may end."""
    words: list[str] = []
    ends_s: list[float] = []
    if rule.between is not None:
        left_s = rule.between.left_s(now_s) or 0.0
        words.append(f"for another {span_text(left_s)}")
        ends_s.append(left_s)
    if rule.budget_below is not None:
        left = facts.left(rule.budget_of)
        words.append(f"{left.part:.1%} is left of {left.budget}, less than {rule.budget_below:.1%}")
        ends_s += [] if left.resets_s is None else [left.resets_s - now_s]
    if rule.wait_over_s is not None:
        delay = facts.delay(asking.model)
        words.append(
            f"it would wait about {_in_words(delay.wait_s)} for {delay.binds}, more than {_in_words(rule.wait_over_s)}"
        )
        ends_s.append(delay.wait_s)
    if rule.max_input_tokens is not None:
        words.append(f"its prompt has about {facts.input_tokens():,} tokens")
    return "; ".join(words), min(ends_s, default=None)


def _in_words(wait_s: float) -> str:
    return span_text(wait_s) if wait_s >= 10 else f"{wait_s:.2g} s"  # noqa: PLR2004 - below it tenths are worth reading

"""Scheduling: what an owner says of who goes next, and what a call says of itself.

One rule: here is only what was said; `ordering` makes an order of it.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase

from headgate.core.amounts import Amounts
from headgate.core.choosing import POLICIES
from headgate.core.policies import MOST_PRIORITY
from headgate.core.scopes import ScopeKind, Scopes

__all__ = ["MOST_PRIORITY", "ORDINARY", "POLICIES", "LaneRule", "Scheduling", "Standing"]


@dataclass(frozen=True, slots=True)
class Standing:
    """What a call's place depends on, beside its arrival and its cost.

    A higher `priority` goes first. `interactive`: a person waits for it. `program_tokens` guesses the tokens, of
    prompts and answers, that all calls of its program take together, and `program_cost` is what that comes to in
    amounts. Its prompt cache lives until `warm_until_s`; from then on it would use `cold`.
    """

    priority: int = 0
    interactive: bool = False
    program_tokens: int | None = None
    program_cost: Amounts | None = None
    warm_until_s: float | None = None
    cold: Amounts | None = None


ORDINARY = Standing()


@dataclass(frozen=True, slots=True)
class LaneRule:
    """The policy of the lanes whose scope and models fit two globs."""

    scope: str
    models: str
    policy: str


@dataclass(frozen=True, slots=True)
class Scheduling:
    """Who goes next, as the owner configured it.

    `share_by` names the scopes between which `fair` is fair, the first that a call has; `weights` are by their names
    (`key:ci`), 1 where none is given. With `warm_up` one of many calls with the same marked prefix goes first.
    """

    policy: str = "fifo"
    share_by: tuple[ScopeKind, ...] = ("key", "team", "agent", "session")
    weights: Mapping[str, float] = field(default_factory=dict)
    lanes: tuple[LaneRule, ...] = ()
    warm_up: bool = True

    def policy_of(self, scope: str, models: str) -> str:
        """Give the policy of a lane: the first rule's that fits, else the common one."""
        for rule in self.lanes:
            if fnmatchcase(scope, rule.scope) and fnmatchcase(models, rule.models):
                return rule.policy
        return self.policy

    def sharer_of(self, scopes: Scopes) -> tuple[str, float]:
        """Give the name that a call's share is counted under, and its weight."""
        for kind in self.share_by:
            value = getattr(scopes, kind)
            if value is not None:
                name = f"{kind}:{value}"
                return name, self.weights.get(name, 1.0)
        return "", 1.0

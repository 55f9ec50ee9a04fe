"""Rules in force: the configured limits, those that keys carry, and those that were learned.

One rule: which limits a call meets depends on its scopes and model alone, so the answer is remembered (bounded); how
much a limit allows may change while calls wait for it, so that is asked when a hold is taken (`met`) or settled
(`in_force`).
"""

from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence

from headgate.core.adaptive import model_class
from headgate.core.limits import Limit
from headgate.core.scopes import LimitRule, Scopes, level_name, limits_for

MOST_REMEMBERED = 20_000


class Rules:
    """The limits of one process."""

    def __init__(self, configured: Sequence[LimitRule], accounts: Sequence[str] = ()) -> None:
        """Begin with the configured ones; of a pattern of accounts it is known which there are."""
        self._accounts = [f"account:{name}" for name in accounts]
        self._configured = tuple(configured)
        self._gone: tuple[LimitRule, ...] = ()
        self._as_configured: dict[str, Limit | None] | None = None
        self._of_keys: dict[str, tuple[LimitRule, ...]] = {}
        self._learned: Mapping[str, Limit] = {}
        self._unlearned: set[str] = set()  # what was learned, is in force no more and may still stand in tickets
        self.on_learned: Callable[[Mapping[str, Limit], Mapping[str, Limit]], None] = lambda _before, _after: None
        """Told what was in force and what is now, each time that something was learned."""
        self._remembered: OrderedDict[tuple[Scopes, str], tuple[Limit, ...]] = OrderedDict()
        self._by_level: dict[str, Limit | None] = {}

    def limits_for(self, scopes: Scopes, model: str) -> tuple[Limit, ...]:
        """Give every limit that a call of these scopes for this model meets; a learned one as it was when it came."""
        asked = (scopes, model)
        found = self._remembered.get(asked)
        if found is None:
            found = limits_for((*self._configured, *self._of_keys.get(scopes.key or "", ())), scopes.path(), model)
            if self._learned and scopes.account is not None:
                found += self._learned_for(scopes.account, model, {limit.name for limit in found})
            self._remembered[asked] = found
            if len(self._remembered) > MOST_REMEMBERED:
                self._remembered.popitem(last=False)
        return found

    def configure(self, configured: Sequence[LimitRule]) -> None:
        """Let other rules be in force from now on, for calls that wait too.

        A limit that stays goes on from its level, whatever its amount; one that goes is met by nobody any more, and
        what calls on their way hold of it is settled all the same, so that it is as it was left if it comes back.
        """
        named = {rule_level(rule) for rule in configured}
        before = {rule_level(rule): rule for rule in (*self._gone, *self._configured)}
        self._gone = tuple(rule for name, rule in before.items() if name not in named)
        self._configured = tuple(configured)
        self._as_configured = {}
        self._remembered.clear()
        self._by_level.clear()
        self._unlearned = {name for name in self._unlearned if self.configured(name) is None}

    def all_configured(self) -> tuple[LimitRule, ...]:
        """Give the configured rules, without those that keys carry."""
        return self._configured

    def in_force(self, limits: Sequence[Limit]) -> Sequence[Limit]:
        """Give limits as they are now: with other amounts if they are configured anew, lowered or closed if learned."""
        if self._as_configured is not None:
            limits = [self._configured_now(limit) or limit for limit in limits]
        learned = self._learned
        return [learned.get(limit.name, limit) for limit in limits] if learned else limits

    def met(self, limits: Sequence[Limit]) -> Sequence[Limit]:
        """Give limits that a call met when it came as it meets them now: as `in_force`, without those that are gone."""
        if self._as_configured is not None:
            limits = [limit for limit in limits if self._configured_now(limit) is not None]
        if self._unlearned:
            limits = [limit for limit in limits if limit.name not in self._unlearned]
        return self.in_force(limits)

    def learn(self, limits: Mapping[str, Limit]) -> None:
        """Let these learned limits be in force, by the names of their levels: configured ones as far as they go now."""
        if limits.keys() != self._learned.keys():
            self._remembered.clear()
            gone = (name for name in self._learned.keys() - limits.keys() if self.configured(name) is None)
            self._unlearned = (self._unlearned | set(gone)) - limits.keys()
            if len(self._unlearned) > MOST_REMEMBERED:
                self._unlearned.clear()
        before, self._learned = self._learned, limits
        self.on_learned(before, limits)

    def set_key(self, name: str, rules: Sequence[LimitRule]) -> None:
        """Let a key carry these limits from now on."""
        if self._of_keys.get(name, ()) != tuple(rules):
            self._of_keys[name] = tuple(rules)
            self._remembered.clear()
            self._by_level.clear()
            self._unlearned = {name for name in self._unlearned if self.configured(name) is None}
            if self._as_configured:
                self._as_configured.clear()

    def named(self, level_names: Iterable[str]) -> tuple[Limit, ...]:
        """Give the limits that keep these levels; levels that no rule keeps any more are left out."""
        found = {name: self.configured(name) or self._learned.get(name) for name in level_names}
        return tuple(limit for limit in found.values() if limit is not None)

    def configured(self, wanted: str) -> Limit | None:
        """Give the limit that keeps a level, as it is configured or as a key carries it: of several rules the last.

        So it does for a call (`scopes.limits_for`): a level has one limit, whoever asks.
        """
        if wanted not in self._by_level:  # asked of every answer that tells limits
            if len(self._by_level) > MOST_REMEMBERED:
                self._by_level.clear()
            every = (*self._configured, *(rule for rules in self._of_keys.values() for rule in rules))
            self._by_level[wanted] = bound(every, wanted)
        return self._by_level[wanted]

    def of_scope(self, scope: str) -> tuple[Limit, ...]:
        """Give the limits that a scope has itself, whatever the model: its own, or by a pattern that fits it."""
        every = (*self._configured, *(rule for rules in self._of_keys.values() for rule in rules))
        found = (rule.bind((scope,), rule.template.models or "") for rule in every)
        return tuple({limit.name: limit for limit in found if limit is not None}.values())

    @property
    def hold_likely(self) -> bool:
        """Whether one of them holds what is likely."""
        every = (*self._configured, *(rule for rules in self._of_keys.values() for rule in rules))
        return any(rule.template.holds_likely for rule in every)

    def standing(self) -> tuple[Limit, ...]:
        """Give the limits that are there before anything was used: each account's, and those of no pattern."""
        every = (*self._configured, *(rule for rules in self._of_keys.values() for rule in rules))
        found = (
            rule.bind((scope,), rule.template.models or "")
            for rule in every
            for scope in ((rule.scope,) if "*" not in rule.scope else self._accounts)
        )
        return tuple(limit for limit in found if limit is not None)

    def _configured_now(self, limit: Limit) -> Limit | None:
        """Give a limit as it is configured now; None if it was and is no more. What never was is as it is."""
        assert self._as_configured is not None
        if limit.name not in self._as_configured:
            if len(self._as_configured) > MOST_REMEMBERED:
                self._as_configured.clear()
            found = self.configured(limit.name)
            if found is None and bound(self._gone, limit.name) is None:
                return limit
            self._as_configured[limit.name] = found
        return self._as_configured[limit.name]

    def _learned_for(self, account: str, model: str, met: set[str]) -> tuple[Limit, ...]:
        scope, models = f"account:{account}", model_class(model)
        return tuple(
            limit
            for name, limit in self._learned.items()
            if name not in met and limit.scope == scope and limit.models in (None, models)
        )


def bound(rules: Sequence[LimitRule], wanted: str) -> Limit | None:
    """Give the limit that keeps a level, of several rules the last."""
    scope = wanted.split(" ", 1)[0]
    for rule in reversed(rules):
        limit = rule.bind((scope,), rule.template.models or "")
        if limit is not None and level_name(scope, rule.template) == wanted:
            return limit
    return None


def rule_level(rule: LimitRule) -> str:
    """Name the level of a rule's own scope or pattern: two rules of one name give the same limit."""
    return level_name(rule.scope, rule.template)
